"""The files that a recipe saves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Saved:
    """Files that a recipe saved in `folder`: a recording, and figures of it."""

    folder: Path
    recording: Path
    figures: tuple[Path, ...]


def save_figures(figures: Iterable[tuple[str, Any]], folder: Path) -> tuple[Path, ...]:
    """Save each figure as <name>.png in `folder`, as it is drawn, and return the paths."""
    paths = []
    for name, figure in figures:
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=150)
    return tuple(paths)
