"""Tiny random checkpoints on disk, in every layout of the published ones."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from qwenlab.checkpoint.families import FAMILIES, Family, family_of
from qwenlab.checkpoint.random_weights.byte_tokenizer import save_tokenizer
from qwenlab.errors import BadArgument
from qwenlab.testing.models import tiny_head, tiny_model

Layout = Literal["root", "text", "flat"]
Experts = Literal["fused", "each"]

FP8_BLOCK = 16
_LAYOUTS: dict[str, str] = {
    "root": "a config with text_config, weights under model.language_model.",
    "text": "a text config, weights under model.language_model.: what transformers saves",
    "flat": "a text config, weights under model.",
}


def tiny_checkpoint(
    folder: str | Path,
    family: str = "qwen3_5_moe",
    *,
    layout: Layout = "root",
    experts: Experts = "fused",
    mtp: Experts | None = "fused",
    mtp_prefix: str = "mtp.",
    shards: int = 2,
    dtype: str = "float32",
    float32_decay: bool = False,
    fp8: bool = False,
    seed: int = 0,
    **sizes: Any,
) -> Path:
    """Write a random checkpoint and return its folder.

    layout         root: config with a text_config, weights under `model.language_model.`; text: a text config and the
                   same names, as transformers saves it; flat: a text config, weights under `model.`
    experts        "fused": one three-dimensional tensor for all experts of a layer; "each": three matrices per expert
    mtp            the same for the MTP head; None: no MTP head
    shards         1 writes model.safetensors; a larger number writes that many shards and an index
    dtype          of the weights and of the config
    float32_decay  store A_log and the norm of the DeltaNet layers in float32, whatever `dtype` is
    fp8            matrices in FP8 with one `weight_scale_inv` per block of 16 x 16; the rest, and fused experts, in
                   `dtype`
    sizes          further arguments of `tiny_config`

    The weights in memory are those of `tiny_model(family, seed=seed, ...)` and `tiny_head(model, seed=seed + 1)`.
    """
    if layout not in _LAYOUTS or (layout == "root" and FAMILIES[family].root_type is None):
        raise BadArgument(
            f"layout={layout!r} does not exist for {family}.\n"
            f"Use {'; '.join(f'{k} ({v})' for k, v in _LAYOUTS.items())}; families without a root config have no root."
        )
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    model = tiny_model(family, seed=seed, **sizes)
    named = family_of(model)
    prefix = named.text_prefix if layout == "flat" else named.root_prefix
    stored = _layout(_target_state(model, named.text_prefix, prefix), experts)
    if mtp is not None:
        head = tiny_head(model, seed=seed + 1).state_dict()
        stored |= {mtp_prefix + name: tensor for name, tensor in _layout(head, mtp).items()}
    stored = {name: _cast(name, tensor, dtype, float32_decay) for name, tensor in stored.items()}
    config = _config(model, named, layout, dtype, has_mtp=mtp is not None)
    if fp8:
        stored, config["quantization_config"] = _quantised(stored)
    save_shards(stored, path, shards)
    (path / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_tokenizer(path)
    return path


def save_shards(tensors: Mapping[str, torch.Tensor], folder: Path, shards: int = 1) -> None:
    """Write tensors as `model.safetensors`, or as several shards with their index."""
    if shards == 1:
        save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = names[shard * len(names) // shards : (shard + 1) * len(names) // shards]
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _target_state(model: PreTrainedModel, text_prefix: str, prefix: str) -> dict[str, torch.Tensor]:
    """The target model's tensors under their names in the files, without an output head tied to the embedding."""
    state = model.state_dict()
    if model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    return {re.sub(f"^{re.escape(text_prefix)}", prefix, name): tensor for name, tensor in state.items()}


def _layout(state: Mapping[str, torch.Tensor], experts: Experts) -> dict[str, torch.Tensor]:
    """Leave experts fused, or split each into three matrices."""
    if experts == "fused":
        return dict(state)
    split: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        stem, _, last = name.rpartition(".")
        if not stem.endswith(".experts"):
            split[name] = tensor
            continue
        for expert, matrix in enumerate(tensor):
            parts = ("gate_proj", "up_proj") if last == "gate_up_proj" else (last,)
            for part, rows in zip(parts, matrix.chunk(len(parts)), strict=True):
                split[f"{stem}.{expert}.{part}.weight"] = rows.contiguous()
    return split


def _cast(name: str, tensor: torch.Tensor, dtype: str, float32_decay: bool) -> torch.Tensor:
    full = float32_decay and name.endswith(("A_log", "linear_attn.norm.weight"))
    return tensor.to(torch.float32 if full else getattr(torch, dtype)).contiguous()


def _config(model: PreTrainedModel, family: Family, layout: Layout, dtype: str, has_mtp: bool) -> dict[str, Any]:
    text = model.config.to_dict()
    for name in ("architectures", "_name_or_path", "transformers_version", "_attn_implementation_internal"):
        text.pop(name, None)
    text |= {"model_type": family.text_type, "dtype": dtype}
    text |= {"mtp_num_hidden_layers": int(has_mtp)} if family.mtp_prefix else {}
    architecture = type(model).__name__
    if layout != "root":
        return {"architectures": [architecture]} | text
    return {
        "architectures": [architecture.replace("ForCausalLM", "ForConditionalGeneration")],
        "model_type": family.root_type,
        "text_config": text,
        "tie_word_embeddings": text["tie_word_embeddings"],
    }


# The published FP8 releases do not quantise these matrices; every other one is stored by block.
_NOT_FP8 = ("embed_tokens", "lm_head", "in_proj_a", "in_proj_b", "in_proj_ba", "gate", "shared_expert_gate", "fc")


def _quantised(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors with matrices in FP8, and the config of the quantisation."""
    stored: dict[str, torch.Tensor] = {}
    plain = []
    for name, tensor in tensors.items():
        if tensor.ndim != 2 or name.split(".")[-2] in _NOT_FP8:
            stored[name] = tensor
            plain += [name.removesuffix(".weight")] if name.endswith(".weight") and tensor.ndim == 2 else []
            continue
        rows, columns = tensor.shape
        blocks = tensor.float().reshape(rows // FP8_BLOCK, FP8_BLOCK, columns // FP8_BLOCK, FP8_BLOCK)
        scale = (blocks.abs().amax(dim=(1, 3)) / torch.finfo(torch.float8_e4m3fn).max).to(torch.bfloat16)
        stored[name] = (blocks / scale.float()[:, None, :, None]).reshape(rows, columns).to(torch.float8_e4m3fn)
        stored[f"{name}_scale_inv"] = scale
    config = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
    return stored, config | {"weight_block_size": [FP8_BLOCK, FP8_BLOCK], "modules_to_not_convert": sorted(plain)}
