"""What an import loads, seen from a fresh interpreter; `python -X importtime -c "import qwenlab"` says how long."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow  # processes or Jupyter kernels are started

HEAVY = {"torch", "transformers", "numpy", "scipy", "pandas", "xarray", "matplotlib", "IPython", "papermill"}


def fresh(code: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "EAGER_IMPORT"}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)


def test_importing_qwenlab_loads_nothing_heavy():
    loaded = fresh("import sys, qwenlab; print(*{name.partition('.')[0] for name in sys.modules})")
    assert loaded.returncode == 0, loaded.stderr
    assert HEAVY & set(loaded.stdout.split()) == set()


WITHOUT_TORCH = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers"):
            raise ModuleNotFoundError(f"no {name} on this laptop")

sys.meta_path.insert(0, Hidden())
"""


@pytest.mark.parametrize("room", ["record", "stats", "plots", "widgets", "notebook"])
def test_a_recording_is_studied_without_torch(room):
    study = f"import qwenlab\nfor name in qwenlab.{room}.__all__: getattr(qwenlab.{room}, name)"
    assert fresh(WITHOUT_TORCH + study).stderr == ""


def test_torch_is_really_hidden():
    assert "no torch on this laptop" in fresh(WITHOUT_TORCH + "import torch").stderr


def test_an_unknown_name_is_an_attribute_error():
    asked = fresh("import qwenlab; qwenlab.wacth")
    assert "AttributeError" in asked.stderr
    assert "wacth" in asked.stderr
