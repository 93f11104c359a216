"""All chains of a text at once: what the MTP head would draft at every place, a chunk of places at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn
from transformers import DynamicCache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from qwenlab.capture.wrapping import in_this_thread
from qwenlab.checkpoint.mtp_head import MtpHead
from qwenlab.errors import BadArgument

Feedback: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""What the next draft is made from: given the head's states [row, channel] before and after `mtp.norm`, the states
[row, channel] that go in as `hidden`."""


@dataclass(frozen=True)
class Step:
    """One draft of the chains of some rows.

    rows    the places t whose chains these are
    draft   1 .. depth: it drafts x[t + draft]
    tokens  int [row], the drafts: argmaxes
    logits  float [row, vocabulary], of the head, in float32 or better
    """

    rows: range
    draft: int
    tokens: torch.Tensor
    logits: torch.Tensor


def chains(
    head: MtpHead,
    tokens: torch.Tensor,
    hidden: torch.Tensor,
    *,
    depth: int,
    chunk: int = 256,
    prefilled: bool = True,
    feedback: Feedback | None = None,
) -> Iterator[Step]:
    """The drafts of the chains of every row of a text: for each chunk of rows, draft 1 of all of them, draft 2, ...

    The chain of row t (1 .. T - 1) is what the head drafts when x[0..t] is known and the trunk has read x[0..t-1]. Its
    first draft is made at position t-1 from the true pair (x[t], h[t-1]), draft k at position t+k-2 from draft k-1 and
    what the head gave there. All of them attend the true pairs 0 .. t-1 and the chain's own entries, and no other
    chain's: a mask does it, over a cache that holds the true pairs up to the chunk's end and then one entry a row and
    draft, which are dropped when the chunk is done.

    tokens     int [T]
    hidden     float [T, channel], the trunk's after its final norm; the last one is not read
    depth      drafts a chain, 1 or more
    chunk      rows at a time: no tensor is larger than [chunk, vocabulary], [chunk, keys] or the cache
    prefilled  False: a chain sees its own entries alone, as if no prompt had been read into the head's cache
    feedback   what is fed back as `hidden`; by default the state after `mtp.norm`

    Run it without gradients. Raises BadArgument for an attention implementation that takes no mask.
    """
    cache = DynamicCache(config=head.config)
    with _before_norm(head, wanted=feedback is not None) as before:
        for start in range(1, len(tokens), chunk):
            rows = range(start, min(start + chunk, len(tokens)))
            token, state = tokens[rows.start : rows.stop], hidden[rows.start - 1 : rows.stop - 1]
            positions = torch.arange(rows.start - 1, rows.stop - 1, device=tokens.device)
            for draft in range(1, depth + 1):
                # The first draft of a prefilled chain is an ordinary causal pass, for which no mask need be given.
                mask = None if draft == 1 and prefilled else _mask(head, rows, draft, state, prefilled=prefilled)
                y = head(
                    token[None],
                    state[None],
                    attention_mask=mask,
                    position_ids=(positions + draft - 1)[None],
                    past_key_values=cache,
                )
                logits = head.logits(y)[0]
                logits = logits if logits.dtype == torch.float64 else logits.float()
                token = logits.argmax(dim=-1).to(tokens.device)
                state = y[0] if feedback is None else feedback(before[-1][0], y[0])
                yield Step(rows, draft, token, logits)
            cache.crop((rows.stop - 1 if prefilled else 0) - cache.get_seq_length())


def _mask(head: MtpHead, rows: range, draft: int, state: torch.Tensor, *, prefilled: bool) -> Any:
    """Which keys the queries of one draft attend, in the form that the head's attention implementation takes.

    Keys lie in the cache in this order: the true pairs up to the chunk's end (if prefilled), then a block of one entry
    a row for each draft from the second on (without prefilled: from the first on).
    """
    width, true = len(rows), rows.stop - 1 if prefilled else 0
    keys = true + width * (draft - 1 if prefilled else draft)

    def attends(_: Any, __: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        pair = torch.where(key < true, key, keys + rows.stop)  # beyond every row, for a key that is no true pair
        entry_of = torch.where(key < true, -1, (key - true) % width)
        return (pair < rows.start + query) | (entry_of == query)

    how = head.config._attn_implementation
    known = how in ALL_MASK_ATTENTION_FUNCTIONS
    make = ALL_MASK_ATTENTION_FUNCTIONS[how] if known else lambda **_: None
    mask = make(
        batch_size=1,
        q_length=width,
        kv_length=keys,
        mask_function=attends,
        allow_is_causal_skip=False,
        dtype=state.dtype,
        device=state.device,
        config=head.config,
    )
    if len(getattr(mask, "shape", ())) != 4:
        raise BadArgument(
            f"The MTP head runs attn_implementation={how!r}, which takes no mask, so that all chains of a text cannot "
            "be run at once.\nOpen the checkpoint with attn_implementation='sdpa'."
        )
    return mask


@contextmanager
def _before_norm(head: nn.Module, *, wanted: bool) -> Iterator[list[torch.Tensor]]:
    """A list that holds, while the block lives and if it is wanted, what went last into the head's final norm."""
    seen: list[torch.Tensor] = []

    def keep(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        seen[:] = args[:1]

    handle = head.get_submodule("norm").register_forward_pre_hook(in_this_thread(keep)) if wanted else None
    try:
        yield seen
    finally:
        if handle is not None:
            handle.remove()
