"""Gates set and scaled: the value that the layer uses is the one that was asked for."""

import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from qwenlab.checkpoint.decoder import decoder_of
from qwenlab.errors import BadArgument, UnknownSite
from qwenlab.interventions import SetGate, Zero, intervene
from qwenlab.interventions.gates import LOWEST, inverse_silu
from qwenlab.probes import Attention, DeltaNet
from qwenlab.testing.models import tiny_model
from tests.interventions import fed
from tests.probes.feeding import one_by_one, recorded

DECAY, BETA, GATE = ("layers.*.mixer.decay", "layers.*.mixer.beta", "layers.*.mixer.gate")


@pytest.fixture(scope="module")
def quick():
    return tiny_model("qwen3_5")


@pytest.fixture
def texts(text):
    return [text(length, seed) for seed, length in enumerate(fed.LENGTHS)]


def silu(x):
    return x / (1 + np.exp(-x))


RULES = {
    "decay": (SetGate(DECAY, to=0.25), lambda g, beta: (np.full_like(g, math.log(0.25)), beta)),
    "no decay": (SetGate(DECAY, to=1), lambda g, beta: (0 * g, beta)),
    "less decay": (SetGate(DECAY, scale=1.5), lambda g, beta: (np.minimum(g + math.log(1.5), 0), beta)),
    "half": (SetGate(DECAY, scale=0.5), lambda g, beta: (g + math.log(0.5), beta)),
    "beta": (SetGate(BETA, to=0.3), lambda g, beta: (g, 0 * beta + 0.3)),
    "no writes": (SetGate(BETA, to=0), lambda g, beta: (g, 0 * beta)),
}


@pytest.mark.parametrize(("each", "gated"), RULES.values(), ids=RULES)
def test_decay_and_beta(model, texts, each, gated):
    fed.assert_by_hand(model, [each], texts[0], {layer: {"gated": gated} for layer in range(3)})


def test_beta_is_clipped_at_the_largest_that_the_model_can_have(model, texts):
    largest = 1 + getattr(model.config, "linear_allow_neg_eigval", False)
    how = {"gated": lambda g, beta: (g, np.minimum(3 * beta, largest))}
    fed.assert_by_hand(model, [SetGate(BETA, scale=3)], texts[0], dict.fromkeys(range(3), how))
    how = {"gated": lambda g, beta: (g, 0 * beta + largest)}
    fed.assert_by_hand(model, [SetGate(BETA, to=largest)], texts[0], dict.fromkeys(range(3), how))
    with (
        pytest.raises(BadArgument, match=rf"mixer.beta has values in \[0, {largest}\]"),
        intervene(model, SetGate(BETA, to=largest + 0.01)),
    ):
        pass


@pytest.mark.parametrize("each", [RULES["decay"][0], SetGate(GATE, to=0.5), SetGate(GATE, scale=0.5)], ids=str)
def test_however_a_text_is_fed(quick, texts, each):
    fed.assert_same_however_fed(quick, [each], texts)
    fed.assert_nothing_left(quick, [each], texts[0])
    fed.assert_gradient(quick, [each], texts[0])


@torch.no_grad()
def gates_used(model, tokens, *interventions):
    """By layer, what the output is multiplied by [token, head, channel]: from what the last function before it gets."""
    found, mixers = {}, [decoder_of(model).mixer(layer) for layer in range(len(decoder_of(model).layers))]
    norms = [getattr(mixer, "o_norm", None) or getattr(mixer, "norm", None) for mixer in mixers]
    kind = next(type(norm) for norm in norms if norm is not None)
    norms = {id(norm): number for number, norm in enumerate(norms) if norm is not None}
    plain = kind.forward

    def forward(norm, hidden, gate):
        found[norms[id(norm)]] = torch.nn.functional.silu(gate.float()).unflatten(0, (len(tokens), -1))
        return plain(norm, hidden, gate)

    def after(number, dim):
        def hook(module, args, out):
            found[number] = torch.sigmoid(out[0].unflatten(-1, (-1, 2, dim))[:, :, 1].float())

        return mixers[number].q_proj.register_forward_hook(hook)

    gated = (2 * m.o_proj.in_features == m.q_proj.out_features if hasattr(m, "q_norm") else False for m in mixers)
    hooks = [after(number, mixers[number].head_dim) for number, has_gate in enumerate(gated) if has_gate]
    try:
        kind.forward = forward
        with intervene(model, *interventions) if interventions else nullcontext():
            model(tokens[None], use_cache=False)
    finally:
        kind.forward = plain
        for hook in hooks:
            hook.remove()
    return {number: value.numpy() for number, value in found.items()}


class TestOutputGates:
    def test_attention_without_one(self):
        with (
            pytest.raises(UnknownSite, match=r"No site matches 'layers.3.mixer.gate'. The sites of layers.3 are"),
            intervene(tiny_model("olmo_hybrid"), SetGate("layers.3.mixer.gate", to=0.5)),
        ):
            pass

    @pytest.mark.parametrize("to", [0, 1e-3, 0.5, 0.999, 1])
    def test_set(self, model, text, to):
        for gate in gates_used(model, text(5), SetGate(GATE, to=to)).values():
            np.testing.assert_allclose(gate, to, rtol=1e-5, atol=1e-12)

    def test_set_beyond_one(self, quick, text):
        """silu has no upper end."""
        found = gates_used(quick, text(5), SetGate(GATE, kind="linear_attention", to=7.5))
        np.testing.assert_allclose(found[0], 7.5, rtol=1e-5)

    @pytest.mark.parametrize("factor", [0, 0.5, 3])
    def test_scaled(self, model, text, factor):
        """The first of each kind: its own gate is the plain model's. Attention's stops at 1, silu at its least."""
        plain = gates_used(model, text(9))
        one = gates_used(model, text(9), SetGate("layers.0.mixer.gate", scale=factor))[0]
        np.testing.assert_allclose(one, np.maximum(factor * plain[0], silu(LOWEST)), rtol=1e-4, atol=1e-6)
        if 3 not in plain:  # attention of olmo_hybrid
            return
        other = gates_used(model, text(9), SetGate("layers.3.mixer.gate", scale=factor))[3]
        np.testing.assert_allclose(other, np.minimum(factor * plain[3], 1), rtol=1e-4, atol=1e-6)

    def test_some_heads_and_positions(self, quick, text):
        plain = gates_used(quick, text(6))
        found = gates_used(quick, text(6), SetGate("layers.0.mixer.gate", to=0.25, heads=[1], positions=[2, 4]))[0]
        expected = plain[0].copy()
        expected[[2, 4], 1] = 0.25
        np.testing.assert_allclose(found, expected, rtol=1e-6)

    def test_in_half_precision(self, text):
        """The logit is rounded to the model's type: 0.5 per cent at most where the gate is not small."""
        model = tiny_model("qwen3_5").bfloat16()
        for to in (0.1, 0.3, 0.9):
            for gate in gates_used(model, text(5), SetGate(GATE, to=to)).values():
                np.testing.assert_allclose(gate, to, rtol=1e-2)

    def test_a_watch_shows_them(self, quick, text):
        with intervene(quick, SetGate(GATE, to=0.25)):
            found = recorded(quick, one_by_one([text(8)]), Attention(every=1))
        np.testing.assert_allclose(found["attention"]["gate_sum"].sum(("label", "fold")), 8 * 0.25, rtol=1e-5)
        with intervene(quick, SetGate(BETA, to=0.25)):
            found = recorded(quick, one_by_one([text(8)]), DeltaNet(every=1))
        np.testing.assert_allclose(found["deltanet"]["beta_sum"].sum(("label", "fold")), 8 * 0.25, rtol=1e-5)


@settings(max_examples=50)
@given(st.lists(st.floats(-80, 80), min_size=1, max_size=20))
def test_silu_is_inverted_on_either_side(xs):
    """Where it is flat, around its lowest point, half of its digits are known."""
    x = torch.tensor(xs, dtype=torch.float64)
    wanted = torch.nn.functional.silu(x)
    found = inverse_silu(wanted, x)
    torch.testing.assert_close(torch.nn.functional.silu(found), wanted, rtol=1e-12, atol=1e-15)
    steep = (x - LOWEST).abs() > 1e-3
    torch.testing.assert_close(found[steep], x[steep], rtol=1e-9, atol=1e-9)


def test_the_inverse_has_the_slope_of_an_inverse():
    x = torch.tensor([-5.0, -2.0, -1.0, 0.5, 9.0], dtype=torch.float64)
    wanted = torch.nn.functional.silu(x).requires_grad_()
    assert torch.autograd.gradcheck(lambda wanted: inverse_silu(wanted, x), wanted)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"give either to=\.\.\. \(the gate's value\) or scale=\.\.\. \(a factor\)"),
        ({"to": 0.5, "scale": 0.5}, r"give either to=\.\.\."),
        ({"to": math.nan}, r"to=nan\): give a finite value\."),
        ({"scale": -1}, r"give a finite factor, 0 or more; a factor of 1"),
        ({"scale": 1}, "a factor of 1 changes nothing"),
        ({"scale": math.inf}, "give a finite factor"),
        ({"to": 0.5, "heads": [-1]}, r"^SetGate\(heads=\.\.\.\): give at least one integer"),
    ],
)
def test_arguments_that_are_none(given, message):
    with pytest.raises(BadArgument, match=message):
        SetGate(GATE, **given)


@pytest.mark.parametrize(
    ("each", "message"),
    [
        (SetGate(DECAY, to=0), r"layers\.0\.mixer\.decay has values in \(0, 1\]"),
        (SetGate(DECAY, to=1.5), r"values in \(0, 1\]"),
        (SetGate(BETA, to=-0.1), r"layers\.0\.mixer\.beta has values in \[0, 1\]"),
        (SetGate("layers.3.mixer.gate", to=1.5), r"layers\.3\.mixer\.gate has values in \[0, 1\]"),
        (SetGate("layers.0.mixer.gate", to=-0.1), r"layers\.0\.mixer\.gate has values in \[0, inf\)"),
        (SetGate("layers.0.mixer", to=0.5), r"layers\.0\.mixer is not a gate\.\nName mixer\.decay"),
        (SetGate("layers.*.mixer.*", to=0.5), r"layers\.0\.mixer\.query is not a gate"),
        (SetGate(DECAY, to=0.5, heads=[9]), r"layers\.0\.mixer\.decay has heads 0 to 3; got head 9\."),
    ],
)
def test_sites_and_values_that_are_none(quick, each, message):
    with pytest.raises(BadArgument, match=message):
        intervene(quick, each).__enter__()


def test_a_site_that_no_layer_has(quick):
    with pytest.raises(UnknownSite):
        intervene(quick, SetGate("layers.3.mixer.decay", to=0.5)).__enter__()


def test_an_output_gate_of_0_is_a_mixer_of_0(quick, text):
    one = fed.alone(quick, [SetGate(GATE, to=0)], text(8))
    fed.close(one, fed.alone(quick, [Zero("layers.*.mixer")], text(8)))
