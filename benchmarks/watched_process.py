"""Run a command, and sample its resident memory from outside of it."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_RESIDENT = re.compile(r"^(RssAnon|RssFile):\s+(\d+) kB$", re.MULTILINE)


def run_watched(command: Sequence[str], every: float = 0.01) -> dict[str, Any]:
    """The JSON object in the last line that a command prints, with its peak memory.

    every  seconds between samples of RssAnon + RssFile in /proc/PID/status

    Raises CalledProcessError if the command fails; what it writes to stderr is shown.
    """
    peak = {"RssAnon": 0, "RssFile": 0}
    with tempfile.TemporaryFile("w+") as printed, subprocess.Popen(command, stdout=printed) as process:
        try:
            while process.poll() is None:
                peak = max(peak, resident(process.pid), key=lambda sizes: sum(sizes.values()))
                time.sleep(every)
        finally:
            process.kill()
        printed.seek(0)
        lines = printed.read().splitlines()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return json.loads(lines[-1]) | {"peak bytes": sum(peak.values()), "at the peak": peak}


def resident(process: int) -> dict[str, int]:
    """Bytes of RssAnon and RssFile of a process; 0 once it has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        status = ""
    return {"RssAnon": 0, "RssFile": 0} | {name: 1024 * int(size) for name, size in _RESIDENT.findall(status)}
