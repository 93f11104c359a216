"""What the names of a module, a class or a table stood for at one time, and which of them a notebook changed since."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from inspect import getattr_static
from types import ModuleType
from typing import Any

from qwenlab.execution.pristine.origin import is_code, is_foreign

_GONE: Any = object()
"""Stands for the value of a name that is no longer there."""

_PLAIN = (bool, int, float, complex, str, bytes, tuple, frozenset)
"""Types of constants. They cannot change in place, so they are compared by value."""

_VARYING = {"torch.utils.hooks.RemovableHandle.next_id", "matplotlib.pyplot._backend_mod", "warnings.filters"}
"""Names that change in ordinary use: a count, and two that `Surroundings` puts back."""


class Namespace:
    """The names of one module or class, and the values that libraries gave them.

    name   of the module or class, with its module
    names  its `__dict__`
    owner  the module or class
    """

    __slots__ = ("_keys", "_values", "name", "names", "owner")

    def __init__(self, name: str, names: Mapping[str, Any], owner: ModuleType | type) -> None:
        self.name, self.names, self.owner = name, names, owner
        self._keep(dict(names))

    def _keep(self, names: dict[str, Any]) -> None:
        self._keys, self._values = [*names], [*names.values()]

    def is_as_it_was(self) -> bool:
        """Whether every name has its value and none was added. Compares two lists, which takes a microsecond."""
        try:
            return [*self.names.values()] == self._values
        except Exception:  # the new value, an array perhaps, cannot be compared
            return False

    def absorb(self, earlier: Mapping[str, Any] | None = None) -> None:
        """Take as the library's own what changed since `earlier`, a copy of `names`; by default, all that changed."""
        now, base = dict(self.names), self._base()
        since = dict(base) if earlier is None else earlier
        for name in {*since, *now}:
            if since.get(name, _GONE) is now.get(name, _GONE):
                continue
            if name in now:
                base[name] = now[name]
            else:
                base.pop(name, None)
        self._keep({name: base[name] for name in (*now, *base) if name in base})

    def changes(self) -> Iterator[str]:
        """The names that a notebook changed, each with its module or class."""
        now, base = dict(self.names), self._base()
        patched = (name for name, old in base.items() if self._is_patched(name, old, now.get(name, _GONE)))
        added = (name for name in now.keys() - base.keys() if self._is_planted(name, now[name]))
        return (f"{self.name}.{name}" for each in (patched, added) for name in each)

    def _base(self) -> dict[str, Any]:
        return dict(zip(self._keys, self._values, strict=True))

    def _is_patched(self, name: str, old: Any, new: Any) -> bool:
        """Whether a name no longer stands for what it did. A library may fill what it left empty, and keeps counts."""
        if new is old or f"{self.name}.{name}" in _VARYING or _is_profiled_step(new):
            return False
        if isinstance(new, ModuleType) and new is sys.modules.get(f"{self.name}.{name}"):
            return False  # imported since: Python puts a module into its package
        if old is None:
            return is_code(new) and is_foreign(new)
        if isinstance(old, ModuleType) or is_code(old):
            return _are_unequal(new, old)
        if not name.startswith("_"):
            return not isinstance(old, _PLAIN) or type(new) is not type(old) or _are_unequal(new, old)
        return self.name.startswith("qwenlab.") and isinstance(old, _PLAIN) and _are_unequal(new, old)

    def _is_planted(self, name: str, new: Any) -> bool:
        """Whether a new name runs a notebook's code, or hides what the name stood for."""
        if not is_code(new) or _is_profiled_step(new):
            return False
        if is_foreign(new):
            return True
        if isinstance(self.owner, type):
            return any(name in vars(base) for base in self.owner.__mro__[1:])
        with suppress(Exception):  # a package that imports its names when they are first used has a __getattr__
            return self._looked_up(name) is not new
        return hasattr(builtins, name)

    def _looked_up(self, name: str) -> Any:
        """What the `__getattr__` of a module, or of its type, returns for a name."""
        module: Any = self.owner
        return self.names["__getattr__"](name) if "__getattr__" in self.names else module.__getattr__(name)


class Table:
    """The code that a library keeps in a dict: a registry of functions, of classes, of hooks.

    name  under which a module or class has it
    held  the dict
    """

    __slots__ = ("_keys", "_length", "_values", "held", "name")

    def __init__(self, name: str, held: dict[Any, Any]) -> None:
        self.name, self.held = name, held
        self.absorb()

    def absorb(self) -> None:
        """Take what it has now as the library's own."""
        # by the methods of dict itself: a subclass may make its values when they are asked for
        code = {key: value for key, value in dict.items(self.held) if isinstance(value, ModuleType) or is_code(value)}
        self._keys, self._values, self._length = [*code], [*code.values()], dict.__len__(self.held)

    def is_as_it_was(self) -> bool:
        """Whether the code in it is the same, and it has not grown or shrunk."""
        try:
            length, get = dict.__len__(self.held), partial(dict.get, self.held)
            return length == self._length and [*map(get, self._keys)] == self._values
        except Exception:  # a new value cannot be compared
            return False

    def changes(self) -> Iterator[str]:
        """Its entries that a notebook replaced, removed or added."""
        now, base = dict(dict.items(self.held)), dict(zip(self._keys, self._values, strict=True))
        for key in {**base, **now}:
            old, new = base.get(key, _GONE), now.get(key, _GONE)
            if (key in base and _are_unequal(new, old)) or (key not in base and is_code(new) and is_foreign(new)):
                yield f"{self.name}[{key!r:.60}]"


def _are_unequal(one: Any, other: Any) -> bool:
    """Two bound methods of one object are equal. Values that cannot be compared are not."""
    try:
        return one is not other and bool(one != other)
    except Exception:
        return True


def _is_profiled_step(value: Any) -> bool:
    """Whether it is the `step` of an optimizer, which torch wraps when the first optimizer of a class is made."""
    return getattr_static(value, "hooked", False) is True and not is_foreign(value)
