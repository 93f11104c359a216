"""Classes of tokens, against brute force."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

import qwenlab as ql
from qwenlab.errors import BadArgument
from qwenlab.tasks import CLASSES, FUNCTION_WORDS, texts, token_classes
from qwenlab.tasks.token_classes import _seen
from tests.tasks.solving import by_bars


@pytest.fixture(scope="module")
def toy():
    return ql.open("toy-dense")


def stood_before(tokens, t, n):
    return t >= n - 1 and any(tokens[s - n + 1 : s + 1] == tokens[t - n + 1 : t + 1] for s in range(n - 1, t))


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 5))
def test_repetition_by_brute_force(tokens, n):
    assert _seen(tokens, n).tolist() == [stood_before(tokens, t, n) for t in range(len(tokens))]


@given(text=st.text("ab c.", min_size=1, max_size=40), n=st.integers(1, 4))
def test_classes_of_a_text_are_those_of_its_tokens(toy, text, n):
    found, tokens = token_classes(toy, text, n=n), toy.tokenizer(text).input_ids
    assert found.keys() == CLASSES.keys()
    places = range(len(tokens))
    assert found["repeated"].tolist() == [stood_before(tokens, t, n) for t in places]
    assert found["first"].tolist() == [tokens[t] not in tokens[:t] for t in places]
    assert found["associative"].tolist() == [stood_before(tokens, t, 2) for t in places]


@given(st.lists(st.integers(0, 3), max_size=30))
def test_a_longer_repetition_holds_the_shorter(tokens):
    for n in (1, 2, 3):
        assert not (_seen(tokens, n + 1) & ~_seen(tokens, n)).any()


def in_a_word(text, place):
    """Whether a character is a letter, or an apostrophe between two."""
    around = text[place - 1 : place] + text[place + 1 : place + 2]
    return text[place].isalpha() or (text[place] in "'’" and len(around) == 2 and around.isalpha())


def words_by_hand(text, spans):
    """Of each token, the kind of the last word that it has a character of: character by character from there."""
    kinds = []
    for begin, end in spans:
        places = [place for place in range(begin, end) if in_a_word(text, place)]
        if not places:
            kinds.append(None)
            continue
        left = right = places[-1]
        while left > 0 and in_a_word(text, left - 1):
            left -= 1
        while right + 1 < len(text) and in_a_word(text, right + 1):
            right += 1
        word = text[left : right + 1].lower().replace("’", "'")
        kinds.append("function" if word in FUNCTION_WORDS else "content")
    return kinds


@given(
    text=st.lists(
        st.sampled_from(
            ["The", " gate", "don't", " of", "n't", "'", "’s", " it", "_", "is", "valid", " 3", "é", ".", "\n"]
        ),
        max_size=12,
    )
    .map("".join)
    .filter(bool)
)
def test_words_by_hand(toy, text):
    found = token_classes(toy, text, max_tokens=None)
    spans = toy.tokenizer(text, return_offsets_mapping=True).offset_mapping
    kinds = words_by_hand(text, spans)
    for name in ("content", "function"):
        assert found[name].tolist() == [kind == name for kind in kinds]


def test_by_hand(toy):
    text = "The king and the king's men don't."
    pieces = [text[a:b] for a, b in toy.tokenizer(text, return_offsets_mapping=True).offset_mapping]
    found = token_classes(toy, text)
    function = [piece for piece, here in zip(pieces, found["function"], strict=True) if here]
    content = [piece for piece, here in zip(pieces, found["content"], strict=True) if here]
    assert "".join(function) == "The and the don't"
    assert "".join(content) == " king king's men"


def test_a_token_of_two_words_lies_in_the_last(toy):
    text = "of king|king of|the|."
    found = token_classes(by_bars(toy, text), text)
    assert found["content"].tolist() == [False, True, False, False, False, False, False]
    assert found["function"].tolist() == [False, False, True, True, False, False, False]


def test_a_class_is_of_the_text_as_far_as_it_is_read(toy):
    text = texts("prose")[0]
    whole, cut = token_classes(toy, text, max_tokens=None), token_classes(toy, text, max_tokens=50)
    for name, values in cut.items():
        np.testing.assert_array_equal(values, whole[name][:50])


@pytest.mark.parametrize("n", [0, 2.5])
def test_an_n_gram_has_a_token(toy, n):
    with pytest.raises(BadArgument, match=rf"token_classes\(n={n}\): give an integer, 1 or more"):
        token_classes(toy, "a b", n=n)


def test_a_text_is_a_string(toy):
    with pytest.raises(BadArgument, match="text 0 is int, not a string"):
        token_classes(toy, 7)
