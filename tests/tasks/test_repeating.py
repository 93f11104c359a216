"""Copying and induction: exact lengths, and what is asked for stood before, word for word."""

import pytest
from hypothesis import given, settings, strategies as st

import qwenlab as ql
from qwenlab.errors import BadArgument
from qwenlab.tasks import copying, induction
from qwenlab.tasks.alphabet import alphabet
from tests.tasks.solving import distances


@pytest.fixture(scope="module")
def toy():
    return ql.open("toy-dense")


@settings(max_examples=40)
@given(length=st.integers(7, 700), seed=st.integers(0, 99))
def test_the_second_copy_is_the_first(toy, length, seed):
    task = copying(toy, length=length, count=2, seed=seed)
    parts = alphabet(toy)
    size = 3 if (length - 1) // 6 <= 52 else 4
    items = (length - 1) // (2 * size)
    found = distances(task, size - 2, parts)
    assert found == [[size * items + 1] * items] * 2
    for tokens in task.tokens:
        assert len(tokens) == length
        assert tokens[-size * items :] == tokens[-2 * size * items - 1 : -size * items - 1]
        assert tokens[-size * items - 1] == parts.newline
        assert set(tokens[: length - 1 - 2 * size * items]) <= set(parts.haystack)
    assert task.chance == 0.1


@settings(max_examples=40)
@given(data=st.data(), length=st.integers(6, 400), seed=st.integers(0, 99))
def test_the_last_token_followed_its_key_once_before(toy, data, length, seed):
    size = 3 if (length - 3) // 3 <= 52 else 4
    items = (length - size) // size
    distance = data.draw(st.none() | st.integers(1, items).map(lambda steps: steps * size))
    task = induction(toy, length=length, distance=distance, count=3, seed=seed)
    assert {len(tokens) for tokens in task.tokens} == {length}
    assert task.asked == ((length - 1,),) * 3
    found = distances(task, size - 2, alphabet(toy))
    assert all(0 < each <= length - size and not each % size for (each,) in found)
    if distance is not None:
        assert found == [[distance]] * 3


def test_any_key_is_repeated_where_no_distance_is_given(toy):
    found = distances(induction(toy, length=12, count=60), 1, alphabet(toy))
    assert {each for (each,) in found} == {3, 6, 9}


@pytest.mark.parametrize(
    ("make", "sizes", "why"),
    [
        (copying, dict(length=6), r"copying\(length=6\): give an integer, 7 or more"),
        (copying, dict(length=30_000), r"copying\(length=30000\) takes 3,749 different keys"),
        (induction, dict(length=5), r"induction\(length=5\): give an integer, 6 or more"),
        (
            induction,
            dict(length=64, distance=10),
            r"distance=10\): .* 3 tokens, and 20 of these(.|\n)*multiple of 3 up to 60",
        ),
        (induction, dict(length=64, distance=63), "multiple of 3 up to 60"),
        (induction, dict(length=64, distance=0), r"induction\(distance=0\): give an integer"),
        (induction, dict(length=64, count=0), r"induction\(count=0\): give an integer"),
    ],
)
def test_sizes_that_cannot_be_made_are_refused(toy, make, sizes, why):
    with pytest.raises(BadArgument, match=why):
        make(toy, **sizes)
