"""Verification rules: which draft tokens are accepted, and which token the target model adds after them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch
from torch import Generator, Tensor

from qwenlab.arguments import choice
from qwenlab.errors import BadArgument


class Verification(NamedTuple):
    """Number of accepted drafts, and the token that the target model adds after them."""

    accepted: int
    next_token: int


class VerificationRule(ABC):
    """Base class of rules that verify the drafts of one round; implement `verify` for a rule of your own.

    name      recorded with every result of the rule
    samples   True: the rule draws from the target model's distribution and needs a temperature; False: it takes the
              argmax
    """

    name: ClassVar[str]
    samples: ClassVar[bool]

    @abstractmethod
    def verify(self, drafts: Tensor, proposal: Tensor | None, scores: Tensor, generator: Generator) -> Verification:
        """Accept or reject the drafts, and choose the next token.

        drafts    int [draft], may be empty
        proposal  float [draft, vocabulary], the distributions the drafts were drawn from; None: they were not drawn
        scores    float [draft + 1, vocabulary], the target model's logits after temperature and the other logits
                  processors: row i is for the place of draft i, the last row for the place after all drafts
        """


class Greedy(VerificationRule):
    """A draft is accepted when it is the target model's argmax; the target model adds its argmax."""

    name = "greedy"
    samples = False

    def verify(self, drafts: Tensor, proposal: Tensor | None, scores: Tensor, generator: Generator) -> Verification:
        return _longest_match(drafts, scores.argmax(dim=-1))


class ExactMatch(VerificationRule):
    """A token is drawn from the target model in every place; a draft is accepted when it is that token.

    The text has the target model's distribution for every way of drafting (llama.cpp samples like this).
    """

    name = "exact_match"
    samples = True

    def verify(self, drafts: Tensor, proposal: Tensor | None, scores: Tensor, generator: Generator) -> Verification:
        drawn = torch.multinomial(scores.softmax(dim=-1), 1, generator=generator)[:, 0]
        return _longest_match(drafts, drawn)


class SpeculativeSampling(VerificationRule):
    """A draft x is accepted with probability min(1, p(x) / q(x)); else one is drawn from max(0, p - q), normalised.

    p is the target model's distribution and q the draft's: all mass on x if the draft was not drawn.
    The text has the distribution p (Leviathan et al. 2023, arXiv:2211.17192, algorithm 1 and appendix A.1).
    """

    name = "speculative_sampling"
    samples = True

    def verify(self, drafts: Tensor, proposal: Tensor | None, scores: Tensor, generator: Generator) -> Verification:
        p, places = scores.softmax(dim=-1), torch.arange(len(drafts), device=scores.device)
        if proposal is None:
            proposal = torch.nn.functional.one_hot(drafts, p.shape[-1]).to(p.dtype)
        uniform = torch.rand(len(drafts), generator=generator, device=p.device, dtype=p.dtype)
        passes = uniform * proposal[places, drafts] < p[places, drafts]
        accepted = int(passes.long().cumprod(dim=0).sum())
        rest = p[accepted]
        if accepted < len(drafts):
            residual = (rest - proposal[accepted]).clamp_min(0)
            rest = residual if bool(residual.sum() > 0) else rest  # p and q may be equal but for rounding
        return Verification(accepted, int(torch.multinomial(rest, 1, generator=generator)))


def _longest_match(drafts: Tensor, tokens: Tensor) -> Verification:
    """Accept the longest prefix of drafts equal to `tokens`; add the token after it."""
    accepted = int((drafts == tokens[: len(drafts)]).long().cumprod(dim=0).sum())
    return Verification(accepted, int(tokens[accepted]))


RULES = {rule.name: rule for rule in (Greedy, SpeculativeSampling, ExactMatch)}


def resolve_rule(rule: str | VerificationRule, temperature: float, *, where: str = "generate") -> VerificationRule:
    """The rule for a name or a rule; raises BadArgument for an unknown name or a contradicting temperature.

    where  names the caller in the message
    """
    if isinstance(rule, str):
        rule = RULES[choice(where, "rule", rule, RULES)]()
    if not temperature >= 0:
        raise BadArgument(f"temperature={temperature!r}: give 0 for the argmax, or a number above 0 to sample at.")
    if rule.samples and temperature == 0:
        raise BadArgument(
            f"rule={rule.name!r} draws from the target model's distribution, which temperature=0 does not define.\n"
            "Give a temperature above 0, or rule='greedy'."
        )
    if not rule.samples and temperature > 0:
        sampling = ", ".join(repr(name) for name, known in RULES.items() if known.samples)
        raise BadArgument(
            f"rule={rule.name!r} takes the target model's argmax, so temperature={temperature} would have no effect.\n"
            f"Leave temperature out, or choose a rule that samples: {sampling}."
        )
    return rule
