"""Reference-counted monkey-patching of functions and module calls."""

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

from qwenlab.capture.lanes import placed

ModuleGlobals = dict[str, Any]
Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""The positional and the keyword arguments of a call."""
Before = Callable[[tuple[Any, ...], dict[str, Any]], None]
"""Called before each call, with its arguments and keyword arguments."""
After = Callable[[tuple[Any, ...], dict[str, Any], Any], None]
"""Called after each call, with its arguments, keyword arguments and result."""
Around = Callable[..., Any]
"""Called instead of each call, with the original function and its arguments; its result replaces that of the call."""


class _Wrapper:
    """One function, wrapped under its own name: `around` and `instead` change calls, `before` and `after` observe them.

    owner  the module whose method the function is, if it is one; a copy of that module is not wrapped
    users  number of blocks that listen, also those of lanes that wait
    """

    def __init__(self, namespace: ModuleGlobals, name: str, original: Callable[..., Any], owner: Any = None) -> None:
        self.namespace, self.name, self.original, self.owner = namespace, name, original, owner
        self.around: tuple[Around, ...] = ()
        self.instead: tuple[Around, ...] = ()
        self.before: tuple[Before, ...] = ()
        self.after: tuple[After, ...] = ()
        self.users = 0
        self._existed = name in namespace
        functools.update_wrapper(self, original)
        namespace[name] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.around or self.instead:
            args, kwargs, result = self._run_changed(args, kwargs)
        else:
            for before in self.before:
                before(args, kwargs)
            result = self.original(*args, **kwargs)
        for after in self.after:
            after(args, kwargs, result)
        return result

    def _run_changed(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
        """Run a call with all changes; return the arguments that reached the function, and the result."""
        final = (args, kwargs)

        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal final
            final = (args, kwargs)
            for before in self.before:
                before(args, kwargs)
            function = self.original
            for instead in self.instead:
                function = functools.partial(instead, function)
            return function(*args, **kwargs)

        call = run
        for around in reversed(self.around):
            call = functools.partial(around, call)
        result = call(*args, **kwargs)
        return *final, result

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if self._existed or id(self.owner) not in memo:
            return copy.deepcopy(self.original, memo)
        return MethodType(getattr(type(self.owner), self.name), memo[id(self.owner)])

    def restore(self) -> None:
        """Restore the original, unless another function has replaced the wrapper since: that one stays."""
        if self.namespace.get(self.name) is not self:
            return
        if self._existed:
            self.namespace[self.name] = self.original
        else:
            del self.namespace[self.name]


_wrappers: dict[tuple[int, str], _Wrapper] = {}
_registry = threading.RLock()
"""Lock for adding, changing and removing wrappers."""


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
    """Context manager that observes or changes calls of `namespace[name]`; the last one to exit removes the wrapper.

    original  the function that runs now: `namespace[name]`, or its replacement where the name is missing
    before    observes calls before they run, with the arguments after all changes
    after     observes calls after they ran, with the arguments and the result after all changes
    around    changes arguments or result
    outside   wrap `around` outside earlier changes, so that it gets their result; by default inside, so that it gets
              their arguments
    instead   runs instead of the function, after all changes to the arguments
    inmost    call `after` before those of earlier listeners
    """
    key = (id(namespace), name)
    with _registry:
        wrapper = _wrappers.get(key)
        if wrapper is None:
            if isinstance(original, _Wrapper):  # another thread has removed it since it was looked up
                original = original.original
            wrapper = _wrappers[key] = _Wrapper(namespace, name, original, owner)
        wrapper.users += 1

    # Tuples are replaced, never mutated: a call in progress continues with those that it began with.
    def place() -> None:
        with _registry:
            if around is not None:
                wrapper.around = (around, *wrapper.around) if outside else (*wrapper.around, around)
            if instead is not None:
                wrapper.instead = (*wrapper.instead, instead)
            if before is not None:
                wrapper.before = (*wrapper.before, before)
            if after is not None:
                wrapper.after = (after, *wrapper.after) if inmost else (*wrapper.after, after)

    def remove() -> None:
        with _registry:
            wrapper.around = tuple(each for each in wrapper.around if each is not around)
            wrapper.instead = tuple(each for each in wrapper.instead if each is not instead)
            wrapper.before = tuple(each for each in wrapper.before if each is not before)
            wrapper.after = tuple(each for each in wrapper.after if each is not after)

    try:
        with placed(place, remove):
            yield
    finally:
        with _registry:
            wrapper.users -= 1
            if not wrapper.users:
                wrapper.restore()
                del _wrappers[key]


@contextmanager
def inputs(module: nn.Module, before: Before) -> Iterator[None]:
    """Context manager that observes a module's arguments, after any other hook has changed them."""
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
    """Context manager that observes or changes a module's result, after any other hook has changed it.

    It uses no torch hook: one costs several microseconds, and a decode step runs a hundred such modules. It relies on
    `__call__` looking up `_call_impl` on the module (docs/decisions/0013-no-hooks-of-torch.md).
    """
    call: Any = module._call_impl
    options: Any = dict(before=before, around=around, outside=True, instead=instead, inmost=inmost, owner=module)
    with listening(vars(module), "_call_impl", call, after, **options):
        yield


@contextmanager
def changed(module: nn.Module, around: Around, *, outside: bool = True) -> Iterator[None]:
    """Context manager that changes a module's result before other hooks read it.

    transformers' `output_hidden_states` and `output_router_logits` are such hooks.

    outside  as in `listening`: True for changes of the result, False for those of the arguments
    """
    with listening(vars(module), "forward", module.forward, around=around, outside=outside, owner=module):
        yield


_methods: dict[tuple[type, str], tuple[Any, list[After]]] = {}
"""By class and method: the original, and its listeners."""


@contextmanager
def method_calls(owner: type, name: str, after: After) -> Iterator[None]:
    """Context manager that observes every call of a class's method; the instance is the first argument."""
    key = (owner, name)
    with _registry:
        if key not in _methods:
            original, listeners = vars(owner)[name], list[After]()

            @functools.wraps(original)
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                result = original(*args, **kwargs)
                for listener in tuple(listeners):
                    listener(args, kwargs, result)
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


def in_this_thread(listener: Callable[..., None]) -> Callable[..., None]:
    """Restrict a listener to calls from the current thread, since other threads may run the same model."""
    own = get_ident()

    def restricted(*args: Any, **kwargs: Any) -> None:
        if get_ident() == own:
            listener(*args, **kwargs)

    return restricted


def unwrapped(namespace: ModuleGlobals, name: str) -> Callable[..., Any]:
    """Return `namespace[name]` without our wrapper."""
    function: Callable[..., Any] = namespace[name]
    return function.original if isinstance(function, _Wrapper) else function


def heard(module: nn.Module) -> bool:
    """Return whether a module's calls are observed or changed, by our wrappers or by torch hooks."""
    wrapped = any((id(vars(module)), name) in _wrappers for name in ("forward", "_call_impl"))
    return wrapped or bool(module._forward_hooks or module._forward_pre_hooks)
