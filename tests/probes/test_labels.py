"""Tokens counted by label: one name for all, per sequence, or per token."""

import numpy as np
import torch

from qwenlab.probes import DeltaNet, Memory, Timing
from tests.probes.compare import assert_equal, assert_same
from tests.probes.feeding import batch, one_by_one, padded, recorded


def label_of(recording, label):
    """The part of each variable that one label has."""
    return {
        f"{node}.{name}": recording[node][name].sel(label=label).values
        for node in recording
        for name, variable in recording[node].data_vars.items()
        if "label" in variable.dims
    }


def test_one_name_is_the_default(small, text):
    named = recorded(small, lambda model, seen: [model(text(5)[None])])
    assert named["deltanet"]["label"].values.tolist() == ["all"]
    assert named.attrs["labels"] == '{"all": 5}'


def test_names_in_turn_say_what_each_says_alone(small, text):
    texts = {"code": text(30), "prose": text(21, 1)}

    def feed(model, seen):
        for name, tokens in texts.items():
            with seen.label(name):
                model(tokens[None])

    both = recorded(small, feed)
    assert both.attrs["labels"] == '{"code": 30, "prose": 21}'
    for number, (name, tokens) in enumerate(texts.items()):
        alone = label_of(recorded(small, one_by_one([tokens])), "all")
        for variable, result in label_of(both, name).items():
            by_fold = result.shape[:1] == (8,)
            assert_equal(variable, result, np.roll(alone[variable], number, 0) if by_fold else alone[variable])


def test_a_name_a_sequence_and_a_name_a_token(small, text):
    texts, names = [text(9), text(14, 1), text(3, 2)], ["b", "a", "b"]

    def by_sequence(model, seen):
        with seen.label(names):
            padded(texts, "left")(model, seen)

    def by_token(model, seen):
        ids, mask = batch(texts, "right")
        with seen.label([[name] * 14 for name in names]):
            model(ids, attention_mask=mask)

    def in_turn(model, seen):
        for name, tokens in zip(names, texts, strict=True):
            with seen.label(name):
                model(tokens[None])

    whole = recorded(small, in_turn)
    assert_same(recorded(small, by_sequence), whole)
    assert_same(recorded(small, by_token), whole)
    assert whole["deltanet"]["tokens"].sel(layer=0).sum("fold").values.tolist() == [12, 14]


def test_labels_of_decoded_tokens_and_the_outer_label_again(small, text):
    tokens = text(12)

    def feed(model, seen):
        with seen.label("prompt"):
            cache = model(tokens[None, :6], use_cache=True).past_key_values
            with seen.label("answer"):
                for column in range(6, 11):
                    model(tokens[None, column : column + 1], past_key_values=cache)
            model(tokens[None, 11:], past_key_values=cache)

    def whole(model, seen):
        with seen.label([["prompt"] * 6 + ["answer"] * 5 + ["prompt"]]):
            model(tokens[None])

    fed = recorded(small, feed)
    assert_same(fed, recorded(small, whole))
    assert fed["deltanet"]["sequences"].sel(layer=0, fold=0).values.tolist() == [1, 0]  # by its last token


def test_many_labels(small, text):
    names = [[f"class {token % 13}" for token in range(40)]]

    def feed(model, seen):
        model(text(3)[None])
        with seen.label(names):
            model(text(40)[None])

    result = recorded(small, feed)
    assert result.attrs["labels"].startswith('{"all": 3, "class 0": 4, ')
    one = recorded(small, lambda model, seen: [model(text(3)[None]), model(text(40)[None])])
    for node in one:
        for name, variable in result[node].data_vars.items():
            if "label" in variable.dims:
                assert_equal(name, variable.sum("label").values, one[node][name].sum("label").values)


def test_tokens_are_counted_whatever_the_probes(small, text):
    result = recorded(small, one_by_one([text(5), text(6)]), Timing(), Memory())
    assert (result.attrs["tokens"], result.attrs["sequences"]) == (11, 2)


def test_a_label_without_a_token_is_there_with_zeros(small, text):
    ids, mask = batch([text(2), text(5)], "right")

    def feed(model, seen):
        with seen.label([["a", "a", "pad", "pad", "pad"], ["a"] * 5]):
            model(ids, attention_mask=mask)

    result = recorded(small, feed, DeltaNet(every=1))
    assert result.attrs["labels"] == '{"a": 7, "pad": 0}'
    assert not result["deltanet"]["beta_hist"].sel(label="pad").any()
    assert torch.tensor(result["deltanet"]["tokens"].sel(label="a").values).sum() == 7
