"""The facts of a run: what was run, on what, with which code, and how it ended."""

from __future__ import annotations

import hashlib
import os
import platform
import socket
import subprocess
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from qwenlab import __version__
from qwenlab.experiments.plan.points import Point
from qwenlab.experiments.store.store import FORMAT
from qwenlab.record.provenance import versions as versions_of

PACKAGE = Path(__file__).parents[2]
STATES = ("running", "finished", "failed", "interrupted")
_VERSIONS = ("torch", "transformers", "numpy", "xarray", "papermill", "flash-linear-attention", "triton")


def begun(point: Point, spec: dict[str, Any], notebook: Path, attempt: int) -> dict[str, Any]:
    """What is known of a run when it begins: of the spec, what is not the point's own."""
    return {
        "format": FORMAT,
        "state": "running",
        "experiment": point.experiment,
        "address": point.address,
        "question": spec["question"].strip(),
        "spec": {name: spec[name] for name in ("notebook", "seeds", "needs", "timeout", "retries")},
        "notebook": notebook.name,
        "parameters": point.parameters,
        "seed": point.seed,
        "checkpoints": point.checkpoints,
        "metrics": spec["metrics"],
        "attempt": attempt,
        "code": code(),
        "machine": machine(),
        "versions": versions(),
        "began": now(),
        "pid": os.getpid(),
    }


def now() -> str:
    """The time, for people to read. Nothing is decided by it: clocks jump."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@cache
def code() -> dict[str, Any]:
    """The version of qwenlab, a hash of its source, and the commit where it lies in a git checkout."""
    digest = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*.py")):
        digest.update(f"{file.relative_to(PACKAGE)}\0".encode() + file.read_bytes())
    return {"qwenlab": __version__, "source": digest.hexdigest()[:16], "commit": _git("rev-parse", "HEAD")} | (
        {"changed": bool(_git("status", "--porcelain", "--untracked-files=no"))} if _git("rev-parse", "HEAD") else {}
    )


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(("git", *words), cwd=PACKAGE, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@cache
def machine() -> dict[str, Any]:
    """Where it ran."""
    return {
        "host": socket.gethostname(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "memory": psutil.virtual_memory().total,
        "gpus": gpus(),
        "system": platform.platform(),
    }


@cache
def gpus() -> list[str]:
    """Names of the NVIDIA GPUs here, asked of the driver, so that torch need not be imported."""
    try:
        asked = ("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
        done = subprocess.run(asked, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []


def processor() -> str:
    """The processor's name, as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


@cache
def versions() -> dict[str, str]:
    """Of Python and of the packages that numbers depend on."""
    return {"python": platform.python_version(), **versions_of(_VERSIONS)}
