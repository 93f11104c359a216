"""How far heads reach, held to loops over every row of every head."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from qwenlab import stats
from qwenlab.checkpoint.families import ATTENTION, DELTANET
from qwenlab.errors import BadArgument, NothingMeasured
from tests.planted.maps import NODES, made_maps


def slow_head(case, kind, layer, head):
    """Means over rows, and the (distance, mass) of every pair, by loops."""
    rows, sums, pairs, induction, output = case.rows[kind], {}, [], [], np.zeros((2, 2))
    for token, position in enumerate(case.texts.position):
        weight = rows.weight[token, layer, head, : position + 1]
        mass = abs(weight) / abs(weight).sum()
        said = {
            "first_mass": mass[0],
            "first_even": 1 / (position + 1),
            "previous_mass": mass[position - 1] if position else 0,
            "self_mass": mass[position],
            "distance": sum(m * (position - key) for key, m in enumerate(mass)),
            "entropy": -sum(m * np.log(m) for m in mass if m > 0),
            "mass": abs(weight).sum(),
            **({"negative": mass[weight < 0].sum()} if kind == DELTANET else {}),
            **({"mean_gate": rows.openness[token, layer, head]} if kind == ATTENTION else {}),
        }
        for name, value in said.items():
            sums[name] = sums.get(name, 0) + value
        ids = case.tokens[token - position : token + 1]
        again = [key for key in range(1, position) if ids[key - 1] == ids[-1]]
        if again:
            induction.append((mass[again].sum(), len(again) / (position + 1)))
        for row, norm in enumerate((rows.value_norm, rows.gated_norm)):
            made = abs(weight) * norm[token, layer, head, : position + 1]
            output[row] += made[0], made.sum()
        pairs += [(position - key, m) for key, m in enumerate(mass)]
    means = {name: total / len(case.texts.position) for name, total in sums.items()}
    means["induction"], means["induction_even"] = np.mean(induction, axis=0) if induction else (np.nan, np.nan)
    means["induction_lift"] = means["induction"] / means["induction_even"]
    means["output_first"] = output[0, 0] / output[0, 1]
    if kind == ATTENTION:
        means["gated_output_first"] = output[1, 0] / output[1, 1]
    return means, np.array(sorted(pairs))


@settings(max_examples=6)
@given(seed=st.integers(0, 2**32 - 1), sequences=st.integers(1, 10), length=st.integers(2, 14))
def test_every_number_is_that_of_the_rows(seed, sequences, length):
    case = made_maps(seed=seed, layers=4, sequences=sequences, length=length, heads=2, labels=["a"])
    result = stats.reach(case.recording)
    for kind, layer in ((DELTANET, 0), (ATTENTION, 3)):
        means, pairs = slow_head(case, kind, 0, 1)
        here = result.sel(layer=layer, head=1)
        for name, mean in means.items():
            assert_allclose(here[name], mean, rtol=1e-4, atol=1e-6, err_msg=name)
        distance, mass = pairs.T
        edges = case.recording[NODES[kind]]["distance_bin"].values
        for wanted in result["share"].values:
            reached = np.cumsum(mass)
            true = distance[np.searchsorted(reached, wanted * reached[-1] * (1 - 1e-9))]
            value = here["horizon"].sel(share=wanted)
            assert_array_equal(np.searchsorted(edges, value, "right"), np.searchsorted(edges, true, "right"))


def test_the_kinds_stand_side_by_side_in_the_trunks_order():
    result = stats.reach(made_maps(heads=4, attention_heads=3).recording)
    assert result["layer"].values.tolist() == list(range(8))
    assert result["kind"].values.tolist() == [DELTANET, DELTANET, DELTANET, ATTENTION] * 2
    of_attention = result["kind"] == ATTENTION
    assert result["first_mass"].isnull().sel(head=3).values.tolist() == of_attention.values.tolist()
    for name, kind in (("negative", DELTANET), ("reconstruction_error", DELTANET), ("mean_gate", ATTENTION)):
        assert (result[name].notnull().any("head") == (result["kind"] == kind)).all()


def test_planted_heads_are_found():
    result = stats.reach(made_maps(sequences=24, length=60).recording)
    fading, sink = result.sel(layer=0, head=0), result.sel(layer=3, head=0)
    assert float(fading["negative"]) < 1e-7  # the probe sums in float32
    assert float(fading["horizon"].sel(share=0.5)) == 1  # weights 1, 0.71, 0.5, 0.35, ...: half of them on two
    assert float(fading["horizon"].sel(share=0.9)) <= 7
    assert float(sink["first_mass"]) > 0.9
    assert float(sink["horizon"].sel(share=0.5)) > 10
    assert float(sink["output_first"]) > 0.85
    assert float(sink["gated_output_first"]) < 0.7


@pytest.mark.parametrize("kind", [DELTANET, ATTENTION])
def test_one_kind_alone_and_by_label(kind):
    case = made_maps(kinds=[kind])
    result = stats.reach(case.recording, by_label=True)
    assert set(result["kind"].values) == {kind}
    assert result["first_mass"].dims == ("label", "layer", "head") or set(result["first_mass"].dims) == {
        "label",
        "layer",
        "head",
    }
    assert stats.reach(case.recording[NODES[kind]], by_label=True).drop_attrs().equals(result.drop_attrs())


def test_intervals_lie_around_and_shares_add_up():
    result = stats.reach(made_maps().recording)
    for name in ("horizon", "first_mass", "entropy", "induction", "output_first", "gated_output_first"):
        low, high = (result[f"{name}_interval"].sel(bound=bound) for bound in ("low", "high"))
        assert ((low <= result[name]) & (result[name] <= high) | result[name].isnull()).all(), name
    assert_allclose(result["mass_share"].sum("distance_bin").where(result["mass"].notnull()).dropna("head"), 1)
    assert_allclose(result["reconstruction_error"].sel(layer=0), 1e-7)
    assert_allclose(result["without_removal_error"].sel(layer=0), 0.5)


def test_folds_without_induction_have_no_say_in_its_interval():
    node = made_maps(kinds=[DELTANET]).recording["implicit_attention"]
    few = node["fold"].isin([1, 4, 6])
    for name in ("induction_sum", "induction_even_sum", "induction_rows"):
        node[name] = node[name].where(few, 0)
    result, alone = (stats.reach(each)["induction_interval"] for each in (node, node.isel(fold=[1, 4, 6])))
    assert result.notnull().all()
    assert_allclose(result, alone)


@pytest.mark.parametrize("horizons", [(0, 0.5), (0.5, 1), [[0.5]]])
def test_horizons_that_are_no_shares(horizons):
    with pytest.raises(BadArgument, match=r"horizons=.*: give numbers between 0 and 1, both excluded"):
        stats.reach(made_maps().recording, horizons=horizons)


def test_rows_that_were_never_measured():
    node = made_maps(kinds=[DELTANET]).recording["implicit_attention"]
    node["tokens"][:] = 0
    with pytest.raises(NothingMeasured, match="The ImplicitAttention probe measured no token"):
        stats.reach(node)
