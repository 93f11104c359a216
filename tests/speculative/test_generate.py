"""Speculative decoding: the text of plain decoding, correct counts, and errors for invalid arguments."""

import dataclasses

import numpy as np
import pytest
import torch

import qwenlab as ql
from qwenlab.errors import BadArgument, BadPolicy, BadPrompt, InterruptedWarning, NoMtpHead
from qwenlab.record.recording import Recording
from qwenlab.speculative import FixedDepth, ReplayRollback, RerunRollback, Threshold, generate


def rows(rounds):
    """{name: value, or values by draft} of every round."""
    return [{name: rounds[name].values[i] for name in rounds} for i in range(rounds.sizes["round"])]


def plain(checkpoint, prompt, count):
    inputs = torch.tensor([prompt])
    return checkpoint.model.generate(inputs, max_new_tokens=count, do_sample=False)[0].tolist()


@pytest.mark.slow
def test_greedy_text_is_that_of_transformers(checkpoint, prompts):
    given = prompts(checkpoint, 1, 24) + prompts(checkpoint, 1, 40, "arithmetic")
    wanted = [plain(checkpoint, prompt, 40) for prompt in given]
    for depth, rollback in ((1, ReplayRollback), (4, ReplayRollback), (8, RerunRollback)):
        made = generate(checkpoint, given, depth=depth, max_new_tokens=40, rollback=rollback, progress=False)
        assert made.tokens == wanted
    assert made.begin == [len(prompt) for prompt in given]
    assert int(made.ledger["accepted"].sum()) > 0


def test_the_ledger_has_the_right_counts_and_tokens(checkpoint, prompts):
    """Every count and token of every round, from the text only; probabilities compared with full forward passes."""
    made = generate(checkpoint, prompts(checkpoint), depth=3, max_new_tokens=30, labels=["a", "b"], progress=False)
    ledger = made.ledger
    for text, tokens in enumerate(made.tokens):
        with torch.no_grad():
            target = checkpoint.model(torch.tensor([tokens])).logits[0].log_softmax(-1)
        rounds = ledger.isel(round=np.flatnonzero(ledger["prompt"] == text))
        begin = made.begin[text] + 1  # the first token is the prefill's
        for number, row in enumerate(rows(rounds)):
            assert (row["number"], row["begin"], row["label"]) == (number, begin, "ab"[text])
            drafts, accepted = [int(t) for t in row["draft_token"] if t >= 0], int(row["accepted"])
            assert len(drafts) == row["drafted"] == row["proposed"] == min(3, len(tokens) - begin - 1)
            run = 0
            while run < len(drafts) and drafts[run] == tokens[begin + run]:
                run += 1
            assert accepted == row["agreed"] == run
            assert row["tested"] == min(run + 1, len(drafts))
            assert row["next_token"] == tokens[begin + run]
            for place in range(int(row["tested"])):
                expected = target[begin + place - 1]
                assert row["target_token"][place] == expected.argmax()
                assert row["target_probability"][place] == pytest.approx(float(expected[drafts[place]].exp()), abs=1e-5)
                entropy = -(expected.exp() * expected).sum()
                assert row["target_entropy"][place] == pytest.approx(float(entropy), abs=1e-4)
            assert np.isnan(row["target_probability"][int(row["tested"]) :]).all()
            begin += int(row["emitted"])
            last = begin == len(tokens)
            assert row["ended"] == ("length" if last else "full" if accepted == len(drafts) else "rejected")
        assert begin == len(tokens)


def test_an_end_of_text_inside_an_accepted_run(checkpoint, prompts):
    """Drafts after the end are neither tested nor accepted; the target model adds nothing."""
    (prompt,) = prompts(checkpoint, 1)
    whole = generate(checkpoint, prompt, depth=4, max_new_tokens=40, progress=False)
    number = int(np.flatnonzero(whole.ledger["accepted"].values >= 2)[0])
    begin = int(whole.ledger["begin"][number])
    end = whole.tokens[0][begin]  # the first accepted draft of that round is to end the text
    before = whole.tokens[0][len(prompt) : begin]
    assert end not in before
    model = checkpoint.model
    was = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = [end]
    try:
        cut = generate(checkpoint, prompt, depth=4, max_new_tokens=40, progress=False)
    finally:
        model.generation_config.eos_token_id = was
    assert cut.tokens[0] == whole.tokens[0][: begin + 1]
    assert cut.ended == ["eos"]
    last = {name: cut.ledger[name].values[-1] for name in cut.ledger}
    assert (last["ended"], last["next_token"]) == ("eos", -1)
    assert (last["tested"], last["accepted"], last["emitted"]) == (1, 1, 1)
    assert last["agreed"] == whole.ledger["accepted"].values[number]
    assert last["drafted"] == 4


@pytest.mark.slow
def test_policies_decide_the_number_of_drafts(dense, prompts):
    given = prompts(dense, 1)
    for policy, check in (
        (FixedDepth(2), lambda ledger: (ledger["drafted"] <= 2).all()),
        (FixedDepth(0), lambda ledger: (ledger["drafted"] == 0).all() and (ledger["emitted"] == 1).all()),
        (lambda p: np.full(len(p), p.shape[1] < 1), lambda ledger: (ledger["drafted"] <= 1).all()),
    ):
        made = generate(dense, given, depth=4, max_new_tokens=20, policy=policy, progress=False)
        assert check(made.ledger), policy
        assert made.tokens[0] == plain(dense, given[0], 20)
    kept = generate(dense, given, depth=6, max_new_tokens=40, policy=Threshold(0.8), progress=False).ledger
    dropped = generate(
        dense, given, depth=6, max_new_tokens=40, policy=Threshold(0.8, drops=True), progress=False
    ).ledger
    assert (kept["proposed"] == kept["drafted"]).all()
    below = kept["draft_probability"].values < 0.8
    assert below.any()
    assert (below.sum(1) <= 1).all()  # the draft that falls under it is the last one
    assert not (dropped["draft_probability"].values < 0.8).any()
    assert (dropped["proposed"] > dropped["drafted"]).any()
    assert dropped.attrs["policy"] == "Threshold(probability=0.8, drops=True)"


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["speculative_sampling", "exact_match"])
def test_sampling_is_repeatable_per_text(dense, prompts, rule):
    given = prompts(dense, 2)
    how = dict(depth=3, max_new_tokens=20, rule=rule, temperature=0.8, top_k=50, top_p=0.9, progress=False)
    both, again = generate(dense, given, seed=3, **how), generate(dense, given, seed=3, **how)
    assert both.tokens == again.tokens != generate(dense, given, seed=4, **how).tokens
    assert generate(dense, given[1], seed=4, **how).tokens[0] == both.tokens[1]
    assert both.ledger.attrs["drafting"] == ("sampled" if rule == "speculative_sampling" else "greedy")


def test_the_result_can_be_saved(dense, prompts, tmp_path):
    made = generate(dense, prompts(dense, 1), depth=2, max_new_tokens=10, progress=False)
    again = Recording.open(made.recording().save(tmp_path / "rounds.nc"))
    assert again["rounds"].drop_vars("seconds").equals(made.ledger.drop_vars("seconds"))
    assert again["rounds"].attrs["rule"] == "greedy"
    assert again.attrs["checkpoint_hash"] == dense.facts.hash
    assert "rule greedy, depth 2" in repr(made)
    assert "&lt;" in dataclasses.replace(made, texts=["<b>"])._repr_html_()


def test_interrupted_decoding_returns_the_text_so_far(dense, prompts, monkeypatch):
    """Ctrl-C in the third round of the second text."""
    seen = []

    class Interrupting(ReplayRollback):
        def keep(self, context, kept):
            seen.append(context)
            if len(set(map(id, seen))) == 2 and sum(each is context for each in seen) == 3:
                raise KeyboardInterrupt
            super().keep(context, kept)

    with pytest.warns(InterruptedWarning, match=r"interrupted in text 1 of 3; the text decoded so far is returned"):
        made = generate(dense, prompts(dense, 3), depth=1, max_new_tokens=12, rollback=Interrupting, progress=False)
    assert made.ended == ["length", "interrupted"]
    assert len(made.tokens[0]) == made.begin[0] + 12
    assert int((made.ledger["prompt"] == 1).sum()) == 2


def test_an_interruption_before_the_first_text_is_raised(dense, prompts):
    class Never(ReplayRollback):
        def __init__(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(dense, prompts(dense, 1), depth=1, max_new_tokens=4, rollback=Never, progress=False)


def test_a_watch_around_it_sees_every_block(dense, prompts):
    """Probes and the rollback both hook the delta rule."""
    with ql.watch(dense, ql.probes.DeltaNet()) as seen:
        made = generate(dense, prompts(dense, 1, 16), depth=2, max_new_tokens=10, progress=False)
    read = 16 + int((made.ledger["drafted"] + 1).sum())
    assert seen.recording().attrs["tokens"] == read
    assert made.tokens == generate(dense, prompts(dense, 1, 16), depth=2, max_new_tokens=10, progress=False).tokens


def test_bad_input(dense, headless):
    def fails(error, match, checkpoint=dense, prompts=([1, 2],), **given):
        with pytest.raises(error, match=match):
            generate(checkpoint, list(prompts), **({"depth": 2, "max_new_tokens": 4, "progress": False} | given))

    room = dense.model.config.max_position_embeddings
    fails(NoMtpHead, r"has no MTP head(.|\n)*Open the published checkpoint", headless)
    fails(BadArgument, r"depth=0: (.|\n)*use model.generate", depth=0)
    fails(BadArgument, rf"depth={room}: (.|\n)*below the context of {room:,}", depth=room)
    fails(BadArgument, r"depth=True", depth=True)
    fails(BadArgument, r"max_new_tokens=0", max_new_tokens=0)
    fails(BadPrompt, r"There is no prompt", prompts=[])
    fails(BadPrompt, r"Prompt 1 is empty(.|\n)*at least one token", prompts=["x", ""])
    fails(
        BadPrompt,
        rf"Prompt 0 has {room:,} tokens; with max_new_tokens=4 (.|\n)*Shorten the prompt",
        prompts=[[1] * room],
    )
    fails(BadArgument, r"temperature=0.5 would have no effect", temperature=0.5)
    fails(BadArgument, r"top_k and top_p truncate the sampling distribution", top_k=5)
    fails(BadArgument, r"generate\(drafting='beam'\): give one of 'greedy', 'sampled'", drafting="beam")
    fails(BadArgument, r"drafting='sampled' under rule='greedy'", drafting="sampled")
    fails(BadArgument, r"labels: give a list of 1 names, one for each prompt", labels=["a", "b"])
    fails(BadPolicy, r"returned an array \[2\]", policy=lambda p: np.ones(2, dtype=bool))
    with pytest.raises(TypeError, match="tempreature"):
        generate(dense, "x", depth=1, tempreature=1)


def test_the_policy_is_not_called_after_the_last_draft(dense, prompts):
    """With `depth` drafts made, and with one token left to emit, it is not called, unless it drops."""
    calls = []

    def policy(probability):
        calls.append(probability.shape[1])
        return np.ones(len(probability), dtype=bool)

    generate(dense, prompts(dense, 1), depth=2, max_new_tokens=9, policy=policy, progress=False)
    assert set(calls) == {0, 1}
    policy.drops = True
    generate(dense, prompts(dense, 1), depth=2, max_new_tokens=9, policy=policy, progress=False)
    assert set(calls) == {0, 1, 2}
