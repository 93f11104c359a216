"""Thin a store out: what did not finish goes."""

from __future__ import annotations

import shutil
from pathlib import Path

from qwenlab.errors import BadArgument
from qwenlab.experiments.store.find import StoreLike, find, opened
from qwenlab.experiments.store.store import FolderStore
from qwenlab.experiments.store.table import UNFINISHED


def prune(experiment: str | None = None, *, store: StoreLike = None, delete: bool = False) -> list[Path]:
    """The folders of attempts that failed, were interrupted or broke off, and, if asked, delete them.

    Those that are running stay, and so does all that finished.
    """
    kept = opened(store)
    if not isinstance(kept, FolderStore):
        raise BadArgument(f"{kept.url} is not a folder: delete there with the store's own tools.")
    found = find(experiment, state=None, store=kept)
    folders = [kept.root / folder for folder in found["folder"][found["state"].isin(set(UNFINISHED) - {"running"})]]
    if delete:
        for folder in folders:
            shutil.rmtree(folder)
    return folders
