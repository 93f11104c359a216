"""Functions that are looked up by name when they are called, wrapped in their place for as long as anyone listens."""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident
from types import MethodType
from typing import Any

from torch import nn

ModuleGlobals = dict[str, Any]
Before = Callable[[tuple[Any, ...], dict[str, Any]], None]
"""Told of each call before it runs: its arguments, its keyword arguments."""
After = Callable[[tuple[Any, ...], dict[str, Any], Any], None]
"""Told of each call once it has returned: its arguments, its keyword arguments, its result."""
Around = Callable[..., Any]
"""Called in place of each call, with the function that would have run and its arguments; what it returns counts."""


class _Wrapper:
    """One function, wrapped under its own name: changes stand around it, and listeners hear what comes of them.

    owner  the module whose method it is, if it is one: a copy of that module is not wrapped
    """

    def __init__(self, namespace: ModuleGlobals, name: str, original: Callable[..., Any], owner: Any = None) -> None:
        self.namespace, self.name, self.original, self.owner = namespace, name, original, owner
        self.around: tuple[Around, ...] = ()
        self.instead: tuple[Around, ...] = ()
        self.before: tuple[Before, ...] = ()
        self.after: tuple[After, ...] = ()
        self._was_there = name in namespace
        functools.update_wrapper(self, original)
        namespace[name] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.around or self.instead:
            args, kwargs, result = self._changed(args, kwargs)
        else:
            for look in self.before:
                look(args, kwargs)
            result = self.original(*args, **kwargs)
        for look_after in self.after:
            look_after(args, kwargs, result)
        return result

    def _changed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
        """The arguments that the function got in the end, and what came of them."""
        given = (args, kwargs)

        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal given
            given = (args, kwargs)
            for look in self.before:
                look(args, kwargs)
            function = self.original
            for instead in self.instead:
                function = functools.partial(instead, function)
            return function(*args, **kwargs)

        call = run
        for around in reversed(self.around):
            call = functools.partial(around, call)
        result = call(*args, **kwargs)
        return *given, result

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
_registry = threading.RLock()
"""Held while wrappers are placed, joined or removed."""


@contextmanager
def listening(
    namespace: ModuleGlobals,
    name: str,
    original: Callable[..., Any],
    after: After | None = None,
    *,
    before: Before | None = None,
    around: Around | None = None,
    outside: bool = False,
    instead: Around | None = None,
    inmost: bool = False,
    owner: nn.Module | None = None,
) -> Iterator[None]:
    """Hear every call of `namespace[name]`; the wrapping goes with the last listener, in whatever order they leave.

    original  what runs when the name is called now: `namespace[name]`, or what stands in where it is missing
    around    change the arguments or the result: listeners hear what is left when every change was made
    outside   stand outside the changes that came before this one, to get the result that they made; by default inside,
              to get their arguments
    instead   run in place of the function, with all arguments changed
    inmost    be told last before the call, and first after it
    """
    key = (id(namespace), name)
    with _registry:
        wrapper = _wrappers.get(key)
        if wrapper is None:
            if isinstance(original, _Wrapper):  # of another thread, which has removed it since it was looked up
                original = original.original
            wrapper = _wrappers[key] = _Wrapper(namespace, name, original, owner)
        # Tuples are replaced, never changed: a call that is under way goes on with those it began with.
        if around is not None:
            wrapper.around = (around, *wrapper.around) if outside else (*wrapper.around, around)
        if instead is not None:
            wrapper.instead = (*wrapper.instead, instead)
        if before is not None:
            wrapper.before = (*wrapper.before, before)
        if after is not None:
            wrapper.after = (after, *wrapper.after) if inmost else (*wrapper.after, after)
    try:
        yield
    finally:
        with _registry:
            wrapper.around = tuple(each for each in wrapper.around if each is not around)
            wrapper.instead = tuple(each for each in wrapper.instead if each is not instead)
            wrapper.before = tuple(each for each in wrapper.before if each is not before)
            wrapper.after = tuple(each for each in wrapper.after if each is not after)
            if not (wrapper.around or wrapper.instead or wrapper.before or wrapper.after):
                wrapper.restore()
                del _wrappers[key]


@contextmanager
def inputs(module: nn.Module, before: Before) -> Iterator[None]:
    """Hear what a module is given, after all hooks of others that may change it."""
    with listening(vars(module), "forward", module.forward, before=before, owner=module):
        yield


@contextmanager
def outputs(
    module: nn.Module,
    after: After | None = None,
    *,
    before: Before | None = None,
    around: Around | None = None,
    instead: Around | None = None,
    inmost: bool = False,
) -> Iterator[None]:
    """Hear what a module has returned, after all hooks of others that may change it.

    Not by a hook of our own: torch takes several microseconds for one, and a decode step has a hundred such modules.
    `__call__` of a module looks `_call_impl` up on the module.
    """
    call: Any = module._call_impl
    how: Any = dict(before=before, around=around, outside=True, instead=instead, inmost=inmost, owner=module)
    with listening(vars(module), "_call_impl", call, after, **how):
        yield


@contextmanager
def changed(module: nn.Module, around: Around, *, outside: bool = True) -> Iterator[None]:
    """Change what a module computes, inside the hooks of others: one that reads its output gets what it was changed to.

    transformers' `output_hidden_states` and `output_router_logits` are such hooks.

    outside  as in `listening`: True for changes of the result, False for those of the arguments
    """
    with listening(vars(module), "forward", module.forward, around=around, outside=outside, owner=module):
        yield


_methods: dict[tuple[type, str], tuple[Any, list[After]]] = {}
"""The methods of classes that are listened to: what stood there before, and the listeners."""


@contextmanager
def method_calls(owner: type, name: str, after: After) -> Iterator[None]:
    """Hear every call of a method that a class defines, on any instance; the instance is the first argument."""
    key = (owner, name)
    with _registry:
        if key not in _methods:
            original, listeners = vars(owner)[name], list[After]()

            @functools.wraps(original)
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                result = original(*args, **kwargs)
                for look in tuple(listeners):
                    look(args, kwargs, result)
                return result

            _methods[key] = original, listeners
            setattr(owner, name, wrapper)
        _methods[key][1].append(after)
    try:
        yield
    finally:
        with _registry:
            original, listeners = _methods[key]
            listeners.remove(after)
            if not listeners:
                del _methods[key]
                setattr(owner, name, original)


def in_this_thread(look: Callable[..., None]) -> Callable[..., None]:
    """A listener that hears only the calls made by the thread that made it: others may run the same model."""
    own = get_ident()

    def heard_here(*args: Any, **kwargs: Any) -> None:
        if get_ident() == own:
            look(*args, **kwargs)

    return heard_here


def unwrapped(namespace: ModuleGlobals, name: str) -> Callable[..., Any]:
    """`namespace[name]` as it is without listeners."""
    found: Callable[..., Any] = namespace[name]
    return found.original if isinstance(found, _Wrapper) else found


def heard(module: nn.Module) -> bool:
    """Whether anybody listens to a module, or changes what it does: by these wrappings, or by hooks of torch."""
    held = vars(module)
    wrapped = any((id(held), name) in _wrappers for name in ("forward", "_call_impl"))
    return wrapped or bool(module._forward_hooks or module._forward_pre_hooks)
