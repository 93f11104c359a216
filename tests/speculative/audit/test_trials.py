"""Counts of a head's drafts, compared with plain loops over a trace and the models' own distributions."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import qwenlab as ql
from qwenlab.speculative.audit.contract import FIRST_ROW, Contract, read_target_states
from qwenlab.speculative.audit.trials import Trials, random_head
from qwenlab.speculative.draft_chains import draft_chains
from qwenlab.testing.models import tiny_head, tiny_model

LENGTH, DEPTH = 40, 3


@pytest.fixture(scope="module")
def texts(checkpoint):
    texts = ql.tasks.texts("arithmetic", 2) + ql.tasks.texts("code", 1)
    tokens = [checkpoint.tokenizer(text)["input_ids"][: LENGTH - 3 * number] for number, text in enumerate(texts)]
    return [read_target_states(checkpoint.model, torch.tensor(each)) for each in tokens]


def trials(head, texts, seed=0):
    bar = SimpleNamespace(moved=0)
    bar.update = lambda: setattr(bar, "moved", bar.moved + 1)
    return Trials(head, texts, {}, seed, bar)


@torch.no_grad()
def slow_sums(checkpoint, text):
    """Sums [draft, column] by a loop over places, in float64."""
    head, length = checkpoint.mtp, len(text.tokens)
    main = checkpoint.model(text.tokens[None]).logits[0].double()
    logits = np.zeros((length, DEPTH, main.shape[-1]))
    for step in draft_chains(head, text.tokens, text.after, depth=DEPTH):
        logits[step.rows.start : step.rows.stop, step.draft - 1] = step.logits
    sums = np.zeros((DEPTH, 3))
    for row in range(FIRST_ROW, length):
        for draft in range(1, DEPTH + 1):
            place = row + draft - 1
            if place >= length:
                break
            own = main[place].softmax(-1).numpy()
            other = torch.from_numpy(logits[row, draft - 1]).softmax(-1).numpy()
            agreed = own.argmax() == other.argmax()
            sums[draft - 1] += 1, agreed, sum(min(p, q) for p, q in zip(own, other, strict=True))
            if not agreed or place + 1 >= length or int(text.tokens[place + 1]) != own.argmax():
                break
    return sums


def test_sums_are_those_of_plain_loops(checkpoint, texts):
    found = trials(checkpoint.mtp, texts).run(Contract(), depth=DEPTH)
    expected = np.stack([slow_sums(checkpoint, text) for text in texts])
    assert found[..., :2].tolist() == expected[..., :2].tolist()
    np.testing.assert_allclose(found[..., 2], expected[..., 2], rtol=1e-3)
    assert (found[:2, 2, 0] > 5).all(), "the case must have third drafts"


def test_draft_1_equals_that_of_a_trace(checkpoint, texts):
    found = trials(checkpoint.mtp, texts).run(Contract(), depth=1)
    traced = ql.speculative.trace(checkpoint, [text.tokens.tolist() for text in texts], depth=1, progress=False).dataset
    agreed = (traced["draft_token"].isel(draft=0) == traced["target_token"]) & (traced["position"] >= FIRST_ROW)
    for number in range(len(texts)):
        assert found[number, 0, 1] == int((agreed & (traced["text"] == number)).sum())


def test_the_bar_advances_by_text(checkpoint, texts):
    tried = trials(checkpoint.mtp, texts)
    tried.run(Contract(), depth=1)
    assert tried.bar.moved == 3
    tried.controls(Contract())
    assert tried.bar.moved == 3 + 3 * 3


def test_controls_cut_the_link(checkpoint, texts):
    own = trials(checkpoint.mtp, texts).run(Contract(), depth=1)
    controls = trials(checkpoint.mtp, texts).controls(Contract())
    assert list(controls) == ["commonest token", "shuffled hidden", "shifted target", "random head"]
    for name, sums in controls.items():
        assert sums[..., 0].tolist() == own[..., 0].tolist()
        assert sums[..., 1].sum() < 0.7 * own[..., 1].sum(), name


def test_chance_is_the_commonest_argmax(checkpoint, texts):
    found = trials(checkpoint.mtp, texts).controls(Contract())["commonest token"]
    choices = [text.target[FIRST_ROW:].tolist() for text in texts]
    every = [token for each in choices for token in each]
    most = max(every.count(token) for token in set(every))
    assert found[..., 1].sum() == most
    assert np.isnan(found[..., 2]).all()


def test_controls_are_drawn_by_the_seed(checkpoint, texts):
    first, again, other = (trials(checkpoint.mtp, texts, seed).controls(Contract()) for seed in (1, 1, 2))
    for name in ("shuffled hidden", "random head"):
        assert np.array_equal(first[name], again[name]) and not np.array_equal(first[name], other[name])


def test_the_target_is_shifted_by_half_a_text(checkpoint, texts):
    text = texts[0]
    found = trials(checkpoint.mtp, [text]).controls(Contract())["shifted target"]
    length, agreed = len(text.tokens), 0
    with torch.no_grad():
        for step in draft_chains(checkpoint.mtp, text.tokens, text.after, depth=1):
            for row, token in zip(step.rows, step.tokens.tolist(), strict=True):
                agreed += row >= FIRST_ROW and token == int(text.target[(row - length // 2) % length])
    assert found[0, 0, 1] == agreed


@pytest.mark.parametrize("family", ["qwen3_5", "qwen3_5_moe"])
def test_a_random_head_has_the_shape_and_nothing_else(family):
    head = tiny_head(tiny_model(family))
    state = torch.get_rng_state()
    drawn, again, other = (random_head(head, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert drawn.target_model is head.target_model
    for name, weight in head.named_parameters():
        new = drawn.get_parameter(name)
        assert new.shape == weight.shape and new.dtype == weight.dtype
        assert torch.equal(new, again.get_parameter(name))
        if weight.ndim == 1:
            assert not new.any()
        else:
            assert not torch.equal(new, other.get_parameter(name))
            assert float(new.std()) == pytest.approx(head.config.initializer_range, rel=0.3)
