"""config.json, in any of its published layouts, read into the few numbers that the rest of qwenlab needs."""

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

ConfigSource = Mapping[str, Any] | str | Path | object
"""A config dict, a folder or path of a config.json, or a transformers config."""

# What transformers builds whatever the config says: another value would describe weights that it cannot load.
_ALWAYS: dict[str, Any] = {"attn_output_gate": True, "mtp_use_dedicated_embeddings": False}


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
    """The text stack of one checkpoint, and what is stored beside it. Field names are those of config.json."""

    name: str
    family: Family
    is_root: bool  # written with `text_config` inside: decides the prefixes in the checkpoint's files
    layer_types: tuple[str, ...]
    sparse_layers: tuple[bool, ...]  # which layers have routed experts in the MLP's place
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
    intermediate_size: int  # of a dense MLP; 0 where every layer is sparse
    num_experts: int  # 0 in a dense family, as are the three below
    num_experts_per_tok: int
    moe_intermediate_size: int
    shared_expert_intermediate_size: int
    mtp_num_hidden_layers: int
    vision: VisionConfig | None

    @property
    def key_dim(self) -> int:
        """Channels of q, and of k, over all key heads of a DeltaNet layer."""
        return self.linear_num_key_heads * self.linear_key_head_dim

    @property
    def value_dim(self) -> int:
        """Channels of v, and of the output gate z, over all value heads of a DeltaNet layer."""
        return self.linear_num_value_heads * self.linear_value_head_dim

    @property
    def conv_dim(self) -> int:
        """Channels of the short convolution of a DeltaNet layer: q, k and v."""
        return 2 * self.key_dim + self.value_dim


def read_config(source: ConfigSource, *, name: str | None = None, strict: bool = False) -> TextConfig:
    """Read a config dict, a folder or path of a config.json, or a transformers config.

    name    what the checkpoint is called; by default the folder's name, or the path the config remembers
    strict  fields that the family is not known to have raise UnknownConfigField; by default they warn

    Raises UnreadableConfig, BadConfig (naming the field), NotAHybrid and UnsupportedFamily.
    """
    raw, called = _raw(source)
    name = name or called
    text = raw.get("text_config", raw)
    if not isinstance(text, Mapping):
        raise BadConfig(f"text_config of {name} is {text!r}.\nIt must be an object: the fields of the text stack.")
    family = family_of(raw)
    is_root = raw["model_type"] == family.root_type
    if is_root and text is raw:
        raise BadConfig(
            f"{name} is of model_type {family.root_type!r} but has no text_config: transformers would fill it in.\n"
            f"Put the fields of the text stack into text_config, or write model_type {family.text_type!r}."
        )
    _report_unknown(unknown_fields(family, raw), name, family, strict)
    return _text_config(raw, _Fields(text, "text_config." if is_root else "", name), family, is_root)


def _raw(source: ConfigSource) -> tuple[Mapping[str, Any], str]:
    """The config as a dict, and what to call the checkpoint."""
    if isinstance(source, str | Path):
        path = Path(source)
        file = path / "config.json" if path.is_dir() else path
        return _load(file), file.resolve().parent.name if file.name == "config.json" else file.stem
    if not isinstance(source, Mapping) and not hasattr(source, "to_dict"):
        raise UnreadableConfig(
            f"a {type(source).__name__} is no config.\nGive a dict, a folder, or a transformers config."
        )
    raw = source if isinstance(source, Mapping) else source.to_dict()
    return raw, Path(str(raw.get("_name_or_path") or raw.get("model_type") or "this config")).name


def _load(file: Path) -> Mapping[str, Any]:
    mend = "Give the folder of a checkpoint, which holds config.json."
    if not file.is_file():
        raise UnreadableConfig(f"there is no {file.name} in {file.parent}.\n{mend}")
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UnreadableConfig(f"{file} is not JSON: {error}.\nIt may be truncated: fetch it again.") from error
    if not isinstance(raw, dict):
        raise UnreadableConfig(f"{file} holds a {type(raw).__name__}, not an object.\n{mend}")
    return raw


def _report_unknown(unknown: list[str], name: str, family: Family, strict: bool) -> None:
    if not unknown:
        return
    message = (
        f"{name} has config fields that {family.name} is not known to have: {', '.join(unknown)}.\n"
        "They may change what the model computes, and qwenlab's numbers do not take them into account."
    )
    if strict:
        raise UnknownConfigField(f"{message}\nLeave strict=False to read the config with a warning.")
    warnings.warn(message, UnknownConfigFieldWarning, stacklevel=4)


@dataclass(frozen=True, slots=True)
class _Fields:
    """The fields of one object in a config, which complains with their full names."""

    values: Mapping[str, Any]
    prefix: str
    config: str

    def get(self, name: str, default: Any = None) -> Any:
        value = self.values.get(name)
        return default if value is None else value

    def whole(self, name: str, least: int = 1) -> int:
        """A required whole number; none is defaulted, for transformers' defaults are those of another checkpoint."""
        value = self.values.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            said = "is missing" if value is None else f"is {value!r}"
            raise self.bad(name, f"{said}; it must be a whole number of at least {least}")
        return value

    def bad(self, name: str, problem: str) -> BadConfig:
        return BadConfig(f"{self.prefix}{name} of {self.config} {problem}.\nCorrect it in the config.")


def _text_config(raw: Mapping[str, Any], text: _Fields, family: Family, is_root: bool) -> TextConfig:
    for name, always in _ALWAYS.items():
        if text.get(name, always) != always:
            raise text.bad(name, f"is {text.get(name)!r}; transformers always builds {family.name} with {always!r}")
    layer_types = _layer_types(text)
    experts = text.whole("num_experts", least=0 if family.dense_layers else 1) if family.sparse else 0
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
        # A config that names no dtype is built as torch's default.
        dtype=str(text.get("dtype") or text.get("torch_dtype") or raw.get("dtype") or "float32").removeprefix("torch."),
        quantization=quantization.get("quant_method"),
        weight_block=tuple(block) if block else None,
        vocab_size=text.whole("vocab_size"),
        hidden_size=text.whole("hidden_size"),
        tie_word_embeddings=bool(text.get("tie_word_embeddings", raw.get("tie_word_embeddings", False))),
        max_position_embeddings=text.whole("max_position_embeddings"),
        num_attention_heads=text.whole("num_attention_heads"),
        num_key_value_heads=text.whole("num_key_value_heads"),
        head_dim=text.whole("head_dim"),
        attention_bias=bool(text.get("attention_bias", False)),
        linear_num_key_heads=text.whole("linear_num_key_heads"),
        linear_num_value_heads=text.whole("linear_num_value_heads"),
        linear_key_head_dim=text.whole("linear_key_head_dim"),
        linear_value_head_dim=text.whole("linear_value_head_dim"),
        linear_conv_kernel_dim=text.whole("linear_conv_kernel_dim"),
        intermediate_size=0 if all(sparse) else text.whole("intermediate_size"),
        num_experts=experts,
        num_experts_per_tok=text.whole("num_experts_per_tok") if experts else 0,
        moe_intermediate_size=text.whole("moe_intermediate_size") if experts else 0,
        shared_expert_intermediate_size=text.whole("shared_expert_intermediate_size", least=0) if experts else 0,
        mtp_num_hidden_layers=_mtp_layers(raw, text),
        vision=_vision(_Fields(raw["vision_config"], "vision_config.", text.config)) if has_vision else None,
    )
    _check_fit(config, text)
    return config


def _layer_types(text: _Fields) -> tuple[str, ...]:
    """The kind of each layer: as listed, or attention every `full_attention_interval`, as transformers derives it."""
    count = text.whole("num_hidden_layers")
    kinds = text.get("layer_types")
    if kinds is None:
        interval = text.whole("full_attention_interval") if text.get("full_attention_interval") is not None else 4
        return tuple(DELTANET if (layer + 1) % interval else ATTENTION for layer in range(count))
    if not isinstance(kinds, list | tuple) or len(kinds) != count:
        said = f"lists {len(kinds)} layers" if isinstance(kinds, list | tuple) else f"is {kinds!r}"
        raise text.bad("layer_types", f"{said}, but num_hidden_layers is {count}")
    for layer, kind in enumerate(kinds):
        if kind not in KINDS:
            raise text.bad("layer_types", f"calls layer {layer} {kind!r}; the known kinds are {' and '.join(KINDS)}")
    return tuple(kinds)


def _sparse_layers(text: _Fields, family: Family, count: int, experts: int) -> tuple[bool, ...]:
    """Which layers have routed experts, as the decoder layers of transformers decide it."""
    dense = text.get("mlp_only_layers", [])
    if not family.dense_layers:
        if dense:
            raise text.bad("mlp_only_layers", f"is {dense!r}, but transformers does not read it for {family.name}")
        return (family.sparse,) * count
    step = text.whole("decoder_sparse_step") if text.get("decoder_sparse_step") is not None else 1
    return tuple(experts > 0 and layer not in dense and (layer + 1) % step == 0 for layer in range(count))


def _mtp_layers(raw: Mapping[str, Any], text: _Fields) -> int:
    """Layers of the multi-token-prediction head, named in text_config, or at the root, or in both."""
    names = ("mtp_num_hidden_layers", "num_nextn_predict_layers")
    stated = {fields[name] for fields in (raw, text.values) for name in names if fields.get(name) is not None}
    if len(stated) > 1:
        raise text.bad("mtp_num_hidden_layers", f"and the root's disagree: {sorted(stated)}")
    return stated.pop() if stated else 0


def _vision(vision: _Fields) -> VisionConfig:
    return VisionConfig(**{name: vision.whole(name) for name in VisionConfig.__dataclass_fields__})


def _check_fit(config: TextConfig, text: _Fields) -> None:
    """Heads must share out evenly, and a token cannot choose more experts than there are."""
    queries = ("num_attention_heads", "num_key_value_heads")
    values = ("linear_num_value_heads", "linear_num_key_heads")
    for many, few in (queries, values):
        if getattr(config, many) % getattr(config, few):
            raise text.bad(many, f"is {getattr(config, many)}, not a multiple of {few}, {getattr(config, few)}")
    if (chosen := config.num_experts_per_tok) > config.num_experts:
        raise text.bad("num_experts_per_tok", f"is {chosen}, more than the {config.num_experts} experts")
