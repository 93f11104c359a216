"""Delete from a store the attempts that did not finish."""

from __future__ import annotations

import shutil
from pathlib import Path

from qwenlab.errors import BadArgument
from qwenlab.experiments.store.find import UNFINISHED, find
from qwenlab.experiments.store.location import StoreLike, store_at
from qwenlab.experiments.store.store import FolderStore


def prune(experiment: str | None = None, *, store: StoreLike = None, delete: bool = False) -> list[Path]:
    """The folders of attempts that failed, were interrupted or broke off. With `delete`, delete them.

    Attempts that are running and finished runs are not among them.
    """
    store = store_at(store)
    if not isinstance(store, FolderStore):
        raise BadArgument(f"{store.url} is not a folder: delete there with the object store's own tools.")
    runs = find(experiment, state=None, store=store)
    folders = [store.root / folder for folder in runs["folder"][runs["state"].isin(set(UNFINISHED) - {"running"})]]
    if delete:
        for folder in folders:
            shutil.rmtree(folder)
    return folders
