"""Draft policies: decide before each draft whether to make one more. They need no model and no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from qwenlab.errors import BadArgument, BadPolicy

Policy: TypeAlias = Callable[[np.ndarray], np.ndarray]
"""Called before each draft with the probabilities, float [round, draft], of the drafts that each round has already
(before the first draft: [round, 0]). Returns bool [round]: make one more draft. The value for a round may depend on
that round only.

A policy with a true attribute `drops` discards its newest draft when it stops, so that the target model does not verify
that draft (llama.cpp's `p_min`). Without it, that draft is verified (transformers' `assistant_confidence_threshold`). A
policy that drops is also called after the last draft that a round may have; other policies are not."""


@dataclass(frozen=True)
class FixedDepth:
    """Make `depth` drafts in every round."""

    depth: int

    def __post_init__(self) -> None:
        if self.depth < 0:
            raise BadArgument(f"FixedDepth({self.depth}): give 0 (no drafts) or more.")

    def __call__(self, probability: np.ndarray) -> np.ndarray:
        rounds, drafts = probability.shape
        return np.full(rounds, drafts < self.depth)


@dataclass(frozen=True)
class Threshold:
    """Stop once the newest draft's probability falls below `probability`; `drops`: discard that draft."""

    probability: float
    drops: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise BadArgument(f"Threshold({self.probability}): give a probability, 0 to 1.")

    def __call__(self, probability: np.ndarray) -> np.ndarray:
        rounds, drafts = probability.shape
        return probability[:, -1] >= self.probability if drafts else np.ones(rounds, dtype=bool)


@dataclass(frozen=True)
class ExpectedValue:
    """Make one more draft while that is expected to increase the round's tokens per second.

    Let q_1 .. q_i be the probabilities of the drafts made already, each read as the probability that the draft is
    accepted if all before it are. The round is expected to emit

        E_i = 1 + q_1 + q_1 q_2 + ... + q_1 .. q_i        tokens, in
        C_i = i * draft_step + verify_step[i]              seconds (i drafts are verified as a block of i + 1 tokens)

    The next draft adds q_1 .. q_i * guess tokens and draft_step + verify_step[i + 1] - verify_step[i] seconds. It is
    made if it adds more tokens per second than the round has without it, E_i / C_i.

    draft_step   cost of the MTP head for one token
    verify_step  cost of the target model by width: [0] one token, which is a plain step, [1] two tokens, ...; a round
                 has no more drafts than there are widths. Include any other cost of a round, such as rollback
    guess        probability that the next draft, whose own probability is not known yet, is accepted: one number, or
                 one per place in the round, the last of which applies to all later places. The conditional acceptance
                 rates of a ledger are such numbers

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
        rounds, drafts = probability.shape
        if drafts + 1 >= len(self.verify_step):
            return np.zeros(rounds, dtype=bool)
        guesses: Any = self.guess
        reached = np.cumprod(probability, axis=1)  # probability that all drafts up to this one are accepted
        tokens = 1 + reached.sum(axis=1)
        seconds = drafts * self.draft_step + self.verify_step[drafts]
        more_tokens = (reached[:, -1] if drafts else 1.0) * guesses[min(drafts, len(guesses) - 1)]
        more_seconds = self.draft_step + self.verify_step[drafts + 1] - self.verify_step[drafts]
        return np.asarray(more_tokens * seconds > tokens * more_seconds)


def call_policy(policy: Policy, probability: np.ndarray) -> np.ndarray:
    """Call a policy and check its result, bool [round]; raises BadPolicy for another shape or type."""
    if not callable(policy):
        raise BadPolicy(
            f"policy={policy!r} is a {type(policy).__name__}, which cannot be called.\n"
            "Give a function of the probabilities [round, draft], or one of qwenlab.speculative: "
            "FixedDepth(3), Threshold(0.5), ExpectedValue(...)."
        )
    result: Any = policy(probability)
    shape = probability.shape[:1]
    is_array = isinstance(result, np.ndarray)
    if is_array and result.dtype == bool and result.shape == shape:
        checked: np.ndarray = result
        return checked
    what = f"an array {list(result.shape)} of {result.dtype}" if is_array else f"a {type(result).__name__}: {result!r}"
    raise BadPolicy(
        f"The policy {policy_name(policy)} was called with probabilities {list(probability.shape)} [round, draft] and "
        f"returned {what}.\n"
        f"It must return a NumPy array {list(shape)} of bool, one value per round: draft one more. "
        f"Before the first draft there is no probability: {list(shape)} by 0."
    )


def policy_name(policy: Policy | None) -> str:
    """Name of a policy in results: a function's name, or the object's own repr if its class defines one."""
    if policy is None:
        return "fixed depth"
    name = getattr(policy, "__name__", None)
    if isinstance(name, str):
        return name
    return repr(policy) if "__repr__" in vars(type(policy)) else type(policy).__name__
