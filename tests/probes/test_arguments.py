"""Invalid arguments raise errors that say how to fix them."""

import pytest
import torch

from qwenlab.errors import AmbiguousSequences, BadArgument, LabelShapeMismatch, MissingPart, ProbeInUse, UnknownLayer
from qwenlab.probes import Attention, DeltaNet, Residual, Routing, defaults
from qwenlab.probes.session import watch
from qwenlab.testing.models import tiny_model
from tests.probes.compare import assert_same
from tests.probes.feeding import one_by_one, recorded


def test_layers_that_the_probe_does_not_read(moe):
    message = r"Attention\(layers=...\) names layers \[1\]; it reads layers \[3\] of this model.\nLeave `layers` out"
    with pytest.raises(UnknownLayer, match=message), watch(moe, Attention(layers=[1, 3])):
        pass
    with pytest.raises(UnknownLayer, match=r"names layers \[4, -1\]; it reads layers \[0, 1, 2, 3\]"):
        watch(moe, Residual(layers=[0, 4, -1])).__enter__()
    with pytest.raises(UnknownLayer, match=r"DeltaNet\(layers=...\) names no layer; it reads layers \[0, 1, 2\]"):
        watch(moe, DeltaNet(layers=[])).__enter__()


def test_probes_that_find_nothing(dense):
    message = r"Routing\(\) finds nothing to read: none of this model's 2 layers has a router.\nLeave Routing\(\) out"
    with pytest.raises(MissingPart, match=message):
        watch(dense, Routing()).__enter__()
    linear = tiny_model("qwen3_5", layer_types=["linear_attention"])
    with pytest.raises(MissingPart, match="none of this model's 1 layers has a softmax-attention mixer"):
        watch(linear, Attention()).__enter__()


def test_arguments_that_are_not_probes(small):
    with pytest.raises(BadArgument, match=r"takes instances of probes; got none.\nWrite for example"):
        watch(small)
    with pytest.raises(BadArgument, match=r"got DeltaNet.\nWrite"):
        watch(small, DeltaNet)
    with pytest.raises(
        BadArgument, match=r"two probes of the same kind: DeltaNet, Routing, DeltaNet.\nGive each kind once."
    ):
        watch(small, DeltaNet(), Routing(), DeltaNet(layers=[0]))
    with pytest.raises(BadArgument, match=r"Expected a model or a Checkpoint, got a str.\nPass a transformers"):
        watch("toy-moe", DeltaNet())
    with pytest.raises(BadArgument, match=r"Expected a model or a Checkpoint, got a str"):
        defaults("toy-moe")
    with pytest.raises(TypeError, match="prediction_head"):
        DeltaNet(prediction_head=3)
    for wrong in (-1, 1.5, True, "none"):
        with pytest.raises(BadArgument, match=r"DeltaNet\(prediction_heads=.*\): give an integer number of key heads"):
            DeltaNet(prediction_heads=wrong)
    for kind in (Attention, DeltaNet, Residual, Routing):
        for wrong in (0, -2, 1.5, True, None):
            with pytest.raises(
                BadArgument, match=rf"{kind.__name__}\(every=.*\): give an integer number of tokens, 1 "
            ):
                kind(every=wrong)


def test_a_probe_serves_one_watch_at_a_time(small, text):
    probe = DeltaNet()
    with watch(small, probe) as first:
        small(text(5)[None])
        with pytest.raises(
            ProbeInUse, match=r"^DeltaNet is in use by a watch whose block has not ended.\nGive each watch its"
        ):
            watch(small, probe).__enter__()
        with pytest.raises(ProbeInUse):
            first.__enter__()
        small(text(5)[None])
    assert first.recording().attrs["tokens"] == 10
    with watch(small, probe) as second:
        small(text(7)[None])
    assert second.recording().attrs["tokens"] == 7
    with pytest.raises(
        ProbeInUse, match=r"^DeltaNet has been used in a later watch, which emptied it.\nCall recording\(\) before"
    ):
        first.recording()


def test_a_watch_that_is_entered_again_begins_anew(small, text):
    seen = watch(small, DeltaNet())
    for _ in range(2):
        with seen:
            small(text(5)[None])
    assert seen.recording().attrs["tokens"] == 5


def test_masks_that_do_not_tell_padding(small, text):
    ids = text(6)[None]
    cache = small(ids, use_cache=True).past_key_values
    with watch(small, DeltaNet()):
        small(ids)
        message = r"The attention_mask is \[1, 1, 6, 6\]; probes need .* = \[1, 6\] to find padding.\nPass that mask"
        with pytest.raises(AmbiguousSequences, match=message):
            small(ids, attention_mask=torch.ones(1, 1, 6, 6))
        with pytest.raises(AmbiguousSequences, match=r"The attention_mask is \[1, 6\]; .* = \[1, 12\] to"):
            small(ids, attention_mask=torch.ones(1, 6), past_key_values=cache)
        with pytest.raises(AmbiguousSequences, match="The attention_mask is dict; "):
            small(ids, attention_mask={"linear_attention": None})
        small(ids, position_ids=torch.arange(6)[None])


def test_what_was_refused_is_not_read(small, text):
    ids = text(6)[None]

    def feed(model, seen):
        with pytest.raises(AmbiguousSequences):
            model(ids, attention_mask=torch.ones(1, 1, 6, 6))
        with seen.label(["a", "b"]), pytest.raises(LabelShapeMismatch):
            model(ids)
        model(ids)

    fed, plain = recorded(small, feed), recorded(small, one_by_one([ids[0]]))
    assert_same(fed, plain)
    assert fed.attrs["prompts_hash"] == plain.attrs["prompts_hash"]


@pytest.mark.parametrize("names", [["a"], ["a", "b", "c"], [["a"] * 5, ["b"] * 6], [["a"] * 5] * 2])
def test_labels_that_do_not_fit(small, text, names):
    with watch(small, DeltaNet()) as seen:
        small(text(5)[None])
        with (
            pytest.raises(
                LabelShapeMismatch,
                match=r"The labels are for \d sequences of [\d, ]+ tokens; this forward pass reads 2 of 6.",
            ),
            seen.label(names),
        ):
            small(torch.stack([text(6)] * 2))


@pytest.mark.parametrize(
    ("names", "kind"), [(3, "int"), ([1, 2], "int"), ([["a", None]], "NoneType"), ([[["a"]]], "list")]
)
def test_labels_that_are_no_names(small, text, names, kind):
    message = f"label: names must be strings, and .* is a {kind}.\nGive one name, one name per sequence"
    with pytest.raises(BadArgument, match=message), watch(small, DeltaNet()).label(names):
        pass
