"""What recall tasks are written with: one token each, that reads as it should; too little of it is refused."""

import random

import pytest

import qwenlab as ql
from qwenlab.errors import BadArgument
from qwenlab.tasks.alphabet import alphabet
from qwenlab.testing.checkpoints import tiny_checkpoint
from tests.tasks.solving import few_letters


@pytest.fixture(scope="module", params=["toy-dense", "toy-moe"])
def toy(request):
    return ql.open(request.param)


def test_every_part_reads_as_it_should(toy):
    parts, read = alphabet(toy), toy.tokenizer.decode
    assert [read([token]) for token in parts.letters] == [f" {letter}" for letter in ql.tasks.recall.KEYS]
    assert [read([token]) for token in parts.values] == list("0123456789")
    assert [read([token]) for token in (parts.colon, parts.question_mark, parts.newline)] == [":", "?", "\n"]


def test_no_pair_can_be_read_in_the_haystack(toy):
    haystack = toy.tokenizer.decode(list(alphabet(toy).haystack))
    assert len(alphabet(toy).haystack) > 10_000
    assert not set(haystack) & set("0123456789:?")


def test_the_haystack_goes_round(toy):
    parts = alphabet(toy)
    count = len(parts.haystack)
    filler = parts.prose(2 * count + 1, random.Random(0))
    assert filler[:count] == filler[count : 2 * count] != list(parts.haystack)
    assert sorted(filler[:count]) == sorted(parts.haystack)


@pytest.mark.parametrize(("keys", "width"), [(1, 1), (52, 1), (53, 2), (2652, 2)])
def test_keys_are_all_different_and_as_short_as_can_be(toy, keys, width):
    parts = alphabet(toy)
    assert parts.fit(lambda size: keys, "here") == (keys, width)
    pairs = parts.pairs(keys, width, random.Random(1))
    assert len({key for key, _ in pairs}) == keys
    assert {len(key) for key, _ in pairs} == {width}


def test_more_keys_than_letters_make_are_refused(toy):
    with pytest.raises(BadArgument, match="here takes 2,653 different keys, and 52 letters make 2,652 by two"):
        alphabet(toy).fit(lambda size: 2653, "here")


def test_pairs_read_as_text_are_the_same_tokens(toy):
    parts, rng = alphabet(toy), random.Random(2)
    for width in (1, 2):
        pairs = parts.pairs(40, width, rng)
        tokens = [*parts.listed(pairs), parts.newline, *parts.questions(pairs)]
        assert toy.tokenizer(toy.tokenizer.decode(tokens)).input_ids == tokens


def test_a_tokenizer_with_few_letters_makes_do(toy):
    few = few_letters(toy, " a b c a b c")
    parts = alphabet(few)
    assert [few.tokenizer.decode([token]) for token in parts.letters] == [" a", " b", " c"]
    assert parts.fit(lambda size: 6, "here") == (6, 2)
    with pytest.raises(BadArgument, match="7 different keys, and 3 letters make 6"):
        parts.fit(lambda size: 7, "here")


def test_a_tokenizer_without_letters_is_refused(tmp_path):
    tiny = ql.open(tiny_checkpoint(tmp_path, "qwen3_5"))
    with pytest.raises(BadArgument, match=r"cannot write recall tasks.* (0|1) as one token(.|\n)*a Task of your own"):
        alphabet(tiny)
