"""Caches that were begun elsewhere, copied, cropped or reset: carried state is dropped rather than wrong."""

import copy

import numpy as np
import pytest
import torch

from qwenlab.checkpoint.decoder import decoder_of
from qwenlab.errors import AmbiguousSequences
from qwenlab.interventions import Scale, intervene
from qwenlab.probes import (
    Attention,
    DeltaNet,
    ImplicitAttention,
    Residual,
    Retention,
    Routing,
    SoftmaxAttention,
    StatePrecision,
)
from qwenlab.probes.session import watch
from qwenlab.probes.states.pairs import slot_of
from tests.probes import reference
from tests.probes.by_hand import Layer, layers_of
from tests.probes.compare import assert_same, assert_says
from tests.probes.feeding import one_by_one, pieces, recorded
from tests.probes.reference import Text

ALL = (
    lambda: DeltaNet(every=2, prediction_heads="all"),
    lambda: Attention(every=3),
    lambda: Routing(every=2),
    lambda: Residual(every=5),
)


def read(model, tokens, cache, widths):
    for start, stop in pieces(len(tokens), widths, 0):
        cache = model(tokens[None, start:stop], past_key_values=cache, use_cache=True).past_key_values
    return cache


@pytest.mark.parametrize("widths", [(200,), (1,), (1, 5), (9, 1, 1, 40)])
def test_a_cache_that_was_begun_before_the_block(small, text, widths):
    """Positions, states and attention go back to its beginning; pairs and windows only to the block's."""
    tokens, before = text(100), 21
    with torch.no_grad():
        cache = read(small, tokens[:before], None, (before,))
    result = recorded(
        small, lambda model, seen: read(model, tokens[before:], cache, widths), *(probe() for probe in ALL)
    )
    texts = [Text(layers_of(small, tokens), number=0, label=[0] * 100, first=before)]
    assert_says(result["deltanet"], reference.deltanet(texts, every=2))
    assert_says(result["attention"], reference.attention(texts, every=3))
    assert_says(result["routing"], reference.routing(texts, every=2))
    assert_says(result["residual"], reference.residual(texts, every=5))


def test_a_copy_of_a_cache_holds_a_new_sequence(small, text):
    tokens = text(30)

    def feed(model, seen):
        cache = read(model, tokens[:20], None, (20,))
        read(model, tokens[20:], copy.deepcopy(cache), (4,))

    result = recorded(small, feed)["routing"]
    assert result["tokens"].sel(layer=0, label="all").values[:2].tolist() == [20, 10]
    assert result["pairs"].sel(layer=0, label="all").values[:2].tolist() == [19, 9]


@pytest.mark.parametrize("back", [1, 3, 11])
@pytest.mark.parametrize("widths", [(1,), (5,), (64,)])
def test_after_a_crop_no_pair_and_no_window_reaches_back(small, text, back, widths):
    """transformers does not put a recurrent state back, so what the tokens after the crop are is its own affair."""
    tokens, more = text(60), text(40, 1)

    def feed(model, seen):
        cache = read(model, tokens[:50], None, (50,))
        cache.activate_past_recording()
        read(model, tokens[50:], cache, (10,) if back < 11 else (1,))
        for layer in cache.layers:
            if hasattr(layer, "keys"):
                layer.crop(-back)
        read(model, more, cache, widths)

    def parts(chosen):
        return (0, chosen[:60]), (60 - back, np.concatenate([chosen[: 60 - back], chosen[60:]]))

    result = recorded(small, feed)
    assert_turns_over(result, [parts(chosen) for chosen in choices(small, feed)], numbers=(0, 0))
    assert int(result["deltanet"]["sequences"].sum()) == 1


def cropped(tokens, more, back):
    """Feed these tokens, crop the last `back` of them, and feed more."""

    def feed(model, seen):
        cache = read(model, tokens[:-5], None, (64,))
        cache.activate_past_recording()
        read(model, tokens[-5:], cache, (5,))
        for layer in cache.layers:
            if hasattr(layer, "keys"):
                layer.crop(-back)
        read(model, more, cache, (64,))

    return feed


def test_after_a_crop_no_pair_that_was_stored_before_is_asked_for(small, text):
    result = recorded(small, cropped(text(20), text(9, 1), 3), Retention(every=1, pairs=1))["retention"]
    queried = sum(
        first <= s <= t < slot_of(np.array(s), 1, np.array(0))[1]
        for first, last in ((0, 20), (17, 26))
        for t in range(first, last)
        for s in range(first, last)
    )
    assert result["pairs_by_distance"].sum(["label", "fold", "layer", "distance_bin"]).values.tolist() == [queried] * 4


def test_after_a_crop_no_row_is_measured_whose_earlier_tokens_are_not_known(small, text):
    """A DeltaNet state is not put back by a crop: what it holds is of tokens that are gone. Attention's keys are."""
    tokens, more = text(20) % 6 + 1, text(9, 1) % 6 + 1  # few, so that they come again
    probes = ImplicitAttention(every=1, queries="all"), SoftmaxAttention(every=1)
    result = recorded(small, cropped(tokens, more, 3), *probes)
    implicit, softmax = result["implicit_attention"], result["softmax_attention"]
    assert int(implicit["tokens"].sum()) == implicit.sizes["row"] == 20
    assert float((implicit["gap_square_sum"].sum() / implicit["out_square_sum"].sum()) ** 0.5) < 1e-5
    once = recorded(small, one_by_one([tokens]), ImplicitAttention(every=1, queries="all"))["implicit_attention"]
    np.testing.assert_allclose(implicit["weight"], once["weight"], atol=1e-6)
    assert int(softmax["tokens"].sum()) == 29
    before = recorded(small, one_by_one([tokens]), SoftmaxAttention(every=1))["softmax_attention"]
    assert int(softmax["induction_rows"].sum()) == int(before["induction_rows"].sum()) > 5


def test_after_a_crop_no_error_of_low_precision_goes_on(small, text):
    """States are rounded after position 19; two of the three tokens that were taken back are read again."""
    probe = StatePrecision(every=1, after=20, formats=["int8"])
    result = recorded(small, cropped(text(20), text(2, 1), 3), probe)["state_precision"]
    once = recorded(small, one_by_one([text(20)]), probe)["state_precision"]
    assert result["tokens"].sum() == 22
    assert once["error_sum"].sum() > 0
    np.testing.assert_allclose(result["error_sum"].sum(), once["error_sum"].sum(), rtol=1e-3)


@pytest.mark.parametrize("columns", [(6, 4, 3, 5), (130, 7, 2, 40)])
def test_padding_between_the_turns_of_a_batch(small, text, columns):
    """Rows of a conversation: some have shorter turns, or none; their tokens follow one another all the same."""
    mask = torch.ones(3, sum(columns), dtype=torch.long)
    first, second, third, _ = np.cumsum(columns)
    mask[0, first - 2 : first] = 0  # a shorter first turn
    mask[1, first:second] = 0  # no second turn
    mask[1, third - 1] = mask[0, third] = 0
    mask[2, : first + 1] = 0  # begins in the second turn
    ids = torch.stack([text(sum(columns), seed) for seed in range(3)])

    def feed(model, seen):
        cache = None
        for stop, width in zip(np.cumsum(columns), columns, strict=True):
            part = ids[:, stop - width : stop]
            cache = model(part, attention_mask=mask[:, :stop], past_key_values=cache, use_cache=True).past_key_values

    def parts(chosen):
        turns = np.split(chosen, 3 * np.cumsum(columns)[:-1])
        by_row = np.concatenate([turn.reshape(3, -1, 2) for turn in turns], axis=1)
        return [(0, row[real]) for row, real in zip(by_row, mask.bool().numpy(), strict=True)]

    result = recorded(small, feed)
    assert_turns_over(result, [parts(chosen) for chosen in choices(small, feed)], numbers=(0, 1, 2))
    assert result["deltanet"]["sequences"].sel(layer=0, label="all").values[:4].tolist() == [1, 1, 1, 0]
    assert result["attention"]["tokens"].sel(layer=1, label="all").values[:3].tolist() == mask.sum(1).tolist()


def choices(model, feed):
    """By layer, [token, slot] of the experts chosen while `feed` runs, padding included."""
    decoder, result, hooks = decoder_of(model), {}, []
    for index in decoder.layers_with("router"):
        result[index] = []
        router = decoder.part(index, "router")
        hooks.append(router.register_forward_hook(lambda module, args, out, index=index: result[index].append(out[2])))
    with torch.no_grad():
        feed(model, None)
    for hook in hooks:
        hook.remove()
    return [torch.cat(chosen).numpy() for chosen in result.values()]


def assert_turns_over(result, layers, numbers):
    """What changes from token to token is as in these parts of texts: by layer, (first position read, choices)."""
    texts = [Text([], number, [], first) for number, (first, _) in zip(numbers, layers[0], strict=True)]
    for parts in layers:
        for text, (_, chosen) in zip(texts, parts, strict=True):
            some = np.full((len(chosen), 8), 1 / 8)
            mlp = {"chosen": chosen, "weights": some[:, :2], "probability": some}
            text.layers.append(Layer("", mlp=mlp | dict.fromkeys(("shared_gate", "shared_share"), some[:, 0])))
            text.label = [0] * len(chosen)
    expected = reference.routing(texts)
    for name in ("tokens", "pairs", "repeated_sum", "windows", "distinct_sum", "load", "coactivation"):
        np.testing.assert_array_equal(result["routing"][name].values, expected[name], err_msg=name)


def test_a_batch_of_another_size_holds_new_sequences(small, text):
    def feed(model, seen):
        cache = read(model, text(10), None, (10,))
        cache.reorder_cache(torch.tensor([0, 0]))
        model(torch.stack([text(4), text(4, 1)]), past_key_values=cache)

    result = recorded(small, feed)
    assert result.attrs["sequences"] == 3
    assert result["deltanet"]["tokens"].sel(layer=0, label="all").values[:3].tolist() == [10, 4, 4]


def test_caches_are_not_kept_alive(small, text):
    import gc
    import weakref

    references = []

    def feed(model, seen):
        for number in range(3):
            cache = read(model, text(6, number), None, (5,))
            references.append(weakref.ref(cache))
            del cache
        model(text(3)[None], use_cache=False)
        gc.collect()
        assert [ref() for ref in references] == [None] * 3

    assert_same(recorded(small, feed), recorded(small, one_by_one([text(6, 0), text(6, 1), text(6, 2), text(3)])))


BLOCKS = {
    "watch": lambda model: watch(model, DeltaNet()),
    "intervene": lambda model: intervene(model, Scale("layers.0.mlp", by=2)),
}


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_beam_search_is_refused(small, text, block):
    """It reorders rows: a row then continues another sequence than the one that its number says."""
    ids = text(12).reshape(2, 6)
    how = dict(max_new_tokens=6, do_sample=False, pad_token_id=0)
    with (
        pytest.raises(AmbiguousSequences, match=r"were reordered, as beam search does(.|\n)*num_beams=1"),
        block(small),
    ):
        small.generate(ids, num_beams=3, **how)
    with block(small):
        small.generate(ids, num_beams=1, **how)
    small.generate(ids, num_beams=3, **how)


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_rows_of_a_cache_may_not_change_places(small, text, block):
    with torch.no_grad(), block(small):
        cache = small(text(12).reshape(2, 6), use_cache=True).past_key_values
        cache.reorder_cache(torch.tensor([0, 1]))
        with pytest.raises(AmbiguousSequences, match="were reordered"):
            cache.reorder_cache(torch.tensor([1, 0]))
