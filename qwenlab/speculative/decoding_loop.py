"""The draft-and-verify loop for one text: draft with the MTP head, verify in one forward pass, roll back, emit."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any, Literal

import numpy as np
import torch
from transformers import LogitsProcessorList

from qwenlab.checkpoint.mtp_head import MtpHead
from qwenlab.checkpoint.streaming.refusals import refuse_decoding
from qwenlab.speculative.context import TargetContext
from qwenlab.speculative.drafter import Drafter
from qwenlab.speculative.policies import Policy, call_policy, policy_name
from qwenlab.speculative.rollback import Rollback
from qwenlab.speculative.rounds import NONE, Ended, Round
from qwenlab.speculative.verification import Verification, VerificationRule

Drafting = Literal["greedy", "sampled"]


@dataclass(frozen=True)
class Settings:
    """Settings of the decoding loop.

    depth       maximum drafts per round
    rule        verification rule;  drafting: "greedy", the head's argmax, or "sampled" from its distribution
    policy      called before each draft: whether to make it; None: `depth` drafts in every round
    processors  temperature, top-k and other logits processors, for the target model and for a head that is sampled
    end_tokens  tokens that end the text
    """

    depth: int
    rule: VerificationRule
    policy: Policy | None = None
    drafting: Drafting = "greedy"
    processors: LogitsProcessorList = field(default_factory=LogitsProcessorList)
    end_tokens: Collection[int] = ()

    def attrs(self, *, rollback: str, temperature: float, seed: int, **more: Any) -> dict[str, Any]:
        """Attributes of a ledger made with these settings."""
        policy = policy_name(self.policy)
        made = {"rule": self.rule.name, "depth": self.depth, "policy": policy, "drafting": self.drafting}
        drawn = {"temperature": temperature, **more, "rollback": rollback, "seed": seed}
        return made | drawn | {"origin": "online", "text": "own"}


@dataclass
class Drafts:
    """Drafts of one round: tokens and log-probabilities [draft], and a proposal as in `VerificationRule.verify`."""

    tokens: torch.Tensor
    logprobs: torch.Tensor
    proposal: torch.Tensor | None
    proposed: int  # with one that the policy discarded


class Decoding:
    """Decodes one text round by round: `start()` reads the prompt, then call `step()` until `ended` is set.

    tokens    prompt and emitted tokens
    context   the target model's state, after all tokens but the newest
    drafter   the draft head and its cache
    rounds    the rounds run
    ended     "" while the text is unfinished, then "eos" or "length"
    rollback  a class, or an object for this text
    seed      of the generator that draws tokens
    stop      called after every token with `tokens`: whether the text ends there, as it does after an end token
    """

    def __init__(
        self,
        head: MtpHead,
        prompt: torch.Tensor,
        settings: Settings,
        rollback: type[Rollback] | Rollback,
        *,
        max_new_tokens: int,
        seed: int = 0,
        context: TargetContext | None = None,
        stop: Callable[[list[int]], bool] | None = None,
    ) -> None:
        refuse_decoding(head.target_model)
        self.settings, self.stop = settings, stop
        self.rollback = rollback() if isinstance(rollback, type) else rollback
        self.generator = torch.Generator(prompt.device).manual_seed(seed)
        self.context = TargetContext(head.target_model) if context is None else context
        self.drafter = Drafter(head)
        self.tokens: list[int] = prompt.tolist()
        self.begin, self.limit = len(prompt), len(prompt) + max_new_tokens
        self.rounds: list[Round] = []
        self.ended: Ended | Literal[""] = ""

    def run(self, emitted: Callable[[list[int]], Any]) -> None:
        """Decode the text to its end; call `emitted` with the first token, and with the tokens of each round."""
        self.start()
        emitted(self.tokens[-1:])
        while not self.ended:
            emitted(self.tokens[-self.step().emitted :])

    @torch.no_grad()
    def start(self) -> None:
        """Read the prompt and emit the first token, which is not part of a round."""
        prompt = torch.tensor(self.tokens, device=self.context.device)
        hidden = self.context.read(prompt)
        scores = self._scores(self.context.logits(hidden[-1:]), [])
        first = self._verify(prompt[:0], None, scores).next_token
        self.drafter.add_pairs(prompt.new_tensor([*self.tokens[1:], first]), hidden)
        self._emit([first])

    @torch.no_grad()
    def step(self) -> Round:
        """Draft, verify, roll back and emit: one round."""
        began, newest, begin = perf_counter(), self.tokens[-1], len(self.tokens)
        drafts = self._draft(min(self.settings.depth, self.limit - begin - 1))
        self.drafter.discard_drafts()
        block = torch.cat([drafts.tokens.new_tensor([newest]), drafts.tokens])
        with self.rollback.verifying(self.context):
            hidden = self.context.read(block)
        logits = self.context.logits(hidden)
        verified = self._verify(drafts.tokens, drafts.proposal, self._scores(logits, drafts.tokens.tolist()))
        emitted = self._emit([*drafts.tokens[: verified.accepted].tolist(), verified.next_token])
        self.rollback.keep(self.context, emitted)  # the newest token has not been read yet, and the one before it has
        self.drafter.add_pairs(block.new_tensor(self.tokens[begin:]), hidden[:emitted])
        counted = self._round(begin, drafts, verified, emitted, logits)
        self.rounds.append(replace(counted, seconds=perf_counter() - began))
        return self.rounds[-1]

    def _draft(self, most: int) -> Drafts:
        """Draft until the policy stops, at most `most` tokens."""
        policy = self.settings.policy
        tokens, logprobs, proposals = list[torch.Tensor](), list[torch.Tensor](), list[torch.Tensor]()
        y: torch.Tensor | None = None
        stopped, drops = False, getattr(policy, "drops", False)
        while len(tokens) < most or (drops and tokens):  # a policy that drops is called after the last draft too
            if policy is not None:
                probability = np.array([[float(logprob.exp()) for logprob in logprobs]])
                stopped = not call_policy(policy, probability)[0]
            if stopped or len(tokens) == most:
                break
            y = self.drafter.first() if y is None else self.drafter.next(tokens[-1], y)
            logits = self.drafter.logits(y)
            token, distribution = self._choose_draft(logits, tokens)
            tokens.append(token)
            logprobs.append(logits.log_softmax(dim=-1)[0, token])
            proposals += [] if distribution is None else [distribution]
        proposed = len(tokens)
        if stopped and drops:
            tokens, logprobs, proposals = tokens[:-1], logprobs[:-1], proposals[:-1]
        none = torch.empty(0, dtype=torch.long, device=self.context.device)
        proposal = torch.cat(proposals) if proposals else None
        return Drafts(torch.cat([none, *tokens]), torch.cat([none.float(), *logprobs]), proposal, proposed)

    def _choose_draft(
        self, logits: torch.Tensor, before: list[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """A draft, int [1], and the distribution [1, vocabulary] that it was drawn from; None: it was not drawn."""
        if self.settings.drafting == "greedy":
            return logits.argmax(dim=-1), None
        proposal = self._processed(list(map(int, before)), logits).softmax(dim=-1)
        return torch.multinomial(proposal, 1, generator=self.generator)[0], proposal

    def _scores(self, logits: torch.Tensor, drafts: list[int]) -> torch.Tensor:
        """The target model's logits after the processors; row i depends on the drafts before it."""
        if not self.settings.processors:
            return logits
        return torch.cat([self._processed(drafts[:i], row[None]) for i, row in enumerate(logits)])

    def _processed(self, drafts: list[int], logits: torch.Tensor) -> torch.Tensor:
        """Logits [1, vocabulary] for the place after the text and these drafts, after the processors."""
        text: Any = torch.tensor([[*self.tokens, *drafts]], device=logits.device)
        scores: torch.Tensor = self.settings.processors(text, logits)
        return scores

    def _verify(self, drafts: torch.Tensor, proposal: torch.Tensor | None, scores: torch.Tensor) -> Verification:
        return self.settings.rule.verify(drafts.to(scores.device), proposal, scores, self.generator)

    def _emit(self, tokens: list[int]) -> int:
        """Add tokens to the text until it ends; return the number added."""
        for count, token in enumerate(tokens, start=1):
            self.tokens.append(token)
            if token in self.settings.end_tokens or (self.stop is not None and self.stop(self.tokens)):
                self.ended = "eos"
            elif len(self.tokens) >= self.limit:
                self.ended = "length"
            if self.ended:
                return count
        return len(tokens)

    def _round(self, begin: int, drafts: Drafts, verified: Verification, emitted: int, logits: torch.Tensor) -> Round:
        """The round's counts, as defined in docs/glossary.md."""
        drafted = len(drafts.tokens)
        cut = emitted <= verified.accepted
        accepted = min(verified.accepted, emitted)
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
            agreed=verified.accepted,
            emitted=emitted,
            next_token=NONE if cut else verified.next_token,
            ended=self.ended or ("full" if accepted == drafted else "rejected"),
            draft_token=tokens,
            draft_probability=drafts.logprobs.exp().tolist(),
            target_token=[*tokens[:accepted], *([verified.next_token] if tested > accepted else [])],
            target_probability=logprobs[places, drafts.tokens[:tested].to(logits.device)].exp().tolist(),
            target_entropy=(-(logprobs.exp() * logprobs).nansum(dim=-1)).tolist(),
        )
