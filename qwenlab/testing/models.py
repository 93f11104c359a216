"""Tiny random hybrid models in memory, with every part of the real models and gates that differ between heads."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)

from qwenlab.arguments import choice
from qwenlab.checkpoint.families import ATTENTION, DELTANET, FAMILIES, Family
from qwenlab.checkpoint.mtp_head import MtpHead
from qwenlab.errors import BadArgument

_SIZES: dict[str, Any] = dict(
    vocab_size=288,  # more rows than `tiny_tokenizer` has tokens, as in the real checkpoints
    hidden_size=64,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    linear_key_head_dim=16,
    linear_value_head_dim=16,
    linear_conv_kernel_dim=4,
    max_position_embeddings=4096,
    rms_norm_eps=1e-6,
    tie_word_embeddings=False,
    eos_token_id=0,
    pad_token_id=None,
)
_DENSE: dict[str, Any] = dict(intermediate_size=96)
_SPARSE: dict[str, Any] = dict(
    num_experts=8, num_experts_per_tok=2, moe_intermediate_size=16, shared_expert_intermediate_size=32
)
_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}
_MROPE = {"mrope_interleaved": True, "mrope_section": [2, 1, 1]}
_VISION: dict[str, Any] = dict(depth=1, hidden_size=32, intermediate_size=64, num_heads=2, num_position_embeddings=16)
_VISION |= dict(out_hidden_size=64, patch_size=4)


def tiny_config(
    family: str = "qwen3_5_moe", *, layers: int = 4, layer_types: Sequence[str] | None = None, **sizes: Any
) -> PreTrainedConfig:
    """Config of a tiny text model.

    family       a name in `qwenlab.checkpoint.families.FAMILIES`
    layers       number of layers; every fourth is an attention layer
    layer_types  the kind of each layer, instead of `layers`
    sizes        any field of the family's text config

    Raises BadArgument for a family or a field that does not exist.
    """
    named = FAMILIES[choice("tiny_config", "family", family, FAMILIES)]
    kinds = list(layer_types or (DELTANET if (layer + 1) % 4 else ATTENTION for layer in range(layers)))
    rope = _ROPE if named.root_type is None else _ROPE | _MROPE
    fields = _SIZES | (_DENSE if not named.sparse or named.dense_layers else {}) | (_SPARSE if named.sparse else {})
    published = AutoConfig.for_model(named.text_type).to_dict()
    _check_fields(sizes, named, published)
    fields = {name: value for name, value in fields.items() if name in published}
    fields |= {"rope_parameters": rope} if (published["rope_parameters"] or {}).get("rope_theta") else {}
    shape = fields | {"layer_types": kinds, "num_hidden_layers": len(kinds)} | sizes
    return AutoConfig.for_model(named.text_type, **shape)


def tiny_model(
    family: str = "qwen3_5_moe",
    *,
    layers: int = 4,
    layer_types: Sequence[str] | None = None,
    seed: int = 0,
    wrapped: bool = False,
    **sizes: Any,
) -> PreTrainedModel:
    """A random causal language model of transformers' own class, in float32 and eval mode.

    wrapped  the same model inside the family's ForConditionalGeneration class, with a vision tower of one block

    The other arguments are those of `tiny_config`. The same seed gives the same weights. Torch's random state does not
    change.
    """
    config = tiny_config(family, layers=layers, layer_types=layer_types, **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _wrapped(config, FAMILIES[family]) if wrapped else AutoModelForCausalLM.from_config(config)
        spread(model)
    return model.eval()


def tiny_head(target_model: PreTrainedModel, *, seed: int = 1) -> MtpHead:
    """A random multi-token-prediction head on a target model."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = MtpHead(target_model)
        spread(head)
    return head.eval()


@torch.no_grad()
def spread(module: nn.Module) -> None:
    """Redraw the weights so that gates, norms and routers differ between heads and between tokens.

    A matrix is drawn from N(0, 1 / fan-in), which keeps its output near 1; a router has twice the standard deviation.
    Norm weights get noise. A and the time step dt are log-uniform: half-lives ln 2 / (A dt) from a fifth of a token to
    1,400 tokens.
    """
    for name, weight in module.named_parameters():
        if name.endswith("A_log"):
            weight.uniform_(math.log(0.05), math.log(4.0))
        elif name.endswith("dt_bias"):
            dt = torch.exp(torch.empty_like(weight).uniform_(math.log(0.01), math.log(1.0)))
            weight.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus
        elif weight.ndim == 1:
            weight.add_(0.1 * torch.randn_like(weight))
        else:
            router = name.endswith("mlp.gate.weight")
            weight.normal_(std=(2 if router else 1) * weight.shape[-1] ** -0.5)


def _wrapped(text: PreTrainedConfig, family: Family) -> PreTrainedModel:
    if family.root_type is None:
        raise BadArgument(f"{family.name} has no ForConditionalGeneration class.\nLeave wrapped=False.")
    root = AutoConfig.for_model(family.root_type, text_config=text.to_dict(), vision_config=_VISION)
    return AutoModelForImageTextToText.from_config(root)


def _check_fields(sizes: dict[str, Any], family: Family, published: dict[str, Any]) -> None:
    """Raise BadArgument for an unknown field: a transformers config accepts any keyword and ignores a misspelt one."""
    known = published.keys() - {"layer_types", "num_hidden_layers"}
    for name in sizes.keys() - known:
        near = difflib.get_close_matches(name, known, n=1)
        raise BadArgument(
            f"{family.text_type} has no config field {name!r}.\n"
            + (f"Did you mean {near[0]}?" if near else f"It has {', '.join(sorted(known))}.")
        )
