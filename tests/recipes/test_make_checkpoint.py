"""The recipe and the command that make a checkpoint with random weights."""

import sys

import pytest

import qwenlab as ql
from qwenlab import cli
from qwenlab.errors import BadArgument


def test_random_is_said():
    with pytest.raises(BadArgument, match=r"writes random weights only: say so with random=True \(--random\)"):
        ql.recipes.make_checkpoint("toy-moe")


def test_says_where_it_is_and_what_it_has(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = ql.recipes.make_checkpoint("toy-moe", random=True, layers=2, progress=False)
    assert made.folder == tmp_path / "toy-moe-2-layers-random"
    assert made.bytes == sum(file.stat().st_size for file in made.folder.iterdir())
    assert made.anatomy.layer_types == ("linear_attention", "linear_attention")
    assert ql.recipes.make_checkpoint("toy-moe", random=True, progress=False).folder.name == "toy-moe-random"


def test_the_command_prints_what_the_cut_has(tmp_path, monkeypatch, capsys):
    words = ["make-checkpoint", "toy-moe", "--random", "--seed", "3", "--layers", "5", "--out", str(tmp_path / "five")]
    monkeypatch.setattr(sys, "argv", ["qwenlab", *words, "--no-progress"])
    with pytest.raises(SystemExit) as exit:
        cli.main()
    assert not exit.value.code
    first, last = capsys.readouterr().out.splitlines()
    anatomy = ql.anatomy(str(tmp_path / "five"))
    assert first.startswith(f"Random weights: 4 DeltaNet layers, 1 attention layer; {anatomy.total:,} parameters, 0.0")
    assert last == str(tmp_path / "five")
