"""Acceptance score of each text, compared with its ledger."""

from contextlib import ExitStack

import numpy as np
import pytest
import torch

import qwenlab as ql
from qwenlab.errors import BadArgument, NoMtpHead
from qwenlab.speculative import acceptance_score, generate, trace


def one_by_one(ledgers):
    return [float(ql.stats.acceptance(ledger)["acceptance_length"]) for ledger in ledgers]


def test_given_texts_are_traced_and_replayed(checkpoint, prompts):
    texts = prompts(checkpoint, 3, 48)
    found = acceptance_score(checkpoint, texts, depth=2, labels=["a", "b", "c"])
    each = [trace(checkpoint, [text], depth=2, progress=False).replay()["rounds"] for text in texts]
    np.testing.assert_allclose(found["acceptance_length"], one_by_one(each))
    assert found["rounds"].values.tolist() == [ledger.sizes["round"] for ledger in each]
    assert found["label"].values.tolist() == ["a", "b", "c"]
    said = {"rule": "greedy", "depth": 2, "policy": "fixed depth", "text": "teacher_forced", "origin": "replay"}
    assert said.items() <= found.attrs.items()
    assert said.items() <= found["acceptance_length"].attrs.items()
    assert (found["acceptance_length"] >= 1).all()
    assert (found["acceptance_length"] <= 3).all()


def test_windows_of_a_text_are_one_text(dense, prompts):
    texts = prompts(dense, 2, 60)
    found = acceptance_score(dense, texts, depth=2, window=25)
    ledger = trace(dense, texts, depth=2, window=25, progress=False).replay()["rounds"]
    each = [ledger.isel(round=ledger["prompt"].values == text) for text in range(2)]
    np.testing.assert_allclose(found["acceptance_length"], one_by_one(each))


def test_prompts_are_continued(dense, prompts):
    texts = prompts(dense, 2, 24)
    found = acceptance_score(dense, texts, depth=3, max_new_tokens=20)
    each = [generate(dense, [text], depth=3, max_new_tokens=20, progress=False).ledger for text in texts]
    np.testing.assert_allclose(found["acceptance_length"], one_by_one(each))
    assert (found.attrs["text"], found.attrs["origin"]) == ("own", "online")


def test_a_changed_model_is_scored_with_its_changes(dense, prompts):
    texts = prompts(dense, 3, 64, "arithmetic")
    before = acceptance_score(dense, texts)
    with ExitStack() as hooks:
        for layer in dense.model.get_decoder().layers:
            if hasattr(layer, "linear_attn"):
                hooks.callback(layer.linear_attn.register_forward_hook(lambda *args: torch.zeros_like(args[2])).remove)
        edited = acceptance_score(dense, texts)
    assert edited["acceptance_length"].mean() < before["acceptance_length"].mean() - 0.2
    np.testing.assert_array_equal(acceptance_score(dense, texts)["acceptance_length"], before["acceptance_length"])


def test_a_text_without_a_round_has_no_length(dense, prompts):
    found = acceptance_score(dense, [*prompts(dense, 1, 40), [5, 6]])
    assert found["rounds"][0] > 0
    assert found["rounds"][1] == 0
    assert np.isfinite(found["acceptance_length"][0])
    assert np.isnan(found["acceptance_length"][1])


def test_windows_are_of_given_texts(dense):
    with pytest.raises(BadArgument, match=r"window=25, max_new_tokens=8\): windows are cut from given texts"):
        acceptance_score(dense, ["a b c"], window=25, max_new_tokens=8)


def test_a_depth_is_one_or_more(dense):
    with pytest.raises(BadArgument, match="depth=0"):
        acceptance_score(dense, ["a b c d"], depth=0)


def test_without_a_head_there_is_no_score(headless):
    with pytest.raises(NoMtpHead):
        acceptance_score(headless, ["a b c d"])
