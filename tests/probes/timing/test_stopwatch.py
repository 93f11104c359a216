"""The stopwatch counts the time of the model's parts, and excludes that of probes."""

import time

import pytest
import torch

from qwenlab.probes import DeltaNet, Residual, Routing, Timing
from qwenlab.probes.base import Probe
from qwenlab.probes.session import watch
from qwenlab.testing.models import tiny_model
from tests.probes.feeding import batch, padded, recorded


class Sleeper(Probe):
    """Sleeps at every part that it reads."""

    name = "sleeper"
    seconds = 0.02

    def sites(self, layer):
        return ("mixer", "mlp")

    def reduce(self, layer, part, captured, tokens):
        time.sleep(self.seconds)

    def dataset(self, labels):
        return self.build_dataset(labels, {})


def generated(model, prompts, new):
    ids, mask = batch(prompts, "left")
    return lambda m, seen: m.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=new)


def test_calls_tokens_and_phases(moe, text):
    result = recorded(moe, generated(moe, [text(9), text(4)], 6), Timing())["timing"]
    assert result["calls"].sel(phase="prefill").values.tolist() == [1] * 4
    assert result["calls"].sel(phase="decode").values.tolist() == [5] * 4
    assert result["tokens"].values.tolist() == [13, 10]
    assert result["phase"].values.tolist() == ["prefill", "decode"]
    assert result["part"].values.tolist() == ["mixer", "mlp", "rest"]
    # Every part, every layer and the whole model are read once a call.
    assert result.attrs["readings"] == 6 * (1 + 4 * 3)
    assert result.attrs["clock"] == "perf_counter"
    assert 0 < result.attrs["clock_cost_seconds"] < 1e-3


def test_parts_add_up_to_no_more_than_the_model(moe, text):
    result = recorded(moe, generated(moe, [text(30)], 5), Timing(), DeltaNet(), Routing(), Residual())["timing"]
    assert (result["seconds"].values > 0).all()
    parts = result["seconds"].sum(["layer", "part"])
    assert (parts < result["model_seconds"]).all()
    assert (parts + result["probe_seconds"]).sum() > 0.5 * result["model_seconds"].sum()


def test_padding_is_not_counted(moe, text):
    result = recorded(moe, padded([text(9), text(4)], "left"), Timing())["timing"]
    assert result["tokens"].values.tolist() == [13, 0]


def test_what_probes_do_is_in_no_part(moe, text):
    sleeper = Sleeper()
    result = recorded(moe, lambda model, seen: [model(text(20)[None]) for _ in range(3)], Timing(), sleeper)["timing"]
    slept = 3 * 4 * 2 * Sleeper.seconds
    assert result["probe_seconds"].sel(phase="prefill") >= slept
    assert result["model_seconds"].sel(phase="prefill") >= slept
    bare = recorded(moe, lambda model, seen: [model(text(20)[None]) for _ in range(3)], Timing())["timing"]
    for part in ("mixer", "mlp", "rest"):
        with_sleep, without = (float(each["seconds"].sel(phase="prefill", part=part).sum()) for each in (result, bare))
        assert with_sleep < without + slept / 4, part


def test_what_probes_do_with_kept_decode_steps_is_counted(moe, text):
    result = recorded(moe, generated(moe, [text(5)], 8), Timing(), Sleeper())["timing"]
    # Seven steps were gathered, and looked at together.
    assert result["probe_seconds"].sel(phase="decode") >= 4 * 2 * Sleeper.seconds
    assert result["probe_seconds"].sel(phase="decode") < 2 * 4 * 2 * Sleeper.seconds


@pytest.mark.parametrize("slow", ["mixer", "mlp", "rest"])
def test_time_goes_to_the_part_that_takes_it(text, slow):
    model = tiny_model("qwen3_5_moe")
    layer = model.model.layers[2]
    module = {"mixer": layer.linear_attn, "mlp": layer.mlp, "rest": layer.post_attention_layernorm}[slow]
    inside = module.forward
    module.forward = lambda *args, **kwargs: (time.sleep(0.25), inside(*args, **kwargs))[1]
    seconds = recorded(model, lambda m, seen: m(text(5)[None]), Timing(), DeltaNet())["timing"]["seconds"]
    assert seconds.sel(phase="prefill", layer=2, part=slow) >= 0.25
    rest = seconds.sel(phase="prefill").values.copy()
    rest[2, ["mixer", "mlp", "rest"].index(slow)] = 0
    assert rest.max() < 0.25


def test_some_layers(moe, text):
    result = recorded(moe, lambda model, seen: model(text(5)[None]), Timing(layers=[1, 3]), Residual())["timing"]
    assert result["layer"].values.tolist() == [1, 3]
    assert result["calls"].values.tolist() == [[1, 1], [0, 0]]
    assert result.attrs["sample"] == '{"layers": [1, 3]}'


def test_a_forward_pass_that_broke_off_leaves_no_clock_running(small, text):
    raised = []

    def once(module, args):
        if not raised:
            raised.append(1)
            raise ZeroDivisionError

    hook = small.model.layers[0].mlp.register_forward_pre_hook(once)
    with watch(small, Timing()) as seen:
        with pytest.raises(ZeroDivisionError):
            small(text(5)[None])
        time.sleep(0.5)
        small(text(5)[None])
    hook.remove()
    result = seen.recording()["timing"]
    assert result["calls"].values.tolist() == [[1, 1], [0, 0]]
    assert result["model_seconds"].sum() < 0.5
    assert (result["seconds"].sel(phase="prefill") > 0).all()


def test_a_layer_that_broke_off_does_not_pay_for_the_next_pass(small, text):
    raised = []

    def once(module, args):
        if not raised:
            raised.append(1)
            raise ZeroDivisionError

    hook = small.model.layers[1].mlp.register_forward_pre_hook(once)
    with watch(small, Timing(layers=[1]), Sleeper(layers=[0])) as seen:
        with pytest.raises(ZeroDivisionError):
            small(text(5)[None])
        small(text(5)[None])
    hook.remove()
    result = seen.recording()["timing"]
    assert (result["seconds"].sel(phase="prefill") > 0).all()
    assert result["calls"].values.tolist() == [[1], [0]]


def test_gradient_checkpointing_is_timed_once(small, text):
    model = tiny_model("qwen3_5_moe", layer_types=["linear_attention", "full_attention"]).train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with watch(model, Timing()) as seen:
        ids = text(9)[None]
        model(ids, labels=ids).loss.backward()
    assert seen.recording()["timing"]["calls"].values.tolist() == [[1, 1], [0, 0]]
    assert torch.is_grad_enabled()
