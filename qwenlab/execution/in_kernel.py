"""What goes on inside a kernel before and after each notebook. Imported there; the other side is `kernel.Kernel`."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from IPython.core.getipython import get_ipython

from qwenlab.checkpoint.model_cache import opened_models
from qwenlab.checkpoint.seeding import seed_all
from qwenlab.execution.pristine.origin import is_library
from qwenlab.execution.pristine.process import Pristine

_pristine: Pristine | None = None
_threads: set[int] = set()
_given: set[str] = set()
"""The environment variables that were set for the notebook."""


def begin(settings: str) -> str:
    """Make the process as good as new, and set it up for one notebook; JSON in, JSON out.

    In:   `seed`, `cwd`, `environment` (variables that are set), `warm` (more notebooks will follow).
    Out:  `reopened`, the kept checkpoints that the notebook before had changed.
    """
    global _pristine, _threads, _given
    wanted = json.loads(settings)
    reopened: list[str] = []
    if _pristine is not None:
        _clear()
        _pristine.settle()
        reopened = opened_models.drop_changed()
    elif wanted["warm"]:
        _pristine = Pristine()
        opened_models.enable()
    opened_models.start()
    _threads = {thread.ident or 0 for thread in threading.enumerate()}
    os.chdir(wanted["cwd"])
    os.environ.update(wanted["environment"])
    _given = set(wanted["environment"])
    seed_all(wanted["seed"])
    _reset_peak()
    return json.dumps({"reopened": reopened})


def end() -> str:
    """Put settings back in a warm kernel, and return what the notebook used and left, as JSON.

    `peak_memory` and `peak_gpu_memory` in bytes; `resident` bytes held now; `loads`, checkpoints read from disk;
    `left_running`, threads and processes that it started and did not end; `changed`, the names of library functions,
    environment variables and hooks that a warm kernel no longer has as they were before the first notebook.
    """
    torch = sys.modules.get("torch")
    gpu = torch is not None and torch.cuda.is_available()
    threads = [
        thread.name for thread in threading.enumerate() if thread.ident not in _threads and not _is_the_kernels(thread)
    ]
    children = [f"process {child.pid}" for child in psutil.Process().children()]
    return json.dumps(
        {
            "peak_memory": _peak(),
            "peak_gpu_memory": torch.cuda.max_memory_allocated() if torch and gpu else None,
            "resident": psutil.Process().memory_info().rss,
            "loads": opened_models.loads,
            "left_running": threads + children,
            "changed": _pristine.restore(_given) if _pristine is not None else [],
        }
    )


def _is_the_kernels(thread: threading.Thread) -> bool:
    """Threads of a class of its own that a library starts when it is first needed, and that end with the process."""
    return thread.daemon and type(thread).__module__ not in ("threading", "__main__")


def _clear() -> None:
    """Forget what the notebook defined, imported from its own folder, drew, and held in memory."""
    shell: Any = get_ipython()
    shell.reset(new_session=True)
    shell.displayhook.flush()
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        pyplot.close("all")
    for name, module in [*sys.modules.items()]:
        if name != "__main__" and not is_library(module):
            del sys.modules[name]
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _reset_peak() -> None:
    """Let the peaks begin anew. Where the system has no way to, they are those of the whole process."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _peak() -> int:
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
