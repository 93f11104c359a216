"""Gates of both kinds of mixer, held to the tokens themselves."""

import numpy as np
import pytest
from hypothesis import given, settings
from numpy.testing import assert_allclose

from qwenlab import stats
from qwenlab.errors import ProbeNotRecorded
from qwenlab.testing.recordings import made, made_recording
from qwenlab.testing.strategies import made_recordings


@settings(max_examples=10)
@given(made_recordings(probes=["deltanet", "attention"]))
def test_gates_are_those_of_the_tokens(case):
    result = stats.gates(case.recording)
    for raw, kind in ((case.deltanet, "linear_attention"), (case.attention, "full_attention")):
        layers = result.sel(layer=raw.layers).isel(head=slice(raw.gate.shape[-1]))
        assert (layers["kind"] == kind).all()
        assert_allclose(layers["mean_gate"], raw.gate.mean(axis=0), rtol=1e-6)
        truth = np.quantile(raw.gate, result["quantile"], axis=0, method="inverted_cdf")
        assert np.abs(layers["mean_gate_quantile"].transpose("quantile", ...) - truth).max() <= 1 / 128
    assert_allclose(result["beta"].sel(layer=case.deltanet.layers).isel(head=slice(2)), case.deltanet.beta.mean(axis=0))


def test_layers_stand_in_the_order_of_the_trunk_and_attention_has_no_beta():
    result = stats.gates(made(attention_heads=2).recording)
    assert result["layer"].values.tolist() == list(range(8))
    assert result["beta"].sel(layer=[3, 7]).isnull().all()
    assert result["mean_gate"].sel(layer=3).isel(head=[2, 3]).isnull().all()


@pytest.mark.parametrize("node", ["deltanet", "attention"])
def test_one_node_or_one_watched_probe_is_enough(node):
    case = made()
    whole = stats.gates(case.recording)
    alone = stats.gates(case.recording[node])
    assert_allclose(alone["mean_gate"], whole["mean_gate"].sel(layer=alone["layer"]))
    assert_allclose(stats.gates(made_recording(probes=[node]))["mean_gate"], alone["mean_gate"])


def test_without_either_mixer_the_error_names_a_probe():
    with pytest.raises(ProbeNotRecorded, match=r"qwenlab\.probes\.DeltaNet\(\)"):
        stats.gates(made_recording(probes=["routing"]))
