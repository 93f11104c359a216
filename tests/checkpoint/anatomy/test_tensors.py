import json
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from qwenlab.checkpoint.anatomy.anatomy import catalogue
from qwenlab.checkpoint.anatomy.tensors import PARTS, tensors
from qwenlab.checkpoint.config import read_config
from qwenlab.checkpoint.families import KINDS


def named_shapes(config: dict, wrapper: bool = False) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the parameters that transformers builds for a config, without weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    fields = {name: value for name, value in config.items() if name != "model_type"}
    auto = AutoModelForImageTextToText if wrapper else AutoModelForCausalLM
    with torch.device("meta"):
        model = auto.from_config(AutoConfig.for_model(config["model_type"], **fields))
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def ours(config: dict) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tensor.shape for tensor in tensors(read_config(config)) if tensor.part != "mtp"}


@st.composite
def configs(draw: st.DrawFn) -> dict:
    """Small configs of every family, with any order of layers, odd sizes, biases and tied heads."""
    size = st.integers(1, 5).map(lambda half: 2 * half)
    heads, keys = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    layers = draw(st.integers(1, 6))
    family = draw(st.sampled_from(["qwen3_5_text", "qwen3_5_moe_text", "qwen3_next", "olmo_hybrid"]))
    config = {
        "model_type": family,
        "vocab_size": draw(st.integers(8, 40)),
        "hidden_size": draw(size),
        "num_hidden_layers": layers,
        "layer_types": draw(st.lists(st.sampled_from(KINDS), min_size=layers, max_size=layers)),
        "num_key_value_heads": heads,
        "num_attention_heads": heads * draw(st.integers(1, 3)),
        "head_dim": draw(size),
        "linear_num_key_heads": keys,
        "linear_num_value_heads": keys * draw(st.integers(1, 3)),
        "linear_key_head_dim": draw(size),
        "linear_value_head_dim": draw(size),
        "linear_conv_kernel_dim": draw(st.integers(2, 5)),
        "max_position_embeddings": 64,
        "attention_bias": draw(st.booleans()),
        "tie_word_embeddings": draw(st.booleans()),
        "intermediate_size": draw(size),
    }
    if family == "olmo_hybrid":  # transformers wants both kinds
        config |= {"pad_token_id": None, "layer_types": list(KINDS) + config["layer_types"]}
        config["num_hidden_layers"] += 2
    elif family != "qwen3_5_text":
        experts = draw(st.integers(1, 4))
        config |= {
            "num_experts": experts,
            "num_experts_per_tok": draw(st.integers(1, experts)),
            "moe_intermediate_size": draw(size),
            "shared_expert_intermediate_size": draw(size),
        }
    if family == "qwen3_next":
        config["mlp_only_layers"] = draw(st.lists(st.integers(0, layers - 1), unique=True))
        config["decoder_sparse_step"] = draw(st.integers(1, 3))
    return config


@settings(max_examples=30)
@given(config=configs())
def test_names_and_shapes_are_those_transformers_builds(config):
    built = named_shapes(config)
    assert ours(config) == built


@pytest.mark.parametrize("name", [name for name in catalogue() if name.startswith("Qwen") and "FP8" not in name])
def test_the_published_layouts_are_those_transformers_builds(name):
    config = json.loads(catalogue()[name].read_text())
    assert ours(config) == named_shapes(config, wrapper=True)


@given(config=configs(), layers=st.integers(0, 2))
def test_every_tensor_belongs_to_one_part_and_has_a_name_of_its_own(config, layers):
    layers = 0 if config["model_type"] == "olmo_hybrid" else layers  # it has no MTP head
    found = list(tensors(read_config(config | ({"mtp_num_hidden_layers": layers} if layers else {}))))
    assert len({tensor.name for tensor in found}) == len(found)
    assert {tensor.part for tensor in found} <= set(PARTS)
    assert ("mtp" in {tensor.part for tensor in found}) == (layers > 0)


PUBLISHED = json.loads((Path(__file__).parents[2] / "golden" / "published.json").read_text())


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_number_of_tensors_is_published(name):
    found = list(tensors(read_config(catalogue()[name])))
    by_part = {part: sum(tensor.part == part for tensor in found) for part in PARTS}
    assert by_part["vision"] == PUBLISHED[name]["vision_tensors"]
    assert by_part["mtp"] == (19 if "A3B" in name else 15)
    if "Qwen3.6" in name:
        assert len(found) == (1045 if "A3B" in name else 1199)


def test_the_mtp_head_of_the_published_files():
    found = {tensor.name: tensor.shape for tensor in tensors(read_config(catalogue()["Qwen3.6-35B-A3B"]))}
    assert found["mtp.fc.weight"] == (2048, 4096)
    assert found["mtp.pre_fc_norm_hidden.weight"] == (2048,)
    assert found["mtp.layers.0.self_attn.q_proj.weight"] == (8192, 2048)
    assert found["mtp.layers.0.mlp.experts.gate_up_proj"] == (256, 1024, 2048)
