"""Verification rules: which drafts are accepted; rules that sample keep the target model's distribution."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from qwenlab.errors import BadArgument
from qwenlab.speculative.verification import (
    ExactMatch,
    Greedy,
    SpeculativeSampling,
    Verification,
    VerificationRule,
    resolve_rule,
)

DRAWS = 20_000  # of a round of two drafts


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scores(*tokens: int, vocabulary: int = 5) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(tokens), vocabulary).float()


@pytest.mark.parametrize(
    ("drafts", "best", "wanted"),
    [
        ([], [3], Verification(0, 3)),
        ([1], [2, 4], Verification(0, 2)),
        ([2], [2, 4], Verification(1, 4)),
        ([2, 1, 3], [2, 0, 3, 4], Verification(1, 0)),  # the third agrees, but after a rejected draft
        ([2, 1, 3], [2, 1, 3, 0], Verification(3, 0)),
    ],
)
def test_greedy_by_hand(drafts, best, wanted):
    found = Greedy().verify(torch.tensor(drafts, dtype=torch.long), None, scores(*best), generator())
    assert found == wanted


class Lossy(VerificationRule):
    """Accepts a draft with more than half the probability that makes acceptance certain."""

    name, samples = "lossy", True

    def verify(self, drafts, proposal, scores, generator):
        p = scores.softmax(-1)
        if len(drafts) and p[0, drafts[0]] > 0.5 * proposal[0, drafts[0]]:
            return Verification(1, int(torch.multinomial(p[1], 1, generator=generator)))
        return Verification(0, int(torch.multinomial(p[0], 1, generator=generator)))


def first_two(rule: VerificationRule, sampled: bool) -> np.ndarray:
    """Counts [5, 5] of the first two tokens of many rounds with two drafts, after which p no longer depends on them."""
    numbers = generator(1)
    p = torch.randn(3, 5, generator=numbers)
    q = torch.randn(2, 5, generator=numbers).softmax(-1)
    counts = np.zeros((5, 5), dtype=np.int64)
    drawn = torch.multinomial(q, DRAWS, replacement=True, generator=numbers).T
    second = torch.multinomial(p[1].softmax(-1), DRAWS, replacement=True, generator=numbers).tolist()
    for drafts, next_round in zip(drawn if sampled else q.argmax(-1).expand(DRAWS, -1), second, strict=True):
        accepted, added = rule.verify(drafts, q if sampled else None, p, numbers)
        tokens = [*drafts[:accepted].tolist(), added]
        if len(tokens) == 1:  # the next round would begin here; its first token is drawn from p[1]
            tokens.append(next_round)
        counts[tokens[0], tokens[1]] += 1
    return counts


def agrees(counts: np.ndarray) -> float:
    """p-value of these counts under the target model's distribution."""
    p = torch.randn(3, 5, generator=generator(1)).softmax(-1).double().numpy()
    expected = np.outer(p[0], p[1]) * DRAWS
    return float(chisquare(counts.ravel(), expected.ravel() * (counts.sum() / expected.sum())).pvalue)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "sampled"),
    [(SpeculativeSampling(), True), (SpeculativeSampling(), False), (ExactMatch(), True), (ExactMatch(), False)],
)
def test_rules_that_sample_keep_the_distribution(rule, sampled):
    assert agrees(first_two(rule, sampled)) > 0.001


def test_a_lossy_rule_is_detected():
    assert agrees(first_two(Lossy(), True)) < 1e-12


def test_speculative_sampling_accepts_as_often_as_the_distributions_overlap():
    """sum_x min(p, q), Leviathan et al. 2023, definition 3.2; never where p is 0, always where p = q."""
    p, q = torch.tensor([[0.7, 0.3, 0.0], [1, 1, 1]]).log(), torch.tensor([[0.2, 0.3, 0.5]])
    rule, numbers = SpeculativeSampling(), generator()
    accepted = 0
    for _ in range(4000):
        drafts = torch.multinomial(q, 1, generator=numbers)[:, 0]
        found = rule.verify(drafts, q, p, numbers)
        assert found.accepted == 0 or drafts[0] != 2
        accepted += found.accepted
    assert accepted / 4000 == pytest.approx(0.5, abs=0.03)
    same = p.softmax(-1)[:1]
    assert all(rule.verify(torch.tensor([0]), same, p, numbers).accepted for _ in range(100))


def test_a_rule_and_its_temperature():
    assert isinstance(resolve_rule("greedy", 0), Greedy)
    own = Lossy()
    assert resolve_rule(own, 0.5) is own
    with pytest.raises(
        BadArgument, match=r"rule='nucleus'\): give one of 'greedy', 'speculative_sampling', 'exact_match'\."
    ):
        resolve_rule("nucleus", 0)
    with pytest.raises(BadArgument, match=r"temperature=0.7 would have no effect(.|\n)*'speculative_sampling'"):
        resolve_rule("greedy", 0.7)
    with pytest.raises(BadArgument, match=r"temperature=0 does not define(.|\n)*above 0, or rule='greedy'"):
        resolve_rule("exact_match", 0)
    with pytest.raises(BadArgument, match=r"temperature=-1"):
        resolve_rule("greedy", -1)
