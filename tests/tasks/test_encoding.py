"""Texts as tokens: every byte of a text is some token's, and none is two's."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

import qwenlab as ql
from qwenlab.errors import BadArgument
from qwenlab.tasks import text_task
from qwenlab.tasks.encoding import encoded
from tests.tasks.solving import by_bars

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)


@pytest.fixture(scope="module")
def toy():
    return ql.open("toy-dense")


@given(TEXT)
def test_the_bytes_of_all_tokens_are_the_texts(toy, text):
    found = encoded(toy, text)
    assert list(found.tokens) == toy.tokenizer(text).input_ids
    assert len(found.tokens) == len(found.spans) == len(found.bytes)
    assert found.bytes.sum() == len(text.encode())
    assert (found.bytes >= 0).all()


@given(TEXT, st.integers(1, 10))
def test_a_cut_text_has_the_bytes_up_to_the_cut(toy, text, tokens):
    whole, cut = encoded(toy, text), encoded(toy, text, tokens)
    assert cut.tokens == whole.tokens[:tokens]
    np.testing.assert_array_equal(cut.bytes, whole.bytes[:tokens])


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("x = 1\n", [1, 2, 1, 1, 1]),
        ("xé", [1, 2, 0]),  # two tokens share é: the first has it
        ("x𝄞.", [1, 4, 0, 0, 0, 1]),
        ("xe\u0301.", [1, 1, 0, 3]),  # the tokenizer makes é of e and its accent, which goes to the token after
    ],
)
def test_by_hand(toy, text, sizes):
    assert encoded(toy, text).bytes.tolist() == sizes


def test_a_tokenizer_that_drops_and_adds_loses_no_byte(toy):
    text = "of the |é𝄞| gate | "
    odd = by_bars(toy, text[:-2])
    found = encoded(odd, text)
    tokens = ["[BEGIN]", "of the", "é𝄞", "gate", "[END]", "[END]"]
    assert odd.tokenizer.convert_ids_to_tokens(found.tokens) == tokens
    # The bars before a token are its own, and what is left is the last one's.
    assert found.bytes.tolist() == [0, 6, 8, 6, 0, 3]
    assert found.bytes.sum() == len(text.encode())


def test_a_text_task_asks_for_all_but_the_first_token(toy):
    texts = ["37 + 45 = 82\n", ql.tasks.texts("prose")[0]]
    task = text_task(toy, texts, name="mine", max_tokens=32)
    ids = [toy.tokenizer(text).input_ids[:32] for text in texts]
    assert task.tokens == tuple(map(tuple, ids))
    assert task.asked == tuple(tuple(range(1, len(each))) for each in ids)
    assert (task.name, task.chance, task.answers) == ("mine", None, None)
    rest = [toy.tokenizer.decode(each[1:]) for each in ids]
    assert task.bytes == tuple(len(each.encode()) for each in rest)


def test_a_text_in_which_nothing_follows_is_named(toy):
    with pytest.raises(BadArgument, match=r"text_task: texts \[1, 2\] have fewer than two tokens"):
        text_task(toy, ["a b c", "", "x"], name="t")


def test_one_token_cannot_be_asked_for(toy):
    with pytest.raises(BadArgument, match=r"text_task\(max_tokens=1\): give an integer, 2 or more"):
        text_task(toy, ["a b c"], name="t", max_tokens=1)
