"""Draft tokens of one text with the MTP head, chained from the newest true pair; the head's cache and its rollback."""

from __future__ import annotations

import torch
from transformers import DynamicCache

from qwenlab.checkpoint.mtp_head import MtpHead
from qwenlab.speculative.context import at_least_float32

CHUNK = 2048
"""Maximum number of true pairs of a prompt that the head reads in one pass."""


class Drafter:
    """The MTP head and its cache for one text: reads true pairs, then drafts token after token.

    The pair p is the token x[p+1] with the target model's hidden state h[p]; the head's cache has a pair at position p.
    After a round the cache has only pairs of true hidden states: `discard_drafts` removes those of drafts, and they are
    written again when the target model's own states are available (as vLLM and llama.cpp do).
    """

    def __init__(self, head: MtpHead) -> None:
        self.head = head
        self.cache = DynamicCache(config=head.config)
        self._tokens: list[torch.Tensor] = []
        self._hidden: list[torch.Tensor] = []
        self._true_pairs = 0

    def add_pairs(self, tokens: torch.Tensor, hidden: torch.Tensor) -> None:
        """Queue true pairs, int [pair] and float [pair, channel]; `first` reads them."""
        self._tokens.append(tokens)
        self._hidden.append(hidden)

    def first(self) -> torch.Tensor:
        """Read the queued pairs and return y [1, 1, channel] of the newest one."""
        tokens, hidden = torch.cat(self._tokens), torch.cat(self._hidden)
        self._tokens, self._hidden = [], []
        for start in range(0, len(tokens), CHUNK):
            part = slice(start, start + CHUNK)
            y = self.head(tokens[part][None], hidden[part][None], past_key_values=self.cache)
        self._true_pairs = self.cache.get_seq_length()
        return y[:, -1:]

    def next(self, draft: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """y [1, 1, channel] of the step that reads `draft`, int [1], and y of the step before."""
        following: torch.Tensor = self.head(draft[None], y, past_key_values=self.cache)
        return following

    def logits(self, y: torch.Tensor) -> torch.Tensor:
        """Logits [1, vocabulary] of a draft, in float32 or better."""
        return at_least_float32(self.head.logits(y)[0])

    def discard_drafts(self) -> None:
        """Remove the pairs of drafts from the cache."""
        if excess := self.cache.get_seq_length() - self._true_pairs:
            self.cache.crop(-excess)
