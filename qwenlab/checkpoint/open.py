"""Open a checkpoint: the plain transformers model, its tokenizer, its MTP head, its anatomy, and the facts about it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from html import escape
from pathlib import Path
from threading import Lock
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from qwenlab.checkpoint.anatomy.anatomy import Anatomy
from qwenlab.checkpoint.config import TextConfig, read_config
from qwenlab.checkpoint.fused_kernels import run_on_cpu
from qwenlab.checkpoint.model_cache import kept
from qwenlab.checkpoint.mtp_head import MtpHead
from qwenlab.checkpoint.source import CheckpointSource, locate
from qwenlab.checkpoint.tokenizer import load_tokenizer
from qwenlab.checkpoint.weights.fingerprint import fingerprint, fingerprint_in_memory
from qwenlab.checkpoint.weights.loaded import require_loaded
from qwenlab.checkpoint.weights.mtp_weights import load_mtp
from qwenlab.checkpoint.weights.shards import SMALL, Weights, read_weights
from qwenlab.checkpoint.weights.target_model import check_target, load_target
from qwenlab.errors import BadArgument, NoMtpHead

_loading = Lock()
"""Held while transformers loads: it sets torch's default dtype, which belongs to the process, to that of the model."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a number measured on a checkpoint must carry to be found again."""

    source: str  # as it was asked for
    folder: str
    revision: str | None  # the commit of a hub checkpoint
    hash: str  # of config.json and the weights in the files: see `qwenlab.checkpoint.weights.fingerprint`
    family: str
    parameters: int  # of the trunk and the MTP head
    dtype: str
    device: str
    torch: str
    transformers: str


@dataclass(frozen=True, eq=False, repr=False)
class Checkpoint:
    """An open checkpoint. The model is the plain one of transformers: use, train or change it as ever."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    mtp: MtpHead | None  # None: the checkpoint has no `mtp.*` weights
    anatomy: Anatomy
    facts: Facts
    as_opened: str  # `fingerprint_in_memory` of the model

    def hash_now(self) -> str:
        """`facts.hash` as long as the model is as it was opened, else a hash of what it has become in memory.

        A model that was trained, edited in place or brought to another dtype is another model: recordings carry this
        hash. A trained MTP head does not change it; recordings of drafts carry the head's own hash too.
        """
        now = fingerprint_in_memory(self.model)
        return self.facts.hash if now == self.as_opened else now

    def require_mtp(self) -> MtpHead:
        """The MTP head; raises NoMtpHead where the checkpoint has none."""
        if self.mtp is None:
            raise NoMtpHead(
                f"{self.facts.source} has no MTP head: no tensor in its shards begins with mtp.\n"
                "Open the published checkpoint; copies that transformers saved have lost the head."
            )
        return self.mtp

    def __repr__(self) -> str:
        facts, head = self.facts, "without MTP head" if self.mtp is None else "with MTP head"
        return (
            f"Checkpoint({facts.source!r}: {facts.family}, {len(self.anatomy.layer_types)} layers, "
            f"{facts.parameters:,} parameters, {facts.dtype} on {facts.device}, {head})"
        )

    def __str__(self) -> str:
        return f"{self.anatomy}\n\n{self._origin()}"

    def _repr_html_(self) -> str:
        return f'{self.anatomy._repr_html_()}<div style="color:#8A8A8A">{escape(self._origin())}</div>'

    def _origin(self) -> str:
        facts = self.facts
        kind, digest = facts.hash.split(":")
        return f"{facts.source} · {facts.dtype} on {facts.device} · {kind} {digest[:12]}"


def open(
    source: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    device_map: Any = None,
    attn_implementation: str | None = None,
    experts_implementation: str | None = None,
    strict: bool = False,
) -> Checkpoint:
    """Open a toy ("toy-moe"), a local folder, or a checkpoint of the hub ("Qwen/Qwen3.6-35B-A3B").

    device       where the model goes; by default the CPU, as transformers does it
                 (there its DeltaNet layers run torch's own rule, also where fused kernels are installed)
    dtype        of the weights in memory; by default the checkpoint's own
    revision     branch, tag or commit, for the hub only
    device_map, attn_implementation, experts_implementation
                 as `from_pretrained` of transformers takes them
    strict       config fields and tensors that we do not know are errors, not warnings, and every weight is looked at
                 for NaN whatever the size; by default only in checkpoints of up to 1 GiB

    Threads may open checkpoints at once, and wait for each other. Let no other thread run a model meanwhile:
    transformers changes torch's default dtype while it loads.

    Only the text stack is loaded. Only safetensors are read, and no code from the checkpoint is run. What is wrong with
    a folder is found before its weights are loaded, and raised as a QwenlabError of its own: see docs/errors.md.
    """
    where = locate(source, revision)
    config = read_config(where.folder, name=where.name, strict=strict)
    weights = read_weights(where.folder)
    loading = dict(
        device=device,
        dtype=dtype,
        device_map=device_map,
        attn_implementation=attn_implementation,
        experts_implementation=experts_implementation,
    )

    def read() -> Checkpoint:
        check_target(weights, config, strict=strict)
        if strict or weights.size <= SMALL:
            weights.require_finite()
        return _read(source, where, config, weights, loading)

    key = (str(source), where.revision, fingerprint(weights), strict, *map(repr, loading.values()))
    return kept.opened(key, read)


def require_checkpoint(given: Any) -> None:
    """Raise BadArgument for a model where a checkpoint is asked for, HalfLoadedModel for one that lost weights."""
    if isinstance(given, nn.Module):
        raise BadArgument(
            f"This takes a Checkpoint, with its tokenizer and its facts; got a {type(given).__name__}.\n"
            "Give what qwenlab.open returned, not its .model."
        )
    if isinstance(given, Checkpoint):
        require_loaded(given.model)


def _read(
    source: str | Path, where: CheckpointSource, config: TextConfig, weights: Weights, loading: dict[str, Any]
) -> Checkpoint:
    tokenizer = load_tokenizer(where.folder, config.vocab_size)
    # Models draw random weights before theirs are read: not from the numbers that the user's code will draw.
    with _loading, torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        model = load_target(weights, quantised=config.quantization is not None, **loading)
        mtp = load_mtp(model, weights, config)
    run_on_cpu(config.family)
    anatomy = Anatomy(_as_opened(config, weights, model, mtp))
    facts = Facts(
        source=str(source),
        folder=str(where.folder),
        revision=where.revision,
        hash=fingerprint(weights),
        family=config.family.name,
        parameters=anatomy.total - anatomy.parameters["vision"],
        dtype=anatomy.config.dtype,
        device=_devices(model),
        torch=torch.__version__,
        transformers=transformers.__version__,
    )
    return Checkpoint(model, tokenizer, mtp, anatomy, facts, fingerprint_in_memory(model))


def _as_opened(config: TextConfig, weights: Weights, model: PreTrainedModel, mtp: MtpHead | None) -> TextConfig:
    """The config of what is really there: in the dtype it has in memory, with the parts that the files hold."""
    seen = any(name.startswith(config.family.vision_prefix) for name in weights.tensors)
    quantised = getattr(model.config, "quantization_config", None) is not None  # FP8 becomes plain where it cannot run
    return dataclasses.replace(
        config,
        dtype=str(model.dtype).removeprefix("torch."),
        quantization=config.quantization if quantised else None,
        weight_block=config.weight_block if quantised else None,
        mtp_num_hidden_layers=0 if mtp is None else 1,
        vision=config.vision if seen else None,
    )


def _devices(model: PreTrainedModel) -> str:
    """The devices that hold weights, in the order of the stack."""
    return ", ".join(dict.fromkeys(str(parameter.device) for parameter in model.parameters()))
