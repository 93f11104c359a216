"""Run notebooks/10_layers on a shipped toy: `make demo`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qwenlab import kernels
from qwenlab.errors import NotebookFailed
from qwenlab.recipes import inputs
from qwenlab.recipes.saving import Saved

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "10_layers.py"


@dataclass(frozen=True)
class Demo(Saved):
    """Files of the demo, with the executed notebook."""

    notebook: Path


def demo(checkpoint: str = "toy-moe", out: inputs.FolderPath = "runs/demo") -> Demo:
    """Run notebooks/10_layers on a checkpoint; save the executed notebook, its recording and its figures.

    checkpoint  what the notebook runs on: a shipped toy, a folder, or a name on the hub such as Qwen/Qwen3.6-35B-A3B
    out         folder for the executed notebook, its recording and its figures

    Raises UnknownNotebook where the notebooks are not installed: they come with a clone, not with a wheel.
    """
    folder = Path(out).resolve()
    recording = folder / "recording.nc"
    for earlier in (recording, *folder.glob("*.png")):  # files of an earlier run must not pass for results of this one
        earlier.unlink(missing_ok=True)
    notebook = kernels.run_notebook(NOTEBOOK, folder, checkpoint=checkpoint, out=str(folder))
    if not recording.is_file():
        raise NotebookFailed(f"{NOTEBOOK} ran to its end but did not save {recording}: it should, in its `out`.")
    return Demo(folder, recording, tuple(sorted(folder.glob("*.png"))), notebook)
