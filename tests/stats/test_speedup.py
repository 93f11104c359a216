"""Speed-up: the time of steps against the tokens they bring, by hand and by loops; and what the costs must say."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats as stats_of

from qwenlab import stats
from qwenlab.errors import BadArgument, MissingVariable, NothingMeasured
from qwenlab.testing.ledgers import Played, ledger, made_ledger
from qwenlab.testing.strategies import made_ledgers


def costs(widest=5, **more):
    """A plain step takes 10 s, a verify step 10 s and 1 more a token, a draft step 2 s, rolling back 0.5 s."""
    width = np.arange(1, widest + 1)
    steps = {"plain_step": 10.0, "verify_step": ("width", 10.0 + width), "draft_step": 2.0, "rollback": 0.5}
    return xr.Dataset(steps | more, {"width": width})


ROUNDS = [
    Played((5, 6), (5, 6, 7), proposed=2),  # emits 3 with 2 head steps and a verify step of width 3
    Played((5, 6), (5, 9, 7), proposed=2, prompt=1),  # 2
    Played((4,), (8, 1), proposed=2, prompt=1),  # 1, with 2 head steps and width 2: the second draft was dropped
    Played((), (3,), proposed=1, prompt=1),  # 1, with one head step and width 1
]


def test_by_hand():
    result = stats.speedup(ledger(ROUNDS), costs(overhead=0.25))
    # Tested at place 1: three, accepted two; at place 2: two, accepted one.
    length = np.array([1 + 2 / 3, 1 + 2 / 3 + 1 / 3])
    seconds = np.array([1 * 2 + 12 + 0.75, 2 * 2 + 13 + 0.75])
    assert_allclose(result["expected_length"], length)
    assert_allclose(result["seconds_per_round"], seconds)
    assert_allclose(result["tokens_per_second"], length / seconds)
    assert_allclose(result["speedup"], 10 * length / seconds)
    assert_allclose(result["break_even_length"], seconds / 10)
    a = float(result["break_even"].sel(depth=2))
    assert_allclose(1 + a + a**2, 1.775)
    assert_allclose(result["break_even"].sel(depth=1), 0.475)
    assert int(result["best_depth"]) == 1
    assert_allclose(result["best_speedup"], result["speedup"].sel(depth=1))
    run = 7 * 2 + (13 + 13 + 12 + 11) + 4 * 0.75  # seconds of the rounds as they were, 7 tokens
    at = result.sel(depth=2)
    assert_allclose(at["as_run_speedup"], 7 / run * 10)
    assert_allclose(at["as_run_tokens_per_second"], 7 / run)
    assert_allclose(at["acceptance_length"], 7 / 4)
    assert_allclose(at["seconds_per_token"].sel(part=["draft", "verify", "rollback", "overhead"]) * 7, [14, 49, 2, 1])
    for name in ("measured_speedup", "measured_tokens_per_second", "gap"):
        assert result[name].isnull().all()
    assert result["acceptance_length"].sel(depth=1).isnull()


@pytest.mark.parametrize("by_round", [True, False])
def test_measured_and_predicted(by_round):
    data = ledger(ROUNDS)
    if by_round:
        data["seconds"] = ("round", [20.0, 30.0, 25.0, 5.0])
    else:
        data.attrs["seconds"] = 80.0
    predicted = 14 + 49 + 4 * 0.5
    at = stats.speedup(data, costs()).sel(depth=2)
    assert_allclose(at["measured_tokens_per_second"], 7 / 80)
    assert_allclose(at["measured_speedup"], 70 / 80)
    assert_allclose(at["gap"], 80 / predicted - 1)
    assert_allclose(at["seconds_per_token"].sel(part="unexplained"), (80 - predicted) / 7)
    assert_allclose(at["seconds_per_token"].sum(), 80 / 7)
    assert bool(at["measured_speedup_interval"].notnull().all()) == by_round
    if by_round:
        without = np.log([10 * 4 / 60, 10 * 3 / 20])  # only the second prompt, only the first
        reach = stats_of.t.ppf(0.975, 1) * np.sqrt(((without - without.mean()) ** 2).sum() / 2)
        assert_allclose(at["measured_speedup_interval"], 70 / 80 * np.exp([-reach, reach]))
    data.attrs["plain_seconds_per_token"] = 12.0
    assert_allclose(stats.speedup(data, costs()).sel(depth=2)["measured_speedup"], 12 * 7 / 80)


def test_several_depths_each_in_its_row():
    shallow, deep = made_ledger(depth=2), made_ledger(depth=4)
    together, alone = stats.speedup([deep, shallow], costs()), stats.speedup(deep, costs())
    for name in ("expected_length", "speedup", "speedup_interval", "break_even"):
        assert_array_equal(together[name], alone[name])  # predicted from the deepest
    assert together["acceptance_length"].notnull().values.tolist() == [False, True, False, True]
    own = stats.speedup(shallow, costs())
    assert_array_equal(together["as_run_speedup"].sel(depth=2), own["as_run_speedup"].sel(depth=2))
    assert together["acceptance_length"].attrs["depth"] == "2, 4"
    assert together["speedup"].attrs["depth"] == 4


@settings(max_examples=25)
@given(made_ledgers())
def test_by_loops(data):
    paid, depth = costs(overhead=0.3), data.sizes["draft"]
    tested, accepted, seconds = np.zeros(depth), np.zeros(depth), 0.0
    for place in range(data.sizes["round"]):
        one = data.isel(round=place)
        tested[: int(one["tested"])] += 1
        accepted[: int(one["accepted"])] += 1
        seconds += 2 * int(one["proposed"]) + float(paid["verify_step"].sel(width=int(one["drafted"]) + 1)) + 0.8
    if not tested[0]:
        with pytest.raises(NothingMeasured, match="No draft of this ledger was tested"):
            stats.speedup(data, paid)
        return
    result = stats.speedup(data, paid)
    length, chance = 1.0, 1.0
    for d in range(1, depth + 1):
        chance *= accepted[d - 1] / tested[d - 1] if tested[d - 1] else np.nan
        length += chance
        speed = length / (2 * d + 10 + d + 1 + 0.8) * 10
        assert_allclose(result["speedup"].sel(depth=d), speed)
    assert_allclose(result["as_run_speedup"].sel(depth=depth), float(data["emitted"].sum()) / seconds * 10)
    best = int(result["best_depth"])
    if best:
        assert float(result["speedup"].sel(depth=best)) == float(result["speedup"].max()) > 1
    else:
        assert float(result["speedup"].max()) <= 1


def test_the_interval_leaves_out_whole_prompts():
    data = made_ledger()
    result = stats.speedup(data, costs(), level=0.6)
    counts = np.zeros((12, 2, 4))
    for prompt, tested, accepted in zip(*(data[n].values for n in ("prompt", "tested", "accepted")), strict=True):
        counts[prompt, 0, :tested] += 1
        counts[prompt, 1, :accepted] += 1

    def share(tested, accepted):
        """The predicted length, from 0 at one token to 1 at depth + 1."""
        return np.cumsum(np.cumprod(accepted / tested)) / [1, 2, 3, 4]

    p, rounds = share(*counts.sum(axis=0)), counts[:, 0, 0].sum()
    without = np.array([share(*(counts.sum(axis=0) - each)) for each in counts])
    z, t = stats_of.norm.ppf(0.8), stats_of.t.ppf(0.8, 11)
    variance = 11 / 12 * ((without - without.mean(axis=0)) ** 2).sum(axis=0) * (t / z) ** 2
    n = np.minimum(p * (1 - p) / variance, rounds)
    half = z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    ends = np.stack([p + z**2 / (2 * n) - half, p + z**2 / (2 * n) + half], axis=-1) / (1 + z**2 / n)[:, None]
    expected = 1 + np.array([[1], [2], [3], [4]]) * ends
    assert_allclose(result["expected_length_interval"], expected)
    scale = (10 / result["seconds_per_round"].values)[:, None]
    assert_allclose(result["speedup_interval"], expected * scale)


def test_experts_that_a_verify_step_touches():
    touched = xr.DataArray([8.0, 14.0, 19.0], dims="width", attrs={"bytes_per_expert": 1000, "moe_layers": 40})
    result = stats.speedup(ledger(ROUNDS), costs(3, experts_touched=touched))
    assert_allclose(result["block_bytes"], [14 * 40_000, 19 * 40_000])
    assert_allclose(result["plain_bytes"], 8 * 40_000)
    assert_allclose(result["bytes_per_token"], result["block_bytes"] / result["expected_length"])
    assert "block_bytes" not in stats.speedup(ledger(ROUNDS), costs())


def test_experts_from_the_choices_of_each_token():
    chosen = np.random.default_rng(0).random((60, 2, 8)).argsort(axis=-1)[..., :3]
    paid = costs(expert_choice=(("token", "layer", "slot"), chosen))
    paid = paid.assign_attrs(bytes_per_expert=1000.0, moe_layers=2)
    touched = stats.expert_union(chosen, widths=[1, 2, 3])["experts_touched"]
    result = stats.speedup(ledger(ROUNDS), paid)
    assert_allclose(result["block_bytes"], touched[1:] * 2000)
    assert_allclose(result["plain_bytes"], 3 * 2000)


def test_where_nothing_pays_the_best_depth_is_none():
    result = stats.speedup(ledger(ROUNDS), costs().assign(draft_step=50.0))
    assert int(result["best_depth"]) == 0
    assert float(result["best_speedup"]) == 1
    assert result["break_even"].isnull().all()


def test_where_the_costs_come_from_stays_with_the_numbers():
    result = stats.speedup(ledger(ROUNDS), costs().assign_attrs(device="cpu", dtype="float32", layers=[1]))
    assert (result.attrs["costs_device"], result.attrs["costs_dtype"]) == ("cpu", "float32")
    assert "costs_layers" not in result.attrs


@pytest.mark.parametrize(
    ("paid", "error", "message"),
    [
        (lambda: {"plain_step": 1.0}, BadArgument, "costs is a dict: give a Dataset with plain_step, verify_step"),
        (
            lambda: costs().drop_vars("rollback"),
            MissingVariable,
            r"No rollback in the costs; they have plain_step, verify",
        ),
        (
            lambda: costs(2),
            BadArgument,
            r"verify_step'\] has not width 3: a round of 2 drafts is verified in one step of",
        ),
        (lambda: costs().drop_vars("width"), BadArgument, "has no coordinate width"),
        (lambda: costs().assign(verify_step=3.0), BadArgument, "has no coordinate width"),
        (lambda: costs().assign(plain_step=0.0), BadArgument, r"plain_step'\] is 0.0, not a time in seconds"),
        (lambda: costs().assign(rollback=-1.0), BadArgument, r"rollback'\] is -1.0"),
        (lambda: costs().assign(draft_step=np.nan), BadArgument, r"draft_step'\] is nan"),
        (
            lambda: costs().assign(draft_step=xr.DataArray(2.0, attrs={"units": "ms"})),
            BadArgument,
            r"draft_step'\] is in ms, not in seconds",
        ),
        (
            lambda: costs(experts_touched=("width", np.arange(1.0, 6), {"moe_layers": 2})),
            MissingVariable,
            "The costs have experts_touched without bytes_per_expert",
        ),
    ],
)
def test_costs_that_cannot_be_used_are_named(paid, error, message):
    with pytest.raises(error, match=f"(?s){message}"):
        stats.speedup(ledger(ROUNDS), paid())
