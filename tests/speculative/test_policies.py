"""Draft policies: when to draft one more token."""

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays

from qwenlab.errors import BadArgument, BadPolicy
from qwenlab.speculative.policies import ExpectedValue, FixedDepth, Threshold, call_policy, policy_name

PROBABILITIES = st.tuples(st.integers(1, 5), st.integers(0, 5)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.floats(0.01, 1))
)


@given(PROBABILITIES, st.integers(0, 5))
def test_a_fixed_depth_ignores_probabilities(probability, depth):
    rounds, drafts = probability.shape
    assert call_policy(FixedDepth(depth), probability).tolist() == [drafts < depth] * rounds


@given(PROBABILITIES, st.floats(0, 1))
def test_a_threshold_compares_the_newest_draft(probability, threshold):
    by_hand = [not len(row) or row[-1] >= threshold for row in probability]
    assert call_policy(Threshold(threshold), probability).tolist() == by_hand


def test_a_draft_at_the_threshold_continues():
    assert call_policy(Threshold(0.5), np.array([[0.9, 0.5], [0.9, 0.4999]])).tolist() == [True, False]


COSTS = st.lists(st.floats(0.1, 10), min_size=1, max_size=7)


@given(PROBABILITIES, st.floats(0, 2), COSTS, st.lists(st.floats(0, 1), min_size=1, max_size=4))
def test_one_more_draft_if_it_adds_tokens_faster_than_the_round_emits_them(probability, draft_step, verify, guess):
    def by_hand(row):
        drafts = len(row)
        if drafts + 1 >= len(verify):
            return False
        expected, chance = 1.0, 1.0
        for likely in row:
            chance *= likely
            expected += chance
        seconds = drafts * draft_step + verify[drafts]
        more = draft_step + verify[drafts + 1] - verify[drafts]
        gain = chance * guess[min(drafts, len(guess) - 1)]
        return gain * seconds - expected * more

    margins = [by_hand(row) for row in probability]
    answers = call_policy(ExpectedValue(draft_step, verify, guess), probability)
    for margin, answer in zip(margins, answers, strict=True):
        assert answer == (margin > 0) or abs(margin) < 1e-9  # a tie may be rounded either way


def test_expected_value_in_numbers():
    """A plain step of 10 ms, a draft of 1 ms, 2 ms for each further width: 3 ms must add 0.3 tokens at first."""
    never, first = np.empty((1, 0)), ExpectedValue(1, [10, 12, 14, 16], guess=0.31)
    assert call_policy(first, never).tolist() == [True]
    assert call_policy(ExpectedValue(1, [10, 12, 14, 16], guess=0.29), never).tolist() == [False]
    # With one draft of 0.5: 1.5 tokens in 13 ms, and 0.5 * guess tokens in 3 ms; even at guess = 0.6923.
    sure = [ExpectedValue(1, [10, 12, 14, 16], guess=guess)(np.array([[0.5]])).tolist() for guess in (0.69, 0.70)]
    assert sure == [[False], [True]]


def test_no_more_drafts_than_there_are_widths_with_a_cost():
    free = ExpectedValue(0, [1, 1, 1], guess=1)
    assert [bool(free(np.ones((1, drafts)))[0]) for drafts in range(4)] == [True, True, False, False]


@pytest.mark.parametrize(("make", "says"), [
    (lambda: FixedDepth(-1), "give 0 (no drafts) or more"),
    (lambda: Threshold(1.5), "give a probability, 0 to 1"),
    (lambda: Threshold(float("nan")), "give a probability, 0 to 1"),
    (lambda: ExpectedValue(1, []), "a plain step, a block of two tokens"),
    (lambda: ExpectedValue(-1, [1]), "costs are positive"),
    (lambda: ExpectedValue(1, [1, 0]), "costs are positive"),
    (lambda: ExpectedValue(1, [1, 2], guess=1.2), "guess is a probability"),
    (lambda: ExpectedValue(1, [1, 2], guess=[]), "guess is a probability"),
])  # fmt: skip
def test_invalid_values_are_refused(make, says):
    with pytest.raises(BadArgument) as caught:
        make()
    assert says in str(caught.value)


def halves(probability):
    return np.arange(len(probability)) % 2 == 0


@pytest.mark.parametrize(("policy", "returned"), [
    (lambda probability: True, "returned a bool: True"),
    (lambda probability: None, "returned a NoneType: None"),
    (lambda probability: [True] * len(probability), "returned a list: [True, True, True]"),
    (lambda probability: np.ones(2, dtype=bool), "returned an array [2] of bool"),
    (lambda probability: np.ones((3, 1), dtype=bool), "returned an array [3, 1] of bool"),
    (lambda probability: np.ones(3), "returned an array [3] of float64"),
])  # fmt: skip
def test_a_wrong_result_is_an_error_that_describes_the_right_one(policy, returned):
    with pytest.raises(BadPolicy) as caught:
        call_policy(policy, np.ones((3, 2)))
    message = str(caught.value)
    assert "The policy <lambda> was called with probabilities [3, 2] [round, draft]" in message
    assert returned in message
    assert "a NumPy array [3] of bool" in message


def test_a_policy_that_cannot_be_called_is_refused():
    with pytest.raises(BadPolicy, match=r"policy=3 is a int, which cannot be called.\nGive a function"):
        call_policy(3, np.ones((3, 2)))


def test_any_callable_is_a_policy():
    assert call_policy(halves, np.ones((3, 2))).tolist() == [True, False, True]


class Restless:
    def __call__(self, probability):
        return np.ones(len(probability), dtype=bool)


@pytest.mark.parametrize(("policy", "name"), [
    (FixedDepth(3), "FixedDepth(depth=3)"),
    (Threshold(0.25, drops=True), "Threshold(probability=0.25, drops=True)"),
    (ExpectedValue(1, [10, 12]), "ExpectedValue(draft_step=1, verify_step=(10.0, 12.0), guess=(0.8,))"),
    (halves, "halves"),
    (Restless(), "Restless"),
])  # fmt: skip
def test_names_contain_no_address(policy, name):
    assert policy_name(policy) == name


def test_only_a_threshold_with_drops_drops():
    assert [getattr(p, "drops", False) for p in (FixedDepth(1), Threshold(0.5), Threshold(0.5, drops=True))] == [
        False,
        False,
        True,
    ]
