"""Wait for other processes."""

import time
from contextlib import suppress

import psutil


def until(condition, seconds=60):
    """Wait until a function returns something true, and return that."""
    end = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < end, "the condition never became true"
        time.sleep(0.1)
    return result


def processes_with(mark):
    """The processes that are alive and whose variable QWENLAB_TEST holds the mark."""
    matches = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if mark in process.environ().get("QWENLAB_TEST", "") and process.status() != psutil.STATUS_ZOMBIE:
                matches.append(process)
    return matches
