"""Sizes of matrices, against numpy in float64."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from qwenlab.speculative.audit.scales import FAR, scale_factors, weight_scales
from qwenlab.testing.models import tiny_head, tiny_model
from tests.speculative.miswired import fp8_read_raw


def size(weight):
    return float(np.sqrt((weight.detach().double().numpy() ** 2).mean()))


def fp8(weight, rows, columns):
    """The weight in FP8 and a scale per block; blocks need not divide the matrix."""
    scale = torch.empty(-(-weight.shape[-2] // rows), -(-weight.shape[-1] // columns))
    out = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
    for row in range(scale.shape[0]):
        for column in range(scale.shape[1]):
            block = slice(row * rows, (row + 1) * rows), slice(column * columns, (column + 1) * columns)
            scale[row, column] = weight[block].abs().max() / 448
            out[block] = (weight[block] / scale[row, column]).to(out.dtype)
    return out, scale


@pytest.fixture
def tiny():
    return tiny_head(tiny_model("qwen3_5", layer_types=["full_attention", "linear_attention", "full_attention"]))


def test_sizes_are_root_mean_squares(checkpoint):
    head, layers = checkpoint.mtp, checkpoint.model.get_decoder().layers
    scales = weight_scales(head)
    assert set(scales["weight"].values) == {name for name, weight in head.named_parameters() if weight.ndim > 1}
    for name in scales["weight"].values.tolist():
        one = scales.sel(weight=name)
        assert float(one["rms"]) == pytest.approx(size(head.get_parameter(name)), rel=1e-5)
        if name != "fc.weight":
            own = [size(layers[layer].get_parameter(name.removeprefix("layers.0."))) for layer in (3, 7)]
            assert float(one["target_rms"]) == pytest.approx(np.mean(own), rel=1e-5)
        assert float(one["ratio"]) == pytest.approx(float(one["rms"] / one["target_rms"]))


def test_fc_is_compared_with_the_mean_of_the_others(checkpoint):
    target = weight_scales(checkpoint.mtp)["target_rms"]
    assert float(target.sel(weight="fc.weight")) == pytest.approx(float(target.drop_sel(weight="fc.weight").mean()))


def test_a_healthy_head_has_the_target_models_size(checkpoint):
    scales = weight_scales(checkpoint.mtp)
    assert scales["ratio"].min() > 0.5 and scales["ratio"].max() < 2
    assert scale_factors(scales) == {}


def test_weights_read_without_scales_are_detected_and_rescaled(checkpoint):
    raw = fp8_read_raw(checkpoint.mtp)
    scales = weight_scales(raw)
    found = scale_factors(scales)
    quantised = {
        name for name, weight in raw.named_parameters() if not torch.equal(weight, checkpoint.mtp.get_parameter(name))
    }
    assert found.keys() == quantised and len(found) >= 7
    assert float(scales["ratio"].sel(weight=list(found)).min()) > 100
    for name, factor in found.items():
        assert size(raw.get_parameter(name)) * factor == pytest.approx(
            float(scales["target_rms"].sel(weight=name)), rel=1e-4
        )


@pytest.mark.parametrize("by", [1.01 * FAR, 1 / (1.01 * FAR)])
def test_only_what_is_far_is_scaled(tiny, by):
    name = "layers.0.self_attn.o_proj.weight"
    weight = tiny.get_parameter(name)
    with torch.no_grad():
        weight *= by / float(weight_scales(tiny)["ratio"].sel(weight=name))
    assert scale_factors(weight_scales(tiny)) == {name: pytest.approx(1 / by, rel=1e-4)}


def test_a_matrix_of_zeros_is_not_scaled(tiny):
    with torch.no_grad():
        tiny.fc.weight.zero_()
    assert scale_factors(weight_scales(tiny)) == {}


def test_a_target_model_in_fp8_is_read_with_its_scales(tiny):
    plain = weight_scales(tiny)
    for layer in (0, 2):
        owner = tiny.target_model.get_decoder().layers[layer].self_attn.o_proj
        weight, scale = fp8(owner.weight.detach(), 48, 80)
        owner.weight, owner.weight_scale_inv = (nn.Parameter(each, requires_grad=False) for each in (weight, scale))
    np.testing.assert_allclose(weight_scales(tiny, (48, 80))["target_rms"], plain["target_rms"], rtol=2e-3)


@pytest.mark.parametrize("lost", ["meta", "other shape", "other scales", "no such layer"])
def test_matrices_without_a_match_have_no_ratio(tiny, lost):
    name = "layers.0.self_attn.o_proj.weight"
    for layer in (0, 2):
        attention = tiny.target_model.get_decoder().layers[layer].self_attn
        if lost == "meta":
            attention.o_proj = copy.deepcopy(attention.o_proj).to("meta")
        elif lost == "other shape":
            attention.o_proj.weight = nn.Parameter(torch.ones(3, 3))
        elif lost == "other scales":
            attention.o_proj.weight_scale_inv = nn.Parameter(torch.tensor(2.0))
        else:
            del attention.o_proj
    scales = weight_scales(tiny)
    assert np.isnan(scales["ratio"].sel(weight=name))
    assert int(np.isnan(scales["ratio"]).sum()) == 1
    assert scale_factors(scales) == {}
