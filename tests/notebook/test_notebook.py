"""Figures and results of a notebook: shown with a description, saved in its folder, and nothing without one."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
import transformers
import xarray as xr
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

import qwenlab as ql
from qwenlab.errors import BadArgument
from qwenlab.plots.style import NotebookFigure
from qwenlab.testing.recordings import made_recording

PNG = b"\x89PNG"


@pytest.fixture(autouse=True)
def shell():
    before = pd.options.display.float_format
    yield InteractiveShell.instance()
    InteractiveShell.clear_instance()
    pd.options.display.float_format = before


def drawn():
    """A figure that pyplot knows of and IPython can show without its inline backend."""
    figure = plt.figure(FigureClass=NotebookFigure, layout="constrained")
    figure.subplots().plot([1, 2])
    return figure


def test_a_figure_is_shown_once_with_its_description_and_saved_in_every_format(tmp_path):
    notebook = ql.notebook.start(tmp_path / "new", formats=("png", "svg", "pdf"))
    others = plt.get_fignums()  # open figures of other tests
    figure = drawn()
    with capture_output() as captured:
        notebook.show("line", figure, "A line that rises.")
    (shown,) = captured.outputs
    assert shown.data["image/png"].startswith(PNG)
    assert shown.metadata["image/png"]["alt"] == "A line that rises."
    assert plt.get_fignums() == others
    assert {file.name for file in (tmp_path / "new").iterdir()} == {"line.png", "line.svg", "line.pdf"}
    assert (tmp_path / "new" / "line.png").read_bytes().startswith(PNG)
    assert figure.get_layout_engine() is not None, "the figure is as it was"


def test_a_later_figure_of_the_same_name_replaces_the_first(tmp_path, capsys):
    notebook = ql.notebook.start(tmp_path)
    with capture_output():
        notebook.show("line", drawn(), "One.")
        first = (tmp_path / "line.png").read_bytes()
        figure = drawn()
        figure.axes[0].set_title("second")
        notebook.show("line", figure, "Another.")
    assert (tmp_path / "line.png").read_bytes() != first
    notebook.save()
    assert capsys.readouterr().out == f"saved in {tmp_path}: line (.png, .svg)\n"


def test_results_are_saved_by_type_and_listed_with_the_figures(tmp_path, capsys):
    recording, table = made_recording(), pd.DataFrame({"a": [1]}, index=pd.Index([3], name="layer"))
    costs = xr.Dataset({"seconds": ("context", [1.0])})
    notebook = ql.notebook.start(tmp_path)
    notebook.save(recording=recording, costs=costs, heads=table, findings="**Nothing** is significant.\n")
    assert ql.Recording.open(tmp_path / "recording.nc").tree.identical(recording.tree)
    assert xr.load_dataset(tmp_path / "costs.nc").identical(costs)
    assert (tmp_path / "heads.csv").read_text() == "layer,a\n3,1\n"
    assert (tmp_path / "findings.md").read_text() == "**Nothing** is significant.\n"
    assert capsys.readouterr().out == f"saved in {tmp_path}: recording.nc, costs.nc, heads.csv, findings.md\n"


def test_without_a_folder_nothing_is_saved(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    notebook = ql.notebook.start()
    with capture_output() as captured:
        notebook.show("line", drawn(), "A line that rises.")
    notebook.save(table=pd.DataFrame())
    assert len(captured.outputs) == 1
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_a_result_of_another_type_is_refused_before_a_file_is_written(tmp_path):
    with pytest.raises(BadArgument, match=r"save\(line=\.\.\.\) got a NotebookFigure; .*Save figures with show"):
        ql.notebook.start(tmp_path).save(table=pd.DataFrame(), line=drawn())
    assert list(tmp_path.iterdir()) == []
    plt.close("all")


def test_names_and_formats_that_cannot_be_files_are_refused(tmp_path):
    with pytest.raises(BadArgument, match="'a/b' cannot name a file: use letters, digits, dash and underscore"):
        ql.notebook.start(tmp_path).show("a/b", drawn(), "A line.")
    with pytest.raises(BadArgument, match="a figure cannot be saved as 'gif': choose from png, svg, pdf"):
        ql.notebook.start(tmp_path, formats=("png", "gif"))
    plt.close("all")


def test_tables_have_so_many_digits():
    ql.notebook.start(digits=2)
    assert "0.12\n" in pd.DataFrame({"a": [0.12345]}).to_string() + "\n"


def test_outside_of_jupyter_it_works_too(tmp_path):
    InteractiveShell.clear_instance()
    ql.notebook.start(tmp_path).show("line", drawn(), "A line that rises.")
    assert (tmp_path / "line.svg").exists()


@pytest.fixture
def two_threads():
    threads, verbosity = torch.get_num_threads(), transformers.logging.get_verbosity()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)
    transformers.logging.set_verbosity(verbosity)


def test_a_toy_opens_with_one_thread_and_without_log_messages(two_threads):
    opened = ql.notebook.start().open("toy-dense", dtype="bfloat16")
    assert torch.get_num_threads() == 1
    assert transformers.logging.get_verbosity() == transformers.logging.ERROR
    assert opened.model.dtype == torch.bfloat16


def test_threads_of_a_large_model_are_left_alone(two_threads, monkeypatch):
    monkeypatch.setattr("qwenlab.notebook.notebook.SMALL", 10)
    ql.notebook.start().open("toy-dense")
    assert torch.get_num_threads() == 2
