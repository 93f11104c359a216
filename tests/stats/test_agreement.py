"""Agreement along texts agrees with hand counts and loops, and differs from acceptance."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings, strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats as stats_of

from qwenlab import stats
from qwenlab.errors import InconsistentRecording, MissingVariable, NothingMeasured
from qwenlab.testing.ledgers import replayed
from qwenlab.testing.strategies import made_traces
from qwenlab.testing.traces import made_trace


def by_hand(end: str) -> xr.Dataset:
    """One text of four tokens, the first one the prompt; the target model would choose 10, 20, 30, 40 after them."""
    return xr.Dataset(
        {
            "text": ("token", [0, 0, 0, 0]),
            "position": ("token", [0, 1, 2, 3]),
            "token": ("token", [9, 10, 20, 30]),
            "target_token": ("token", [10, 20, 30, 40]),
            "draft_token": (("token", "draft"), [[-1, -1], [20, 31], [30, 40], [41, 40]]),
            "begin": ("text", [1]),
            "length": ("text", [4]),
            "label": ("text", ["code"]),
            "end": ("text", [end]),
        },
        attrs={"depth": 2, "text": "own"},
    )


def test_by_hand_draft_k_is_compared_with_the_choice_for_its_place():
    # Chains from rows 1, 2, 3. Draft 1: 20 = 20, 30 = 30, 41 is not 40. Draft 2: 31 is not 30, 40 = 40, then no place.
    result = stats.agreement(by_hand("length"))
    assert_array_equal(result["chains"], [3, 2])
    assert_allclose(result["teacher_forced"], [2 / 3, 1 / 2])
    assert_allclose(result["teacher_forced_unconditional"], [2 / 3, 1 / 2])
    assert_allclose(result["teacher_forced_conditional"], [2 / 3, 1 / 2])


def test_places_after_the_end_of_text_are_left_out():
    result = stats.agreement(by_hand("eos"))
    assert_array_equal(result["chains"], [2, 1])
    assert_allclose(result["teacher_forced"], [1, 0])


def loops(trace, rows):
    """Chains, equal, equal so far and chains equal before, by draft, over some rows."""
    depth = trace.sizes["draft"]
    counts = np.zeros((4, depth))
    text, position = trace["text"].values, trace["position"].values
    for row in rows:
        about = trace.isel(text=int(text[row]))
        last = int(about["length"]) - (str(about["end"].values) == "eos")
        alive = True
        for draft in range(depth):
            if position[row] < int(about["begin"]) or position[row] + draft >= last or position[row] == 0:
                break
            right = int(trace["draft_token"][row, draft]) == int(trace["target_token"][row + draft])
            counts[:, draft] += [1, right, right and alive, alive]
            alive = alive and right
    return counts


@settings(max_examples=30)
@given(made_traces(text="own") | made_traces(text="teacher_forced"), st.booleans())
def test_by_loops(trace, by_label):
    labels = trace["label"].values.astype(str)
    of_rows = labels[trace["text"].values]
    try:
        result = stats.agreement(trace, by_label=by_label)
    except NothingMeasured:
        assert not loops(trace, range(trace.sizes["token"]))[0].any()
        return
    names = result["label"].values.tolist() if by_label else [None]
    for name in names:
        chains, equal, so_far, before = loops(trace, np.flatnonzero((of_rows == name) | (name is None)))
        here = result.sel(label=name) if by_label else result
        assert_array_equal(here["chains"], chains)
        with np.errstate(invalid="ignore"):
            assert_allclose(here["teacher_forced"], equal / chains)
            assert_allclose(here["teacher_forced_unconditional"], so_far / chains)
            assert_allclose(here["teacher_forced_conditional"], so_far / before)


def test_online_the_first_place_is_lower_by_selection():
    trace = made_trace(texts=40)
    forced, online = stats.agreement(trace), stats.acceptance(replayed(trace))
    high = online["unconditional_interval"].sel(bound="high", draft=1)
    low = forced["teacher_forced_unconditional_interval"].sel(bound="low", draft=1)
    assert float(high) < float(low)


def test_intervals_leave_out_whole_texts():
    trace = made_trace()
    result = stats.agreement(trace, level=0.5)
    counts = np.stack([loops(trace, np.flatnonzero(trace["text"].values == text)) for text in range(12)])
    chains, equal = counts[:, 0], counts[:, 1]
    p = equal.sum(axis=0) / chains.sum(axis=0)
    without = (equal.sum(axis=0) - equal) / (chains.sum(axis=0) - chains)
    z, t = stats_of.norm.ppf(0.75), stats_of.t.ppf(0.75, 11)
    variance = 11 / 12 * ((without - without.mean(axis=0)) ** 2).sum(axis=0) * (t / z) ** 2
    n = np.minimum(p * (1 - p) / variance, chains.sum(axis=0))
    half = z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    expected = np.stack([p + z**2 / (2 * n) - half, p + z**2 / (2 * n) + half], axis=-1) / (1 + z**2 / n)[:, None]
    assert_allclose(result["teacher_forced_interval"], expected)


def test_every_variable_has_its_attrs():
    result = stats.agreement(made_trace(text="teacher_forced"), by_label=True)
    for name in ("teacher_forced", "teacher_forced_conditional", "teacher_forced_unconditional"):
        for variable in (result[name], result[f"{name}_interval"]):
            assert variable.attrs["long_name"].startswith(
                name.replace("teacher_forced", "teacher-forced").replace("_", " ")
            )
            facts = {fact: variable.attrs[fact] for fact in ("rule", "depth", "text", "origin", "texts")}
            assert facts == {"rule": "greedy", "depth": 4, "text": "teacher_forced", "origin": "trace", "texts": 12}
            assert variable.attrs["chains"] > 0
    assert result["texts"].values.tolist() == [6, 6]


def test_one_text_has_no_interval():
    assert stats.agreement(by_hand("length"))["teacher_forced_interval"].isnull().all()


def test_a_trace_without_a_chain_is_nothing_measured():
    trace = by_hand("length")
    trace["begin"] = ("text", [4])
    with pytest.raises(NothingMeasured, match="No draft of this trace can be compared"):
        stats.agreement(trace)


def test_a_trace_says_its_depth_and_text():
    with pytest.raises(InconsistentRecording, match="lacks the attributes depth, text"):
        stats.agreement(by_hand("eos").drop_attrs())


def test_a_ledger_is_no_trace():
    with pytest.raises(
        MissingVariable, match=r"(?s)No text, position.*made by qwenlab\.speculative\.trace.*recording\['trace'\]"
    ):
        stats.agreement(replayed(made_trace()))
