"""A small sample of evidence/lossless.py: in bfloat16, no false alarm, and planted tokens are detected."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import qwenlab as ql
from evidence import lossless
from evidence.planting import Planted, Recorded, near_miss


@pytest.mark.slow
@pytest.mark.parametrize("toy", lossless.TOYS)
def test_tokens_half_a_nat_below_the_best_are_detected(toy):
    checkpoint = ql.open(toy, dtype="bfloat16")
    rows = []
    for seed in range(100):
        rows.append(lossless.both(checkpoint, np.random.default_rng([7, seed])))
        if sum("planted" in row for row in rows) == 20:
            break
    planted = [row["planted"] for row in rows if "planted" in row]
    assert len(planted) == 20
    assert all(0.45 <= plant["loss"] <= 0.55 for plant in planted)
    assert sum(plant["detected"] for plant in planted) >= 19
    assert [row["honest"]["fault"] for row in rows] == [None] * len(rows)


def test_a_near_miss():
    scores = torch.tensor([3.0, 2.5625, 2.53125, 2.375, 0.0])
    assert near_miss(scores) == (2, 0.46875)
    assert near_miss(scores).on_aim
    assert not near_miss(torch.tensor([3.0, 2.0])).on_aim


def test_the_rule_plants_one_token():
    scores = torch.tensor([[3.0, 2.5, 0.0], [0.0, 3.0, 2.5]])
    drafts, generator = torch.tensor([0]), torch.Generator()
    planted, recorded = Planted(1), Recorded()
    found = [planted.verify(drafts, None, scores, generator) for _ in range(4)]
    assert found == [(1, 1), (1, 1), (1, 2), (1, 1)]  # the call for the prompt, then rounds 0, 1 and 2
    assert planted.planted == (2, 0.5)
    assert recorded.verify(drafts, None, scores, generator) == (1, 1)
    assert recorded.near_misses == [(2, 0.5)]


def test_runs_are_kept_for_the_same_settings_only(tmp_path):
    file = tmp_path / "lossless.jsonl"
    settings = {"dtype": "bfloat16", "code": {"commit": "a"}}
    assert lossless.earlier_runs(file, settings) == []
    with file.open("a") as rows:
        rows.write(json.dumps({"run": 0}) + "\n")
    assert lossless.earlier_runs(file, settings) == [{"run": 0}]
    assert lossless.earlier_runs(file, settings | {"code": {"commit": "b"}}) == []
    assert len(file.read_text().splitlines()) == 1


@pytest.mark.slow
def test_the_command_writes_a_summary_and_continues(tmp_path):
    def run(count):
        done = CliRunner().invoke(lossless.app, ["--runs", str(count), "--out", str(tmp_path)])
        assert done.exit_code == 0
        return [json.loads(line) for line in (tmp_path / "lossless.jsonl").read_text().splitlines()]

    first, more = run(1), run(2)
    assert [row for row in more if row in first] == first
    found = json.loads((tmp_path / "lossless.json").read_text())
    assert found["toys"]["toy-dense"]["planted runs"] == found["toys"]["toy-moe"]["planted runs"] == 2
    assert found["code"]["commit"] == more[0]["code"]["commit"]
    assert found["dtype"] == "bfloat16"


def test_rates_have_exact_intervals():
    found = lossless.rate([False] * 200)
    assert (found["count"], found["of"], found["share"]) == (0, 200, 0)
    assert found["interval"] == [0, pytest.approx(1 - 0.025 ** (1 / 200), abs=1e-4)]
