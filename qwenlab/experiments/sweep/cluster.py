"""Points run on a Ray cluster. Where they run, and what is done again when a node dies, is Ray's to decide."""

from __future__ import annotations

import importlib.util
import logging
import re
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from qwenlab import __version__
from qwenlab.errors import BadArgument, ClusterFailed
from qwenlab.experiments.plan.points import Plan
from qwenlab.experiments.store.store import FolderStore, Store, missing_extra
from qwenlab.experiments.sweep.actors import RemoteSweep
from qwenlab.experiments.sweep.attempt import Job, Outcome, Stop
from qwenlab.experiments.sweep.run import EXTRAS
from qwenlab.experiments.sweep.worker import Folder, Terms, folder_of

LOCAL = "local-cluster"

PATIENCE = 300.0
"""Seconds that a node which meets the needs is waited for: one that an autoscaler starts takes minutes."""


def run_on(on: str, planned: Plan, wanted: list[Job], store: Store, *, warm: bool, stop: Stop) -> Iterator[Outcome]:
    """Run these points on a Ray cluster, and yield how each ended, as it ends.

    on     "ray://HOST:PORT", a cluster with Ray's client server; or "local-cluster", the Ray that this process is
           connected to already, else one that is started here and ended afterwards
    store  a folder must be on a file system that every node shares; an object store must be one that every node can
           reach, with credentials of its own: environment variables are not sent along

    Each worker holds one warm kernel and what `spec.needs` says; there are as many as nodes have room for, and points
    are handed to them as they come free. Files beside the notebook are sent along. Secrets are read here, and travel
    with the point.

    Raises BadArgument, MissingExtra, ClusterFailed, and NeedsNotMet where no node has what a run needs.
    """
    if on != LOCAL and not re.fullmatch(r"ray://[^/]+:\d+", on):
        raise BadArgument(
            f"on={on!r} is no place to run. Give 'ray://HOST:PORT' for a Ray cluster, or {LOCAL!r} for Ray on this "
            "machine; leave it out to run without Ray."
        )
    if store.url.startswith("memory:"):
        raise BadArgument(f"The store {store.url} lives in one process: workers need a folder, or an object store.")
    for package in ("ray",) if on == LOCAL else ("ray", "grpc"):  # Ray's client speaks gRPC, Ray itself does not
        if importlib.util.find_spec(package) is None:
            raise missing_extra("ray", f"on={on!r}")
    return _outcomes(on, planned, wanted, store, folder_of(planned.notebook_path), warm, stop)


def _outcomes(
    on: str, planned: Plan, wanted: list[Job], store: Store, folder: Folder, warm: bool, stop: Stop
) -> Iterator[Outcome]:
    with _connected(on) as ours, _witness(store) as witness:
        terms = Terms(__version__, store.url, witness, warm, _needed(planned))
        sweep = RemoteSweep(planned, wanted, terms, folder, stop, patience=0 if ours and on == LOCAL else PATIENCE)
        try:
            yield from sweep.outcomes()
        except ConnectionError as error:
            raise ClusterFailed(
                f"The connection to {on} broke off: {error}\nWhat has finished is in the store; run again for the rest."
            ) from error
        finally:
            sweep.end()


@contextmanager
def _connected(on: str) -> Iterator[bool]:
    """Connected to Ray; yields whether by us."""
    import ray

    if ray.is_initialized():
        if on != LOCAL:
            raise BadArgument(
                f"This process is connected to Ray already. Call ray.shutdown() first to connect to {on}, or say "
                f"on={LOCAL!r} to use the connection that there is."
            )
        yield False
        return
    plain: dict[str, Any] = dict(address="local", include_dashboard=False) if on == LOCAL else dict(address=on)
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        try:
            ray.init(**plain, log_to_driver=False, logging_level=logging.WARNING)
        except (OSError, RuntimeError, ValueError) as error:
            raise ClusterFailed(f"No connection to {on}: {error}\nHere it is Ray {ray.__version__}.") from error
        if main:  # Ray puts a handler of its own in the place of `qwenlab.cli`'s
            signal.signal(signal.SIGTERM, before)
        yield True
    finally:
        ray.shutdown()


@contextmanager
def _witness(store: Store) -> Iterator[str | None]:
    """A file in the store's folder, by which a node can tell that it sees the same folder."""
    if not isinstance(store, FolderStore):
        yield None
        return
    store.root.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=store.root, prefix=".witness-") as file:
        yield file.name


def _needed(planned: Plan) -> dict[str, str]:
    """Modules that the spec's extras install, and what to say where one is not there."""
    where = planned.source.at("needs", "extras")
    return {
        module: f"{where}: {module} is not installed: pip install 'qwenlab[{extra}]'"
        for extra in planned.spec.needs.extras
        for module in EXTRAS.get(extra, (extra,))
    }
