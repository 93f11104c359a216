"""Statistics of states and of stored pairs, held to the tokens and pairs themselves."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy import stats as scipy_stats

from qwenlab import stats
from qwenlab.errors import BadArgument, NothingMeasured
from qwenlab.probes import DeltaState, Retention, StatePrecision
from qwenlab.testing.models import tiny_model
from tests.planted.states import FULL_RANK, made_states
from tests.probes.feeding import one_by_one, recorded

EDGES = [0, *(2**k for k in range(21))]


@pytest.fixture(scope="module")
def case():
    return made_states()


def means(values, place, keep=None):
    """[layer, head, bin] of values [row, layer, head], over the rows of each bin that are kept; place [row, ...]."""
    place = np.broadcast_to(place.reshape(len(place), *(place.shape[1:] or (1, 1))), values.shape)
    keep = np.ones(len(values), bool) if keep is None else keep
    out = np.full((*values.shape[1:], len(EDGES)), np.nan)
    for layer, head, number in np.ndindex(out.shape):
        rows = keep & (place[:, layer, head] == number)
        if rows.any():
            out[layer, head, number] = values[rows, layer, head].mean()
    return out


def octave(numbers):
    """Bin of the last edge that is not above the number."""
    return (numbers[..., None] >= np.array(EDGES)).sum(axis=-1) - 1


def test_ranks_are_means_over_tokens(case):
    result = stats.state_rank(case.recording)
    place = octave(case.texts.position)
    for name in ("effective_rank", "stable_rank"):
        assert_allclose(result[name], means(case.states[name], place))
        assert result[name].attrs["units"] == "direction"
    assert result["full_rank"] == FULL_RANK
    whole = stats.state_rank(case.recording, by_position=False)
    assert whole["effective_rank"].dims == ("layer", "head")
    assert_allclose(whole["effective_rank"], case.states["effective_rank"].mean(axis=0))


def test_growth_tells_norms_rewriting_and_when_it_ends(case):
    result = stats.state_growth(case.recording)
    place, follows = octave(case.texts.position), case.texts.position > 0
    norm = means(case.states["norm"], place)
    assert_allclose(result["norm"], norm)
    assert_allclose(result["largest"], means(case.states["largest"], place))
    assert_allclose(result["rewrite"], means(case.states["rewrite"], place, follows))
    growth = np.log2(norm[..., 1:]) - np.log2(norm[..., :-1])
    assert_allclose(result["growth"][..., 2:], growth[..., 1:])
    assert result["growth"][..., :2].isnull().all()
    # Planted: the square root of what was read, up to 64 tokens.
    assert_allclose(result["growth"].sel(position_bin=[8, 16, 32]).mean(["layer", "head"]), 0.5, atol=0.1)
    assert_allclose(result["growth"].sel(position_bin=[128]).mean(["layer", "head"]), 0, atol=0.05)
    assert set(np.unique(result["saturated_from"])) <= {32, 64}
    assert (stats.state_growth(case.recording, share=0.5)["saturated_from"] <= 16).all()


def test_retention_is_relative_to_the_stored_part(case):
    pairs = case.pairs
    for by, place in (("distance", octave(case.distance)), ("writes", octave(pairs["writes"]))):
        result = stats.retention(case.recording, by=by)
        mean = {name: means(values, place) for name, values in pairs.items()}
        added, left = mean["written"] - mean["before"], mean["recall"] - mean["before"]
        assert_allclose(result["survival"], left / added)
        assert_allclose(result["decay_alone"], mean["decayed"] / added)
        assert_allclose(result["overwritten"], mean["decayed"] / added - left / added, atol=1e-12)
        for name in ("recall", "before", "error"):
            assert_allclose(result[name], mean[name])
        assert result["pairs"].sum() == pairs["recall"].size
    by_distance = stats.retention(case.recording)
    assert_allclose(by_distance["survival"].sel(distance_bin=0), 1)
    assert_allclose(by_distance["overwritten"].isel(head=[1, 2, 3], distance_bin=slice(8)), 0, atol=1e-12)
    assert (by_distance["overwritten"].sel(head=0, distance_bin=[8, 16, 32]) > 0.1).all()


def test_intervals_are_the_jackknife_over_folds(case):
    result = stats.retention(case.recording, level=0.9)["survival_interval"].isel(distance_bin=4)
    rows = octave(case.distance) == 4
    fold = (case.sequence % 8)[rows]
    recall, before, written = (case.pairs[name][rows] for name in ("recall", "before", "written"))

    def survival(keep):
        return (recall[keep] - before[keep]).sum(axis=0) / (written[keep] - before[keep]).sum(axis=0)

    without = np.array([survival(fold != one) for one in range(8)])
    error = np.sqrt(7 / 8 * ((without - without.mean(axis=0)) ** 2).sum(axis=0))
    reach = scipy_stats.t.ppf(0.95, 7) * error
    assert_allclose(result.sel(bound="low"), survival(fold >= 0) - reach)
    assert_allclose(result.sel(bound="high"), survival(fold >= 0) + reach)


def test_by_label_is_as_if_only_that_label_had_been_read(case):
    result = stats.retention(case.recording, by_label=True)["error"]
    place = octave(case.distance)
    for number, name in enumerate(case.texts.labels):
        assert_allclose(result.sel(label=name), means(case.pairs["error"], place, case.label == number))


def test_probes_record_the_variables_of_random_recordings(case):
    model = tiny_model("qwen3_5_moe")
    tokens = torch.randint(1, 280, (60,), generator=torch.Generator().manual_seed(0))
    probes = (DeltaState(every=4), Retention(every=4, pairs=2), StatePrecision(formats=["bfloat16", "int8"]))
    seen = recorded(model, one_by_one([tokens]), *probes)
    for node in ("deltastate", "retention", "state_precision"):
        ours, theirs = seen[node], case.recording[node]
        assert set(ours.data_vars) == set(theirs.data_vars)
        for name, variable in theirs.data_vars.items():
            assert ours[name].dims == variable.dims, name
            assert ours[name].attrs["units"] == variable.attrs["units"], name
        assert set(theirs.coords) == set(ours.coords)
        assert set(theirs.attrs) <= set(ours.attrs)
    assert np.isfinite(stats.state_growth(seen)["norm"]).sum() == 3 * 4 * 5  # positions 2-3 to 32-63
    assert stats.retention(seen)["survival"].sel(distance_bin=0).notnull().any()


def test_errors_of_low_precision_are_means_over_tokens(case):
    result = stats.state_precision(case.recording)
    place = octave(case.texts.position)
    for index, format in enumerate(["bfloat16", "int8"]):
        assert_allclose(result["error"].sel(format=format), means(case.errors[:, :, index], place))
    assert_allclose(result["growth"].sel(position_bin=[16, 32, 64]).mean(["layer", "head"]), 0.5, atol=0.05)


def test_texts_shorter_than_the_sample(case):
    node = case.recording["deltastate"].copy(deep=True)
    node["tokens"] *= 0
    node.attrs["sample"] = '{"every": 64}'
    with pytest.raises(NothingMeasured, match=r"with DeltaState\(every=1\): it measured one token of every 64"):
        stats.state_rank(node)


def test_invalid_arguments(case):
    with pytest.raises(BadArgument, match=r"retention\(by='tokens'\): give one of 'distance', 'writes', None"):
        stats.retention(case.recording, by="tokens")
    with pytest.raises(BadArgument, match=r"^share=1\.5: give the share of the largest norm that counts as saturated"):
        stats.state_growth(case.recording, share=1.5)
