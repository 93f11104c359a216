"""The store of runs: its interface, and its form as a folder. Each point is in a store at most once."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout

from qwenlab.errors import BadArgument, MissingExtra, NewerStore
from qwenlab.experiments.plan.spec import NAME
from qwenlab.record.whole_files import replacing

FORMAT = 1
"""The store's format number; a store with a higher number is refused."""

FACTS = "facts.json"
_RUN_NAME = re.compile(rf"{NAME.pattern}/[0-9a-f]{{16}}")


class Store(Protocol):
    """Interface of a store. The folder `experiment/address`, a run's name, has the finished run, complete.

    Attempts that did not finish are in the folders `experiment/address.1`, `.2` and so on.
    """

    url: str

    def is_finished(self, name: str) -> bool:
        """Whether the finished run is in the store."""

    def facts(self, name: str) -> dict[str, Any]:
        """The facts of a finished run."""

    def claim(self, name: str) -> Any:
        """A context manager that claims the run; it yields False if another runner has claimed it."""

    def new_attempt(self, name: str) -> Path:
        """Create an empty folder on this machine for an attempt."""

    def keep(self, attempt: Path, name: str, *, finished: bool) -> str:
        """Store the attempt's folder, and return its new location."""


def checked(name: str) -> str:
    """Return a valid run name. Raises BadArgument for others, which could lead out of the store."""
    if not _RUN_NAME.fullmatch(name):
        raise BadArgument(
            f"{name!r} is not the name of a run.\nA name is `experiment/address`: a-z, 0-9, dot, dash and underscore; "
            "then 16 hexadecimal digits, as `qwenlab runs list` prints them."
        )
    return name


def check_format(text: str | None, url: str) -> None:
    """Raise NewerStore if store.json has a later format. `text` is its content, None for a new store."""
    number = json.loads(text)["format"] if text else FORMAT
    if number > FORMAT:
        raise NewerStore(
            f"The store {url} has format {number}; this qwenlab reads up to {FORMAT}.\nUpdate qwenlab, or use another "
            "store: nothing here was changed."
        )


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically: a reader sees the whole old file or the whole new one."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, ensure_ascii=False, default=str)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


class FolderStore:
    """A store in a folder, on this machine or on a file system that several machines share."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.url, self._mark = str(self.root), self.root / "store.json"
        check_format(self._mark.read_text() if self._mark.is_file() else None, self.url)

    def is_finished(self, name: str) -> bool:
        self._recover(checked(name))
        return (self.root / name / FACTS).is_file()

    def facts(self, name: str) -> dict[str, Any]:
        return json.loads((self.root / checked(name) / FACTS).read_text(encoding="utf-8"))

    @contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """Claim the run with a file lock, which the operating system releases when this process dies."""
        path = self._lock_path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not self._mark.exists():
            write_json(self._mark, {"package": "qwenlab", "format": FORMAT})
        lock = FileLock(path, thread_local=False)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def _lock_path(self, name: str) -> Path:
        experiment, address = checked(name).split("/")
        return self.root / experiment / f".{address}.lock"

    def is_claimed(self, name: str) -> bool:
        """Whether a runner has claimed the run."""
        if not self._lock_path(name).exists():
            return False
        with self.claim(name) as is_ours:
            return not is_ours

    def new_attempt(self, name: str) -> Path:
        number = 0
        while True:
            number += 1
            folder = self.root / f"{checked(name)}.{number}"
            with suppress(FileExistsError):
                folder.mkdir(parents=True)
                return folder

    def keep(self, attempt: Path, name: str, *, finished: bool) -> str:
        if not finished:
            return str(attempt)
        target, older = self.root / checked(name), None
        if target.exists():  # run again with force: delete the older run once the newer is in place
            older = self.new_attempt(name)
            os.replace(target, older)
        os.replace(attempt, target)
        if older:
            shutil.rmtree(older)
        return str(target)

    def _recover(self, name: str) -> None:
        """Move a finished run to its place, if its runner was killed just before it did so."""
        target = self.root / name
        if target.exists():
            return
        for attempt in sorted(target.parent.glob(f"{target.name}.[0-9]*")):
            facts = attempt / FACTS
            if facts.is_file() and json.loads(facts.read_text()).get("state") == "finished":
                os.replace(attempt, target)
                return


def missing_extra(extra: str, subject: str) -> MissingExtra:
    """The error for a feature (the message's subject) whose extra is not installed."""
    return MissingExtra(f"{subject} needs packages that are not installed.\nRun: pip install 'qwenlab[{extra}]'")
