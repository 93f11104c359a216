"""Batches of tasks, and scores of a batch against loops in float64."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

import qwenlab as ql
from qwenlab.errors import BadArgument
from qwenlab.tasks import Task, TaskBatch, grade, mqar, needle, task_batches, text_task
from qwenlab.tasks.grading import _SLICE, Reference


@pytest.fixture(scope="module")
def toy():
    return ql.open("toy-dense")


@pytest.fixture(scope="module")
def tasks(toy):
    texts = [text[:150] for text in ql.tasks.texts("code", 3)]
    return [
        text_task(toy, [*texts, "37 + 45 = 82\n"], name="code", max_tokens=40),
        mqar(toy, pairs=3, count=3),
        needle(toy, length=40, position=0.5, count=2),
    ]


def everything(tasks):
    return [(tokens, asked) for task in tasks for tokens, asked in zip(task.tokens, task.asked, strict=True)]


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_every_sequence_comes_once_and_like_lengths_together(toy, tasks, batch_size):
    found, every = list(task_batches(toy, tasks, batch_size=batch_size)), everything(tasks)
    assert sorted(index for batch in found for index in batch.texts) == list(range(len(every)))
    lengths = [len(every[index][0]) for batch in found for index in batch.texts]
    assert lengths == sorted(lengths, reverse=True)
    for batch in found:
        assert len(batch.texts) <= batch_size
        assert batch.input_ids.shape == batch.attention_mask.shape == batch.asked.shape
        for row, index in enumerate(batch.texts):
            tokens, asked = every[index]
            assert batch.input_ids[row, : len(tokens)].tolist() == list(tokens)
            assert batch.attention_mask[row].tolist() == [t < len(tokens) for t in range(batch.asked.shape[1])]
            assert batch.asked[row].nonzero()[:, 0].tolist() == sorted(asked)


def test_logits_are_made_where_they_are_needed_only(toy, tasks):
    (batch,) = task_batches(toy, tasks[2:], batch_size=2)
    assert batch.kept.tolist() == [38]
    kept = toy.model(**batch.inputs).logits
    assert kept.shape[:2] == (2, 1)
    every = toy.model(batch.input_ids, attention_mask=batch.attention_mask).logits
    torch.testing.assert_close(kept[:, 0], every[:, 38])


def slow(batch, logits, reference):
    """Scores of each row, token by token, in float64."""
    found = []
    for row in range(len(batch.texts)):
        scores = []
        for t in batch.asked[row].nonzero()[:, 0].tolist():
            q = logits[row, t - 1].double().numpy()
            p = reference[row, t - 1].double().numpy()
            q, p = np.exp(q - q.max()), np.exp(p - p.max())
            q, p = q / q.sum(), p / p.sum()
            token = batch.input_ids[row, t].item()
            kl = math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)
            scores.append((-math.log(q[token]), q.argmax() == token, kl, p.argmax() == q.argmax()))
        found.append(np.mean(scores, axis=0))
    return dict(zip(("loss", "accuracy", "kl", "agreement"), np.array(found).T, strict=True))


def drawn(seed, texts=3, width=9, vocabulary=11):
    """A batch with random tokens and asked positions."""
    torch.manual_seed(seed)
    asked = torch.rand(texts, width) < 0.4
    asked[:, 0], asked[:, 3] = False, True
    ids = torch.randint(0, vocabulary, (texts, width))
    return TaskBatch(ids, torch.ones_like(ids), tuple(range(texts)), asked)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    size=st.sampled_from([1e-3, 1.0, 30.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
def test_scores_are_those_of_the_slow_loop(seed, size, dtype):
    batch = drawn(seed)
    reference = torch.randn(3, 9, 11)
    logits = (reference + size * torch.randn(3, 9, 11)).to(dtype)
    found, expected = grade(batch, logits, reference), slow(batch, logits, reference)
    assert found.keys() == expected.keys()
    for name, values in found.items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-9, atol=1e-12)
    alone = grade(batch, logits)
    assert alone.keys() == {"loss", "accuracy"}
    kept = grade(batch, logits[:, batch.kept], reference[:, batch.kept])
    for name, values in found.items():
        torch.testing.assert_close(kept[name], values, rtol=0, atol=0)
        if name in alone:
            torch.testing.assert_close(alone[name], values, rtol=0, atol=0)


def test_slices_add_up_to_the_whole(monkeypatch):
    batch, logits, reference = drawn(5), torch.randn(3, 9, 11), torch.randn(3, 9, 11)
    whole = grade(batch, logits, reference)
    assert logits.numel() < _SLICE
    monkeypatch.setattr("qwenlab.tasks.grading._SLICE", 22)
    for name, values in grade(batch, logits, reference).items():
        torch.testing.assert_close(values, whole[name], rtol=1e-12, atol=0)


@pytest.mark.parametrize("kept", [0, 300_000, 2**25])
def test_slices_of_any_size_and_a_kept_reference_are_the_same_bit_for_bit(monkeypatch, kept):
    """Kept log-probabilities, of all slices, some or none, are those that each call computes anew."""
    batch = drawn(4, width=90, vocabulary=3001)
    reference = 5 * torch.randn(3, 90, 3001)
    reference[..., 7], reference[1, 2:5, 9] = -torch.inf, torch.nan
    found = {}
    for size in (2**12, 2**17, 2**22):
        monkeypatch.setattr("qwenlab.tasks.grading._CACHED", size)
        monkeypatch.setattr("qwenlab.tasks.grading._KEPT", kept)
        intact = Reference(reference)
        for name, noise in (("itself", 0), ("other", 1), ("another", 3)):
            logits = reference + noise * torch.randn(3, 90, 3001, generator=torch.Generator().manual_seed(noise))
            found[size, name] = grade(batch, logits, intact)
            once = grade(batch, logits, reference)
            for score, values in found[size, name].items():
                torch.testing.assert_close(values, once[score], rtol=0, atol=0, equal_nan=True)
                torch.testing.assert_close(values, found[2**12, name][score], rtol=0, atol=0, equal_nan=True)
        held = sum(each.p.numel() for each in intact._slices.values())
        assert held <= kept and (held > 0 or kept < 64 * 3001)


@pytest.mark.parametrize("seed", range(5))
def test_a_model_beside_itself(seed):
    batch, logits = drawn(seed), 20 * torch.randn(3, 9, 11)
    found = grade(batch, logits, logits)
    assert found["kl"].tolist() == [0, 0, 0]
    assert found["agreement"].tolist() == [1, 1, 1]
    moved = grade(batch, logits + 3.0, logits)  # the same distributions
    assert (moved["kl"] >= 0).all()
    assert (moved["kl"] < 1e-9).all()


def test_a_small_difference_is_not_lost_in_rounding():
    batch = dataclasses.replace(drawn(0, texts=1, vocabulary=5000), asked=torch.arange(9)[None] == 4)
    reference = torch.randn(1, 9, 5000, dtype=torch.float64).float()
    step = torch.randn(1, 9, 5000, dtype=torch.float64)
    logits = reference.double() + 1e-4 * step
    p = reference[0, 3].double().softmax(dim=-1)
    second_order = 1e-8 / 2 * ((p * step[0, 3] ** 2).sum() - (p * step[0, 3]).sum() ** 2)
    assert math.isclose(grade(batch, logits, reference.double())["kl"], second_order, rel_tol=1e-3)


def test_tokens_that_cannot_come_are_no_part_of_the_divergence():
    batch, reference = drawn(1), torch.randn(3, 9, 11)
    reference[..., 7] = -torch.inf
    logits = reference.clone()
    assert grade(batch, logits, reference)["kl"].tolist() == [0, 0, 0]
    logits[..., 2] = -torch.inf
    assert grade(batch, logits, reference)["kl"].tolist() == [math.inf] * 3


def test_nan_is_no_wrong_answer():
    batch, logits = drawn(2), torch.randn(3, 9, 11)
    logits[1, 2] = torch.nan  # predicts position 3, which is asked for
    found = grade(batch, logits, torch.randn(3, 9, 11))
    for values in found.values():
        assert values.isnan().tolist() == [False, True, False]


def test_guessing_among_the_answers_meets_chance(toy):
    task = mqar(toy, pairs=16, count=64)
    (batch,) = task_batches(toy, [task], batch_size=64)
    guesses = torch.full((64, batch.input_ids.shape[1], 2048), -torch.inf)
    torch.manual_seed(0)
    guesses[..., list(task.answers)] = torch.randn(64, batch.input_ids.shape[1], len(task.answers))
    accuracy = grade(batch, guesses)["accuracy"]
    error = math.sqrt(task.chance * (1 - task.chance) / (16 * 64))
    assert abs(float(accuracy.mean()) - task.chance) < 4 * error


@pytest.mark.parametrize("shape", [(3, 8, 11), (2, 9, 11), (9, 11), (3, 10, 11)])
def test_logits_of_another_shape_are_refused(shape):
    batch = dataclasses.replace(drawn(3), asked=torch.arange(9).expand(3, 9) == 4)
    with pytest.raises(BadArgument, match=r"this batch has 3 sequences of 9 positions(.|\n)*the \[3, 1, vocabulary\]"):
        grade(batch, torch.zeros(shape))


def test_a_reference_of_another_shape_is_refused():
    with pytest.raises(BadArgument, match=r"reference is \[3, 9, 12\] and logits are \[3, 9, 11\]"):
        grade(drawn(3), torch.zeros(3, 9, 11), torch.zeros(3, 9, 12))


@pytest.mark.parametrize("tasks", [[], None, ["a text"], Task("alone", ((1, 2),), ((1,),))])
def test_what_is_no_list_of_tasks_is_refused(toy, tasks):
    with pytest.raises(BadArgument, match=r"give a list of at least one qwenlab\.tasks\.Task"):
        next(task_batches(toy, tasks))


def test_names_are_different(toy):
    task = Task("twice", ((1, 2),), ((1,),))
    with pytest.raises(BadArgument, match="several tasks are named 'twice'"):
        next(task_batches(toy, [task, task]))


@pytest.mark.parametrize("token", [2048, -1])
def test_a_token_without_a_row_is_refused(toy, token):
    with pytest.raises(BadArgument, match=r"Task 'other' has tokens from .* the model has rows 0 to 2047"):
        next(task_batches(toy, [Task("other", ((1, token),), ((1,),))]))


def test_a_batch_has_a_size(toy, tasks):
    with pytest.raises(BadArgument, match=r"task_batches\(batch_size=0\)"):
        next(task_batches(toy, tasks, batch_size=0))
