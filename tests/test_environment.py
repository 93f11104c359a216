"""One list of dependencies: environment.yml, constraints.txt and the imports are held to pyproject.toml."""

import ast
import functools
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from qwenlab.checkpoint.caches import TESTED

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
CORE = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}

NEVER_IMPORTED = {"h5netcdf", "h5py", "accelerate", "jupyterlab"}  # xarray's engine, its HDF5, device_map, `make lab`
NEVER_PINNED = {"triton", "huggingface-hub"}  # torch's CUDA build and each transformers ask for their own
PEERS = {"airllm", "innards"}  # benchmarks/ measures them where somebody has installed them


def pins() -> dict[str, Requirement]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    named = {canonicalize_name(Requirement(line).name): Requirement(line) for line in lines}
    assert len(named) == len(lines), "a package is pinned twice"
    return named


def test_environment_yml_installs_this_project_and_nothing_else():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, through_pip = environment["dependencies"]
    assert environment["name"] == PROJECT["name"]
    assert python == f"python{PROJECT['requires-python']}"
    assert pip == "pip"
    assert through_pip == {"pip": ["-c constraints.txt", "-e .[test,dev]"]}
    assert {"test", "dev"} <= EXTRAS.keys()


def test_every_direct_dependency_is_pinned_within_its_range():
    asked = [Requirement(line) for lines in (PROJECT["dependencies"], *EXTRAS.values()) for line in lines]
    found = pins()
    ranges = {canonicalize_name(requirement.name): requirement.specifier for requirement in asked}
    assert found.keys() == ranges.keys() - NEVER_PINNED
    for name, requirement in found.items():
        (pin,) = requirement.specifier
        assert pin.operator == "=="
        assert pin.version in ranges[name]


def test_the_bounds_of_transformers_are_the_versions_that_are_tested():
    oldest, newest = (
        re.search(rf"^{name}_TRANSFORMERS := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
        for name in ("OLDEST", "NEWEST")
    )
    transformers = next(Requirement(line) for line in PROJECT["dependencies"] if line.startswith("transformers"))
    assert oldest and newest
    beyond = Version(newest[1])
    bounds = f">={oldest[1].removesuffix('.0')},<{beyond.major}.{beyond.minor + 1}"
    assert transformers.specifier == SpecifierSet(bounds)
    assert {oldest[1], newest[1]} <= set(transformers.specifier.filter([oldest[1], newest[1]]))
    assert Requirement(TESTED) == Requirement(str(transformers))


@functools.cache
def homes() -> dict[str, list[str]]:
    """Module -> the distributions that bring it."""
    return dict(importlib.metadata.packages_distributions())


def imports(folder: str) -> set[str]:
    """Distributions imported by the .py files under `folder`; the standard library and our own left out."""
    files = [*(ROOT / folder).rglob("*.py")]
    ours = {"qwenlab", "tests", "benchmarks", *(file.stem for file in files)}
    modules = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.Import(names=names):
                    modules |= {alias.name.partition(".")[0] for alias in names}
                case ast.ImportFrom(module=str(module), level=0):
                    modules.add(module.partition(".")[0])
    return {_distribution(name) for name in modules - ours - sys.stdlib_module_names}


def _distribution(module: str) -> str:
    """What brings a module: of several, the one that pyproject.toml asks for."""
    found = [canonicalize_name(name) for name in homes().get(module, [module])]
    asked = CORE | {canonicalize_name(Requirement(line).name) for lines in EXTRAS.values() for line in lines}
    return next((name for name in found if name in asked), found[0])


@pytest.mark.parametrize("folder", ["qwenlab", "notebooks", "benchmarks", "experiments"])
def test_every_import_is_a_declared_dependency(folder):
    optional = {canonicalize_name(Requirement(line).name) for lines in EXTRAS.values() for line in lines}
    assert imports(folder) - CORE - optional - PEERS == set()


def test_every_declared_dependency_is_used():
    used = imports("qwenlab") | imports("notebooks") | imports("benchmarks") | imports("experiments")
    assert CORE - used - NEVER_IMPORTED == set()
