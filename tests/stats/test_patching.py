"""Which patched value brings back the answer, held to loops over sites, positions and pairs."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings, strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from qwenlab import stats
from qwenlab.errors import BadArgument, MissingVariable, NothingMeasured
from qwenlab.record import Recording
from qwenlab.stats.formulas.intervals import expanded_level
from tests.planted.sweeps import made_patching
from tests.stats.formulas.test_paired import patterns, scaled


@settings(max_examples=10)
@given(seed=st.integers(0, 999), pairs=st.integers(1, 5), layers=st.integers(4, 5))
def test_by_loops(seed, pairs, layers):
    made = made_patching(seed=seed, pairs=pairs, layers=layers, positions=3)
    result = stats.patching(made, resamples=4)
    gain, total = {}, 0.0
    for pair in range(pairs):
        one = made.isel(pair=pair)
        total += (float(one["source_logprob"]) - float(one["target_logprob"])) / pairs
        for site, position in np.ndindex(layers, 3):
            apart = float(one["logprob"][site, position]) - float(one["target_logprob"])
            gain.setdefault((site, position), []).append(apart)
    assert_allclose(result["total"], total)
    largest = [max(scaled(np.round(row, 12), signs) for row in gain.values()) for signs in patterns(pairs)]
    for (site, position), row in gain.items():
        one = result.isel(site=site, position=position)
        assert_allclose(one["effect"], np.mean(row), atol=1e-12)
        assert_allclose(one["restored"], np.mean(row) / total, atol=1e-12)
        own = scaled(np.round(row, 12), [1] * pairs)
        p = np.mean([each >= own - 1e-9 for each in largest])
        assert_allclose(one["p_max"], p)
        assert bool(one["significant"]) == (p < 0.05)


def test_intervals_draw_whole_pairs():
    made, how = made_patching(pairs=6, layers=4, positions=3), dict(resamples=30, seed=3)
    result = stats.patching(made, level=0.8, **how)
    draws = np.random.default_rng(3).multinomial(6, [1 / 6] * 6, size=30)
    level = expanded_level(0.8, 6)
    ends = [0.5 - level / 2, 0.5 + level / 2]
    gain = (made["logprob"] - made["target_logprob"]).values
    whole = (made["source_logprob"] - made["target_logprob"]).values
    assert_allclose(result["total_interval"], np.quantile([np.repeat(whole, n).mean() for n in draws], ends))
    for site, position in np.ndindex(4, 3):
        drawn = [np.repeat(gain[site, position], n).mean() for n in draws]
        assert_allclose(result["effect_interval"][site, position], np.quantile(drawn, ends), atol=1e-12)
        shares = [np.repeat(gain[site, position], n).sum() / np.repeat(whole, n).sum() for n in draws]
        assert_allclose(result["restored_interval"][site, position], np.quantile(shares, ends), atol=1e-12)


def test_the_planted_value_is_found():
    result = stats.patching(made_patching(pairs=10, seed=2))
    assert result["restored"].argmax(...) == {"site": 3, "position": 2}
    assert abs(float(result["restored"][3, 2]) - 0.8) < 0.1
    assert int(result["significant"].sum()) == 1 and bool(result["significant"][3, 2])
    low, high = result["restored_interval"][3, 2].values
    assert 0.6 < low < high < 1
    before = result.isel(position=slice(2))  # source and target are the same there
    assert (before["effect"] == 0).all() and (before["p_max"] == 1).all()


@settings(max_examples=10)
@given(seed=st.integers(0, 999), random=st.randoms(use_true_random=False), shift=st.floats(-3, 3))
def test_the_order_of_pairs_and_a_shift_of_all_log_probabilities_change_nothing(seed, random, shift):
    made = made_patching(seed=seed, pairs=5, layers=4, positions=3)
    mixed = made.isel(pair=random.sample(range(5), 5))
    mixed = mixed.assign({name: mixed[name] + shift for name in mixed})
    one, two = (stats.patching(each, resamples=4) for each in (made, mixed))
    for name in ("effect", "restored", "p_max", "total"):
        assert_allclose(two[name], one[name], atol=1e-9)


def test_sites_and_positions_are_labelled():
    made = made_patching(parts=("residual", "mixer.heads"), layers=4, positions=4, pairs=3)
    result = stats.patching(made)
    assert result["part"].values.tolist() == ["residual"] * 4 + ["mixer.heads"] * 4
    assert result["layer"].values.tolist() == [0, 1, 2, 3] * 2
    assert result["source_token"].values.tolist() == [" a", " b", "", " d"]  # pairs differ at the third
    assert result["target_token"].values.tolist() == [" a", " b", "x", " d"]
    assert result["differs"].values.tolist() == [False, False, True, False]
    assert (result.attrs["pairs"], result.attrs["hypotheses"], result.attrs["checkpoint"]) == (3, 32, "a made model")


def test_where_there_is_nothing_to_restore_there_is_no_share():
    made = made_patching(pairs=6)
    result = stats.patching(made.assign(source_logprob=made["target_logprob"] + [1, -1, 1, -1, 1, -1]))
    assert result["restored"].isnull().all() and result["restored_interval"].isnull().all()
    assert result["effect"].notnull().all()
    low, high = result["total_interval"].values
    assert low < 0 < high


def test_one_pair_has_a_share_and_no_interval():
    result = stats.patching(made_patching(pairs=1))
    assert result["restored"].notnull().all()
    assert result["restored_interval"].isnull().all() and result["total_interval"].isnull().all()
    assert not result["significant"].any()


def test_a_recording_and_a_file_give_the_same(tmp_path):
    made = made_patching(layers=4)
    result = stats.patching(made)
    assert stats.patching(Recording({"patching": made}, {})).drop_attrs().equals(result.drop_attrs())
    made.to_netcdf(tmp_path / "made.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "made.nc", engine="h5netcdf") as stored:
        xr.testing.assert_allclose(stats.patching(stored.load()), result)


def test_errors():
    made = made_patching(layers=4)
    with pytest.raises(MissingVariable, match=r"(?s)No logprob.*made by qwenlab\.ablations\.patching"):
        stats.patching(made.drop_vars("logprob"))
    with pytest.raises(BadArgument, match="level=95"):
        stats.patching(made, level=95)
    with pytest.raises(NothingMeasured, match=r"Nothing was patched: sites, positions and pairs are \[4, 0, 8\]"):
        stats.patching(made.isel(position=[]))
    broken = made.copy(deep=True)
    broken["logprob"][2, 1, 5] = -np.inf
    with pytest.raises(NothingMeasured, match="of 1 of 8 pairs are NaN or infinite, first of pair 5"):
        stats.patching(broken)
    assert_array_equal(made["logprob"], made_patching(layers=4)["logprob"])
