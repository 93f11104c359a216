"""A store at an address that fsspec knows: runs are worked on here, and come there whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec

from qwenlab.runs.store import FACTS, FORMAT, check_format, checked, files_of, missing_extra, scratch


class ObjectStore:
    """Runs as objects. Facts are written last, so a run is there when they are.

    Nobody can hold a lock there. Two runners that are given one point at the same time both run it, and the later one
    replaces the files of the other, which say the same: the point still is in the store once.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        try:
            self.files, self.root = fsspec.core.url_to_fs(self.url)
        except ImportError as error:
            raise missing_extra("s3", f"The store {url}") from error
        mark = f"{self.root}/store.json"
        check_format(self.files.cat_file(mark).decode() if self.files.exists(mark) else None, self.url)

    def is_finished(self, name: str) -> bool:
        self.files.invalidate_cache()
        return bool(self.files.exists(f"{self.root}/{checked(name)}/{FACTS}"))

    def facts(self, name: str) -> dict[str, Any]:
        return json.loads(self.files.cat_file(f"{self.root}/{checked(name)}/{FACTS}"))

    @contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        checked(name)
        yield True

    def new_attempt(self, name: str) -> Path:
        checked(name)
        return scratch()

    def keep(self, attempt: Path, name: str, *, finished: bool) -> str:
        mark = f"{self.root}/store.json"
        if not self.files.exists(mark):
            self.files.pipe_file(mark, json.dumps({"package": "qwenlab", "format": FORMAT}).encode())
        target = f"{self.root}/{checked(name)}" if finished else self._beside(name)
        for file in files_of(attempt):
            self.files.put_file(str(attempt / file), f"{target}/{file}")
        shutil.rmtree(attempt)
        return f"{self.url}{target.removeprefix(self.root)}"

    def _beside(self, name: str) -> str:
        number = 1
        while self.files.exists(f"{self.root}/{name}.{number}/{FACTS}"):
            number += 1
        return f"{self.root}/{name}.{number}"

    def all_facts(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Folder of each run and attempt, and its facts."""
        self.files.invalidate_cache()
        for path in self.files.glob(f"{self.root}/*/*/{FACTS}"):
            yield path.rpartition("/")[0], json.loads(self.files.cat_file(path))
