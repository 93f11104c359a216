"""Reference-counted monkey-patching of functions, methods and module calls."""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable
from threading import get_ident
from types import MethodType
from typing import Any

from torch import nn

from qwenlab.capture.lanes import current_lane

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

    owner  as in `listening`; a copy of an owner is not wrapped
    users  number of blocks that listen, also those of lanes that wait
    """

    def __init__(self, owner: Any, name: str, original: Callable[..., Any] | None) -> None:
        self.owner, self.name, self.users = owner, name, 0
        self.around: tuple[Around, ...] = ()
        self.instead: tuple[Around, ...] = ()
        self.before: tuple[Before, ...] = ()
        self.after: tuple[After, ...] = ()
        self._names = owner if isinstance(owner, dict) else vars(owner)
        self._existed = name in self._names
        self.original = original or (owner[name] if isinstance(owner, dict) else getattr(owner, name))
        self.__wrapped__ = self.original  # where inspect.signature looks
        self._place(self)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the function itself, such as its `__name__`."""
        if name == "original":
            raise AttributeError(name)
        return getattr(self.original, name)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """Bind to an instance where the function is a method of a class."""
        return self if instance is None else MethodType(self, instance)

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

    def _run_changed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any, Any]:
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
        if self._names.get(self.name) is not self:
            return
        if self._existed:
            self._place(self.original)
        elif isinstance(self.owner, type):
            delattr(self.owner, self.name)
        else:
            del self._names[self.name]

    def _place(self, function: Callable[..., Any]) -> None:
        if isinstance(self.owner, type):
            setattr(self.owner, self.name, function)
        else:  # setattr of a module looks for parameters first
            self._names[self.name] = function


_wrappers: dict[tuple[int, str], _Wrapper] = {}
_registry = threading.RLock()
"""Lock for adding, changing and removing wrappers."""


class listening:
    """Context manager that observes or changes calls of a function; the last one to exit removes the wrapper.

    owner     the object whose attribute `name` is the function: a module, or a class for a method of all instances; or
              a dictionary with the function as an item
    before    observes calls before they run, with the arguments after all changes
    after     observes calls after they ran, with the arguments and the result after all changes
    around    changes arguments or result
    outside   call `around` outside that of earlier listeners: then it changes their result, otherwise it changes
              their arguments
    instead   runs instead of the function, after all changes to the arguments
    inmost    call `after` before those of earlier listeners
    original  the function, where a dictionary lacks the name
    """

    __slots__ = ("_first", "_key", "_lane", "_listeners", "_original", "_owner", "_wrapper")

    def __init__(
        self,
        owner: Any,
        name: str,
        after: After | None = None,
        *,
        before: Before | None = None,
        around: Around | None = None,
        outside: bool = False,
        instead: Around | None = None,
        inmost: bool = False,
        original: Callable[..., Any] | None = None,
    ) -> None:
        listeners = {"around": around, "instead": instead, "before": before, "after": after}
        self._listeners = {kind: each for kind, each in listeners.items() if each is not None}
        self._first = {"around": outside, "after": inmost}
        self._key, self._owner, self._original = (id(owner), name), owner, original

    def __enter__(self) -> None:
        with _registry:
            wrapper = _wrappers.get(self._key)
            if wrapper is None:
                wrapper = _wrappers[self._key] = _Wrapper(self._owner, self._key[1], self._original)
            wrapper.users += 1
        self._wrapper, self._lane = wrapper, current_lane.get()
        self.place()
        if self._lane is not None:
            self._lane.add(self)

    def __exit__(self, *error: object) -> None:
        if self._lane is not None:
            self._lane.discard(self)
        self.remove()
        with _registry:
            self._wrapper.users -= 1
            if not self._wrapper.users:
                self._wrapper.restore()
                del _wrappers[self._key]

    # Tuples are replaced, never mutated: a call in progress continues with those that it began with.
    def place(self) -> None:
        """Listen; inside the block, after `remove`."""
        with _registry:
            for kind, listener in self._listeners.items():
                earlier = getattr(self._wrapper, kind)
                listeners = (listener, *earlier) if self._first.get(kind) else (*earlier, listener)
                setattr(self._wrapper, kind, listeners)

    def remove(self) -> None:
        """Stop listening until `place`, while other lanes take their turns."""
        with _registry:
            for kind, listener in self._listeners.items():
                setattr(
                    self._wrapper, kind, tuple(each for each in getattr(self._wrapper, kind) if each is not listener)
                )


def inputs(module: nn.Module, before: Before) -> listening:
    """Return a context manager that observes a module's arguments, after any other hook has changed them."""
    return listening(module, "forward", before=before)


def outputs(module: nn.Module, after: After | None = None, **listeners: Any) -> listening:
    """Return a context manager that observes or changes a module's result, after any other hook has changed it.

    It uses no torch hook: one costs several microseconds, and a decode step runs a hundred such modules. It relies on
    `__call__` looking up `_call_impl` on the module (docs/decisions/0013-no-hooks-of-torch.md).

    listeners  as in `listening`; `around` is outside earlier changes
    """
    return listening(module, "_call_impl", after, outside=True, **listeners)


def changed(module: nn.Module, around: Around, *, outside: bool = True) -> listening:
    """Return a context manager that changes a module's result before other hooks read it.

    transformers' `output_hidden_states` and `output_router_logits` are such hooks.

    outside  as in `listening`: True for changes of the result, False for those of the arguments
    """
    return listening(module, "forward", around=around, outside=outside)


def in_this_thread(listener: Callable[..., None]) -> Callable[..., None]:
    """Restrict a listener to calls from the current thread, since other threads may run the same model."""
    own = get_ident()

    def restricted(*args: Any, **kwargs: Any) -> None:
        if get_ident() == own:
            listener(*args, **kwargs)

    return restricted


def unwrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function without our wrapper."""
    return function.original if isinstance(function, _Wrapper) else function


def heard(module: nn.Module) -> bool:
    """Return whether a module's calls are observed or changed, by our wrappers or by torch hooks."""
    wrapped = any((id(module), name) in _wrappers for name in ("forward", "_call_impl"))
    return wrapped or bool(module._forward_hooks or module._forward_pre_hooks)
