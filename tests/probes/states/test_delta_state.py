"""DeltaState matches a float64 loop for any batching; planted states; files; errors."""

import sys
from types import MethodType

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings, strategies as st
from numpy.testing import assert_allclose

from qwenlab.capture.prediction import chunks
from qwenlab.errors import (
    AmbiguousSequences,
    BadArgument,
    CannotMerge,
    KernelMismatch,
    MissingPart,
    NoForwardPass,
    SiteNotReached,
    UnknownLayer,
)
from qwenlab.probes import DeltaNet, DeltaState, Retention, StatePrecision
from qwenlab.probes.bins import octave_of
from qwenlab.probes.session import watch
from qwenlab.probes.states.base import StateSample, state_updates
from qwenlab.probes.states.delta_state import statistics
from qwenlab.testing.models import tiny_model
from tests.capture.test_prediction import drawn
from tests.probes.by_hand import layers_of
from tests.probes.compare import assert_same, assert_says
from tests.probes.feeding import batch, in_pieces, one_by_one, padded, recorded
from tests.probes.reference import Text, layers_where, measured
from tests.probes.test_schema import bytes_held

OCTAVES = 22
STATISTICS = ("norm", "effective_rank", "stable_rank", "largest", "rewrite")


def ranks(state):
    """Norm, effective rank, stable rank and largest singular value of one state."""
    singular = np.linalg.svd(state, compute_uv=False)
    if not singular.any():
        return 0, 0, 0, 0
    share = singular / singular.sum()
    entropy = -sum(p * np.log(p) for p in share if p > 0)
    return np.sqrt((singular**2).sum()), np.exp(entropy), (singular**2).sum() / singular[0] ** 2, singular[0]


def reference(texts, chosen):
    """The Dataset by plain loops; chosen(token, text): whether the state after this token is measured."""
    where = layers_where(texts, lambda layer: layer.kind == "linear_attention")
    heads = texts[0].layers[where[0]].mixer["beta"].shape[1]
    labels = 1 + max(max(text.label) for text in texts)
    shape = (labels, 8, len(where), heads, OCTAVES)
    out = {f"{name}_sum": np.zeros(shape) for name in STATISTICS}
    out |= {"rewrites": np.zeros(shape, int), "tokens": np.zeros((labels, 8, len(where), OCTAVES), int)}
    for text in texts:
        for index, layer in enumerate(where):
            states = text.layers[layer].mixer["state"]
            for token in text.read:
                if not chosen(token, text):
                    continue
                octave = 0 if token == 0 else 1 + int(np.floor(np.log2(token)))
                out["tokens"][(*text.group(token), index, octave)] += 1
                for head in range(heads):
                    place = (*text.group(token), index, head, octave)
                    for name, value in zip(STATISTICS, ranks(states[token, head]), strict=False):
                        out[f"{name}_sum"][place] += value
                    if token:
                        before, change = states[token - 1, head], states[token, head] - states[token - 1, head]
                        out["rewrites"][place] += 1
                        out["rewrite_sum"][place] += np.linalg.norm(change) / np.linalg.norm(before)
    return out


def seen(model, texts, probe):
    with watch(model, probe) as seen, torch.no_grad():
        for tokens, text in texts:
            with seen.label([["ab"[label] for label in text.label]]):
                model(input_ids=tokens[None])
    return seen.recording()["deltastate"]


@pytest.mark.parametrize("every", [1, 7])
def test_sums_are_those_of_a_loop_over_tokens(model, texts, every):
    recording = seen(model, texts, DeltaState(every=every))
    assert_says(recording, reference([text for _, text in texts], lambda token, text: measured(token, every, text)))


def test_given_positions_layers_and_heads(model, texts):
    steps, read = (0, 5, 8, 64, 89, 300), [text for _, text in texts]
    layers, heads = found_layers(model)[1:], [1, 3]
    recording = seen(model, texts, DeltaState(layers=layers, heads=heads, steps=steps))
    expected = reference(read, lambda token, text: token in steps)
    expected = {name: values[:, :, 1:] for name, values in expected.items()}
    assert_says(recording, {name: v if name == "tokens" else v[:, :, :, heads] for name, v in expected.items()})
    assert recording["head"].values.tolist() == heads
    assert recording["layer"].values.tolist() == layers


def found_layers(model):
    return [index for index, kind in enumerate(model.config.layer_types) if kind == "linear_attention"]


def test_states_in_the_file_are_those_of_a_loop_however_they_are_fed(model, texts, tmp_path):
    """Prefill, token by token, and a split of the two: each state to 1e-4 of its norm."""
    tokens, text = texts[0]
    steps = [0, 1, 40, 63, 64, 88, 89]
    feeds = {"prefill": (90,), "decode": (1,), "split": (50, *[1] * 40), "pieces": (7, 1, 3)}
    for name, widths in feeds.items():
        recorded(model, in_pieces([tokens], widths), DeltaState(steps=steps, to=tmp_path / f"{name}.nc"))
        with xr.open_dataset(tmp_path / f"{name}.nc") as saved:
            saved = saved.sortby("position")
            assert saved["position"].values.tolist() == steps
            for index, layer in enumerate(saved["layer"].values):
                expected = text.layers[layer].mixer["state"][steps]
                off = np.linalg.norm(saved["state"].values[:, index] - expected, axis=(-2, -1))
                assert (off <= 1e-4 * np.linalg.norm(expected, axis=(-2, -1))).all(), name


POOL = torch.randint(1, 280, (6, 40), generator=torch.Generator().manual_seed(3))


@pytest.mark.slow
@settings(max_examples=20)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    widths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    every=st.sampled_from([1, 3, 16]),
)
def test_any_pieces_of_any_batch_say_what_the_whole_says(small, lengths, widths, every):
    texts = [POOL[row, :length] for row, length in enumerate(lengths)]
    probes = [DeltaState(every=every) for _ in range(3)]
    whole = recorded(small, one_by_one(texts), probes[0])
    assert_same(recorded(small, in_pieces(texts, widths), probes[1]), whole)
    assert_same(recorded(small, padded(texts, "right"), probes[2]), whole)


def test_two_blocks_merged_are_as_one(small, text):
    texts = [text(length, length) for length in (5, 9, 14, 3, 20)]
    parts = [recorded(small, one_by_one(part), DeltaState(every=1)) for part in (texts[:3], texts[3:], texts)]
    assert_same(parts[0].merge(parts[1]), parts[2])
    with pytest.raises(CannotMerge):
        parts[0].merge(recorded(small, one_by_one(texts), DeltaState(every=2)))


def test_memory_does_not_grow_with_the_texts_read(small, text, tmp_path):
    """Also while whole states are written to a file; of each only the number, the position and the label stay."""
    probes = (DeltaState(every=2, to=tmp_path / "states.nc"), Retention(every=4), StatePrecision(every=4))
    sizes = []

    def feed(model, seen):
        for number in range(24):
            model(text(40, number)[None])
            if number in (0, 23):
                sizes.append([bytes_held(probe) for probe in probes])

    recorded(small, feed, *probes)
    assert sizes[0] == sizes[1]


# Planted states.


def around_all(key, value, alpha, beta):
    """States before and after every token, [token, key channel, channel], of one head."""
    key, value = (torch.as_tensor(np.asarray(each), dtype=torch.float32) for each in (key, value))
    length = len(key)
    g, beta = (
        torch.as_tensor(each, dtype=torch.float32).expand(length) for each in (torch.as_tensor(alpha).log(), beta)
    )
    arguments = (key[None, :, None], value[None, :, None], g[None, :, None], beta[None, :, None])
    number = torch.arange(length)
    width = min(64, length)
    sections = tuple(np.bincount(number // width).tolist())
    chosen = StateSample(torch.zeros_like(number), number, number, torch.ones_like(number), sections)
    updates = [u for n, c in enumerate(chunks(*arguments, None)) for u in state_updates(c, n, chosen, 1)]
    return tuple(torch.cat([getattr(update, name) for update in updates])[:, 0] for name in ("before", "after"))


def test_orthonormal_keys_give_their_number_as_rank():
    rng = np.random.default_rng(0)
    key, value = (np.linalg.qr(rng.normal(size=(12, 12)))[0] for _ in range(2))
    for r in range(1, 13):
        _, after = around_all(key[:r], value[:r], alpha=1.0, beta=1.0)
        values = {name: float(each) for name, each in statistics(after[-1]).items()}
        assert values == pytest.approx(dict(norm=r**0.5, effective_rank=r, stable_rank=r, largest=1), rel=1e-5)


def test_a_repeated_key_holds_the_newest_value_only():
    """alpha = beta = 1: each write replaces the one before."""
    key = np.repeat([[0.0, 1.0, 0.0]], 5, axis=0)
    value = np.random.default_rng(1).normal(size=(5, 4))
    before, after = around_all(key, value, alpha=1.0, beta=1.0)
    for token in range(5):
        assert_allclose(after[token], np.outer(key[0], value[token]), atol=1e-6)
        assert float(statistics(after[token])["effective_rank"]) == pytest.approx(1)
    assert_allclose(before[1:], after[:-1], atol=1e-6)


def test_a_constant_decay_has_its_half_life():
    """alpha = 0.5 ** (1 / 16): 16 tokens that write nothing halve the state, and each takes 1 - alpha of it."""
    alpha = 0.5 ** (1 / 16)
    rng = np.random.default_rng(2)
    key = rng.normal(size=(100, 6))
    key /= np.linalg.norm(key, axis=1, keepdims=True)
    beta = np.where(np.arange(100) < 1, 1.0, 0.0)
    before, after = around_all(key, rng.normal(size=(100, 5)), alpha, beta)
    norm = torch.linalg.vector_norm(after, dim=(1, 2))
    assert_allclose(norm[16:] / norm[:-16], 0.5, rtol=1e-5)
    assert_allclose((before - after).norm(dim=(1, 2))[1:] / before.norm(dim=(1, 2))[1:], 1 - alpha, rtol=1e-4)


def test_an_empty_state_has_no_rank():
    assert {name: float(value) for name, value in statistics(torch.zeros(4, 3)).items()} == dict.fromkeys(
        ("norm", "effective_rank", "stable_rank", "largest"), 0
    )


def test_a_wide_state_is_as_a_tall_one():
    state = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    for name, value in statistics(state).items():
        assert_allclose(value, statistics(state.T)[name], rtol=1e-6)
    assert_allclose(list(statistics(state).values()), ranks(state.double().numpy()), rtol=1e-6)


@settings(max_examples=20)
@given(length=st.sampled_from([1, 5, 64, 130]), factor=st.floats(0.1, 10), seed=st.integers(0, 2**32 - 1))
def test_scaling_the_values_scales_the_states(length, factor, seed):
    key, value, g, beta = (tensor[0, :, 0] for tensor in drawn(1, length, 1, 8, 5, seed))
    _, plain = around_all(key, value, g.exp(), beta)
    _, scaled = around_all(key, factor * value, g.exp(), beta)
    assert_allclose(scaled, factor * plain, rtol=1e-3, atol=1e-5 * factor)
    one, other = statistics(plain), statistics(scaled)
    assert_allclose(other["norm"], factor * one["norm"], rtol=1e-3)
    assert_allclose(other["stable_rank"], one["stable_rank"], rtol=1e-3)


def test_octaves():
    numbers = torch.tensor([0, 1, 2, 3, 4, 7, 8, 2**19, 2**20, 2**40])
    assert octave_of(numbers).tolist() == [0, 1, 2, 2, 3, 3, 4, 20, 21, 21]


def test_a_layout_without_a_period(text):
    kinds = ["linear_attention", "full_attention", "full_attention", "linear_attention", "linear_attention"]
    model = tiny_model("qwen3_5", layer_types=kinds, linear_num_key_heads=1, linear_num_value_heads=3)
    tokens = text(20)
    recording = recorded(model, one_by_one([tokens]), DeltaState(every=1))["deltastate"]
    assert recording["layer"].values.tolist() == [0, 3, 4]
    assert_says(recording, reference([Text(layers_of(model, tokens), 0, [0] * 20)], lambda token, text: True))


# The file.


def test_a_file_holds_every_chosen_state_with_its_token(small, text, tmp_path):
    texts = [text(9, 1), text(20, 2)]
    path = tmp_path / "new folder" / "states.nc"

    def feed(model, seen):
        ids, mask = batch(texts, "left")
        with seen.label(["code", "prose"]):
            model(ids, attention_mask=mask)
        assert not path.exists()

    probe = DeltaState(every=1, to=path)
    recorded(small, feed, probe)
    with xr.open_dataset(path) as saved:
        assert saved["state"].dims == ("token", "layer", "head", "key_channel", "channel")
        assert saved["state"].dtype == np.float32
        assert not saved["state"].isnull().any()
        assert saved["label"].values.tolist().count("code") == 9
        for number, length in ((0, 9), (1, 20)):
            ours = saved.sel(token=saved["sequence"] == number)
            assert ours["position"].values.tolist() == list(range(length))
        assert saved["kind"].values.tolist() == ["linear_attention"]
        assert saved.attrs["probe"] == "DeltaState"
        assert saved.attrs["family"] == "qwen3_5_moe"
        assert "package" not in saved.attrs
    assert list(path.parent.iterdir()) == [path]
    recorded(small, one_by_one(texts), probe)  # a second block replaces it
    assert list(path.parent.iterdir()) == [path]


def test_a_block_that_fails_leaves_the_file_that_was_there(small, text, tmp_path):
    path = tmp_path / "states.nc"
    path.write_text("before")

    def broken(model, seen):
        model(text(9)[None])
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        recorded(small, broken, DeltaState(to=path))
    with pytest.raises(NoForwardPass), watch(small, DeltaState(to=path)):
        pass
    unknown = DeltaNet(layers=[7])
    with pytest.raises(UnknownLayer), watch(small, DeltaState(to=path), unknown):
        small(text(9)[None])
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_without_a_state(small, text, tmp_path):
    recorded(small, one_by_one([text(3)]), DeltaState(steps=[5], to=tmp_path / "states.nc"))
    with xr.open_dataset(tmp_path / "states.nc") as saved:
        assert saved.sizes["token"] == 0


# What is refused.


def test_no_other_layer_has_a_state(moe, dense, text):
    message = r"^DeltaState\(layers=\.\.\.\) names layers \[3\]; it reads layers \[0, 1, 2\] of this model\."
    with pytest.raises(UnknownLayer, match=message), watch(moe, DeltaState(layers=[0, 3])):
        moe(text(5)[None])
    model = tiny_model("qwen3_5", layer_types=["full_attention"])
    message = r"^DeltaState\(\) finds nothing to read: none of this model's 1 layers has a DeltaNet mixer\."
    with pytest.raises(MissingPart, match=message), watch(model, DeltaState()):
        model(text(5)[None])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(every=0), r"^DeltaState\(every=0\): give an integer number of tokens, 1 or more\.$"),
        (
            dict(steps=[]),
            r"^DeltaState\(every=None, steps=\[\]\): give only one of them; steps are positions of tokens in",
        ),
        (dict(steps=[3, -1]), r"steps=\[-1, 3\]"),
        (dict(steps=[3], every=2), r"^DeltaState\(every=2, steps=\[3\]\): give only one of them"),
    ],
)
def test_steps_that_are_none(options, message):
    with pytest.raises(BadArgument, match=message):
        DeltaState(**options)


def test_heads_that_are_not_there(small, text):
    message = r"^DeltaState\(heads=\[1, 4\]\): its layers have heads 0 to 3\.\nLeave `heads` out to read all"
    with pytest.raises(BadArgument, match=message), watch(small, DeltaState(heads=[4, 1])):
        small(text(5)[None])


def test_a_packed_batch(small, text):
    positions = torch.tensor([[0, 1, 2, 0, 1]])
    with pytest.raises(AmbiguousSequences, match="packs several sequences into a row"), watch(small, DeltaState()):
        small(text(5)[None], position_ids=positions)


def test_a_kernel_that_hides_keys_and_values(text):
    model = tiny_model("qwen3_5_moe")
    mixer = model.model.layers[2].linear_attn
    mixer.forward = MethodType(lambda self, hidden_states, **kwargs: hidden_states * 0.5, mixer)
    message = r"layers.2.mixer.decay: 0 of 7 tokens\nA fused whole-layer kernel.*`layers=`"
    with pytest.raises(SiteNotReached, match=message), watch(model, DeltaState()):
        model(text(7)[None])
    with watch(model, DeltaState(layers=[0, 1])):
        model(text(7)[None])


def test_a_kernel_of_another_convention(small, text, monkeypatch):
    modeling = sys.modules[type(small).__module__]
    original = modeling.torch_chunk_gated_delta_rule

    def in_bits(*args, g, **kwargs):
        return original(*args, g=g * 0.6931, **kwargs)

    monkeypatch.setattr(modeling, "torch_chunk_gated_delta_rule", in_bits)
    message = (
        r"^DeltaState\(\) recomputes the state, and its result differs from the kernel's: by [0-9.]+ % of the norm in "
        r"layer 0 .*\n.*: watch with transformers' own kernel, without the intervention\.$"
    )
    with pytest.raises(KernelMismatch, match=message), watch(small, DeltaState()):
        small(text(40)[None], use_cache=True)


def test_the_state_is_the_kernels(model, text):
    recording = recorded(model, lambda model, seen: model(text(150)[None], use_cache=True), DeltaState())["deltastate"]
    assert 0 <= recording.attrs["state_gap"] < 1e-5
    assert recording.attrs["full_rank"] == min(model.config.linear_key_head_dim, model.config.linear_value_head_dim)
