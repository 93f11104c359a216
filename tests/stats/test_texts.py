"""Means over texts, held to draws made one by one; what pairing takes out; refusals."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, strategies as st
from numpy.testing import assert_allclose
from scipy import stats as scipy_stats

from qwenlab import stats
from qwenlab.errors import BadArgument


def made(*shape, seed=0, **attrs):
    values = np.random.default_rng(seed).gamma(4, 0.5, shape)
    return xr.DataArray(values, dims=("domain", "text")[-len(shape) :], attrs=attrs)


def test_the_interval_is_that_of_texts_drawn_one_by_one():
    score = made(2, 9, units="nat", long_name="loss")
    result = stats.mean_over_texts(score, level=0.9, resamples=500, seed=3)
    assert_allclose(result["mean"], score.values.mean(axis=1))
    rng = np.random.default_rng(3)
    draws = []
    for _ in range(2):  # in blocks, as they are drawn
        for times in rng.multinomial(9, np.full(9, 1 / 9), size=256 if not draws else 500 - 256):
            drawn = [text for text, often in enumerate(times) for _ in range(often)]
            draws.append([np.mean([row[text] for text in drawn]) for row in score.values])
    # Of 9 texts: as far in percentiles as Student's interval, with the unbiased spread, is in errors.
    reach = np.sqrt(9 / 8) * scipy_stats.t.ppf(0.95, 8)
    ends = [scipy_stats.norm.cdf(-reach), scipy_stats.norm.cdf(reach)]
    assert_allclose(result["mean_interval"], np.quantile(draws, ends, axis=0).T)
    assert result["mean_interval"].attrs["interval"] == "bootstrap of whole texts, expanded percentiles"
    assert (result["mean"].attrs["units"], int(result["texts"])) == ("nat", 9)


@given(seed=st.integers(0, 1000), hard=st.lists(st.floats(-100, 100), min_size=6, max_size=6))
def test_how_hard_a_text_is_has_no_part_in_a_difference(seed, hard):
    base, change = made(2, 6, seed=seed), made(2, 6, seed=seed + 1)
    hard = xr.DataArray(hard, dims="text")
    alone = stats.mean_over_texts(change, resamples=200)
    paired = stats.mean_over_texts(base + hard + change, less=base + hard, resamples=200)
    for name in ("mean", "mean_interval"):
        assert_allclose(paired[name], alone[name], atol=1e-9)


def test_a_base_for_all_of_a_dimension():
    base = made(6, seed=1)
    result = stats.mean_over_texts(made(2, 6), less=base)
    assert_allclose(result["mean"], made(2, 6).mean("text") - base.mean("text"))
    assert result["mean"].attrs["long_name"].startswith("difference of")


def test_a_score_keeps_its_chance_and_a_difference_has_none():
    score = made(2, 6).assign_coords(chance=("text", np.full(6, 0.1)))
    assert_allclose(stats.mean_over_texts(score)["chance"], 0.1)
    assert "chance" not in stats.mean_over_texts(score, less=score)
    plain = score.assign_coords(chance=("text", np.full(6, np.nan)))
    assert "chance" not in stats.mean_over_texts(plain)


def test_one_text_has_no_interval():
    result = stats.mean_over_texts(made(2, 1))
    assert result["mean"].notnull().all()
    assert result["mean_interval"].isnull().all()


def test_errors():
    for wrong in (made(3).rename(text="seed"), made(3).values, made(3).to_dataset(name="loss")):
        with pytest.raises(
            BadArgument, match=r"^mean_over_texts\(score=\.\.\.\): give a DataArray with the dimension 'text'"
        ):
            stats.mean_over_texts(wrong)
    with pytest.raises(
        BadArgument, match=r"^mean_over_texts\(less=\.\.\.\) has 4 texts, the score has 3: give scores of"
    ):
        stats.mean_over_texts(made(3), less=made(4))
    with pytest.raises(
        BadArgument, match=r"^mean_over_texts: 2 scores are NaN\.\nLeave those texts out of all scores\.$"
    ):
        stats.mean_over_texts(made(2, 3).where(xr.DataArray([True, False, True], dims="text")))
    for wrong in (dict(level=1.5), dict(resamples=0)):
        with pytest.raises(BadArgument):
            stats.mean_over_texts(made(3), **wrong)
