"""Entropy and mutual information of tables of counts, in nats, with their values for independent counts."""

import numpy as np
from scipy import stats
from scipy.special import xlogy


def entropy(counts: np.ndarray) -> np.ndarray:
    """Entropy of counts [..., n] as shares of their sum, nats (plug-in): [...]; NaN without counts."""
    total = counts.sum(axis=-1)
    some = np.where(total > 0, total, np.nan)
    return np.log(some) - xlogy(counts, counts).sum(axis=-1) / some


def mutual_information(table: np.ndarray) -> np.ndarray:
    """Plug-in mutual information of the rows and columns of counts [..., n, m], nats: [...]."""
    joint = table.reshape(*table.shape[:-2], -1)
    return entropy(table.sum(axis=-1)) + entropy(table.sum(axis=-2)) - entropy(joint)


def independent_information(table: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Plug-in mutual information of random independent tables with the same margins, its finite-sample bias: [draw].

    table  int [n, m]. Patefield's algorithm (scipy.stats.random_table) draws the tables, as shuffling one column of the
           pairs would.
    """
    rows, columns = table.sum(axis=1), table.sum(axis=0)
    rows, columns = rows[rows > 0], columns[columns > 0]
    if min(len(rows), len(columns)) < 2:
        return np.zeros(draws)
    return mutual_information(stats.random_table(rows, columns, seed=rng).rvs(draws))


def permuted_information(blocks: np.ndarray, label: np.ndarray, labels: int, permutations: np.ndarray) -> np.ndarray:
    """Mutual information between label and column when blocks of counts change labels: [permutation].

    blocks        [block, n]              counts of each block: texts of one label
    label         int [block]             the label of each block
    permutations  int [permutation, block]
    """
    member = np.eye(labels)[label[permutations]]  # [permutation, block, label]
    return mutual_information(member.transpose(0, 2, 1) @ blocks.astype(np.float64))
