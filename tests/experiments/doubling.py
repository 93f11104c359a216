"""A tiny experiment that doubles a number, for tests that need runs and not results."""

import textwrap
from pathlib import Path

NOTEBOOK = """
# %% tags=["parameters"]
x: int = 1
nap: float = 0.0

# %%
import time

from qwenlab import experiments

time.sleep(nap)
experiments.record(half=1 / x, double=2 * x)
"""

SPEC = """
question: what is twice x?
notebook: notebook.py
metrics:
  double: {units: "1"}
  half: {units: "1"}
"""


def doubling(folder: Path, more: str = "", notebook: str = NOTEBOOK) -> Path:
    """Write an experiment. A point with x = 0 fails; each run sleeps `nap` seconds.

    more  lines of spec.yaml
    """
    folder.mkdir(parents=True)
    (folder / "notebook.py").write_text(notebook)
    (folder / "spec.yaml").write_text(SPEC + textwrap.dedent(more))
    return folder
