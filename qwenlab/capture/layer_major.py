"""Layer-major execution: many texts pass through a layer before the next one is loaded."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from greenlet import GreenletExit
from tqdm.auto import tqdm
from transformers import GenerationMixin

from qwenlab.arguments import integer
from qwenlab.capture.generate_calls import GENERATE_METHODS
from qwenlab.capture.lanes import current_lane
from qwenlab.capture.suspended_calls import SuspendableCall
from qwenlab.capture.waiting import WaitingTensors
from qwenlab.capture.wrapping import listening, outputs
from qwenlab.checkpoint.caches import first_cache
from qwenlab.checkpoint.decoder import Decoder
from qwenlab.errors import BadArgument, CannotRunLayerMajor

T = TypeVar("T")
Load = Callable[[int], AbstractContextManager[Any]]
"""Of a layer's index: a context manager in which its weights are present."""


@dataclass(frozen=True)
class Branch(Generic[T]):
    """A call that begins at a layer, with the hidden state that another call has there.

    Its forward pass runs as any other, but the layers below do nothing. So it must read the text of the other call, and
    must not differ below that layer: enter `intervene` for the layers from there on inside the call.

    call   a function without arguments that runs one forward pass, without a cache
    of     index of the other call, which is not a Branch
    layer  index of the first layer that runs
    """

    call: Callable[[], T]
    of: int
    layer: int


def run_layer_major(
    decoder: Decoder,
    calls: Iterable[Callable[[], T] | Branch[T]],
    *,
    layers: Load | None = None,
    last: Callable[[], AbstractContextManager[Any]] = nullcontext,
    memory: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> Generator[T, None, None]:
    """Run calls of a model together, layer by layer; yields their results in the order of the calls.

    Each call runs the model's own forward, once, in a greenlet that is suspended before each layer. All calls pass
    through a layer before the first one goes on to the next, so each layer is loaded once. After the last layer, the
    calls end one after the other, each when its result is asked for: only one of them has logits at a time, unless the
    results are kept.

    Results are those of the calls one by one, bit for bit on a CPU. So are the measurements of a `watch`, and the
    effects and counts of an `intervene`, around all calls. A block that a call enters acts in that call alone.

    decoder   the layers of the model that the calls run
    calls     functions without arguments, such as `partial(model, ids, use_cache=False)`, and branches of them
    layers    layers(i): a context manager in which the weights of layer i are present; by default all are
    last      last(): a context manager in which those that run after the layers are present, such as the lm_head
    memory    bytes of suspended passes that may wait in memory, by default any number. Counted are, for each pass, its
              hidden state, the embeddings that the model's forward keeps until its end, masks, rotary tables, and its
              cache if it has one. The hidden states and the embeddings of passes beyond that wait in files, where
              nobody else uses their memory. Not counted: input ids, what probes carry, results
    folder    where these files are; by default the folder for temporary files, which may be in memory itself
    progress  show a progress bar of the layers

    Gradients must be off, and autograd and autocast modes may not change inside a call. Close the iterator, or let it
    end, to end all calls. If a call raises, the others end too, by greenlet.GreenletExit, and the error is raised.

    Raises BadArgument, CannotRunLayerMajor (a decode step, `generate`, a second pass in a call) and DiskFull.
    """
    given = tuple(calls)
    _check(given, len(decoder.layers))
    if memory is not None:
        integer("run_layer_major", "memory", memory, unit="bytes")
    if torch.is_grad_enabled():
        raise BadArgument(
            "run_layer_major keeps no graph: a layer's weights are gone before a backward pass could read them.\n"
            "Iterate inside torch.no_grad() or torch.inference_mode()."
        )
    if current_lane.get() is not None:
        raise BadArgument(
            "run_layer_major runs inside a call of another one, which would suspend it.\nRun one after the other."
        )
    return _LayerMajorRun(decoder, given, WaitingTensors(memory, folder)).results(layers, last, progress)


class _LayerMajorRun(Generic[T]):
    """A run: calls that take turns on one stack of layers."""

    def __init__(self, decoder: Decoder, given: Sequence[Callable[[], T] | Branch[T]], waiting: WaitingTensors) -> None:
        self._embedding: Any = decoder.module.get_input_embeddings()
        self._stops = [*decoder.layers, decoder.module.norm]  # a call is suspended before each
        self._given, self._waiting, self._ending = given, waiting, False
        self._modes = _modes()
        self._calls: dict[Any, int] = {}  # their indices

    def results(
        self, load: Load | None, last: Callable[[], AbstractContextManager[Any]], progress: bool
    ) -> Generator[T, None, None]:
        """Run the calls; yields their results."""
        calls = [_suspendable(each) for each in self._given]
        self._calls = {call: index for index, call in enumerate(calls)}
        for each, call in zip(self._given, calls, strict=True):
            if isinstance(each, Branch) and each.layer:
                calls[each.of].branches[each.layer].append(call)
        with ExitStack() as ending:
            ending.enter_context(self._waiting)
            self._place_hooks(ending)
            for call in calls:
                ending.callback(call.end)
            ending.callback(self._end)
            for call in calls:
                if not call.first:
                    self._resume(call)
            for layer in tqdm(range(len(self._stops) - 1), desc="layers", unit="layer", disable=not progress):
                with nullcontext() if load is None else load(layer):
                    for call in calls:
                        if call.at == layer:
                            self._run_layer(call)
            with last():
                for call in calls:
                    self._require_begun(call)
                    self._require_same_modes()
                    yield call.result(self._waiting)

    def _end(self) -> None:
        self._ending = True

    def _place_hooks(self, hooks: ExitStack) -> None:
        hooks.enter_context(listening(GenerationMixin, GENERATE_METHODS[0], self._refuse_generate))
        hooks.enter_context(outputs(self._embedding, around=self._embed))
        for index, module in enumerate(self._stops):
            hooks.enter_context(outputs(module, around=partial(self._stop, index)))

    def _run_layer(self, call: SuspendableCall[T]) -> None:
        """Run the layer before which a call waits, first for the branches that begin there."""
        self._waiting.take(call)
        for branch in call.branches[call.at]:
            assert call.hidden is not None
            branch.origin = call.hidden.clone()  # a layer may write into its input
            self._resume(branch)
        self._resume(call)

    def _resume(self, call: SuspendableCall[T]) -> None:
        self._require_same_modes()
        call.resume(self._waiting)

    def _running(self) -> SuspendableCall[Any] | None:
        """The call of this run that is running, None outside of all."""
        call: Any = current_lane.get()
        if call not in self._calls:
            return None
        if self._ending:
            raise GreenletExit
        return call

    def _embed(self, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        call, embedded = self._running(), run(*args, **kwargs)
        return embedded if call is None else call.owned(embedded)

    def _stop(self, index: int, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Suspend the call that is running, and run a layer, or the final norm, once it is resumed."""
        call = self._running()
        if call is None:
            return run(*args, **kwargs)
        hidden, *others = args or (kwargs.pop("hidden_states"),)
        if index < call.first:
            return hidden
        self._require_first_pass(call, index, kwargs)
        call.at = index
        if call.origin is None:
            call.wait(hidden, (hidden, others, kwargs))
        else:
            hidden = self._origin(call, hidden)
        return call.owned(run(hidden, *others, **kwargs))

    def _origin(self, branch: SuspendableCall[Any], own: torch.Tensor) -> torch.Tensor:
        """Return the hidden state with which a branch begins."""
        origin, branch.origin = branch.origin, None
        assert origin is not None
        if origin.shape != own.shape:
            raise CannotRunLayerMajor(
                f"{self._name(branch)} begins with a hidden state {list(origin.shape)} of another call, and reads a "
                f"batch of {list(own.shape[:2])}.\nA Branch reads the same batch as the call that it names with `of`."
            )
        return origin

    def _require_begun(self, call: SuspendableCall[T]) -> None:
        if call.first and call.at < 0:
            raise CannotRunLayerMajor(
                f"{self._name(call)} never began: the call that it branches from did not reach layer {call.first}.\n"
                "That call runs a forward pass of this model."
            )

    def _require_first_pass(self, call: SuspendableCall[Any], index: int, kwargs: dict[str, Any]) -> None:
        cache = first_cache(kwargs.values())
        if index <= call.at:
            why = "runs a second forward pass"
        elif cache is not None and call.first:
            why = "has a cache, which would lack the layers below its first"
        elif index == call.first and cache is not None and cache.get_seq_length():
            why = "continues a cache, as decode steps do"
        else:
            self._require_same_modes()
            return
        raise CannotRunLayerMajor(
            f"{self._name(call)} {why}. Layer-major execution runs one forward pass per call, of whole texts.\n"
            "Pass each text whole, with use_cache=False; decode outside of run_layer_major."
        )

    def _require_same_modes(self) -> None:
        if _modes() != self._modes:
            raise CannotRunLayerMajor(
                "Gradients, inference mode or autocast changed since the run began: calls that take turns would get "
                "each other's.\nEnter these modes around the whole iteration, not inside a call."
            )

    def _refuse_generate(self, args: Any, kwargs: Any, result: Any) -> None:
        if (call := self._running()) is not None:
            raise CannotRunLayerMajor(
                f"{self._name(call)} calls generate, and each new token is a further forward pass.\n"
                "Generate outside of run_layer_major, then pass the finished texts."
            )

    def _name(self, call: SuspendableCall[Any]) -> str:
        return f"Call {self._calls[call]} of run_layer_major"


def _suspendable(given: Callable[[], T] | Branch[T]) -> SuspendableCall[T]:
    return SuspendableCall(given.call, given.layer) if isinstance(given, Branch) else SuspendableCall(given)


def _modes() -> tuple[bool, ...]:
    """The modes of torch, which are of the thread and not of a greenlet."""
    autocast = (torch.is_autocast_enabled(device) for device in ("cpu", "cuda"))
    return (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *autocast)


def _check(calls: Sequence[Any], layers: int) -> None:
    """Raise BadArgument unless these are functions, and branches of them at layers of the model."""
    if not calls:
        raise BadArgument("run_layer_major got no calls.\nGive at least one function without arguments.")
    for index, call in enumerate(calls):
        if not callable(call.call if isinstance(call, Branch) else call):
            raise BadArgument(
                f"Call {index} of run_layer_major is a {type(call).__name__}.\n"
                "Give functions without arguments, such as partial(model, ids, use_cache=False)."
            )
        if isinstance(call, Branch):
            integer("Branch", "of", call.of, most=len(calls) - 1)
            integer("Branch", "layer", call.layer, most=layers - 1)
            if isinstance(calls[call.of], Branch):
                raise BadArgument(f"Branch(of={call.of}) is a branch of a branch.\nName the call that runs all layers.")
