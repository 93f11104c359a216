"""Made ledgers and traces obey the schema, and a ledger is what a trace replays to."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from numpy.testing import assert_array_equal

from qwenlab.errors import BadArgument
from qwenlab.stats.base.rounds import read_rounds
from qwenlab.testing.ledgers import Played, ledger, made_ledger, replayed
from qwenlab.testing.strategies import made_ledgers, made_traces
from qwenlab.testing.traces import EOS, made_trace

COUNTS = ("prompt", "number", "begin", "proposed", "drafted", "tested", "accepted", "agreed", "emitted", "next_token")


@pytest.mark.parametrize(
    ("played", "counts"),
    [
        (Played((5, 6), (5, 6, 7)), (2, 2, 2, 2, 3, 7, "full")),
        (Played((5, 6), (5, 9, 7)), (2, 2, 1, 1, 2, 9, "rejected")),
        (Played((5, 0, 6), (5, 0, 6, 7)), (3, 2, 2, 3, 2, -1, "eos")),
        (Played((5, 6), (5, 0, 7)), (2, 2, 1, 1, 2, 0, "eos")),
        (Played((0, 6), (0, 6, 7)), (2, 1, 1, 2, 1, -1, "eos")),
        (Played((), (4,)), (0, 0, 0, 0, 1, 4, "full")),
        (Played((5, 6), (5, 6, 7), allowed=3), (2, 2, 2, 2, 3, 7, "length")),
        (Played((5, 6), (5, 6, 7), allowed=2), (2, 2, 2, 2, 2, -1, "length")),
        (Played((5, 6), (5, 6, 0), allowed=3), (2, 2, 2, 2, 3, 0, "eos")),
    ],
)
def test_a_round_counted_by_hand(played, counts):
    one = ledger([played]).isel(round=0)
    names = ("drafted", "tested", "accepted", "agreed", "emitted", "next_token", "ended")
    assert tuple(one[name].item() for name in names) == counts


def test_too_few_tokens_of_the_main_model_are_refused():
    with pytest.raises(BadArgument, match=r"2 drafts need 3 tokens of the target model, not \[5, 6\]"):
        ledger([Played((5, 6), (5, 6))])


@settings(max_examples=40)
@given(made_ledgers())
def test_ledgers_of_any_shape_obey_the_schema(data):
    read_rounds(data)
    assert data["draft"].values.tolist() == list(range(1, data.sizes["draft"] + 1))
    assert {name: data[name].dtype for name in COUNTS} == dict.fromkeys(COUNTS, np.dtype(np.int64))
    places = data["draft"].values - 1
    for count, variables in {
        "drafted": ("draft_token", "draft_probability"),
        "tested": ("target_token", "target_probability", "target_entropy"),
    }.items():
        held = places < data[count].values[:, None]
        for name in variables:
            known = data[name].values >= 0 if name.endswith("token") else data[name].notnull().values
            assert_array_equal(known, held)
    for prompt in np.unique(data["prompt"]):
        own = data.isel(round=data["prompt"].values == prompt)
        assert own["number"].values.tolist() == list(range(own.sizes["round"]))
        assert_array_equal(np.diff(own["begin"]), own["emitted"][:-1])
    for name in ("rule", "depth", "policy", "temperature", "drafting", "rollback", "origin", "text"):
        assert name in data.attrs


@settings(max_examples=20)
@given(made_traces())
def test_traces_obey_the_schema_and_replay_to_their_text(trace):
    assert_array_equal(trace["length"].values, np.bincount(trace["text"].values))
    text = trace["text"].values
    for number in range(trace.sizes["text"]):
        own, about = trace.isel(token=text == number), trace.isel(text=number)
        words, begin = own["token"].values, int(about["begin"])
        assert own["position"].values.tolist() == list(range(len(words)))
        assert (words[-1] == EOS) == (str(about["end"].values) == "eos")
        assert_array_equal(own["target_token"].values[begin - 1 : -1], words[begin:])  # the model's own greedy text
        assert (own["draft_token"].values[0] == -1).all()
        assert (own["draft_token"].values[1:] >= 0).all()
        step = np.arange(len(words))[:, None] + np.arange(trace.sizes["draft"])
        beyond = (step >= len(words)) | (step[:, :1] == 0)
        assert_array_equal(own["target_probability"].isnull().values, beyond)
    rounds = replayed(trace)
    emitted = np.bincount(rounds["prompt"].values, rounds["emitted"].values, trace.sizes["text"])
    assert_array_equal(emitted, (trace["length"] - trace["begin"] - 1).values)
    for number in range(trace.sizes["text"]):
        own = rounds.isel(round=rounds["prompt"].values == number)
        said = [
            token
            for one in range(own.sizes["round"])
            for token in [
                *own["draft_token"].values[one, : int(own["accepted"][one])].tolist(),
                *own["next_token"].values[one : one + 1].tolist(),
            ]
            if token >= 0
        ]
        assert said == trace["token"].values[text == number][int(trace["begin"][number]) + 1 :].tolist()


def test_replaying_asks_before_each_draft():
    trace = made_trace()
    sure = replayed(trace, keep=lambda p: not p or p[-1] > 0.7, policy="threshold")
    assert sure.attrs["policy"] == "threshold"
    probability = sure["draft_probability"].values
    for place, drafted in enumerate(sure["drafted"].values.tolist()):
        assert (probability[place, : max(0, drafted - 1)] > 0.7).all()
    shallow = replayed(trace, depth=2)
    assert shallow.attrs["depth"] == 2
    assert int(shallow["drafted"].max()) == 2
    assert (shallow["agreed"] == -1).all()


def test_the_same_seed_makes_the_same():
    assert made_ledger(seed=5).identical(made_ledger(seed=5))
    assert not made_ledger(seed=5).equals(made_ledger(seed=6))
    assert made_trace(text="teacher_forced").attrs["text"] == "teacher_forced"


def test_it_needs_no_torch():
    code = (
        "import sys; sys.modules.update(torch=None, transformers=None)\n"
        "from qwenlab.testing import made_ledger, made_trace\n"
        "print(made_ledger().attrs['depth'], made_trace().sizes['text'])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "4 12\n"
