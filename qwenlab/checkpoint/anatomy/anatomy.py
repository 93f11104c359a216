"""Anatomy of a checkpoint: layers, parameters, memory and FLOPs, from its config, without weights or torch."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwenlab.arguments import choice
from qwenlab.checkpoint.anatomy import costs, display
from qwenlab.checkpoint.anatomy.tensors import LAYER_PARTS, PARTS, Tensor, tensors
from qwenlab.checkpoint.config import TextConfig, read_config
from qwenlab.checkpoint.families import ATTENTION, KINDS
from qwenlab.checkpoint.source import toys
from qwenlab.errors import BadArgument, UnknownCheckpoint

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from rich.console import RenderableType

PHASES = {"prefill": "chunk", "decode": "recurrent"}
"""The two phases of generation, and the form of the delta rule that transformers runs in each."""


@dataclasses.dataclass(frozen=True, repr=False)
class Anatomy:
    """The layers of a checkpoint by kind, its parameters by part, and its memory, FLOPs and bytes by context length.

    Parameters include the vision tower and the MTP head; costs are those of the text stack. See
    `qwenlab.checkpoint.anatomy.costs` for the counting conventions.
    """

    config: TextConfig

    @property
    def name(self) -> str:
        """The name of the checkpoint."""
        return self.config.name

    @property
    def layer_types(self) -> tuple[str, ...]:
        """The kind of each layer, in order: "linear_attention" (DeltaNet) or "full_attention"."""
        return self.config.layer_types

    def layers(self, kind: str) -> tuple[int, ...]:
        """Indices of the layers of one kind."""
        choice("layers", "kind", kind, KINDS)
        return tuple(layer for layer, layer_type in enumerate(self.layer_types) if layer_type == kind)

    @cached_property
    def tensors(self) -> tuple[Tensor, ...]:
        """Every tensor of the checkpoint, with its name in the files."""
        return tuple(tensors(self.config))

    @cached_property
    def parameters(self) -> dict[str, int]:
        """Number of parameters by part; a tied lm_head counts once, as embedding."""
        return {part: sum(tensor.size for tensor in self.tensors if tensor.part == part) for part in PARTS}

    @cached_property
    def active_parameters(self) -> dict[str, int]:
        """Parameters by part that the text stack uses for one token; only the chosen experts count."""
        text = [part for part in PARTS if part not in ("vision", "mtp")]
        size = costs.active_size
        return {part: sum(size(tensor, self.config) for tensor in self.tensors if tensor.part == part) for part in text}

    @property
    def total(self) -> int:
        """Number of parameters of the checkpoint."""
        return sum(self.parameters.values())

    @property
    def active_with_embedding(self) -> int:
        """Parameters active for one token, the whole embedding table included."""
        return sum(self.active_parameters.values())

    @property
    def active(self) -> int:
        """Parameters active for one token, without the input embedding: a token reads only one of its rows.

        This is the number in names such as "35B-A3B". A tied embedding counts, because it is also the lm_head.
        """
        embedding = 0 if self.config.tie_word_embeddings else self.active_parameters["embedding"]
        return self.active_with_embedding - embedding

    def weight_bytes(self, dtype: str | None = None) -> int:
        """Bytes of all tensors as stored (with the scales of FP8 releases), or in memory as `dtype`."""
        return sum(costs.stored_bytes(tensor, self.config, dtype) for tensor in self.tensors)

    def kv_bytes(self, context: int, batch: int = 1, dtype: str | None = None) -> int:
        """Bytes of the KV cache for `batch` sequences of `context` tokens; `dtype` replaces that of the config."""
        layers = self.layer_types.count(ATTENTION)
        return _count("batch", batch) * layers * costs.kv_bytes(self.config, _count("context", context), dtype)

    def mtp_kv_bytes(self, context: int, batch: int = 1, dtype: str | None = None) -> int:
        """Bytes of the MTP head's own KV cache, as for `kv_bytes`; 0 without a head."""
        layers = self.config.mtp_num_hidden_layers
        return _count("batch", batch) * layers * costs.kv_bytes(self.config, _count("context", context), dtype)

    def recurrent_bytes(self, batch: int = 1) -> int:
        """Bytes of the recurrent states, always float32, at any context length."""
        return _count("batch", batch) * costs.recurrent_bytes(self.config)

    def convolution_bytes(self, batch: int = 1, dtype: str | None = None) -> int:
        """Bytes of the convolution states, at any context length."""
        return _count("batch", batch) * costs.convolution_bytes(self.config, dtype)

    def state_bytes(self, batch: int = 1, dtype: str | None = None) -> int:
        """Bytes of the recurrent and the convolution states."""
        return self.recurrent_bytes(batch) + self.convolution_bytes(batch, dtype)

    def flops(
        self, phase: str = "prefill", *, context: int, batch: int = 1, rule: str | None = None, logits: str = "all"
    ) -> costs.Cost:
        """FLOPs of one forward pass, by part.

        phase    "prefill" reads `context` tokens into empty caches; "decode" adds one token, the `context`-th, to each
                 sequence
        rule     form of the delta rule, "chunk" or "recurrent"; by default the one transformers runs in this phase
        logits   the tokens of a sequence for which the lm_head runs: "all" or "last"
        """
        step = self._pass(phase, context, batch)
        rule = choice("flops", "rule", rule or PHASES[phase], PHASES.values())
        return costs.flops(self.config, step, rule=rule, logits=choice("flops", "logits", logits, ("all", "last")))

    def bytes_moved(
        self, phase: str = "prefill", *, context: int, batch: int = 1, dtype: str | None = None
    ) -> costs.Cost:
        """Minimum bytes that one forward pass moves, by part; `dtype` replaces that of weights and caches."""
        return costs.bytes_moved(self.config, self._pass(phase, context, batch), dtype=dtype)

    def _pass(self, phase: str, context: int, batch: int) -> costs.CostedPass:
        choice("anatomy", "phase", phase, PHASES)
        context, batch = _count("context", context), _count("batch", batch)
        return costs.CostedPass(context, 0, batch) if phase == "prefill" else costs.CostedPass(1, context - 1, batch)

    def table(self) -> pd.DataFrame:
        """DataFrame with one row per layer: its kind, and its parameters by part, in total and active per token."""
        import pandas as pd

        rows = [dict.fromkeys((*LAYER_PARTS, "total", "active"), 0) for _ in self.layer_types]
        for tensor in self.tensors:
            if tensor.layer is not None:
                row = rows[tensor.layer]
                row[tensor.part] += tensor.size
                row["total"] += tensor.size
                row["active"] += costs.active_size(tensor, self.config)
        table = pd.DataFrame(rows, index=pd.RangeIndex(len(rows), name="layer"))
        table.insert(0, "kind", self.layer_types)
        return table

    def memory(self, contexts: Iterable[int], *, batch: int = 1, dtype: str | None = None) -> xr.Dataset:
        """Bytes of the caches `kv` and `mtp_kv` and of `recurrent_state` and `convolution_state`, all [context]."""
        import xarray as xr

        lengths = list(contexts)
        stores = {
            "kv": [self.kv_bytes(length, batch, dtype) for length in lengths],
            "mtp_kv": [self.mtp_kv_bytes(length, batch, dtype) for length in lengths],
            "recurrent_state": [self.recurrent_bytes(batch)] * len(lengths),
            "convolution_state": [self.convolution_bytes(batch, dtype)] * len(lengths),
        }
        return xr.Dataset(
            {store: ("context", values, {"units": "B"}) for store, values in stores.items()},
            coords={"context": ("context", lengths, {"units": "token"})},
            attrs={"checkpoint": self.name, "batch": batch, "dtype": dtype or self.config.dtype},
        )

    def cost(
        self, contexts: Iterable[int], *, batch: int = 1, rule: str | None = None, dtype: str | None = None
    ) -> xr.Dataset:
        """`flops` and `bytes` per token, both [phase, context, part]; keywords as in `flops` and `bytes_moved`."""
        import xarray as xr

        lengths, parts = list(contexts), list(self.active_parameters)

        def table(phase: str, cost: Callable[..., costs.Cost], **keywords: str | None) -> list[list[float]]:
            per_token = [cost(phase, context=length, batch=batch, **keywords).per_token for length in lengths]
            return [[amounts.get(part, 0.0) for part in parts] for amounts in per_token]

        flops = [table(phase, self.flops, rule=rule) for phase in PHASES]
        moved = [table(phase, self.bytes_moved, dtype=dtype) for phase in PHASES]
        dims = ("phase", "context", "part")
        return xr.Dataset(
            {"flops": (dims, flops, {"units": "FLOP/token"}), "bytes": (dims, moved, {"units": "B/token"})},
            coords={"phase": list(PHASES), "context": ("context", lengths, {"units": "token"}), "part": parts},
            attrs={"checkpoint": self.name, "batch": batch, "rule": rule or "by phase", "chunk": costs.CHUNK},
        )

    def __rich__(self) -> RenderableType:
        return display.terminal(self)

    def __repr__(self) -> str:
        return display.plain(self)

    def _repr_html_(self) -> str:
        return display.html(self)


def anatomy(source: str | Path | Mapping[str, Any] | object, *, strict: bool = False) -> Anatomy:
    """Return the anatomy of a checkpoint, from its config.

    source  a toy's name, a folder or a config.json, a name in the catalog ("Qwen3.6-27B", with or without "Qwen/"), a
            config dict, a transformers config or model, or a Checkpoint
    strict  raise UnknownConfigField for unknown config fields; by default they only warn

    If a model has a dtype, it replaces that of the config. Raises UnknownCheckpoint for an unknown name, and the errors
    of `read_config`.
    """
    if isinstance(known := getattr(source, "anatomy", None), Anatomy):
        return known
    if isinstance(source, str):
        return Anatomy(read_config(config_file(source), strict=strict))
    config = read_config(getattr(source, "config", source), strict=strict)
    dtype = getattr(source, "dtype", None) if hasattr(source, "config") else None
    return Anatomy(dataclasses.replace(config, dtype=str(dtype).removeprefix("torch.")) if dtype else config)


def catalogue() -> dict[str, Path]:
    """Return the names that `anatomy` knows without a download, and their config files."""
    published = {file.stem: file for file in sorted((Path(__file__).parents[1] / "catalog").glob("*.json"))}
    return published | {name: folder / "config.json" for name, folder in toys().items()}


def config_file(name: str) -> Path:
    """The config file of a toy, a folder or file, or a catalogued name; searched in this order, as by `open`."""
    path, known = Path(name).expanduser(), catalogue()
    if name not in toys() and (path.is_file() or (path / "config.json").is_file()):
        return path
    if (short := name.removeprefix("Qwen/")) in known:
        return known[short]
    near = difflib.get_close_matches(short, known, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    raise UnknownCheckpoint(
        f"{name!r} is neither a folder with a config.json nor a name in the catalog.\n"
        f"{hint}The catalog contains {', '.join(known)}."
    )


def _count(argument: str, value: int) -> int:
    if value < 1:
        raise BadArgument(f"{argument}={value!r}: give a number that is at least 1.")
    return value
