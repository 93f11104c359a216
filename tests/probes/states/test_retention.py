"""Retention matches a float64 loop for any batching; a planted replacement, a planted decay; errors."""

import json
import re
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from numpy.testing import assert_allclose

from qwenlab.capture.sampled_steps import drawn
from qwenlab.errors import BadArgument
from qwenlab.probes import Retention
from qwenlab.probes.session import watch
from qwenlab.probes.states.pairs import slot_of
from tests.probes.compare import assert_same, assert_says
from tests.probes.feeding import in_pieces, one_by_one, padded, recorded
from tests.probes.reference import layers_where, measured

OCTAVES = 22
SUMMED = ("recall", "before", "written", "decayed", "error")


def octave(number):
    return 0 if number < 1 else 1 + int(np.floor(np.log2(number)))


def forgotten_at(token, pairs, number):
    """The first token of the fourth later block that is as old: whose number is divisible by the same power of two."""
    block, power = token // pairs + 1, 1
    while block % (2 * power) == 0 and power < 2**11:
        power *= 2
    later = block + 4 * (2 * power if power < 2**11 else power)
    return drawn(later - 1, pairs, number)


def reference(texts, every, pairs, kept=lambda token, text: True, after=lambda token, text: True):
    where = layers_where(texts, lambda layer: layer.kind == "linear_attention")
    heads = texts[0].layers[where[0]].mixer["beta"].shape[1]
    labels = 1 + max(max(text.label) for text in texts)
    shape = (labels, 8, len(where), heads, OCTAVES)
    out = {f"{name}_by_{by}": np.zeros(shape) for name in SUMMED for by in ("distance", "writes")}
    out |= {f"pairs_by_{by}": np.zeros(shape, int) for by in ("distance", "writes")}
    out["tokens"] = np.zeros(shape[:3], int)
    for text in texts:
        asked = [token for token in text.read if measured(token, every, text) and after(token, text)]
        stored = [token for token in text.read if measured(token, pairs, text) and kept(token, text)]
        for index, layer in enumerate(where):
            mixer = text.layers[layer].mixer
            group = heads // mixer["key"].shape[1]
            for t in asked:
                label, fold = text.group(t)
                out["tokens"][label, fold, index] += 1
                for s in stored:
                    if not s <= t < forgotten_at(s, pairs, text.number):
                        continue
                    for h in range(heads):
                        k, v = mixer["key"][s, h // group], mixer["value"][s, h]
                        back, first = (mixer["state"][at, h].T @ k for at in (t, s))
                        known = np.exp(mixer["g"][s, h]) * mixer["state"][s - 1, h].T @ k if s else 0 * v
                        values = {"recall": back @ v, "before": known @ v, "written": first @ v}
                        values = {name: value / (v @ v) for name, value in values.items()}
                        left = np.exp(mixer["g"][s + 1 : t + 1, h].sum())
                        values["decayed"] = (values["written"] - values["before"]) * left
                        values["error"] = np.linalg.norm(back - v) / np.linalg.norm(v)
                        bins = {"distance": octave(t - s), "writes": octave(mixer["beta"][s + 1 : t + 1, h].sum())}
                        for by, place in bins.items():
                            out[f"pairs_by_{by}"][label, fold, index, h, place] += 1
                            for name, value in values.items():
                                out[f"{name}_by_{by}"][label, fold, index, h, place] += value
    return out


def seen(model, texts, probe):
    with watch(model, probe) as seen, torch.no_grad():
        for tokens, text in texts:
            with seen.label([["ab"[label] for label in text.label]]):
                model(tokens[None])
    return seen.recording()["retention"]


@pytest.mark.parametrize(("every", "pairs"), [(8, 3), (5, 1), (1, 16)])
def test_sums_are_those_of_a_loop_over_tokens(model, texts, every, pairs):
    result = seen(model, texts, Retention(every=every, pairs=pairs))
    assert_says(result, reference([text for _, text in texts], every, pairs))


STORED, ASKED = set(range(0, 280, 3)), set(range(0, 280, 2))


@pytest.mark.parametrize(("every", "pairs"), [(1, 1), (3, 2)])
def test_pairs_of_some_tokens_after_some_tokens(model, texts, every, pairs):
    ids = {text.number: tokens.tolist() for tokens, text in texts}

    result = seen(model, texts, Retention(every=every, pairs=pairs, store_ids=STORED, query_ids=ASKED))
    chosen = [lambda token, text, wanted=wanted: ids[text.number][token] in wanted for wanted in (STORED, ASKED)]
    assert_says(result, reference([text for _, text in texts], every, pairs, *chosen))
    assert json.loads(result.attrs["sample"])["query_ids"] == sorted(ASKED)


def test_tokens_that_never_come_are_asked_nothing(small, text):
    """None stored: as many states asked, of no pair. None asked: nothing measured."""
    for stored, asked, tokens in ((None, [299], 0), ([299], None, 9)):
        probe = Retention(every=1, store_ids=stored, query_ids=asked)
        result = recorded(small, one_by_one([text(9)]), probe)["retention"]
        assert (result["tokens"].sum(), result["pairs_by_distance"].sum()) == (tokens, 0)


POOL = torch.randint(1, 280, (6, 60), generator=torch.Generator().manual_seed(3))


@pytest.mark.slow
@settings(max_examples=20)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    widths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    sizes=st.sampled_from([(1, 1), (3, 2), (16, 4)]),
    stored=st.sampled_from([None, STORED]),
)
def test_any_pieces_of_any_batch_say_what_the_whole_says(small, lengths, widths, sizes, stored):
    texts = [POOL[row, :length] for row, length in enumerate(lengths)]
    probes = [Retention(every=sizes[0], pairs=sizes[1], store_ids=stored) for _ in range(3)]
    whole = recorded(small, one_by_one(texts), probes[0])
    assert_same(recorded(small, in_pieces(texts, widths), probes[1]), whole)
    assert_same(recorded(small, padded(texts, "right"), probes[2]), whole)


@pytest.mark.parametrize("pairs", [1, 16])
def test_of_every_age_as_many_pairs_are_remembered(pairs):
    """After any token: no two in one slot, and about as many in each octave of distance as in any other."""
    number = np.array(5)
    stored = drawn(np.arange(60_000), pairs, number)
    slot, until = slot_of(stored, pairs, number)
    for now in stored[[3, 100, 4_097, 59_999]]:
        alive = (stored <= now) & (now < until)
        assert len(set(slot[alive])) == alive.sum() <= 48
        octaves = np.bincount([octave(d) for d in (now - stored[alive]) // pairs])
        assert octaves.max() <= 5
        assert (octaves[3:-2] >= 1).all()


def planted(model, tokens, **values):
    """Run the model with these in place of what its layers hand to the kernel; Retention of every token."""
    names = vars(sys.modules[type(model).__module__])

    def feed(model, seen):
        heard = names["torch_chunk_gated_delta_rule"]

        def given_ours(query, key, value, g, beta, **more):
            repeated = key.shape[2] // values["key"].shape[2]  # transformers 5.17 repeats key heads before the call
            ours = values["key"].repeat_interleave(repeated, dim=2)
            return heard(query, ours, values["value"], values["g"], values["beta"], **more)

        names["torch_chunk_gated_delta_rule"] = given_ours
        try:
            model(tokens[None])
        finally:
            names["torch_chunk_gated_delta_rule"] = heard

    return recorded(model, feed, Retention(every=1, pairs=1))["retention"].isel(label=0, fold=0, layer=0)


def test_what_the_kernel_was_really_given_is_told(small, text):
    """alpha = beta = 1 and one key: the second value replaces the first, which decay alone would have kept whole."""
    key = torch.zeros(1, 2, 2, 16)
    key[..., 3] = 1
    value = torch.zeros(1, 2, 4, 16)
    value[:, 0, :, 0], value[:, 1, :, 1] = 2, 3
    sums = planted(small, text(2), key=key, value=value, g=torch.zeros(1, 2, 4), beta=torch.ones(1, 2, 4))
    at_1 = sums.isel(distance_bin=1)
    assert at_1["pairs_by_distance"].values.tolist() == [1] * 4
    assert_allclose(at_1["recall_by_distance"], 0, atol=1e-5)
    assert_allclose(at_1["before_by_distance"], 0, atol=1e-5)
    for name in ("written", "decayed"):
        assert_allclose(at_1[f"{name}_by_distance"], 1, atol=1e-5)
    assert_allclose(at_1["error_by_distance"], np.hypot(2, 3) / 2, atol=1e-5)
    assert sums["pairs_by_writes"].isel(writes_bin=1).values.tolist() == [1] * 4


def test_orthogonal_keys_lose_by_decay_alone(small, text):
    """alpha = 0.5 ** (1 / 16): after 8 tokens 2 ** -0.5 is left, and nothing was overwritten."""
    key = torch.eye(16)[None, :10, None].expand(1, 10, 2, 16).contiguous()
    value = torch.ones(1, 10, 4, 16)
    given = dict(key=key, value=value, g=torch.full((1, 10, 4), np.log(0.5) / 16), beta=torch.ones(1, 10, 4))
    sums = planted(small, text(10), **given).isel(distance_bin=4)  # distance 8
    assert sums["pairs_by_distance"].values.tolist() == [1] * 4
    for name in ("recall", "decayed"):
        assert_allclose(sums[f"{name}_by_distance"], 0.5**0.5, rtol=1e-4)
    assert_allclose(sums["written_by_distance"], 1, rtol=1e-4)


def test_memory_does_not_grow_with_the_text(small, text):
    """Token by token through one cache: what is carried of a sequence stays as it is."""
    sizes = []

    def feed(model, seen):
        cache = None
        for piece in text(260).split(20):
            cache = model(piece[None], past_key_values=cache, use_cache=True).past_key_values
            (sequences,) = seen._tracker.caches._sequences.values()
            pairs = [value for value in sequences.carry.values() if hasattr(value, "key")]
            sizes.append([each.key.nbytes + each.value.nbytes for each in pairs])

    recorded(small, feed, Retention(every=8, pairs=1))
    assert len(sizes[0]) == 1
    assert all(size == sizes[0] for size in sizes)


def test_pairs_that_are_none():
    with pytest.raises(BadArgument, match=r"^Retention\(pairs=0\): give an integer number of tokens, 1 or more\.$"):
        Retention(pairs=0)


@pytest.mark.parametrize("ids", [[], [-1], [True], "7", 7])
def test_ids_that_are_none(ids):
    with pytest.raises(BadArgument, match=rf"^Retention\(store_ids={re.escape(repr(ids))}\): give token ids"):
        Retention(store_ids=ids)
    with pytest.raises(BadArgument, match=r"^Retention\(query_ids="):
        Retention(query_ids=ids)


def test_embeddings_have_no_ids(small, text):
    with pytest.raises(BadArgument, match="the model got inputs_embeds"), watch(small, Retention(store_ids=[3])):
        small(inputs_embeds=2 * small.get_input_embeddings()(text(9)[None]))
