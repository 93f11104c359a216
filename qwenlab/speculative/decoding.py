"""Speculative decoding of one text: draft with the MTP head, verify in one forward pass, roll back, emit."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Literal

import numpy as np
import torch
from transformers import LogitsProcessorList

from qwenlab.checkpoint.mtp_head import MtpHead
from qwenlab.speculative.context import TargetContext
from qwenlab.speculative.drafter import Drafter
from qwenlab.speculative.policies import Policy, asked, name_of
from qwenlab.speculative.rollback import Rollback
from qwenlab.speculative.rounds import NONE, Ended, Round
from qwenlab.speculative.verification import Verification, VerificationRule

Drafting = Literal["greedy", "sampled"]


@dataclass(frozen=True)
class Settings:
    """Under what a text is decoded.

    depth       drafts a round, at most
    rule        how drafts are judged;  drafting: the head's argmax, or drawn from its distribution
    policy      asked before each draft whether to make it; None: `depth` drafts in every round
    processors  temperature, top-k and the like, for the main model and for a head that is drawn from
    end_tokens  tokens that end the text
    """

    depth: int
    rule: VerificationRule
    policy: Policy | None = None
    drafting: Drafting = "greedy"
    processors: LogitsProcessorList = field(default_factory=LogitsProcessorList)
    end_tokens: Collection[int] = ()

    def attrs(self, *, rollback: str, temperature: float, seed: int, **more: Any) -> dict[str, Any]:
        """What a ledger made under these says of itself."""
        return {
            "rule": self.rule.name,
            "depth": self.depth,
            "policy": "fixed depth" if self.policy is None else name_of(self.policy),
            "drafting": self.drafting,
            "temperature": temperature,
            **more,
            "rollback": rollback,
            "seed": seed,
            "origin": "online",
            "text": "own",
        }


@dataclass
class Drafts:
    """What the head drafted in one round: tokens int [draft], log-probabilities at temperature 1, and q if drawn."""

    tokens: torch.Tensor
    logprobs: torch.Tensor
    proposal: torch.Tensor | None
    proposed: int


class Decoding:
    """One text, decoded round by round: `start()` reads the prompt, then `step()` until `ended` is set.

    tokens    the text so far, prompt included
    context   what the trunk has read: all but the newest token
    drafter   what the head has read
    ended     "" while it goes on, then "eos" or "length"
    stop      asked after every token whether the text ends there, besides the end tokens
    """

    def __init__(
        self,
        head: MtpHead,
        prompt: torch.Tensor,
        settings: Settings,
        rollback: Rollback,
        *,
        max_new_tokens: int,
        generator: torch.Generator,
        context: TargetContext | None = None,
        stop: Callable[[list[int]], bool] | None = None,
    ) -> None:
        self.settings, self.rollback, self.generator, self.stop = settings, rollback, generator, stop
        self.context = TargetContext(head.trunk) if context is None else context
        self.drafter = Drafter(head)
        self.tokens: list[int] = prompt.tolist()
        self.begin, self.limit = len(prompt), len(prompt) + max_new_tokens
        self.ended: Ended | Literal[""] = ""

    @torch.no_grad()
    def start(self) -> None:
        """Read the prompt and emit the first token, which belongs to no round."""
        prompt = torch.tensor(self.tokens, device=self.context.device)
        hidden = self.context.read(prompt)
        scores = self._scores(self.context.logits(hidden[-1:]), [])
        first = self._judge(prompt[:0], None, scores).next_token
        self._learn([*self.tokens[1:], first], hidden)
        self._emit([first])

    @torch.no_grad()
    def step(self) -> Round:
        """Draft, verify, roll back and emit: one round."""
        began, newest, begin = perf_counter(), self.tokens[-1], len(self.tokens)
        drafts = self._draft(min(self.settings.depth, self.limit - begin - 1))
        self.drafter.forget()
        block = torch.cat([drafts.tokens.new_tensor([newest]), drafts.tokens])
        with self.rollback.verifying(self.context):
            hidden = self.context.read(block)
        logits = self.context.logits(hidden)
        verdict = self._judge(drafts.tokens, drafts.proposal, self._scores(logits, drafts.tokens.tolist()))
        emitted = self._emit([*drafts.tokens[: verdict.accepted].tolist(), verdict.next_token])
        self.rollback.keep(self.context, emitted)  # the newest token has not been read yet, and the one before it has
        self._learn(self.tokens[begin:], hidden[:emitted])
        made = self._round(begin, drafts, verdict, emitted, logits)
        made.seconds = perf_counter() - began
        return made

    def _draft(self, most: int) -> Drafts:
        """Draft up to `most` tokens, as many as the policy asks for."""
        policy = self.settings.policy
        tokens: list[torch.Tensor] = []
        logprobs: list[torch.Tensor] = []
        proposals: list[torch.Tensor] = []
        y: torch.Tensor | None = None
        stopped, drops = False, getattr(policy, "drops", False)
        while len(tokens) < most or (drops and tokens):  # one that takes drafts back has a say on the last one too
            if policy is not None and not asked(policy, _probabilities(logprobs))[0]:
                stopped = True
                break
            if len(tokens) == most:
                break
            y = self.drafter.first() if y is None else self.drafter.next(tokens[-1], y)
            logits = self.drafter.logits(y)
            token, proposal = self._chosen(logits, tokens)
            tokens.append(token)
            logprobs.append(logits.log_softmax(dim=-1)[0, token])
            if proposal is not None:
                proposals.append(proposal)
        proposed = len(tokens)
        if stopped and drops and proposed:
            tokens, logprobs, proposals = tokens[:-1], logprobs[:-1], proposals[:-1]
        none = torch.empty(0, dtype=torch.long, device=self.context.device)
        return Drafts(
            torch.cat([none, *tokens]),
            torch.cat([none.float(), *logprobs]),
            torch.cat(proposals) if proposals else None,
            proposed,
        )

    def _chosen(self, logits: torch.Tensor, before: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """A draft, int [1], and the distribution [1, vocabulary] that it was drawn from, if it was."""
        if self.settings.drafting == "greedy":
            return logits.argmax(dim=-1), None
        proposal = self._processed(list(map(int, before)), logits).softmax(dim=-1)
        return torch.multinomial(proposal, 1, generator=self.generator)[0], proposal

    def _scores(self, logits: torch.Tensor, drafts: list[int]) -> torch.Tensor:
        """The main model's logits after temperature and the like: each row knows the drafts before it."""
        if not self.settings.processors:
            return logits
        return torch.cat([self._processed(drafts[:i], row[None]) for i, row in enumerate(logits)])

    def _processed(self, drafts: list[int], logits: torch.Tensor) -> torch.Tensor:
        """Logits [1, vocabulary] of the place after the text and these drafts, after temperature and the like."""
        text: Any = torch.tensor([[*self.tokens, *drafts]], device=logits.device)
        scores: torch.Tensor = self.settings.processors(text, logits)
        return scores

    def _judge(self, drafts: torch.Tensor, proposal: torch.Tensor | None, scores: torch.Tensor) -> Verification:
        return self.settings.rule.judge(drafts.to(scores.device), proposal, scores, self.generator)

    def _learn(self, tokens: list[int], hidden: torch.Tensor) -> None:
        """Hand the head the true pairs of these tokens and the hidden states before them."""
        self.drafter.learn(torch.tensor(tokens, device=self.context.device), hidden)

    def _emit(self, tokens: list[int]) -> int:
        """Add tokens to the text until it ends; how many were added."""
        for count, token in enumerate(tokens, start=1):
            self.tokens.append(token)
            if token in self.settings.end_tokens or (self.stop is not None and self.stop(self.tokens)):
                self.ended = "eos"
            elif len(self.tokens) >= self.limit:
                self.ended = "length"
            if self.ended:
                return count
        return len(tokens)

    def _round(self, begin: int, drafts: Drafts, verdict: Verification, emitted: int, logits: torch.Tensor) -> Round:
        """What happened, counted as docs/glossary.md says."""
        drafted = len(drafts.tokens)
        cut = emitted <= verdict.accepted
        accepted = min(verdict.accepted, emitted)
        tested = accepted if cut else min(accepted + 1, drafted)
        logprobs = logits[:tested].log_softmax(dim=-1)
        tokens = drafts.tokens.tolist()
        places = torch.arange(tested, device=logits.device)
        return Round(
            begin=begin,
            proposed=drafts.proposed,
            drafted=drafted,
            tested=tested,
            accepted=accepted,
            agreed=verdict.accepted,
            emitted=emitted,
            next_token=NONE if cut else verdict.next_token,
            ended=self.ended or ("full" if accepted == drafted else "rejected"),
            draft_token=tokens,
            draft_probability=drafts.logprobs.exp().tolist(),
            target_token=[*tokens[:accepted], *([verdict.next_token] if tested > accepted else [])],
            target_probability=logprobs[places, drafts.tokens[:tested].to(logits.device)].exp().tolist(),
            target_entropy=(-(logprobs.exp() * logprobs).nansum(dim=-1)).tolist(),
        )


def _probabilities(logprobs: list[torch.Tensor]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """[1, draft]: the probabilities of the drafts of this round so far, as policies read them."""
    return np.array([[float(each.exp()) for each in logprobs]], dtype=np.float64)
