"""Notebooks run for real, through papermill, on a kernel."""

import json
import sys
import traceback
from pathlib import Path

import jupytext
import nbformat
import pytest

from qwenlab.errors import BadParameter, NotebookFailed, UnknownNotebook, UnknownParameter
from qwenlab.execution import run_notebook

pytestmark = pytest.mark.slow  # processes or Jupyter kernels are started

NOTEBOOK = """\
# %% [markdown]
# A question.

# %% tags=["parameters"]
from typing import Literal

checkpoint: str = "toy-moe"  # a name, a folder
depth: int | None = None
share: float = 0.5
style: Literal["a=b", "c"] = "a=b"
kinds: list[str] = []
seed = 1
anything = None

# %%
import sys, os

print(checkpoint, depth, share, seed)
print(sys.executable)
print(os.getcwd())

# %%
assert seed < 10, "seeds end at nine"
if seed == 9:
    os._exit(1)
"""


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    path = tmp_path / "notebooks" / "question.py"
    path.parent.mkdir()
    path.write_text(NOTEBOOK)
    return path


def printed(executed: Path) -> list[str]:
    outputs = [output for cell in jupytext.read(executed).cells for output in cell.get("outputs", [])]
    return "".join(output["text"] for output in outputs if output["output_type"] == "stream").splitlines()


def test_runs_with_its_parameters_in_its_folder_on_this_python(notebook, tmp_path, monkeypatch):
    stale = tmp_path / "jupyter" / "kernels" / "python3"
    stale.mkdir(parents=True)
    spec = {"argv": ["/gone/python"], "display_name": "x", "language": "python"}
    (stale / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))

    executed = run_notebook(notebook, tmp_path / "out", checkpoint="toy-dense", depth=3)

    assert printed(executed) == ["toy-dense 3 0.5 1", sys.executable, str(notebook.parent)]
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["question.ipynb"]
    assert jupytext.read(executed).metadata.papermill.input_path == str(notebook)


def test_progress_is_shown(notebook, tmp_path, capfd):
    run_notebook(notebook, tmp_path / "out")
    assert "question: 100%" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("seed", "message"), [(10, r"cell \[4\] raised AssertionError: seeds end at nine"), (9, "the kernel stopped")]
)
def test_the_copy_of_a_failed_run_is_named_failed(notebook, tmp_path, seed, message):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "question.ipynb").write_text("of an earlier run")
    with pytest.raises(NotebookFailed, match=message) as failure:
        run_notebook(notebook, tmp_path / "out", seed=seed)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["question.failed.ipynb"]
    assert "question.failed.ipynb" in str(failure.value)


SECRETIVE = """\
# %% tags=["parameters"]
pin: int = 0
eos_token: str = "</s>"

# %%
print(pin + 1, pin, eos_token)
raise ValueError(f"{pin} was refused")
"""


def test_a_secret_of_the_environment_is_in_no_file_and_no_error(notebook, tmp_path, monkeypatch):
    notebook.write_text(SECRETIVE)
    monkeypatch.setenv("PIN", "918273645")
    with pytest.raises(NotebookFailed, match="raised ValueError: ••• was refused") as error:
        run_notebook(notebook, tmp_path / "out", pin={"env": "PIN"}, eos_token="e")
    assert "918273645" not in "".join(traceback.format_exception(error.value))
    executed = tmp_path / "out" / "question.failed.ipynb"
    assert "918273645" not in executed.read_text()
    assert printed(executed) == ["918273646 ••• e"]
    nbformat.validate(nbformat.read(executed, 4))
    assert jupytext.read(executed).metadata.papermill.parameters == {"pin": "••• ($PIN)", "eos_token": "e"}


def test_a_plain_value_with_the_name_of_a_credential_is_warned_of(notebook, tmp_path):
    notebook.write_text('# %% tags=["parameters"]\nhf_token: str = ""\nsort_key: str = "a"\n')
    with pytest.warns(
        UserWarning, match=r"'hf_token' is written into the executed notebook.*\{\"env\": NAME\}"
    ) as seen:
        executed = run_notebook(notebook, tmp_path / "out", hf_token="hf_abcdef", sort_key="name")
    assert "hf_abcdef" in executed.read_text()
    assert not [each for each in seen if "sort_key" in str(each.message)]


class TestBeforeTheFirstCellRuns:
    @pytest.fixture(autouse=True)
    def nothing_ran(self, tmp_path):
        yield
        assert not (tmp_path / "out").exists()

    def test_a_misspelt_parameter_is_an_error_naming_the_nearest(self, notebook, tmp_path):
        with pytest.raises(UnknownParameter, match="no parameter 'checkpiont': did you mean 'checkpoint'") as error:
            run_notebook(notebook, tmp_path / "out", checkpiont="toy-dense")
        assert "It has: checkpoint, depth, share, style, kinds, seed, anything." in str(error.value)

    def test_a_notebook_without_a_parameters_cell_says_so(self, notebook, tmp_path):
        notebook.write_text("# %%\nseed = 1\n")
        with pytest.raises(UnknownParameter, match="no parameter 'seed': tag a cell 'parameters' that assigns it"):
            run_notebook(notebook, tmp_path / "out", seed=2)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("checkpoint", 3),
            ("checkpoint", Path("toy-moe")),
            ("depth", "3"),
            ("depth", True),
            ("share", "half"),
            ("style", "b"),
            ("kinds", [1]),
            ("seed", 1.5),
            ("anything", Path("here")),
        ],
    )
    def test_a_value_of_another_type_is_an_error(self, notebook, tmp_path, name, value):
        with pytest.raises(BadParameter, match=f"parameter {name!r} cannot be .*{type(value).__name__}"):
            run_notebook(notebook, tmp_path / "out", **{name: value})

    def test_a_type_that_cannot_be_read_is_an_error(self, notebook, tmp_path):
        notebook.write_text(NOTEBOOK.replace("share: float", "share: Flaot"))
        with pytest.raises(BadParameter, match="'share' is annotated `Flaot`, which is not a type: name 'Flaot'"):
            run_notebook(notebook, tmp_path / "out", share=0.1)

    def test_a_missing_notebook_lists_those_of_its_folder(self, notebook, tmp_path):
        with pytest.raises(UnknownNotebook, match=r"That folder has: question\.py"):
            run_notebook(notebook.with_name("answer.py"), tmp_path / "out")
