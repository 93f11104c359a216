"""Texts that pass together through each layer give what they give one after the other, bit for bit."""

import time
from contextlib import contextmanager, nullcontext
from functools import partial

import pytest
import torch
import xarray as xr
from hypothesis import given, settings, strategies as st

from qwenlab import probes
from qwenlab.capture.layer_major import Branch, run_layer_major
from qwenlab.checkpoint.decoder import decoder_of
from qwenlab.errors import SiteNotReached
from qwenlab.interventions import Noise, NoKeyRemoval, Zero, intervene
from qwenlab.probes import Residual, watch
from qwenlab.testing.models import tiny_model
from tests.capture.in_turns import (
    LENGTHS,
    assert_identical,
    assert_recordings_are_those_of_one_by_one,
    assert_same_outputs,
    hits,
    one_by_one,
    reads,
    recorded,
    together,
)
from tests.interventions.feeding import of_every_sort
from tests.probes.feeding import batch


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


# --- the same results ---


def test_outputs_and_recordings_are_those_of_one_text_after_the_other(model, texts):
    assert_recordings_are_those_of_one_by_one(
        model, texts, lambda: (probes.defaults(model), probes.thorough(model)), memory=0
    )


def test_a_wrapped_class_gives_the_same(texts):
    wrapped = tiny_model("qwen3_5_moe", wrapped=True, layer_types=["linear_attention", "full_attention"])
    assert_recordings_are_those_of_one_by_one(
        wrapped, texts, lambda: (probes.defaults(wrapped), probes.thorough(wrapped)), memory=0
    )


def test_probes_of_states_and_maps_give_the_same(small, texts, tmp_path):
    def probes_of():
        states = (
            probes.DeltaState(every=5, to=tmp_path / "states.nc"),
            probes.Retention(every=3, pairs=2),
            probes.StatePrecision(every=4),
        )
        maps = probes.ImplicitAttention(every=3), probes.SoftmaxAttention(queries=[2, 4])
        return states, maps

    recorded(small, texts, one_by_one, *probes_of())
    expected = xr.load_dataset(tmp_path / "states.nc")
    assert_recordings_are_those_of_one_by_one(small, texts, probes_of)
    xr.testing.assert_equal(xr.load_dataset(tmp_path / "states.nc"), expected)


def test_a_cache_is_filled_as_in_a_pass_alone(small, texts):
    def run(how):
        with watch(small, probes.Memory(), probes.Routing()) as seen:
            found = how(small, [partial(small, **inputs, use_cache=True) for inputs in texts])
            small(texts[1]["input_ids"][:, :1], past_key_values=found[1].past_key_values)  # its sequence goes on
        return found, seen.recording()

    (found, recording), (expected, recording_alone) = run(together), run(one_by_one)
    assert_identical(recording, recording_alone)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.past_key_values.layers[1].keys, other.past_key_values.layers[1].keys)


@given(
    st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=3), min_size=1, max_size=4),
    st.sampled_from([None, 0, 5000]),
)
@settings(max_examples=8, deadline=None)
def test_any_lengths_and_batches_give_the_same(small, text, groups, memory):
    texts = []
    for lengths in groups:
        ids, mask = batch([text(n, n) for n in lengths], "left")
        texts.append(dict(input_ids=ids, attention_mask=mask))
    assert_recordings_are_those_of_one_by_one(
        small, texts, lambda: ([Residual(every=1)], [probes.Routing()]), memory=memory
    )


def test_timing_leaves_out_the_turns_of_other_texts(small, texts):
    with watch(small, probes.Timing()) as seen:
        together(small, reads(small, texts), layers=lambda layer: sleeping(0.1))
    timing = seen.recording()["timing"].sel(phase="prefill")
    assert (timing["calls"] == len(texts)).all()
    assert timing["seconds"].sum() < timing["model_seconds"]
    assert timing["model_seconds"] < len(texts) * 2 * 0.1  # each waits for two layers


@contextmanager
def sleeping(seconds):
    time.sleep(seconds)
    yield


# --- interventions ---


def fitting(model, text):
    """Interventions that fit texts of any length."""
    return [each for each in of_every_sort(model, text) if type(each).__name__ not in ("Patch", "Resample")]


@pytest.mark.parametrize("memory", [None, 0])
def test_interventions_around_all_calls_act_and_count_the_same(small, texts, text, memory):
    interventions = fitting(small, text)

    def run(how):
        with intervene(small, *interventions) as session, watch(small, Residual(every=1)) as seen:
            found = how(small, reads(small, texts))
        return found, seen.recording(), hits(session)

    found, expected = run(partial(together, memory=memory)), run(one_by_one)
    assert_same_outputs(found[0], expected[0])
    assert_identical(found[1], expected[1])
    assert found[2] == expected[2]


def test_blocks_inside_a_call_act_in_that_call_alone(small, texts, text):
    model, interventions = small, fitting(small, text)

    def run(how):
        notes = {}

        def call(number, inputs):
            session = intervene(model, interventions[number % len(interventions)])
            with session, watch(model, Residual(every=1)) if number % 2 else nullcontext() as seen:
                found = model(**inputs, use_cache=False)
            notes[number] = hits(session), seen and seen.recording()
            return found

        return how(model, [partial(call, *each) for each in enumerate(texts[:4] * 4)]), notes

    (found, notes), (expected, notes_alone) = run(partial(together, memory=0)), run(one_by_one)
    assert_same_outputs(found, expected)
    for number, (counts, recording) in notes_alone.items():
        assert notes[number][0] == counts
        if recording is not None:
            assert_identical(notes[number][1], recording)


def test_a_rule_that_one_call_replaces_may_be_recomputed_in_another(small, texts):
    def replaced():
        with intervene(small, NoKeyRemoval()):
            return small(**texts[0], use_cache=False)

    def watched():
        with watch(small, probes.DeltaNet(prediction_heads="all")) as seen:
            small(**texts[1], use_cache=False)
        return seen.recording()

    assert_identical(together(small, [replaced, watched])[1], watched())


def test_a_call_may_run_another_watched_model_too(small, dense, texts):
    def run(how):
        with watch(small, Residual(every=1)) as seen, watch(dense, Residual(every=1)) as other:

            def call(inputs):
                before = dense(**inputs, use_cache=False).logits
                return before, small(**inputs, use_cache=False).logits, dense(**inputs, use_cache=False).logits

            found = how(small, [partial(call, inputs) for inputs in texts])
        return found, seen.recording(), other.recording()

    (found, recording, other), (expected, alone, other_alone) = run(partial(together, memory=0)), run(one_by_one)
    for one, two in zip(found, expected, strict=True):
        assert all(map(torch.equal, one, two))
    assert_identical(recording, alone)
    # Here the passes of the other model are in another order, so their sequences have other numbers.
    xr.testing.assert_allclose(other["residual"].sum("fold"), other_alone["residual"].sum("fold"))


# --- branches ---


def test_branches_begin_at_a_layer_and_give_what_whole_passes_give(model, texts):
    layers = len(decoder_of(model).layers)
    ran = []

    def call(inputs, *interventions):
        with intervene(model, *interventions) if interventions else nullcontext():
            return model(**inputs, use_cache=False)

    def calls(branch):
        for inputs in texts[:2]:
            of = len(given)
            given.append(partial(call, inputs))
            for layer in range(layers):
                edited = partial(call, inputs, Zero(f"layers.{layer}.mixer"), Noise(f"layers.{layers - 1}.mlp"))
                given.append(Branch(edited, of, layer) if branch else edited)
        return given

    given = []
    expected = one_by_one(model, calls(branch=False))
    counters = [layer.register_forward_hook(lambda *_: ran.append(1)) for layer in decoder_of(model).layers]
    given = []
    found = together(model, calls(branch=True), memory=0)
    for counter in counters:
        counter.remove()
    assert_same_outputs(found, expected)
    assert len(ran) == 2 * (layers + layers * (layers + 1) // 2)


def test_a_layer_may_write_into_its_input(small, texts):
    calls = reads(small, texts[:1]) * 2
    hook = small.model.layers[1].register_forward_pre_hook(lambda module, args: (args[0].mul_(1.5),))
    found, expected = together(small, [calls[0], Branch(calls[1], 0, 1)]), one_by_one(small, calls)
    hook.remove()
    assert_same_outputs(found, expected)


def test_a_watch_inside_a_branch_misses_the_layers_below(small, texts):
    def call(*watched):
        with watch(small, *watched) as seen:
            small(**texts[0], use_cache=False)
        return seen.recording()

    (clean,) = one_by_one(small, [lambda: call(Residual(layers=[1], every=1))])
    clean_call = reads(small, texts[:1])[0]
    _, found = together(small, [clean_call, Branch(lambda: call(Residual(layers=[1], every=1)), 0, 1)])
    assert_identical(found, clean)
    with pytest.raises(SiteNotReached):
        together(small, [clean_call, Branch(lambda: call(Residual(), probes.Timing()), 0, 1)])


# --- order, memory ---


def test_each_layer_is_loaded_once_and_texts_end_one_by_one(small, texts):
    events = []

    @contextmanager
    def load(layer):
        events.append(f"load {layer}")
        yield
        events.append(f"drop {layer}")

    hooks = [
        module.register_forward_hook(lambda *_, name=name: events.append(name))
        for name, module in [
            ("layer 0", small.model.layers[0]),
            ("layer 1", small.model.layers[1]),
            ("head", small.lm_head),
        ]
    ]
    found = run_layer_major(decoder_of(small), reads(small, texts[:2]), layers=load)
    next(found)
    for hook in hooks:
        hook.remove()
    found.close()
    layers = [[f"load {n}", f"layer {n}", f"layer {n}", f"drop {n}"] for n in range(2)]
    assert events == [*layers[0], *layers[1], "head"]


def test_the_model_runs_alone_between_two_results(small, texts):
    expected = one_by_one(small, reads(small, texts))
    with watch(small, Residual(every=1)) as seen:
        found = []
        for result in run_layer_major(decoder_of(small), reads(small, texts)):
            found += [result, small(**texts[0], use_cache=False)]
    assert_same_outputs(found[::2], expected)
    assert_same_outputs(found[1::2], expected[:1] * len(texts))
    tokens = sum(int(inputs.get("attention_mask", inputs["input_ids"] > 0).sum()) for inputs in texts)
    assert int(seen.recording()["residual"]["tokens"].sel(layer=0).sum()) == tokens + len(texts) * LENGTHS[0]


@pytest.mark.parametrize(("memory", "files"), [(None, 0), (0, len(LENGTHS) + 1), (20_000, 2)])
def test_texts_beyond_the_budget_wait_in_files(small, texts, tmp_path, memory, files):
    seen = []

    @contextmanager
    def look(layer):
        yield
        seen.append(len([each for each in tmp_path.rglob("*") if each.is_file()]))

    together(small, reads(small, texts), layers=look, memory=memory, folder=tmp_path)
    assert seen == [files, files]
    assert not list(tmp_path.iterdir())


def test_a_hidden_state_that_somebody_keeps_stays_in_memory(small, texts):
    kept, wrong = [], []
    expected = one_by_one(small, reads(small, texts, output_hidden_states=True))

    @contextmanager
    def look(layer):
        for state, output in zip(kept, expected, strict=False):
            wrong.append(not torch.equal(state, output.hidden_states[1]))
        yield

    hook = small.model.layers[0].register_forward_hook(lambda module, args, out: kept.append(out))
    together(small, reads(small, texts), layers=look, memory=0)
    hook.remove()
    assert wrong == [False] * len(texts)


def test_embeddings_that_the_user_gives_stay_in_memory(small, text):
    given = small.get_input_embeddings()(text(9)[None])
    before = given.clone()

    @contextmanager
    def look(layer):
        assert torch.equal(given, before)
        yield

    calls = [partial(small, inputs_embeds=given, use_cache=False) for _ in range(2)]
    assert_same_outputs(together(small, calls, layers=look, memory=0), one_by_one(small, calls))
