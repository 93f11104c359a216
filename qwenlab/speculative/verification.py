"""Rules that judge drafts: which are accepted, and which token the main model adds after them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch

from qwenlab.errors import BadArgument


class Verification(NamedTuple):
    """How many drafts were accepted, and the token that the main model adds after them."""

    accepted: int
    next_token: int


class VerificationRule(ABC):
    """Judges the drafts of one round. A class of your own can be given wherever a name of ours can.

    name      goes with every number that was made under it
    samples   whether it draws from the main model's distribution (then a temperature is needed) or takes its argmax
    """

    name: ClassVar[str]
    samples: ClassVar[bool]

    @abstractmethod
    def judge(
        self, drafts: torch.Tensor, proposal: torch.Tensor | None, scores: torch.Tensor, generator: torch.Generator
    ) -> Verification:
        """Judge the drafts.

        drafts    int [draft], may be empty
        proposal  float [draft, vocabulary], the distributions the drafts were drawn from; None: they were not drawn
        scores    float [draft + 1, vocabulary], the main model's, after temperature and the like: row i is for the
                  place of draft i, the last one for the place after all drafts
        """


class Greedy(VerificationRule):
    """A draft is accepted when it is the main model's argmax; the main model adds its argmax."""

    name = "greedy"
    samples = False

    def judge(
        self, drafts: torch.Tensor, proposal: torch.Tensor | None, scores: torch.Tensor, generator: torch.Generator
    ) -> Verification:
        """The longest run of argmaxes."""
        return _longest_match(drafts, scores.argmax(dim=-1))


class ExactMatch(VerificationRule):
    """A token is drawn from the main model in every place; a draft is accepted when it is that token.

    The text has the main model's distribution, however the drafts were made (llama.cpp samples so).
    """

    name = "exact_match"
    samples = True

    def judge(
        self, drafts: torch.Tensor, proposal: torch.Tensor | None, scores: torch.Tensor, generator: torch.Generator
    ) -> Verification:
        """The longest run of draws."""
        drawn = torch.multinomial(scores.softmax(dim=-1), 1, generator=generator)[:, 0]
        return _longest_match(drafts, drawn)


class SpeculativeSampling(VerificationRule):
    """A draft x is accepted with probability min(1, p(x) / q(x)); else one is drawn from max(0, p - q), normalised.

    p is the main model's distribution and q the one the draft was drawn from: all mass on x where it was not drawn.
    The text has the distribution p (Leviathan et al. 2023, arXiv:2211.17192, algorithm 1 and appendix A.1).
    """

    name = "speculative_sampling"
    samples = True

    def judge(
        self, drafts: torch.Tensor, proposal: torch.Tensor | None, scores: torch.Tensor, generator: torch.Generator
    ) -> Verification:
        """Accept up to the first draft that fails; then draw from the residual, or after all drafts from p."""
        p, places = scores.softmax(dim=-1), torch.arange(len(drafts), device=scores.device)
        if proposal is None:
            proposal = torch.nn.functional.one_hot(drafts, p.shape[-1]).to(p.dtype)
        chance = torch.rand(len(drafts), generator=generator, device=p.device, dtype=p.dtype)
        passes = chance * proposal[places, drafts] < p[places, drafts]
        accepted = int(passes.long().cumprod(dim=0).sum())
        rest = p[accepted]
        if accepted < len(drafts):
            residual = (rest - proposal[accepted]).clamp_min(0)
            rest = residual if bool(residual.sum() > 0) else rest  # p and q may be equal but for rounding
        return Verification(accepted, int(torch.multinomial(rest, 1, generator=generator)))


def _longest_match(drafts: torch.Tensor, tokens: torch.Tensor) -> Verification:
    """Accept drafts as long as they are the tokens in their places; the next token follows."""
    accepted = int((drafts == tokens[: len(drafts)]).long().cumprod(dim=0).sum())
    return Verification(accepted, int(tokens[accepted]))


RULES = {rule.name: rule for rule in (Greedy, SpeculativeSampling, ExactMatch)}


def rule_of(rule: str | VerificationRule, temperature: float) -> VerificationRule:
    """The rule of a name, held against the temperature; raises BadArgument where they contradict each other."""
    if isinstance(rule, str):
        if rule not in RULES:
            raise BadArgument(f"rule={rule!r} is no rule.\nRules are named {', '.join(RULES)}.")
        rule = RULES[rule]()
    if not temperature >= 0:
        raise BadArgument(f"temperature={temperature!r}: give 0 for the argmax, or a number above 0 to sample at.")
    if rule.samples and temperature == 0:
        raise BadArgument(
            f"rule={rule.name!r} draws from the main model's distribution, and temperature=0 leaves none.\n"
            "Give a temperature above 0, or rule='greedy'."
        )
    if not rule.samples and temperature > 0:
        sampling = ", ".join(repr(name) for name, known in RULES.items() if known.samples)
        raise BadArgument(
            f"rule={rule.name!r} takes the main model's argmax, so temperature={temperature} would be without effect.\n"
            f"Leave the temperature out, or choose one of the rules that sample: {sampling}."
        )
    return rule
