"""Sizes of memory as users write them."""

import pytest

from qwenlab.checkpoint.streaming.memory_size import memory_bytes, size_text
from qwenlab.errors import BadArgument


@pytest.mark.parametrize(
    ("written", "size"),
    [("8GiB", 8 * 2**30), ("8GB", 8 * 10**9), ("1.5 MiB", 3 * 2**19), ("12KB", 12_000), ("7B", 7), (123, 123)],
)
def test_a_size_in_bytes(written, size):
    assert memory_bytes(written) == size


@pytest.mark.parametrize("written", ["8", "8G", "8gib", "GiB", "-1GiB", "8iB", "1,5GiB", "", True, 8.0, None])
def test_anything_else_is_refused_with_the_right_spelling(written):
    with pytest.raises(BadArgument, match=r"is not a size.\nWrite '8GiB'"):
        memory_bytes(written)


@pytest.mark.parametrize("written", [0, -5, "0GiB"])
def test_nothing_is_not_a_budget(written):
    with pytest.raises(BadArgument, match="is not above 0"):
        memory_bytes(written)


def test_sizes_are_printed_in_binary_units():
    assert [size_text(n) for n in (12, 1536, 3 * 2**20, 5 * 2**30)] == ["12 B", "1.50 KiB", "3.00 MiB", "5.00 GiB"]
