"""Find the safetensors shards of a folder, check them against their headers, and read tensors from them."""

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
"""Up to this many bytes of weights, opening a checkpoint reads every value, to find NaN and to hash them."""

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor, as described in the header of its shard."""

    shard: Path
    dtype: str  # safetensors' name: "BF16", "F32", "F8_E4M3"
    shape: tuple[int, ...]
    start: int  # byte offsets in the file
    end: int


@dataclass(frozen=True)
class Weights:
    """All tensors of a checkpoint folder, by name."""

    folder: Path
    tensors: Mapping[str, StoredTensor]

    @cached_property
    def shards(self) -> tuple[Path, ...]:
        """The shard files, sorted by name."""
        return tuple(sorted({stored.shard for stored in self.tensors.values()}))

    @cached_property
    def size(self) -> int:
        """Total bytes of the shards."""
        return sum(shard.stat().st_size for shard in self.shards)

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the named tensors, on the CPU, as stored; each shard is opened once."""
        by_shard: dict[Path, list[str]] = {}
        for name in names:
            by_shard.setdefault(self.tensors[name].shard, []).append(name)
        for shard, shard_names in by_shard.items():
            with safe_open(shard, framework="pt") as file:
                for name in shard_names:
                    yield name, file.get_tensor(name)

    def require_finite(self) -> None:
        """Read every value; raises NonFiniteWeights with the name of each tensor that has NaN or infinite values."""
        bad = []
        for name, tensor in self.read(self.tensors):
            wide = tensor.float() if tensor.itemsize == 1 else tensor  # torch has no isfinite for 8-bit floats
            if count := int((~torch.isfinite(wide)).sum()):
                bad.append(f"{name} in {self.tensors[name].shard.name}: {count:,} of {tensor.numel():,} values")
        if bad:
            raise NonFiniteWeights(
                f"{self.folder} has weights that are NaN or infinite:\n  {shorten(bad)}\n"
                "Download the shard again, or use an earlier checkpoint, from before they appeared."
            )


def read_weights(folder: Path) -> Weights:
    """Read the headers of all shards of a folder, and no weight.

    Raises NoWeights, PickleWeights, MissingShard, TruncatedShard, and BrokenWeights where index and shards disagree.
    """
    if (folder / _SINGLE).is_file():  # before the index, as transformers looks
        return Weights(folder, _read_header(folder / _SINGLE))
    index = folder / _INDEX
    if not index.is_file():
        _raise_no_weights(folder)
    try:
        weight_map: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BrokenWeights(f"{index} is not an index: it has no readable weight_map.\nDownload it again.") from error
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        raise MissingShard(
            f"{folder} lacks {len(missing)} of the {len(shards)} shards in {_INDEX}:\n  {shorten(missing)}\n"
            "Download them; `hf download` continues where it stopped."
        )
    tensors = {name: stored for shard in shards for name, stored in _read_header(folder / shard).items()}
    lost = [f"{name} (in {shard})" for name, shard in weight_map.items() if name not in tensors]
    if lost:
        raise BrokenWeights(
            f"{folder}: {_INDEX} names tensors that the shards do not contain:\n  {shorten(lost)}\n"
            "Index and shards have different versions: download both again."
        )
    return Weights(folder, tensors)


def _read_header(shard: Path) -> dict[str, StoredTensor]:
    """Read the header of a shard: 8 bytes with the length of a JSON header, the header, then the data.

    Source: description of the format in huggingface/safetensors.
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
            f"{shard} is not a complete safetensors file: its {size:,} bytes contain no readable header.\n"
            "Download it again. A file of a few hundred bytes is a Git LFS pointer: `git lfs pull` fetches the weights."
        )
    tensors = {
        name: StoredTensor(shard, entry["dtype"], tuple(entry["shape"]), *(start + at for at in entry["data_offsets"]))
        for name, entry in header.items()
    }
    expected = max(stored.end for stored in tensors.values())
    if size != expected:
        raise TruncatedShard(
            f"{shard} has {size:,} bytes, but its header describes {expected:,}.\n"
            "The file was truncated or overwritten: download it again."
        )
    return tensors


def _raise_no_weights(folder: Path) -> NoReturn:
    """Raise the error for a folder without readable weights; the message says what the folder contains instead."""
    pickles = sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern))
    shards = sorted(file.name for file in folder.glob("*.safetensors"))
    if shards:
        raise NoWeights(f"{folder} has shards ({shorten(shards, ', ')}) but no {_INDEX}.\nDownload the index as well.")
    if pickles:
        raise PickleWeights(
            f"{folder} has only pickled weights ({shorten(pickles, ', ')}), which can run code when opened.\n"
            "Convert them where you trust them: load the model with transformers; save_pretrained writes safetensors."
        )
    raise NoWeights(f"{folder} has neither {_SINGLE} nor {_INDEX}.\nPass a folder with safetensors weights.")


def shorten(names: list[str], separator: str = "\n  ", limit: int = 8) -> str:
    """Join the first names of a list for a message, and count the others."""
    shown = names[:limit] + ([f"and {len(names) - limit:,} more"] if len(names) > limit else [])
    return separator.join(shown)
