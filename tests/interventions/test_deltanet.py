"""Interventions on DeltaNet, against the delta rule computed token by token in float64."""

from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from qwenlab.capture.delta_rule import DeltaRuleCall
from qwenlab.checkpoint.decoder import decoder_of
from qwenlab.errors import BadArgument, CannotIntervene, CannotWatch, InterventionNotApplied, MissingPart, UnknownLayer
from qwenlab.interventions import FreezeState, NoConv, NoKeyRemoval, ResetState, StateDtype, Zero, intervene
from qwenlab.interventions.changes import LEAST_DECAY
from qwenlab.interventions.linear_attention import gated_linear_attention
from qwenlab.probes import DeltaNet, DeltaState, ImplicitAttention, Retention, StatePrecision, watch
from qwenlab.testing.models import tiny_model
from tests.interventions import fed
from tests.probes.compare import assert_same
from tests.probes.feeding import in_pieces, one_by_one, recorded


def frozen(after, heads=None):
    def gated(g, beta):
        late = meant(g, np.arange(len(g)) >= after, heads)
        return np.where(late, 0, g), np.where(late, 0, beta)

    return {"gated": gated}


def emptied(every, heads=None):
    def gated(g, beta):
        token = np.arange(len(g))
        return np.where(meant(g, (token % every == 0) & (token > 0), heads), -np.inf, g), beta

    return {"gated": gated}


def meant(g, tokens, heads):
    """bool [token, head]"""
    return tokens[:, None] & np.isin(np.arange(g.shape[1]), range(g.shape[1]) if heads is None else heads)


CASES = {
    "freeze": (FreezeState(4), {0: frozen(4), 1: frozen(4), 2: frozen(4)}),
    "freeze from the start": (FreezeState(0, layers=[1]), {1: frozen(0)}),
    "freeze heads": (FreezeState(5, layers=[0, 2], heads=[1, 3]), {0: frozen(5, [1, 3]), 2: frozen(5, [1, 3])}),
    "reset": (ResetState(3), {0: emptied(3), 1: emptied(3), 2: emptied(3)}),
    "reset at each": (ResetState(1, layers=[0]), {0: emptied(1)}),
    "reset once": (ResetState(7, layers=[2]), {2: emptied(7)}),
    "reset heads": (ResetState(2, layers=[0, 1], heads=[0, 2]), {0: emptied(2, [0, 2]), 1: emptied(2, [0, 2])}),
    "no removal": (NoKeyRemoval(), {layer: {"removal": False} for layer in range(3)}),
    "no removal in one": (NoKeyRemoval(layers=[1]), {1: {"removal": False}}),
    "no convolution": (NoConv(), {layer: {"convolve": False} for layer in range(3)}),
    "no convolution in one": (NoConv(layers=[2]), {2: {"convolve": False}}),
}
WHOLE = ("freeze", "reset", "no removal", "no convolution")


def parametrised(names):
    return pytest.mark.parametrize(
        ("interventions", "by_layer"), [((CASES[n][0],), CASES[n][1]) for n in names], ids=names
    )


@pytest.fixture(scope="module")
def quick():
    return tiny_model("qwen3_5")


@pytest.fixture
def texts(text):
    return [text(length, seed) for seed, length in enumerate(fed.LENGTHS)]


@parametrised(WHOLE)
def test_as_by_hand_however_a_text_is_fed(model, texts, interventions, by_layer):
    fed.assert_by_hand(model, interventions, texts[0], by_layer)
    fed.assert_same_however_fed(model, interventions, texts)


@parametrised([name for name in CASES if name not in WHOLE])
def test_some_layers_and_heads(quick, texts, interventions, by_layer):
    fed.assert_by_hand(quick, interventions, texts[0], by_layer)
    fed.assert_same_however_fed(quick, interventions, texts)


@parametrised([*WHOLE, "reset heads"])
def test_gradient(quick, texts, interventions, by_layer):
    fed.assert_gradient(quick, interventions, texts[0])


@parametrised(CASES)
def test_nothing_is_left(quick, texts, interventions, by_layer):
    fed.assert_nothing_left(quick, interventions, texts[0])


def test_several_at_once(quick, texts):
    """Freezing comes after emptying, so from there on nothing is emptied; both under another rule."""
    interventions = (ResetState(3), FreezeState(7), NoKeyRemoval(), NoConv())

    def gated(g, beta):
        g, beta = emptied(3)["gated"](g, beta)
        return frozen(7)["gated"](g, beta)

    how = {"gated": gated, "removal": False, "convolve": False}
    fed.assert_by_hand(quick, interventions, texts[0], dict.fromkeys(range(3), how))
    fed.assert_same_however_fed(quick, interventions, texts)
    nested = (NoKeyRemoval(), ResetState(3))
    with intervene(quick, nested[0]):
        within = fed.alone(quick, nested[1:], texts[0])
    with intervene(quick, nested[1]):
        around = fed.alone(quick, nested[:1], texts[0])
    for each in (within, around):
        fed.close(each, fed.alone(quick, nested, texts[0]))


@pytest.mark.slow
@pytest.mark.parametrize("lengths", [(3, 3), (3, 5), (5, 3), (2, 7)])
@pytest.mark.parametrize("heads", [None, [1, 3]])
@pytest.mark.parametrize("nested", [False, True])
def test_emptied_twice(quick, texts, lengths, heads, nested):
    """By two interventions, in one block or in two: before the tokens of either."""
    first, second = ResetState(lengths[0]), ResetState(lengths[1], heads=heads, layers=[0, 1, 2])

    def both(g, beta):
        return emptied(lengths[1], heads)["gated"](*emptied(lengths[0])["gated"](g, beta))

    by_layer = {layer: {"gated": both} for layer in range(3)}
    with intervene(quick, first) if nested else nullcontext():
        fed.assert_by_hand(quick, [second] if nested else [first, second], texts[0], by_layer)
        fed.assert_same_however_fed(quick, [second] if nested else [first, second], texts)


def test_a_layer_has_one_rule(quick, texts):
    def plainly(*layers):
        return {layer: {"removal": False} for layer in layers}

    message = (
        r"^NoKeyRemoval\(layers=\[1, 2\]\): NoKeyRemoval\(layers=\[0, 1\]\) already replaces the delta rule of "
        r"one of these layers\.\nLeave one of the two out, or choose different layers for them\.$"
    )
    one, other = NoKeyRemoval(layers=[0, 1]), NoKeyRemoval(layers=[1, 2])
    with pytest.raises(CannotIntervene, match=message), intervene(quick, one, other):
        pass
    with intervene(quick, one):
        with pytest.raises(CannotIntervene, match=message), intervene(quick, other):
            pass
        fed.assert_by_hand(quick, [NoKeyRemoval(layers=[2])], texts[0], plainly(0, 1, 2))
    fed.assert_by_hand(quick, [other], texts[0], plainly(1, 2))


@pytest.mark.slow
@pytest.mark.parametrize("length", [1, 2, 5, 24, 63, 64, 100])
@pytest.mark.parametrize("heads", [None, [0, 3]])
def test_emptying_costs_no_digits(quick, text, length, heads):
    """Of the layer's output, against float64; with one sum of decays over a chunk it would be 1e-4 at a length of 2."""
    tokens, decoder = text(300), decoder_of(quick)
    mixer, interventions = decoder.mixer(0), (ResetState(length, layers=[0], heads=heads),)
    with intervene(quick, *interventions):
        given = fed.by_hand.inputs_of(quick, tokens)[0]
    expected = fed.by_hand.deltanet(mixer, given["mixer"], **emptied(length, heads))["out"]
    plain = fed.by_hand.inputs_of(quick, tokens)[0]
    noise = error(plain["added"]["mixer"], fed.by_hand.deltanet(mixer, plain["mixer"])["out"])
    assert error(given["added"]["mixer"], expected) < 4 * noise


def error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@given(st.integers(1, 150), st.integers(0, 2**31), st.booleans())
def test_linear_attention_is_its_loop(length, seed, begun):
    """[batch 2, length, 2 key heads or 4 heads, 6 or 5 channels]"""
    draw = torch.Generator().manual_seed(seed)
    query, key = (torch.randn(2, length, 2, 6, generator=draw) for _ in range(2))
    value, g = torch.randn(2, length, 4, 5, generator=draw), -4 * torch.rand(2, length, 4, generator=draw) ** 3
    beta = torch.rand(2, length, 4, generator=draw)
    state = torch.randn(2, 4, 6, 5, generator=draw) if begun else None
    out, after = gated_linear_attention(DeltaRuleCall(query, key, value, g, beta), state)
    held = np.zeros((2, 4, 6, 5)) if state is None else state.double().numpy()
    q, k = (fed.by_hand.unit(each.double().numpy()).repeat(2, axis=2) for each in (query, key))
    expected = np.zeros((2, length, 4, 5))
    for t in range(length):
        write = k[:, t, :, :, None] * (beta[:, t, :, None] * value[:, t]).double().numpy()[:, :, None]
        held = held * np.exp(g[:, t].double().numpy())[..., None, None] + write
        expected[:, t] = (q[:, t, :, None] @ held)[:, :, 0] / np.sqrt(6)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(after, held, rtol=1e-4, atol=1e-5)


def test_no_state_is_made_where_none_is_asked_for(small, text):
    """As the rule: the last state only with a cache; the output in the type of the queries."""
    seen = []

    def listen(call, rule, args, kwargs, reading):
        seen.append(rule(*args, **kwargs))
        return seen[-1]

    class Listening(NoKeyRemoval):
        def place(self, points):
            super().place(points)
            points.replace_rule(0, "there", listen)

    half = tiny_model("qwen3_5", layer_types=["linear_attention", "full_attention"]).bfloat16()
    for model, kind in ((small, torch.float32), (half, torch.bfloat16)):
        with torch.no_grad(), intervene(model, Listening()):
            model(text(4)[None], use_cache=False)
            model(text(4)[None], use_cache=True)
        (out, none), (_, state) = seen
        assert out.dtype == kind and none is None and state.dtype == torch.float32
        seen.clear()


class TestStateDtype:
    """Its numbers are tested with the formats, in tests/probes/states/test_precision.py."""

    def test_only_some_layers(self, moe, text):
        with torch.no_grad(), intervene(moe, StateDtype("int8", layers=[1])) as session:
            cache = moe(text(5)[None], use_cache=True).past_key_values
        plain = moe(text(5)[None], use_cache=True).past_key_values
        same = [torch.equal(state_of(cache, layer), state_of(plain, layer)) for layer in range(3)]
        assert same == [True, False, True]
        assert session.hits["StateDtype('int8', layers=[1])"][0].acted == 1

    def test_a_pass_without_a_cache_is_none_of_its(self, moe, text):
        with (
            pytest.raises(InterventionNotApplied, match=r"^StateDtype\('int8'\) never acted"),
            intervene(moe, StateDtype("int8")),
        ):
            moe(text(5)[None], use_cache=False)

    def test_a_watch_knows_what_a_step_begins_with(self, small, text):
        """What a state predicts, in a decode: of the rounded one, also where steps are reduced together."""
        probes = lambda: DeltaNet(every=1, prediction_heads=8)  # noqa: E731
        with intervene(small, StateDtype("int8")):
            found = recorded(small, in_pieces([text(12)], [4, *[1] * 8]), probes())["deltanet"]
            one = sum(
                recorded(small, feed, probes())["deltanet"]["error_ratio_sum"].sum() for feed in single(small, text(12))
            )
        assert float(found["error_ratio_sum"].sum()) == pytest.approx(float(one), rel=1e-5)


def single(model, tokens):
    """The same text, each call in a watch of its own."""
    held = None

    def feed(model, seen, start=0, stop=4):
        nonlocal held
        out = model(tokens[None, start:stop], past_key_values=held, use_cache=True)
        held = out.past_key_values

    yield feed
    for start in range(4, len(tokens)):
        yield lambda model, seen, start=start: feed(model, seen, start, start + 1)


def state_of(cache, layer):
    held = cache.layers[layer].recurrent_states
    return next(iter(held.values())) if isinstance(held, dict) else held


class TestWatching:
    """A watch shows the changed pass, or raises."""

    @pytest.mark.parametrize(
        "interventions", [(FreezeState(6),), (ResetState(4),), (ResetState(2, heads=[1]),), (NoConv(),)]
    )
    def test_states_are_those_of_the_changed_rule(self, small, text, interventions):
        """Token by token and at once; each is held to the kernel's own last state and output besides."""
        probes = lambda: (DeltaNet(every=1, prediction_heads=8), DeltaState(every=1), ImplicitAttention(every=1))  # noqa: E731
        with intervene(small, *interventions):
            whole = recorded(small, one_by_one([text(20)]), *probes())
            steps = recorded(small, in_pieces([text(20)], [7, 1, 1, 1]), *probes())
        plain = recorded(small, one_by_one([text(20)]), *probes())
        assert_same(whole, steps, rtol=2e-3, but=("gap_square_sum",))
        changed = [not np.allclose(whole[n][v].values, plain[n][v].values, rtol=1e-3) for n, v in SHOWN]
        assert all(changed)

    @pytest.mark.parametrize(
        "probe",
        [partial(DeltaNet, prediction_heads=1), DeltaState, Retention, ImplicitAttention, StatePrecision],
        ids=["DeltaNet", "DeltaState", "Retention", "ImplicitAttention", "StatePrecision"],
    )
    def test_no_probe_shows_a_rule_that_does_not_run(self, small, text, probe):
        message = (
            rf"^{type(probe()).__name__} recomputes the delta rule, but NoKeyRemoval\(\) replaced it; the result would"
        )
        interventions = NoKeyRemoval()
        with pytest.raises(CannotWatch, match=message), intervene(small, interventions), watch(small, probe()):
            small(text(4)[None])
        with pytest.raises(CannotWatch, match=message), watch(small, probe()), intervene(small, interventions):
            small(text(4)[None])
        recorded(small, one_by_one([text(20)]), probe())  # and it is over with the block

    def test_what_needs_no_rule_is_shown(self, moe, text):
        with intervene(moe, NoKeyRemoval(layers=[0])):
            found = recorded(
                moe, one_by_one([text(20)]), DeltaNet(prediction_heads=0, every=1), DeltaState(layers=[1, 2])
            )
        assert found["deltanet"]["beta_sum"].sum() > 0 and found["deltastate"].sizes["layer"] == 2


SHOWN = (("deltanet", "error_ratio_sum"), ("implicit_attention", "mass_sum"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FreezeState(-1), r"^FreezeState\(after=-1\): give an integer number of tokens, 0 or more\.$"),
        (lambda: FreezeState(True), r"^FreezeState\(after=True\): give an integer number of tokens, 0 or more\.$"),
        (lambda: ResetState(0), r"^ResetState\(every=0\): give an integer number of tokens, 1 or more\.$"),
        (
            lambda: ResetState(2, heads=[]),
            r"^ResetState\(heads=\.\.\.\): give at least one integer, each 0 or more",
        ),
        (lambda: NoConv(layers=[-1]), r"^NoConv\(layers=\.\.\.\): give at least one integer, each 0 or more"),
        (lambda: StateDtype("fp4"), r"^StateDtype\(format='fp4'\): give one of 'bfloat16', 'float8_e4m3', 'int8'\."),
    ],
)
def test_arguments_that_are_none(make, message):
    with pytest.raises(BadArgument, match=message):
        make()


ALL = (FreezeState(2), ResetState(2), NoKeyRemoval(), NoConv(), StateDtype("int8"))


@pytest.mark.parametrize("each", ALL, ids=str)
def test_models_and_layers_without_that_part(small, each):
    given = {"layers": [1]} | {n: getattr(each, n) for n in ("after", "every", "format") if hasattr(each, n)}
    with (
        pytest.raises(UnknownLayer, match=r"names layers \[1\]; it changes layers \[0\]"),
        intervene(small, type(each)(**given)),
    ):
        pass
    model = tiny_model("qwen3_5", layer_types=["full_attention"])
    with (
        pytest.raises(MissingPart, match="none of this model's 1 layers has a DeltaNet mixer"),
        intervene(model, each),
    ):
        pass


def test_heads_that_there_are_not(small):
    message = r"^FreezeState\(2, heads=\[4\]\): layers\.0\.mixer has heads 0 to 3; got head 4\.$"
    with pytest.raises(BadArgument, match=message), intervene(small, FreezeState(2, heads=[4])):
        pass


@pytest.mark.parametrize("each", [FreezeState(5), ResetState(5)], ids=str)
def test_texts_too_short_are_an_error(small, text, each):
    with torch.no_grad():
        with pytest.raises(InterventionNotApplied, match="never acted"), intervene(small, each):
            small(text(5)[None])
        with intervene(small, each) as session:
            small(text(6)[None])
    assert [count.acted for count in session.hits[str(each)]] == [1]


def test_a_decay_set_by_hand_empties_too(small, text):
    """`Zero` of all decays is what `ResetState(1)` does but for the first token, where there is nothing to lose."""
    one = fed.alone(small, [Zero("layers.0.mixer.decay")], text(20))
    fed.close(one, fed.alone(small, [ResetState(1)], text(20)))
    assert 0 < LEAST_DECAY < 1e-12
