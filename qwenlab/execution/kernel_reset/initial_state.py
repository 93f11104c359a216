"""Restore a process to its state before the first notebook, and report what cannot be restored."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable
from contextlib import suppress

from qwenlab.execution.kernel_reset.compared_settings import ComparedSettings
from qwenlab.execution.kernel_reset.imports import ImportWatch
from qwenlab.execution.kernel_reset.libraries import Libraries
from qwenlab.execution.kernel_reset.origin import add_libraries
from qwenlab.execution.kernel_reset.restored_settings import RestoredSettings

_NAMED = 20
"""Number of differences to name; further ones are counted."""


class InitialState:
    """The state of a warm kernel before its first notebook."""

    def __init__(self) -> None:
        self._restored = RestoredSettings.capture()
        add_libraries()
        self._restored.restore()  # some settings have two equivalent values
        sys.meta_path.insert(0, ImportWatch(self._before_import, self._after_import))
        gc.collect()
        gc.freeze()  # libraries stay: garbage collection after a notebook can skip them
        self._compared, self._libraries = ComparedSettings(), Libraries()
        gc.freeze()

    def restore(self, environment: Iterable[str]) -> list[str]:
        """Restore the settings and the environment, and return the names of everything else that differs.

        environment  names of the variables that were set for the notebook; changes of these are not reported
        """
        changed = []
        try:
            self._restored.restore()
            changed += self._compared.changes(environment)
            self._compared.restore_environment()
        except Exception as error:  # a function that this needs was patched
            changed.append(f"settings, which could not be restored ({type(error).__name__}: {error})")
        try:
            changed += self._libraries.changes()
        except Exception as error:
            changed.append(f"libraries, which could not be compared ({type(error).__name__}: {error})")
        more = len(changed) - _NAMED
        return [*changed[:_NAMED], f"{more} more"] if more > 0 else changed

    def accept_changes(self) -> None:
        """Accept what libraries have cached and looked up so far."""
        self._libraries.accept_changes()

    # These run inside an import of the notebook, which must not fail because of them. If they fail, the changes of that
    # import are reported, and the kernel is replaced.

    def _before_import(self) -> None:
        with suppress(Exception):
            self._compared.before_import()
            self._libraries.before_import()

    def _after_import(self) -> None:
        with suppress(Exception):
            self._compared.after_import()
            self._libraries.after_import()
