"""Every notebook, run by papermill as a user would run it, on the shipped toys and on a model of other shape."""

import re
import shutil
from pathlib import Path

import jupytext
import pytest

import qwenlab as ql
from qwenlab.errors import BadParameter, NotebookFailed, UnknownParameter
from qwenlab.execution import run_notebook
from qwenlab.testing.checkpoints import tiny_checkpoint

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.py"))
SMALL = {
    "00_tour": dict(texts_per_domain=2, max_tokens=32),
    "10_layers": dict(
        texts_per_domain=2, max_tokens=32, contexts=[16, 32], decode_steps=2, repeats=1, recall_texts=2, controls=1
    ),
    "12_memory": dict(texts_per_domain=2, max_tokens=32, every=4, lists=[2, 4], recall_texts=4, decode_tokens=12),
    "13_maps": dict(texts_per_domain=2, max_tokens=32, every=4, pairs=2, recall_texts=4, map_tokens=8),
    "20_routing": dict(texts_per_domain=2, max_tokens=32),
    "30_acceptance": dict(texts_per_domain=2, max_tokens=24, new_tokens=24, depth=2),
    "40_ablations": dict(texts_per_domain=2, max_tokens=24, pairs=[2], controls=1),
    "41_patching": dict(texts_per_domain=3, max_tokens=12, pairs=2),
}
FIGURES = {
    "00_tour": {"half_life", "layers"},
    "10_layers": {
        *("layers", "half_life", "attention_distance", "gates", "residual", "time_by_kind", "cost_by_context"),
        *("memory_by_context", "recall", "initialisation"),
    },
    "12_memory": {
        *("growth", "rank", "by_head", "retention", "retention_by_domain", "interference", "capacity"),
        *("capacity_by_writes", "precision", "precision_by_head", "loss"),
    },
    "13_maps": {
        *("reconstruction", "mass_by_distance", "reach", "domains", "retrieval", "maps_recall", "maps_prose"),
        *("openness", "sink"),
    },
    "20_routing": {
        *("expert_load", "specialisation", "coactivation", "distinct_experts", "unused_experts"),
    },
    "30_acceptance": {
        *("acceptance", "acceptance_by_domain", "acceptance_by_entropy", "calibration", "teacher_forced", "speedup"),
    },
    "40_ablations": {"loss_map", "recall_map", "ranking"},
    "41_patching": {"another_value", "another_key", "another_text"},
    "90_compare": {"by_setting", "differences"},
}
PARAMETERS = {
    path.stem: ("checkpoint", "texts_per_domain", "max_tokens", "device", "dtype", "out") for path in NOTEBOOKS
}
PARAMETERS["90_compare"] = ("store", "experiment", "metric", "out")  # it reads a store, not a checkpoint
VIEWS = {"10_layers", "13_maps", "20_routing"}  # those with the figure of a view to choose in
by_name = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
of_a_trunk = pytest.mark.parametrize(
    "path",
    [FOLDER / f"{stem}.py" for stem in SMALL if stem not in ("30_acceptance", "40_ablations", "41_patching")],
    ids=lambda path: path.stem,
)


def outputs(executed: Path) -> list:
    return [output for cell in jupytext.read(executed).cells for output in cell.get("outputs", [])]


def markdown(executed: Path) -> list[str]:
    return [output.data["text/markdown"] for output in outputs(executed) if "text/markdown" in output.get("data", {})]


def check(executed: Path, out: Path, stem: str) -> None:
    """What every run of a notebook on a checkpoint leaves: a recording, and what every run of a notebook leaves."""
    recording = ql.Recording.open(out / "recording.nc")
    assert int(recording.attrs["tokens"]) > 0
    check_figures(executed, out, stem)


def check_figures(executed: Path, out: Path, stem: str) -> None:
    """What every run of a notebook leaves: its figures as files, and outputs that stand alone."""
    saved = {file.stem for file in out.glob("*.png") if file.stat().st_size > 5_000}
    assert saved == FIGURES[stem] == {file.stem for file in out.glob("*.svg")}
    shown = [output for output in outputs(executed) if "image/png" in output.get("data", {})]
    assert len(shown) == len(FIGURES[stem]) + (stem in VIEWS)
    assert all(output.metadata["image/png"].get("alt") for output in shown)
    warnings = [output.text for output in outputs(executed) if output.get("name") == "stderr"]
    assert not [text for text in warnings if "Warning" in text]


def that_reads_like_the_toys(folder: Path, **sizes) -> Path:
    """A random checkpoint with the toys' tokenizer, which has letters and digits."""
    tiny_checkpoint(folder, mtp=None, vocab_size=2048, **sizes)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(ql.checkpoint.__path__[0]) / "toys" / "toy-moe" / file, folder)
    return folder


@by_name
def test_is_text_with_a_parameters_cell_and_no_outputs(path):
    notebook = jupytext.read(path)
    assert notebook.metadata.kernelspec.name == "python3"
    assert outputs(path) == []
    (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    for name in PARAMETERS[path.stem]:
        assert re.search(rf"^{name}: .+ = .+  # .+", parameters.source, re.MULTILINE), name


@by_name
def test_links_lead_somewhere(path):
    text = "".join(cell.source for cell in jupytext.read(path).cells if cell.cell_type == "markdown")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("https://")]
    assert ("../docs/glossary.md" in links) != (path.stem == "00_tour")  # the tour is also read without a clone
    assert [link for link in links if not (FOLDER / link).exists()] == []


@by_name
def test_parameters_are_checked(path, tmp_path):
    known, wrong = ("metric", 3) if path.stem == "90_compare" else ("max_tokens", "3")
    with pytest.raises(UnknownParameter, match=f"did you mean '{known}'"):
        run_notebook(path, tmp_path, **{known[:-1]: wrong})
    with pytest.raises(BadParameter, match=f"'{known}' cannot be {wrong!r}"):
        run_notebook(path, tmp_path, **{known: wrong})


@pytest.mark.slow
def test_the_layers_on_toy_moe(tmp_path):
    small = SMALL["10_layers"]
    executed = run_notebook(FOLDER / "10_layers.py", tmp_path, checkpoint="toy-moe", out=str(tmp_path), **small)
    check(executed, tmp_path, "10_layers")


@pytest.mark.slow
@by_name
def test_as_it_stands(path, tmp_path):
    """With its own parameters, and keeping nothing."""
    run_notebook(path, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [f"{path.stem}.ipynb"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stem", "toy"),
    [
        ("00_tour", "toy-moe"),
        ("00_tour", "toy-dense"),
        ("10_layers", "toy-dense"),
        ("12_memory", "toy-dense"),
        ("13_maps", "toy-moe"),
        ("13_maps", "toy-dense"),
        ("20_routing", "toy-moe"),
        *(("30_acceptance", toy) for toy in ("toy-moe", "toy-dense")),
        *(("40_ablations", toy) for toy in ("toy-moe", "toy-dense")),
        ("41_patching", "toy-dense"),
    ],
)
def test_on_the_toys(stem, toy, tmp_path):
    executed = run_notebook(FOLDER / f"{stem}.py", tmp_path, checkpoint=toy, out=str(tmp_path), **SMALL[stem])
    check(executed, tmp_path, stem)
    assert ql.Recording.open(tmp_path / "recording.nc").checkpoint == toy


@pytest.mark.slow
def test_memory_says_that_states_are_the_same_however_they_are_read(tmp_path):
    executed = run_notebook(FOLDER / "12_memory.py", tmp_path, out=str(tmp_path), **SMALL["12_memory"])
    check(executed, tmp_path, "12_memory")
    said = "\n".join(markdown(executed))
    assert float(re.search(r"the three ways are the same to \*\*(\S+)\*\* of their norm", said)[1]) < 1e-4
    assert [
        each for each in ("bfloat16", "float8_e4m3", "int8") if f"**{each}** changes the loss most on" not in said
    ] == []
    assert float(re.search(r"no text's loss changes by more than (\S+) nat", said)[1]) < 1e-4
    lists = ql.Recording.open(tmp_path / "lists.nc")
    assert list(ql.stats.retention(lists, by=None, by_label=True)["label"].values) == ["2", "4"]
    assert len((tmp_path / "heads.csv").read_text().splitlines()) == 1 + 6 * 8


@pytest.mark.slow
def test_maps_say_what_they_are_of_and_are_kept_for_print(tmp_path):
    small = SMALL["13_maps"] | dict(dtype="bfloat16")
    executed = run_notebook(FOLDER / "13_maps.py", tmp_path, checkpoint="toy-moe", out=str(tmp_path), **small)
    check(executed, tmp_path, "13_maps")
    assert {file.stem for file in tmp_path.glob("*.pdf")} == FIGURES["13_maps"]
    said = "\n".join(markdown(executed))
    head, layer = re.search(r"The one chosen, head (\d+) of layer (\d+), puts \S+ \[", said).groups()
    kept = ql.Recording.open(tmp_path / "maps.nc")
    assert ql.stats.attention_map(kept, layer=int(layer), head=int(head), text=2).attrs["kind"] == "linear_attention"
    assert "all of 32 tokens" in said


@pytest.mark.slow
def test_patching_says_where_the_answer_is_and_that_controls_do_nothing(tmp_path):
    executed = run_notebook(FOLDER / "41_patching.py", tmp_path, out=str(tmp_path), **SMALL["41_patching"])
    check(executed, tmp_path, "41_patching")
    said = "\n".join(markdown(executed))
    assert len(re.findall(r"holds half of it first \*\*after layer \d \((DeltaNet|attention)\)\*\*", said)) == 2
    assert float(re.search(r"restore everything at the question mark, to (\S+)\.", said)[1]) < 1e-4
    same, sorts = re.search(r"own values .* \*\*(\d+) of (\d+)\*\* sorts of value .* leave every logit", said).groups()
    assert same == sorts
    assert float(re.search(r"Before the change the largest difference .* \*\*(\S+) nat\*\*", said)[1]) < 1e-4
    kept = ql.Recording.open(tmp_path / "recording.nc")
    assert ql.stats.patching(kept)["restored"].sizes == {"site": 24, "position": 5}
    assert ql.stats.patching(kept["another_key"])["part"].values[0] == "residual"


@pytest.mark.slow
def test_patching_of_a_model_that_cannot_recall_ends_with_that(tmp_path):
    """Nothing is bound to the layers of the toys; there is no answer to be found."""
    kinds = ["full_attention", "linear_attention", "linear_attention"]
    odd, small = that_reads_like_the_toys(tmp_path / "odd", layer_types=kinds), SMALL["41_patching"]
    with pytest.raises(NotebookFailed, match=r"raised NothingMeasured: There is nothing to restore: after the source"):
        run_notebook(FOLDER / "41_patching.py", tmp_path, checkpoint=str(odd), **small)


@pytest.mark.slow
@of_a_trunk
def test_on_a_checkpoint_of_another_shape(path, tmp_path):
    """Nothing is bound to 8 layers, 16 experts, an MTP head, or a layer pattern that repeats."""
    kinds = ["full_attention", "linear_attention", "linear_attention", "full_attention", "linear_attention"]
    tiny_checkpoint(tmp_path / "odd", layer_types=kinds, num_experts=6, num_experts_per_tok=3, mtp=None)
    out = tmp_path / "out"
    executed = run_notebook(path, out, checkpoint=str(tmp_path / "odd"), out=str(out), **SMALL[path.stem])
    check(executed, out, path.stem)


@pytest.mark.slow
def test_ablations_of_an_untrained_checkpoint_of_another_shape(tmp_path):
    """It has nothing to lose, and is told so. With the toys' tokenizer: the tiny one cannot write recall tasks."""
    kinds = ["full_attention", "linear_attention", "linear_attention", "full_attention", "linear_attention"]
    odd = that_reads_like_the_toys(tmp_path / "odd", layer_types=kinds, num_experts=6, num_experts_per_tok=3)
    out, small = tmp_path / "out", SMALL["40_ablations"]
    executed = run_notebook(FOLDER / "40_ablations.py", out, checkpoint=str(odd), out=str(out), **small)
    check(executed, out, "40_ablations")
    (said,) = [text for text in markdown(executed) if "nothing stands" in text]
    assert "The unedited model is not surely above chance here" in said
    assert said == (out / "findings.md").read_text()


@pytest.mark.slow
def test_drafts_of_a_head_that_was_never_trained(tmp_path):
    """It is told so, and all else still holds: the text is lossless, and nothing pays."""
    kinds = ["full_attention", "linear_attention", "linear_attention"]
    tiny_checkpoint(tmp_path / "odd", "qwen3_5", layer_types=kinds)
    out, small = tmp_path / "out", SMALL["30_acceptance"]
    executed = run_notebook(FOLDER / "30_acceptance.py", out, checkpoint=str(tmp_path / "odd"), out=str(out), **small)
    check(executed, out, "30_acceptance")
    (said,) = [text for text in markdown(executed) if "By these costs" in text]
    assert "no depth pays here" in said


@pytest.mark.slow
def test_drafts_of_a_checkpoint_without_a_head_end_with_what_is_missing(tmp_path):
    tiny_checkpoint(tmp_path / "headless", mtp=None)
    with pytest.raises(NotebookFailed, match=r"raised NoMtpHead: .*has no MTP head"):
        run_notebook(FOLDER / "30_acceptance.py", tmp_path, checkpoint=str(tmp_path / "headless"))


@pytest.mark.slow
def test_routing_of_a_dense_checkpoint_ends_with_what_is_missing(tmp_path):
    with pytest.raises(NotebookFailed, match=r"raised NothingToProbe: .*has a router"):
        run_notebook(FOLDER / "20_routing.py", tmp_path, checkpoint="toy-dense")


@pytest.mark.slow
def test_comparing_runs_that_it_makes_itself(tmp_path):
    executed = run_notebook(FOLDER / "90_compare.py", tmp_path, out=str(tmp_path))
    check_figures(executed, tmp_path, "90_compare")
    (said,) = [text for text in markdown(executed) if "went from" in text]
    assert re.search(r"`loss` went from .* nat: .* at 97\.5 %, over 10 of `text`: \*\*(beyond|within) noise\*\*", said)
    assert re.search(r"`distance` went from .* token: .*, with nothing to tell noise by", said)


SIZE = """\
# %% tags=["parameters"]
size: float = 0.5
how: str = "plain"
seed: int = 0

# %%
from qwenlab.experiments import record

record(total=size + seed)
"""


@pytest.mark.slow
@pytest.mark.parametrize("sweep", ["{size: [0.5, 2]}", "{how: [plain, fancy], size: [1, 2]}", "{}"])
def test_comparing_runs_of_a_given_store(sweep, tmp_path):
    """Numbers without labels, no pairs, no datasets; words as parameters, or none that differ."""
    folder, store = tmp_path / "sizes", str(tmp_path / "store")
    folder.mkdir()
    (folder / "size.py").write_text(SIZE)
    metrics = "metrics: {total: {units: '1'}}"
    (folder / "spec.yaml").write_text(
        f"question: How large?\nnotebook: size.py\nseeds: [3, 4]\nsweep: {{grid: {sweep}}}\n{metrics}\n"
    )
    assert ql.experiments.run(folder, store=store).complete
    executed = run_notebook(FOLDER / "90_compare.py", tmp_path, store=store, out=str(tmp_path))
    assert {file.stem for file in tmp_path.glob("*.png")} == {"by_setting"}
    assert [text for text in markdown(executed) if "How large? Its" in text and "one number a run" in text]
    assert [text for text in markdown(executed) if "with nothing to tell noise by" in text]
