"""Helpers of the map tests: texts of few different tokens, and the comparison of two recordings of them."""

import torch

from qwenlab.probes import ImplicitAttention, SoftmaxAttention
from qwenlab.probes.session import watch
from tests.probes.by_hand import layers_of
from tests.probes.compare import RTOL, assert_same
from tests.probes.reference import Text

LENGTHS = (70, 1, 9, 20, 5, 2, 33, 8, 17, 3)
KINDS = {"implicit_attention": "linear_attention", "softmax_attention": "full_attention"}
POOL = torch.randint(1, 12, (6, 40), generator=torch.Generator().manual_seed(3))  # few tokens: many come again


def both(**options):
    return ImplicitAttention(**options), SoftmaxAttention(**options)


def drawn_texts(model):
    """Ten texts of few different tokens, so that many come again, under two labels in places."""
    drawn = torch.Generator().manual_seed(0)
    out = []
    for number, length in enumerate(LENGTHS):
        tokens = torch.randint(1, 20, (length,), generator=drawn)
        label = [number % 2 if position < 20 else (position // 3) % 2 for position in range(length)]
        out.append((tokens, Text(layers_of(model, tokens), number, label)))
    return out


def seen(model, texts, *probes):
    with watch(model, *probes) as seen, torch.no_grad():
        for tokens, text in texts:
            with seen.label([["ab"[label] for label in text.label]]):
                model(input_ids=tokens[None])
    return seen.recording()


def assert_alike(first, second, rtol=RTOL):
    """The same statistics and weights; the distance from the kernel's output is of rounding alone."""
    one, other = ({node: said(each[node]).fillna(0) for node in each} for each in (first, second))
    assert_same(one, other, rtol)


def said(dataset):
    """The Dataset without what the comparison with the kernel leaves."""
    return dataset.drop_vars(["gap_square_sum", "out_square_sum"], errors="ignore")


def by_row(node):
    """(text, position) -> weights [layer, head, key]"""
    places = zip(node["text"].values.tolist(), node["position"].values.tolist(), strict=True)
    return {place: node["weight"].values[:, :, row, : place[1] + 1] for row, place in enumerate(places)}
