"""A store at an address that fsspec knows: attempts are made in local folders and uploaded at their end."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import socket
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from qwenlab.errors import BadArgument, MissingExtra, StoreFailed
from qwenlab.experiments.plan.spec import NAME
from qwenlab.experiments.store.store import FACTS, FORMAT, check_format, checked, missing_extra

_FACTS_PATH = re.compile(rf".*/{NAME.pattern}/[0-9a-f]{{16}}(\.[0-9]+)?/{re.escape(FACTS)}")


class ObjectStore:
    """A store of runs on an object store. A run's facts are uploaded last, so a run with facts is complete.

    For "s3://bucket/folder" address and credentials are read as other clients of S3 read them: AWS_ACCESS_KEY_ID and
    AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or ~/.aws; AWS_DEFAULT_REGION; and AWS_ENDPOINT_URL for a server that is
    not Amazon's. A variable FSSPEC_S3_ENDPOINT_URL takes precedence, if it was set before Python started.

    An object store has no locks. Two runners that start the same point at the same time both run it, and the later one
    replaces the files of the other, which have the same results: the point still is in the store once.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.files, self.root = _opened(self.url)
        self._marker, self._is_marked = f"{self.root}/store.json", False
        self._scratch: dict[Path, weakref.finalize[Any, Any]] = {}
        with self._reported():
            text = self.files.cat_file(self._marker).decode() if self.files.exists(self._marker) else None
        check_format(text, self.url)

    def is_finished(self, name: str) -> bool:
        checked(name)
        with self._reported():
            self.files.invalidate_cache()
            return bool(self.files.exists(f"{self.root}/{name}/{FACTS}"))

    def facts(self, name: str) -> dict[str, Any]:
        checked(name)
        with self._reported():
            return json.loads(self.files.cat_file(f"{self.root}/{name}/{FACTS}"))

    @contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """Yield True. Raises StoreFailed if the store cannot be written to, before anything is computed for it."""
        checked(name)
        if not self._is_marked:
            with self._reported():
                if not self.files.exists(self._marker):
                    self.files.pipe_file(self._marker, json.dumps({"package": "qwenlab", "format": FORMAT}).encode())
            self._is_marked = True
        yield True

    def new_attempt(self, name: str) -> Path:
        checked(name)
        folder = Path(tempfile.mkdtemp(prefix="qwenlab-run-"))
        self._scratch[folder] = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return folder

    def keep(self, attempt: Path, name: str, *, finished: bool) -> str:
        checked(name)
        if attempt in self._scratch:  # from here on it is deleted only after the upload
            self._scratch.pop(attempt).detach()
        with self._reported(f"The run is not lost: it is in {attempt} on {socket.gethostname()}."):
            self.files.invalidate_cache()
            attempts = (f"{self.root}/{name}.{number}" for number in itertools.count(1))
            target = f"{self.root}/{name}" if finished else next(it for it in attempts if not self.files.exists(it))
            files = _files_of(attempt)
            self._delete_old(target, files)
            for file in files:
                self.files.put_file(str(attempt / file), f"{target}/{file}")
        shutil.rmtree(attempt)
        return f"{self.url}{target.removeprefix(self.root)}"

    def _delete_old(self, target: str, files: Sequence[PurePosixPath]) -> None:
        """Delete an older run's facts first, so that nobody reads half of each; then its files that would remain."""
        stale = set(self.files.find(target)) - {f"{target}/{file}" for file in files}
        facts = f"{target}/{FACTS}"
        for path in [*([facts] if self.files.exists(facts) else []), *sorted(stale - {facts})]:
            self.files.rm_file(path)

    def all_facts(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield folder and facts of each run and attempt. Other folders, and facts that are not JSON, are skipped."""
        with self._reported():
            self.files.invalidate_cache()
            paths = [path for path in self.files.glob(f"{self.root}/*/*/{FACTS}") if _FACTS_PATH.fullmatch(path)]
            contents = self.files.cat(paths) if paths else {}
        for path, content in contents.items():
            with suppress(ValueError):
                yield path.rpartition("/")[0], json.loads(content)

    @contextmanager
    def _reported(self, comfort: str = "") -> Iterator[None]:
        """Replace the errors of any file system by StoreFailed; `comfort` is added to the message."""
        try:
            yield
        except Exception as error:
            raise StoreFailed(
                f"The store {self.url} failed: {type(error).__name__}: {error}. {comfort}".rstrip()
                + "\nCheck its address, its credentials and the network: see qwenlab.experiments.store.object_store."
            ) from error


def _opened(url: str) -> tuple[Any, str]:
    try:
        files, root = fsspec.core.url_to_fs(url)
    except ImportError as error:
        if url.startswith("s3:"):
            raise missing_extra("s3", f"The store {url}") from error
        raise MissingExtra(f"The store {url} needs a package that is not installed.\n{error}") from error
    except ValueError as error:
        raise BadArgument(f"The store {url} is not a folder, and not an address that fsspec knows: {error}.") from error
    return files, root.rstrip("/")


def _files_of(folder: Path) -> list[PurePosixPath]:
    """The completely written files of a run's folder. The facts come last, so that a copy with facts is complete."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.endswith(".part")]
    files = [PurePosixPath(path.relative_to(folder).as_posix()) for path in paths]
    return sorted(files, key=lambda path: str(path) == FACTS)
