"""Functions that are looked up by name when they are called, wrapped in their place for as long as anyone listens."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

from torch import nn

Namespace = dict[str, Any]
Before = Callable[[tuple[Any, ...], dict[str, Any]], None]
"""Told of each call before it runs: its arguments, its keyword arguments."""
After = Callable[[tuple[Any, ...], dict[str, Any], Any], None]
"""Told of each call once it has returned: its arguments, its keyword arguments, its result."""


class _Wrapper:
    """One function, wrapped under its own name so that every call is told to the listeners.

    owner  the module whose method it is, if it is one: a copy of that module is not wrapped
    """

    def __init__(self, namespace: Namespace, name: str, original: Callable[..., Any], owner: Any = None) -> None:
        self.namespace, self.name, self.original, self.owner = namespace, name, original, owner
        self.before: tuple[Before, ...] = ()
        self.after: tuple[After, ...] = ()
        self._was_there = name in namespace
        functools.update_wrapper(self, original)
        namespace[name] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        for look in self.before:
            look(args, kwargs)
        result = self.original(*args, **kwargs)
        for look_after in self.after:
            look_after(args, kwargs, result)
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if self._was_there or id(self.owner) not in memo:
            return copy.deepcopy(self.original, memo)
        return MethodType(getattr(type(self.owner), self.name), memo[id(self.owner)])

    def restore(self) -> None:
        """Put the original back, unless somebody has laid a function of their own over ours: theirs stays."""
        if self.namespace.get(self.name) is not self:
            return
        if self._was_there:
            self.namespace[self.name] = self.original
        else:
            del self.namespace[self.name]


_wrappers: dict[tuple[int, str], _Wrapper] = {}


@contextmanager
def listening(
    namespace: Namespace,
    name: str,
    original: Callable[..., Any],
    after: After | None = None,
    *,
    before: Before | None = None,
    inmost: bool = False,
    owner: nn.Module | None = None,
) -> Iterator[None]:
    """Hear every call of `namespace[name]`; the wrapping goes with the last listener, in whatever order they leave.

    original  what runs when the name is called now: `namespace[name]`, or what stands in where it is missing
    inmost    be told last before the call, and first after it
    """
    key = (id(namespace), name)
    wrapper = _wrappers.get(key)
    if wrapper is None:
        wrapper = _wrappers[key] = _Wrapper(namespace, name, original, owner)
    # Tuples are replaced, never changed: a call that is under way goes on with those it began with.
    if before is not None:
        wrapper.before = (*wrapper.before, before)
    if after is not None:
        wrapper.after = (after, *wrapper.after) if inmost else (*wrapper.after, after)
    try:
        yield
    finally:
        wrapper.before = tuple(each for each in wrapper.before if each is not before)
        wrapper.after = tuple(each for each in wrapper.after if each is not after)
        if not wrapper.before and not wrapper.after:
            wrapper.restore()
            del _wrappers[key]


@contextmanager
def inputs(module: nn.Module, before: Before) -> Iterator[None]:
    """Hear what a module is given, after all hooks of others that may change it."""
    with listening(vars(module), "forward", module.forward, before=before, owner=module):
        yield


@contextmanager
def outputs(module: nn.Module, after: After, *, before: Before | None = None, inmost: bool = False) -> Iterator[None]:
    """Hear what a module has returned, after all hooks of others that may change it.

    Not by a hook of our own: torch takes several microseconds for one, and a decode step has a hundred such modules.
    `__call__` of a module looks `_call_impl` up on the module.
    """
    call: Any = module._call_impl
    with listening(vars(module), "_call_impl", call, after, before=before, inmost=inmost, owner=module):
        yield


def unwrapped(namespace: Namespace, name: str) -> Callable[..., Any]:
    """`namespace[name]` as it is without listeners."""
    wrapper = _wrappers.get((id(namespace), name))
    return namespace[name] if wrapper is None or namespace[name] is not wrapper else wrapper.original
