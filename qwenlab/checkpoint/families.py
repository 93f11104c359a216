"""The one table that says how each supported family names its parts, in transformers and in checkpoint files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwenlab.errors import NotAHybrid, UnsupportedFamily

DELTANET = "linear_attention"
ATTENTION = "full_attention"
KINDS = (DELTANET, ATTENTION)
"""The two kinds of mixer, in the words of a config's `layer_types`."""


@dataclass(frozen=True, slots=True)
class Family:
    """How one family of hybrid models names its parts.

    Attributes of a layer are paths from the decoder layer ("mlp.gate"); prefixes are those of the checkpoint files.
    """

    name: str
    text_type: str  # `model_type` of the text stack alone
    modeling: str  # the module through whose globals a DeltaNet layer calls its delta rule
    delta_inputs: tuple[tuple[str, str], ...]  # input projection of the DeltaNet mixer, what its rows hold
    root_type: str | None = None  # `model_type` of a config with `text_config` inside
    sparse: bool = False  # routed experts in the MLP's place
    dense_layers: bool = False  # `mlp_only_layers` and `decoder_sparse_step` are read: some layers may be dense

    linear_attention: str = "linear_attn"
    full_attention: str = "self_attn"
    linear_output: str = "out_proj"  # of the DeltaNet mixer: heads side by side -> residual stream
    full_output: str = "o_proj"  # of the attention mixer
    mixer_norm: str = "input_layernorm"
    mlp_norm: str = "post_attention_layernorm"
    mlp: str = "mlp"
    router: str = "mlp.gate"
    experts: str = "mlp.experts"
    shared_expert: str = "mlp.shared_expert"
    shared_expert_gate: str = "mlp.shared_expert_gate"

    chunk_rule: str = "torch_chunk_gated_delta_rule"
    recurrent_rule: str = "torch_recurrent_gated_delta_rule"
    attention_gate: bool = True  # each head's rows of `q_proj` hold its query, then its output gate

    text_prefix: str = "model."
    root_prefix: str = "model.language_model."  # the text stack's, in files written with a root config
    vision_prefix: str = "model.visual."
    head: str = "lm_head"
    mtp_prefix: str = "mtp."  # the multi-token-prediction head; transformers leaves it unread

    def mixer(self, kind: str) -> str:
        """Attribute of the decoder layer that holds its mixer; `kind` is one of `KINDS`."""
        return {DELTANET: self.linear_attention, ATTENTION: self.full_attention}[kind]

    def output(self, kind: str) -> str:
        """Attribute of that mixer that projects its heads to the residual stream."""
        return {DELTANET: self.linear_output, ATTENTION: self.full_output}[kind]


# What the rows of a projection hold: q, k, v, the output gate z, the write strength b (beta), the decay a.
_SPLIT = (("in_proj_qkv", "qkv"), ("in_proj_z", "z"), ("in_proj_b", "b"), ("in_proj_a", "a"))
_FUSED = (("in_proj_qkvz", "qkvz"), ("in_proj_ba", "ba"))  # interleaved by key head

FAMILIES = {
    family.name: family
    for family in (
        Family(
            name="qwen3_5",
            root_type="qwen3_5",
            text_type="qwen3_5_text",
            modeling="transformers.models.qwen3_5.modeling_qwen3_5",
            delta_inputs=_SPLIT,
        ),
        Family(
            name="qwen3_5_moe",
            root_type="qwen3_5_moe",
            text_type="qwen3_5_moe_text",
            modeling="transformers.models.qwen3_5_moe.modeling_qwen3_5_moe",
            delta_inputs=_SPLIT,
            sparse=True,
        ),
        Family(
            name="qwen3_next",
            text_type="qwen3_next",
            modeling="transformers.models.qwen3_next.modeling_qwen3_next",
            delta_inputs=_FUSED,
            sparse=True,
            dense_layers=True,
        ),
    )
}

REFUSED = {
    "olmo_hybrid": "its attention layers have no output gate and normalise what they add to the residual stream",
    "kimi_linear": "its Kimi delta rule decays each channel by itself, and both of its mixers sit under `self_attn`",
    "qwen4_exp": "it has hyper-connections, sparse attention and another MTP head; it is not a Qwen3.5 layout",
}
"""Hybrids of transformers that the table cannot name, and why."""


def family_of(model: str | Mapping[str, Any] | object) -> Family:
    """The family of a `model_type`, a config dict, or anything with `.model_type` or `.config.model_type`.

    Raises UnsupportedFamily for a hybrid outside the table and NotAHybrid for any other model.
    """
    model_type, layer_types = _identity(model)
    for family in FAMILIES.values():
        if model_type is not None and model_type in (family.root_type, family.text_type):
            return family
    known = "The families that qwenlab opens are " + ", ".join(FAMILIES) + "."
    for refused, reason in REFUSED.items():
        if model_type in (refused, f"{refused}_text"):
            raise UnsupportedFamily(f"{refused} is a hybrid whose parts we cannot name: {reason}.\n{known}")
    if DELTANET in layer_types:
        raise UnsupportedFamily(f"{model_type} has {DELTANET} layers, but is no family that we can name.\n{known}")
    named = model_type or "a config without model_type"
    raise NotAHybrid(f"{named} is not a hybrid model: its config names no {DELTANET} layer.\n{known}")


def _identity(model: str | Mapping[str, Any] | object) -> tuple[str | None, tuple[str, ...]]:
    """The model_type and layer_types of whatever `family_of` was given."""
    if isinstance(model, str):
        return model, ()
    config = model if isinstance(model, Mapping) else getattr(model, "config", model)
    kinds = _field(_field(config, "text_config") or config, "layer_types")
    return _field(config, "model_type"), tuple(kinds) if isinstance(kinds, list | tuple) else ()


def _field(config: Mapping[str, Any] | object, name: str) -> Any:
    return config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
