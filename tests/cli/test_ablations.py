"""`qwenlab ablate`, run as a shell would run it."""

import re
import sys

import pytest

import qwenlab as ql
from qwenlab import cli


@pytest.fixture
def run(monkeypatch, capsys):
    """Run `qwenlab ablate` with these arguments: its exit status, and what it printed on stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["qwenlab", "ablate", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "180")
        with pytest.raises(SystemExit) as exit:
            cli.main()
        return int(exit.value.code or 0), *capsys.readouterr()

    return run


SMALL = ("--count", 2, "--max-tokens", 16, "--controls", 2)


def test_it_prints_the_ranks_and_findings_and_leaves_what_it_says(run, tmp_path):
    out = tmp_path / "out"
    tasks = ("--task", "code", "--task", "mqar:2", "--rows", 3, "--resume", tmp_path / "kept.npz")
    status, shown, _ = run("toy-dense", "--out", out, "--of", "mixer, mlp", "--layers", "0,2,3", *tasks, *SMALL)
    assert status == 0
    told = ql.stats.ablations(ql.Recording.open(out / "recording.nc"))
    assert "code: 2 texts, intervals 95%, p by Holm, the first 3 of 6" in shown
    assert "mqar(pairs=2): 2 texts" in shown
    heading = next(line for line in shown.splitlines() if line.strip().startswith("ablation "))
    assert re.search(r"rise of the loss \(nat/token\)\s+above controls \(nat/token\)\s+p\s+rank\s+significant", heading)
    ranked = ql.stats.ablation_table(told, "code")
    rows = [line for line in shown.splitlines() if re.match(r"\s+(mixer|mlp) \d ", line)]
    assert len(rows) == 6
    for row, line in enumerate(rows[:3]):
        one = ranked.isel(ablation=row)
        assert line.split()[:2] == str(one["ablation"].values).split()
        kind = {"linear_attention": "DeltaNet", "full_attention": "attention"}[str(one["kind"].values)]
        assert line.split()[2] == kind
        low, high = one["effect_interval"].values
        assert f"{float(one['effect']):+.3g} [{low:+.3g}, {high:+.3g}]" in line
        assert line.split()[-1] == "no"
    assert (out / "findings.md").read_text().strip() in shown
    for name in ("recording.nc", "findings.md", "ablation_map.png", "ablation_ranking_mqar_pairs_2.png"):
        assert str(out / name) in shown
        assert (out / name).exists()

    other = ("--task", "prose", "--resume", tmp_path / "kept.npz")
    status, shown, error = run("toy-dense", "--out", out, "--of", "mixer", *other, *SMALL)
    assert (status, shown) == (2, "")
    assert "this file is from another sweep" in error


def test_files_are_tasks(run, tmp_path):
    text = tmp_path / "[bold]mine.txt"
    text.write_text("\n".join(ql.tasks.texts("code", 2)))
    small = ("--layers", "0", "--count", 2, "--max-tokens", 16, "--controls", 0, "--score", "accuracy")
    status, shown, _ = run("toy-dense", "--text", text, "--out", tmp_path / "out", *small)
    assert status == 0
    assert "[bold]mine: 2 texts" in shown
    assert "fall of the accuracy" in shown
    assert "(nat/token)" not in shown
    assert "No ablation has controls" in shown


def test_what_has_no_match_is_named(run, tmp_path):
    given = ("--task", "code", "--count", 2, "--max-tokens", 16, "--controls", 1)
    status, shown, _ = run("toy-dense", "--of", "kind", "--out", tmp_path, *given)
    assert status == 0
    assert "No other parts match all linear_attention: compared with 0 alone." in shown


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--task", "mqr:8"), "BadArgument: There is no task 'mqr:8'; there are code, prose"),
        (("--task", "mqar:x"), "BadArgument: task 'mqar:x': write mqar:PAIRS, with numbers."),
        (("--of", "mixxer"), "BadArgument: units(of='mixxer'): give one of 'layer', 'mixer'"),
        (("--of", "expert"), "MissingPart: units(of='expert') finds nothing"),
        (("--layers", "0,x"), "BadArgument: --layers '0,x': give numbers with commas between them"),
        (("--layers", "9"), "UnknownLayer: units(layers=...) names layers [9]"),
        (("--score", "los"), "Invalid value for '--score'"),
        (("--match", "size"), "Invalid value for '--match'"),
        (("--controls", -1), "Invalid value for '--controls'"),
        (("--contols", 1), "No such option"),
        (("--text", "none.txt"), "none.txt"),
    ],
)
def test_what_is_wrong_is_a_message_and_status_2(run, tmp_path, given, message):
    status, shown, error = run("toy-dense", "--out", tmp_path / "out", *given)
    assert status == 2
    assert message in " ".join(error.replace("│", " ").split())
    assert shown == "" and "Traceback" not in error
    assert not (tmp_path / "out").exists()
