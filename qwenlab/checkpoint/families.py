"""Table of the supported model families: the names of their parts in transformers and in checkpoint files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qwenlab.checkpoint.mixers.base import MixerKind
from qwenlab.checkpoint.mixers.gated_deltanet import GatedDeltaNetKind
from qwenlab.checkpoint.mixers.softmax_attention import SoftmaxAttentionKind
from qwenlab.errors import NotAHybrid, UnsupportedFamily

DELTANET = "linear_attention"
ATTENTION = "full_attention"
KINDS = (DELTANET, ATTENTION)
"""The two kinds of mixer, as in a config's `layer_types`."""


@dataclass(frozen=True, slots=True)
class Family:
    """Names of the parts of one family of hybrid models.

    Parts of a layer are paths from the decoder layer ("mlp.gate"); prefixes are those of the checkpoint files.
    """

    name: str
    text_type: str  # `model_type` of the text stack
    modeling: str  # the module in whose globals a DeltaNet layer looks up its delta rule
    deltanet: GatedDeltaNetKind = field(default_factory=GatedDeltaNetKind)
    attention: SoftmaxAttentionKind = field(default_factory=SoftmaxAttentionKind)
    root_type: str | None = None  # `model_type` of a config with `text_config` inside
    sparse: bool = False  # routed experts instead of a dense MLP
    dense_layers: bool = False  # `mlp_only_layers` and `decoder_sparse_step` can make some layers dense
    attention_every: int | None = 4  # default of `full_attention_interval`; None: `layer_types` is required
    # Fields that transformers ignores in a config, and the values with which it always builds a model.
    fixed: tuple[tuple[str, Any], ...] = (("attn_output_gate", True), ("mtp_use_dedicated_embeddings", False))

    mlp: str = "mlp"
    router: str = "mlp.gate"
    experts: str = "mlp.experts"
    shared_expert: str = "mlp.shared_expert"
    shared_expert_gate: str = "mlp.shared_expert_gate"

    text_prefix: str = "model."
    root_prefix: str = "model.language_model."  # of the text stack, in files with a root config
    vision_prefix: str = "model.visual."
    head: str = "lm_head"
    mtp_prefix: str | None = "mtp."  # the multi-token-prediction head, which transformers does not load; None: no head
    renamed: tuple[tuple[str, str], ...] = ()  # parts of layers: name in transformers, and another one in the files

    def kind(self, name: str) -> MixerKind:
        """Description of a kind of mixer; `name` is one of `KINDS`."""
        return self.deltanet if name == DELTANET else {ATTENTION: self.attention}[name]


FAMILIES = {
    family.name: family
    for family in (
        Family(
            name="qwen3_5",
            root_type="qwen3_5",
            text_type="qwen3_5_text",
            modeling="transformers.models.qwen3_5.modeling_qwen3_5",
        ),
        Family(
            name="qwen3_5_moe",
            root_type="qwen3_5_moe",
            text_type="qwen3_5_moe_text",
            modeling="transformers.models.qwen3_5_moe.modeling_qwen3_5_moe",
            sparse=True,
        ),
        Family(
            name="qwen3_next",
            text_type="qwen3_next",
            modeling="transformers.models.qwen3_next.modeling_qwen3_next",
            deltanet=GatedDeltaNetKind(inputs=(("in_proj_qkvz", "qkvz"), ("in_proj_ba", "ba"))),  # by key head
            sparse=True,
            dense_layers=True,
        ),
        Family(
            name="olmo_hybrid",
            text_type="olmo_hybrid",
            modeling="transformers.models.olmo_hybrid.modeling_olmo_hybrid",
            deltanet=GatedDeltaNetKind(
                inputs=tuple((f"{letter}_proj", rows) for letter, rows in zip("qkvabg", "qkvabz", strict=True)),
                stored_convolutions=("q_conv1d", "k_conv1d", "v_conv1d"),
                output_norm="o_norm",
                output="o_proj",
                doubled_by="linear_allow_neg_eigval",
            ),
            attention=SoftmaxAttentionKind(
                gate=False,
                even=True,
                norm_of_heads=False,
                norms=("post_attention_layernorm", "post_feedforward_layernorm"),
                post_norm=True,
            ),
            attention_every=None,
            fixed=(),
            mtp_prefix=None,
            renamed=(
                ("input_layernorm", "attention_layer_norm"),
                ("post_attention_layernorm", "feedforward_layer_norm"),
            ),
        ),
    )
}

EXTENDING = "docs/extending.md#another-family"
"""Where the documentation says what another family takes."""

UNSUPPORTED = {
    "kimi_linear": "its Kimi delta rule decays each channel separately, and its attention caches latent vectors (MLA)",
    "qwen4_exp": "it has hyper-connections, sparse attention and another MTP head; it is not a Qwen3.5 layout",
}
"""Hybrid models in transformers that qwenlab does not support, and why."""


def family_of(model: str | Mapping[str, Any] | object) -> Family:
    """Return the family of a `model_type`, a config dict, or an object with `.model_type` or `.config.model_type`.

    Raises UnsupportedFamily for a hybrid that is not in the table, and NotAHybrid for any other model.
    """
    config = {"model_type": model} if isinstance(model, str) else getattr(model, "config", model)
    model_type, kinds = _field(config, "model_type"), _field(_field(config, "text_config") or config, "layer_types")
    for family in FAMILIES.values():
        if model_type is not None and model_type in (family.root_type, family.text_type):
            return family
    known = f"The supported families are {', '.join(FAMILIES)}."
    unsupported, to_add = str(model_type).removesuffix("_text"), f"{known} What another one takes: {EXTENDING}."
    if reason := UNSUPPORTED.get(unsupported):
        raise UnsupportedFamily(f"{unsupported} is a hybrid model that qwenlab does not support: {reason}.\n{to_add}")
    if isinstance(kinds, list | tuple) and DELTANET in kinds:
        raise UnsupportedFamily(f"{model_type} has {DELTANET} layers, but qwenlab does not support it.\n{to_add}")
    name = model_type or "A config without model_type"
    raise NotAHybrid(f"{name} is not a hybrid model: its config has no {DELTANET} layers.\n{known}")


def _field(config: Mapping[str, Any] | object, name: str) -> Any:
    return config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
