"""A needle: where it should be, in a sequence of the length asked for."""

import pytest
from hypothesis import given, settings, strategies as st

import qwenlab as ql
from qwenlab.errors import BadArgument
from qwenlab.tasks import needle
from qwenlab.tasks.alphabet import alphabet
from tests.tasks.solving import distances


@pytest.fixture(scope="module")
def toy():
    return ql.open("toy-dense")


@settings(max_examples=40)
@given(length=st.integers(7, 400), position=st.floats(0, 1), seed=st.integers(0, 99))
def test_length_and_position_are_those_asked_for(toy, length, position, seed):
    task = needle(toy, length=length, position=position, count=2, seed=seed)
    parts = alphabet(toy)
    distances(task, 1, parts)
    for tokens, asked in zip(task.tokens, task.asked, strict=True):
        assert (len(tokens), asked) == (length, (length - 1,))
        before = tokens.index(parts.colon) - 1
        assert abs(before - position * (length - 7)) <= 0.5
        prose = [*tokens[:before], *tokens[before + 3 : -4]]
        assert set(prose) <= set(parts.haystack)


def test_a_long_haystack_goes_round(toy):
    task = needle(toy, length=60_000, position=0.5, count=1)
    assert len(task.tokens[0]) == 60_000
    distances(task, 1, alphabet(toy))


@pytest.mark.parametrize("position", [-0.1, 1.5, "middle", float("nan"), True])
def test_a_position_is_a_share(toy, position):
    with pytest.raises(BadArgument, match=r"give the share of the prose before the needle, from 0 to 1"):
        needle(toy, length=64, position=position)


def test_the_question_needs_room(toy):
    with pytest.raises(BadArgument, match=r"needle\(length=6\): give an integer, 7 or more"):
        needle(toy, length=6, position=0)
