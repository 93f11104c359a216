"""The store: a folder of runs, here or on an object store, in which each point is at most once."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from filelock import FileLock, Timeout

from qwenlab.errors import BadArgument, MissingExtra, NewerStore
from qwenlab.experiments.plan.spec import NAME
from qwenlab.record.whole_files import replacing

FORMAT = 1
"""The number of the store's format; a store with a higher one is refused."""

DEFAULT = "runs"
FACTS = "facts.json"
_RUN = re.compile(r"[0-9a-f]{16}")


class Store(Protocol):
    """Where runs are kept. A run is named `experiment/address`.

    What is in `experiment/address` is finished, and came there whole. What did not finish is beside it, in
    `experiment/address.1`, `.2` and so on.
    """

    url: str

    def is_finished(self, name: str) -> bool:
        """Whether the run is in the store, whole."""

    def facts(self, name: str) -> dict[str, Any]:
        """The facts of a finished run."""

    def claim(self, name: str) -> Any:
        """A context manager that yields False where another runner has the run in hand."""

    def new_attempt(self, name: str) -> Path:
        """An empty folder on this machine to work in."""

    def keep(self, attempt: Path, name: str, *, finished: bool) -> str:
        """Keep what is in the folder, and return where it is."""


def store_at(url: str | os.PathLike[str] | None = None) -> Store:
    """The store in a folder, or at an address that fsspec knows ("s3://bucket/runs").

    url  by default the environment's QWENLAB_STORE, or else the folder `runs` in the one we are in

    Raises NewerStore, and MissingExtra where the address needs a package that is not installed.
    """
    where = str(url or os.environ.get("QWENLAB_STORE") or DEFAULT)
    if "://" in where and not where.startswith("file://"):
        from qwenlab.experiments.store.object_store import ObjectStore

        return ObjectStore(where)
    return FolderStore(Path(where.removeprefix("file://")))


def checked(name: str) -> str:
    """A run's name, if it is one. Raises BadArgument for what would lead out of the store."""
    experiment, slash, run = name.partition("/")
    if not (slash and NAME.fullmatch(experiment) and _RUN.fullmatch(run)):
        raise BadArgument(
            f"{name!r} is no run's name.\nOne is `experiment/address`: a-z, 0-9, dot, dash and underscore; then 16 "
            "hexadecimal digits, as `qwenlab runs list` prints them."
        )
    return name


def check_format(text: str | None, where: str) -> None:
    """Raise NewerStore for a store of a later format."""
    found = json.loads(text)["format"] if text else FORMAT
    if found > FORMAT:
        raise NewerStore(
            f"The store {where} has format {found}; this qwenlab reads up to {FORMAT}.\nUpdate qwenlab, or use another "
            "store: nothing here was changed."
        )


def write_json(path: Path, content: Any) -> None:
    """Write JSON in one step: a reader sees the old file or the new one, whole."""
    with replacing(path) as beside, beside.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, ensure_ascii=False, default=str)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


class FolderStore:
    """A store in a folder of this machine, or of a file system that several share."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.url = str(self.root)
        mark = self.root / "store.json"
        check_format(mark.read_text() if mark.is_file() else None, self.url)

    def is_finished(self, name: str) -> bool:
        self._recover(checked(name))
        return (self.root / name / FACTS).is_file()

    def facts(self, name: str) -> dict[str, Any]:
        return json.loads((self.root / checked(name) / FACTS).read_text(encoding="utf-8"))

    @contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """Held by the operating system, and so released when this process dies however it dies."""
        experiment, address = checked(name).split("/")
        self._make(self.root / experiment)
        lock = FileLock(self.root / experiment / f".{address}.lock", thread_local=False)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def is_claimed(self, name: str) -> bool:
        """Whether a runner has the run in hand."""
        experiment, address = checked(name).split("/")
        if not (self.root / experiment / f".{address}.lock").exists():
            return False
        with self.claim(name) as ours:
            return not ours

    def new_attempt(self, name: str) -> Path:
        number = 1
        while True:
            folder = self.root / f"{checked(name)}.{number}"
            try:
                folder.mkdir(parents=True)
            except FileExistsError:
                number += 1
            else:
                return folder

    def keep(self, attempt: Path, name: str, *, finished: bool) -> str:
        if not finished:
            return str(attempt)
        target = self.root / checked(name)
        if target.exists():  # it was run again on purpose: the older one goes once the newer is in its place
            older = self.new_attempt(name)
            os.replace(target, older)
            os.replace(attempt, target)
            shutil.rmtree(older)
        else:
            os.replace(attempt, target)
        return str(target)

    def _recover(self, name: str) -> None:
        """A runner that was killed between its last two steps leaves a finished run beside its place."""
        target = self.root / name
        if target.exists():
            return
        for beside in sorted(target.parent.glob(f"{target.name}.[0-9]*")):
            facts = beside / FACTS
            if facts.is_file() and json.loads(facts.read_text()).get("state") == "finished":
                os.replace(beside, target)
                return

    def _make(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        mark = self.root / "store.json"
        if not mark.exists():
            write_json(mark, {"package": "qwenlab", "format": FORMAT})


def files_of(folder: Path) -> list[PurePosixPath]:
    """Every whole file in a run's folder, its facts last: where they are, all is."""
    found = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    whole = [PurePosixPath(path.as_posix()) for path in found if not path.name.endswith(".part")]
    return sorted(whole, key=lambda path: str(path) == FACTS)


def scratch() -> Path:
    """An empty folder of this machine's, for runs that go elsewhere."""
    return Path(tempfile.mkdtemp(prefix="qwenlab-run-"))


def missing_extra(extra: str, what: str) -> MissingExtra:
    """The error for what needs an extra that is not installed."""
    return MissingExtra(f"{what} needs packages that are not installed.\nRun: pip install 'qwenlab[{extra}]'")
