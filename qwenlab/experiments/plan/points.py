"""Plan an experiment: list the runs that its spec asks for, and check them against the notebook before any starts."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from qwenlab import __version__
from qwenlab.errors import BadParameter, BadSpec
from qwenlab.execution.notebook_runner import read_notebook
from qwenlab.execution.parameters import Parameters
from qwenlab.execution.secrets import secrets_of, shown
from qwenlab.experiments.plan.code import calls_of_record, code_hash
from qwenlab.experiments.plan.source import YamlSource
from qwenlab.experiments.plan.spec import Spec, read_spec
from qwenlab.experiments.plan.values import names_a_checkpoint, plain, resolved

RESERVED = ("datasets", "figures")
"""Keyword arguments of `record` that are not metrics."""


@dataclass(frozen=True)
class Point:
    """One planned run."""

    experiment: str
    parameters: dict[str, Any]  # all of them, as files show them: a secret is replaced by its text
    seed: int
    arguments: dict[str, Any]  # the values from the spec, as the notebook gets them; a secret is a Secret
    checkpoints: dict[str, dict[str, str]]  # parameter -> source and hash
    address: str  # hash of everything that makes the run what it is

    @property
    def name(self) -> str:
        """`experiment/address`."""
        return f"{self.experiment}/{self.address}"


@dataclass(frozen=True)
class Plan:
    """A checked experiment: the spec, the notebook, and every point. `swept` are the parameters that differ."""

    experiment: str
    spec: Spec
    source: YamlSource
    notebook_path: Path
    points: list[Point]
    swept: list[str] = field(default_factory=list)

    def describe(self, point: Point) -> str:
        """The values in which a point differs from the others."""
        parts = [f"{name}={point.parameters[name]}" for name in self.swept]
        return " ".join([*parts, f"seed={point.seed}"] if len(self.spec.seeds) > 1 or not parts else parts)


def plan(
    folder: str | Path, *, settings: Mapping[str, Any] | None = None, only: Mapping[str, Any] | None = None
) -> Plan:
    """Read and check an experiment.

    settings  parameter values for every point; they replace those of the spec
    only      parameter values; points with other values are left out

    Raises UnknownExperiment, BadSpec, UnknownParameter, BadParameter and MissingParameter, each with file and line,
    and the errors of opening a checkpoint.
    """
    spec, source = read_spec(Path(folder))
    notebook_path = (source.path.parent / spec.notebook).resolve()
    if not notebook_path.is_file():
        raise BadSpec(f"{source.at('notebook')}: no notebook at {notebook_path}.")
    notebook, declared = read_notebook(notebook_path)
    if not declared.tagged:
        raise BadSpec(f"{source.at('notebook')}: {notebook_path} has no parameters cell: tag one 'parameters'.")
    _check_metrics(notebook, notebook_path, spec, source)
    combinations = resolved(spec, source, declared, settings or {})
    if len(spec.seeds) > 1 and "seed" not in declared.by_name:
        raise BadSpec(
            f"{source.at('seeds')}: the notebook has no parameter `seed`, so all seeds would give the same run."
        )

    experiment, code = source.path.parent.name, code_hash(notebook, notebook_path.parent)
    pairs = itertools.product(combinations, spec.seeds)
    points = [_point(experiment, spec, code, declared, plain(values), seed) for values, seed in pairs]
    if repeated := len(points) - len({point.address for point in points}):
        secret = any(secrets_of(point.arguments) for point in points)
        hint = " Points cannot differ only in the value of a secret: write each as {env: NAME}." if secret else ""
        raise BadSpec(f"{source.at('sweep')}: {repeated} of {len(points)} points repeat another one.{hint}")
    names = dict.fromkeys(name for values in combinations for name in values)
    swept = [name for name in names if len({json.dumps(point.parameters[name]) for point in points}) > 1]
    return Plan(experiment, spec, source, notebook_path, _selected(points, only or {}, declared), swept)


def _point(
    experiment: str, spec: Spec, notebook_hash: str, declared: Parameters, values: dict[str, Any], seed: int
) -> Point:
    arguments = values | ({"seed": seed} if "seed" in declared.by_name else {})
    full = shown(declared.filled(arguments))
    checkpoints = {}
    for name, value in full.items():
        if names_a_checkpoint(name) and value is not None:
            from qwenlab.checkpoint.weights.fingerprint import hash_of  # imports torch, which takes seconds

            checkpoints[name] = {"source": str(value), "hash": hash_of(value, full.get("revision"))}
    address = address_of(
        {
            "experiment": experiment,
            "notebook": notebook_hash,
            "parameters": full,
            "seed": seed,
            "package": __version__,
            "checkpoints": {name: checkpoint["hash"] for name, checkpoint in checkpoints.items()},
            "metrics": {name: metric.model_dump() for name, metric in spec.metrics.items()},
        }
    )
    return Point(experiment, full, seed, arguments, checkpoints, address)


def address_of(identity: Mapping[str, Any]) -> str:
    """The address of a run: the first 16 hexadecimal digits of the SHA-256 of its identity as canonical JSON."""
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _selected(points: list[Point], only: Mapping[str, Any], declared: Parameters) -> list[Point]:
    """The points with the values of `only`. Raises BadParameter if there are none."""
    for name in only:
        if name != "seed":
            declared.require(name)
    values = [{**point.parameters, "seed": point.seed} for point in points]
    selected = [point for point, of in zip(points, values, strict=True) if all(of[name] == only[name] for name in only)]
    if not selected:
        have = "; ".join(f"{name}: {sorted({str(of[name]) for of in values})}" for name in only)
        raise BadParameter(f"--only selects no point. The points have {have}.")
    return selected


def _check_metrics(notebook: Any, path: Path, spec: Spec, source: YamlSource) -> None:
    """Raise BadSpec if the notebook's code records other metrics than the spec declares; `**metrics` may be any."""
    found: dict[str | None, str] = {}
    for index, cell in enumerate(notebook.cells):
        for keyword in (keyword for call in calls_of_record(cell) for keyword in call.keywords):
            found.setdefault(keyword.arg, f"{path}, cell {index + 1}, line {keyword.value.lineno}")
    recorded = {name: where for name, where in found.items() if name is not None and name not in RESERVED}
    for name, where in recorded.items():
        if name not in spec.metrics:
            near = get_close_matches(name, spec.metrics, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "declare it with its units."
            raise BadSpec(f"{source.at('metrics')}: {where} records {name!r}, which is not declared: {hint}")
    for name in spec.metrics:
        if name not in recorded and None not in found:
            raise BadSpec(f"{source.at('metrics', name)}: {path} never records {name!r}.")
