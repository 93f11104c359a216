"""The scores of a sweep so far, in memory and optionally in a file from which the sweep can resume."""

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

from qwenlab.ablations.ablation import Ablation
from qwenlab.ablations.scoring import BatchScores
from qwenlab.errors import BadArgument
from qwenlab.record.whole_files import replacing
from qwenlab.tasks.task import Task

BY_ABLATION = ("loss", "accuracy", "kl", "agreement")
BY_TEXT = ("loss", "accuracy")
_SAVE_EVERY = 20.0  # seconds
_BROKEN = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)


class ScoreTable:
    """Scores of ablations [ablation, text] and of the model without them ("clean_..." [text]), and their file.

    `done` [ablation, text] says which are computed; `layers` counts layers run under ablations, and in whole passes.
    """

    def __init__(
        self,
        path: str | PathLike[str] | None,
        key: str,
        ablations: int,
        texts: int,
        names: Sequence[str] = BY_ABLATION,
    ) -> None:
        self.path, self.key = None if path is None else Path(path), key
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(names, (ablations, texts))
        shapes |= {f"clean_{name}": (texts,) for name in BY_TEXT}
        self.scores = {name: np.full(shape, np.nan) for name, shape in shapes.items()}
        self.done = np.zeros((ablations, texts), dtype=bool)
        self.layers = np.zeros(2, dtype=np.int64)
        self._saved = time.monotonic()
        if self.path is not None and self.path.exists():
            self._load(self.path)

    @property
    def complete(self) -> np.ndarray:
        """bool [text]: scored under every ablation."""
        return np.all(self.done, axis=0)

    def missing(self, texts: Sequence[int]) -> list[int]:
        """The ablations under which some of these texts are not scored."""
        indices: list[int] = np.flatnonzero(~self.done[:, list(texts)].all(axis=1)).tolist()
        return indices

    def put(self, found: BatchScores) -> None:
        """Store the scores of some texts; write the file at most every 20 seconds."""
        texts = list(found.texts)
        if found.ablation is None:
            for name in BY_TEXT:
                self.scores[f"clean_{name}"][texts] = found.scores[name]
            return
        for name in self.scores.keys() & found.scores.keys():
            self.scores[name][found.ablation, texts] = found.scores[name]
        self.layers += found.layers
        self.done[found.ablation, texts] = True
        if time.monotonic() - self._saved > _SAVE_EVERY:
            self.save()

    def save(self) -> None:
        """Write the file, if there is one, in one step."""
        if self.path is not None:
            arrays: dict[str, Any] = {"key": np.array(self.key), "done": self.done, "layers": self.layers} | self.scores
            with replacing(self.path) as temporary, temporary.open("wb") as file:
                np.savez(file, **arrays)
        self._saved = time.monotonic()

    def _load(self, path: Path) -> None:
        """Raises BadArgument for another kind of file, a damaged one, or one of another sweep."""
        try:
            with path.open("rb") as file, np.lib.npyio.NpzFile(file, allow_pickle=False) as arrays:
                key, loaded = str(arrays["key"]), {name: arrays[name] for name in ("done", "layers", *self.scores)}
        except _BROKEN as error:
            raise BadArgument(
                f"sweep(resume={str(path)!r}): this file is damaged, or not from a sweep ({error}).\n"
                "Give another file, or remove it to start again."
            ) from error
        if key != self.key:
            raise BadArgument(
                f"sweep(resume={str(path)!r}): this file is from another sweep: another checkpoint, precision, or list "
                "of ablations or tasks.\nGive another file, or remove it to start again."
            )
        self.done, self.layers = loaded.pop("done"), loaded.pop("layers")
        self.scores = loaded


def key_of(
    model: Sequence[str], ablations: Sequence[Ablation], tasks: Sequence[Task], scores: Sequence[str] = BY_ABLATION
) -> str:
    """A hash of everything that the scores depend on, and which they are; `model` is its hash, precision and active
    interventions."""
    named = [(ablation.name, ablation.intervention) for ablation in ablations]
    texts = [(task.name, task.tokens, task.asked) for task in tasks]
    which = [] if tuple(scores) == BY_ABLATION else [tuple(scores)]
    return hashlib.sha256(repr((list(model), named, texts, *which)).encode()).hexdigest()
