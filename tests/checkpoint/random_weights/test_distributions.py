"""The distributions of random weights, by kind of tensor."""

import numpy as np
import pytest

from qwenlab.checkpoint.anatomy.tensors import tensors
from qwenlab.checkpoint.config import read_config
from qwenlab.checkpoint.random_weights.distributions import distribution

AT = (np.arange(2**16) + 0.5) / 2**16


@pytest.fixture(scope="module")
def drawn(geometry):
    """The distribution of a tensor by the end of its name, as quantiles."""
    config = read_config(geometry)

    def find(end):
        tensor = next(tensor for tensor in tensors(config) if tensor.name.endswith(end))
        return distribution(tensor, config).quantile(AT)

    return find


@pytest.mark.parametrize(
    ("end", "mean", "deviation"),
    [
        ("embed_tokens.weight", 0, 64**-0.5),
        ("lm_head.weight", 0, 64**-0.5),
        ("linear_attn.in_proj_qkv.weight", 0, 64**-0.5),
        ("linear_attn.out_proj.weight", 0, 64**-0.5),
        ("linear_attn.conv1d.weight", 0, 1),
        ("linear_attn.norm.weight", 1, 0.1),
        ("input_layernorm.weight", 0, 0.1),
        ("language_model.norm.weight", 0, 0.1),
        ("self_attn.o_proj.weight", 0, 128**-0.5),
        ("self_attn.k_norm.weight", 0.5, 0.1),
        ("mlp.gate.weight", 0, 64**-0.5),
        ("mlp.experts.gate_up_proj", 0, 64**-0.5),
        ("mlp.experts.down_proj", 0, 16**-0.5),
        ("mlp.shared_expert_gate.weight", 0, 64**-0.5),
        ("mtp.fc.weight", 0, 128**-0.5),
        ("mtp.layers.0.self_attn.q_norm.weight", 0.5, 0.1),
        ("visual.patch_embed.proj.weight", 0, (3 * 2 * 4 * 4) ** -0.5),
        ("visual.blocks.0.norm1.weight", 1, 0.1),
        ("visual.blocks.0.norm1.bias", 0, 0.1),
    ],
)
def test_normal_weights(drawn, end, mean, deviation):
    values = drawn(end)
    assert values.mean() == pytest.approx(mean, abs=1e-9)
    assert values.std() == pytest.approx(deviation, rel=1e-3)


def test_decays_span_short_and_long_half_lives(drawn):
    a, dt = np.exp(drawn("A_log")), np.log1p(np.exp(drawn("dt_bias")))
    assert (a[0], a[-1]) == pytest.approx((1, 16), rel=1e-3)
    assert (dt[0], dt[-1]) == pytest.approx((0.001, 0.1), rel=1e-3)


def test_the_rows_of_routers_differ_in_size(geometry):
    config = read_config(geometry)
    gained = {tensor.name for tensor in tensors(config) if distribution(tensor, config).gain}
    assert len(gained) == 9 and all(name.endswith("mlp.gate.weight") for name in gained)
    router = next(tensor for tensor in tensors(config) if tensor.name in gained)
    gains = distribution(router, config).gain(AT)
    assert (gains[0], gains[-1]) == pytest.approx((1, 2), rel=1e-3)
