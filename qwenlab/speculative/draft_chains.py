"""Draft chains of the MTP head at every place of a text, computed in parallel over chunks of places."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from transformers import DynamicCache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from qwenlab.capture.wrapping import in_this_thread, inputs
from qwenlab.checkpoint.mtp_head import MtpHead
from qwenlab.errors import BadArgument
from qwenlab.speculative.context import at_least_float32

Feedback: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Chooses the head's input for the next draft: takes the head's states [row, channel] before and after `mtp.norm`,
returns the states [row, channel] to use as `hidden`."""


@dataclass(frozen=True)
class Step:
    """The drafts of one draft number for a chunk of rows.

    rows    the places t of the chains
    draft   1 .. depth: these are drafts of x[t + draft]
    tokens  int [row], the drafts: argmaxes
    logits  float [row, vocabulary], of the head, in float32 or better
    """

    rows: range
    draft: int
    tokens: torch.Tensor
    logits: torch.Tensor


def draft_chains(
    head: MtpHead,
    tokens: torch.Tensor,
    hidden: torch.Tensor,
    *,
    depth: int,
    chunk: int = 256,
    prefilled: bool = True,
    feedback: Feedback | None = None,
) -> Iterator[Step]:
    """Yield the drafts of the chains of every row of a text: for each chunk of rows, all drafts 1, all drafts 2, ...

    The chain of row t (1 .. T - 1) has the head's drafts when x[0..t] is known and the target model has read x[0..t-1].
    Its first draft is made at position t-1 from the true pair (x[t], h[t-1]), draft k at position t+k-2 from draft k-1
    and the head's state there. Every draft attends to the true pairs 0 .. t-1 and to the entries of its own chain only.

    tokens     int [T]
    hidden     float [T, channel]: the target model's hidden states after its final norm; the last one is not read
    depth      drafts per chain, 1 or more
    chunk      rows per pass: no tensor is larger than [chunk, vocabulary], [chunk, keys] or the cache
    prefilled  False: a chain attends to its own entries only, as if the head's cache had no prompt
    feedback   chooses the state to use as the next `hidden`; by default the state after `mtp.norm`

    Run it without gradients. Raises BadArgument for an attention implementation that takes no mask.
    """
    cache = DynamicCache(config=head.config)
    before_norm: list[torch.Tensor] = []
    store = in_this_thread(lambda args, _: before_norm.append(args[0]))
    with inputs(head.norm, store) if feedback is not None else nullcontext():
        for start in range(1, len(tokens), chunk):
            rows = range(start, min(start + chunk, len(tokens)))
            token, state = tokens[rows.start : rows.stop], hidden[rows.start - 1 : rows.stop - 1]
            positions = torch.arange(rows.start - 1, rows.stop - 1, device=tokens.device)
            for draft in range(1, depth + 1):
                # The first draft of a prefilled chain is an ordinary causal pass, which needs no mask.
                mask = None if draft == 1 and prefilled else _mask(head, rows, draft, state, prefilled=prefilled)
                y = head(
                    token[None],
                    state[None],
                    attention_mask=mask,
                    position_ids=(positions + draft - 1)[None],
                    past_key_values=cache,
                )
                logits = at_least_float32(head.logits(y)[0])
                token = logits.argmax(dim=-1).to(tokens.device)
                state = y[0] if feedback is None else feedback(before_norm.pop()[0], y[0])
                yield Step(rows, draft, token, logits)
            cache.crop((rows.stop - 1 if prefilled else 0) - cache.get_seq_length())


def _mask(head: MtpHead, rows: range, draft: int, state: torch.Tensor, *, prefilled: bool) -> Any:
    """Attention mask of one draft, in the format of the head's attention implementation."""
    # Keys in the cache: if prefilled, the true pairs up to the chunk's end; then an entry per row for each other draft.
    width, true = len(rows), rows.stop - 1 if prefilled else 0
    keys = true + width * (draft - 1 if prefilled else draft)

    def attends(_: Any, __: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        pair = torch.where(key < true, key, keys + rows.stop)  # beyond every row if the key is not a true pair
        entry_of = torch.where(key < true, -1, (key - true) % width)
        return (pair < rows.start + query) | (entry_of == query)

    implementation = head.config._attn_implementation
    make = ALL_MASK_ATTENTION_FUNCTIONS.get(implementation, lambda **_: None)
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
            f"The MTP head runs attn_implementation={implementation!r}, which takes no mask, so the chains of a text "
            "cannot be computed in parallel.\nOpen the checkpoint with attn_implementation='sdpa'."
        )
    return mask
