"""A process as it was before its first notebook: settings are put back, and all else is compared."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable
from contextlib import suppress

from qwenlab.execution.pristine.imports import ImportWatch
from qwenlab.execution.pristine.libraries import Libraries
from qwenlab.execution.pristine.origin import add_libraries
from qwenlab.execution.pristine.readings import Readings
from qwenlab.execution.pristine.surroundings import Surroundings

_NAMED = 20
"""Differences that are named; more are counted."""


class Pristine:
    """What a warm kernel was like before its first notebook."""

    def __init__(self) -> None:
        self._surroundings = Surroundings.capture()
        add_libraries()
        self._surroundings.restore()  # some settings have two values that mean the same
        sys.meta_path.insert(0, ImportWatch(self._before_import, self._after_import))
        gc.collect()
        gc.freeze()  # libraries stay: collecting after each notebook need not walk through them
        self._readings, self._libraries = Readings(), Libraries()
        gc.freeze()

    def restore(self, given: Iterable[str]) -> list[str]:
        """Put the settings and the environment back, and return the names of all else that is different.

        given  the variables that were set for the notebook: what became of them does not count
        """
        changed = []
        try:
            self._surroundings.restore()
            changed += self._readings.changes(given)
            self._readings.restore_environment()
        except Exception as error:  # a function that this needs was patched
            changed.append(f"settings, which could not be put back ({type(error).__name__}: {error})")
        try:
            changed += self._libraries.changes()
        except Exception as error:
            changed.append(f"libraries, which could not be compared ({type(error).__name__}: {error})")
        more = len(changed) - _NAMED
        return [*changed[:_NAMED], f"{more} more"] if more > 0 else changed

    def settle(self) -> None:
        """Take as the libraries' own what they have cached and looked up so far."""
        self._libraries.settle()

    # These run inside an import of the notebook, which must not fail because of them. What they miss costs the kernel.

    def _before_import(self) -> None:
        with suppress(Exception):
            self._readings.before_import()
            self._libraries.before_import()

    def _after_import(self) -> None:
        with suppress(Exception):
            self._readings.after_import()
            self._libraries.after_import()
