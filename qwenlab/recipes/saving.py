"""Save the recording and the figures of a recipe."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwenlab.record.recording import Recording


@dataclass(frozen=True)
class Saved:
    """Files that a recipe saved in `folder`: a recording, and figures of it."""

    folder: Path
    recording: Path
    figures: tuple[Path, ...]


def save(recording: Recording, figures: Iterable[tuple[str, Any]], out: str | Path) -> dict[str, Any]:
    """Save recording.nc and each figure as <name>.png in `out`, as it is drawn. Returns the fields of `Saved`."""
    folder = Path(out).resolve()
    saved = recording.save(folder / "recording.nc")
    paths = []
    for name, figure in figures:
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=150)
    return dict(folder=folder, recording=saved, figures=tuple(paths))
