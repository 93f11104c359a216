"""What heads put on the value asked for, held to loops over every question of every head."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings, strategies as st
from numpy.testing import assert_allclose
from scipy.stats import t as student

from qwenlab import stats
from qwenlab.checkpoint.families import ATTENTION, DELTANET
from qwenlab.errors import BadArgument, MissingVariable, ProbeNotRecorded
from qwenlab.record import Recording

NODES = {DELTANET: ("implicit_attention", [0, 2], 3), ATTENTION: ("softmax_attention", [1], 2)}


def asking(pairs, seed=0):
    """Questions of texts with these numbers of pairs: ` k:7` is three tokens, and so is ` k?7`."""
    rng, found = np.random.default_rng(seed), []
    for text, count in enumerate(pairs):
        value = np.full(max(pairs), -1)
        value[:count] = 3 * np.arange(count) + 2
        found += [(text, 3 * count + 3 * at + 2, pair, value) for at, pair in enumerate(rng.permutation(count))]
    names = ("text", "query", "asked", "value")
    dims = {"value": ("question", "pair")}
    columns = zip(names, zip(*found, strict=True), strict=True)
    return xr.Dataset({name: (dims.get(name, "question"), np.array(each)) for name, each in columns})


def kept(kind, questions, seed=0):
    """A node with the rows of these questions, in another order, and some that are of none."""
    _, layers, heads = NODES[kind]
    rng = np.random.default_rng(seed)
    wanted = set(zip(questions["text"].values.tolist(), questions["query"].values.tolist(), strict=True)) | {(0, 1)}
    rows = sorted(wanted)
    length = 1 + max(position for _, position in rows)
    weight = rng.normal(size=(len(layers), heads, len(rows), length)).astype(np.float32)
    for row, (_, position) in enumerate(rows):
        weight[:, :, row, position + 1 :] = np.nan
    if kind == ATTENTION:
        weight = np.abs(weight)
        weight /= np.nansum(weight, axis=3, keepdims=True)
    text, position = np.array(rows).T
    return xr.Dataset(
        {"weight": (("layer", "head", "row", "key"), weight), "text": ("row", text), "position": ("row", position)},
        {"layer": layers, "kind": ("layer", [kind] * len(layers)), "head": np.arange(heads)},
    )


def recorded(questions, kinds=tuple(NODES), seed=0):
    return Recording({NODES[kind][0]: kept(kind, questions, seed) for kind in kinds}, {})


def slow(node, questions, place, head):
    """Of each question: mass on the value asked for, mean mass on others, whether it has most, uniform mass."""
    found = []
    for number in range(questions.sizes["question"]):
        one = questions.isel(question=number)
        text, query, asked = (int(one[name]) for name in ("text", "query", "asked"))
        (row,) = np.flatnonzero((node["text"].values == text) & (node["position"].values == query))
        size = np.abs(node["weight"].values[place, head, row, : query + 1].astype(np.float64))
        mass = {pair: size[key] / size.sum() for pair, key in enumerate(one["value"].values) if key >= 0}
        own = mass.pop(asked)
        others = list(mass.values())
        found.append((own, np.mean(others), own > max(others), 1 / (query + 1), 1 / (len(others) + 1)))
    return np.array(found)


@pytest.mark.slow
@settings(max_examples=20)
@given(pairs=st.lists(st.integers(2, 5), min_size=2, max_size=5), seed=st.integers(0, 2**32 - 1))
def test_every_number_is_that_of_the_questions(pairs, seed):
    questions = asking(pairs, seed)
    recording = recorded(questions, seed=seed)
    result = stats.retrieval(recording, questions)
    assert result["layer"].values.tolist() == [0, 1, 2]
    assert result["kind"].values.tolist() == [DELTANET, ATTENTION, DELTANET]
    for node, layers, heads in NODES.values():
        for place, layer in enumerate(layers):
            for head in range(heads):
                wanted = slow(recording[node], questions, place, head)
                here = result.sel(layer=layer, head=head)
                for name, values in zip(("retrieval", "control", "picked", "even", "chance"), wanted.T, strict=True):
                    assert_allclose(here[name], values.mean(), err_msg=name)
                assert_allclose(here["advantage"], (wanted[:, 0] - wanted[:, 1]).mean(), atol=1e-12)
    assert result["retrieval"].sel(layer=1, head=2).isnull()  # attention has two heads


def test_intervals_are_of_leaving_a_text_out():
    questions = asking([3, 4, 2, 5])
    recording = recorded(questions)
    result = stats.retrieval(recording, questions, level=0.9).sel(layer=2, head=1)
    values = slow(recording["implicit_attention"], questions, 1, 1)
    difference, text = values[:, 0] - values[:, 1], questions["text"].values
    left_out = np.array([difference[text != one].mean() for one in range(4)])
    error = np.sqrt(3 / 4 * ((left_out - left_out.mean()) ** 2).sum())
    reach = student.ppf(0.95, 3) * error
    assert_allclose(result["advantage_interval"], difference.mean() + np.array([-reach, reach]))
    assert result.attrs["questions"] == 14
    assert result.attrs["texts"] == 4


def test_a_head_that_looks_up_and_one_that_looks_at_all_values_alike():
    questions = asking([4, 4, 4])
    node = kept(DELTANET, questions)
    weight = np.zeros(node["weight"].shape)
    at = list(zip(node["text"].values.tolist(), node["position"].values.tolist(), strict=True))
    for number in range(questions.sizes["question"]):
        one = questions.isel(question=number)
        row = at.index((int(one["text"]), int(one["query"])))
        weight[:, 0, row, int(one["value"][int(one["asked"])])] = -1.0
        weight[:, 1, row, one["value"].values] = 0.5
        weight[:, 2, row, 0] = 1.0
    result = stats.retrieval(node.assign(weight=(node["weight"].dims, weight)), questions).sel(layer=0)
    assert_allclose(result["retrieval"], [1, 0.25, 0])
    assert_allclose(result["control"], [0, 0.25, 0])
    assert_allclose(result["picked"], [1, 0, 0])  # as much as the others is not more
    assert_allclose(result["chance"], 0.25)


def test_a_subset_of_the_stored_questions():
    questions = asking([3, 3, 3, 3])
    recording = recorded(questions)
    half = questions.isel(question=(questions["text"] % 2 == 0).values)
    result = stats.retrieval(recording, half)
    assert (result.attrs["questions"], result.attrs["texts"]) == (6, 2)
    assert_allclose(
        result["retrieval"].sel(layer=0, head=0), slow(recording["implicit_attention"], half, 0, 0)[:, 0].mean()
    )


def test_texts_with_one_pair_are_an_error():
    questions = asking([3, 1])
    with pytest.raises(BadArgument, match=r"Text 1 lists one pair, .*\nUse texts of two pairs or more"):
        stats.retrieval(recorded(questions), questions)


def test_rows_that_were_not_stored():
    questions = asking([3, 3])
    recording = recorded(questions.isel(question=slice(0, 4)))
    message = r"The rows of 2 of 6 questions were not stored; the first is that of the token at position 14 of text 1\."
    with pytest.raises(BadArgument, match=message):
        stats.retrieval(recording, questions)


def test_unreadable_input():
    questions = asking([3])
    blocks = kept(DELTANET, questions).assign_attrs(sample='{"block": 4}')
    with pytest.raises(BadArgument, match=r"means over blocks\.\nStore the rows"):
        stats.retrieval(blocks, questions)
    with pytest.raises(
        MissingVariable, match=r"No asked in `questions`\.\nGive the result of qwenlab\.tasks\.recall_questions"
    ):
        stats.retrieval(recorded(questions), questions.drop_vars("asked"))
    bare = Recording({"implicit_attention": kept(DELTANET, questions).drop_dims("row")}, {})
    with pytest.raises(ProbeNotRecorded, match="No map was stored"):
        stats.retrieval(bare, questions)
