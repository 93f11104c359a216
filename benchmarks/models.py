"""The models that are timed: a shipped toy, a medium random one, and on a GPU the geometry of the 35B-A3B."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import qwenlab as ql
from qwenlab.checkpoint.config import read_config
from qwenlab.testing.models import spread, tiny_model

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


def build(name: str) -> PreTrainedModel:
    """`toy-moe`, `medium`, or `35B-A3B` with as many layers as fit (random weights, bfloat16, on the GPU)."""
    if name == "toy-moe":
        return ql.open(name).model
    if name == "medium":
        return tiny_model("qwen3_5_moe", layers=12, **MEDIUM)
    return published_geometry()


def published_geometry(share: float = 0.6) -> PreTrainedModel:
    """Random weights in the shapes of Qwen3.6-35B-A3B: whole groups of four layers, within this share of GPU memory."""
    known = ql.anatomy("Qwen3.6-35B-A3B")
    free, _ = torch.cuda.mem_get_info()
    groups = int(free * share / 2 / (known.total / len(known.layer_types)) / 4)
    layers = min(len(known.layer_types), 4 * groups)
    config = AutoConfig.for_model("qwen3_5_moe_text")
    shape = read_config(ql.checkpoint.catalogue()["Qwen3.6-35B-A3B"])
    config.num_hidden_layers, config.layer_types = layers, list(shape.layer_types[:layers])
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    spread(model)
    return model.eval()
