"""Make a checkpoint with random weights, of the sizes of a published one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qwenlab.errors import BadArgument
from qwenlab.recipes import inputs

if TYPE_CHECKING:
    from qwenlab.checkpoint.anatomy.anatomy import Anatomy


@dataclass(frozen=True)
class MadeCheckpoint:
    """A checkpoint that was written to `folder`: its anatomy, and the bytes of its files."""

    folder: Path
    anatomy: Anatomy
    bytes: int


def make_checkpoint(
    geometry: inputs.GeometryInput,
    *,
    random: bool = False,
    seed: inputs.NonNegative = 0,
    layers: inputs.Positive | None = None,
    out: inputs.FolderPath | None = None,
    vision: bool = False,
    progress: inputs.Progress = True,
) -> MadeCheckpoint:
    """Make a checkpoint with random weights and the sizes of a published one, to measure its costs.

    random  draw the weights at random; required, because the text that such a model writes has no meaning
    seed    of the weights: the same seed gives the same files on every machine
    layers  number of layers, the first of the geometry; by default all. Multiples of 4 keep its pattern of three
            DeltaNet layers and one attention layer
    out     folder to write, which must not exist; by default NAME-random, or NAME-8-layers-random, in this folder
    vision  write the weights of the vision tower too, which qwenlab does not load

    `geometry` is a name in the catalog (`ql.checkpoint.catalogue()`), a folder, or the path of a config.json of the
    families qwen3_5, qwen3_5_moe and qwen3_next. The folder has the published layout: shards of safetensors in bfloat16
    with their index, the published tensor names, the MTP head, a config.json with these layers, and a byte-level
    tokenizer of 272 tokens, because the published ones cannot be made from a config. `qwenlab.open` opens it.

    Weights are not those of a trained model, but have sizes and distributions with which activations, gates, decays,
    attention and routing differ between layers, heads and tokens: docs/decisions/0041-random-weights-from-a-block.md
    lists them. A layer's weights do not depend on the number of layers.

    Writing is about as fast as the disk, and its memory does not grow with the checkpoint. Until the end, the folder is
    NAME.part, which an error or Ctrl-C deletes.

    Raises BadArgument for random=False, `layers` that the geometry lacks, an `out` that exists and an FP8 release;
    UnknownCheckpoint, which lists the catalog; UnsupportedFamily; BadConfig for a vocabulary below 272; DiskTooSmall
    with the largest number of layers that fits.
    """
    if not random:
        raise BadArgument(
            "make_checkpoint writes random weights only: say so with random=True (--random).\n"
            "To get trained weights, download them: hf download Qwen/NAME."
        )
    from qwenlab.checkpoint.anatomy.anatomy import anatomy
    from qwenlab.checkpoint.random_weights.folder import default_folder, write_random_checkpoint  # loads torch

    folder = write_random_checkpoint(
        geometry,
        default_folder(geometry, layers) if out is None else out,
        seed=seed,
        layers=layers,
        vision=vision,
        progress=progress,
    )
    size = sum(file.stat().st_size for file in folder.iterdir())
    return MadeCheckpoint(folder, anatomy(str(folder)), size)
