"""Detect what a notebook changed in the libraries of a process: names, functions, and registries."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from operator import attrgetter
from types import FunctionType, ModuleType
from typing import Any

from qwenlab.execution.kernel_reset.namespaces import Namespace, Table
from qwenlab.execution.kernel_reset.origin import functions_in, is_library

_IMMUTABLE = 1 << 8
"""The flag of a class whose attributes cannot be set, such as int."""

_PARTS = tuple(map(attrgetter, ("__code__", "__defaults__", "__kwdefaults__")))
"""The parts of a function that can be replaced."""

_REGISTRIES = ("transformers.", "qwenlab.")
"""Libraries with registries of functions in the attributes of objects, and not only in plain dicts."""

_DEEPLY_COMPARED = ("qwenlab", "transformers", "torch.nn", "numpy", "scipy", "pandas", "xarray")
"""Packages whose functions are compared by their parts too, which can change while the name has the same value."""


class Libraries:
    """A snapshot of the names and functions of library modules and classes, and of the code in their tables."""

    def __init__(self) -> None:
        self._namespaces = [Namespace("sys.modules", sys.modules, sys)]
        self._tables: list[Table] = []
        self._functions: list[FunctionType] = []
        self._parts: list[list[Any]] = [[] for _ in _PARTS]
        self._added: dict[int, Any] = {id(sys.modules): sys.modules}
        self._before_import: dict[int, dict[str, Any]] = {}
        self._different: list[Namespace | Table] = []
        self._add_modules()

    def changes(self) -> list[str]:
        """The names of functions, classes, constants and registry entries of libraries that a notebook changed."""
        self._different = [*_changed(self._namespaces), *_changed(self._tables)]
        names = {name for namespace in self._different for name in namespace.changes()}
        return sorted({*self._changed_functions(), *names})

    def before_import(self) -> None:
        """Store the namespaces that differ already: the import that follows does not cause these changes."""
        self._before_import = {id(space): dict(space.names) for space in _changed(self._namespaces)}

    def after_import(self) -> None:
        """Add to the snapshot what has changed since `before_import`, and the new modules."""
        for namespace in _changed(self._namespaces):
            namespace.absorb(self._before_import.get(id(namespace)))
        self._add_modules()

    def accept_changes(self) -> None:
        """Add to the snapshot what `changes` did not report: caches, and names that were looked up lazily."""
        for namespace in self._different:
            namespace.absorb()
        self._different = []
        self._add_modules()

    def _changed_functions(self) -> Iterator[str]:
        for part, before in zip(_PARTS, self._parts, strict=True):
            now = [*map(part, self._functions)]
            with suppress(Exception):  # a new default, an array perhaps, cannot be compared
                if now == before:
                    continue
            for function, old, new in zip(self._functions, before, now, strict=True):
                if new is not old:
                    yield f"{function.__module__}.{function.__qualname__}"

    def _add_modules(self) -> None:
        count = len(self._functions)
        for name, module in [*sys.modules.items()]:
            if isinstance(module, ModuleType) and id(vars(module)) not in self._added and is_library(module):
                self._add(name, module)
        for part, before in zip(_PARTS, self._parts, strict=True):
            before.extend(map(part, self._functions[count:]))

    def _add(self, name: str, module: ModuleType) -> None:
        """Add a module, the classes in it and in those, their bases, and the functions and tables of all of them."""
        waiting: list[tuple[str, ModuleType | type]] = [(name, module)]
        while waiting:
            name, owner = waiting.pop()
            names = vars(owner)
            if not self._is_new(owner if isinstance(owner, type) else names):
                continue
            self._namespaces.append(Namespace(name, names, owner))
            for attribute, value in [*names.items()]:
                if not issubclass(type(value), type):
                    self._add_value(name, attribute, value)
                elif id(value) not in self._added:
                    waiting += [(f"{kind.__module__}.{kind.__qualname__}", kind) for kind in _patchable(value)]

    def _add_value(self, owner: str, name: str, value: Any) -> None:
        """Add the functions of a value, and its tables: itself if it is one, or its attributes."""
        if owner.startswith(_DEEPLY_COMPARED):
            self._functions += filter(self._is_new, functions_in(value))
        if name.startswith("__"):
            return
        self._add_table(f"{owner}.{name}", value)
        kind = type(value)
        if str(kind.__module__).startswith(_REGISTRIES) and not issubclass(kind, ModuleType):
            with suppress(AttributeError):  # it has slots
                attributes = object.__getattribute__(value, "__dict__")
                self._add_table(f"{owner}.{name}", attributes)
                for attribute, table in [*attributes.items()]:
                    self._add_table(f"{owner}.{name}.{attribute}", table)

    def _add_table(self, name: str, value: Any) -> None:
        if issubclass(type(value), dict) and self._is_new(value):
            self._tables.append(Table(name, value))

    def _is_new(self, thing: Any) -> bool:
        is_new = id(thing) not in self._added
        self._added[id(thing)] = thing
        return is_new


def _patchable(kind: type) -> Iterator[type]:
    """A class and its bases, without those whose attributes cannot be set and those of a notebook."""
    for base in kind.__mro__:
        if not base.__flags__ & _IMMUTABLE and is_library(sys.modules.get(base.__module__)):
            yield base


def _changed(snapshots: list[Any]) -> list[Any]:
    return [snapshot for snapshot in snapshots if not snapshot.is_unchanged()]
