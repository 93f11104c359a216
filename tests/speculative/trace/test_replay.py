"""Replay, compared with a loop that goes through each text round by round; test_trace.py compares with decoding."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, strategies as st

from qwenlab.speculative.policies import ExpectedValue, FixedDepth, Threshold
from qwenlab.speculative.rounds import NONE, Round, ledger
from qwenlab.speculative.trace.replay import replay_ledger
from qwenlab.testing.traces import made_trace

DEPTH, TOKENS = 4, 3


class Never:
    """Makes no draft, and drops."""

    drops = True

    def __call__(self, probability):
        return np.zeros(len(probability), dtype=bool)


POLICIES = [
    None,
    FixedDepth(0),
    FixedDepth(2),
    Threshold(0.5),
    Threshold(0.5, drops=True),
    Never(),
    ExpectedValue(0.1, [1, 1.2, 1.5, 1.9], guess=(0.9, 0.6)),
]


@st.composite
def made_traces(draw):
    """A trace of random tokens from a small vocabulary, so that every number of drafts is accepted."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    texts = []
    for number in range(draw(st.integers(1, 3))):
        length = draw(st.integers(2, 14))
        end = draw(st.sampled_from(["eos", "length", "open", "broken off"]))
        limit = {"eos": length + draw(st.integers(0, 5)), "length": length, "open": NONE}.get(end, length + 3)
        begin = draw(st.integers(1, length - 1)) if limit != NONE else 1
        start = draw(st.sampled_from([0, 30])) if limit == NONE and number else 0
        texts.append((length, begin, limit, start, "eos" if end == "eos" else end if end == "length" else "open"))
    length, begin, limit, start, end = (list(each) for each in zip(*texts, strict=True))
    count = sum(length)
    drafts = rng.integers(0, TOKENS, (count, DEPTH))
    tokens = rng.integers(0, TOKENS, count)
    likely = rng.uniform(size=(2, count, DEPTH)).astype(np.float32)
    return xr.Dataset(
        {
            "text": ("token", np.repeat(np.arange(len(texts)), length)),
            "position": ("token", np.concatenate([np.arange(each) for each in length])),
            "token": ("token", tokens),
            "target_entropy": ("token", rng.uniform(0, 2, count)),
            "draft_token": (("token", "draft"), drafts),
            "draft_probability": (("token", "draft"), likely[0]),
            "target_probability": (("token", "draft"), likely[1]),
            "begin": ("text", begin),
            "length": ("text", length),
            "limit": ("text", limit),
            "start": ("text", start),
            "label": ("text", [f"label {each}" for each in range(len(texts))]),
            "end": ("text", end),
        },
        attrs={"depth": DEPTH, "text": "teacher_forced", "window": 0},
    )


def slow_rounds(text, depth, policy):
    """The rounds of one text, one after another."""
    tokens, length = text["token"].values, int(text["length"])
    limit = int(text["limit"]) if text["limit"] >= 0 else length
    eos, row, rounds = str(text["end"].values) == "eos", int(text["begin"]), []
    while row < length - 1:
        may_emit = limit - (row + 1)
        likely, proposed = [], 0
        most, drops = min(depth, may_emit - 1), getattr(policy, "drops", False)
        while len(likely) < most or (drops and len(likely) > 0):
            if policy is not None and not policy(np.array([likely], dtype=np.float64).reshape(1, -1))[0]:
                if likely and drops:
                    likely.pop()
                break
            if len(likely) == most:
                break
            likely.append(float(text["draft_probability"][row, len(likely)]))
            proposed += 1
        drafts = text["draft_token"].values[row, : len(likely)].tolist()
        emitted, accepted, ended, tested = [], 0, "", 0
        for draft in drafts:
            if row + 1 + accepted == length:
                return rounds  # nobody knows what came next
            tested += 1
            if draft != tokens[row + 1 + accepted]:
                break
            accepted += 1
            emitted.append(draft)
            if eos and row + accepted == length - 1:
                ended = "eos"
                break
        following = NONE
        if not ended:
            if row + 1 + accepted == length:
                return rounds
            following = int(tokens[row + 1 + accepted])
            emitted.append(following)
            if eos and row + len(emitted) == length - 1:
                ended = "eos"
            elif row + 1 + len(emitted) == limit:
                ended = "length"
            else:
                ended = "full" if accepted == len(drafts) else "rejected"
        rounds.append(
            Round(
                begin=int(text["start"]) + row + 1,
                proposed=proposed,
                drafted=len(drafts),
                tested=tested,
                accepted=accepted,
                agreed=NONE,
                emitted=len(emitted),
                next_token=following,
                ended=ended,
                draft_token=drafts,
                draft_probability=likely,
                target_token=tokens[row + 1 : row + 1 + tested].tolist(),
                target_probability=text["target_probability"].values[row, :tested].tolist(),
                target_entropy=text["target_entropy"].values[row : row + tested].tolist(),
            )
        )
        row += len(emitted)
    return rounds


def slow_ledger(trace, depth, policy):
    by_prompt, labels = [], []
    for number in range(trace.sizes["text"]):
        text = trace.isel(token=trace["text"].values == number, text=number)
        if int(text["start"]) == 0:
            by_prompt.append([])
            labels.append(str(text["label"].values))
        by_prompt[-1].append((slow_rounds(text, depth, policy), str(text["label"].values)))
    rounds = [[each for window, _ in windows for each in window] for windows in by_prompt]
    found = ledger(rounds, depth=depth, labels=labels, attrs={})
    found["label"].values = [label for windows in by_prompt for window, label in windows for _ in window]
    return found


@given(made_traces(), st.integers(1, DEPTH), st.sampled_from(POLICIES))
def test_replay_equals_the_slow_loop(trace, depth, policy):
    xr.testing.assert_equal(replay_ledger(trace, depth=depth, policy=policy), slow_ledger(trace, depth, policy))


@given(made_traces(), st.integers(1, DEPTH), st.sampled_from(POLICIES))
def test_rounds_add_up(trace, depth, policy):
    rounds = replay_ledger(trace, depth=depth, policy=policy)
    assert (rounds["accepted"] <= rounds["tested"]).all()
    assert (rounds["tested"] <= rounds["drafted"]).all()
    assert (rounds["drafted"] <= rounds["proposed"]).all()
    assert (rounds["proposed"] <= depth).all()
    assert (rounds["emitted"] == rounds["accepted"] + (rounds["next_token"] != NONE)).all()
    assert (np.isfinite(rounds["draft_probability"]).sum("draft") == rounds["drafted"]).all()
    assert (np.isfinite(rounds["target_entropy"]).sum("draft") == rounds["tested"]).all()
    if not (trace["limit"] > trace["length"]).any():  # otherwise a text may stop inside its last round
        assert int(rounds["emitted"].sum()) == int((trace["length"] - 1 - trace["begin"]).sum())


def test_a_made_trace_can_be_replayed():
    trace = made_trace(ended=0.5)
    rounds = replay_ledger(trace, depth=3, policy=Threshold(0.4))
    xr.testing.assert_equal(rounds, slow_ledger(trace, 3, Threshold(0.4)))
    assert int(rounds["emitted"].sum()) == int((trace["length"] - 1 - trace["begin"]).sum())


def test_a_policy_is_called_for_rounds_that_still_draft():
    trace = made(tokens=[0, 1, 2, 0, 1, 2], drafts=[[0] * 3] * 6, likely=np.linspace(0, 1, 18).reshape(6, 3))
    calls = []

    def watching(probability):
        calls.append(probability.round(3).tolist())
        return probability[:, -1] > 0.3 if probability.shape[1] else np.ones(len(probability), dtype=bool)

    replay_ledger(trace, depth=2, policy=watching)
    first = [[round(float(each), 3)] for each in np.linspace(0, 1, 18).reshape(6, 3)[1:3, 0]]
    assert calls == [[[], [], []], first]  # rows 1, 2 and 3 may draft; row 3 once, row 4 not at all


def made(tokens, drafts, likely=None, **by_text):
    """One text."""
    count, depth = len(tokens), len(drafts[0])
    shares = np.full((count, depth), 0.5) if likely is None else likely
    facts = {"begin": 1, "length": count, "limit": NONE, "start": 0, "label": "", "end": "open"} | by_text
    return xr.Dataset(
        {
            "text": ("token", np.zeros(count, dtype=int)),
            "position": ("token", np.arange(count)),
            "token": ("token", tokens),
            "target_entropy": ("token", np.zeros(count)),
            "draft_token": (("token", "draft"), drafts),
            "draft_probability": (("token", "draft"), shares),
            "target_probability": (("token", "draft"), shares),
            **{name: ("text", [value]) for name, value in facts.items()},
        },
        attrs={"depth": depth, "text": "own", "window": 0},
    )


COUNTS = ("drafted", "tested", "accepted", "emitted", "next_token", "ended")


@pytest.mark.parametrize(("end", "limit", "expected"), [
    # x = 9 5 1 2 3 4: from the 5 on, the head drafts 1 2 3 4
    ("eos", 20, [(4, 4, 4, 4, NONE, "eos")]),  # the end of text is the fourth draft: nothing is added to it
    ("length", 6, [(3, 3, 3, 4, 4, "length")]),  # four tokens may be emitted, so that three are drafted
    ("open", NONE, [(3, 3, 3, 4, 4, "length")]),
    ("open", 20, []),  # no end of text: the target model's token after the four is not known
])  # fmt: skip
def test_the_last_round_by_hand(end, limit, expected):
    trace = made([9, 5, 1, 2, 3, 4], [[1, 2, 3, 4]] * 6, end=end, limit=limit)
    rounds = replay_ledger(trace, depth=4, policy=None)
    assert list(zip(*(rounds[name].values.tolist() for name in COUNTS), strict=True)) == expected


def test_attrs_describe_the_replay():
    trace = made([9, 5, 1], [[1, 2]] * 3)
    fixed = {"rule": "greedy", "drafting": "greedy", "temperature": 0.0, "top_k": 0, "top_p": 1.0, "rollback": "none"}
    where = {"origin": "replay", "text": "own"}
    assert replay_ledger(trace, depth=2, policy=None).attrs == fixed | where | {"depth": 2, "policy": "fixed depth"}
    threshold = replay_ledger(trace, depth=1, policy=Threshold(0.5)).attrs
    assert threshold == fixed | where | {"depth": 1, "policy": "Threshold(probability=0.5, drops=False)"}
