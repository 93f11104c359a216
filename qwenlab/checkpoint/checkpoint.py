"""An open checkpoint: its model, tokenizer, MTP head, anatomy and provenance."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from qwenlab.checkpoint.anatomy.anatomy import Anatomy
from qwenlab.checkpoint.mtp_head import MtpHead
from qwenlab.checkpoint.streaming.memory_size import size_text
from qwenlab.checkpoint.streaming.stream import streamed_layers
from qwenlab.checkpoint.weights.fingerprint import fingerprint_in_memory
from qwenlab.checkpoint.weights.loaded import require_loaded
from qwenlab.errors import BadArgument, NoMtpHead


@dataclass(frozen=True, slots=True)
class Facts:
    """Provenance of a checkpoint: the facts that recordings store."""

    source: str  # the argument of `open`
    folder: str
    revision: str | None  # the commit of a hub checkpoint
    hash: str  # of config.json and the weight files: see `qwenlab.checkpoint.weights.fingerprint`
    family: str
    parameters: int  # of the target model and the MTP head
    dtype: str
    device: str
    torch: str
    transformers: str


@dataclass(frozen=True, eq=False, repr=False)
class Checkpoint:
    """An open checkpoint. The model is a plain transformers model: use, train or change it as usual."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    mtp: MtpHead | None  # None: the checkpoint has no `mtp.*` weights
    anatomy: Anatomy
    facts: Facts
    as_opened: str  # `fingerprint_in_memory` of the model

    def hash_now(self) -> str:
        """Return `facts.hash` if the model is unchanged since it was opened, else a hash of the model in memory.

        A model that was trained, edited in place or converted to another dtype is another model: recordings store this
        hash. A trained MTP head does not change it; recordings of drafts also store the hash of the head.
        """
        now = fingerprint_in_memory(self.model)
        return self.facts.hash if now == self.as_opened else now

    def require_mtp(self) -> MtpHead:
        """Return the MTP head; raises NoMtpHead if the checkpoint has none."""
        if self.mtp is None:
            raise NoMtpHead(
                f"{self.facts.source} has no MTP head: no tensor name in its shards starts with mtp.\n"
                "Open the published checkpoint: a copy that transformers saved does not contain the head."
            )
        return self.mtp

    def __repr__(self) -> str:
        facts, head = self.facts, "without MTP head" if self.mtp is None else "with MTP head"
        return (
            f"Checkpoint({facts.source!r}: {facts.family}, {len(self.anatomy.layer_types)} layers, "
            f"{facts.parameters:,} parameters, {facts.dtype} on {facts.device}{self._streamed()}, {head})"
        )

    def __str__(self) -> str:
        return f"{self.anatomy}\n\n{self._origin()}"

    def _repr_html_(self) -> str:
        return f'{self.anatomy._repr_html_()}<div style="color:#8A8A8A">{escape(self._origin())}</div>'

    def _origin(self) -> str:
        facts = self.facts
        kind, digest = facts.hash.split(":")
        return f"{facts.source} · {facts.dtype} on {facts.device}{self._streamed()} · {kind} {digest[:12]}"

    def _streamed(self) -> str:
        stream = streamed_layers(self.model)
        return "" if stream is None else f", streamed within {size_text(stream.memory)}"


def require_checkpoint(checkpoint: Any) -> None:
    """Raise BadArgument for a model instead of a Checkpoint, and HalfLoadedModel for one that lacks weights."""
    if isinstance(checkpoint, nn.Module):
        raise BadArgument(
            f"Expected a Checkpoint, with its tokenizer and facts; got a {type(checkpoint).__name__}.\n"
            "Pass the Checkpoint that qwenlab.open returned, not its .model."
        )
    if isinstance(checkpoint, Checkpoint):
        require_loaded(checkpoint.model)
