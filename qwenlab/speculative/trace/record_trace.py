"""`trace`: run target model and MTP head over texts and record the drafts at every place, in a few parallel passes."""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from tqdm.auto import tqdm

from qwenlab.arguments import integer
from qwenlab.capture.provenance import provenance_of
from qwenlab.checkpoint.checkpoint import Checkpoint
from qwenlab.checkpoint.mtp_head import MtpHead
from qwenlab.errors import BadArgument, InterruptedWarning
from qwenlab.speculative.context import TargetContext
from qwenlab.speculative.draft_chains import draft_chains
from qwenlab.speculative.generate import Generated
from qwenlab.speculative.prompts import Prompt, drafting_head
from qwenlab.speculative.rounds import NONE, draft_coordinate
from qwenlab.speculative.trace.passages import Passage, passages_of
from qwenlab.speculative.trace.trace import Trace
from qwenlab.stats.base.variables import variable

_VARIABLES = {
    "text": ("1", "number of the text or window"),
    "position": ("token", "place in the text or window"),
    "token": ("id", "the text's token"),
    "target_token": ("id", "argmax of the target model after reading it"),
    "target_entropy": ("nat", "entropy of the target model's distribution after reading it"),
    "next_logprob": ("nat", "log-probability of the text's next token under the target model"),
    "draft_token": ("id", "draft of the chain that begins at this token"),
    "draft_probability": ("1", "probability of the draft under the draft head"),
    "target_probability": ("1", "probability of the draft under the target model after the text before its place"),
}
_BY_TEXT = {
    "begin": ("token", "place of the first emitted token: length of the prompt"),
    "limit": ("token", "length at which its generation ends; -1: not generated"),
    "start": ("token", "place of the window's first token in its text"),
    "label": ("", "label of the text"),
    "end": ("", "why it ends: eos, length, or open (an existing text)"),
}


@torch.no_grad()
def trace(
    checkpoint: Checkpoint,
    texts: Prompt | Sequence[Prompt] | Generated,
    *,
    depth: int,
    window: int | None = None,
    chunk: int = 256,
    labels: Sequence[str] | None = None,
    shuffled: bool = False,
    donors: Sequence[Prompt] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Trace:
    """Record the drafts of the MTP head at every place of texts, and the target model's choices there.

    The target model reads each text once, then the head reads it `depth` times, all chains in parallel.
    `Trace.replay` gives the rounds that decoding would run, for any depth up to this one and any policy.

    texts   strings, token lists, or the result of `generate`
    depth   drafts at each place, 1 or more
    window  longer texts are cut into windows of this many tokens, and each is read separately. Without it, a text
            longer than the model's context is an error
    chunk   tokens per pass, which bounds memory except caches and hidden states. 256 suits a CPU; use more on a GPU
    labels  label of each text, such as its domain; by default ""

    Two controls show how much the head draws from the hidden states. They change only what the head reads: the target
    model's choices stay those after the true text. The attribute `hidden` of the dataset names the control.

    shuffled  the head reads the hidden states of each text in random order
    donors    the head reads hidden states drawn at random from these other texts
    seed      of the two controls

    Interrupted (Ctrl-C), it returns the finished texts, with a warning. Raises NoMtpHead, BadPrompt and BadArgument.
    """
    head = drafting_head(checkpoint, depth)
    integer("trace", "chunk", chunk, least=1, unit="tokens")
    passages = passages_of(checkpoint, texts, labels=labels, window=window)
    hidden_states = _HiddenStates(checkpoint, shuffled, donors, seed, chunk)
    done: list[dict[str, np.ndarray]] = []
    tokens = sum(len(passage.tokens) for passage in passages)
    with tqdm(total=tokens, unit="token", desc="tracing", disable=not progress) as bar:
        try:
            for passage in passages:
                done.append(_traced(head, passage, depth, chunk, hidden_states, bar))
        except KeyboardInterrupt:
            if not done:
                raise
            warnings.warn(
                f"Tracing was interrupted after {len(done)} of {len(passages)} texts or windows; those are returned.",
                InterruptedWarning,
                stacklevel=3,
            )
    kept = passages[: len(done)]
    own = isinstance(texts, Generated) and _wrote(checkpoint, texts)
    attrs = {"depth": depth, "text": "own" if own else "teacher_forced", "window": window or 0} | hidden_states.attrs
    facts = provenance_of(checkpoint, [each.tokens for each in kept], [each.label for each in kept], drafted=True)
    return Trace(_dataset(kept, done, attrs), facts)


def _wrote(checkpoint: Checkpoint, texts: Generated) -> bool:
    """Whether these texts are this checkpoint's own greedy output."""
    return texts.ledger.attrs["rule"] == "greedy" and texts.facts["checkpoint_hash"] == checkpoint.hash_now()


class _HiddenStates:
    """The hidden states that the head reads: those of the text, or those of a control."""

    def __init__(
        self, checkpoint: Checkpoint, shuffled: bool, donors: Sequence[Prompt] | None, seed: int, chunk: int
    ) -> None:
        if shuffled and donors is not None:
            raise BadArgument("trace(shuffled=True, donors=...): choose one control at a time.")
        self._rng, self._shuffled = random.Random(seed), shuffled
        self._pool: torch.Tensor | None = None
        if donors is not None:
            texts = (passage.tokens for passage in passages_of(checkpoint, donors))
            self._pool = torch.cat([TargetContext(checkpoint.model).read_in_chunks(text, chunk) for text in texts])
        self.attrs = {"hidden": "shuffled"} if shuffled else {} if donors is None else {"hidden": "of other texts"}

    def read_by_head(self, hidden: torch.Tensor) -> torch.Tensor:
        """The states [token, channel] for the head, of the text's own; the head never reads the last one."""
        order = list(range(len(hidden) - 1))
        if self._shuffled:
            self._rng.shuffle(order)
        elif self._pool is not None:
            order = self._rng.choices(range(len(self._pool)), k=len(order))
        else:
            return hidden
        return torch.cat([(hidden if self._pool is None else self._pool)[order], hidden[-1:]])


def _traced(
    head: MtpHead, passage: Passage, depth: int, chunk: int, hidden_states: _HiddenStates, bar: Any
) -> dict[str, np.ndarray]:
    """The variables of one passage, [token] and [token, draft]."""
    context = TargetContext(head.target_model)
    tokens = torch.tensor(passage.tokens, device=context.device)
    hidden = context.read_in_chunks(tokens, chunk, bar.update)
    draft_token = tokens.new_full((len(tokens), depth), NONE)
    draft_probability = torch.full_like(draft_token, torch.nan, dtype=torch.float32)
    for step in draft_chains(head, tokens, hidden_states.read_by_head(hidden), depth=depth, chunk=chunk):
        place = slice(step.rows.start, step.rows.stop), step.draft - 1
        draft_token[place] = step.tokens
        draft_probability[place] = step.logits.softmax(dim=-1).amax(dim=-1).to(tokens.device)
    found = {"token": tokens, "draft_token": draft_token, "draft_probability": draft_probability}
    found |= _target(context.logits, tokens, hidden, draft_token, chunk)
    return {name: (x.float() if x.is_floating_point() else x.int()).numpy(force=True) for name, x in found.items()}


def _target(
    logits_of: Any, tokens: torch.Tensor, hidden: torch.Tensor, drafts: torch.Tensor, chunk: int
) -> dict[str, torch.Tensor]:
    """The target model's choice and entropy at every place, and the probability of the drafts under it."""
    # The distribution at a row gives the probability of draft 1 of that row, draft 2 of the row before, ...
    place = torch.arange(len(tokens), device=tokens.device)[:, None]
    later = torch.arange(drafts.shape[1], device=tokens.device)  # k - 1
    same_place = drafts[(place - later).clamp_min(0), later].clamp_min(0)  # any token for rows without a draft
    following = torch.cat([tokens[1:], tokens[:1]])
    best, entropy, gathered = [], [], []
    chunks = zip(hidden.split(chunk), torch.cat([following[:, None], same_place], dim=1).split(chunk), strict=True)
    for states, columns in chunks:
        logprob = logits_of(states).log_softmax(dim=-1)
        best.append(logprob.argmax(dim=-1))
        gathered.append(logprob.gather(1, columns.to(logprob.device)))
        entropy.append(-torch.linalg.vecdot(logprob.exp(), logprob))
    logprobs = torch.cat(gathered).to(tokens.device)
    next_logprob = logprobs[:, 0].index_fill(0, place[-1], torch.nan)
    exists = (place > 0) & (place + later < len(tokens))
    probability = logprobs[(place + later).clamp_max(len(tokens) - 1), later + 1].exp()
    return {
        "target_token": torch.cat(best),
        "target_entropy": torch.cat(entropy),
        "next_logprob": next_logprob,
        "target_probability": torch.where(exists, probability, torch.nan),
    }


def _dataset(passages: Sequence[Passage], read: Sequence[dict[str, np.ndarray]], attrs: dict[str, Any]) -> xr.Dataset:
    """One Dataset of all passages, in order."""
    lengths = np.array([len(passage.tokens) for passage in passages], dtype=np.int64)
    columns = {
        "text": np.repeat(np.arange(len(passages)), lengths),
        "position": np.concatenate([np.arange(length) for length in lengths]),
        **{name: np.concatenate([variables[name] for variables in read]) for name in read[0]},
    }
    dims, data = ("token", "draft"), dict[str, xr.DataArray]()
    for name, about in _VARIABLES.items():
        data[name] = variable(columns[name], dims[: columns[name].ndim], *about)
    data["length"] = variable(lengths, ["text"], "token", "tokens of the text or window")
    for name, about in _BY_TEXT.items():
        data[name] = variable(np.array([getattr(passage, name) for passage in passages]), ["text"], *about)
    return xr.Dataset(data, draft_coordinate(attrs["depth"]), attrs)
