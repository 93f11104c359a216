"""A ledger is believed only where its counts can be: each way they cannot is said."""

import numpy as np
import pytest

from qwenlab import stats
from qwenlab.errors import InconsistentRecording, NothingMeasured
from qwenlab.record import Recording
from qwenlab.stats.base.rounds import read_rounds
from qwenlab.testing.ledgers import Played, ledger, made_ledger

ROUNDS = [
    Played((5, 6, 7), (5, 6, 9, 1), prompt=3),  # accepted 2 of 3
    Played((1, 2, 3), (1, 2, 3, 4), prompt=3),  # all
    Played((8, 0, 3), (8, 0, 3, 9), prompt=3),  # cut by an end of text after 2
]


def spoilt(**values):
    """The ledger of ROUNDS with other values of some variables."""
    data = ledger(ROUNDS)
    for name, (place, value) in values.items():
        data[name].values[place] = value
    return data


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            dict(proposed=(0, 2)),
            r"Round 0 \(prompt 3\): drafted > proposed \(proposed 2, drafted 3, tested 3, accepted 2",
        ),
        (dict(drafted=(1, 4)), r"Round 1 .*: drafted is over 3, the depth"),
        (dict(tested=(2, 4)), "Round 2 .*: tested > drafted"),
        (dict(accepted=(0, 4)), "Round 0 .*: accepted > tested"),
        (dict(accepted=(0, 1)), r"tested > accepted \+ 1, though a rejection ends the round"),
        (dict(agreed=(0, 1)), "agreed is neither accepted or more, up to drafted, nor -1"),
        (dict(agreed=(0, 4)), "agreed is neither"),
        (dict(emitted=(0, 4)), r"emitted is not 1 to accepted \+ 1"),
        (dict(emitted=(2, 0)), r"emitted is not 1 to accepted \+ 1"),
        (dict(ended=(0, "stopped")), "ended is not one of rejected, full, eos, length"),
        (dict(ended=(1, "rejected")), "ended 'rejected', yet no draft was tested and not accepted"),
        (dict(ended=(0, "full")), "ended 'full', yet not every draft was accepted"),
        (dict(draft_token=((0, 2), -1)), "a draft given to the target model has no token"),
        (
            dict(target_token=((1, 0), 7)),
            "accepted a draft that is not the target model's token, under the rule greedy",
        ),
    ],
)
def test_counts_that_cannot_be_are_refused(values, message):
    with pytest.raises(InconsistentRecording, match=f"(?s){message}.*Make the ledger again"):
        stats.acceptance(spoilt(**values))


def test_the_number_of_similar_rounds_is_reported():
    data = ledger(ROUNDS)
    data["proposed"] = data["proposed"] - 1
    with pytest.raises(InconsistentRecording, match=r"3 rounds of 3 are like it"):
        stats.acceptance(data)


def test_the_identity_is_asserted_with_its_numbers():
    with pytest.raises(InconsistentRecording) as caught:
        stats.acceptance(spoilt(emitted=(0, 2)))
    assert str(caught.value) == (
        "The 2 untruncated rounds emitted 3.000000 tokens each, but 1 + the accepted by place is 3.500000 "
        "(1 + 1.0000 + 1.0000 + 0.5000).\nMake the ledger again; do not edit or cut one of its variables."
    )


def test_other_rules_may_accept_other_tokens_than_the_first_choice():
    data = spoilt(target_token=((1, 0), 7)).assign_attrs(rule="speculative_sampling")
    assert int(stats.acceptance(data)["accepted"].sum()) == 7


@pytest.mark.parametrize("fact", ["rule", "depth", "policy", "text", "origin"])
def test_a_ledger_needs_the_attributes_its_rates_depend_on(fact):
    data = ledger(ROUNDS)
    del data.attrs[fact]
    with pytest.raises(InconsistentRecording, match=f"lacks the attributes {fact}, on which its rates depend"):
        stats.acceptance(data)


def test_no_round_is_nothing_measured():
    with pytest.raises(NothingMeasured, match="has no rounds: every text ended with its first token"):
        stats.acceptance(ledger([]))


def test_drafts_that_were_cut_off_are_missed():
    with pytest.raises(InconsistentRecording, match=r"drafts of this ledger are \[2, 3\], not 1 to its depth, 3"):
        stats.acceptance(ledger(ROUNDS).isel(draft=slice(1, None)))


def test_room_for_more_drafts_than_the_depth_changes_nothing():
    narrow, wide = ledger(ROUNDS), ledger(ROUNDS, depth=6).assign_attrs(depth=3)
    assert stats.acceptance(wide).identical(stats.acceptance(narrow))
    unnamed = wide.drop_vars("draft")
    assert stats.acceptance(unnamed).identical(stats.acceptance(narrow))


def test_a_length_cut_of_another_maker_is_taken():
    data = spoilt(emitted=(2, 1), accepted=(2, 2), ended=(2, "length"))
    result = stats.acceptance(data)
    assert int(result["truncated_rounds"]) == 1
    assert float(result["acceptance_length"]) == pytest.approx((3 + 4 + 1) / 3)


def test_a_ledger_from_a_file_is_the_same(tmp_path):
    data = made_ledger()
    saved = Recording({"rounds": data}, {"checkpoint": "toy"}).save(tmp_path / "run.nc")
    result = stats.acceptance(Recording.open(saved))
    assert result.attrs["checkpoint"] == "toy"
    assert result.drop_attrs().identical(stats.acceptance(data).drop_attrs())


def test_reading_leaves_the_ledger_as_it_was():
    data = made_ledger()
    before = data.copy(deep=True)
    read_rounds(data)
    assert data.identical(before)
    assert np.array_equal(data["draft"], [1, 2, 3, 4])
