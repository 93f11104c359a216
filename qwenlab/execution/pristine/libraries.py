"""What the libraries of a process were like before the first notebook, and what a notebook has changed of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from operator import attrgetter
from types import FunctionType, ModuleType
from typing import Any

from qwenlab.execution.pristine.namespaces import Namespace, Table
from qwenlab.execution.pristine.origin import functions_in, is_library

_IMMUTABLE = 1 << 8
"""The flag of a class whose attributes cannot be set, such as int."""

_PARTS = tuple(map(attrgetter, ("__code__", "__defaults__", "__kwdefaults__")))
"""What can be replaced inside a function."""

_REGISTRIES = ("transformers.", "qwenlab.")
"""Libraries that keep registries of functions in the attributes of objects, beside those in plain dicts."""

_LOOKED_INSIDE = ("qwenlab", "transformers", "torch.nn", "numpy", "scipy", "pandas", "xarray")
"""Packages whose functions are compared inside too, for what was replaced without giving the name another value."""


class Libraries:
    """The names and functions of all library modules and their classes, and the code in their tables.

    What an import of a library changes is the library's own: `before_import`, `after_import`.
    """

    def __init__(self) -> None:
        self._namespaces = [Namespace("sys.modules", sys.modules, sys)]
        self._tables: list[Table] = []
        self._functions: list[FunctionType] = []
        self._parts: list[list[Any]] = [[] for _ in _PARTS]
        self._seen: dict[int, Any] = {id(sys.modules): sys.modules}
        self._earlier: dict[int, dict[str, Any]] = {}
        self._different: list[Namespace | Table] = []
        self._add_modules()

    def changes(self) -> list[str]:
        """The names of functions, classes, constants and registry entries of libraries that a notebook changed."""
        self._different = [*_changed(self._namespaces), *_changed(self._tables)]
        return sorted({*self._in_functions(), *(name for each in self._different for name in each.changes())})

    def before_import(self) -> None:
        """Note what is different already, and so is not changed by the import of a library that follows."""
        self._earlier = {id(each): dict(each.names) for each in _changed(self._namespaces)}

    def after_import(self) -> None:
        """Take as the libraries' own what has changed since `before_import`, and the modules that are new."""
        for each in _changed(self._namespaces):
            each.absorb(self._earlier.get(id(each)))
        self._add_modules()

    def settle(self) -> None:
        """Take as the libraries' own all that `changes` passed over: caches, and names that were looked up lazily."""
        for each in self._different:
            each.absorb()
        self._different = []
        self._add_modules()

    def _in_functions(self) -> Iterator[str]:
        for part, before in zip(_PARTS, self._parts, strict=True):
            now = [*map(part, self._functions)]
            with suppress(Exception):  # a new default, an array perhaps, cannot be compared
                if now == before:
                    continue
            for function, old, new in zip(self._functions, before, now, strict=True):
                if new is not old:
                    yield f"{function.__module__}.{function.__qualname__}"

    def _add_modules(self) -> None:
        """Add the library modules that are not there yet."""
        known = len(self._functions)
        for name, module in [*sys.modules.items()]:
            if isinstance(module, ModuleType) and id(vars(module)) not in self._seen and is_library(module):
                self._add(name, module)
        for part, before in zip(_PARTS, self._parts, strict=True):
            before.extend(map(part, self._functions[known:]))

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
                elif id(value) not in self._seen:
                    waiting += [(f"{each.__module__}.{each.__qualname__}", each) for each in _patchable(value)]

    def _add_value(self, owner: str, name: str, value: Any) -> None:
        """Add the functions that a value is made of, and the tables that it is or has."""
        if owner.startswith(_LOOKED_INSIDE):
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
        """Whether it is seen for the first time."""
        is_new = id(thing) not in self._seen
        self._seen[id(thing)] = thing
        return is_new


def _patchable(kind: type) -> Iterator[type]:
    """A class and its bases, without those whose attributes cannot be set and those of a notebook."""
    for each in kind.__mro__:
        if not each.__flags__ & _IMMUTABLE and is_library(sys.modules.get(each.__module__)):
            yield each


def _changed(those: list[Any]) -> list[Any]:
    return [each for each in those if not each.is_as_it_was()]
