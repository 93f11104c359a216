"""Watch the imports of libraries, to tell what an import changes from what a notebook changes."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from importlib.machinery import ExtensionFileLoader, ModuleSpec, SourceFileLoader
from types import ModuleType

from qwenlab.execution.pristine.origin import is_installed


class ImportWatch(threading.local):
    """A finder, first in `sys.meta_path`, that finds what the others find, and calls two functions around an import.

    before, after  called around the import of a library module, with all that it imports in turn
    """

    def __init__(self, before: Callable[[], None], after: Callable[[], None]) -> None:
        self._before, self._after = before, after
        self._is_importing = False

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """What the next finder that knows the module returns, watched if it is a library's first import."""
        finders = [each for each in sys.meta_path if each is not self and hasattr(each, "find_spec")]
        spec = next(filter(None, (each.find_spec(name, path, target) for each in finders)), None)
        if spec is not None and target is None and not self._is_importing:
            self._watch(spec)
        return spec

    def _watch(self, spec: ModuleSpec) -> None:
        loader = spec.loader
        if not isinstance(loader, (SourceFileLoader, ExtensionFileLoader)) or not is_installed(loader.path):
            return

        def exec_module(module: ModuleType) -> None:
            del loader.exec_module  # from here on, the loader is as it was found
            self._before()
            self._is_importing = True
            try:
                loader.exec_module(module)
            finally:
                self._is_importing = False
                self._after()

        loader.exec_module = exec_module  # type: ignore[method-assign]
