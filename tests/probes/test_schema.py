"""Recordings of probes have the schema of the synthetic ones, and a size independent of the number of tokens."""

import json

import numpy as np
import pytest
import torch

from qwenlab.probes import Attention, DeltaNet, Memory, Residual, Routing, Timing, defaults
from qwenlab.record.recording import Recording
from qwenlab.testing.recordings import made
from tests.probes.compare import assert_same
from tests.probes.feeding import in_pieces, one_by_one, recorded

NOT_MADE = {"timing": {"probe_seconds"}}  # variables that only a real run has


@pytest.fixture(scope="module")
def seen(moe):
    texts = [torch.arange(1, 41), torch.arange(50, 59)]
    return recorded(moe, in_pieces(texts, (30, 1)), *defaults(moe))


@pytest.mark.parametrize("node", ["deltanet", "attention", "routing", "residual", "timing", "memory"])
def test_probes_write_what_made_recordings_hold(seen, node):
    ours, theirs = seen[node], made().recording[node]
    assert set(ours.data_vars) == set(theirs.data_vars) | NOT_MADE.get(node, set())
    for name, variable in theirs.data_vars.items():
        assert ours[name].dims == variable.dims, name
        assert ours[name].attrs["units"] == variable.attrs["units"], name
        assert ours[name].attrs["long_name"]
    for name in {"half_life_bin", "gate_bin", "distance_bin", "window", "part", "phase", "store"} & set(theirs.coords):
        assert ours[name].values.tolist() == pytest.approx(theirs[name].values.tolist()), name
    assert set(theirs.coords) - {"context_point"} <= set(ours.coords)
    assert set(theirs.attrs) - {"sample", "probe"} <= set(ours.attrs)


def test_every_node_says_what_probe_it_is_of_and_what_was_left_out(small, text):
    probes = (
        DeltaNet(layers=[0], every=1, prediction_heads=1),
        Attention(every=4),
        Routing(layers=[1], every=1),
        Residual(),
        Timing(),
        Memory(),
    )
    result = recorded(small, one_by_one([text(9)]), *probes)
    assert [result[node].attrs["probe"] for node in result] == [type(probe).__name__ for probe in probes]
    assert [json.loads(result[node].attrs["sample"]) for node in result] == [
        {"layers": [0], "prediction_heads": [0, 1]},
        {"every": 4},
        {"layers": [1]},
        {"every": 8},
        {},
        {},
    ]
    assert (result["routing"].attrs["top_k"], result["routing"].attrs["experts"]) == (2, 8)
    assert result["routing"]["kind"].values.tolist() == ["full_attention"]


def test_a_recording_is_saved_and_opened(seen, tmp_path):
    opened = Recording.open(seen.save(tmp_path / "seen.nc"))
    assert_same(opened, seen, rtol=0)
    assert opened.attrs == seen.attrs


def test_two_blocks_merged_are_as_one(small, text):
    texts = [text(length, length) for length in (5, 9, 14, 3, 20)]
    parts = [recorded(small, one_by_one(part)) for part in (texts[:3], texts[3:])]
    whole = recorded(small, one_by_one(texts))
    merged = parts[0].merge(parts[1])
    assert_same(merged, whole)
    assert (merged.attrs["tokens"], merged.attrs["sequences"]) == (whole.attrs["tokens"], whole.attrs["sequences"])


def bytes_held(value):
    """Bytes of every tensor that can be reached from a probe, its model left aside."""
    if isinstance(value, torch.Tensor | np.ndarray):
        return value.nbytes
    if isinstance(value, dict):
        return sum(map(bytes_held, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(bytes_held, value))
    if type(value).__module__.startswith("qwenlab.probes"):
        return bytes_held({name: each for name, each in vars(value).items() if name not in ("session", "decoder")})
    return 0


def test_memory_does_not_grow_with_the_texts_read(small, text):
    probes, sizes = defaults(small), []

    def feed(model, watching):
        for number in range(50):
            model(text(70, number)[None])
            if number in (0, 49):
                watching.recording()
                sizes.append([bytes_held(probe) for probe in probes])

    recorded(small, feed, *probes)
    grown = dict(zip((probe.name for probe in probes), zip(*sizes, strict=True), strict=True))
    assert all(first == last for name, (first, last) in grown.items() if name != "memory"), grown


def test_a_probe_of_zero_prediction_heads_still_counts_sequences(small, text):
    result = recorded(small, one_by_one([text(5), text(6)]), DeltaNet(prediction_heads=0))["deltanet"]
    assert int(result["sequences"].sum()) == 2
    assert not result["error_tokens"].any()
    assert not result["state_norm_sum"].any()
