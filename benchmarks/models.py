"""Models for the benchmarks: a shipped toy, medium random models, and on a GPU the shapes of published models."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

import qwenlab as ql
from qwenlab.checkpoint.config import read_config
from qwenlab.testing.models import spread, tiny_model

TINY = dict(
    vocab_size=4096,
    hidden_size=256,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    linear_num_key_heads=4,
    linear_num_value_heads=8,
    linear_key_head_dim=32,
    linear_value_head_dim=32,
    num_experts=16,
    num_experts_per_tok=4,
    moe_intermediate_size=128,
    shared_expert_intermediate_size=128,
)
"""With 8 layers, 17.6 million parameters; a decode step is short, so that a fixed cost per layer shows."""

MEDIUM = dict(
    vocab_size=8192,
    hidden_size=768,
    num_attention_heads=12,
    num_key_value_heads=4,
    head_dim=64,
    linear_num_key_heads=6,
    linear_num_value_heads=12,
    linear_key_head_dim=64,
    linear_value_head_dim=64,
    max_position_embeddings=8192,
    num_experts=16,
    num_experts_per_tok=4,
    moe_intermediate_size=256,
    shared_expert_intermediate_size=256,
    rope_parameters={
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.25,
        "mrope_interleaved": True,
        "mrope_section": [3, 3, 2],
    },
)

HEADS_OF_128 = dict(
    hidden_size=256,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=128,
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    linear_key_head_dim=128,
    linear_value_head_dim=128,
    max_position_embeddings=16384,
)
"""Differences of `medium-128` from `medium`: few heads, of the size in published checkpoints."""

GROUPS = {"group-35B-A3B": "Qwen3.6-35B-A3B", "group-27B": "Qwen3.6-27B"}
"""One group of four layers, three of them DeltaNet, with 16 key heads and 32 or 48 value heads of 128 channels."""

_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "linear_num_key_heads",
    "linear_num_value_heads",
    "linear_key_head_dim",
    "linear_value_head_dim",
    "intermediate_size",
    "num_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
)


def build(name: str) -> PreTrainedModel:
    """Build `toy-moe`, `tiny`, `medium`, `medium-128`, a name in GROUPS, or `35B-A3B` with as many layers as fit.

    Models of GROUPS and 35B-A3B have random weights in bfloat16, on the GPU.
    """
    if name == "toy-moe":
        return ql.open(name).model
    if name == "tiny":
        return tiny_model("qwen3_5_moe", layers=8, **TINY)
    if name == "medium":
        return tiny_model("qwen3_5_moe", layers=12, **MEDIUM)
    if name == "medium-128":
        return tiny_model("qwen3_5_moe", layers=4, **MEDIUM | HEADS_OF_128)
    if name in GROUPS:
        return on_the_gpu(published_config(GROUPS[name], layers=4))
    return on_the_gpu(published_config("Qwen3.6-35B-A3B", layers=layers_that_fit("Qwen3.6-35B-A3B")))


def published_config(name: str, *, layers: int) -> PreTrainedConfig:
    """The config of a published model's text stack, with only its first layers."""
    shape = read_config(ql.checkpoint.catalogue()[name])
    config = AutoConfig.for_model(shape.family.text_type)
    for size in _SIZES:
        if value := getattr(shape, size):  # 0 if the family lacks the part
            setattr(config, size, value)
    config.num_hidden_layers, config.layer_types = layers, list(shape.layer_types[:layers])
    return config


def layers_that_fit(name: str, share: float = 0.6) -> int:
    """Number of layers, in groups of four, that fit in this share of the GPU's free memory."""
    anatomy = ql.anatomy(name)
    free, _ = torch.cuda.mem_get_info()
    groups = int(free * share / 2 / (anatomy.total / len(anatomy.layer_types)) / 4)
    return min(len(anatomy.layer_types), 4 * groups)


def on_the_gpu(config: PreTrainedConfig) -> PreTrainedModel:
    """A model with random weights in bfloat16 on the GPU."""
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    spread(model)
    return model.eval()
