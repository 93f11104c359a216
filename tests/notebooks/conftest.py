"""Notebooks executed once for all tests of a session, one after another in a warm kernel."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import jupytext
import pytest
from filelock import FileLock

import qwenlab as ql
from qwenlab.execution.engine import RunSettings
from qwenlab.execution.notebook_runner import execute, read_notebook
from qwenlab.testing.checkpoints import tiny_checkpoint

FOLDER = Path(__file__).parents[2] / "notebooks"


@dataclass(frozen=True)
class Executed:
    """An executed notebook, and the folder that it was given as `out`."""

    path: Path
    out: Path

    @cached_property
    def outputs(self) -> list:
        return [output for cell in jupytext.read(self.path).cells for output in cell.get("outputs", [])]

    @cached_property
    def markdown(self) -> list[str]:
        found = [output for output in self.outputs if "text/markdown" in output.get("data", {})]
        return [output.data["text/markdown"] for output in found]

    @property
    def text(self) -> str:
        return "\n".join(self.markdown)

    def recording(self, name: str = "recording") -> ql.Recording:
        return ql.Recording.open(self.out / f"{name}.nc")


@pytest.fixture(scope="session")
def executed(tmp_path_factory) -> Callable[..., Executed]:
    """`executed(stem, **parameters)`: a notebook, run where no test of this session (of any worker) has run it yet.

    Raises NotebookFailed where a cell raises.
    """
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "executed"
    root.mkdir(exist_ok=True)

    def run(stem: str, **parameters) -> Executed:
        key = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()[:12]
        out = root / f"{stem}-{key}"
        done = Executed(out.with_suffix(".ipynb"), out)
        with FileLock(out.with_suffix(".lock")):
            if not done.path.exists():
                _execute(stem, done, parameters | {"out": str(out)})
        return done

    return run


def _execute(stem: str, done: Executed, parameters: dict) -> None:
    """Run a notebook with checked parameters in this process's warm kernel, which later notebooks share."""
    source = FOLDER / f"{stem}.py"
    notebook, declared = read_notebook(source)
    given = {name: declared.resolve(name, value) for name, value in parameters.items()}
    running = done.path.with_suffix(".running.ipynb")
    execute(notebook, given, RunSettings(source.parent, source, running, warm=True))
    running.replace(done.path)


@pytest.fixture(scope="session")
def odd(tmp_path_factory) -> str:
    """A checkpoint without an MTP head, of another shape than the toys: 5 layers in no pattern, and 6 experts."""
    return str(tiny_checkpoint(tmp_path_factory.mktemp("odd") / "odd", layer_types=ODD, **EXPERTS, mtp=None))


ODD = ["full_attention", "linear_attention", "linear_attention", "full_attention", "linear_attention"]
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 3}


@pytest.fixture(scope="session")
def odd_that_reads(tmp_path_factory) -> Callable[..., str]:
    """A random checkpoint with the toys' tokenizer, which has letters and digits as recall tasks need them."""

    def make(name: str, **sizes) -> str:
        folder = tmp_path_factory.mktemp(name) / "odd"
        tiny_checkpoint(folder, mtp=None, vocab_size=2048, **sizes)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(Path(ql.checkpoint.__path__[0]) / "toys" / "toy-moe" / file, folder)
        return str(folder)

    return make
