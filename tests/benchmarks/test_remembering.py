"""The benchmark of the probes of states and maps: what its ratios are of, and on what models."""

import re
from pathlib import Path

import pytest
import torch

from benchmarks import remembering
from benchmarks.memory import extra_bytes_by_length
from benchmarks.models import GROUPS, published_config
from benchmarks.variants import MAPS, STATES
from qwenlab.checkpoint.families import ATTENTION, DELTANET
from qwenlab.testing import tiny_model

ROOT = Path(__file__).parents[2]


@pytest.fixture
def times(monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setitem(remembering.CASES, "prefill 64", MAPS | STATES)
    return remembering.timed(tiny_model("qwen3_5_moe"), "prefill 64", rounds=1)


@pytest.mark.slow
def test_what_a_probe_adds_is_held_to_the_mixers_it_watches(times):
    assert set(times["over own mixers"]) == set(MAPS | STATES)
    assert set(times["over bare"]) == {"bare again", *MAPS, *STATES}
    for probe, own in times["over own mixers"].items():
        share = times["mixers' share of a pass, median"][ATTENTION if probe.startswith("Softmax") else DELTANET]
        assert own["median"] * share == pytest.approx(times["over bare"][probe]["median"] - 1)  # one round


@pytest.mark.slow
def test_the_whole_of_it_says_what_its_figures_mean(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(remembering, "CASES", {"prefill 64": STATES | {"ImplicitAttention": MAPS["ImplicitAttention"]}})
    monkeypatch.setattr(remembering, "build", lambda name: tiny_model("qwen3_5_moe"))
    monkeypatch.setattr(remembering, "weighed", lambda name, variant: {str(n): 2**20 for n in remembering.LENGTHS})
    remembering.main(models=["tiny"], rounds=1, out=tmp_path)
    said = capsys.readouterr().out
    assert remembering.MEANING in said
    assert re.search(r"ImplicitAttention: \S+ times its layers' mixers, (within|BEYOND) the 3 allowed", said)
    assert len(list(tmp_path.glob("remembering-*.json"))) == 1


@pytest.mark.parametrize(("name", "value_heads"), [("group-35B-A3B", 32), ("group-27B", 48)])
def test_groups_have_the_heads_of_the_published_models(name, value_heads):
    config = published_config(GROUPS[name], layers=4)
    assert (config.linear_num_key_heads, config.linear_num_value_heads) == (16, value_heads)
    assert (config.linear_key_head_dim, config.linear_value_head_dim) == (128, 128)
    assert config.layer_types == [DELTANET] * 3 + [ATTENTION]


def test_make_bench_runs_every_benchmark():
    recipe = (ROOT / "Makefile").read_text().partition("\nbench:")[2].partition("\n\n")[0]
    scripts = {file.stem for file in (ROOT / "benchmarks").glob("*.py") if "typer.run(" in file.read_text()}
    assert {f"benchmarks.{name}".removesuffix(".__main__") for name in scripts} == set(
        re.findall(r"-m (benchmarks\S*)", recipe)
    )


@pytest.mark.slow
def test_peaks_of_several_lengths_are_those_of_each_alone():
    short, long = extra_bytes_by_length("toy-moe", "ImplicitAttention", [256, 1024])
    (alone,) = extra_bytes_by_length("toy-moe", "ImplicitAttention", [1024])
    assert long == pytest.approx(alone, rel=0.3)
    assert 2 * short < long
