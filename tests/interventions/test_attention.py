"""Interventions on attention, against tables of probabilities computed in float64 from their docstrings."""

import sys
import weakref
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from transformers import StaticCache

from qwenlab.capture.wrapping import listening
from qwenlab.errors import BadArgument, CannotIntervene, CannotWatch, InterventionNotApplied, MissingPart, UnknownLayer
from qwenlab.interventions import NoSink, Scale, Window, intervene
from qwenlab.probes import Attention, SoftmaxAttention, watch
from qwenlab.testing.models import tiny_model
from tests.interventions import fed
from tests.probes import by_hand, reference
from tests.probes.compare import assert_says
from tests.probes.feeding import in_pieces, one_by_one, padded, recorded


def windowed(tokens, heads=range(99)):
    return {"sees": lambda head, query, key: head not in heads or query - key < tokens}


def sinkless(heads=range(99)):
    return {"sees": lambda head, query, key: head not in heads or key > 0 or query == 0}


CASES = {
    "window": ((Window(4),), windowed(4)),
    "window of one": ((Window(1),), windowed(1)),
    "window of heads": ((Window(2, heads=[0, 3]),), windowed(2, [0, 3])),
    "no sink": ((NoSink(),), sinkless()),
    "no sink of heads": ((NoSink(heads=[1]),), sinkless([1])),
    "both": (
        (NoSink(), Window(6, layers=[3])),
        {"sees": lambda head, query, key: query - key < 6 and (key > 0 or query == 0)},
    ),
}
cases = pytest.mark.parametrize(("interventions", "how"), CASES.values(), ids=CASES)
whole = pytest.mark.parametrize(
    ("interventions", "how"), [CASES[n] for n in ("window", "no sink")], ids=["window", "no sink"]
)


@pytest.fixture(scope="module")
def quick():
    return tiny_model("qwen3_5")


@pytest.fixture(scope="module")
def eager():
    model = tiny_model("qwen3_5")
    model.set_attn_implementation("eager")
    return model


@pytest.fixture
def texts(text):
    return [text(length, seed) for seed, length in enumerate(fed.LENGTHS)]


@whole
def test_as_by_hand_however_a_text_is_fed(model, texts, interventions, how):
    fed.assert_by_hand(model, interventions, texts[0], {3: how})
    fed.assert_same_however_fed(model, interventions, texts)


@cases
def test_in_eager_attention_too(quick, eager, texts, interventions, how):
    """Whose masks are added to the scores."""
    for model in (quick, eager):
        fed.assert_by_hand(model, interventions, texts[0], {3: how})
    fed.close(fed.alone(eager, interventions, texts[0]), fed.alone(quick, interventions, texts[0]))
    fed.assert_same_however_fed(eager, interventions, texts)


@cases
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_static_cache(quick, eager, texts, interventions, how, implementation):
    """It has columns that are not written yet, and its first pass gets no mask."""
    model = eager if implementation == "eager" else quick
    held = StaticCache(config=model.config, max_cache_len=20)
    found = fed.in_pieces(model, interventions, texts[0], [5, 1, 2], held)
    fed.close(found, fed.alone(model, interventions, texts[0]))


@cases
def test_gradient(quick, texts, interventions, how):
    fed.assert_gradient(quick, interventions, texts[0])


@cases
def test_nothing_is_left(quick, texts, interventions, how):
    fed.assert_nothing_left(quick, interventions, texts[0])


def test_no_mask_is_kept_after_a_pass(quick, text):
    """A mask of every query and key: of a long text it would be the largest thing there is."""
    masks = []
    names = vars(sys.modules[type(quick).__module__])["ALL_ATTENTION_FUNCTIONS"]
    hear = lambda args, kwargs, result: masks.append(weakref.ref(kwargs.get("attention_mask", args[-1])))  # noqa: E731
    with torch.no_grad(), intervene(quick, Window(2)):
        name = quick.config._attn_implementation
        with listening(names._local_mapping, name, hear, original=names[name]):
            quick(text(6)[None], use_cache=False)
        assert [mask() for mask in masks] == [None]


def test_a_window_as_wide_as_the_text_hides_nothing(quick, text):
    with torch.no_grad():
        plain = quick(text(6)[None], use_cache=False).logits
        with pytest.raises(InterventionNotApplied, match=r"^Window\(6\) never acted"), intervene(quick, Window(6)):
            assert torch.equal(quick(text(6)[None], use_cache=False).logits, plain)
        with pytest.raises(InterventionNotApplied, match=r"^NoSink\(\) never acted"), intervene(quick, NoSink()):
            quick(text(1)[None])
        with intervene(quick, Window(6)) as session:
            quick(text(7)[None])
        assert session.hits["Window(6)"][0].acted == 1


class TestFlash:
    """A flash-attention implementation takes no such mask; a substitute records the window that it gets."""

    @pytest.fixture
    def flash(self, monkeypatch):
        model = tiny_model("qwen3_5", layer_types=["linear_attention", "full_attention"])
        functions = vars(__import__("sys").modules[type(model).__module__])["ALL_ATTENTION_FUNCTIONS"]
        model.windows = []

        def stand_in(module, query, key, value, attention_mask, sliding_window=None, **kwargs):
            model.windows.append(sliding_window)
            return functions["sdpa"](module, query, key, value, attention_mask, **kwargs)

        monkeypatch.setitem(functions._local_mapping, "flash_attention_2", stand_in)
        monkeypatch.setattr(model.config, "_attn_implementation_internal", "flash_attention_2")
        return model

    def test_gets_a_sliding_window(self, flash, text):
        with torch.no_grad(), intervene(flash, Window(4)):
            cache = flash(text(4)[None]).past_key_values
            flash(text(1)[None], past_key_values=cache)
        assert flash.windows == [None, 4]

    @pytest.mark.parametrize("each", [NoSink(), Window(4, heads=[0])], ids=str)
    def test_refuses_other_masks(self, flash, each):
        message = (
            r"'flash_attention_2' takes no mask per query and key\.\n"
            r'Choose one that does: model\.set_attn_implementation\("sdpa"\)\.$'
        )
        with pytest.raises(CannotIntervene, match=message), intervene(flash, each):
            pass

    def test_is_not_watched_under_a_window(self, flash, text):
        message = "gets a sliding window instead of a mask, so attention probes cannot know which keys are visible"
        with pytest.raises(CannotWatch, match=message), intervene(flash, Window(4)), watch(flash, Attention(every=1)):
            flash(text(9)[None])


class TestWatching:
    """The probes that work probabilities out again know the mask that is in force."""

    @cases
    def test_at_once_in_pieces_and_padded(self, quick, eager, text, interventions, how):
        tokens = [text(13), text(9, 1)]
        read = [mixers_under(quick, interventions, each, number, how) for number, each in enumerate(tokens)]
        attention = reference.attention(read, 1)
        maps = reference.maps(read, tokens, "full_attention", 1)
        for model, feed in (
            (quick, one_by_one(tokens)),
            (quick, padded(tokens, "left")),
            (quick, padded(tokens, "right")),
            (quick, in_pieces(tokens, [5, 1, 1])),
            (eager, in_pieces(tokens, [6, 2, 1, 1])),
        ):
            with intervene(model, *interventions):
                found = recorded(model, feed, Attention(every=1), SoftmaxAttention(every=1))
            assert_says(found["attention"], attention, rtol=1e-3)
            shown = {name: each for name, each in found["softmax_attention"].data_vars.items() if name in maps}
            assert_says(found["softmax_attention"][list(shown)], {name: maps[name] for name in shown}, rtol=1e-3)
            assert {"first_mass_sum", "output_first_sum"} <= set(shown)

    def test_steps_of_which_some_are_changed(self, quick, text):
        """They are reduced together; those before and after the block see everything."""
        tokens, held = text(12), None

        def steps(start, stop, *interventions):
            def feed(model, seen):
                nonlocal held
                with intervene(model, *interventions) if interventions else nullcontext():
                    for column in range(start, stop) if start else [slice(0, stop)]:
                        ids = tokens[column].reshape(1, -1)
                        held = model(ids, past_key_values=held if start else None, use_cache=True).past_key_values

            return feed

        blocks = [steps(0, 5), steps(5, 7), steps(7, 10, Window(2)), steps(10, 12)]
        together = recorded(quick, lambda *given: [feed(*given) for feed in blocks], Attention(every=1))["attention"]
        alone = [recorded(quick, feed, Attention(every=1))["attention"] for feed in blocks]
        for name in ("distance_mass", "entropy_sum", "tokens"):
            found, *parts = (
                each[name].sum([dim for dim in ("label", "fold") if dim in each[name].dims])
                for each in (together, *alone)
            )
            np.testing.assert_allclose(found, sum(parts), rtol=1e-4, atol=1e-5)
        assert alone[2]["distance_mass"][..., 2:].sum() == 0 < alone[3]["distance_mass"][..., 2:].sum()

    def test_a_change_of_the_query_alone_is_no_mask(self, quick, text):
        with intervene(quick, Scale("layers.3.mixer.query", by=0.0)):
            found = recorded(quick, one_by_one([text(8)]), Attention(every=1))["attention"]
        even = sum(1 / (token + 1) for token in range(8))
        np.testing.assert_allclose(found["first_mass_sum"].sum(("label", "fold"))[0], even, rtol=1e-5)


def mixers_under(model, interventions, tokens, number, how):
    """What a model under interventions does with a text, by hand."""
    with intervene(model, *interventions):
        given = by_hand.inputs_of(model, tokens)
    mixer = model.model.layers[3].self_attn
    layer = by_hand.Layer("full_attention")
    layer.mixer = by_hand.attention(mixer, given[3]["mixer"], given[3]["cos"], given[3]["sin"], **how)
    others = [by_hand.Layer("linear_attention") for _ in range(3)]
    return reference.Text([*others, layer], number, [0] * len(tokens))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Window(0), r"^Window\(tokens=0\): give an integer number of tokens, 1 or more\.$"),
        (lambda: Window(-2), r"^Window\(tokens=-2\): .* 1 or more"),
        (lambda: Window(2.5), r"^Window\(tokens=2\.5\): .* 1 or more"),
        (lambda: Window(3, heads=2), r"^Window\(heads=\.\.\.\): 2 is one number; give a list of them, \[2\]"),
        (lambda: NoSink(layers=[]), r"^NoSink\(layers=\.\.\.\): give at least one integer, each 0 or more"),
    ],
)
def test_arguments_that_are_none(make, message):
    with pytest.raises(BadArgument, match=message):
        make()


def test_models_layers_and_heads_without_that_part(quick):
    with pytest.raises(UnknownLayer, match=r"names layers \[0\]; it changes layers \[3\]"):
        intervene(quick, Window(2, layers=[0, 3])).__enter__()
    with pytest.raises(BadArgument, match=r"layers\.3\.mixer has heads 0 to 3; got head 4\."):
        intervene(quick, NoSink(heads=[4])).__enter__()
    model = tiny_model("qwen3_5", layer_types=["linear_attention"])
    with pytest.raises(MissingPart, match="none of this model's 1 layers has a softmax-attention mixer"):
        intervene(model, NoSink()).__enter__()
