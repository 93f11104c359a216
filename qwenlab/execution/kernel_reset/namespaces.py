"""Snapshots of a module, a class or a table of functions, and the names in it that a notebook changed."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from inspect import getattr_static
from types import ModuleType
from typing import Any

from qwenlab.execution.kernel_reset.origin import is_code, is_foreign

_GONE: Any = object()
"""Replaces the value of a missing name."""

_PLAIN = (bool, int, float, complex, str, bytes, tuple, frozenset)
"""Types of constants: immutable, so they are compared by value."""

_VARYING = {"torch.utils.hooks.RemovableHandle.next_id", "matplotlib.pyplot._backend_mod", "warnings.filters"}
"""Names that change in ordinary use: a counter, and two that `RestoredSettings` restores."""


class _Snapshot:
    """Keys and values as two lists, so that comparing the values takes a microsecond."""

    __slots__ = ("_keys", "_values", "name")

    def _store(self, content: dict[Any, Any]) -> None:
        self._keys, self._values = [*content], [*content.values()]

    def _base(self) -> dict[Any, Any]:
        return dict(zip(self._keys, self._values, strict=True))


class Namespace(_Snapshot):
    """A snapshot of `names`, the `__dict__` of a module or class, with the values from its library."""

    __slots__ = ("names", "owner")

    def __init__(self, name: str, names: Mapping[str, Any], owner: ModuleType | type) -> None:
        self.name, self.names, self.owner = name, names, owner
        self._store(dict(names))

    def is_unchanged(self) -> bool:
        """Whether every name has its old value and none was added."""
        try:
            return [*self.names.values()] == self._values
        except Exception:  # the new value, an array perhaps, cannot be compared
            return False

    def absorb(self, earlier: Mapping[str, Any] | None = None) -> None:
        """Add to the snapshot what changed since `earlier`, a copy of `names`; by default, all changes."""
        now, base = dict(self.names), self._base()
        since = dict(base) if earlier is None else earlier
        for name in {*since, *now}:
            if since.get(name, _GONE) is now.get(name, _GONE):
                continue
            if name in now:
                base[name] = now[name]
            else:
                base.pop(name, None)
        self._store({name: base[name] for name in (*now, *base) if name in base})

    def changes(self) -> Iterator[str]:
        """Full names of what a notebook changed."""
        now, base = dict(self.names), self._base()
        patched = (name for name, old in base.items() if self._is_patched(name, old, now.get(name, _GONE)))
        added = (name for name in now.keys() - base.keys() if self._is_planted(name, now[name]))
        return (f"{self.name}.{name}" for name in (*patched, *added))

    def _is_patched(self, name: str, old: Any, new: Any) -> bool:
        """Whether a name was patched. A library itself may set a name that was None, and update its private state."""
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
        """Whether a new name runs a notebook's code, or hides an inherited or built-in name."""
        if not is_code(new) or _is_profiled_step(new):
            return False
        if is_foreign(new):
            return True
        if isinstance(self.owner, type):
            return any(name in vars(base) for base in self.owner.__mro__[1:])
        with suppress(Exception):  # a package that imports its names when they are first used has a __getattr__
            module: Any = self.owner
            look_up = self.names.get("__getattr__") or module.__getattr__
            return bool(look_up(name) is not new)
        return hasattr(builtins, name)


class Table(_Snapshot):
    """A snapshot of the code in a dict, the `registry` of functions, classes or hooks with this full name."""

    __slots__ = ("_length", "registry")

    def __init__(self, name: str, registry: dict[Any, Any]) -> None:
        self.name, self.registry = name, registry
        self.absorb()

    def absorb(self) -> None:
        """Replace the snapshot by the present content."""
        # By the methods of dict itself: a subclass may compute its values on access.
        entries = dict.items(self.registry)
        self._store({key: value for key, value in entries if isinstance(value, ModuleType) or is_code(value)})
        self._length = len(entries)

    def is_unchanged(self) -> bool:
        """Whether it has the same code and the same number of entries."""
        try:
            length, get = dict.__len__(self.registry), partial(dict.get, self.registry)
            return length == self._length and [*map(get, self._keys)] == self._values
        except Exception:  # a new value cannot be compared
            return False

    def changes(self) -> Iterator[str]:
        """Names of the entries that a notebook replaced, removed or added."""
        now, base = dict(dict.items(self.registry)), self._base()
        for key in {**base, **now}:
            old, new = base.get(key, _GONE), now.get(key, _GONE)
            if (key in base and _are_unequal(new, old)) or (key not in base and is_code(new) and is_foreign(new)):
                yield f"{self.name}[{key!r:.60}]"


def _are_unequal(one: Any, other: Any) -> bool:
    """Whether two values differ; values that cannot be compared do. Bound methods of one object are equal."""
    try:
        return one is not other and bool(one != other)
    except Exception:
        return True


def _is_profiled_step(value: Any) -> bool:
    """Whether it is the `step` of an optimizer, which torch wraps at the first use of the optimizer's class."""
    return getattr_static(value, "hooked", False) is True and not is_foreign(value)
