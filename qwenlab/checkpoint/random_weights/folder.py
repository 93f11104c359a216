"""Write a whole checkpoint with random weights to a folder."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm.auto import tqdm

from qwenlab.arguments import integer
from qwenlab.checkpoint.anatomy.anatomy import config_file
from qwenlab.checkpoint.anatomy.tensors import tensors
from qwenlab.checkpoint.config import TextConfig, read_config
from qwenlab.checkpoint.random_weights.block import RandomBlock
from qwenlab.checkpoint.random_weights.byte_tokenizer import save_tokenizer
from qwenlab.checkpoint.random_weights.geometry import random_config
from qwenlab.checkpoint.random_weights.shard_files import data_bytes, shard_files, write_index
from qwenlab.errors import BadArgument, DiskTooSmall

_SMALL_FILES = 2**20
"""Upper bound of the bytes of config.json, index and tokenizer."""

_WRITTEN = re.compile(r"model-\d+-of-\d+\.safetensors|model\.safetensors\.index\.json|(tokenizer|config)\w*\.json")


def write_random_checkpoint(
    geometry: str | Path,
    folder: str | Path,
    *,
    seed: int = 0,
    layers: int | None = None,
    vision: bool = False,
    progress: bool = True,
) -> Path:
    """Write a checkpoint with random weights in the published layout, and return its folder.

    Arguments and errors are those of `qwenlab.recipes.make_checkpoint`. Memory does not grow with the checkpoint:
    64 MiB of random levels are read at a place that depends on the name of each tensor, and mapped to its distribution.
    """
    integer("make_checkpoint", "seed", seed)
    raw = random_config(geometry, layers, vision=vision)
    target = Path(folder).expanduser().absolute()
    config = read_config(raw, name=target.name)
    shards = shard_files(tensors(config))
    if target.exists():
        raise BadArgument(f"{target} exists already.\nDelete it, or choose another folder with out (--out).")
    _check_space(config, target, sum(shard.bytes for shard in shards) + _SMALL_FILES)
    with _whole(target) as part:
        block, size = RandomBlock(seed), sum(data_bytes(shard.tensors) for shard in shards)
        with tqdm(total=size, desc=target.name, unit="B", unit_scale=True, disable=not progress) as bar:
            for shard in shards:
                shard.write(part, config, block, bar)
        write_index(shards, part)
        save_tokenizer(part)
        (part / "config.json").write_text(json.dumps(raw, indent=2) + "\n")
    return target


def default_folder(geometry: str | Path, layers: int | None) -> Path:
    """NAME-random, or NAME-8-layers-random for the first 8 layers, in the current folder."""
    name = read_config(config_file(str(geometry))).name
    return Path(f"{name}-random" if layers is None else f"{name}-{layers}-layers-random")


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """Context manager that yields the folder NAME.part, renamed to NAME at the end, or deleted on an error.

    A killed process leaves NAME.part, without a config.json; the next one deletes it and begins again.
    """
    part = target.with_name(f"{target.name}.part")
    if part.exists():
        _require_ours(part)
        shutil.rmtree(part)
    part.mkdir(parents=True)
    try:
        yield part
        part.rename(target)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _require_ours(part: Path) -> None:
    others = [] if part.is_dir() else [part.name]
    others = others or sorted(file.name for file in part.iterdir() if not _WRITTEN.fullmatch(file.name))
    if others:
        raise BadArgument(
            f"{part} is where the checkpoint is written until it is complete, but has {others[0]}.\n"
            "Move it, or choose another folder with out (--out)."
        )


def _check_space(config: TextConfig, target: Path, needed: int) -> None:
    disk = next(parent for parent in target.parents if parent.exists())
    free = shutil.disk_usage(disk).free
    if needed <= free:
        return
    sizes = list(tensors(config))
    outside = data_bytes(tensor for tensor in sizes if tensor.layer is None) + _SMALL_FILES
    fits = 0
    for layer in range(len(config.layer_types)):
        outside += data_bytes(tensor for tensor in sizes if tensor.layer == layer)
        fits += outside <= free
    fix = f"The largest number of layers that fits is {fits}: layers={fits} (--layers {fits})." if fits else ""
    raise DiskTooSmall(
        f"{target} needs {needed:,} bytes, but its disk has {free:,} free.\n"
        + (fix or "Not even one layer fits: choose a folder on another disk, or a smaller geometry.")
    )
