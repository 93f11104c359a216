"""Run notebooks/10_layers on a shipped toy: `make demo`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qwenlab import execution
from qwenlab.errors import NotebookFailed
from qwenlab.execution.shipped_notebooks import shipped_notebook
from qwenlab.recipes import inputs
from qwenlab.recipes.saving import Saved


@dataclass(frozen=True)
class Demo(Saved):
    """Files of the demo, with the executed notebook."""

    notebook: Path


def demo(checkpoint: str = "toy-moe", out: inputs.FolderPath = "runs/demo") -> Demo:
    """Run notebooks/10_layers on a checkpoint; save the executed notebook, its recording and its figures.

    checkpoint  what the notebook runs on: a shipped toy, a folder, or a name on the hub such as Qwen/Qwen3.6-35B-A3B
    out         folder for the executed notebook, its recording and its figures
    """
    folder = Path(out).resolve()
    recording = folder / "recording.nc"
    for earlier in (recording, *folder.glob("*.png")):  # files of an earlier run must not pass for results of this one
        earlier.unlink(missing_ok=True)
    source = shipped_notebook("10_layers")
    notebook = execution.run_notebook(source, folder, checkpoint=checkpoint, out=str(folder))
    if not recording.is_file():
        raise NotebookFailed(f"{source} ran to its end but did not save {recording}: it should, in its `out`.")
    return Demo(folder, recording, tuple(sorted(folder.glob("*.png"))), notebook)
