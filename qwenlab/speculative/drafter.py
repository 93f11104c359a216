"""The MTP head at work on one text: its own cache, the true pairs it has seen, and the chain it drafts."""

from __future__ import annotations

import torch
from transformers import DynamicCache

from qwenlab.checkpoint.mtp_head import MtpHead

CHUNK = 2048
"""True pairs of a prompt that the head reads at a time."""


class Drafter:
    """Drafts token after token from the newest true pair; what it drafted from its own states is forgotten after.

    The pair p is the token x[p+1] with the trunk's hidden state h[p]; the head's cache holds a pair at position p.
    After a round the cache holds only pairs of true hidden states: those of drafts are written again when the trunk's
    own are there (as vLLM and llama.cpp do).
    """

    def __init__(self, head: MtpHead) -> None:
        self.head = head
        self.cache = DynamicCache(config=head.config)
        self._tokens: list[torch.Tensor] = []
        self._hidden: list[torch.Tensor] = []
        self._true = 0

    @property
    def pairs(self) -> int:
        """Pairs that the cache holds."""
        return int(self.cache.get_seq_length())

    def learn(self, tokens: torch.Tensor, hidden: torch.Tensor) -> None:
        """Take true pairs, int [pair] and float [pair, channel]; they are read when the next draft is asked for."""
        self._tokens.append(tokens)
        self._hidden.append(hidden)

    def first(self) -> torch.Tensor:
        """Read the pairs taken since, and return y [1, 1, channel] of the newest one."""
        tokens, hidden = torch.cat(self._tokens), torch.cat(self._hidden)
        self._tokens, self._hidden = [], []
        for start in range(0, len(tokens), CHUNK):
            part = slice(start, start + CHUNK)
            y = self.head(tokens[part][None], hidden[part][None], past_key_values=self.cache)
        self._true = self.pairs
        return y[:, -1:]

    def next(self, draft: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """y [1, 1, channel] of the step after `draft`, int [1], fed with y of the step before."""
        following: torch.Tensor = self.head(draft[None], y, past_key_values=self.cache)
        return following

    def logits(self, y: torch.Tensor) -> torch.Tensor:
        """Logits [1, vocabulary] of a draft, in float32 or better."""
        logits = self.head.logits(y)[0]
        return logits if logits.dtype == torch.float64 else logits.float()

    def forget(self) -> None:
        """Drop the pairs that were made of drafts."""
        if beyond := self.pairs - self._true:
            self.cache.crop(-beyond)
