"""Calibration agrees with loops, and differs for an overconfident head."""

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st
from numpy.testing import assert_allclose

from qwenlab import stats
from qwenlab.errors import BadArgument, NothingMeasured
from qwenlab.testing.ledgers import Played, ledger, made_ledger
from qwenlab.testing.strategies import made_ledgers


@settings(max_examples=25)
@given(made_ledgers(), st.integers(1, 7))
@example(ledger([Played((1,), (1, 3), probability=[0.6]), Played((1,), (2, 3), probability=[0.5])]), 5)
def test_by_loops(data, bins):
    tested = [
        (float(data["draft_probability"][r, d]), int(data["accepted"][r]) > d)
        for r in range(data.sizes["round"])
        for d in range(int(data["tested"][r]))
    ]
    if not tested:
        with pytest.raises(NothingMeasured, match="has a draft_probability"):
            stats.calibration(data, bins=bins)
        return
    result = stats.calibration(data, bins=bins)
    error = 0.0
    for place, low in enumerate(result["probability"].values):
        inside = [each for each in tested if min(int(each[0] * bins), bins - 1) == round(low * bins)]
        p, accepted = (np.array(each, float) for each in zip(*inside, strict=True))
        here = result.isel(probability=place)
        assert (int(here["tested"]), int(here["accepted"])) == (len(inside), int(accepted.sum()))
        assert_allclose(here["conditional"], accepted.mean())
        assert_allclose(here["mean_probability"], p.mean())
        error += len(inside) / len(tested) * abs(accepted.mean() - p.mean())
    assert int(result["tested"].sum()) == len(tested)
    assert_allclose(result["calibration_error"], error, atol=1e-12)


def test_a_probability_of_one_is_in_the_last_bin():
    data = ledger([Played((1,), (1, 3), probability=[1.0]), Played((1,), (2, 3), probability=[0.95])])
    result = stats.calibration(data)
    assert result["probability"].values.tolist() == [0.9]
    assert result["tested"].values.tolist() == [2]


def rounds(rng, says):
    """Rounds of one draft, right with probability p, for which the head says `says(p)`."""
    chances = rng.random(4000)
    right = rng.random(4000) < chances
    return ledger(
        [
            Played((1,), (1 if ok else 2, 3), prompt=place % 20, probability=[says(chance)])
            for place, (chance, ok) in enumerate(zip(chances, right, strict=True))
        ]
    )


def test_a_calibrated_head_lies_on_the_diagonal_and_a_sure_one_below():
    rng = np.random.default_rng(0)
    honest = stats.calibration(rounds(rng, lambda p: p))
    low, high = (honest["conditional_interval"].sel(bound=end) for end in ("low", "high"))
    on_it = (low <= honest["mean_probability"]) & (honest["mean_probability"] <= high)
    assert on_it.mean() >= 0.8
    assert float(honest["calibration_error"]) < 0.03
    sure = stats.calibration(rounds(rng, lambda p: p**0.2))
    assert float(sure["calibration_error"]) > 0.2
    assert (sure["conditional"] < sure["mean_probability"])[-3:].all()


def test_attrs():
    result = stats.calibration(made_ledger())
    for variable in result.data_vars.values():
        assert variable.attrs["rule"] == "greedy"
        assert variable.attrs["depth"] == 4
        assert variable.attrs["prompts"] == 12
    assert result.attrs["bins"] == 10


def test_no_bins_are_refused():
    with pytest.raises(BadArgument, match=r"bins=0\): give an integer number of bins of \[0, 1\], 1 or more"):
        stats.calibration(made_ledger(), bins=0)
