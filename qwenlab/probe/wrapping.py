"""Functions that other modules look up by name, wrapped in their place for as long as anyone listens."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Namespace = dict[str, Any]
Listener = Callable[[tuple[Any, ...], dict[str, Any], Any], None]
"""Told of each call once it has returned: its arguments, its keyword arguments, its result."""


class _Wrapper:
    """One function, wrapped under its own name so that every call is told to the listeners."""

    def __init__(self, namespace: Namespace, name: str, original: Callable[..., Any]) -> None:
        self.namespace, self.name, self.original = namespace, name, original
        self.listeners: list[Listener] = []
        self._was_there = name in namespace

        @functools.wraps(original)
        def function(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            for listener in tuple(self.listeners):
                listener(args, kwargs, result)
            return result

        self.function = namespace[name] = function

    def restore(self) -> None:
        """Put the original back, unless somebody has laid a function of their own over ours: theirs stays."""
        if self.namespace.get(self.name) is not self.function:
            return
        if self._was_there:
            self.namespace[self.name] = self.original
        else:
            del self.namespace[self.name]


_wrappers: dict[tuple[int, str], _Wrapper] = {}


@contextmanager
def listening(namespace: Namespace, name: str, original: Callable[..., Any], listener: Listener) -> Iterator[None]:
    """Hear every call of `namespace[name]`; the wrapping goes with the last listener, in whatever order they leave.

    original  what runs when the name is called now: `namespace[name]`, or what stands in where it is missing
    """
    wrapper = _wrappers.get((id(namespace), name))
    if wrapper is None:
        wrapper = _wrappers[id(namespace), name] = _Wrapper(namespace, name, original)
    wrapper.listeners.append(listener)
    try:
        yield
    finally:
        wrapper.listeners.remove(listener)
        if not wrapper.listeners:
            wrapper.restore()
            del _wrappers[id(namespace), name]


def unwrapped(namespace: Namespace, name: str) -> Callable[..., Any]:
    """`namespace[name]` as it is without listeners."""
    wrapper = _wrappers.get((id(namespace), name))
    return namespace[name] if wrapper is None or namespace[name] is not wrapper.function else wrapper.original
