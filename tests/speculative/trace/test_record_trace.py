"""Variables of a trace, compared with full forward passes and chains that run one at a time."""

import dataclasses

import numpy as np
import pytest
import torch
from transformers import DynamicCache

import qwenlab as ql
from qwenlab.errors import BadArgument, BadPrompt, InterruptedWarning, NoMtpHead
from qwenlab.speculative.generate import generate
from qwenlab.speculative.trace.record_trace import trace
from qwenlab.testing.checkpoints import tiny_checkpoint

DEPTH = 3
TEXTS = ["The old house stood", "x = [1, 2, 3]\nfor i in x:\n    print(i)"]


@pytest.fixture(scope="module", params=["toy-dense", "toy-moe"])
def checkpoint(request):
    return ql.open(request.param)


@pytest.fixture(scope="module")
def moe():
    return ql.open("toy-moe")


def traced(checkpoint, texts, depth=DEPTH, **options):
    return trace(checkpoint, texts, depth=depth, progress=False, **options)


def texts_of(data):
    """The Dataset of each text."""
    return [data.isel(token=data["text"].values == text, text=text) for text in range(data.sizes["text"])]


@torch.no_grad()
def slow(checkpoint, tokens, depth=DEPTH):
    """Every variable [token] and [token, draft]: one full pass of the target model, then one chain at a time."""
    tokens, head = torch.tensor(tokens), checkpoint.mtp
    out = checkpoint.model(tokens[None], output_hidden_states=True, use_cache=False)
    logprob, hidden = out.logits[0].double().log_softmax(-1), out.hidden_states[-1]
    entropy = -(logprob.exp() * logprob).sum(-1)
    nan, none = torch.full((len(tokens), depth), torch.nan), torch.full((len(tokens), depth), -1)
    draft, probability, target_probability = none, nan.clone(), nan.clone()
    for row in range(1, len(tokens)):
        cache = DynamicCache(config=head.config)
        y = head(tokens[None, 1 : row + 1], hidden[:, :row], past_key_values=cache)[:, -1:]
        for k in range(depth):
            shares = head.logits(y)[0, -1].double().softmax(-1)
            draft[row, k], probability[row, k] = shares.argmax(), shares.max()
            if row + k < len(tokens):
                target_probability[row, k] = logprob[row + k, draft[row, k]].exp()
            y = head(draft[row : row + 1, k : k + 1], y, past_key_values=cache)
    following = [*logprob[torch.arange(len(tokens) - 1), tokens[1:]].tolist(), torch.nan]
    return {
        "token": tokens,
        "target_token": logprob.argmax(-1),
        "target_entropy": entropy,
        "next_logprob": following,
        "draft_token": draft,
        "draft_probability": probability,
        "target_probability": target_probability,
    }


@pytest.mark.parametrize("chunk", [5, 256])
def test_every_variable_equals_that_of_slow_passes(checkpoint, chunk):
    seen = texts_of(traced(checkpoint, TEXTS, chunk=chunk).dataset)
    for text, data in zip(TEXTS, seen, strict=True):
        tokens = checkpoint.tokenizer(text)["input_ids"]
        assert data["position"].values.tolist() == list(range(len(tokens)))
        for name, values in slow(checkpoint, tokens).items():
            np.testing.assert_allclose(data[name].values, values, atol=2e-5, rtol=1e-4, err_msg=name)


def test_a_text_shorter_than_the_chain(moe):
    (data,) = texts_of(traced(moe, [[7, 9]], depth=5).dataset)
    for name, values in slow(moe, [7, 9], depth=5).items():
        np.testing.assert_allclose(data[name].values, values, atol=2e-5, err_msg=name)
    assert np.isfinite(data["target_probability"].values).tolist() == [[False] * 5, [True, *[False] * 4]]


def test_a_trace_describes_its_texts(moe):
    data = traced(moe, TEXTS, labels=["prose", "code"]).dataset
    lengths = [len(moe.tokenizer(text)["input_ids"]) for text in TEXTS]
    assert data.attrs == {"depth": DEPTH, "text": "teacher_forced", "window": 0}
    assert data["draft"].values.tolist() == [1, 2, 3]
    assert data["length"].values.tolist() == lengths
    assert data["text"].values.tolist() == [0] * lengths[0] + [1] * lengths[1]
    assert data["label"].values.tolist() == ["prose", "code"]
    assert data["begin"].values.tolist() == [1, 1]
    assert data["end"].values.tolist() == ["open", "open"]
    assert all("units" in data[name].attrs and data[name].attrs["long_name"] for name in data.variables)


def test_a_trace_has_its_provenance(moe):
    recording = traced(moe, TEXTS, labels=["prose", "code"]).recording()
    lengths = [len(moe.tokenizer(text)["input_ids"]) for text in TEXTS]
    assert list(recording) == ["trace"]
    assert recording.attrs["checkpoint"] == "toy-moe"
    assert recording.attrs["checkpoint_hash"] == moe.facts.hash
    assert recording.attrs["tokens"] == sum(lengths)
    assert recording.attrs["sequences"] == 2
    assert recording.attrs["labels"] == f'{{"prose": {lengths[0]}, "code": {lengths[1]}}}'


def test_each_window_is_traced_as_a_text_of_its_own(moe):
    tokens = moe.tokenizer(TEXTS[1])["input_ids"]
    cut = traced(moe, [tokens], window=9).dataset
    alone = [tokens[start : start + 9] for start in range(0, len(tokens), 9)]
    assert cut.attrs["window"] == 9
    assert cut["start"].values.tolist() == list(range(0, len(tokens), 9))
    together = traced(moe, alone).dataset
    for name in set(together.variables) - {"start"}:
        np.testing.assert_array_equal(cut[name].values, together[name].values, err_msg=name)


def test_a_last_window_of_one_token_has_no_chain(moe):
    tokens = moe.tokenizer(TEXTS[1])["input_ids"][:9]
    *_, last = texts_of(traced(moe, [tokens], window=4).dataset)
    assert last["draft_token"].values.tolist() == [[-1] * DEPTH]
    assert last["target_token"].values >= 0


# --- own output or teacher-forced ---


@pytest.fixture(scope="module")
def own(moe):
    return generate(moe, TEXTS[:1], depth=2, max_new_tokens=12, progress=False)


def test_greedy_output_is_the_models_own(moe, own):
    seen = traced(moe, own)
    assert seen.is_own_output
    assert seen.non_argmax_tokens == 0
    assert seen.dataset["begin"].values.tolist() == own.begin
    assert seen.dataset["limit"].values.tolist() == [own.begin[0] + 12]


def test_the_same_tokens_as_an_existing_text_are_teacher_forced(moe, own):
    assert not traced(moe, own.tokens).is_own_output


def test_sampled_output_is_teacher_forced(moe):
    drawn = generate(moe, TEXTS[:1], depth=2, max_new_tokens=6, rule="exact_match", temperature=1.0, progress=False)
    assert not traced(moe, drawn).is_own_output


def test_output_of_another_checkpoint_is_teacher_forced(own):
    assert not traced(ql.open("toy-dense"), own).is_own_output


def test_tokens_that_are_not_the_models_choice_are_counted(moe, own):
    tokens = list(own.tokens[0])
    tokens[-3] = (tokens[-3] + 1) % 100
    seen = traced(moe, dataclasses.replace(own, tokens=[tokens]))
    data = seen.dataset
    emitted = range(own.begin[0], len(tokens))
    assert (
        seen.non_argmax_tokens == sum(int(data["target_token"][place - 1]) != tokens[place] for place in emitted) >= 1
    )


# --- what cannot be traced ---


@pytest.mark.parametrize("depth", [0, -1, 1.5, True, 10**6])
def test_a_depth_that_drafts_nothing_or_too_much_is_refused(moe, depth):
    with pytest.raises(BadArgument, match=r"depth=.*: give an integer number of drafts per round"):
        traced(moe, TEXTS, depth=depth)


@pytest.mark.parametrize("chunk", [0, -1, 1.5, True])
def test_a_chunk_holds_a_token_or_more(moe, chunk):
    with pytest.raises(BadArgument, match=r"trace\(chunk=.*\): give an integer number of tokens, 1 or more"):
        traced(moe, TEXTS, chunk=chunk)


def test_a_text_without_a_chain_is_refused(moe):
    with pytest.raises(BadPrompt, match="Text 0 has 1 token"):
        traced(moe, [[4]])


def test_a_checkpoint_without_a_head_is_refused(tmp_path):
    headless = ql.open(tiny_checkpoint(tmp_path, mtp=None))
    with pytest.raises(NoMtpHead):
        traced(headless, TEXTS)


# --- interrupted ---


def interrupted_at(checkpoint, monkeypatch, call):
    """Interrupt the target model's forward pass number `call`, as Ctrl-C does."""
    decoder, calls = checkpoint.model.get_decoder(), []
    forward = decoder.forward

    def interrupting(*args, **kwargs):
        calls.append(None)
        if len(calls) == call:
            raise KeyboardInterrupt
        return forward(*args, **kwargs)

    monkeypatch.setattr(decoder, "forward", interrupting)


def test_an_interrupted_trace_returns_the_finished_texts(moe, monkeypatch):
    whole = traced(moe, TEXTS[:1], labels=["prose"])
    interrupted_at(moe, monkeypatch, call=2)
    with pytest.warns(InterruptedWarning, match="after 1 of 2 texts"):
        part = traced(moe, TEXTS, labels=["prose", "code"])
    assert part.dataset.equals(whole.dataset)
    assert part.facts["tokens"] == whole.dataset.sizes["token"]
    assert part.facts["prompts_hash"] == whole.facts["prompts_hash"]


def test_an_interruption_before_the_first_text_is_raised(moe, monkeypatch):
    interrupted_at(moe, monkeypatch, call=1)
    with pytest.raises(KeyboardInterrupt):
        traced(moe, TEXTS)


def test_the_progress_bar_counts_tokens(moe, capsys):
    trace(moe, TEXTS[:1], depth=1, chunk=2)
    shown = capsys.readouterr().err
    count = len(moe.tokenizer(TEXTS[0])["input_ids"])
    assert f"{count}/{count}" in shown
    assert "token" in shown


def test_watch_works_during_a_trace(moe):
    with ql.watch(moe.model, ql.probes.Routing()) as seen:
        data = traced(moe, TEXTS).dataset
    assert seen.recording().attrs["tokens"] == data.sizes["token"]


@torch.no_grad()
def test_the_first_draft_is_compared_with_the_token_after_the_next():
    """Teacher-forced agreement of each text, against one prefix after another."""
    toy = ql.open("toy-dense")
    ids = [toy.tokenizer(text).input_ids[:20] for text in (ql.tasks.texts("code")[2], "x = 1\n")]
    trace = ql.speculative.trace(toy, ids, depth=1, labels=["0", "1"], progress=False)
    found = ql.stats.agreement(trace.recording(), by_label=True)
    head = toy.require_mtp()
    for index, tokens in enumerate(torch.tensor([text]) for text in ids):
        hidden = toy.model(tokens, output_hidden_states=True).hidden_states[-1]
        agreed = []
        for p in range(tokens.shape[1] - 1):
            draft = head.logits(head(tokens[:, 1 : p + 2], hidden[:, : p + 1]))[0, -1].argmax()
            agreed.append(draft == toy.model(tokens[:, : p + 2]).logits[0, -1].argmax())
        assert found["chains"][index, 0] == len(agreed)
        np.testing.assert_allclose(found["teacher_forced"][index, 0], np.mean(agreed))


def agreement_of(texts, **control):
    toy = ql.open("toy-dense")
    ids = [toy.tokenizer(text).input_ids[:128] for text in texts]
    return ql.speculative.trace(toy, ids, depth=1, progress=False, **control)


def test_controls_leave_the_draft_without_its_state():
    texts = ql.tasks.texts("code")[:8]
    traces = {
        "true": agreement_of(texts),
        "shuffled": agreement_of(texts, shuffled=True),
        "of other texts": agreement_of(texts, donors=ql.tasks.texts("arithmetic")[:8]),
    }
    found = {name: ql.stats.agreement(trace.recording()) for name, trace in traces.items()}
    rate = {name: float(each["teacher_forced"][0]) for name, each in found.items()}
    assert rate["of other texts"] < rate["shuffled"] < 0.7 * rate["true"]
    for name in ("shuffled", "of other texts"):
        controlled = traces[name]
        assert controlled.dataset["target_token"].equals(traces["true"].dataset["target_token"])
        assert controlled.replay()["rounds"].attrs["hidden"] == found[name].attrs["hidden"] == name
    assert "hidden" not in found["true"].attrs


def test_a_control_depends_on_its_seed():
    texts = ql.tasks.texts("code")[:2]
    one, again, other = (agreement_of(texts, shuffled=True, seed=seed).dataset["draft_token"] for seed in (1, 1, 2))
    assert one.equals(again)
    assert not one.equals(other)


def test_two_controls_at_once_are_an_error(moe):
    with pytest.raises(BadArgument, match=r"trace\(shuffled=True, donors=\.\.\.\): choose one control at a time"):
        ql.speculative.trace(moe, ["a b c"], depth=1, shuffled=True, donors=["d e"])
