"""Open a checkpoint: a plain transformers model with its tokenizer, MTP head, anatomy and provenance."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from threading import Lock
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from qwenlab.checkpoint.anatomy.anatomy import Anatomy
from qwenlab.checkpoint.checkpoint import Checkpoint, Facts
from qwenlab.checkpoint.config import TextConfig, read_config
from qwenlab.checkpoint.fused_kernels import run_on_cpu
from qwenlab.checkpoint.model_cache import opened_models
from qwenlab.checkpoint.mtp_head import MtpHead
from qwenlab.checkpoint.source import CheckpointSource, locate
from qwenlab.checkpoint.streaming.memory_size import memory_bytes
from qwenlab.checkpoint.streaming.open_streamed import load_streamed
from qwenlab.checkpoint.tokenizer import load_tokenizer
from qwenlab.checkpoint.weights.fingerprint import fingerprint, fingerprint_in_memory
from qwenlab.checkpoint.weights.mtp_weights import load_mtp
from qwenlab.checkpoint.weights.shards import SMALL, Weights, read_weights
from qwenlab.checkpoint.weights.target_model import check_target, load_target

_loading = Lock()
"""Locked while transformers loads a model, because it changes torch's default dtype for the whole process."""


def open(
    source: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    device_map: Any = None,
    attn_implementation: str | None = None,
    experts_implementation: str | None = None,
    memory: int | str | None = None,
    strict: bool = False,
) -> Checkpoint:
    """Open a toy ("toy-moe"), a local folder, or a checkpoint of the hub ("Qwen/Qwen3.6-35B-A3B").

    device       of the model; by default the CPU, as in transformers
                 (there its DeltaNet layers run torch's own rule, even if fused kernels are installed)
    dtype        of the weights in memory; by default the checkpoint's own
    revision     branch, tag or commit of a hub checkpoint
    device_map, attn_implementation, experts_implementation
                 passed to `from_pretrained` of transformers
    memory       bytes that the weights may take ("8GiB"), for a checkpoint bigger than memory: each pass reads every
                 layer from the files as it runs, with the same results. The model can then not decode or train
    strict       raise instead of warn for unknown config fields and tensors, and check every weight for NaN; by default
                 only checkpoints of up to 1 GiB are checked

    Several threads may open checkpoints; they wait for each other. No other thread may run a model at the same time,
    because transformers changes torch's default dtype while it loads.

    Only the text stack is loaded, only from safetensors, and no code from the checkpoint is run. Defects of a folder
    are found before its weights are loaded, and each kind raises its own QwenlabError: see docs/errors.md.
    """
    where = locate(source, revision)
    config = read_config(where.folder, name=where.name, strict=strict)
    weights = read_weights(where.folder)
    loading: dict[str, Any] = dict(device=device, dtype=dtype, device_map=device_map)
    loading |= dict(memory=None if memory is None else memory_bytes(memory))
    loading |= dict(attn_implementation=attn_implementation, experts_implementation=experts_implementation)
    key = (str(source), where.revision, fingerprint(weights), strict, *map(repr, loading.values()))
    return opened_models.opened(key, lambda: _read(str(source), where, config, weights, strict, **loading))


def _read(
    source: str,
    where: CheckpointSource,
    config: TextConfig,
    weights: Weights,
    strict: bool,
    *,
    memory: int | None,
    **loading: Any,
) -> Checkpoint:
    check_target(weights, config, strict=strict)
    if strict or (memory is None and weights.size <= SMALL):
        weights.require_finite()
    tokenizer = load_tokenizer(where.folder, config.vocab_size)
    # transformers initialises weights at random before it reads them; the fork leaves the user's generator unchanged.
    with _loading, torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        if memory is None:
            model = load_target(weights, quantised=config.quantization is not None, **loading)
        else:
            model = load_streamed(weights, config, memory, **loading)
        mtp = load_mtp(model, weights, config)
    run_on_cpu(config.family)
    anatomy = Anatomy(_as_opened(config, weights, model, mtp))
    facts = Facts(
        source=source,
        folder=str(where.folder),
        revision=where.revision,
        hash=fingerprint(weights),
        family=config.family.name,
        parameters=anatomy.total - anatomy.parameters["vision"],
        dtype=anatomy.config.dtype,
        device=", ".join(dict.fromkeys(str(parameter.device) for parameter in model.parameters())),
        torch=torch.__version__,
        transformers=transformers.__version__,
    )
    return Checkpoint(model, tokenizer, mtp, anatomy, facts, fingerprint_in_memory(model))


def _as_opened(config: TextConfig, weights: Weights, model: PreTrainedModel, mtp: MtpHead | None) -> TextConfig:
    """The config of the opened model: with the dtype in memory, and only the parts that the files contain."""
    has_vision = any(name.startswith(config.family.vision_prefix) for name in weights.tensors)
    quantised = getattr(model.config, "quantization_config", None) is not None  # FP8 becomes plain if it cannot run
    return dataclasses.replace(
        config,
        dtype=str(model.dtype).removeprefix("torch."),
        quantization=config.quantization if quantised else None,
        weight_block=config.weight_block if quantised else None,
        mtp_num_hidden_layers=0 if mtp is None else 1,
        vision=config.vision if has_vision else None,
    )
