"""One self-contained HTML page of an experiment."""

from __future__ import annotations

from pathlib import Path

from qwenlab.runs.find import StoreLike


def report(experiment: str, out: str | Path | None = None, *, store: StoreLike = None) -> Path:
    """Write the page."""
    raise NotImplementedError(experiment, out, store)
