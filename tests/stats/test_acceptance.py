"""Acceptance: counted by hand, by loops, and with intervals that cluster by prompt."""

import time

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats as stats_of

from qwenlab import stats
from qwenlab.errors import BadArgument, NothingMeasured
from qwenlab.stats.acceptance import ENTROPIES
from qwenlab.testing.ledgers import Played, ledger, made_ledger
from qwenlab.testing.strategies import made_ledgers

SERVER = ("server_position_rate", "server_rate", "server_length")
RATES = ("unconditional", "conditional", "acceptance_length", "draft_efficiency", *SERVER)

# Token 0 ends a text. The comments say accepted, tested, drafted, emitted.
BY_HAND = [
    Played((5, 6, 7), (5, 6, 9, 1), prompt=0, label="code"),  # 2 3 3 3, rejected
    Played((1, 2, 3), (1, 2, 3, 4), prompt=0, label="code"),  # 3 3 3 4, full
    Played((8, 0, 3), (8, 0, 3, 9), prompt=0, label="code"),  # 2 2 3 2, eos inside the accepted run; 3 agreed
    Played((4,), (5, 1), prompt=1, label="prose"),  # 0 1 1 1, rejected
    Played((), (7,), prompt=1, label="prose"),  # 0 0 0 1, nothing drafted
    Played((6, 9), (6, 0, 1), prompt=1, label="prose"),  # 1 2 2 2, eos as the added token
    Played((2, 3), (2, 3, 4), prompt=2, label="prose", allowed=3),  # 2 2 2 3, reached its length, not cut
    Played((2, 3, 4), (2, 3, 4, 5), prompt=3, label="prose", allowed=2),  # 2 2 3 2, cut by length; 3 agreed
]


def test_counted_by_hand():
    result = stats.acceptance(ledger(BY_HAND))
    assert_array_equal(result["drafted"], [7, 6, 4])
    assert_array_equal(result["tested"], [7, 6, 2])
    assert_array_equal(result["accepted"], [6, 5, 1])
    assert_allclose(result["unconditional"], [6 / 7, 5 / 6, 1 / 4])
    assert_allclose(result["conditional"], [6 / 7, 5 / 6, 1 / 2])
    assert (int(result["rounds"]), int(result["truncated_rounds"]), int(result["prompts"])) == (8, 2, 4)
    assert_allclose(result["acceptance_length"], 18 / 8)
    assert_allclose(result["draft_efficiency"], 12 / 17)
    assert_allclose(result["server_rate"], 14 / 17)
    assert_allclose(result["server_position_rate"], [6 / 7, 5 / 7, 3 / 7])
    assert_allclose(result["server_length"], 1 + 14 / 7)
    assert result["draft"].values.tolist() == [1, 2, 3]


def test_by_label_each_is_counted_by_itself():
    result = stats.acceptance(ledger(BY_HAND), by="label")
    assert result["label"].values.tolist() == ["code", "prose"]  # in the order of the ledger
    assert_array_equal(result["accepted"], [[3, 3, 1], [3, 2, 0]])
    assert_allclose(result["acceptance_length"], [9 / 3, 9 / 5])
    assert_array_equal(result["truncated_rounds"], [1, 1])


def test_labels_keep_the_order_of_the_ledger():
    result = stats.acceptance(ledger(BY_HAND[3:] + BY_HAND[:3]), by="label")
    assert result["label"].values.tolist() == ["prose", "code"]
    assert_array_equal(result["accepted"], [[3, 2, 0], [3, 3, 1]])


def test_unknown_agreement_of_a_replay_is_nan():
    result = stats.acceptance(ledger(BY_HAND, origin="replay"))
    for name in SERVER:
        assert np.isnan(result[name]).all()
        assert np.isnan(result[f"{name}_interval"]).all()
    assert_allclose(result["draft_efficiency"], 12 / 17)


def loops(data):
    """Every count and rate of some rounds, one round after another."""
    depth = data.sizes["draft"]
    drafted, tested, accepted, there = (np.zeros(depth) for _ in range(4))
    emitted = given_on = stood = agreed = drafting = rounds = 0
    known = True
    for place in range(data.sizes["round"]):
        one = {name: int(data[name][place]) for name in ("drafted", "tested", "accepted", "agreed", "emitted")}
        for draft in range(depth):
            drafted[draft] += one["drafted"] > draft
            tested[draft] += one["tested"] > draft
            accepted[draft] += one["accepted"] > draft
            there[draft] += one["agreed"] > draft
        rounds += 1
        emitted += one["emitted"]
        given_on += one["drafted"]
        stood += one["accepted"]
        agreed += one["agreed"]
        drafting += one["drafted"] > 0
        known &= one["agreed"] >= 0
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "drafted": drafted,
            "tested": tested,
            "accepted": accepted,
            "rounds": rounds,
            "unconditional": accepted / drafted,
            "conditional": accepted / tested,
            "acceptance_length": np.float64(emitted) / rounds,
            "draft_efficiency": np.float64(stood) / given_on,
            "server_position_rate": there / drafting if known else np.full(depth, np.nan),
            "server_rate": np.float64(agreed) / given_on if known else np.nan,
            "server_length": 1 + np.float64(agreed) / drafting if known else np.nan,
        }


@settings(max_examples=40)
@given(made_ledgers(), st.sampled_from([None, "label", "position"]))
def test_by_loops(data, by):
    result = stats.acceptance(data, by=by)
    if by is None:
        groups = {None: np.full(data.sizes["round"], True)}
    elif by == "label":
        groups = {label: data["label"].values == label for label in dict.fromkeys(data["label"].values.tolist())}
    else:
        octave = [1 << (int(begin).bit_length() - 1) for begin in data["begin"].values]
        groups = {edge: np.array(octave) == edge for edge in sorted(set(octave))}
        assert result["position"].values.tolist() == list(groups)
    for name, rounds in groups.items():
        here = result if by is None else result.sel({by: name})
        for rate, value in loops(data.isel(round=rounds)).items():
            assert_allclose(here[rate], value, err_msg=rate)


@settings(max_examples=15)
@given(made_ledgers())
def test_by_entropy_by_loops(data):
    tested = [
        (int(data["prompt"][r]), float(data["target_entropy"][r, d]), d, int(data["accepted"][r]) > d)
        for r in range(data.sizes["round"])
        for d in range(int(data["tested"][r]))
    ]
    if not tested:
        with pytest.raises(NothingMeasured, match="No tested draft of this ledger has a target_entropy"):
            stats.acceptance(data, by="entropy")
        return
    result = stats.acceptance(data, by="entropy")
    assert set(result) == {"tested", "accepted", "conditional", "conditional_interval", "prompts"}
    edges = [*ENTROPIES, np.inf]
    assert int(result["tested"].sum()) == len(tested)
    for low in result["entropy"].values:
        high = edges[edges.index(low) + 1]
        inside = [each for each in tested if low <= each[1] < high]
        assert int(result["prompts"].sel(entropy=low)) == len({prompt for prompt, *_ in inside})
        for draft in range(data.sizes["draft"]):
            stood = [ok for _, _, d, ok in inside if d == draft]
            rate = result["conditional"].sel(entropy=low, draft=draft + 1)
            assert_allclose(rate, np.mean(stood) if stood else np.nan)


@settings(max_examples=40)
@given(made_ledgers())
def test_laws_that_hold_of_any_ledger(data):
    result = stats.acceptance(data)
    drafted, tested, accepted = (result[name].values for name in ("drafted", "tested", "accepted"))
    assert (accepted <= tested).all()
    assert (tested <= drafted).all()
    for counts in (drafted, tested, accepted):
        assert (np.diff(counts) <= 0).all()
    assert (result["truncated_rounds"] <= result["rounds"]).all()
    whole = data.isel(round=data["emitted"].values == data["accepted"].values + 1)
    if whole.sizes["round"]:
        one = stats.acceptance(whole)
        assert_allclose(one["acceptance_length"], 1 + one["accepted"].sum() / one["rounds"])
        ragged = len(set(whole["drafted"].values.tolist())) > 1
        if not ragged and int(whole["drafted"][0]) == data.sizes["draft"]:
            assert_allclose(one["acceptance_length"], 1 + one["unconditional"].sum())


def wilson(value, left_out, trials, level, least, most):
    """The interval of one rate once more, from its values without each prompt."""
    used = [n for n, count in enumerate(trials) if count > 0]
    m, p = len(used), (value - least) / (most - least)
    if m < 2:
        return [np.nan, np.nan]
    without = (np.array([left_out[n] for n in used]) - least) / (most - least)
    error = np.sqrt((m - 1) / m * ((without - without.mean()) ** 2).sum())
    z, t = stats_of.norm.ppf(0.5 + level / 2), stats_of.t.ppf(0.5 + level / 2, m - 1)
    n = sum(trials) if error < 1e-6 else min(sum(trials), p * (1 - p) / error**2 * (z / t) ** 2)
    middle, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    ends = np.clip([(middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n)], 0, 1)
    return least + (most - least) * ends


@settings(max_examples=10)
@given(made_ledgers(fewest_prompts=2))
def test_the_interval_leaves_out_whole_prompts(data):
    """Wilson's interval by loops: all rates counted again without the rounds of each prompt."""
    result, depth = stats.acceptance(data, level=0.8), data.sizes["draft"]
    prompt = data["prompt"].values
    prompts = np.unique(prompt)
    left_out = [loops(data.isel(round=prompt != each)) for each in prompts]
    whole = loops(data)
    for name in RATES:
        length = name.endswith("length")
        for place, value in enumerate(np.atleast_1d(whole[name])):
            trials = []
            for each in prompts:
                mine = data.isel(round=prompt == each)
                counts = {"unconditional": mine["drafted"] > place, "conditional": mine["tested"] > place}
                rounds = np.ones(mine.sizes["round"]) if name == "acceptance_length" else mine["drafted"] > 0
                trials.append(int(np.sum(counts.get(name, rounds))))
            without = [np.atleast_1d(each[name])[place] for each in left_out]
            expected = wilson(value, without, trials, 0.8, 1 if length else 0, depth + 1 if length else 1)
            assert_allclose(np.atleast_2d(result[f"{name}_interval"])[place], expected, atol=1e-7, err_msg=name)


def test_all_accepted_has_an_interval():
    data = ledger([Played((1, 1), (1, 1, 3), prompt=place % 8) for place in range(128)])
    result = stats.acceptance(data)
    assert result["conditional"].values.tolist() == [1, 1]
    for name, ends in (("conditional", (0.97, 1)), ("draft_efficiency", (0.97, 1)), ("acceptance_length", (2.94, 3))):
        assert_allclose(np.atleast_2d(result[f"{name}_interval"])[0], ends, atol=0.005)


def test_a_label_by_itself_has_the_interval_it_has_among_others():
    data = made_ledger()
    among = stats.acceptance(data, by="label").sel(label="prose")
    alone = stats.acceptance(data.isel(round=data["label"].values == "prose"))
    for name in RATES:
        assert_array_equal(among[f"{name}_interval"], alone[f"{name}_interval"])


def test_a_higher_level_is_wider():
    first, wide = (stats.acceptance(made_ledger(), level=level) for level in (0.95, 0.99))
    spread = [each["acceptance_length_interval"].diff("bound").item() for each in (first, wide)]
    assert spread[0] < spread[1]


def test_one_prompt_has_rates_but_no_intervals():
    result = stats.acceptance(ledger(BY_HAND[:3]))
    for name in RATES:
        assert result[name].notnull().all()
        assert result[f"{name}_interval"].isnull().all()


def test_every_rate_says_its_name_rule_depth_and_number():
    for data in (made_ledger(), made_ledger(depth=2)):
        result = stats.acceptance(data, by="label")
        for name, variable in result.data_vars.items():
            rate = name.removesuffix("_interval").removesuffix("_rounds").replace("_", " ")
            assert rate in variable.attrs["long_name"]
            for fact in ("rule", "depth", "policy", "text", "origin"):
                assert variable.attrs[fact] == data.attrs[fact]
            assert variable.attrs["rounds"] == data.sizes["round"]
            assert variable.attrs["prompts"] == 12


def test_rounds_and_prompts_are_counted_by_group():
    data = made_ledger()
    result = stats.acceptance(data, by="label")
    assert result["rounds"].sum() == data.sizes["round"]
    assert result["prompts"].values.tolist() == [6, 6]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "depth"}, r"(?s)by='depth': choose None, 'label', 'position' or 'entropy'.*stats\.by_depth"),
        ({"by": "domain"}, "by='domain'"),
        ({"level": 1.0}, "level=1.0"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(BadArgument, match=message):
        stats.acceptance(made_ledger(), **options)


def test_by_depth_sets_ledgers_side_by_side():
    ledgers = [made_ledger(depth=depth) for depth in (4, 1, 2)]
    result = stats.by_depth(ledgers)
    assert result["depth"].values.tolist() == [1, 2, 4]
    for data in ledgers:
        depth = int(data.attrs["depth"])
        alone, here = stats.acceptance(data), result.sel(depth=depth)
        for name in alone:
            wide = here[name].isel(draft=slice(depth)) if "draft" in here[name].dims else here[name]
            assert_array_equal(wide, alone[name])
    assert result["accepted"].dtype == np.int64
    assert result["accepted"].sel(depth=1).values[1:].tolist() == [0, 0, 0]
    assert result["conditional"].sel(depth=2).isnull().values.tolist() == [False, False, True, True]
    assert result["unconditional"].attrs["depth"] == "1, 2, 4"
    assert result["unconditional"].attrs["rule"] == "greedy"
    assert result.attrs["prompts"] == "12"


def test_by_depth_and_label():
    result = stats.by_depth([made_ledger(depth=depth) for depth in (1, 3)], by="label")
    assert result["conditional"].dims == ("depth", "label", "draft")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: made_ledger(depth=2), r"depths \[2, 2\]: give one ledger per depth"),
        (lambda: made_ledger(depth=3).assign_attrs(rule="exact_match"), "differ in their rule: exact_match, greedy"),
        (lambda: made_ledger(depth=3).assign_attrs(text="teacher_forced"), "differ in their text"),
        (lambda: made_ledger(depth=3).assign_attrs(temperature=0.7), "differ in their temperature: 0.0, 0.7"),
        (lambda: made_ledger(depth=3, labels=["code"]), "different labels"),
    ],
)
def test_unlike_ledgers_are_not_compared(other, message):
    with pytest.raises(BadArgument, match=message):
        stats.by_depth([made_ledger(depth=2), other()], by="label")


def test_no_ledgers_are_not_compared():
    with pytest.raises(BadArgument, match="No ledgers"):
        stats.by_depth([])


@pytest.mark.slow
def test_ten_thousand_prompts_take_seconds():
    rng = np.random.default_rng(0)
    data = made_ledger(texts=4, length=40)
    big = data.isel(round=rng.integers(0, data.sizes["round"], 200_000))
    big["prompt"] = ("round", np.sort(rng.integers(0, 10_000, 200_000)))
    began = time.perf_counter()
    result = stats.acceptance(big)
    assert time.perf_counter() - began < 20
    assert int(result["prompts"]) == 10_000
