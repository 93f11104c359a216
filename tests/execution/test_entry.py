"""The entry point forwards to the engine."""

import nbformat
import pytest

from qwenlab.execution.engine import Engine
from qwenlab.execution.entry import LazyEngine

pytestmark = pytest.mark.slow  # processes or Jupyter kernels are started


def test_it_answers_as_the_engine_does():
    notebook = nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": "mine", "display_name": "Mine", "language": "python"}}
    )
    assert LazyEngine.nb_kernel_name(notebook) == Engine.nb_kernel_name(notebook) == "mine"
    assert LazyEngine.nb_language(notebook) == Engine.nb_language(notebook) == "python"


def test_it_runs_a_notebook(monkeypatch):
    monkeypatch.setattr(Engine, "execute_notebook", lambda *args, **kwargs: (args, kwargs))
    assert LazyEngine.execute_notebook("notebook", "python3", log_output=True) == (
        ("notebook", "python3"),
        {"log_output": True},
    )
