"""When to draft one more token: policies, which need no model and no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from qwenlab.errors import BadArgument, BadPolicy

Policy: TypeAlias = Callable[[np.ndarray], np.ndarray]
"""Asked before each draft, with the probabilities float [round, draft] of the drafts that each round has so far (before
the first one: [round, 0]); answers bool [round]: draft one more. The answer for a round may hang on that round alone.

A policy with an attribute `drops` that is true takes its newest draft back when it stops: it is not given to the main
model (llama.cpp's `p_min`). Without one that draft is tested too (transformers' `assistant_confidence_threshold`).
Such a policy is asked after the last draft that a round may have, too; others are not."""


@dataclass(frozen=True)
class FixedDepth:
    """So many drafts in every round."""

    depth: int

    def __post_init__(self) -> None:
        if self.depth < 0:
            raise BadArgument(f"FixedDepth({self.depth}): give 0 (no drafts) or more.")

    def __call__(self, probability: np.ndarray) -> np.ndarray:
        """Draft until there are `depth` drafts."""
        rounds, drafts = probability.shape
        return np.full(rounds, drafts < self.depth)


@dataclass(frozen=True)
class Threshold:
    """Stop once the newest draft's probability falls under `probability`; `drops`: take that draft back."""

    probability: float
    drops: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise BadArgument(f"Threshold({self.probability}): give a probability, 0 to 1.")

    def __call__(self, probability: np.ndarray) -> np.ndarray:
        """Draft while the newest draft is likely enough."""
        rounds, drafts = probability.shape
        return probability[:, -1] >= self.probability if drafts else np.ones(rounds, dtype=bool)


@dataclass(frozen=True)
class ExpectedValue:
    """Draft one more while that is expected to make the round faster, in tokens a second.

    With q_1 .. q_i the probabilities of the drafts so far, each taken for the chance that it is accepted if those
    before it are, the round is expected to emit

        E_i = 1 + q_1 + q_1 q_2 + ... + q_1 .. q_i        tokens, in
        C_i = i * draft_step + verify_step[i]              seconds (i drafts are verified as a block of i + 1 tokens)

    The next draft adds q_1 .. q_i * guess tokens and draft_step + verify_step[i + 1] - verify_step[i] seconds, and it
    is made if the tokens per second that it adds are more than the round has without it, E_i / C_i.

    draft_step   of the MTP head, one token
    verify_step  of the main model, by width: [0] one token, which is a plain step, [1] two tokens, ...; no round has
                 more drafts than it has widths for. Whatever else a round costs (rollback) belongs in it
    guess        the chance that the next draft will be accepted, which has no probability yet: one number, or one by
                 place in the round, the last of which holds for all later ones. The conditional rates of a ledger are
                 such numbers

    Only ratios of the costs matter, so any unit will do.
    """

    draft_step: float
    verify_step: Sequence[float]
    guess: float | Sequence[float] = 0.8

    def __post_init__(self) -> None:
        guesses = (self.guess,) if np.isscalar(self.guess) else self.guess
        object.__setattr__(self, "verify_step", tuple(map(float, self.verify_step)))
        object.__setattr__(self, "guess", tuple(map(float, guesses)))  # type: ignore[arg-type]
        if not (self.draft_step >= 0 and self.verify_step and min(self.verify_step) > 0):
            raise BadArgument(
                f"{self!r}: costs are positive numbers.\n"
                "Give draft_step, and verify_step as a list: a plain step, a block of two tokens, of three, ..."
            )
        if not (self.guess and all(0 <= chance <= 1 for chance in self.guess)):  # type: ignore[union-attr]
            raise BadArgument(f"{self!r}: guess is a probability, or a list of them by place in the round.")

    def __call__(self, probability: np.ndarray) -> np.ndarray:
        """Draft while the next one is expected to pay."""
        rounds, drafts = probability.shape
        if drafts + 1 >= len(self.verify_step):
            return np.zeros(rounds, dtype=bool)
        guesses: Any = self.guess
        reached = np.cumprod(probability, axis=1)  # the chance that all drafts up to this one are accepted
        tokens = 1 + reached.sum(axis=1)
        seconds = drafts * self.draft_step + self.verify_step[drafts]
        more_tokens = (reached[:, -1] if drafts else 1.0) * guesses[min(drafts, len(guesses) - 1)]
        more_seconds = self.draft_step + self.verify_step[drafts + 1] - self.verify_step[drafts]
        return np.asarray(more_tokens * seconds > tokens * more_seconds)


def asked(policy: Policy, probability: np.ndarray) -> np.ndarray:
    """What a policy answers, bool [round]; raises BadPolicy for an answer of another shape or type."""
    if not callable(policy):
        raise BadPolicy(
            f"policy={policy!r} is a {type(policy).__name__}, which cannot be called.\n"
            "Give a function of the probabilities [round, draft] so far, or one of qwenlab.speculative: "
            "FixedDepth(3), Threshold(0.5), ExpectedValue(...)."
        )
    answer: Any = policy(probability)
    wanted = probability.shape[:1]
    if isinstance(answer, np.ndarray) and answer.dtype == bool and answer.shape == wanted:
        return answer
    is_array = isinstance(answer, np.ndarray)
    what = f"an array {list(answer.shape)} of {answer.dtype}" if is_array else f"a {type(answer).__name__}: {answer!r}"
    raise BadPolicy(
        f"The policy {name_of(policy)} was asked about probabilities {list(probability.shape)} [round, draft] and "
        f"returned {what}.\n"
        f"It must return a NumPy array {list(wanted)} of bool, one answer a round: draft one more. "
        f"Before the first draft there is no probability: {list(wanted)} by 0."
    )


def name_of(policy: Policy) -> str:
    """What a policy is called in a result: a function's name, or how the object shows itself if it can."""
    named = getattr(policy, "__name__", None)
    if isinstance(named, str):
        return named
    shows_itself = "__repr__" in vars(type(policy))
    return repr(policy) if shows_itself else type(policy).__name__
