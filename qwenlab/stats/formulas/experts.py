"""Expected counts of experts under independent routing with given loads: distinct, repeated, co-activated, unused."""

import numpy as np
from scipy.special import gammaln

_ROUNDS = 10_000
_CLOSE = 1e-9


def variation(load: np.ndarray) -> np.ndarray:
    """Coefficient of variation of loads [..., expert]: standard deviation over mean; 0 for a uniform load."""
    mean = load.mean(axis=-1)
    return load.std(axis=-1) / np.where(mean > 0, mean, np.nan)


def unused(load: np.ndarray, tokens: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Expected number of experts that none of n tokens chose, drawn without replacement from the tokens read.

    load    [..., expert]   tokens that chose each expert
    tokens  [...]           tokens read, N
    sizes   [size]          n; NaN beyond N
    returns [..., size]     sum over experts of C(N - load, n) / C(N, n)  (rarefaction: Hurlbert 1971, Ecology 52:577)
    """
    total = tokens[..., None, None].astype(np.float64)
    others = total - load[..., None]  # [..., expert, 1]
    with np.errstate(invalid="ignore"):
        log_share = _log_falling(others, sizes) - _log_falling(total, sizes)
        missed = np.where(sizes <= others, np.exp(log_share), 0.0).sum(axis=-2)
    return np.where(sizes <= tokens[..., None], missed, np.nan)


def _log_falling(total: np.ndarray, n: np.ndarray) -> np.ndarray:
    """ln of total! / (total - n)!, wherever n <= total."""
    return gammaln(total + 1) - gammaln(np.maximum(total - n, 0) + 1)


def distinct_if_independent(share: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Expected number of distinct experts that n independent tokens choose.

    share   [..., expert]  probability that a token chooses the expert
    sizes   [size]         n
    returns [..., size]    sum over experts of 1 - (1 - share)^n
    """
    return (1 - (1 - share[..., None]) ** sizes).sum(axis=-2)


def distinct_in_blocks(chosen: np.ndarray, text: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Mean number of distinct experts in blocks of n consecutive tokens, over all blocks within one text: [size].

    chosen  int [token, slot]: numbers of the chosen experts
    text    [token]: index of the token's text
    sizes   [size]: n; at least one text has n tokens
    """
    before = np.zeros((len(chosen) + 1, chosen.max() + 1), np.int32)  # tokens before this one that chose the expert
    np.put_along_axis(before[1:], chosen, 1, axis=1)
    np.cumsum(before, axis=0, out=before)
    inside = (text[n - 1 :] == text[: len(text) - n + 1] for n in sizes)
    return np.array([(before[n:] > before[:-n]).sum(axis=1)[one].mean() for n, one in zip(sizes, inside, strict=True)])


def repeated_if_independent(share: np.ndarray) -> np.ndarray:
    """Expected number of experts that two independent tokens both choose: sum over experts of share^2 [..., expert]."""
    return (share**2).sum(axis=-1)


def independent_pairs(load: np.ndarray, top_k: int) -> np.ndarray:
    """Expected number of tokens that choose both of two experts, if chosen independently given their loads.

    load     [..., expert]           tokens that chose each expert
    returns  [..., expert, expert]   symmetric, 0 on the diagonal, row sums (top_k - 1) load: quasi-independence

    A token's k choices all differ, so the product of two shares overstates every pair. Iterative proportional fitting
    (Deming and Stephan 1940) finds the table w_a w_b, without its diagonal, with these row sums.
    """
    target = (top_k - 1) * load.astype(np.float64)
    weight = np.sqrt(target / np.maximum(target.sum(axis=-1, keepdims=True), 1)) * np.sqrt(target)
    for _ in range(_ROUNDS):
        others = weight.sum(axis=-1, keepdims=True) - weight
        rows = weight * others
        ratio = np.divide(target, rows, out=np.ones_like(rows), where=rows > 0)
        weight = weight * np.sqrt(ratio)
        if np.abs(ratio - 1).max(initial=0) < _CLOSE:
            break
    pairs = weight[..., :, None] * weight[..., None, :]
    return pairs * (1 - np.eye(load.shape[-1]))
