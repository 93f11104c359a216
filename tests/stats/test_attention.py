"""Where attention looks, held to every row of every head."""

import numpy as np
from hypothesis import given, settings
from numpy.testing import assert_allclose, assert_array_equal

from qwenlab import stats
from qwenlab.testing.recordings import made
from qwenlab.testing.strategies import made_recordings


def slow_head(case, layer, head):
    """Means over queries and the (distance, mass) of every pair, by loops."""
    sums = dict.fromkeys(("distance", "entropy", "first_mass", "previous_mass", "self_mass"), 0.0)
    pairs = []
    for token, position in enumerate(case.texts.position):
        row = case.attention.probability[token, layer, head]
        sums["first_mass"] += row[0]
        sums["self_mass"] += row[position]
        sums["previous_mass"] += row[position - 1] if position else 0
        for key in range(position + 1):
            sums["distance"] += row[key] * (position - key)
            sums["entropy"] -= row[key] * np.log(row[key])
            pairs.append((position - key, row[key]))
    return {name: total / len(case.texts.position) for name, total in sums.items()}, pairs


@settings(max_examples=10)
@given(made_recordings(probes=["attention"]))
def test_means_and_quantiles_are_those_of_the_rows(case):
    result = stats.attention_distance(case.recording)
    means, pairs = slow_head(case, 0, 0)
    for name, mean in means.items():
        assert_allclose(result[name][0, 0], mean, rtol=1e-5, atol=1e-6)
    distance, mass = np.array(sorted(pairs)).T
    edges = case.recording["attention"]["distance_bin"].values
    for q in result["quantile"].values:
        reached = np.cumsum(mass)
        true = distance[np.searchsorted(reached, q * reached[-1] * (1 - 1e-9))]
        value = result["distance_quantile"].sel(quantile=q)[0, 0]
        assert_array_equal(np.searchsorted(edges, value, "right"), np.searchsorted(edges, true, "right"))


def test_the_shares_of_the_mass_add_up():
    result = stats.attention_distance(made().recording)
    assert_allclose(result["distance_share"].sum("distance_bin"), 1)
    assert_allclose(result["distance_share"].isel(distance_bin=0), result["self_mass"])


def test_heads_that_were_not_measured_are_nan():
    node = made().recording["attention"]
    node["distance_mass"][:, :, 1] = 0
    result = stats.attention_distance(node)
    assert result["entropy"].isel(head=1).isnull().all()
    assert result["distance_quantile"].isel(head=1).isnull().all()
    assert result["entropy"].isel(head=0).notnull().all()
