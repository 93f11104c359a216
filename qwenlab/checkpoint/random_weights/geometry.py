"""The config.json of a checkpoint with random weights: that of a published one, with fewer layers where asked."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from qwenlab.arguments import integer
from qwenlab.checkpoint.anatomy.anatomy import config_file
from qwenlab.checkpoint.config import TextConfig, read_config
from qwenlab.checkpoint.random_weights.byte_tokenizer import TOKENS
from qwenlab.errors import BadArgument, BadConfig, UnsupportedFamily

_FAMILIES = ("qwen3_5", "qwen3_5_moe", "qwen3_next")
"""Families whose norms multiply by 1 + w, as `distribution` assumes."""

_VISION_FIELDS = ("vision_config", "image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")


def random_config(geometry: str | Path, layers: int | None, *, vision: bool) -> dict[str, Any]:
    """The config.json for random weights of a geometry.

    It has the first `layers` layers, bfloat16, the end-of-text token of the tokenizer that is written with it, and a
    vision tower only on request.
    """
    file = config_file(str(geometry))
    published = read_config(file)
    _check(published)
    raw: dict[str, Any] = copy.deepcopy(json.loads((file / "config.json" if file.is_dir() else file).read_text()))
    text: dict[str, Any] = raw.get("text_config", raw)
    kinds = list(published.layer_types)
    if layers is not None:
        integer("make_checkpoint", "layers", layers, least=1, most=len(kinds))
    kept = len(kinds) if layers is None else layers
    text |= {"num_hidden_layers": kept, "layer_types": kinds[:kept], "dtype": "bfloat16"}
    text |= {"eos_token_id": 0, "bos_token_id": None, "pad_token_id": None}
    if "mlp_only_layers" in text:
        text["mlp_only_layers"] = [layer for layer in text["mlp_only_layers"] or [] if layer < kept]
    if vision and published.vision is None:
        raise BadArgument(f"make_checkpoint(vision=True): {published.name} has no vision tower.\nLeave it out.")
    return raw if vision else {name: value for name, value in raw.items() if name not in _VISION_FIELDS}


def _check(config: TextConfig) -> None:
    if config.quantization is not None:
        raise BadArgument(
            f"{config.name} stores its weights as {config.quantization}; random weights are written in bfloat16.\n"
            "Use the geometry of the unquantised release: it has the same sizes."
        )
    if config.family.name not in _FAMILIES:
        raise UnsupportedFamily(
            f"{config.name} is {config.family.name}; random checkpoints can be made of {', '.join(_FAMILIES)}.\n"
            "Make the model with transformers' from_config and save it with save_pretrained."
        )
    if config.vocab_size < TOKENS:
        raise BadConfig(
            f"vocab_size of {config.name} is {config.vocab_size}, but the byte-level tokenizer that is written with "
            f"random weights has {TOKENS} tokens.\nUse a vocab_size of {TOKENS} or more."
        )
