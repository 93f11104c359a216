"""Waiting for what other processes do."""

import time
from contextlib import suppress

import psutil


def until(what, seconds=60):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.1)
    return found


def processes_with(mark):
    """The processes that are alive and whose variable QWENLAB_TEST holds the mark."""
    found = []
    for each in psutil.process_iter():
        with suppress(psutil.Error):
            if mark in each.environ().get("QWENLAB_TEST", "") and each.status() != psutil.STATUS_ZOMBIE:
                found.append(each)
    return found
