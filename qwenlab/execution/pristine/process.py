"""Restore a process to its state before the first notebook, and report what cannot be restored."""

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
"""Number of differences to name; further ones are counted."""


class Pristine:
    """The state of a warm kernel before its first notebook."""

    def __init__(self) -> None:
        self._surroundings = Surroundings.capture()
        add_libraries()
        self._surroundings.restore()  # some settings have two equivalent values
        sys.meta_path.insert(0, ImportWatch(self._before_import, self._after_import))
        gc.collect()
        gc.freeze()  # libraries stay: garbage collection after a notebook can skip them
        self._readings, self._libraries = Readings(), Libraries()
        gc.freeze()

    def restore(self, environment: Iterable[str]) -> list[str]:
        """Restore the settings and the environment, and return the names of everything else that differs.

        environment  names of the variables that were set for the notebook; changes of these are not reported
        """
        changed = []
        try:
            self._surroundings.restore()
            changed += self._readings.changes(environment)
            self._readings.restore_environment()
        except Exception as error:  # a function that this needs was patched
            changed.append(f"settings, which could not be restored ({type(error).__name__}: {error})")
        try:
            changed += self._libraries.changes()
        except Exception as error:
            changed.append(f"libraries, which could not be compared ({type(error).__name__}: {error})")
        more = len(changed) - _NAMED
        return [*changed[:_NAMED], f"{more} more"] if more > 0 else changed

    def settle(self) -> None:
        """Accept what libraries have cached and looked up so far."""
        self._libraries.settle()

    # These run inside an import of the notebook, which must not fail because of them. If they fail, the changes of that
    # import are reported, and the kernel is replaced.

    def _before_import(self) -> None:
        with suppress(Exception):
            self._readings.before_import()
            self._libraries.before_import()

    def _after_import(self) -> None:
        with suppress(Exception):
            self._readings.after_import()
            self._libraries.after_import()
