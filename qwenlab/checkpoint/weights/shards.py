"""The safetensors shards of a folder: found, checked against their headers, read tensor by tensor."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import safe_open

from qwenlab.errors import BrokenWeights, MissingShard, NonFiniteWeights, NoWeights, PickleWeights, TruncatedShard

SMALL = 2**30
"""Bytes of weights up to which opening a checkpoint reads every value: to look for NaN and to hash them."""

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor as the header of its shard describes it."""

    shard: Path
    dtype: str  # in safetensors' words: "BF16", "F32", "F8_E4M3"
    shape: tuple[int, ...]
    start: int  # of its bytes, from the beginning of the file
    end: int


@dataclass(frozen=True)
class Weights:
    """All tensors of a checkpoint folder, by name."""

    folder: Path
    tensors: Mapping[str, StoredTensor]

    @cached_property
    def shards(self) -> tuple[Path, ...]:
        """The files, sorted by name."""
        return tuple(sorted({stored.shard for stored in self.tensors.values()}))

    @cached_property
    def size(self) -> int:
        """Bytes of all shards."""
        return sum(shard.stat().st_size for shard in self.shards)

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """The named tensors, on the CPU, as they are stored; each shard is opened once."""
        by_shard: dict[Path, list[str]] = {}
        for name in names:
            by_shard.setdefault(self.tensors[name].shard, []).append(name)
        for shard, held in by_shard.items():
            with safe_open(shard, framework="pt") as file:
                for name in held:
                    yield name, file.get_tensor(name)

    def require_finite(self) -> None:
        """Read every value; raises NonFiniteWeights naming each tensor that has a NaN or an infinite one."""
        bad = []
        for name, tensor in self.read(self.tensors):
            if tensor.is_floating_point() and (count := _count_nonfinite(tensor)):
                bad.append(f"{name} in {self.tensors[name].shard.name}: {count:,} of {tensor.numel():,} values")
        if bad:
            raise NonFiniteWeights(
                f"{self.folder} has weights that are NaN or infinite:\n  {some(bad)}\n"
                "Fetch the shard again, or go back to a checkpoint from before they appeared."
            )


def read_weights(folder: Path) -> Weights:
    """Read the headers of all shards of a folder, and no weight.

    Raises NoWeights, PickleWeights, MissingShard, TruncatedShard, and BrokenWeights where index and shards disagree.
    """
    if (folder / _SINGLE).is_file():  # before the index, as transformers looks
        return Weights(folder, _read_header(folder / _SINGLE))
    index = folder / _INDEX
    if not index.is_file():
        _refuse(folder)
    try:
        weight_map: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BrokenWeights(f"{index} is no index: it has no weight_map that can be read.\nFetch it again.") from error
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        raise MissingShard(
            f"{folder} lacks {len(missing)} of the {len(shards)} shards that {_INDEX} names:\n  {some(missing)}\n"
            "Fetch them; `hf download` goes on where it stopped."
        )
    tensors = {name: stored for shard in shards for name, stored in _read_header(folder / shard).items()}
    lost = [f"{name} (in {shard})" for name, shard in weight_map.items() if name not in tensors]
    if lost:
        raise BrokenWeights(
            f"{folder}: {_INDEX} names tensors that the shards do not hold:\n  {some(lost)}\n"
            "Index and shards are of different versions: fetch both again."
        )
    return Weights(folder, tensors)


def _read_header(shard: Path) -> dict[str, StoredTensor]:
    """What a shard holds: 8 bytes, the length of a JSON header, then the header, then the data.

    Source: the format's description in huggingface/safetensors.
    """
    size = shard.stat().st_size
    with shard.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        try:
            header: dict[str, Any] = json.loads(file.read(start - 8)) if start <= size else {}
        except ValueError:
            header = {}
    header.pop("__metadata__", None)
    if not header:
        raise TruncatedShard(
            f"{shard} is no whole safetensors file: in its {size:,} bytes no header can be read.\n"
            "Fetch it again; a few hundred bytes are a Git LFS pointer, which `git lfs pull` replaces by the weights."
        )
    tensors = {
        name: StoredTensor(shard, held["dtype"], tuple(held["shape"]), *(start + at for at in held["data_offsets"]))
        for name, held in header.items()
    }
    due = max(stored.end for stored in tensors.values())
    if size != due:
        raise TruncatedShard(
            f"{shard} has {size:,} bytes, but its header describes {due:,}.\n"
            "The file was cut short or overwritten: fetch it again."
        )
    return tensors


def _refuse(folder: Path) -> NoReturn:
    """Say what the folder has in place of weights that can be read."""
    pickles = sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern))
    loose = sorted(file.name for file in folder.glob("*.safetensors"))
    if loose:
        raise NoWeights(f"{folder} has shards ({some(loose, ', ')}) but no {_INDEX}.\nFetch the index as well.")
    if pickles:
        raise PickleWeights(
            f"{folder} has only pickled weights ({some(pickles, ', ')}), which can run code when opened: refused.\n"
            "Convert them where you trust them: load the model with transformers, save_pretrained writes safetensors."
        )
    raise NoWeights(f"{folder} has neither {_SINGLE} nor {_INDEX}.\nGive a folder with safetensors weights.")


def _count_nonfinite(tensor: torch.Tensor) -> int:
    wide = tensor.float() if tensor.itemsize == 1 else tensor  # torch has no isfinite for 8-bit floats
    return int(wide.numel() - torch.isfinite(wide).sum())


def some(names: list[str], between: str = "\n  ", most: int = 8) -> str:
    """A list cut to what can be read."""
    shown = names[:most] + ([f"and {len(names) - most:,} more"] if len(names) > most else [])
    return between.join(shown)
