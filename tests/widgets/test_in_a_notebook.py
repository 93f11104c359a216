"""The view in a notebook that papermill runs: its figure stays in the file, and follows what is chosen later."""

import jupytext
import pytest

from qwenlab.execution import run_notebook

NOTEBOOK = """\
# %%
from qwenlab.testing.recordings import made_recording
from qwenlab.widgets import explore_layers

explorer = explore_layers(made_recording(sequences=4))
explorer

# %%
explorer["layer"].value = 3
"""


@pytest.mark.slow
def test_the_figure_stays_and_follows(tmp_path):
    path = tmp_path / "view.py"
    path.write_text(NOTEBOOK)
    shown, _ = jupytext.read(run_notebook(path, tmp_path / "out")).cells
    (figure,) = [output for output in shown.outputs if "image/png" in output.get("data", {})]
    assert figure.data["text/plain"].startswith("layer 3 · attention · head 0 · all texts")
    assert figure.metadata["image/png"]["alt"] == figure.data["text/plain"]
