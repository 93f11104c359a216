"""Texts that pass together through each layer give what they give one after the other, bit for bit."""

import gc
from contextlib import contextmanager, nullcontext
from functools import partial

import greenlet
import pytest
import torch
import xarray as xr
from hypothesis import given, settings, strategies as st

from qwenlab import probes
from qwenlab.capture.layer_major import Branch, run_layer_major
from qwenlab.checkpoint.decoder import decoder_of
from qwenlab.errors import BadArgument, CannotRunLayerMajor, SiteNotReached
from qwenlab.interventions import Noise, Zero, intervene
from qwenlab.probes import Residual, watch
from qwenlab.testing.models import tiny_model
from tests.interventions.feeding import of_every_sort
from tests.probes.feeding import batch
from tests.probes.traces import traces

LENGTHS = (6, 13, 9, 24)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def texts(text):
    """Inputs of texts of several lengths, and of a batch that is padded on the left."""
    ids, mask = batch([text(12, 7), text(20, 8), text(5, 9)], "left")
    return [dict(input_ids=text(n, n)[None]) for n in LENGTHS] + [dict(input_ids=ids, attention_mask=mask)]


def reads(model, texts, **given):
    return [partial(model, **inputs, use_cache=False, **given) for inputs in texts]


def together(model, calls, **options):
    return list(run_layer_major(decoder_of(model), calls, **options))


def one_by_one(model, calls):
    return [call() for call in calls]


def assert_same_outputs(first, second):
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.logits, other.logits)
        assert len(one.hidden_states or ()) == len(other.hidden_states or ())
        assert all(map(torch.equal, one.hidden_states or (), other.hidden_states or ()))


def assert_identical(first, second):
    """Two recordings, but for times."""
    assert list(first) == list(second)
    for node in set(first) - {"timing"}:
        xr.testing.assert_identical(first[node], second[node])
    for name in ("prompts_hash", "interventions", "labels"):
        assert first.attrs[name] == second.attrs[name]


def recorded(model, texts, run, *watched):
    """Outputs and recordings of each group of probes, with a label for each text."""
    with watch(model, *watched[0]) as outer, watch(model, *watched[-1]) as inner:

        def call(number, inputs):
            with outer.label("ab"[number % 2]):
                return model(**inputs, use_cache=False, output_hidden_states=True)

        found = run(model, [partial(call, number, inputs) for number, inputs in enumerate(texts)])
    return found, outer.recording(), inner.recording()


def assert_recordings_are_those_of_one_by_one(model, texts, probes_of, **options):
    expected = recorded(model, texts, one_by_one, *probes_of())
    found = recorded(model, texts, partial(together, **options), *probes_of())
    assert_same_outputs(found[0], expected[0])
    for one, other in zip(found[1:], expected[1:], strict=True):
        assert_identical(one, other)


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
        with watch(small, probes.Memory()) as seen:
            found = how(small, [partial(small, **inputs, use_cache=True) for inputs in texts])
        return found, seen.recording()["memory"]

    (found, memory), (expected, memory_alone) = run(together), run(one_by_one)
    xr.testing.assert_identical(memory, memory_alone)
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
        together(small, reads(small, texts), layers=lambda layer: sleeping(0.05))
    timing = seen.recording()["timing"].sel(phase="prefill")
    assert (timing["calls"] == len(texts)).all()
    assert timing["seconds"].sum() < timing["model_seconds"]
    assert timing["model_seconds"] < len(texts) * 0.05


@contextmanager
def sleeping(seconds):
    import time

    time.sleep(seconds)
    yield


# --- interventions ---


def hits(session):
    return {name: [(each.where, each.reached, each.acted) for each in counts] for name, counts in session.hits.items()}


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


# --- errors ---


@pytest.fixture
def left_behind(small, texts):
    """Whether a run leaves hooks, greenlets or other results behind."""
    expected, before = one_by_one(small, reads(small, texts)), traces(small)

    def check():
        assert traces(small) == before
        assert_same_outputs(one_by_one(small, reads(small, texts)), expected)
        assert_same_outputs(together(small, reads(small, texts)), expected)

    return check


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["layer", "call", "load", "accumulate"])
def test_an_error_ends_all_calls(small, texts, left_behind, error, where):
    ended, runs = [], []

    class Failing(Residual):
        def accumulate(self, *args):
            super().accumulate(*args)
            if where == "accumulate":
                fail()

    def fail(*_):
        runs.append(1)
        if len(runs) >= 3:
            raise error("third")

    def call(number, inputs):
        try:
            with intervene(small, Zero("layers.1.mixer")):
                found = small(**inputs, use_cache=False)
                if where == "call":
                    fail()
                return found
        finally:
            ended.append(number)

    @contextmanager
    def load(layer):
        if where == "load":
            runs.append(1)
            fail()
        yield

    hook = small.model.layers[1].mlp.register_forward_hook(fail if where == "layer" else lambda *_: None)
    session, session_2 = watch(small, Failing(every=1)), intervene(small, Zero("layers.0.mlp"))
    with pytest.raises(error, match="third"), session, session_2:
        together(small, [partial(call, *each) for each in enumerate(texts)], layers=load, memory=0)
    hook.remove()
    assert sorted(ended) == list(range(len(texts)))
    assert hits(session_2)["Zero('layers.0.mlp')"] == [
        ("layers.0.mlp", 3, 3) if where == "call" else ("layers.0.mlp", 0, 0)
    ]
    left_behind()


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch, for looking at all objects
def test_closing_the_iterator_ends_all_calls(small, texts, left_behind):
    found = run_layer_major(decoder_of(small), reads(small, texts))
    next(found)
    greenlets = [each for each in gc.get_objects() if type(each) is greenlet.greenlet]
    assert sum(map(bool, greenlets)) == len(texts)  # those that wait, and the main one
    found.close()
    assert [each for each in greenlets if each] == [greenlet.getcurrent()]
    left_behind()


def test_a_call_that_catches_its_end_cannot_go_on(small, texts, left_behind):
    def stubborn():
        try:
            return small(**texts[0], use_cache=False)
        except BaseException:
            return small(**texts[0], use_cache=False)

    def fails():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        together(small, [stubborn, fails])
    left_behind()


def cached(small, texts):
    cache = small(**texts[0], use_cache=True).past_key_values
    return lambda: small(texts[0]["input_ids"][:, :1], past_key_values=cache)


def twice(small, texts):
    return lambda: [small(**texts[0], use_cache=False) for _ in range(2)]


def generating(small, texts):
    return lambda: small.generate(**texts[0], max_new_tokens=2)


def with_gradients(small, texts):
    return torch.enable_grad()(reads(small, texts)[0])


def with_another_text(small, texts):
    return Branch(reads(small, texts)[1], 0, 1)


def with_a_cache(small, texts):
    return Branch(partial(small, **texts[0], use_cache=True), 0, 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (cached, "Call 1 of run_layer_major continues a cache"),
        (twice, "runs a second forward pass"),
        (generating, "Call 1 of run_layer_major calls generate"),
        (with_gradients, "Gradients, inference mode or autocast changed"),
        (with_another_text, r"begins with a hidden state \[1, 6, 32\] of another call, and reads a batch of \[1, 13\]"),
        (with_a_cache, "has a cache, which would lack the layers below"),
    ],
)
def test_what_cannot_take_turns_is_an_error(small, texts, left_behind, make, message):
    call = make(small, texts)
    with pytest.raises(CannotRunLayerMajor, match=message):
        together(small, [reads(small, texts)[0], call])
    left_behind()


def test_a_branch_is_not_followed_from_outside(small, texts, left_behind):
    clean, other = reads(small, texts)[:1] * 2
    for block in (watch(small, Residual()), intervene(small, Zero("layers.1.mlp"))):
        with pytest.raises(BadArgument, match="A Branch runs the layers from 1 on"), block:
            together(small, [clean, Branch(other, 0, 1)])
    left_behind()


@pytest.mark.parametrize(
    ("calls", "message"),
    [
        ([], "got no calls"),
        ([3], "Call 0 of run_layer_major is a int"),
        ([print, Branch(print, 2, 1)], r"Branch\(of=2\)"),
        ([print, Branch(print, 0, 2)], r"Branch\(layer=2\)"),
        ([print, Branch(print, 0, 1), Branch(print, 1, 1)], "a branch of a branch"),
    ],
)
def test_calls_are_checked(small, calls, message):
    with pytest.raises(BadArgument, match=message):
        together(small, calls)


def test_a_run_needs_no_gradients_and_no_run_around_it(small, texts):
    with torch.enable_grad(), pytest.raises(BadArgument, match="keeps no graph"):
        together(small, reads(small, texts))
    with pytest.raises(BadArgument, match="inside a call of another one"):
        together(small, [lambda: together(small, reads(small, texts))])
    with pytest.raises(BadArgument, match="memory=-1"):
        together(small, reads(small, texts), memory=-1)
