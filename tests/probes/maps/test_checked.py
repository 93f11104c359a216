"""Implicit attention is checked against the kernel; hidden sites, wrong layers and wrong arguments are errors."""

import sys

import pytest
import torch

from qwenlab.errors import BadArgument, KernelMismatch, MissingPart, SiteNotReached, UnknownLayer
from qwenlab.probes import ImplicitAttention, SoftmaxAttention
from qwenlab.probes.session import watch
from qwenlab.testing.models import tiny_model
from tests.probes.feeding import batch, one_by_one, recorded
from tests.probes.mapping import KINDS, both


def test_the_weights_make_the_kernels_output(model, text):
    node = recorded(model, one_by_one([text(300)]), ImplicitAttention(every=1))["implicit_attention"]
    gap, out = (node[name].sum(("label", "fold")) for name in ("gap_square_sum", "out_square_sum"))
    assert (out > 0).all()
    assert float((gap / out).max()) ** 0.5 < 2e-6


def test_without_the_removal_of_keys_they_do_not(model, text):
    """Without key removal the error is large; with keys that are never written again, it is as small as with it."""
    options = dict(every=1, layers=[0], without_removal=True)
    node = recorded(model, one_by_one([text(120)]), ImplicitAttention(**options))["implicit_attention"]
    exact, without, out = (
        node[f"{name}_sum"].sum(("label", "fold"))
        for name in ("gap_square", "without_removal_gap_square", "out_square")
    )
    assert float((exact / out).max()) ** 0.5 < 2e-6
    assert float((without / out).min()) ** 0.5 > 0.01
    alone = recorded(model, one_by_one([text(1)]), ImplicitAttention(**options))["implicit_attention"]
    assert float(alone["without_removal_gap_square_sum"].sum() / alone["out_square_sum"].sum()) < 1e-11


def test_a_text_that_began_before_the_block_is_compared_and_not_measured(small, text):
    """What the state held then enters the comparison: without it the outputs would be far apart."""
    tokens = text(80)
    with torch.no_grad():
        cache = small(tokens[None, :40], use_cache=True).past_key_values
        with watch(small, ImplicitAttention(every=1, queries="all")) as watching:
            for piece in (tokens[40:70], *tokens[70:80].split(1)):
                cache = small(piece[None], past_key_values=cache, use_cache=True).past_key_values
            small(tokens[None, :9])
    node = watching.recording()["implicit_attention"]
    assert int(node["tokens"].sum()) == node.sizes["row"] == 9
    assert float(node["out_square_sum"].sum()) > 0
    assert float(node["gap_square_sum"].sum() / node["out_square_sum"].sum()) < 1e-11


def test_in_bfloat16_rounding_of_the_kernels_output_is_no_error(text):
    model = tiny_model("qwen3_5").to(torch.bfloat16)
    node = recorded(model, one_by_one([text(100)]), ImplicitAttention(every=1))["implicit_attention"]
    error = float(node["gap_square_sum"].sum() / node["out_square_sum"].sum()) ** 0.5
    assert 1e-4 < error < 0.01


def test_a_kernel_of_another_convention_is_an_error(small, text, monkeypatch):
    modeling = sys.modules[type(small).__module__]
    original = modeling.torch_chunk_gated_delta_rule

    def in_bits(*args, g, **kwargs):
        """As if g were a logarithm to base 2."""
        return original(*args, g=g * 0.6931, **kwargs)

    monkeypatch.setattr(modeling, "torch_chunk_gated_delta_rule", in_bits)
    message = (
        r"^ImplicitAttention\(\) recomputes the output from its weights, and the result differs from the kernel's: by "
        r"[0-9.]+ of the norm in layer 0, head [0-3] \(rounding explains at most 0\.0001\), and in 4 of 4 heads\.\n"
        r"The kernel in use follows another convention"
    )
    with pytest.raises(KernelMismatch, match=message), watch(small, ImplicitAttention(every=1)):
        small(text(40)[None])


def test_a_kernel_that_hides_the_delta_rule_is_an_error(text):
    model = tiny_model("qwen3_5_moe")
    model.model.layers[2].linear_attn.forward = lambda hidden_states, **kwargs: hidden_states * 0.5
    with (
        pytest.raises(SiteNotReached, match=r"layers\.2\.mixer\.decay: 0 of 7 tokens"),
        watch(model, ImplicitAttention()),
    ):
        model(text(7)[None])


@pytest.mark.parametrize("kinds", [("full", "linear", "linear", "full", "linear"), ("linear",)])
def test_a_layout_that_follows_no_period(kinds, text):
    model = tiny_model("qwen3_5", layer_types=[f"{kind}_attention" for kind in kinds])
    recording = recorded(model, one_by_one([text(90)]), *both()[: len(set(kinds))])
    for node, kind in KINDS.items():
        if node in recording:
            expected = [layer for layer, each in enumerate(kinds) if kind.startswith(each)]
            assert recording[node]["layer"].values.tolist() == expected


def test_layers_of_the_other_kind_are_refused(small):
    with pytest.raises(
        UnknownLayer, match=r"ImplicitAttention\(layers=...\) names layers \[1\]; it reads layers \[0\]"
    ):
        watch(small, ImplicitAttention(layers=[1])).__enter__()
    with pytest.raises(UnknownLayer, match=r"SoftmaxAttention\(layers=...\) names layers \[0\]; it reads layers \[1\]"):
        watch(small, SoftmaxAttention(layers=[0])).__enter__()
    alone = tiny_model("qwen3_5", layer_types=["linear_attention"])
    with pytest.raises(MissingPart, match="none of this model's 1 layers has a softmax-attention mixer"):
        watch(alone, SoftmaxAttention()).__enter__()


@pytest.mark.parametrize("probe", [ImplicitAttention, SoftmaxAttention])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(queries="some"), r"queries='some'\): give positions of tokens in their texts, or 'all'\."),
        (dict(queries=[]), r"queries=\[\]\): give positions of tokens"),
        (dict(queries=[3, -1]), r"queries=\[-1, 3\]\): give positions of tokens"),
        (dict(queries=[0], block=8), r"queries=\[0\], block=8\): give either the rows to store, or the side of"),
        (dict(block=1), r"block=1\): give either the rows"),
        (dict(every=0), r"every=0\): give an integer number of tokens, 1 or more\."),
    ],
)
def test_options_that_make_no_sense(probe, options, message):
    with pytest.raises(BadArgument, match=rf"^{probe.__name__}\(.*{message}"):
        probe(**options)


def test_heads_that_no_layer_has(small):
    with pytest.raises(
        BadArgument, match=r"^ImplicitAttention\(heads=\[2, 4\]\): its layers have heads 0 to 3\.\nLeave"
    ):
        watch(small, ImplicitAttention(heads=[4, 2])).__enter__()
    with pytest.raises(BadArgument, match=r"heads=\[\]"):
        watch(small, ImplicitAttention(heads=[])).__enter__()


def test_watching_changes_no_logit(small, text):
    ids, mask = batch([text(30), text(20)], "left")
    with torch.no_grad():
        bare = small(ids, attention_mask=mask).logits
        with watch(small, *both(every=1, queries="all")):
            watched = small(ids, attention_mask=mask).logits
    assert torch.equal(bare, watched)
