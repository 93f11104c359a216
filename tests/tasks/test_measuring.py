"""Scores of whole tasks, against one sequence after another."""

import math
from contextlib import ExitStack

import numpy as np
import pytest
import torch

import qwenlab as ql
from qwenlab.errors import BadArgument
from qwenlab.tasks import Task, induction, measure, mqar, text_task
from qwenlab.testing.checkpoints import tiny_checkpoint


@pytest.fixture(scope="module")
def toy():
    return ql.open("toy-dense")


@pytest.fixture(scope="module")
def tasks(toy):
    texts = [*(text[:200] for text in ql.tasks.texts("prose", 2)), "x = 1\n"]
    return [text_task(toy, texts, name="prose", max_tokens=40), mqar(toy, pairs=4, count=3)]


@torch.no_grad()
def test_it_is_one_sequence_after_another(toy, tasks):
    found = measure(toy, tasks, batch_size=2)
    assert found["task"].values.tolist() == ["prose"] * 3 + ["mqar(pairs=4)"] * 3
    row = 0
    for task in tasks:
        for tokens, asked in zip(task.tokens, task.asked, strict=True):
            losses, right = [], []
            for t in asked:
                logits = toy.model(torch.tensor([tokens[:t]])).logits[0, -1].double()
                losses.append((logits.logsumexp(0) - logits[tokens[t]]).item())
                right.append(logits.argmax().item() == tokens[t])
            assert math.isclose(found["loss"][row], np.mean(losses), rel_tol=1e-4, abs_tol=1e-6)
            assert found["accuracy"][row] == np.mean(right)
            assert found["asked"][row] == len(asked)
            if task.name == "prose":
                size = len(toy.tokenizer.decode(tokens[1:]).encode())
                assert math.isclose(found["bits_per_byte"][row], sum(losses) / math.log(2) / size, rel_tol=1e-4)
            else:
                assert math.isnan(found["bits_per_byte"][row])
            row += 1


def test_chance_and_units(toy, tasks):
    found = measure(toy, tasks)
    np.testing.assert_array_equal(found["chance"], [np.nan] * 3 + [0.1] * 3)
    assert "chance" in found["accuracy"].coords
    assert {name: found[name].attrs["units"] for name in found} == {
        "loss": "nat/token",
        "accuracy": "1",
        "bits_per_byte": "bit/byte",
        "asked": "token",
    }


@pytest.mark.parametrize("block", [1, 5, 64])
def test_scores_are_the_same_in_blocks_of_any_size(toy, tasks, block):
    """On a cache, shorter sequences padded; few positions are asked for in some blocks, and none in others."""
    at_once, in_blocks = measure(toy, tasks, batch_size=4), measure(toy, tasks, batch_size=4, block=block)
    np.testing.assert_allclose(in_blocks["loss"], at_once["loss"], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(in_blocks["accuracy"], at_once["accuracy"])


def test_a_state_in_low_precision_is_read_from_the_cache(toy):
    task = text_task(toy, ql.tasks.texts("code", 2), max_tokens=16)
    plain = measure(toy, [task], block=1)["loss"]
    with ql.intervene(toy.model, ql.interventions.StateDtype("float8_e4m3")):
        assert (measure(toy, [task], block=1)["loss"] != plain).all()


def test_toys_recall_and_untrained_models_guess(toy, tmp_path):
    """The toys were trained on the format; a model that answers at random is right as often as chance says."""
    task = mqar(toy, pairs=8, count=32)
    assert measure(toy, [task], batch_size=32)["accuracy"].mean() > 0.99
    repeated = measure(toy, [induction(toy, length=30, count=64)], batch_size=64)["accuracy"].mean()
    assert 0.2 < float(repeated) < 0.9
    untrained = ql.open(tiny_checkpoint(tmp_path, "qwen3_5", vocab_size=2048))
    assert measure(untrained, [task], batch_size=32)["accuracy"].mean() < 0.3


def test_an_edited_model_is_scored_as_it_is(toy, tasks):
    before = measure(toy, tasks)
    with ExitStack() as hooks:
        for layer in toy.model.get_decoder().layers:
            if hasattr(layer, "linear_attn"):
                hooks.callback(layer.linear_attn.register_forward_hook(lambda *args: torch.zeros_like(args[2])).remove)
        edited = measure(toy, tasks)
    rise = edited["loss"] - before["loss"]
    assert rise.groupby("task").mean().min() > 0.5
    assert edited["accuracy"][3:].mean() < 0.5 < before["accuracy"][3:].mean()
    np.testing.assert_array_equal(measure(toy, tasks)["loss"], before["loss"])


def test_a_text_whose_asked_tokens_add_no_byte_has_no_bits(toy):
    found = measure(toy, [text_task(toy, ["é"], name="one letter of two tokens")])
    assert found["loss"][0] > 0
    assert math.isnan(found["bits_per_byte"][0])


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (dict(tasks=[]), r"measure\(checkpoint, tasks\): give a list"),
        (dict(tasks=[Task("a", ((1, 2),), ((1,),))], batch_size=0), r"measure\(batch_size=0\)"),
        (dict(tasks=[Task("a", ((1, 2),), ((1,),))], block=0), r"measure\(block=0\): give an integer, 1 or more"),
    ],
)
def test_foolish_arguments_are_refused(toy, given, why):
    with pytest.raises(BadArgument, match=why):
        measure(toy, **given)
