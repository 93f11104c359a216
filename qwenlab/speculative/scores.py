"""How well drafts of the MTP head do, text by text: a score to hold an edited model's against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from qwenlab.checkpoint.open import Checkpoint
from qwenlab.errors import BadArgument
from qwenlab.speculative.generate import generate
from qwenlab.speculative.prompts import Prompt
from qwenlab.speculative.trace.tracing import trace

_SAID = ("rule", "depth", "policy", "text", "origin")


def acceptance_score(
    checkpoint: Checkpoint,
    texts: Prompt | Sequence[Prompt],
    *,
    depth: int = 3,
    max_new_tokens: int | None = None,
    window: int | None = None,
    chunk: int = 256,
    labels: Sequence[str] | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """Acceptance length of each text, under the rule greedy and with `depth` drafts a round.

    texts           given texts, which are traced and replayed: their own tokens stand for the main model's choices
                    (text="teacher_forced"). It takes one pass of the trunk and `depth` of the head
    max_new_tokens  the texts are prompts: the model goes on with each by so many tokens, and the rounds are those that
                    were run (text="own"). An edited model writes another text, and is scored on that
    window, chunk   of given texts, as `trace` takes them;  labels: what each text is called

    acceptance_length  emitted / rounds, tokens, by text; truncated rounds too. NaN for a text of no round: one of fewer
                       tokens than a round emits, or whose first token ended it
    rounds             they are of

    Inside an edit's `with` block the edited trunk verifies, and the head drafts from its hidden states. Raises what
    `trace` and `generate` raise: NoMtpHead, BadPrompt and BadArgument.
    """
    if window is not None and max_new_tokens is not None:
        raise BadArgument(
            f"acceptance_score(window={window}, max_new_tokens={max_new_tokens}): windows are cut from given texts.\n"
            "Leave window out, or max_new_tokens."
        )
    if max_new_tokens is None:
        made = trace(checkpoint, texts, depth=depth, window=window, chunk=chunk, labels=labels, progress=progress)
        number = int((made.dataset["start"] == 0).sum())
        names = made.dataset["label"].values[made.dataset["start"].values == 0]
        ledger, facts = made.replay()["rounds"], made.facts
    else:
        written = generate(
            checkpoint, texts, depth=depth, max_new_tokens=max_new_tokens, labels=labels, progress=progress
        )
        number, names, ledger, facts = len(written.tokens), np.array(written.labels), written.ledger, written.facts
    prompt, emitted = ledger["prompt"].values, ledger["emitted"].values
    rounds = np.bincount(prompt, minlength=number)
    with np.errstate(invalid="ignore"):
        length = np.bincount(prompt, emitted, minlength=number) / rounds
    say: dict[str, Any] = {name: ledger.attrs[name] for name in _SAID}
    means = "acceptance length: emitted / rounds"
    return xr.Dataset(
        {
            "acceptance_length": ("text", length, {"units": "token", "long_name": means} | say),
            "rounds": ("text", rounds, {"units": "round", "long_name": "rounds"}),
        },
        {"label": ("text", names, {"long_name": "label of the text"})},
        facts | say,
    )
