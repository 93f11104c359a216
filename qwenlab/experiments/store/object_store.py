"""A store at an address that fsspec knows: runs are worked on here, and come there whole."""

from __future__ import annotations

import json
import re
import shutil
import socket
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from qwenlab.errors import BadArgument, MissingExtra, StoreFailed
from qwenlab.experiments.plan.spec import NAME
from qwenlab.experiments.store.store import FACTS, FORMAT, check_format, checked, files_of, missing_extra, scratch

_RUN = re.compile(r"[0-9a-f]{16}(\.[0-9]+)?")


class ObjectStore:
    """Runs as objects. Facts are written last, so a run is there when they are.

    For "s3://bucket/folder" address and credentials are found as other clients of S3 find them: AWS_ACCESS_KEY_ID and
    AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or ~/.aws; AWS_DEFAULT_REGION; and for a server that is not Amazon's
    AWS_ENDPOINT_URL. A variable FSSPEC_S3_ENDPOINT_URL, if it was set before Python started, goes before that one.

    Nobody can hold a lock there. Two runners that are given one point at the same time both run it, and the later one
    replaces the files of the other, which say the same: the point still is in the store once.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.files, self.root = _opened(self.url)
        self._mark, self._marked = f"{self.root}/store.json", False
        self._scratch: dict[Path, weakref.finalize[Any, Any]] = {}
        with self._asked():
            text = self.files.cat_file(self._mark).decode() if self.files.exists(self._mark) else None
        check_format(text, self.url)

    def is_finished(self, name: str) -> bool:
        checked(name)
        with self._asked():
            self.files.invalidate_cache()
            return bool(self.files.exists(f"{self.root}/{name}/{FACTS}"))

    def facts(self, name: str) -> dict[str, Any]:
        checked(name)
        with self._asked():
            return json.loads(self.files.cat_file(f"{self.root}/{name}/{FACTS}"))

    @contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """Yields True. Raises StoreFailed where the store cannot be written to, before anything is computed for it."""
        checked(name)
        if not self._marked:
            with self._asked():
                if not self.files.exists(self._mark):
                    self.files.pipe_file(self._mark, json.dumps({"package": "qwenlab", "format": FORMAT}).encode())
            self._marked = True
        yield True

    def new_attempt(self, name: str) -> Path:
        checked(name)
        folder = scratch()
        self._scratch[folder] = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return folder

    def keep(self, attempt: Path, name: str, *, finished: bool) -> str:
        checked(name)
        if attempt in self._scratch:  # from here on it goes when it has come there, and not before
            self._scratch.pop(attempt).detach()
        with self._asked(f"The run is not lost: it is in {attempt} on {socket.gethostname()}."):
            self.files.invalidate_cache()
            target = f"{self.root}/{name}" if finished else self._beside(name)
            files = files_of(attempt)
            self._make_way(target, files)
            for file in files:
                self.files.put_file(str(attempt / file), f"{target}/{file}")
        shutil.rmtree(attempt)
        return f"{self.url}{target.removeprefix(self.root)}"

    def _beside(self, name: str) -> str:
        number = 1
        while self.files.exists(f"{self.root}/{name}.{number}"):
            number += 1
        return f"{self.root}/{name}.{number}"

    def _make_way(self, target: str, files: Sequence[PurePosixPath]) -> None:
        """Take away the facts of an older run of the same name, so that nobody reads half of each, and what else of
        it, or of an upload that broke off, would stay."""
        stale = set(self.files.find(target)) - {f"{target}/{file}" for file in files}
        facts = f"{target}/{FACTS}"
        for path in [*([facts] if self.files.exists(facts) else []), *sorted(stale - {facts})]:
            self.files.rm_file(path)

    def all_facts(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Folder of each run and attempt, and its facts. What is named or written like no run is passed over."""
        with self._asked():
            self.files.invalidate_cache()
            paths = [path for path in self.files.glob(f"{self.root}/*/*/{FACTS}") if _names_a_run(path)]
            found = self.files.cat(paths) if paths else {}
        for path, content in found.items():
            with suppress(ValueError):
                yield path.rpartition("/")[0], json.loads(content)

    @contextmanager
    def _asked(self, comfort: str = "") -> Iterator[None]:
        """Every file system has errors of its own; this is what ours says in their place."""
        try:
            yield
        except Exception as error:
            raise StoreFailed(
                f"The store {self.url} failed: {type(error).__name__}: {error}. {comfort}".rstrip()
                + "\nLook at its address, its credentials and the network: see qwenlab.experiments.object_store."
            ) from error


def _opened(url: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it."""
    try:
        files, root = fsspec.core.url_to_fs(url)
    except ImportError as error:
        if url.startswith("s3:"):
            raise missing_extra("s3", f"The store {url}") from error
        raise MissingExtra(f"The store {url} needs a package that is not installed.\n{error}") from error
    except ValueError as error:
        raise BadArgument(f"The store {url} is no folder, and no address that fsspec knows: {error}.") from error
    return files, root.rstrip("/")


def _names_a_run(path: str) -> bool:
    experiment, run = path.split("/")[-3:-1]
    return bool(NAME.fullmatch(experiment) and _RUN.fullmatch(run))
