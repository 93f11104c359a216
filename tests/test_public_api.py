"""The public names, frozen: a change here is a change for users and belongs in CHANGELOG.md."""

import importlib
import json
from pathlib import Path

import pytest

FROZEN: dict[str, list[str]] = json.loads(Path(__file__).with_name("public_api.json").read_text())


def test_every_package_is_frozen():
    package = Path(__file__).parents[1] / "qwenlab"
    packages = {"qwenlab"} | {f"qwenlab.{init.parent.name}" for init in package.glob("*/__init__.py")}
    assert set(FROZEN) == packages


@pytest.mark.parametrize("package", FROZEN)
def test_public_names(package):
    assert sorted(importlib.import_module(package).__all__) == FROZEN[package]


@pytest.mark.parametrize("package", FROZEN)
def test_every_public_name_is_there_and_documented(package):
    module = importlib.import_module(package)
    assert module.__doc__
    undocumented = [name for name in FROZEN[package] if not getattr(module, name).__doc__]
    assert undocumented == []
