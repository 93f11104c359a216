"""Small configs in the published shapes."""

import copy
from typing import Any

import pytest

_TINY = {
    "vocab_size": 4096,
    "hidden_size": 256,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 8,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_conv_kernel_dim": 4,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.25,
        "mrope_section": [3, 3, 2],
        "mrope_interleaved": True,
    },
}


@pytest.fixture
def tiny_dense() -> dict[str, Any]:
    """A text-only config of family qwen3_5."""
    return copy.deepcopy(_TINY) | {"model_type": "qwen3_5_text", "intermediate_size": 512}


@pytest.fixture
def tiny_moe() -> dict[str, Any]:
    """A text-only config of family qwen3_5_moe, 17.6 million parameters: the one whose FLOPs were counted by hand."""
    return copy.deepcopy(_TINY) | {
        "model_type": "qwen3_5_moe_text",
        "num_experts": 16,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 128,
        "shared_expert_intermediate_size": 128,
    }


@pytest.fixture
def tiny_olmo() -> dict[str, Any]:
    """A config of family olmo_hybrid, whose attention has no rotary positions."""
    config = copy.deepcopy(_TINY) | {"model_type": "olmo_hybrid", "intermediate_size": 512, "pad_token_id": None}
    del config["rope_parameters"], config["head_dim"]
    kinds = ["linear_attention"] * 3 + ["full_attention"]
    return config | {"layer_types": 2 * kinds, "linear_value_head_dim": 48}


@pytest.fixture
def tiny_next() -> dict[str, Any]:
    """A config of family qwen3_next whose layers 0 and 3 are dense."""
    config = copy.deepcopy(_TINY) | {
        "model_type": "qwen3_next",
        "intermediate_size": 512,
        "num_experts": 16,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 128,
        "shared_expert_intermediate_size": 128,
        "mlp_only_layers": [0, 3],
    }
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}
    return config
