"""The benchmark of what watching costs: every variant runs, none leaves a hook behind, and its counts are right."""

import importlib.util
import json

import pytest
import torch

import benchmarks.__main__ as watching
from benchmarks.models import build
from benchmarks.shares import decode_shares, profiled_decode, wrapped_calls
from benchmarks.timing import fixed_costs
from benchmarks.variants import DEFAULTS, Traced, read_modules, variants
from qwenlab import probes
from qwenlab.testing import tiny_model

IDS = torch.arange(3, 11)[None]
INSTALLED = {peer for peer in ("innards", "nnsight") if importlib.util.find_spec(peer)}


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return tiny_model("qwen3_5_moe")


def changed(model):
    """The modules that a hook or a wrapper still changes."""
    names = ("forward", "_call_impl", "_forward_hooks", "_forward_pre_hooks")
    return [module for module in model.modules() if any(vars(module).get(name) for name in names)]


def test_the_whole_of_it_times_every_variant(model, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(watching, "build", lambda name: model)
    watching.main(models=["tiny"], cases=["prefill 256"], rounds=1, memory=False, out=tmp_path)
    (file,) = tmp_path.glob("*.json")
    written = json.loads(file.read_text())
    ratios = written["time"]["tiny"]["prefill 256"]["ratios"]
    alone = {f"{name} alone" for name in DEFAULTS} | {"defaults without Routing"}
    plain = {"keep what the default probes read", "cache every activation"}
    assert ratios.keys() == {"bare", "bare again", "default probes", "thorough probes"} | alone | plain | (
        INSTALLED & {"nnsight"}
    )
    assert all(ratio["median"] > 0 for ratio in ratios.values()) and not written["memory"]
    said = capsys.readouterr().out
    assert "wrapped calls a decode step" in said and "enter, leave and record" in said
    assert not changed(model)


def test_default_probes_are_timed_one_by_one_where_a_fixed_cost_shows(model):
    assert {type(probe).__name__ for probe in probes.defaults(model)} == set(DEFAULTS)
    assert "Timing alone" in variants("decode 64") and "Timing alone" not in variants("generate 512 + 64")
    assert ("innards" in variants("generate 512 + 64")) == ("innards" in INSTALLED)
    assert "innards" not in variants("decode 64")  # it needs `generate`


def test_plain_hooks_are_on_every_module_that_the_default_probes_read(model):
    deltanet = ["layer", "mixer", "in_proj_qkv", "in_proj_b", "in_proj_a", "norm", "mlp_norm", "mlp"]
    attention = ["layer", "mixer", "q_proj", "k_proj", "mlp_norm", "mlp"]
    routed = ["router", "experts", "shared_expert", "shared_expert_gate"]
    modules = read_modules(model)
    assert (
        len(modules) == len({id(module) for module in modules}) == 3 * len(deltanet) + len(attention) + 4 * len(routed)
    )


def test_fixed_costs_are_the_sum_of_their_parts(model):
    found = fixed_costs(model, rounds=1, tokens=4)
    spent = {name: value["median"] for name, value in found["milliseconds"].items()}
    assert spent["enter, leave and record"] == pytest.approx(spent["enter"] + spent["leave"] + spent["record"])
    assert found["layers"] == 4 and min(spent.values()) > 0


def test_shares_of_decode_steps_are_parts_of_the_whole(model):
    found = decode_shares(model, tokens=6)
    shares, spent = found["shares"], found["milliseconds"]
    assert min(shares.values()) > 0 and sum(shares.values()) < 1
    assert spent.keys() == {"all", *shares}
    assert found["wrapped calls per step"] * 6 == wrapped_calls(profiled_decode(model, 6))
    assert wrapped_calls(profiled_decode(model, 7)) == found["wrapped calls per step"] * 7


def test_a_trace_of_nnsight_saves_every_part_at_every_pass_and_leaves_the_model_alone(model):
    pytest.importorskip("nnsight")
    kept, trace = [], Traced()
    parts = [part for layer in model.model.layers for part in (*list(layer.children())[:1], layer.mlp)]

    def work(each):
        out = each(IDS, use_cache=True)
        each(IDS[:, :1], past_key_values=out.past_key_values)

    handles = [part.register_forward_hook(lambda module, args, out: kept.append(out)) for part in parts]
    with torch.no_grad():
        work(model)
    for handle in handles:
        handle.remove()
    with torch.no_grad():
        saved = trace.run(model, work)
    values = [[each[0] if isinstance(each, tuple) else each for each in found] for found in (saved, kept)]
    assert len(saved) == len(kept) == 2 * 2 * 4
    assert all(torch.equal(*pair) for pair in zip(*values, strict=True))
    assert trace.model.lm_head.weight is model.lm_head.weight and not changed(model)


def test_tiny_has_the_size_that_its_figures_are_quoted_for():
    assert round(build("tiny").num_parameters() / 1e6, 1) == 17.6
