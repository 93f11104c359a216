"""Functions that the layers of a model call: the calls of one layer at a time are read, changed or replaced."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from typing import Any, Generic, TypeVar

from qwenlab.capture.running_layers import followed, running_mixer
from qwenlab.checkpoint.decoder import Decoder

Call = TypeVar("Call", bound=Any)
"""The record of a call, with its arguments by name; `to_call(args, kwargs)` returns them as the function takes them."""

ReadCall = Callable[[Call, dict[str, Any], Any], None]
"""A call, its keyword arguments and its result."""


class LayerCalls(Generic[Call]):
    """The calls of one function by the layers of one model, until `hooks` closes.

    The function is a global of a module or an item of a table, which other layers, and models in other threads, call
    too. So it is wrapped there, and each call goes to the listeners of the layer that makes it. Another thread may run
    the model meanwhile: a listener is added last, when all it needs is there.

    wraps   `listening` at each name of the function, without listeners
    record  the record of a call: record(layer, args, kwargs)
    caller  the mixer that makes a call, caller(args, kwargs); by default that of the layer that is running
    """

    def __init__(
        self,
        decoder: Decoder,
        hooks: ExitStack,
        wraps: list[Callable[..., AbstractContextManager[None]]],
        record: Callable[..., Call],
        caller: Callable[..., Any] = running_mixer,
    ) -> None:
        self._decoder, self._hooks, self._wraps, self._record, self._caller = decoder, hooks, wraps, record, caller
        self._listeners = {kind: defaultdict[Any, list[Any]](list) for kind in ("after", "around", "instead")}

    def read(self, layer: int, read: ReadCall[Call], when: Callable[[], bool] = lambda: True) -> None:
        """Call `read` with each call by this layer at which `when` returns True."""

        def after(args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
            if when():
                read(self._record(layer, args, kwargs), kwargs, result)

        self.listen(layer, after=after)

    def change(self, layer: int, change: Callable[[Call], Call]) -> None:
        """Change the arguments of each call by this layer."""

        def around(run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            args, kwargs = change(self._record(layer, args, kwargs)).to_call(args, kwargs)
            return run(*args, **kwargs)

        self.listen(layer, around=around)

    def replace(self, layer: int, run: Callable[..., Any]) -> None:
        """Run `run(function, call, args, kwargs)` instead of each call by this layer."""

        def instead(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            return run(function, self._record(layer, args, kwargs), args, kwargs)

        self.listen(layer, instead=instead)

    def listen(self, layer: int, **listeners: Callable[..., Any]) -> None:
        """Add listeners to the calls by this layer: `after`, `around` or `instead`, as in `listening`."""
        if self._caller is running_mixer:
            self._hooks.enter_context(followed(self._decoder, layer))
        for kind, listener in listeners.items():
            if not self._listeners[kind]:
                for wrap in self._wraps:
                    self._hooks.enter_context(wrap(**{kind: getattr(self, f"_{kind}")}))
            self._listeners[kind][self._decoder.mixer(layer)].append(listener)

    def _of_caller(self, kind: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        return self._listeners[kind].get(self._caller(args, kwargs), [])

    def _after(self, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        for listener in self._of_caller("after", args, kwargs):
            listener(args, kwargs, result)

    def _around(self, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        for change in reversed(self._of_caller("around", args, kwargs)):
            run = partial(change, run)
        return run(*args, **kwargs)

    def _instead(self, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        for replacement in self._of_caller("instead", args, kwargs):
            run = partial(replacement, run)
        return run(*args, **kwargs)
