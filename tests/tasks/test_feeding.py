"""Feeding a model under a watch: each token is read once, in order, however many are decoded."""

import numpy as np
import pytest
import torch

import qwenlab as ql
from qwenlab.errors import BadArgument
from qwenlab.tasks import feed, texts
from qwenlab.tasks.encoding import padded


@pytest.fixture(scope="module")
def toy():
    return ql.open("toy-dense")


@pytest.mark.parametrize(("decode", "one_by_one"), [(0, 0), (1, 1), (5, 5), (1000, 24)])
def test_every_token_is_read_once(toy, decode, one_by_one):
    some = texts("code", 3)
    with ql.watch(toy, ql.probes.Timing(), ql.probes.Residual(layers=[0], every=1)) as seen:
        feed(toy, some, max_tokens=24, batch_size=2, decode=decode)
    recording = seen.recording()
    assert int(recording["residual"]["tokens"].sum()) == 3 * 24
    assert int(recording["timing"]["tokens"].sel(phase="decode")) == one_by_one


def test_no_gradient_is_kept(toy):
    with ql.watch(toy, ql.probes.Memory()) as seen:
        feed(toy, ["one text alone"], decode=1)
    assert seen.recording()["memory"].sizes["context_point"] > 0
    assert all(parameter.grad is None for parameter in toy.model.parameters())


def test_texts_keep_their_order_and_padding_is_masked(toy):
    some, read = ["a b c d e f g", "x", "37 + 45"], []
    inside = toy.model.register_forward_pre_hook(lambda module, args, kwargs: read.append(kwargs), with_kwargs=True)
    try:
        feed(toy, some, batch_size=2, max_tokens=5)
    finally:
        inside.remove()
    rows = [
        tokens[mask.bool()].tolist()
        for batch in read
        for tokens, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    assert [len(batch["input_ids"]) for batch in read] == [2, 1]
    assert rows == [toy.tokenizer(text).input_ids[:5] for text in some]


def test_padding_is_on_the_right():
    ids, mask = padded([[3, 4, 5], (6,)], torch.device("cpu"))
    np.testing.assert_array_equal(ids, [[3, 4, 5], [6, 0, 0]])
    np.testing.assert_array_equal(mask, [[1, 1, 1], [1, 0, 0]])


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (dict(texts=["a text"], decode=-1), r"feed\(decode=-1\): give an integer, 0 or more"),
        (dict(texts=["a text"], batch_size=0), r"feed\(batch_size=0\): give an integer, 1 or more"),
        (dict(texts=[]), r"feed\(checkpoint, texts\): give a list of at least one text"),
        (dict(texts="one string"), "give a list of at least one text"),
        (dict(texts=["a", ""]), r"feed: texts \[1\] have no tokens"),
    ],
)
def test_wrong_arguments_are_errors(toy, given, why):
    with pytest.raises(BadArgument, match=why):
        feed(toy, **given)
