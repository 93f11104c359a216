"""The facts of a run: its parameters, machine, code and versions."""

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
_VERSIONS = ("torch", "transformers", "numpy", "xarray", "papermill", "flash-linear-attention", "triton")


def initial_facts(point: Point, spec: dict[str, Any], notebook: Path, attempt: int) -> dict[str, Any]:
    """The facts of a run when it starts."""
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
    """The present time, as text for people. No decision depends on it, because clocks jump."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@cache
def code() -> dict[str, Any]:
    """The version of qwenlab, a hash of its source, and the commit if it is in a git checkout."""
    digest = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*.py")):
        digest.update(f"{file.relative_to(PACKAGE)}\0".encode() + file.read_bytes())
    commit = _output("git", "rev-parse", "HEAD")
    facts = {"qwenlab": __version__, "source": digest.hexdigest()[:16], "commit": commit}
    changed = {"changed": bool(_output("git", "status", "--porcelain", "--untracked-files=no"))} if commit else {}
    return facts | changed


def _output(*command: str) -> str | None:
    """What a program prints; None if it fails, takes too long, or is not installed."""
    try:
        done = subprocess.run(command, cwd=PACKAGE, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@cache
def machine() -> dict[str, Any]:
    """The machine: host, processor, memory in bytes, GPUs, operating system."""
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
    """Names of the NVIDIA GPUs, from the driver: importing torch would take seconds."""
    names = _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") or ""
    return [line.strip() for line in names.splitlines() if line.strip()]


def processor() -> str:
    """The processor's name, as the operating system reports it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    return {"python": platform.python_version(), **versions_of(_VERSIONS)}
