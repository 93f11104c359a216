"""Tiny models: every part is there, nothing is flat, and the same seed gives the same weights."""

import math

import pytest
import torch

from qwenlab.checkpoint.decoder import decoder_of
from qwenlab.checkpoint.families import ATTENTION, DELTANET, FAMILIES
from qwenlab.errors import BadArgument
from qwenlab.testing.models import tiny_config, tiny_head, tiny_model

TOKENS = torch.randint(0, 270, (2, 100), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def model(request):
    return tiny_model(request.param)


def seen(model, module):
    """What a submodule yields over TOKENS."""
    outputs = []
    handle = module.register_forward_hook(lambda _, __, out: outputs.append(out))
    with torch.no_grad():
        model(TOKENS, use_cache=False)
    handle.remove()
    return outputs[0]


def test_a_model_of_the_family_in_float32_and_eval_mode(model):
    assert decoder_of(model).layer_types == (DELTANET, DELTANET, DELTANET, ATTENTION)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not model.training


def test_the_same_seed_gives_the_same_model_and_leaves_torchs_own_state(model):
    before = torch.get_rng_state()
    family = decoder_of(model).family.name
    torch.testing.assert_close(tiny_model(family).state_dict(), model.state_dict(), atol=0, rtol=0)
    assert not torch.equal(tiny_model(family, seed=1).lm_head.weight, model.lm_head.weight)
    if decoder_of(model).family.mtp_prefix is not None:
        torch.testing.assert_close(tiny_head(model).state_dict(), tiny_head(model).state_dict(), atol=0, rtol=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_decays_spread_over_decades():
    model = tiny_model("qwen3_5", seed=3, linear_num_value_heads=16)
    mixer = decoder_of(model).mixer(0)
    dt = torch.nn.functional.softplus(seen(model, mixer.in_proj_a) + mixer.dt_bias)
    half_life = math.log(2) / (mixer.A_log.exp() * dt)
    assert half_life.quantile(0.9) / half_life.quantile(0.1) > 30
    per_head = half_life.median(dim=0).values.median(dim=0).values
    assert per_head.max() / per_head.min() > 10


def test_write_strengths_differ_from_token_to_token():
    model = tiny_model("qwen3_5")
    beta = seen(model, decoder_of(model).mixer(0).in_proj_b).sigmoid()
    assert beta.std(dim=1).min() > 0.1


def test_routers_prefer():
    model = tiny_model("qwen3_5_moe")
    _, weights, chosen = seen(model, decoder_of(model).part(0, "router"))
    assert weights[:, 0].std() > 0.05
    assert set(chosen.flatten().tolist()) == set(range(8))


def test_norms_are_off_their_start(model):
    weight = decoder_of(model).layers[0].input_layernorm.weight
    assert 0.05 < weight.std() < 0.2


def test_requested_layer_types():
    kinds = [ATTENTION, DELTANET]
    assert tiny_model("qwen3_5", layer_types=kinds).config.layer_types == kinds
    assert tiny_config("qwen3_5", layers=6).layer_types == [DELTANET] * 3 + [ATTENTION] + [DELTANET] * 2


def test_requested_sizes():
    model = tiny_model("qwen3_5_moe", num_experts=5, num_experts_per_tok=3, layers=1)
    assert decoder_of(model).part(0, "experts").gate_up_proj.shape == (5, 32, 64)


def test_wrapped_in_the_class_with_a_vision_tower():
    model = tiny_model("qwen3_5_moe", wrapped=True)
    assert type(model).__name__ == "Qwen3_5MoeForConditionalGeneration"
    assert model(TOKENS).logits.shape == (2, 100, 288)


def test_a_misspelt_size_is_an_error():
    with pytest.raises(BadArgument, match=r"qwen3_5_text has no config field 'hiden_size'.\nDid you mean hidden_size"):
        tiny_model("qwen3_5", hiden_size=32)


def test_an_unknown_size_lists_the_known_ones():
    with pytest.raises(BadArgument, match=r"has no config field 'zzz'.\nIt has .*attention_bias, .*vocab_size"):
        tiny_model("qwen3_5", zzz=32)


def test_an_unknown_family():
    with pytest.raises(BadArgument, match=r"tiny_config\(family='qwen4'\): give one of 'qwen3_5', 'qwen3_5_moe'"):
        tiny_model("qwen4")


def test_a_family_without_a_wrapper():
    with pytest.raises(BadArgument, match=r"qwen3_next has no ForConditionalGeneration class.\nLeave wrapped=False"):
        tiny_model("qwen3_next", wrapped=True)
