"""Scores of a checkpoint on texts: next-token loss, recall of asked-for values, agreement of the MTP head's drafts."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr
from tqdm.auto import tqdm

from qwenlab.checkpoint.caches import cached_by
from qwenlab.errors import BadArgument
from qwenlab.tasks.arguments import whole
from qwenlab.tasks.batching import Batch, batches
from qwenlab.tasks.recall import CHANCE, recall_texts


@torch.no_grad()
def score(
    checkpoint: Any,
    texts: Sequence[str],
    *,
    block: int | None = None,
    batch_size: int = 8,
    max_tokens: int | None = 512,
    progress: bool = False,
) -> xr.Dataset:
    """Next-token loss of each text.

    block    tokens read in one pass, on a cache: 1 as in a decode; None: the whole text at once, without a cache

    returns  loss [text], nats a token: mean of -ln p(x[t+1] | x[..t]) over the text's tokens but the first
             tokens [text]: how many that mean is over
    """
    if block is not None:
        whole("score", block=block)
    loss, tokens = np.zeros(len(texts)), np.zeros(len(texts), dtype=np.int64)
    for batch in _read(checkpoint, texts, batch_size, max_tokens, progress):
        by_token, counted = _token_losses(checkpoint, batch, block)
        loss[list(batch.texts)] = (by_token.sum(dim=1).double() / counted.sum(dim=1).clamp_min(1)).cpu().numpy()
        tokens[list(batch.texts)] = counted.sum(dim=1).cpu().numpy()
    return xr.Dataset(
        {
            "loss": ("text", loss, {"units": "nat", "long_name": "next-token loss, mean over the text's tokens"}),
            "tokens": ("text", tokens, {"units": "token", "long_name": "tokens predicted"}),
        }
    )


@torch.no_grad()
def recall_accuracy(
    checkpoint: Any, pairs: Iterable[int] = (2, 4, 8, 16, 24), *, count: int = 64, seed: int = 1, batch_size: int = 32
) -> xr.Dataset:
    """Share of asked-for values that the model gives as its first choice, by number of pairs.

    Each pair of each of `count` fresh sequences is asked for once, so no answer can be copied from an earlier one.

    returns  accuracy [pairs, text]: right answers over questions; chance is 0.1 (ten values)
    """
    pairs = tuple(pairs)
    question = checkpoint.tokenizer.convert_tokens_to_ids("?")
    accuracy = np.zeros((len(pairs), count))
    for index, number in enumerate(pairs):
        sequences = recall_texts(number, count, seed=seed)
        for batch in batches(checkpoint, sequences, batch_size=batch_size, max_tokens=None):
            choice = checkpoint.model(**batch.inputs, use_cache=False).logits.argmax(dim=-1)
            asked = batch.input_ids[:, :-1] == question
            right = asked & (choice[:, :-1] == batch.input_ids[:, 1:])
            accuracy[index, list(batch.texts)] = (right.sum(dim=1).double() / asked.sum(dim=1)).cpu().numpy()
    attrs = {"units": "1", "long_name": "asked-for values given as first choice", "chance": CHANCE}
    return xr.Dataset(
        {"accuracy": (("pairs", "text"), accuracy, attrs)}, {"pairs": ("pairs", np.array(pairs), {"units": "pair"})}
    )


@torch.no_grad()
def teacher_forced(
    checkpoint: Any,
    texts: Sequence[str],
    *,
    shuffled: bool = False,
    strangers: Sequence[str] | None = None,
    seed: int = 0,
    batch_size: int = 8,
    max_tokens: int | None = 512,
    progress: bool = False,
) -> xr.Dataset:
    """Agreement of the MTP head's first draft with the main model's own first choice, along given texts.

    At every position p the head drafts x[p+2] from h[p] and the text's own x[p+1]; it agrees where that is the model's
    argmax after x[..p+1]. This is `teacher_forced` agreement and no acceptance rate: that is counted along the model's
    own text.

    Two controls feed the head the right tokens with the wrong hidden states:

    shuffled   those of the same text in random order: they still tell what all positions of the text have in common
    strangers  those of random positions of these texts, drawn with replacement: they tell nothing of the text

    returns  agreement [text], share of positions; tokens [text]: positions drafted
    Raises NoMtpHead for a checkpoint without a head, and BadArgument for both controls at once.
    """
    if shuffled and strangers is not None:
        raise BadArgument("teacher_forced(shuffled=True, strangers=...): ask for one control at a time.")
    head = checkpoint.require_mtp()
    rng = random.Random(seed)
    pool = None if strangers is None else _hidden_states(checkpoint, strangers, batch_size, max_tokens)
    agreement, tokens = np.zeros(len(texts)), np.zeros(len(texts), dtype=np.int64)
    for batch in _read(checkpoint, texts, batch_size, max_tokens, progress):
        out = checkpoint.model(**batch.inputs, use_cache=False, output_hidden_states=True)
        hidden = out.hidden_states[-1][:, :-1]
        if shuffled:
            hidden = _shuffle(hidden, batch.attention_mask[:, 1:], rng)
        elif pool is not None:
            drawn = torch.tensor(rng.choices(range(len(pool)), k=hidden.shape[0] * hidden.shape[1]))
            hidden = pool[drawn.to(pool.device)].reshape(hidden.shape)
        draft = head.logits(head(batch.input_ids[:, 1:], hidden)).argmax(dim=-1)
        drafted = batch.attention_mask[:, 1:].bool()
        agreed = drafted & (draft == out.logits[:, 1:].argmax(dim=-1))
        agreement[list(batch.texts)] = (agreed.sum(dim=1).double() / drafted.sum(dim=1).clamp_min(1)).cpu().numpy()
        tokens[list(batch.texts)] = drafted.sum(dim=1).cpu().numpy()
    fed = "shuffled" if shuffled else "strangers'" if pool is not None else "true"
    return xr.Dataset(
        {
            "agreement": (
                "text",
                agreement,
                {"units": "1", "long_name": f"teacher-forced agreement of the first draft, {fed} hidden states"},
            ),
            "tokens": ("text", tokens, {"units": "token", "long_name": "positions drafted"}),
        }
    )


def _read(
    checkpoint: Any, texts: Sequence[str], batch_size: int, max_tokens: int | None, progress: bool
) -> Iterable[Batch]:
    found = batches(checkpoint, texts, batch_size=batch_size, max_tokens=max_tokens)
    return tqdm(found, total=-(-len(texts) // batch_size), desc="reading", unit="batch", disable=not progress)


def _token_losses(checkpoint: Any, batch: Batch, block: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses [batch, position - 1], zero where not counted, and what is counted."""
    ids, mask, counted = batch.input_ids, batch.attention_mask, batch.attention_mask[:, 1:].bool()
    last = ids.shape[1] - 1  # nothing follows the last token: it is not read
    losses = []
    cached = cached_by(checkpoint.model) if block is not None else {}
    for start in range(0, last, block or last):
        stop = min(start + (block or last), last)
        given = {"input_ids": ids[:, start:stop], "attention_mask": mask[:, :stop]}
        out = checkpoint.model(**given, **cached, use_cache=block is not None)
        next_ids = ids[:, start + 1 : stop + 1]
        losses.append(F.cross_entropy(out.logits.float().transpose(1, 2), next_ids, reduction="none"))
    found = torch.cat(losses, dim=1) if losses else ids.new_zeros(counted.shape, dtype=torch.float32)
    return torch.where(counted, found, 0), counted


def _hidden_states(checkpoint: Any, texts: Sequence[str], batch_size: int, max_tokens: int | None) -> torch.Tensor:
    """Hidden states [position, channel] of all positions of some texts, after the trunk's final norm."""
    found = []
    for batch in batches(checkpoint, texts, batch_size=batch_size, max_tokens=max_tokens):
        hidden = checkpoint.model(**batch.inputs, use_cache=False, output_hidden_states=True).hidden_states[-1]
        found.append(hidden[batch.attention_mask.bool()])
    return torch.cat(found)


def _shuffle(hidden: torch.Tensor, mask: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """Each row's real positions in random order."""
    out = hidden.clone()
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        order = list(range(length))
        rng.shuffle(order)
        out[row, :length] = hidden[row, order]
    return out
