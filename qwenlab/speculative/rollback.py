"""Rollback: remove the rejected tokens of a verified block from the target model's cache."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import groupby
from typing import Any, ClassVar

import torch

from qwenlab.capture.active import replaced_by
from qwenlab.capture.delta_rule import DeltaRuleCall, DeltaRuleHooks
from qwenlab.capture.wrapping import in_this_thread, listening, unwrapped
from qwenlab.checkpoint.families import DELTANET
from qwenlab.errors import CannotRollBack
from qwenlab.speculative.context import TargetContext


class Rollback(ABC):
    """Base class: truncate a context to the accepted tokens of a block. One object serves one text at a time.

    The loop runs `with rollback.verifying(context): context.read(block)`, then `rollback.keep(context, count)`. After
    that, cache and position must be those of a context that read only the first `count` tokens of the block. Functions
    that take a rollback accept your own subclass too.
    """

    name: ClassVar[str]

    @contextmanager
    @abstractmethod
    def verifying(self, context: TargetContext) -> Iterator[None]:
        """Context manager around the forward pass that reads a block: save what `keep` needs."""
        yield

    @abstractmethod
    def keep(self, context: TargetContext, count: int) -> None:
        """Remove all but the first `count` tokens (at least one) of the block."""


class ReplayRollback(Rollback):
    """Run the delta rule again over the accepted tokens, from the state before the block; no weight is read again.

    During the verifying pass it stores the inputs of each DeltaNet layer's kernel (k, v, g, beta) and of its
    convolution. `keep` runs the recurrent kernel over the inputs of the accepted tokens, for all layers on a device in
    one call. A fully accepted block is left unchanged.
    """

    name = "replay"

    @contextmanager
    def verifying(self, context: TargetContext) -> Iterator[None]:
        """Store the states before the block, and the inputs of each layer's kernel and convolution.

        Raises CannotRollBack under an intervention that changes the delta rule or its states.
        """
        decoder, stack = context.decoder, context.decoder.module
        layers = decoder.layers_of(DELTANET)
        if intervention := replaced_by(stack, "rule", layers) or replaced_by(stack, "states", layers):
            raise CannotRollBack(
                f"ReplayRollback runs the plain delta rule over the accepted tokens, and {intervention} changes that "
                "rule or its states.\nRead the accepted tokens again instead: rollback=ql.speculative.RerunRollback."
            )
        self._before = [state.clone() for state in context.recurrent]
        self._calls: dict[int, DeltaRuleCall] = {}
        self._convolved: dict[int, torch.Tensor] = {}
        with ExitStack() as hooks:
            rules = DeltaRuleHooks(decoder, hooks)
            for number, (layer, cache) in enumerate(zip(layers, context.deltanet, strict=True)):
                rules.read(layer, in_this_thread(partial(self._store_call, number)))
                store = partial(self._store_convolution, number)
                hooks.enter_context(listening(cache, "update_conv_state", store))
            yield

    def keep(self, context: TargetContext, count: int) -> None:
        """Crop the attention layers, and run the delta rule over the first `count` tokens again."""
        width = len(context.block)
        if count == width:
            return
        context.crop_attention(width - count)
        context.position -= width - count
        for number, state in enumerate(context.convolution):
            state.copy_(self._convolved[number][..., count : count + state.shape[-1]])
        family = context.decoder.family
        rule = unwrapped(getattr(sys.modules[family.modeling], family.deltanet.recurrent_rule))
        layers = zip(context.recurrent, self._before, self._calls.values(), strict=True)
        for _, group in groupby(layers, key=lambda layer: layer[0].device):
            states, before, calls = zip(*group, strict=True)
            for state, replayed in zip(states, _replay_delta_rule(rule, calls, before, count), strict=True):
                state.copy_(replayed)

    def _store_call(self, number: int, call: DeltaRuleCall, kwargs: Any, result: Any) -> None:
        self._calls[number] = call

    def _store_convolution(self, number: int, args: Any, kwargs: Any, full: torch.Tensor) -> None:
        self._convolved[number] = full  # [batch, channel, size of the state before + width]


def _replay_delta_rule(
    rule: Callable[..., Any], calls: tuple[DeltaRuleCall, ...], before: tuple[torch.Tensor, ...], count: int
) -> tuple[torch.Tensor, ...]:
    """The layers' states after the first `count` tokens of their calls, computed as one batch."""

    def joined(name: str) -> torch.Tensor:
        return torch.cat([getattr(call, name)[:, :count] for call in calls])

    value = joined("value")
    key = joined("key")
    key = key.repeat_interleave(value.shape[2] // key.shape[2], dim=2)
    _, state = rule(
        key,  # in place of queries, which affect only the output, and that is not used
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
    """Snapshot and rerun: restore the states before the block, and read the accepted tokens again.

    It costs another forward pass. The cache is bit for bit that of a pass over the accepted tokens only.
    """

    name = "snapshot-and-rerun"

    @contextmanager
    def verifying(self, context: TargetContext) -> Iterator[None]:
        """Store the states before the block."""
        self._before = [state.clone() for state in (*context.recurrent, *context.convolution)]
        yield

    def keep(self, context: TargetContext, count: int) -> None:
        """Restore the states and read the first `count` tokens again."""
        block = context.block
        if count == len(block):
            return
        context.crop_attention(len(block))
        context.position -= len(block)
        for state, before in zip((*context.recurrent, *context.convolution), self._before, strict=True):
            state.copy_(before)
        context.read(block[:count])
