"""Statistics of DeltaNet heads, held to the tokens themselves."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from numpy.testing import assert_allclose
from scipy import stats as scipy_stats

from qwenlab import stats
from qwenlab.errors import InconsistentRecording
from qwenlab.testing.recordings import made
from qwenlab.testing.strategies import made_recordings

few = settings(max_examples=10)


@few
@given(made_recordings(probes=["deltanet"]))
def test_half_life_quantiles_are_within_one_bin_of_the_tokens(case):
    result = stats.half_life(case.recording)["half_life"]
    lives = np.log(0.5) / case.deltanet.log_alpha
    truth = np.quantile(lives, result["quantile"], axis=0, method="inverted_cdf")
    truth = np.moveaxis(np.clip(truth, 2**-6, 2**26), 0, -1)
    assert np.abs(np.log2(result.transpose("layer", "head", "quantile") / truth)).max() <= 1 / 5 + 1e-9


@few
@given(made_recordings(probes=["deltanet"]))
def test_the_two_mean_half_lives_are_their_formulas_and_ordered(case):
    result = stats.half_life(case.recording)
    g = case.deltanet.log_alpha
    assert_allclose(result["half_life_mean_log"], np.log(0.5) / g.mean(axis=0))
    assert_allclose(
        result["half_life_mean_alpha"], np.log(0.5) / np.log(np.exp(g).mean(axis=0)), rtol=1e-3
    )  # float32 near 1
    assert (result["half_life_mean_alpha"] >= result["half_life_mean_log"] * (1 - 1e-3)).all()


def test_planted_half_lives_are_found():
    case = made(sequences=64, length=64)
    result = stats.half_life(case.recording)["half_life"].sel(quantile=0.5)
    assert_allclose(np.log2(result), np.log2(case.half_life), atol=0.15)


def test_the_interval_is_the_jackknife_over_folds():
    case = made(sequences=20)
    result = stats.half_life(case.recording, level=0.9)["half_life_mean_log_interval"]
    g, fold = case.deltanet.log_alpha, case.texts.sequence % 8
    without = np.array([np.log(0.5) / g[fold != one].mean(axis=0) for one in range(8)])
    error = np.sqrt(7 / 8 * ((without - without.mean(axis=0)) ** 2).sum(axis=0))
    reach = scipy_stats.t.ppf(0.95, 7) * error
    estimate = np.log(0.5) / g.mean(axis=0)
    assert_allclose(result.sel(bound="low"), np.maximum(estimate - reach, 0))
    assert_allclose(result.sel(bound="high"), estimate + reach)
    assert result.attrs["level"] == 0.9


def test_by_label_is_as_if_only_that_label_had_been_read():
    case = made()
    whole = stats.half_life(case.recording)
    result = stats.half_life(case.recording, by_label=True)
    assert "label" not in whole.dims
    for number, name in enumerate(case.texts.labels):
        g = case.deltanet.log_alpha[case.texts.label == number]
        assert_allclose(result["half_life_mean_log"].sel(label=name), np.log(0.5) / g.mean(axis=0))


def test_half_life_share_adds_up():
    assert_allclose(stats.half_life(made().recording)["half_life_share"].sum("half_life_bin"), 1)


@few
@given(made_recordings(probes=["deltanet"]))
def test_writing_is_the_mean_over_tokens_and_sequences(case):
    result, raw = stats.writing(case.recording), case.deltanet
    assert_allclose(result["beta"], raw.beta.mean(axis=0))
    assert_allclose(result["update_norm"], raw.update_norm.mean(axis=0))
    assert_allclose(result["error_ratio"], raw.error_ratio.mean(axis=0))
    assert_allclose(result["state_norm"], raw.state_norm.mean(axis=0))


def test_heads_left_out_of_the_sample_are_nan_not_zero():
    node = made().recording["deltanet"]
    asked = xr.DataArray([1, 1, 0, 1], dims="head")
    for name in ("error_tokens", "update_norm_sum", "error_ratio_sum", "state_norm_sum"):
        node[name] = node[name] * asked
    result = stats.writing(node)
    for name in ("update_norm", "error_ratio", "state_norm"):
        assert result[name].isel(head=2).isnull().all()
        assert result[name].isel(head=[0, 1, 3]).notnull().all()
    assert result["beta"].notnull().all()


@few
@given(made_recordings(probes=["deltanet"]))
def test_key_collision_is_the_mean_over_pairs_of_different_tokens(case):
    result = stats.key_collision(case.recording)
    key = case.deltanet.key[:, 0, 0]
    tokens = len(key)
    cosines = [(key[i] @ key[j]) ** 2 for i in range(min(tokens, 40)) for j in range(min(tokens, 40)) if i != j]
    if tokens <= 40:
        expected = np.mean(cosines) if cosines else np.nan
        assert_allclose(result["key_collision"][0, 0], expected, rtol=1e-4, atol=1e-6)
    assert_allclose(result["key_directions"], 1 / result["key_collision"])
    assert result["isotropic_floor"] == 1 / 3


def test_a_histogram_of_other_tokens_is_refused():
    node = made().recording["deltanet"]
    node["half_life_hist"] = node["half_life_hist"] * 2
    with pytest.raises(InconsistentRecording, match=r"half_life_hist adds up to .* and tokens to"):
        stats.half_life(node)
