"""`acceptance_score`: acceptance length of each text, to compare a model with and without an intervention."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from qwenlab.checkpoint.checkpoint import Checkpoint
from qwenlab.errors import BadArgument
from qwenlab.speculative.generate import generate
from qwenlab.speculative.prompts import Prompt
from qwenlab.speculative.trace.record_trace import trace
from qwenlab.stats.base.rounds import FACTS
from qwenlab.stats.base.variables import variable


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
    """Acceptance length of each text, under the rule greedy with `depth` drafts per round.

    texts           existing texts, which are traced and replayed: their own tokens replace the target model's choices
                    (text="teacher_forced"). It takes one pass of the target model and `depth` of the head
    max_new_tokens  if set, the texts are prompts: the model continues each by at most this many tokens, and the rounds
                    are those of that decoding (text="own"). With an intervention the model writes another text, and is
                    scored on it
    window, chunk   as in `trace`, without max_new_tokens;  labels: label of each text

    acceptance_length  emitted / rounds [token], per text, with truncated rounds; NaN for a text without a round
    rounds             number of these rounds

    Inside the `with` block of an intervention, the changed target model verifies and the head drafts from its hidden
    states. Raises the errors of `trace` and `generate`: NoMtpHead, BadPrompt and BadArgument.
    """
    if window is not None and max_new_tokens is not None:
        raise BadArgument(
            f"acceptance_score(window={window}, max_new_tokens={max_new_tokens}): windows are cut from given texts.\n"
            "Leave out window or max_new_tokens."
        )
    if max_new_tokens is None:
        made = trace(checkpoint, texts, depth=depth, window=window, chunk=chunk, labels=labels, progress=progress)
        names = made.dataset["label"].values[made.dataset["start"].values == 0]
        ledger, facts = made.replay()["rounds"], made.facts
    else:
        written = generate(
            checkpoint, texts, depth=depth, max_new_tokens=max_new_tokens, labels=labels, progress=progress
        )
        names, ledger, facts = np.array(written.labels), written.ledger, written.facts
    prompt, number = ledger["prompt"].values, len(names)
    rounds = np.bincount(prompt, minlength=number)
    with np.errstate(invalid="ignore"):
        length = np.bincount(prompt, ledger["emitted"].values, minlength=number) / rounds
    conditions = {name: ledger.attrs[name] for name in FACTS}
    data = {
        "acceptance_length": variable(length, ["text"], "token", "acceptance length: emitted / rounds", conditions),
        "rounds": variable(rounds, ["text"], "round", "rounds"),
    }
    return xr.Dataset(data, {"label": ("text", names, {"long_name": "label of the text"})}, facts | conditions)
