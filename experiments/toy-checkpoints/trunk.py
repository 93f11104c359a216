"""Shapes and initialisation of the two toy trunks, on transformers' own model classes."""

from __future__ import annotations

import math

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5ForCausalLM, Qwen3_5TextConfig
from transformers.models.qwen3_5_moe.modeling_qwen3_5_moe import Qwen3_5MoeForCausalLM, Qwen3_5MoeTextConfig

from qwenlab.checkpoint.mtp_head import MtpHead

VOCABULARY = 2048
LAYERS = ["linear_attention", "linear_attention", "linear_attention", "full_attention"] * 2

SHARED = dict(
    vocab_size=VOCABULARY,
    hidden_size=128,
    num_hidden_layers=len(LAYERS),
    layer_types=LAYERS,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    linear_num_key_heads=4,
    linear_num_value_heads=8,
    linear_key_head_dim=32,
    linear_value_head_dim=32,
    linear_conv_kernel_dim=4,
    max_position_embeddings=8192,
    rope_parameters={
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.25,
        "mrope_interleaved": True,
        "mrope_section": [3, 3, 2],
    },
    tie_word_embeddings=False,
    eos_token_id=0,
    dtype="float32",
)
DENSE = dict(intermediate_size=384)
MOE = dict(
    num_experts=16,
    num_experts_per_tok=4,
    moe_intermediate_size=32,
    shared_expert_intermediate_size=64,
    router_aux_loss_coef=0.01,
)

SHAPES = {
    "toy-dense": (Qwen3_5ForCausalLM, Qwen3_5TextConfig, SHARED | DENSE),
    "toy-moe": (Qwen3_5MoeForCausalLM, Qwen3_5MoeTextConfig, SHARED | MOE),
}


def build(name: str) -> tuple[PreTrainedModel, MtpHead]:
    """A fresh target model and its head. DeltaNet layers start with a memory: see `give_memory`."""
    model_class, config_class, shape = SHAPES[name]
    trunk = model_class(config_class(**shape))
    head = MtpHead(trunk)
    for module in head.modules():
        trunk._init_weights(module)
    give_memory(trunk)
    return trunk, head


@torch.no_grad()
def give_memory(trunk: nn.Module, shortest: float = 1e-3, longest: float = 1e-1) -> None:
    """Draw each DeltaNet head's time step dt log-uniformly, and set `dt_bias` to its inverse softplus.

    transformers sets dt_bias to 1 and A up to 16: a half-life of ln 2 / (A softplus(1)), 0.07 tokens in the median
    head. With dt in [0.001, 0.1] the median is 9 tokens. The layer of flash-linear-attention starts the same way.
    """
    for layer in trunk.model.layers:
        if layer.block_type == "linear_attention":
            bias = layer.linear_attn.dt_bias
            dt = torch.exp(torch.empty_like(bias).uniform_(math.log(shortest), math.log(longest)))
            bias.copy_(dt + torch.log(-torch.expm1(-dt)))
