"""What happens to a cache between passes: cropped tokens are counted by label, and rows may not change places."""

import copy
import json
from collections import Counter

import pytest
import torch
from hypothesis import given, settings, strategies as st

import qwenlab as ql
from qwenlab.errors import AmbiguousSequences
from qwenlab.probes import Routing
from qwenlab.speculative import CustomGenerate, ReplayRollback, RerunRollback
from qwenlab.testing.models import tiny_head


def watched(model, feed):
    """The attributes of a recording of `feed(model, seen)`."""
    with torch.no_grad(), ql.watch(model, Routing()) as seen:
        feed(model, seen)
    return seen.recording().attrs


def attention(cache):
    return [layer for layer in cache.layers if hasattr(layer, "keys")]


def by_method(cache, columns):
    for layer in attention(cache):
        layer.crop(-columns)


def by_hand(cache, columns):
    for layer in attention(cache):
        layer.keys, layer.values = layer.keys[..., :-columns, :], layer.values[..., :-columns, :]


def of_copies(cache, columns):
    for layer in attention(cache):
        layer.keys, layer.values = (each[..., :-columns, :].clone() for each in (layer.keys, layer.values))


CROPS = (by_method, by_hand, of_copies)
STEPS = st.lists(
    st.tuples(st.integers(1, 4), st.sampled_from("abc"), st.booleans(), st.integers(0, 3), st.sampled_from(CROPS)),
    max_size=6,
)


@settings(max_examples=25)
@given(STEPS, st.integers(0, 2))
def test_cropped_tokens_are_those_that_are_no_longer_in_the_cache(small, steps, padded):
    """In a batch with padding on the left; labels by pass and by token; before the next pass, and after the last."""
    mask = torch.ones(2, 5, dtype=torch.long)
    mask[1, :padded] = 0
    kept = [["p"] * 5, ["padding"] * padded + ["p"] * (5 - padded)]
    read = Counter(kept[0] + kept[1])

    def feed(model, seen):
        nonlocal mask
        with seen.label("p"):
            cache = model(torch.ones_like(mask), attention_mask=mask, use_cache=True).past_key_values
        for width, label, by_token, cropped, crop in steps:
            labels = [[label] * width, [label if number % 2 else "d" for number in range(width)]]
            mask = torch.cat([mask[:, : cache.get_seq_length()], torch.ones(2, width, dtype=torch.long)], dim=1)
            with seen.label(labels if by_token else label):
                model(torch.ones(2, width, dtype=torch.long), attention_mask=mask, past_key_values=cache)
            for row, more in zip(kept, labels if by_token else [labels[0]] * 2, strict=True):
                row += more
                read.update(more)
            if cropped := min(cropped, cache.get_seq_length() - 1):
                crop(cache, cropped)
                for row in kept:
                    del row[-cropped:]
        if padded:
            seen.recording()  # changes nothing
        feed.cache = cache  # one that was cropped by hand and is gone was not seen

    attrs = watched(small, feed)
    gone = read - Counter(kept[0] + kept[1])
    del read["padding"], gone["padding"]
    assert json.loads(attrs["labels"]) == read
    assert Counter(json.loads(attrs["cropped_labels"])) == gone
    assert attrs["cropped_tokens"] == gone.total()


@pytest.mark.parametrize("rollback", [ReplayRollback, RerunRollback])
def test_drafted_decoding_leaves_the_text_without_its_newest_token(small, text, rollback):
    """Also for the last round, whose cache is gone when the recording is made."""
    drafting = CustomGenerate(tiny_head(small), depth=3, rollback=rollback)
    ids = torch.stack([text(9), text(9, 1)])
    mask = torch.ones_like(ids)
    mask[0, :4] = 0

    def feed(model, seen):
        model.generate(ids, attention_mask=mask, max_new_tokens=8, custom_generate=drafting, pad_token_id=0)

    attrs = watched(small, feed)
    new = int(drafting.ledger["emitted"].sum()) + 2
    rejected = int((drafting.ledger["drafted"] + 1 - drafting.ledger["emitted"]).sum())
    assert attrs["tokens"] - attrs["cropped_tokens"] == int(mask.sum()) + new - 2
    assert rejected > 5
    if rollback is ReplayRollback:
        assert attrs["cropped_tokens"] == rejected


def test_what_happens_to_a_cache_after_the_block_is_not_of_the_block(small, text):
    def feed(model, seen):
        feed.cache = model(text(9)[None], use_cache=True).past_key_values

    with torch.no_grad(), ql.watch(small, Routing()) as seen:
        feed(small, seen)
    by_method(feed.cache, 2)
    assert seen.recording().attrs["cropped_tokens"] == 0


def test_a_cache_that_is_emptied_for_another_text_was_not_cropped(small, text):
    def feed(model, seen):
        cache = model(text(9)[None], use_cache=True).past_key_values
        cache.reset()
        model(text(5, 1)[None], past_key_values=cache)
        cache.reset()

    assert watched(small, feed)["cropped_tokens"] == 0


def test_a_cache_that_is_cropped_to_nothing_was_cropped(small, text):
    def feed(model, seen):
        cache = model(text(9)[None], use_cache=True).past_key_values
        by_method(cache, 9)
        cache.reset()
        model(text(5, 1)[None], past_key_values=cache)

    assert watched(small, feed)["cropped_tokens"] == 9


def test_a_copy_that_is_read_on_makes_it_unknown(small, text):
    """Such as a snapshot from before the drafts, in place of a rollback."""

    def feed(model, seen):
        cache = model(text(9)[None], use_cache=True).past_key_values
        before = copy.deepcopy(cache)
        model(text(3, 1)[None], past_key_values=cache)
        model(text(1, 2)[None], past_key_values=before)

    attrs = watched(small, feed)
    assert (attrs["cropped_tokens"], attrs["cropped_labels"]) == ("unknown", "{}")


def test_other_rows_of_a_cache_make_it_unknown(small, text):
    def feed(model, seen):
        cache = model(text(12).reshape(2, 6), use_cache=True).past_key_values
        cache.reorder_cache(torch.tensor([1]))
        model(text(1)[None], past_key_values=cache)

    assert watched(small, feed)["cropped_tokens"] == "unknown"


def test_copies_of_a_prompt_that_was_read_before_the_block_are_known(small, text):
    with torch.no_grad():
        prompt = small(text(9)[None], use_cache=True).past_key_values

    def feed(model, seen):
        for seed in range(3):
            cache = copy.deepcopy(prompt)
            model(text(4, seed)[None], past_key_values=cache)
        by_method(cache, 2)

    assert watched(small, feed)["cropped_tokens"] == 2


def layers_of_both_kinds(cache, order):
    for layer in cache.layers:
        layer.reorder_cache(order)


def selected(cache, order):
    for layer in cache.layers:
        getattr(layer, "batch_select_indices", layer.reorder_cache)(order)


def selected_by_mask(cache, order):
    for layer in attention(cache):
        layer.batch_select_indices(order.tolist())


def tensors(cache, order):
    for layer in attention(cache):
        layer.keys, layer.values = layer.keys[order], layer.values[order]


def cropped_tensors(cache, order):
    for layer in attention(cache):
        layer.keys, layer.values = layer.keys[order, :, :-2], layer.values[order, :, :-2]


MOVES = (layers_of_both_kinds, selected, selected_by_mask, tensors, cropped_tensors)


@pytest.mark.parametrize("move", MOVES)
def test_rows_may_not_change_places_in_any_way(small, text, move):
    def feed(order):
        def run(model, seen):
            cache = model(text(12).reshape(2, 6), use_cache=True).past_key_values
            move(cache, torch.tensor(order))
            model(text(2).reshape(2, 1), past_key_values=cache)

        return run

    assert watched(small, feed([0, 1]))["sequences"] == 2
    for order in ([1, 0], [0, 0]):
        with pytest.raises(AmbiguousSequences, match="were reordered"):
            watched(small, feed(order))


def test_keys_that_are_changed_by_hand_are_no_other_rows(small, text):
    def feed(model, seen):
        cache = model(text(12).reshape(2, 6), use_cache=True).past_key_values
        for layer in attention(cache):
            layer.keys = layer.keys * 2
        model(text(2).reshape(2, 1), past_key_values=cache)

    assert watched(small, feed)["sequences"] == 2


def test_rows_that_are_repeated_and_then_chosen_are_new_sequences(small, text):
    def feed(model, seen):
        cache = model(text(12).reshape(2, 6), use_cache=True).past_key_values
        for layer in cache.layers:
            if hasattr(layer, "keys"):
                layer.batch_repeat_interleave(2)
                layer.batch_select_indices(torch.tensor([0, 1]))
            else:
                layer.reorder_cache(torch.tensor([0, 0]))
        model(text(2).reshape(2, 1), past_key_values=cache)

    assert watched(small, feed)["sequences"] == 4


def test_several_returned_sequences_are_rows_of_their_own(small, text):
    def feed(model, seen):
        more = dict(do_sample=True, num_return_sequences=3, pad_token_id=0)
        model.generate(text(6)[None], max_new_tokens=4, **more)

    attrs = watched(small, feed)
    assert (attrs["sequences"], attrs["cropped_tokens"]) == (3, 0)
