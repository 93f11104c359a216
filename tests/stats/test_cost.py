"""Time and memory, by hand."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from qwenlab import stats
from qwenlab.errors import NothingMeasured
from qwenlab.testing.recordings import made_recording


def test_shares_of_time_by_loops():
    recording = made_recording()
    result, node = stats.time_by_kind(recording), recording["timing"]
    for phase in ("prefill", "decode"):
        seconds = node["seconds"].sel(phase=phase).values  # [layer, part]
        assert_allclose(result["layer_share"].sel(phase=phase), seconds.sum(axis=1) / seconds.sum())
        assert_allclose(result["part_share"].sel(phase=phase), seconds / seconds.sum())
        for kind, layers in (("linear_attention", [0, 1, 2, 4, 5, 6]), ("full_attention", [3, 7])):
            here = result.sel(phase=phase, mixer_kind=kind)
            assert_allclose(here["kind_share"], seconds[layers].sum(axis=0) / seconds.sum())
            tokens = int(node["tokens"].sel(phase=phase))
            assert_allclose(here["kind_seconds_per_token"], seconds[layers].mean(axis=0) / tokens)


def test_shares_add_up_and_the_clock_has_its_own():
    recording = made_recording()
    result, node = stats.time_by_kind(recording), recording["timing"]
    assert_allclose(result["kind_share"].sum(["mixer_kind", "part"]), 1)
    assert_allclose(result["layer_share"].sum("layer"), 1)
    cost = node.attrs["clock_cost_seconds"] * node.attrs["readings"]
    assert_allclose(result["clock_share"], cost / node["model_seconds"].sum())


def test_a_phase_that_was_not_seen_is_nan():
    node = made_recording()["timing"]
    for name in ("seconds", "model_seconds", "tokens"):
        node[name] = node[name].where(node["phase"] == "prefill", 0)
    result = stats.time_by_kind(node)
    assert result["layer_share"].sel(phase="decode").isnull().all()
    assert result["layer_share"].sel(phase="prefill").notnull().all()


def test_no_time_is_refused():
    node = made_recording()["timing"]
    node["seconds"] = node["seconds"] * 0
    with pytest.raises(NothingMeasured, match="No time was measured"):
        stats.time_by_kind(node)


def test_memory_is_ordered_by_context_and_compared():
    node = made_recording()["memory"]
    shuffled = node.isel(context_point=[3, 1, 7, 0, 2, 6, 5, 4])
    result = stats.memory(shuffled)
    assert (np.diff(result["context"]) > 0).all()
    assert_allclose(result["measured"], node["measured_bytes"])
    assert_allclose(result["ratio"], node["measured_bytes"] / node["predicted_bytes"])


def test_no_cache_is_refused():
    with pytest.raises(NothingMeasured, match="use_cache=True"):
        stats.memory(made_recording()["memory"].isel(context_point=[]))
