"""Read config.json, in any of its published layouts, into a `TextConfig`."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwenlab.checkpoint.config_fields import unknown_fields
from qwenlab.checkpoint.families import ATTENTION, DELTANET, KINDS, Family, family_of
from qwenlab.errors import BadConfig, UnknownConfigField, UnknownConfigFieldWarning, UnreadableConfig

_SIZES = (
    *("vocab_size", "hidden_size", "max_position_embeddings", "num_attention_heads", "num_key_value_heads"),
    *("linear_num_key_heads", "linear_num_value_heads", "linear_key_head_dim", "linear_value_head_dim"),
    "linear_conv_kernel_dim",
)
"""Fields that every config must have as positive integers."""


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """The sizes of the vision tower, under their config names."""

    depth: int
    hidden_size: int
    intermediate_size: int
    in_channels: int
    patch_size: int
    temporal_patch_size: int
    spatial_merge_size: int
    num_position_embeddings: int
    out_hidden_size: int


@dataclass(frozen=True, slots=True)
class TextConfig:
    """Sizes of a checkpoint: text stack, MTP head and vision tower. Field names are those of config.json."""

    name: str
    family: Family
    is_root: bool  # the config has a `text_config` inside: decides the prefixes of the tensor names
    layer_types: tuple[str, ...]
    sparse_layers: tuple[bool, ...]  # whether a layer has routed experts instead of a dense MLP
    dtype: str
    quantization: str | None  # `quant_method`, None for plain weights
    weight_block: tuple[int, int] | None  # rows and columns that share one scale

    vocab_size: int
    hidden_size: int
    tie_word_embeddings: bool
    max_position_embeddings: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    attention_bias: bool
    linear_num_key_heads: int
    linear_num_value_heads: int
    linear_key_head_dim: int
    linear_value_head_dim: int
    linear_conv_kernel_dim: int
    intermediate_size: int  # of a dense MLP; 0 if every layer is sparse
    num_experts: int  # 0 in a dense family, as are the next three
    num_experts_per_tok: int
    moe_intermediate_size: int
    shared_expert_intermediate_size: int
    mtp_num_hidden_layers: int
    vision: VisionConfig | None


def read_config(
    source: Mapping[str, Any] | str | Path | object, *, name: str | None = None, strict: bool = False
) -> TextConfig:
    """Read a config dict, a folder or path of a config.json, or a transformers config.

    name    name of the checkpoint; by default the name of the folder, or of the config's `_name_or_path`
    strict  raise UnknownConfigField for unknown fields; by default they only warn

    Raises UnreadableConfig, BadConfig (naming the field), NotAHybrid and UnsupportedFamily.
    """
    raw, default_name = _raw(source)
    name = name or default_name
    text = raw.get("text_config", raw)
    if not isinstance(text, Mapping):
        raise BadConfig(f"text_config of {name} is {text!r}.\nIt must be an object with the fields of the text stack.")
    family = family_of(raw)
    is_root = raw["model_type"] == family.root_type
    if is_root and text is raw:
        raise BadConfig(
            f"{name} has model_type {family.root_type!r} but no text_config; transformers would use default sizes.\n"
            f"Move the fields of the text stack into text_config, or set model_type to {family.text_type!r}."
        )
    if unknown := unknown_fields(family, raw):
        _report_unknown(unknown, name, family, strict)
    return _text_config(raw, _Fields(text, "text_config." if is_root else "", name), family, is_root)


def _raw(source: Mapping[str, Any] | str | Path | object) -> tuple[Mapping[str, Any], str]:
    """Return the config as a dict, and a default name for the checkpoint."""
    if isinstance(source, str | Path):
        path = Path(source)
        file = path / "config.json" if path.is_dir() else path
        return _load(file), file.resolve().parent.name if file.name == "config.json" else file.stem
    if not isinstance(source, Mapping) and not hasattr(source, "to_dict"):
        raise UnreadableConfig(
            f"A {type(source).__name__} is not a config.\nPass a dict, a folder, or a transformers config."
        )
    raw = source if isinstance(source, Mapping) else source.to_dict()
    return raw, Path(str(raw.get("_name_or_path") or raw.get("model_type") or "this config")).name


def _load(file: Path) -> Mapping[str, Any]:
    fix = "Pass the folder of a checkpoint, which contains config.json."
    if not file.is_file():
        raise UnreadableConfig(f"There is no {file.name} in {file.parent}.\n{fix}")
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UnreadableConfig(f"{file} is not JSON: {error}.\nIt may be truncated: download it again.") from error
    if not isinstance(raw, dict):
        raise UnreadableConfig(f"{file} contains a {type(raw).__name__}, not an object.\n{fix}")
    return raw


def _report_unknown(unknown: list[str], name: str, family: Family, strict: bool) -> None:
    message = (
        f"{name} has config fields that qwenlab does not know for {family.name}: {', '.join(unknown)}.\n"
        "They may change what the model computes; qwenlab ignores them."
    )
    if strict:
        raise UnknownConfigField(f"{message}\nUse strict=False to get a warning instead.")
    warnings.warn(message, UnknownConfigFieldWarning, stacklevel=4)


@dataclass(frozen=True, slots=True)
class _Fields:
    """The fields of one object in a config; errors name a field with its prefix and the config."""

    values: Mapping[str, Any]
    prefix: str  # "text_config."
    config: str  # the name of the checkpoint

    def get(self, name: str, default: Any = None) -> Any:
        value = self.values.get(name)
        return default if value is None else value

    def integer(self, name: str, least: int = 1, default: int | None = None) -> int:
        """Return an integer, required without a default: most defaults of transformers belong to another checkpoint."""
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            problem = "is missing" if value is None else f"is {value!r}"
            raise self.error(name, f"{problem}; it must be an integer, {least} or more")
        return value

    def error(self, name: str, problem: str) -> BadConfig:
        return BadConfig(f"{self.prefix}{name} of {self.config} {problem}.\nCorrect it in the config.")


def _text_config(raw: Mapping[str, Any], text: _Fields, family: Family, is_root: bool) -> TextConfig:
    for name, value in family.fixed:
        if text.get(name, value) != value:
            raise text.error(name, f"is {text.get(name)!r}; transformers always builds {family.name} with {value!r}")
    layer_types = _layer_types(text, family)
    experts = text.integer("num_experts", least=0 if family.dense_layers else 1) if family.sparse else 0
    sparse = _sparse_layers(text, family, len(layer_types), experts)
    quantization = raw.get("quantization_config") or text.get("quantization_config", {})
    block = quantization.get("weight_block_size")
    has_vision = is_root and raw.get("vision_config") and not raw.get("language_model_only")
    config = TextConfig(
        name=text.config,
        family=family,
        is_root=is_root,
        layer_types=layer_types,
        sparse_layers=sparse,
        # Without a dtype in the config, transformers uses torch's default.
        dtype=str(text.get("dtype") or text.get("torch_dtype") or raw.get("dtype") or "float32").removeprefix("torch."),
        quantization=quantization.get("quant_method"),
        weight_block=tuple(block) if block else None,
        **{size: text.integer(size) for size in _SIZES},
        head_dim=text.integer("head_dim", default=_even_head_dim(text) if family.attention.even else None),
        tie_word_embeddings=bool(text.get("tie_word_embeddings", raw.get("tie_word_embeddings", False))),
        attention_bias=bool(text.get("attention_bias", False)),
        intermediate_size=0 if all(sparse) else text.integer("intermediate_size"),
        num_experts=experts,
        num_experts_per_tok=text.integer("num_experts_per_tok") if experts else 0,
        moe_intermediate_size=text.integer("moe_intermediate_size") if experts else 0,
        shared_expert_intermediate_size=text.integer("shared_expert_intermediate_size", least=0) if experts else 0,
        mtp_num_hidden_layers=_mtp_layers(raw, text, family),
        vision=_vision(_Fields(raw["vision_config"], "vision_config.", text.config)) if has_vision else None,
    )
    _check_fit(config, text)
    return config


def _even_head_dim(text: _Fields) -> int:
    return text.integer("hidden_size") // text.integer("num_attention_heads")


def _layer_types(text: _Fields, family: Family) -> tuple[str, ...]:
    """The kind of each layer: from `layer_types`, or attention every `full_attention_interval`, as in transformers."""
    count = text.integer("num_hidden_layers")
    kinds = text.get("layer_types")
    if kinds is None and family.attention_every is not None:
        interval = text.integer("full_attention_interval", default=family.attention_every)
        return tuple(DELTANET if (layer + 1) % interval else ATTENTION for layer in range(count))
    if not isinstance(kinds, list | tuple) or len(kinds) != count:
        problem = f"lists {len(kinds)} layers" if isinstance(kinds, list | tuple) else f"is {kinds!r}"
        raise text.error("layer_types", f"{problem}, but num_hidden_layers is {count}")
    for layer, kind in enumerate(kinds):
        if kind not in KINDS:
            raise text.error("layer_types", f"has {kind!r} at layer {layer}; the known kinds are {' and '.join(KINDS)}")
    return tuple(kinds)


def _sparse_layers(text: _Fields, family: Family, count: int, experts: int) -> tuple[bool, ...]:
    """Whether each layer has routed experts, by the rule of transformers' decoder layers."""
    dense = text.get("mlp_only_layers", [])
    if not family.dense_layers:
        if dense:
            raise text.error("mlp_only_layers", f"is {dense!r}, but transformers ignores it for {family.name}")
        return (family.sparse,) * count
    step = text.integer("decoder_sparse_step", default=1)
    return tuple(experts > 0 and layer not in dense and (layer + 1) % step == 0 for layer in range(count))


def _mtp_layers(raw: Mapping[str, Any], text: _Fields, family: Family) -> int:
    """Number of layers of the multi-token-prediction head, from text_config, the root, or both."""
    names = ("mtp_num_hidden_layers", "num_nextn_predict_layers")
    counts = {fields[name] for fields in (raw, text.values) for name in names if fields.get(name) is not None}
    if len(counts) > 1:
        raise text.error("mtp_num_hidden_layers", f"and the one at the root differ: {sorted(counts)}")
    count = counts.pop() if counts else 0
    if count and family.mtp_prefix is None:
        raise text.error("mtp_num_hidden_layers", f"is {count}, but {family.name} has no MTP head")
    return count


def _vision(vision: _Fields) -> VisionConfig:
    return VisionConfig(**{name: vision.integer(name) for name in VisionConfig.__dataclass_fields__})


def _check_fit(config: TextConfig, text: _Fields) -> None:
    """Check that head counts divide evenly, and that a token does not choose more experts than exist."""
    queries = ("num_attention_heads", "num_key_value_heads")
    values = ("linear_num_value_heads", "linear_num_key_heads")
    for many, few in (queries, values):
        if getattr(config, many) % getattr(config, few):
            raise text.error(many, f"is {getattr(config, many)}, not a multiple of {few}, {getattr(config, few)}")
    if (chosen := config.num_experts_per_tok) > config.num_experts:
        raise text.error("num_experts_per_tok", f"is {chosen}, more than the {config.num_experts} experts")
