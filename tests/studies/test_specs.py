"""The experiments that ship: their specs hold, their notebooks run, their reports are of the spec as it is."""

import re
from pathlib import Path

import pytest

import qwenlab as ql

EXPERIMENTS = sorted(file.parent for file in (Path(__file__).parents[2] / "experiments").glob("*/spec.yaml"))
by_name = pytest.mark.parametrize("folder", EXPERIMENTS, ids=lambda folder: folder.name)
SMALL = {
    "acceptance-by-layer": (
        dict(texts_per_domain=2, max_tokens=24, prompts_per_domain=1, prompt_tokens=12, new_tokens=6, trials=1),
        dict(checkpoint="toy-dense"),
    ),
    "functional-ablation": (
        dict(pairs=[2], texts=2, tokens=24, trials=1, keep=None),
        dict(checkpoint="toy-dense"),
    ),
    "horizon-by-length": (dict(tokens=128, every=8), dict(context=64, seed=0, checkpoint="toy-moe")),
    "layers-by-length": (dict(tokens=128, repeats=1, decode_steps=2), dict(context=64, seed=0, checkpoint="toy-moe")),
    "mtp-depth": (
        dict(prompts=2, max_tokens=24, new_tokens=24, depth=2),
        dict(checkpoint="toy-dense", domain="code"),
    ),
    "routing-by-domain": (dict(max_tokens=32), dict(texts_per_domain=6, seed=0)),
}


def test_they_are_there():
    assert [folder.name for folder in EXPERIMENTS] == [
        "acceptance-by-layer",
        "functional-ablation",
        "horizon-by-length",
        "layers-by-length",
        "mtp-depth",
        "routing-by-domain",
        "toy-checkpoints",
    ]


@by_name
def test_every_point_is_checked_and_every_metric_says_what_it_is(folder):
    planned = ql.experiments.plan(folder)
    assert len(planned.points) >= 2
    assert all(len(metric.meaning) > 10 for metric in planned.spec.metrics.values())


@by_name
def test_the_report_has_its_figures(folder):
    report = (folder / "REPORT.md").read_text()
    assert re.search(r"\{\{|\{%|@", report) is None
    for link in re.findall(r"\]\(([^)]+)\)", report):
        assert (folder / link).exists(), link


@by_name
def test_the_report_says_what_its_template_says(folder):
    """Whoever changes the text of one changes that of the other: only what is between braces may be anything."""
    text, depth, pattern = (folder / "report.md.j2").read_text(), 0, ""
    for piece in re.split(r"(\{\{.*?\}\}|\{%.*?%\})", text, flags=re.DOTALL):
        if piece.startswith("{"):
            word = piece.strip("{%-+ }").split()[0]
            depth += (word in ("for", "filter")) - word.startswith("end")
            pattern += ".*?" if not pattern.endswith(".*?") else ""
        elif depth == 0:
            pattern += re.escape(piece.strip())
    assert re.fullmatch(pattern, (folder / "REPORT.md").read_text().strip(), re.DOTALL)


@by_name
def test_a_misspelt_parameter_is_found(folder):
    with pytest.raises(ql.errors.UnknownParameter, match="did you mean 'checkpoint'"):
        ql.experiments.plan(folder, settings={"checkpiont": "toy-moe"})


@pytest.mark.slow
@pytest.mark.parametrize(
    "folder", [folder for folder in EXPERIMENTS if folder.name in SMALL], ids=lambda folder: folder.name
)
def test_a_point_of_it_runs(folder, tmp_path):
    settings, only = SMALL[folder.name]
    result = ql.experiments.run(folder, settings=settings, only=only, store=tmp_path)
    assert result.complete, result.outcomes
    table = ql.experiments.metrics(folder.name, store=tmp_path)
    assert set(table["metric"]) == set(result.plan.spec.metrics)
    assert table["value"].notna().all()
