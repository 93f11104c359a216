"""Reset and inspect a kernel from the inside, before and after each notebook. `kernel.Kernel` calls it."""

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
from qwenlab.execution.kernel_reset.initial_state import InitialState
from qwenlab.execution.kernel_reset.origin import is_library

_initial_state: InitialState | None = None
_threads: set[int] = set()
_environment: set[str] = set()
"""Names of the environment variables that were set for the notebook."""


def begin(seed: int, cwd: str, environment: dict[str, str], warm: bool) -> str:
    """Reset the process, and prepare it for one notebook; `warm` if more notebooks will follow.

    Returns JSON: `reopened`, the cached checkpoints that the previous notebook had changed.
    """
    global _initial_state, _threads, _environment
    reopened: list[str] = []
    if _initial_state is not None:
        _clear()
        _initial_state.accept_changes()
        reopened = opened_models.drop_changed()
    elif warm:
        _initial_state = InitialState()
        opened_models.enabled = True
    opened_models.start()
    _threads = {thread.ident or 0 for thread in threading.enumerate()}
    os.chdir(cwd)
    os.environ.update(environment)
    _environment = set(environment)
    seed_all(seed)
    _reset_peak()
    return json.dumps({"reopened": reopened})


def end() -> str:
    """Restore settings in a warm kernel, and report what the notebook used and left, as JSON.

    `peak_memory` and `peak_gpu_memory` in bytes; `resident`, the present memory in bytes; `loads`, the number of
    checkpoints read from disk; `left_running`, the threads and processes that it started and did not end; `changed`,
    the library functions, environment variables and hooks that differ from those before the first notebook (only in a
    warm kernel).
    """
    new = [thread for thread in threading.enumerate() if thread.ident not in _threads]
    # A daemon of a class that a library defines is the library's own.
    own = [thread for thread in new if not thread.daemon or type(thread).__module__ in ("threading", "__main__")]
    children = [f"process {child.pid}" for child in psutil.Process().children()]
    return json.dumps(
        {
            "peak_memory": _peak(),
            "peak_gpu_memory": cuda.max_memory_allocated() if (cuda := _cuda()) else None,
            "resident": psutil.Process().memory_info().rss,
            "loads": opened_models.loads,
            "left_running": [*(thread.name for thread in own), *children],
            "changed": _initial_state.restore(_environment) if _initial_state is not None else [],
        }
    )


def _clear() -> None:
    """Remove the notebook's variables, its own modules and its figures, and free their memory."""
    shell: Any = get_ipython()
    shell.reset(new_session=True)
    shell.displayhook.flush()
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        pyplot.close("all")
    for name, module in [*sys.modules.items()]:
        if name != "__main__" and not is_library(module):
            del sys.modules[name]
    gc.collect()
    if cuda := _cuda():
        cuda.empty_cache()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _reset_peak() -> None:
    """Reset the memory peaks. If the system cannot, they are those of the whole process."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if cuda := _cuda():
        cuda.reset_peak_memory_stats()


def _cuda() -> Any:
    """torch.cuda; None if there is no GPU, or torch is not imported."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() else None


def _peak() -> int:
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
