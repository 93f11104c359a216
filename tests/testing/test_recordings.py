"""Made recordings obey the schema and contain the planted effects."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from numpy.testing import assert_allclose, assert_array_equal

from qwenlab.errors import BadArgument
from qwenlab.testing.recordings import made, made_recording
from qwenlab.testing.strategies import made_recordings

SHARED = {"label", "fold", "layer"}
DIMS = SHARED | {
    *("head", "key_head", "channel", "channel_2", "beta_bin", "half_life_bin", "gate_bin", "distance_bin"),
    *("expert", "expert_2", "expert_next", "window", "part", "phase", "context_point", "store"),
}


@settings(max_examples=10)
@given(made_recordings())
def test_every_variable_is_named_by_known_dims_units_and_meaning(case):
    for name in case.recording:
        node = case.recording[name]
        assert set(node.dims) <= DIMS
        assert json.loads(node.attrs["sample"]) == {}
        assert node.attrs["probe"].lower() == name
        for variable in node.data_vars.values():
            assert variable.attrs["units"]
            assert variable.attrs["long_name"]
            assert variable.dtype in (np.float64, np.int64)
            assert np.isfinite(variable).all()
        if "layer" in node.dims:
            assert node["kind"].dims == ("layer",)


@settings(max_examples=10)
@given(made_recordings())
def test_counts_agree_with_each_other(case):
    deltanet, attention, routing = (case.recording[name] for name in ("deltanet", "attention", "routing"))
    tokens = deltanet["tokens"].sum("fold")
    for histogram, dim in (("beta_hist", "beta_bin"), ("half_life_hist", "half_life_bin"), ("gate_hist", "gate_bin")):
        assert (deltanet[histogram].sum(dim) == tokens).all()
    mass = attention["distance_mass"].sum("distance_bin").isel(head=0)
    assert_allclose(mass, attention["tokens"].sum("fold"), rtol=1e-6)
    assert (routing["load"].sum("expert") == case.routing.top_k * routing["tokens"]).all()
    totals = routing["load"].sum(["label", "fold"])
    assert_array_equal(np.einsum("lee->le", routing["coactivation"]), totals)
    assert (
        routing["transition"].isel(layer=slice(-1)).sum(["expert", "expert_next"]) == len(case.texts.position)
    ).all()
    assert (routing["transition"].isel(layer=-1) == 0).all()
    trace = np.einsum("blkcc->blk", deltanet["key_moment"])
    assert_allclose(trace, np.broadcast_to(tokens.values[..., None], trace.shape), rtol=1e-5)
    assert int(deltanet["sequences"].isel(layer=0).sum()) == case.texts.sequences


@settings(max_examples=10)
@given(made_recordings())
def test_sums_are_of_the_tokens_by_label_and_fold(case):
    """The tallies, once more as loops over tokens."""
    texts, routing = case.texts, case.recording["routing"]
    load = np.zeros(routing["load"].shape, int)
    kept = np.zeros(routing["repeated_sum"].shape, int)
    for token, (label, sequence) in enumerate(zip(texts.label, texts.sequence, strict=True)):
        for layer in range(routing.sizes["layer"]):
            now = set(case.routing.chosen[token, layer].tolist())
            for expert in now:
                load[label, sequence % 8, layer, expert] += 1
            if texts.position[token]:
                kept[label, sequence % 8, layer] += len(now & set(case.routing.chosen[token - 1, layer].tolist()))
    assert_array_equal(routing["load"], load)
    assert_array_equal(routing["repeated_sum"], kept)


def test_the_same_seed_makes_the_same_recording():
    first, again = made_recording(seed=5), made_recording(seed=5)
    other = made_recording(seed=6)
    assert first["routing"].identical(again["routing"])
    assert not first["routing"].equals(other["routing"])


def test_planted_effects_are_present():
    case = made(never_used=2, experts=8, top_k=3, labels=["a", "b", "c"], sequences=9)
    assert (case.recording["routing"]["load"].isel(expert=[6, 7]) == 0).all()
    assert case.texts.labels == ("a", "b", "c")
    assert np.bincount(case.texts.label[case.texts.last]).tolist() == [3, 3, 3]
    assert json.loads(case.recording.attrs["labels"]).keys() == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (dict(top_k=16), "too few remain to choose from"),
        (dict(top_k=0), "too few remain to choose from"),
        (dict(heads=3, key_heads=2), "heads=3 is not a multiple of key_heads=2"),
        (dict(probes=["routing", "router"]), r"probes=\['router'\]: the nodes of a random recording are deltanet"),
    ],
)
def test_sizes_that_fit_no_model_are_refused(sizes, message):
    with pytest.raises(BadArgument, match=message):
        made(**sizes)
