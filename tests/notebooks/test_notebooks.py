"""Every notebook, executed on the shipped toys and on a model of another shape: its files, figures and sentences."""

import ast
import re

import jupytext
import pytest

import qwenlab as ql
from qwenlab.errors import BadParameter, NotebookFailed, UnknownParameter
from qwenlab.execution import run_notebook
from qwenlab.testing.checkpoints import tiny_checkpoint
from tests.notebooks.conftest import EXPERTS, FOLDER, ODD

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
PATTERN = dict(layer_types=["full_attention", "linear_attention", "linear_attention"])
by_name = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def check(executed, stem):
    """What every run of a notebook leaves: its recording, its figures as files, and outputs that stand alone."""
    if stem != "90_compare":  # it reads a store, not a checkpoint
        assert int(executed.recording().attrs["tokens"]) > 0
    saved = {file.stem for file in executed.out.glob("*.png") if file.stat().st_size > 5_000}
    assert saved == FIGURES[stem] == {file.stem for file in executed.out.glob("*.svg")}
    shown = [output for output in executed.outputs if "image/png" in output.get("data", {})]
    assert len(shown) == len(FIGURES[stem]) + (stem in VIEWS)
    assert all(output.metadata["image/png"].get("alt") for output in shown)
    warnings = [output.text for output in executed.outputs if output.get("name") == "stderr"]
    assert not [text for text in warnings if "Warning" in text]


@by_name
def test_is_text_with_a_parameters_cell_and_no_outputs(path):
    notebook = jupytext.read(path)
    assert notebook.metadata.kernelspec.name == "python3"
    assert [output for cell in notebook.cells for output in cell.get("outputs", [])] == []
    (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    for name in PARAMETERS[path.stem]:
        assert re.search(rf"^{name}: .+ = .+  # .+", parameters.source, re.MULTILINE), name


@by_name
def test_only_the_helper_knows_of_the_folder(path):
    """So that `out=None` saves nothing: tests/notebook/test_notebook.py."""
    code = "\n".join(cell.source for cell in jupytext.read(path).cells if cell.cell_type == "code")
    uses = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name) and node.id == "out"]
    assert len(uses) == 2  # the parameter, and
    assert re.findall(r"^notebook = ql\.notebook\.start\(out\b", code, re.MULTILINE)


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
def test_as_a_user_runs_it(tmp_path):
    """In a kernel of its own, and keeping nothing but the executed copy."""
    run_notebook(FOLDER / "20_routing.py", tmp_path, **SMALL["20_routing"])
    assert [file.name for file in tmp_path.iterdir()] == ["20_routing.ipynb"]


@pytest.mark.slow
@by_name
def test_as_it_stands(path, executed):
    """With the values of its own parameters cell: on toy-moe."""
    done = executed(path.stem)
    check(done, path.stem)
    if path.stem != "90_compare":
        assert done.recording().checkpoint == "toy-moe"


@pytest.mark.slow
@pytest.mark.parametrize("stem", [stem for stem in SMALL if stem != "20_routing"])
def test_on_toy_dense(stem, executed):
    done = executed(stem, checkpoint="toy-dense", **SMALL[stem])
    check(done, stem)
    assert done.recording().checkpoint == "toy-dense"


@pytest.mark.slow
@pytest.mark.parametrize("stem", [stem for stem in SMALL if stem < "30"])
def test_on_a_checkpoint_of_another_shape(stem, executed, odd):
    """Nothing depends on 8 layers, 16 experts, an MTP head, or a layer pattern that repeats."""
    check(executed(stem, checkpoint=odd, **SMALL[stem]), stem)


@pytest.mark.slow
def test_memory_says_that_states_are_the_same_however_they_are_read(executed):
    done = executed("12_memory")
    same = re.search(r"the three ways are the same to \*\*(\S+)\*\* of their norm", done.text)
    assert float(same[1]) < 1e-4
    formats = ("bfloat16", "float8_e4m3", "int8")
    assert [each for each in formats if f"**{each}** changes the loss most on" not in done.text] == []
    assert float(re.search(r"no text's loss changes by more than (\S+) nat", done.text)[1]) < 1e-4
    lists = done.recording("lists")
    assert list(ql.stats.retention(lists, by=None, by_label=True)["label"].values) == ["2", "8", "24", "52"]
    assert len((done.out / "heads.csv").read_text().splitlines()) == 1 + 6 * 8


@pytest.mark.slow
def test_maps_say_what_they_are_of_and_are_kept_for_print(executed):
    done = executed("13_maps", dtype="bfloat16", **SMALL["13_maps"])
    check(done, "13_maps")
    assert {file.stem for file in done.out.glob("*.pdf")} == FIGURES["13_maps"]
    head, layer = re.search(r"The one chosen, head (\d+) of layer (\d+), puts \S+ \[", done.text).groups()
    drawn = ql.stats.attention_map(done.recording("maps"), layer=int(layer), head=int(head), text=2)
    assert drawn.attrs["kind"] == "linear_attention"
    assert "all of 32 tokens" in done.text


@pytest.mark.slow
def test_patching_says_where_the_answer_is_and_that_controls_do_nothing(executed):
    done = executed("41_patching")
    half = re.findall(r"holds half of it first \*\*after layer \d \((DeltaNet|attention)\)\*\*", done.text)
    assert len(half) == 2
    assert float(re.search(r"restore everything at the question mark, to (\S+)\.", done.text)[1]) < 1e-4
    same = re.search(r"own values .* \*\*(\d+) of (\d+)\*\* kinds of activation .* leave every logit", done.text)
    assert same[1] == same[2]
    before = re.search(r"Before the change the largest difference .* \*\*(\S+) nat\*\*", done.text)
    assert float(before[1]) < 1e-4
    assert ql.stats.patching(done.recording())["restored"].sizes == {"site": 24, "position": 5}
    assert ql.stats.patching(done.recording()["another_key"])["part"].values[0] == "residual"


@pytest.mark.slow
def test_patching_of_a_model_that_cannot_recall_ends_with_that(executed, odd_that_reads):
    """Nothing depends on the layers of the toys; there is no answer to be found."""
    checkpoint = odd_that_reads("silent", **PATTERN)
    with pytest.raises(NotebookFailed, match=r"raised NothingMeasured: There is nothing to restore: after the source"):
        executed("41_patching", checkpoint=checkpoint, **SMALL["41_patching"])


@pytest.mark.slow
def test_ablations_of_an_untrained_checkpoint_of_another_shape(executed, odd_that_reads):
    """It has nothing to lose, and the notebook says so. The tiny tokenizer cannot write recall tasks."""
    checkpoint = odd_that_reads("untrained", layer_types=ODD, **EXPERTS)
    done = executed("40_ablations", checkpoint=checkpoint, **SMALL["40_ablations"])
    check(done, "40_ablations")
    (findings,) = [text for text in done.markdown if "no effect is significant" in text]
    assert "The intact model is not significantly above chance here" in findings
    assert findings == (done.out / "findings.md").read_text()


@pytest.mark.slow
def test_drafts_of_a_head_that_was_never_trained(executed, tmp_path):
    """The notebook says so, and all else still holds: the text is lossless, and nothing pays."""
    tiny_checkpoint(tmp_path / "odd", "qwen3_5", **PATTERN)
    done = executed("30_acceptance", checkpoint=str(tmp_path / "odd"), **SMALL["30_acceptance"])
    check(done, "30_acceptance")
    (advice,) = [text for text in done.markdown if "By these costs" in text]
    assert "no depth pays here" in advice


@pytest.mark.slow
def test_drafts_of_a_checkpoint_without_a_head_end_with_what_is_missing(executed, odd):
    with pytest.raises(NotebookFailed, match=r"raised NoMtpHead: .*has no MTP head"):
        executed("30_acceptance", checkpoint=odd)


@pytest.mark.slow
def test_routing_of_a_dense_checkpoint_ends_with_what_is_missing(executed):
    with pytest.raises(NotebookFailed, match=r"raised MissingPart: .*has a router"):
        executed("20_routing", checkpoint="toy-dense")


@pytest.mark.slow
def test_comparing_runs_that_it_makes_itself(executed):
    (moved,) = [text for text in executed("90_compare").markdown if "went from" in text]
    assert re.search(
        r"`loss` went from .* nat/token: .* at 97\.5 %, over 10 of `text`: \*\*(beyond|within) noise\*\*", moved
    )
    assert re.search(r"`distance` went from .* token: .*, without pairs, so without an interval", moved)


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
def test_comparing_runs_of_a_given_store(sweep, tmp_path, executed):
    """Numbers without labels, no pairs, no datasets; words as parameters, or none that differ."""
    folder, store = tmp_path / "sizes", str(tmp_path / "store")
    folder.mkdir()
    (folder / "size.py").write_text(SIZE)
    metrics = "metrics: {total: {units: '1'}}"
    (folder / "spec.yaml").write_text(
        f"question: How large?\nnotebook: size.py\nseeds: [3, 4]\nsweep: {{grid: {sweep}}}\n{metrics}\n"
    )
    assert ql.experiments.run(folder, store=store).complete
    done = executed("90_compare", store=store)
    assert {file.stem for file in done.out.glob("*.png")} == {"by_setting"}
    assert [text for text in done.markdown if "How large? Its" in text and "one number a run" in text]
    assert [text for text in done.markdown if "without pairs, so without an interval" in text]
