"""Taking back what a verified block left in a cache beyond its accepted tokens."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import groupby
from typing import Any, ClassVar

import torch

from qwenlab.capture.active import replaced_by
from qwenlab.capture.delta_rule import DeltaRuleCall, DeltaRuleHook
from qwenlab.capture.wrapping import in_this_thread, listening, outputs, unwrapped
from qwenlab.checkpoint.families import DELTANET
from qwenlab.errors import CannotRollBack
from qwenlab.speculative.context import TargetContext


class Rollback(ABC):
    """How a context forgets the newest tokens of a block. One object serves one text at a time.

    The loop does `with rollback.verifying(context): context.read(block)`, then `rollback.keep(context, kept)`, after
    which cache and position must be those of a context that read only the first `kept` tokens of the block. A class of
    your own can be given wherever one of ours can.
    """

    name: ClassVar[str]

    @contextmanager
    @abstractmethod
    def verifying(self, context: TargetContext) -> Iterator[None]:
        """Around the forward pass that reads a block."""
        yield

    @abstractmethod
    def keep(self, context: TargetContext, kept: int) -> None:
        """Forget all but the first `kept` tokens (at least one) of the block."""


class ReplayRollback(Rollback):
    """The delta rule once more over the accepted tokens, from the state before the block; no weight is read again.

    What each DeltaNet layer gave to its kernel (k, v, g, beta) and to its convolution is kept of the verifying pass,
    and those of the accepted tokens are given to the recurrent kernel, of all layers on a device in one call. A block
    that was accepted whole is left as it is.
    """

    name = "replay"

    @contextmanager
    def verifying(self, context: TargetContext) -> Iterator[None]:
        """Keep the states before the block, and what the layers hand to kernel and convolution."""
        decoder = context.decoder
        _refuse_edits(context)
        self._before = [state.clone() for state in context.recurrent]
        self._calls: dict[int, DeltaRuleCall] = {}
        self._convolved: dict[int, torch.Tensor] = {}
        tap = DeltaRuleHook(decoder.family, lambda call: self._calls.__setitem__(self._layer, call))
        with ExitStack() as hooks:
            tap.listen(hooks)
            for number, (place, cache) in enumerate(zip(decoder.layers_of(DELTANET), context.deltanet, strict=True)):
                mixer: Any = decoder.part(place, "mixer")
                begin = self._beginning(tap, number, mixer.num_k_heads)
                end = in_this_thread(lambda *_: tap.end())
                hooks.enter_context(outputs(mixer, end, before=in_this_thread(begin)))
                keep = self._kept_convolution(number)
                hooks.enter_context(listening(vars(cache), "update_conv_state", cache.update_conv_state, keep))
            yield

    def keep(self, context: TargetContext, kept: int) -> None:
        """Crop the attention layers, and run the delta rule over the first `kept` tokens again."""
        width = len(context.block)
        if kept == width:
            return
        context.crop_attention(width - kept)
        context.position -= width - kept
        for number, state in enumerate(context.convolution):
            state.copy_(self._convolved[number][..., kept : kept + state.shape[-1]])
        rule = unwrapped(vars(sys.modules[context.decoder.family.modeling]), context.decoder.family.recurrent_rule)
        for _, group in groupby(range(len(self._before)), key=lambda number: self._before[number].device):
            numbers = list(group)
            states = _replayed(rule, [self._calls[n] for n in numbers], [self._before[n] for n in numbers], kept)
            for number, state in zip(numbers, states, strict=True):
                context.recurrent[number].copy_(state)

    def _beginning(self, tap: DeltaRuleHook, number: int, key_heads: int) -> Callable[..., None]:
        def begin(*_: Any) -> None:
            self._layer = number
            tap.begin(number, key_heads)

        return begin

    def _kept_convolution(self, number: int) -> Callable[..., None]:
        def keep(args: Any, kwargs: Any, full: torch.Tensor) -> None:
            self._convolved[number] = full  # [batch, channel, size of the state before + width]

        return keep


def _refuse_edits(context: TargetContext) -> None:
    """Raise CannotRollBack under an edit of which the plain delta rule over the accepted tokens knows nothing."""
    stack, layers = context.decoder.module, context.decoder.layers_of(DELTANET)
    if edit := replaced_by(stack, "rule", layers) or replaced_by(stack, "states", layers):
        raise CannotRollBack(
            f"Under {edit} the states are not those that the plain delta rule makes of the accepted tokens, which is "
            "what ReplayRollback runs.\nRead these tokens again: rollback=ql.speculative.RerunRollback."
        )


def _replayed(
    rule: Callable[..., Any], calls: list[DeltaRuleCall], before: list[torch.Tensor], kept: int
) -> tuple[torch.Tensor, ...]:
    """The states of some layers after the first `kept` tokens of their calls: all layers as one batch."""

    def joined(name: str) -> torch.Tensor:
        return torch.cat([getattr(call, name)[:, :kept] for call in calls])

    value = joined("value")
    key = joined("key")
    key = key.repeat_interleave(value.shape[2] // key.shape[2], dim=2)
    _, state = rule(
        key,  # queries only make the output, which nobody reads
        key,
        value,
        g=joined("g"),
        beta=joined("beta"),
        initial_state=torch.cat(before),
        output_final_state=True,
        use_qk_l2norm_in_kernel=True,
    )
    states: tuple[torch.Tensor, ...] = state.chunk(len(calls))
    return states


class RerunRollback(Rollback):
    """Snapshot and rerun: the states before the block are put back, and the accepted tokens are read again.

    It costs another forward pass, and leaves to the bit what a pass over just the accepted tokens would have left.
    """

    name = "snapshot-and-rerun"

    @contextmanager
    def verifying(self, context: TargetContext) -> Iterator[None]:
        """Keep the states before the block."""
        self._before = [state.clone() for state in (*context.recurrent, *context.convolution)]
        yield

    def keep(self, context: TargetContext, kept: int) -> None:
        """Put the states back and read the first `kept` tokens again."""
        block = context.block
        if kept == len(block):
            return
        context.crop_attention(len(block))
        context.position -= len(block)
        for state, before in zip((*context.recurrent, *context.convolution), self._before, strict=True):
            state.copy_(before)
        context.read(block[:kept])
