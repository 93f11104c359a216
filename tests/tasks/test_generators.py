"""Arithmetic as text: every sum is right, and each line continues the one before."""

import itertools
import random
import re

from hypothesis import given, strategies as st

import qwenlab as ql


@given(lines=st.integers(1, 60), seed=st.integers())
def test_sums_are_right_and_run_on(lines, seed):
    found = re.findall(r"(\d+) ([+-]) (\d+) = (-?\d+)\n", ql.tasks.arithmetic_text(lines, random.Random(seed)))
    assert len(found) == lines
    for first, sign, second, result in found:
        assert int(first) + (int(second) if sign == "+" else -int(second)) == int(result)
    for (*_, result), (following, *_) in itertools.pairwise(found):
        assert following == result or not 10 <= int(result) < 100
