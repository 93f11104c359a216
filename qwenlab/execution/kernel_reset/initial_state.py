"""Restore a process to its state before the first notebook, and report what cannot be restored."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from importlib.machinery import ExtensionFileLoader, ModuleSpec, SourceFileLoader
from types import ModuleType

from qwenlab.execution.kernel_reset.compared_settings import ComparedSettings
from qwenlab.execution.kernel_reset.libraries import Libraries
from qwenlab.execution.kernel_reset.origin import add_libraries, is_installed
from qwenlab.execution.kernel_reset.restored_settings import captured_settings

_NAMED = 20
"""Number of differences to name; further ones are counted."""


class InitialState:
    """The state of a warm kernel before its first notebook."""

    def __init__(self) -> None:
        self._restorers = captured_settings()
        add_libraries()
        self._restore_settings()  # some settings have two equivalent values
        sys.meta_path.insert(0, ImportWatch(self._accepting_changes))
        gc.collect()
        gc.freeze()  # libraries stay: garbage collection after a notebook can skip them
        self._compared, self._libraries = ComparedSettings(), Libraries()
        gc.freeze()

    def restore(self, environment: Iterable[str]) -> list[str]:
        """Restore settings and variables, and return the names of all else that differs, without this `environment`."""
        changed = []
        try:
            self._restore_settings()
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

    def _restore_settings(self) -> None:
        for restore in self._restorers:
            restore()

    @contextmanager
    def _accepting_changes(self) -> Iterator[None]:
        """Accept what the import of a library changes. If that fails, the import goes on, and its changes are named."""
        with suppress(Exception):
            self._compared.before_import()
            self._libraries.before_import()
        try:
            yield
        finally:
            with suppress(Exception):
                self._compared.after_import()
                self._libraries.after_import()


class ImportWatch(threading.local):
    """A finder, first in `sys.meta_path`, that imports each library module, with all that it imports, in `context`."""

    def __init__(self, context: Callable[[], AbstractContextManager[None]]) -> None:
        self._context, self._is_importing = context, False

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec from the next finder that has the module; watched unless another watched import is running."""
        finders = [finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec")]
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in finders)), None)
        if spec is not None and target is None and not self._is_importing:
            self._watch(spec)
        return spec

    def _watch(self, spec: ModuleSpec) -> None:
        loader = spec.loader
        if not isinstance(loader, (SourceFileLoader, ExtensionFileLoader)) or not is_installed(loader.path):
            return

        def exec_module(module: ModuleType) -> None:
            del loader.exec_module  # from here on, the loader is as it was before
            with self._context():
                self._is_importing = True
                try:
                    loader.exec_module(module)
                finally:
                    self._is_importing = False

        loader.exec_module = exec_module  # type: ignore[method-assign]
