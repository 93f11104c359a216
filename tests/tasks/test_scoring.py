"""Scores against slow references that go token by token, in float64."""

import math

import numpy as np
import pytest
import torch

import qwenlab as ql


@pytest.fixture(scope="module")
def checkpoint():
    return ql.open("toy-dense")


def slow_losses(checkpoint, text, tokens):
    ids = checkpoint.tokenizer(text).input_ids[:tokens]
    losses = []
    for t in range(1, len(ids)):
        logits = checkpoint.model(torch.tensor([ids[:t]])).logits[0, -1].double()
        losses.append(-(logits[ids[t]] - logits.logsumexp(0)).item())
    return losses


@torch.no_grad()
def test_loss_is_that_of_one_token_after_another(checkpoint):
    texts = [ql.tasks.texts("prose")[0], "37 + 45 = 82\n", ql.tasks.texts("code")[1]]
    found = ql.tasks.score(checkpoint, texts, max_tokens=24, batch_size=2)
    for index, text in enumerate(texts):
        expected = slow_losses(checkpoint, text, 24)
        assert found["tokens"][index] == len(expected)
        assert math.isclose(found["loss"][index], np.mean(expected), rel_tol=1e-4)


@pytest.mark.parametrize("block", [1, 5, 64])
def test_loss_is_the_same_in_blocks_of_any_size(checkpoint, block):
    """On a cache, the shorter text padded."""
    texts = [ql.tasks.texts("code")[0], "37 + 45 = 82\n", "x"]
    whole, read = (ql.tasks.score(checkpoint, texts, max_tokens=24, block=size) for size in (None, block))
    np.testing.assert_allclose(read["loss"], whole["loss"], rtol=1e-5)
    assert read["tokens"].values.tolist() == whole["tokens"].values.tolist()


def test_a_state_in_low_precision_is_read_from_the_cache(checkpoint):
    texts = ql.tasks.texts("code")[:2]
    plain = ql.tasks.score(checkpoint, texts, max_tokens=16, block=1)["loss"]
    with ql.intervene(checkpoint.model, ql.interventions.StateDtype("float8_e4m3")):
        assert (ql.tasks.score(checkpoint, texts, max_tokens=16, block=1)["loss"] != plain).all()


def test_a_block_that_is_none_is_refused(checkpoint):
    with pytest.raises(ql.errors.BadArgument, match=r"^score\(block=0\): give a whole number, 1 or more\.$"):
        ql.tasks.score(checkpoint, ["a b"], block=0)


@torch.no_grad()
def test_recall_counts_each_question_once(checkpoint):
    found = ql.tasks.recall_accuracy(checkpoint, (3, 5), count=4, seed=7, batch_size=3)
    for pairs in (3, 5):
        for index, text in enumerate(ql.tasks.recall_texts(pairs, 4, seed=7)):
            ids, right = checkpoint.tokenizer(text).input_ids, []
            for t, token in enumerate(checkpoint.tokenizer.convert_ids_to_tokens(ids)):
                if token == "?":
                    choice = checkpoint.model(torch.tensor([ids[: t + 1]])).logits[0, -1].argmax()
                    right.append(choice.item() == ids[t + 1])
            assert len(right) == pairs
            assert math.isclose(found["accuracy"].sel(pairs=pairs)[index], np.mean(right))


@torch.no_grad()
def test_teacher_forced_agreement_drafts_the_token_after_the_next(checkpoint):
    texts = [ql.tasks.texts("code")[2], "x = 1\n"]
    found = ql.tasks.teacher_forced(checkpoint, texts, max_tokens=20)
    head, model = checkpoint.require_mtp(), checkpoint.model
    for index, text in enumerate(texts):
        ids = checkpoint.tokenizer(text, return_tensors="pt").input_ids[:, :20]
        hidden = model(ids, output_hidden_states=True).hidden_states[-1]
        agreed = []
        for p in range(ids.shape[1] - 1):
            draft = head.logits(head(ids[:, 1 : p + 2], hidden[:, : p + 1]))[0, -1].argmax()
            agreed.append(draft == model(ids[:, : p + 2]).logits[0, -1].argmax())
        assert found["tokens"][index] == len(agreed)
        assert math.isclose(found["agreement"][index], np.mean(agreed))


def test_shuffling_leaves_the_draft_without_its_state(checkpoint):
    texts = ql.tasks.texts("arithmetic")[:8]
    true = ql.tasks.teacher_forced(checkpoint, texts)["agreement"].mean()
    shuffled = ql.tasks.teacher_forced(checkpoint, texts, shuffled=True)["agreement"].mean()
    assert shuffled < 0.6 * true


def test_strangers_leave_it_with_less_still(checkpoint):
    texts = ql.tasks.texts("code")[:8]
    shuffled = ql.tasks.teacher_forced(checkpoint, texts, max_tokens=128, shuffled=True)["agreement"].mean()
    strangers = ql.tasks.teacher_forced(checkpoint, texts, max_tokens=128, strangers=ql.tasks.texts("arithmetic")[:8])
    assert strangers["agreement"].mean() < shuffled


def test_two_controls_at_once_are_refused(checkpoint):
    with pytest.raises(ql.errors.BadArgument, match="one control at a time"):
        ql.tasks.teacher_forced(checkpoint, ["a b c"], shuffled=True, strangers=["d"])


def test_batches_keep_the_order_and_mask_the_padding(checkpoint):
    texts = ["a b c d e f g", "x", "37 + 45"]
    found = list(ql.tasks.batches(checkpoint, texts, batch_size=2, max_tokens=5))
    assert [batch.texts for batch in found] == [(0, 1), (2,)]
    for batch in found:
        for row, index in enumerate(batch.texts):
            real = batch.input_ids[row][batch.attention_mask[row].bool()].tolist()
            assert real == checkpoint.tokenizer(texts[index]).input_ids[:5]


@pytest.mark.parametrize("texts", [[], "one string"])
def test_what_is_no_list_of_texts_is_refused(checkpoint, texts):
    with pytest.raises(ql.errors.BadArgument, match="give a list of at least one text"):
        next(ql.tasks.batches(checkpoint, texts))


def test_an_empty_text_is_named(checkpoint):
    with pytest.raises(ql.errors.BadArgument, match=r"Texts \[1\] have no tokens"):
        next(ql.tasks.batches(checkpoint, ["a", ""]))
