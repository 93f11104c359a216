"""Watch imports of libraries, to distinguish changes by an import from changes by a notebook."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from importlib.machinery import ExtensionFileLoader, ModuleSpec, SourceFileLoader
from types import ModuleType

from qwenlab.execution.kernel_reset.origin import is_installed


class ImportWatch(threading.local):
    """A finder, first in `sys.meta_path`, that returns the specs of the other finders and watches their imports.

    before, after  called before and after the import of a library module, including all modules that it imports
    """

    def __init__(self, before: Callable[[], None], after: Callable[[], None]) -> None:
        self._before, self._after = before, after
        self._is_importing = False

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
            self._before()
            self._is_importing = True
            try:
                loader.exec_module(module)
            finally:
                self._is_importing = False
                self._after()

        loader.exec_module = exec_module  # type: ignore[method-assign]
