"""Run points on a Ray cluster. Ray decides where they run, and runs them again when a node dies."""

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
from qwenlab.experiments.sweep.attempt import Cancellation, Job, Outcome
from qwenlab.experiments.sweep.needs import required_modules
from qwenlab.experiments.sweep.worker import WorkerSettings, folder_of

LOCAL = "local-cluster"

PATIENCE = 300.0
"""Seconds to wait for a node that meets the needs: an autoscaler takes minutes to start one."""


def run_on(
    on: str, planned: Plan, pending: list[Job], store: Store, *, warm: bool, cancellation: Cancellation
) -> Iterator[Outcome]:
    """Run the pending jobs on a Ray cluster, and yield outcomes as runs end.

    on     "ray://HOST:PORT", a cluster with Ray's client server; or "local-cluster", the Ray that this process is
           connected to, else one that is started here and ended afterwards
    store  a folder must be on a file system that every node shares; an object store must be one that every node can
           reach with its own credentials: environment variables are not sent to the nodes

    Each worker holds one warm kernel and the resources in `spec.needs`. There are as many workers as the nodes have
    resources for; a worker that ends a point takes the next one. The files of the notebook's folder are sent to the
    nodes. Secrets are read here and sent with the point.

    Raises BadArgument, MissingExtra, ClusterFailed, and NeedsNotMet if no node has what a run needs.
    """
    if on != LOCAL and not re.fullmatch(r"ray://[^/]+:\d+", on):
        raise BadArgument(
            f"on={on!r} is not a place to run. Give 'ray://HOST:PORT' for a Ray cluster, or {LOCAL!r} for Ray on this "
            "machine; leave it out to run without Ray."
        )
    if store.url.startswith("memory:"):
        raise BadArgument(f"The store {store.url} lives in one process: workers need a folder, or an object store.")
    for package in ("ray",) if on == LOCAL else ("ray", "grpc"):  # Ray's client speaks gRPC, Ray itself does not
        if importlib.util.find_spec(package) is None:
            raise missing_extra("ray", f"on={on!r}")
    folder = folder_of(planned.notebook_path)

    def outcomes() -> Iterator[Outcome]:
        with _connection(on) as is_ours, _marker(store) as marker:
            settings = WorkerSettings(__version__, store.url, marker, warm, required_modules(planned))
            patience = 0 if is_ours and on == LOCAL else PATIENCE
            sweep = RemoteSweep(planned, pending, settings, folder, cancellation, patience=patience)
            try:
                yield from sweep.outcomes()
            except ConnectionError as error:
                raise ClusterFailed(
                    f"The connection to {on} broke off: {error}\n"
                    "Finished runs are in the store; run again for the rest."
                ) from error
            finally:
                sweep.end()

    return outcomes()


@contextmanager
def _connection(on: str) -> Iterator[bool]:
    """Connect to Ray, and disconnect afterwards. Yields False if this process was connected before."""
    import ray

    if ray.is_initialized():
        if on != LOCAL:
            raise BadArgument(
                f"This process is connected to Ray already. Call ray.shutdown() first to connect to {on}, or pass "
                f"on={LOCAL!r} to use the present connection."
            )
        yield False
        return
    arguments: dict[str, Any] = dict(address="local", include_dashboard=False) if on == LOCAL else dict(address=on)
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    # Ray's processes inherit this: a SIGTERM to the process group must leave the driver the time to record its runs.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        try:
            ray.init(**arguments, log_to_driver=False, logging_level=logging.WARNING)
        except (OSError, RuntimeError, ValueError) as error:
            raise ClusterFailed(f"No connection to {on}: {error}\nThis machine has Ray {ray.__version__}.") from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if in_main_thread:  # Ray replaces the handler of `qwenlab.cli`
            signal.signal(signal.SIGTERM, before)
        yield True
    finally:
        ray.shutdown()


@contextmanager
def _marker(store: Store) -> Iterator[str | None]:
    """A temporary file in the store's folder: a node that sees the file sees the same folder."""
    if not isinstance(store, FolderStore):
        yield None
        return
    store.root.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=store.root, prefix=".marker-") as file:
        yield file.name
