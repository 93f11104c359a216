"""What an import costs, seen from a fresh interpreter."""

import os
import subprocess
import sys

import pytest

HEAVY = {
    "torch",
    "transformers",
    "matplotlib",
    "xarray",
    "pandas",
    "scipy",
    "numpy",
    "IPython",
    "papermill",
    "pydantic",
}


def fresh(code: str, *flags: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "EAGER_IMPORT"}
    return subprocess.run([sys.executable, *flags, "-c", code], capture_output=True, text=True, env=environment)


def test_importing_qwenlab_loads_nothing_heavy():
    loaded = fresh("import sys, qwenlab; print(*{name.partition('.')[0] for name in sys.modules})")
    assert loaded.returncode == 0, loaded.stderr
    assert HEAVY & set(loaded.stdout.split()) == set()


def test_importing_qwenlab_takes_under_300_ms():
    report = fresh("import qwenlab", "-X", "importtime").stderr
    microseconds = int(next(line for line in report.splitlines() if line.endswith("| qwenlab")).split("|")[1])
    assert microseconds < 300_000, report


@pytest.mark.parametrize("room", ["record", "stats", "plots", "widgets"])
def test_a_recording_is_studied_without_torch(room):
    hidden = "import sys; sys.modules.update(torch=None, transformers=None)"
    study = fresh(f"{hidden}\nimport qwenlab\nroom = qwenlab.{room}\n[getattr(room, name) for name in room.__all__]")
    assert study.returncode == 0, study.stderr


def test_an_unknown_name_is_an_attribute_error():
    asked = fresh("import qwenlab; qwenlab.wacth")
    assert "AttributeError" in asked.stderr
    assert "wacth" in asked.stderr
