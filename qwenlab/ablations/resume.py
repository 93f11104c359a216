"""What a sweep has done so far, in memory and, where asked for, in a file that it can go on from."""

from __future__ import annotations

import hashlib
import time
import zipfile
import zlib
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qwenlab.ablations.ablation import Ablation
from qwenlab.errors import BadArgument
from qwenlab.record.whole_files import replacing
from qwenlab.tasks.task import Task

BY_ABLATION = ("loss", "accuracy", "kl", "agreement")
BY_TEXT = ("loss", "accuracy")
_EVERY = 20.0  # seconds
_BROKEN = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)


class ScoreTable:
    """Scores of ablations and of the unedited model, where they are known, and the file that keeps them.

    scores  float64 by name: [ablation, text], and "clean_..." [text]; NaN where nothing is known yet
    done    bool [ablation, text]: what is known
    layers  int [2]: layers run under edits, and those of as many whole passes
    """

    def __init__(self, path: str | PathLike[str] | None, key: str, ablations: int, texts: int) -> None:
        self.path, self.key = None if path is None else Path(path), key
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(BY_ABLATION, (ablations, texts))
        shapes |= {f"clean_{name}": (texts,) for name in BY_TEXT}
        self.scores = {name: np.full(shape, np.nan) for name, shape in shapes.items()}
        self.done = np.zeros((ablations, texts), dtype=bool)
        self.layers = np.zeros(2, dtype=np.int64)
        self._saved = time.monotonic()
        if self.path is not None and self.path.exists():
            self._load(self.path)

    def put_clean(self, texts: Sequence[int], scores: dict[str, torch.Tensor]) -> None:
        """Scores of some texts by the unedited model."""
        for name in BY_TEXT:
            self.scores[f"clean_{name}"][texts] = scores[name].double().cpu().numpy()

    def put(self, ablation: int, texts: Sequence[int], scores: dict[str, torch.Tensor]) -> None:
        """Scores of some texts under an ablation; the file is written now and then."""
        for name in BY_ABLATION:
            self.scores[name][ablation, texts] = scores[name].double().cpu().numpy()
        self.done[ablation, texts] = True
        if time.monotonic() - self._saved > _EVERY:
            self.save()

    def save(self) -> None:
        """Write the file, where there is to be one: whole, or not at all."""
        if self.path is not None:
            arrays: dict[str, Any] = {
                "key": np.array(self.key),
                "done": self.done,
                "layers": self.layers,
                **self.scores,
            }
            with replacing(self.path) as beside, beside.open("wb") as file:
                np.savez(file, **arrays)
        self._saved = time.monotonic()

    def _load(self, path: Path) -> None:
        """Raises BadArgument for what is no such file, or one of another sweep."""
        try:
            with path.open("rb") as file, np.lib.npyio.NpzFile(file, allow_pickle=False) as held:
                key, found = str(held["key"]), {name: held[name] for name in ("done", "layers", *self.scores)}
        except _BROKEN as error:
            raise BadArgument(
                f"sweep(keep={str(path)!r}): this is no file of a sweep, or not all of it ({error}).\n"
                "Give another file, or remove it to begin anew."
            ) from error
        if key != self.key:
            raise BadArgument(
                f"sweep(keep={str(path)!r}): this file is of another sweep: another checkpoint, precision, or list of "
                "ablations or tasks.\nGive another file, or remove it to begin anew."
            )
        self.done, self.layers = found.pop("done"), found.pop("layers")
        self.scores = found


def key_of(model: Sequence[str], ablations: Sequence[Ablation], tasks: Sequence[Task]) -> str:
    """A hash of what scores depend on.

    model  its hash, its precision, the edits that it is already under
    """
    edits = [(each.name, each.edit) for each in ablations]
    texts = [(task.name, task.tokens, task.asked) for task in tasks]
    return hashlib.sha256(repr((list(model), edits, texts)).encode()).hexdigest()
