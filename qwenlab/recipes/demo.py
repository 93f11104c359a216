"""The demo of `make demo`: notebooks/10_layers, run on a shipped toy."""

from dataclasses import dataclass
from pathlib import Path

from qwenlab.errors import NotebookFailed
from qwenlab.kernels.notebook import run_notebook
from qwenlab.kernels.shipped import shipped_notebook


@dataclass(frozen=True, slots=True)
class Demo:
    """What the demo left in `folder`: the executed notebook, its recording and its figures."""

    folder: Path
    notebook: Path
    recording: Path
    figures: tuple[Path, ...]


def demo(checkpoint: str = "toy-moe", out: str | Path = "runs/demo") -> Demo:
    """Run notebooks/10_layers on `checkpoint`; the notebook saves recording.nc and its figures (.png) in `out`."""
    folder = Path(out).resolve()
    recording = folder / "recording.nc"
    for earlier in (recording, *folder.glob("*.png")):  # so that nothing of an earlier run passes for this one's
        earlier.unlink(missing_ok=True)
    source = shipped_notebook("10_layers")
    notebook = run_notebook(source, folder, checkpoint=checkpoint, out=str(folder))
    if not recording.is_file():
        raise NotebookFailed(f"{source} ran to its end but did not save {recording}: it should, in its `out`.")
    return Demo(folder, notebook, recording, tuple(sorted(folder.glob("*.png"))))
