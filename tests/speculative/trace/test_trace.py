"""Replay of a trace gives exactly the rounds that decoding ran; traces work on a machine without a model."""

import subprocess
import sys

import numpy as np
import pytest

import qwenlab as ql
from qwenlab.errors import BadArgument, BadPolicy, ProbeNotRecorded
from qwenlab.speculative.generate import generate
from qwenlab.speculative.policies import ExpectedValue, FixedDepth, Threshold
from qwenlab.speculative.trace.record_trace import trace
from qwenlab.speculative.trace.trace import Trace
from qwenlab.testing.recordings import made_recording

PROMPTS = ["The old house stood", "x = [1, 2, 3]\nfor i in x:\n    print(i)", "a:1 b:2 c:3 b?2 a?"]
NEW = 24
UNKNOWN_OFFLINE = {"seconds", "agreed"}


@pytest.fixture(scope="module")
def moe():
    return ql.open("toy-moe")


@pytest.fixture(scope="module")
def dense():
    return ql.open("toy-dense")


def written(checkpoint, prompts=PROMPTS, new=NEW, **options):
    return generate(checkpoint, prompts, max_new_tokens=new, progress=False, **options)


@pytest.fixture(scope="module")
def own(moe):
    """Trace of the model's own greedy output."""
    return trace(moe, written(moe, depth=2, labels=["prose", "code", "recall"]), depth=5, progress=False)


def assert_same_rounds(replayed, online):
    assert replayed.sizes == online.sizes
    assert set(replayed.variables) == set(online.variables)
    for name in set(online.data_vars) - UNKNOWN_OFFLINE:
        if online[name].dtype.kind == "f":
            np.testing.assert_allclose(replayed[name].values, online[name].values, atol=1e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(replayed[name].values, online[name].values, err_msg=name)
    same = set(online.attrs) & set(replayed.attrs) - {"origin", "rollback"}
    assert {name: online.attrs[name] for name in same} == {name: replayed.attrs[name] for name in same}


POLICIES = [
    None,
    FixedDepth(2),
    Threshold(0.6),
    Threshold(0.6, drops=True),
    ExpectedValue(0.1, [1, 1.2, 1.4, 1.6, 1.8, 2.0], guess=(0.8, 0.6)),
]


@pytest.mark.parametrize(("depth", "policy"), [(3, None), (5, Threshold(0.6, drops=True)), (4, POLICIES[-1])])
def test_replay_of_own_output_equals_the_rounds_that_ran(moe, own, depth, policy):
    online = written(moe, depth=depth, policy=policy, labels=["prose", "code", "recall"])
    assert_same_rounds(own.replay(depth=depth, policy=policy)["rounds"], online.ledger)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["toy-dense", "toy-moe"])
@pytest.mark.parametrize("policy", POLICIES)
def test_replay_equals_the_rounds_at_every_depth_and_policy(name, policy):
    checkpoint = ql.open(name)
    seen = trace(checkpoint, written(checkpoint, PROMPTS[1:], depth=1), depth=6, progress=False)
    for depth in range(1, 7):
        online = written(checkpoint, PROMPTS[1:], depth=depth, policy=policy)
        assert_same_rounds(seen.replay(depth=depth, policy=policy)["rounds"], online.ledger)


def test_a_text_that_ends_inside_an_accepted_run(dense, monkeypatch):
    """Make an end of text of a token that is drafted, accepted and new to its text."""
    before = written(dense, PROMPTS[:1], depth=3)
    tokens, rounds = before.tokens[0], before.ledger
    firsts = rounds["begin"].values[rounds["accepted"].values > 1].tolist()  # places of first drafts, more following
    end = next(place for place in firsts if tokens[place] not in tokens[:place])
    monkeypatch.setattr(dense.model.generation_config, "eos_token_id", [2, tokens[end]])
    online = written(dense, PROMPTS[:1], depth=3)
    last = online.ledger.isel(round=-1)
    assert (str(last["ended"].values), int(last["next_token"])) == ("eos", -1)
    assert len(online.tokens[0]) == end + 1
    for policy in (None, Threshold(0.6)):
        online = written(dense, PROMPTS[:1], depth=3, policy=policy)
        seen = trace(dense, online, depth=3, progress=False)
        assert_same_rounds(seen.replay(policy=policy)["rounds"], online.ledger)


def test_a_given_text_is_teacher_forced(moe):
    given = trace(moe, PROMPTS, depth=2, progress=False)
    assert given.replay()["rounds"].attrs["text"] == "teacher_forced"
    assert "teacher-forced" in repr(given)


def test_every_depth_up_to_its_own_can_be_replayed(own):
    assert [own.replay(depth=depth)["rounds"].sizes["draft"] for depth in (1, 5)] == [1, 5]
    assert own.replay()["rounds"].identical(own.replay(depth=5)["rounds"])
    for depth in (6, 0, True, 2.0):
        with pytest.raises(BadArgument) as caught:
            own.replay(depth=depth)
        assert f"depth={depth!r}: this trace has drafts 1 to 5" in str(caught.value)
        assert "trace again with a greater depth" in str(caught.value)


def test_a_policy_with_a_wrong_result_is_refused(own):
    with pytest.raises(BadPolicy, match="The policy <lambda>"):
        own.replay(policy=lambda probability: probability > 0.5)


def test_a_trace_is_unchanged_by_save_and_open(own, tmp_path):
    again = Trace.open(own.save(tmp_path / "trace.nc"))
    assert again.dataset.identical(own.dataset)
    assert again.replay(depth=3)["rounds"].identical(own.replay(depth=3)["rounds"])
    assert repr(again) == repr(own)


def test_a_replay_can_be_saved_also_without_a_round(moe, tmp_path):
    rounds = trace(moe, [[5, 6]], depth=2, progress=False).replay()
    assert rounds["rounds"].sizes["round"] == 0
    assert ql.Recording.open(rounds.save(tmp_path / "rounds.nc"))["rounds"].identical(rounds["rounds"])


def test_two_traces_are_merged_text_after_text(moe, tmp_path):
    options = {"depth": 2, "progress": False}
    first, second = (trace(moe, text, **options) for text in PROMPTS[:2])
    merged = first.recording().merge(second.recording())
    both = trace(moe, PROMPTS[:2], **options)
    assert merged["trace"].equals(both.dataset)
    assert Trace(merged["trace"], merged.attrs).replay()["rounds"].equals(both.replay()["rounds"])


WITHOUT_TORCH = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers"):
            raise ModuleNotFoundError(f"no {name} on this laptop")

sys.meta_path.insert(0, Hidden())
import qwenlab as ql
trace = ql.speculative.Trace.open(sys.argv[1])
rounds = trace.replay(depth=3, policy=ql.speculative.Threshold(0.6))["rounds"]
print(int(rounds["accepted"].sum()), repr(trace))
"""


def test_a_trace_can_be_replayed_without_torch(own, tmp_path):
    path = own.save(tmp_path / "trace.nc")
    process = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, path], capture_output=True, text=True)
    accepted = int(own.replay(depth=3, policy=Threshold(0.6))["rounds"]["accepted"].sum())
    assert process.stdout.strip() == f"{accepted} {own!r}", process.stderr


def test_a_recording_without_a_trace_is_refused(tmp_path):
    path = made_recording(probes=["routing"]).save(tmp_path / "probes.nc")
    with pytest.raises(ProbeNotRecorded, match=r"No 'trace' was recorded(.|\n)*qwenlab.speculative.trace"):
        Trace.open(path)


def test_repr_describes_the_trace(own, moe):
    tokens = own.dataset.sizes["token"]
    shown = (
        f"Trace of toy-moe: depth 5, 3 texts, {tokens} tokens, the model's own greedy output, 0 tokens not its argmax"
    )
    assert repr(own) == shown
    cut = trace(moe, [[5, 6, 7, 8, 9]], depth=1, window=3, progress=False)
    assert repr(cut) == "Trace of toy-moe: depth 1, 2 windows of up to 3 tokens, 5 tokens, teacher-forced"


def test_html_is_escaped(moe):
    named = trace(moe, [[5, 6]], depth=1, labels=["<script>"], progress=False)
    named.facts["checkpoint"] = "<img>"
    shown = named._repr_html_()
    assert "<script>" not in shown
    assert "<img>" not in shown
    assert "&lt;img&gt;" in shown
