"""Open the store at a folder's path or an object store's address."""

from __future__ import annotations

import os
from pathlib import Path

from qwenlab.experiments.store.object_store import ObjectStore
from qwenlab.experiments.store.store import FolderStore, Store

DEFAULT = "runs"
StoreLike = str | os.PathLike[str] | Store | None


def store_at(url: StoreLike = None) -> Store:
    """Open the store in a folder, or at an address that fsspec knows ("s3://bucket/runs"); an open one is returned.

    url  by default the environment variable QWENLAB_STORE, or else the folder `runs` in the working directory

    Raises NewerStore, and MissingExtra if the address needs a package that is not installed.
    """
    if url is not None and not isinstance(url, (str, os.PathLike)):
        return url
    address = str(url or os.environ.get("QWENLAB_STORE") or DEFAULT)
    if "://" in address and not address.startswith("file://"):
        return ObjectStore(address)
    return FolderStore(Path(address.removeprefix("file://")))
