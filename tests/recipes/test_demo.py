"""The demo's contract with its notebook: two parameters in; a recording and figures out."""

import sys

import pytest

from qwenlab.errors import NotebookFailed
from qwenlab.recipes import demo

SAVES = """\
# %% tags=["parameters"]
checkpoint: str = "toy-moe"
out: str = ""

# %%
from pathlib import Path

Path(out, "layers.png").write_bytes(b"")
Path(out, "recording.nc").write_text(checkpoint)
"""


@pytest.fixture
def small_notebook(tmp_path, monkeypatch):
    path = tmp_path / "10_layers.py"
    path.write_text(SAVES)
    monkeypatch.setattr(sys.modules["qwenlab.recipes.demo"], "shipped_notebook", lambda name: path)
    return path


@pytest.mark.slow
def test_names_what_the_notebook_saved_and_nothing_older(small_notebook, tmp_path):
    out = tmp_path / "runs"
    out.mkdir()
    (out / "old.png").touch()
    saved = demo("toy-dense", out)
    assert saved.recording.read_text() == "toy-dense"
    assert saved.figures == (out / "layers.png",)
    assert saved.notebook == out / "10_layers.ipynb"


@pytest.mark.slow
def test_a_notebook_that_saves_no_recording_is_an_error(small_notebook, tmp_path):
    small_notebook.write_text(SAVES.replace("recording.nc", "reading.nc"))
    (tmp_path / "recording.nc").write_text("of an earlier run")
    with pytest.raises(NotebookFailed, match=r"ran to its end but did not save .*recording\.nc"):
        demo(out=tmp_path)
