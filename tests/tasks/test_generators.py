"""Generated text: recall sequences and running sums say what they are said to say."""

import itertools
import random
import re

import pytest
from hypothesis import given, strategies as st

import qwenlab as ql
from qwenlab.tasks.recall import KEYS


@given(pairs=st.integers(1, len(KEYS)), questions=st.integers(0, 200), seed=st.integers())
def test_every_answer_is_the_value_of_its_key(pairs, questions, seed):
    text = ql.tasks.recall_text(pairs, questions, random.Random(seed))
    listed, asked, rest = text.split("\n")
    memory = dict(re.findall(r" (\w):(\d)", listed))
    answers = re.findall(r" (\w)\?(\d)", asked)
    assert (len(memory), len(answers), rest) == (pairs, questions, "")
    assert all(memory[key] == value for key, value in answers)


@given(pairs=st.integers(1, len(KEYS)), seed=st.integers())
def test_by_default_each_pair_is_asked_for_once(pairs, seed):
    (text,) = ql.tasks.recall_texts(pairs, 1, seed=seed)
    listed, asked = text.split("\n")[:2]
    assert sorted(re.findall(r" (\w)\?", asked)) == sorted(re.findall(r" (\w):", listed))


def test_recall_texts_depend_on_the_seed_only():
    assert ql.tasks.recall_texts(4, 3, seed=1) == ql.tasks.recall_texts(4, 3, seed=1)
    assert ql.tasks.recall_texts(4, 3, seed=1) != ql.tasks.recall_texts(4, 3, seed=2)


@pytest.mark.parametrize("pairs", [0, len(KEYS) + 1])
def test_more_pairs_than_keys_are_refused(pairs):
    with pytest.raises(ql.errors.BadArgument, match=rf"pairs={pairs}.*one letter a key(.|\n)*1 to 52"):
        ql.tasks.recall_text(pairs, 1, random.Random(0))


@given(lines=st.integers(1, 60), seed=st.integers())
def test_sums_are_right_and_run_on(lines, seed):
    found = re.findall(r"(\d+) ([+-]) (\d+) = (-?\d+)\n", ql.tasks.arithmetic_text(lines, random.Random(seed)))
    assert len(found) == lines
    for first, sign, second, result in found:
        assert int(first) + (int(second) if sign == "+" else -int(second)) == int(result)
    for (*_, result), (following, *_) in itertools.pairwise(found):
        assert following == result or not 10 <= int(result) < 100
