"""Passages: nothing lost, nothing added, each of so many tokens."""

import pytest

import qwenlab as ql
from qwenlab.errors import BadArgument
from qwenlab.tasks import passages, texts


@pytest.fixture(scope="module")
def toy():
    return ql.open("toy-dense")


@pytest.mark.parametrize("domain", ["code", "prose"])
@pytest.mark.parametrize("tokens", [7, 64])
def test_together_they_are_the_text(toy, domain, tokens):
    text = texts(domain, 1)[0] + "é𝄞 \n\n"
    cut = passages(toy, text, tokens=tokens)
    assert "".join(cut) == text
    lengths = [len(toy.tokenizer(passage).input_ids) for passage in cut]
    assert abs(sum(lengths) - len(toy.tokenizer(text).input_ids)) <= len(cut)
    assert all(abs(length - tokens) <= 2 for length in lengths[:-1])


def test_only_the_first_are_given(toy):
    text = texts("code", 1)[0]
    assert passages(toy, text, tokens=16, count=2) == passages(toy, text, tokens=16)[:2]


def test_a_text_without_tokens_is_an_error(toy):
    with pytest.raises(BadArgument, match="the text has no tokens"):
        passages(toy, "")


def test_a_passage_has_a_token_at_least(toy):
    with pytest.raises(BadArgument, match=r"passages\(tokens=0\): give at least 1"):
        passages(toy, "one two", tokens=0)
