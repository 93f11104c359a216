"""From a spec to its points: every run that it asks for, checked against the notebook before any of them starts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from qwenlab import __version__
from qwenlab.errors import BadParameter, BadSpec
from qwenlab.execution.notebook import read_notebook
from qwenlab.execution.parameters import Parameters
from qwenlab.execution.secrets import secrets_of, shown
from qwenlab.experiments.plan.code import calls_of_record, code_hash
from qwenlab.experiments.plan.source import YamlSource
from qwenlab.experiments.plan.spec import Spec, read_spec
from qwenlab.experiments.plan.values import names_a_checkpoint, plain, resolved

RESERVED = ("datasets", "figures")
"""Words that `record` takes beside metrics."""


@dataclass(frozen=True)
class Point:
    """One run that is asked for: its parameters, all of them, and its seed.

    parameters  as they are written down: a secret's text stands in the place of its value
    given       those that the spec gives, as they are handed to the notebook; a secret is a Secret
    """

    experiment: str
    parameters: dict[str, Any]
    seed: int
    given: dict[str, Any]
    checkpoints: dict[str, dict[str, str]]  # parameter -> source and hash
    address: str

    @property
    def name(self) -> str:
        """`experiment/address`."""
        return f"{self.experiment}/{self.address}"


@dataclass(frozen=True)
class Plan:
    """An experiment, checked: the spec, the notebook, and every point."""

    experiment: str
    spec: Spec
    source: YamlSource
    notebook_path: Path
    points: list[Point]
    swept: list[str] = field(default_factory=list)  # parameters that differ between points

    def describe(self, point: Point) -> str:
        """What sets a point apart from the others."""
        parts = [f"{name}={point.parameters[name]}" for name in self.swept]
        return " ".join([*parts, f"seed={point.seed}"] if len(self.spec.seeds) > 1 or not parts else parts)


def plan(
    folder: str | Path,
    *,
    settings: Mapping[str, Any] | None = None,
    only: Mapping[str, Any] | None = None,
) -> Plan:
    """Read and check an experiment.

    settings  values that every point takes, in place of the spec's
    only      leave out the points that have other values

    Raises UnknownExperiment, BadSpec, UnknownParameter, BadParameter, MissingParameter, and what opening a checkpoint
    raises: each names the file and the line.
    """
    spec, source = read_spec(Path(folder))
    notebook_path = (source.path.parent / spec.notebook).resolve()
    if not notebook_path.is_file():
        raise BadSpec(f"{source.at('notebook')}: there is no notebook at {notebook_path}.")
    notebook, declared = read_notebook(notebook_path)
    if not declared.tagged:
        raise BadSpec(f"{source.at('notebook')}: {notebook_path} has no parameters cell: tag one 'parameters'.")
    _check_metrics(notebook, notebook_path, spec, source)
    combinations = resolved(spec, source, declared, settings or {})
    if len(spec.seeds) > 1 and "seed" not in declared.by_name:
        raise BadSpec(f"{source.at('seeds')}: the notebook has no parameter `seed`, so its runs would be alike.")

    experiment, notebook_hash = source.path.parent.name, code_hash(notebook, notebook_path.parent)
    points = [
        _point(experiment, spec, notebook_hash, declared, plain(values), seed)
        for values in combinations
        for seed in spec.seeds
    ]
    if doubled := len(points) - len({point.address for point in points}):
        secret = any(secrets_of(point.given) for point in points)
        hint = " Points cannot differ in the value of a secret alone: give each as {env: NAME}." if secret else ""
        raise BadSpec(f"{source.at('sweep')}: {doubled} of {len(points)} points are asked for more than once.{hint}")
    swept = [
        name
        for name in dict.fromkeys(name for values in combinations for name in values)
        if len({json.dumps(point.parameters[name]) for point in points}) > 1
    ]
    chosen = _only(points, only or {}, declared)
    return Plan(experiment, spec, source, notebook_path, chosen, swept)


def _point(
    experiment: str, spec: Spec, notebook_hash: str, declared: Parameters, given: dict[str, Any], seed: int
) -> Point:
    given = given | ({"seed": seed} if "seed" in declared.by_name else {})
    full = shown(declared.filled(given))
    named = [name for name in full if names_a_checkpoint(name)]
    checkpoints = _checkpoints({name: full[name] for name in named if full[name] is not None}, full.get("revision"))
    address = address_of(
        {
            "experiment": experiment,
            "notebook": notebook_hash,
            "parameters": full,
            "seed": seed,
            "package": __version__,
            "checkpoints": {name: known["hash"] for name, known in checkpoints.items()},
            "metrics": {name: metric.model_dump() for name, metric in spec.metrics.items()},
        }
    )
    return Point(experiment, full, seed, given, checkpoints, address)


def _checkpoints(sources: Mapping[str, Any], revision: str | None) -> dict[str, dict[str, str]]:
    """Source and hash of the checkpoints that parameters name."""
    if not sources:
        return {}
    from qwenlab.checkpoint.weights.identity import hash_of  # imports torch, which takes seconds

    return {name: {"source": str(value), "hash": hash_of(value, revision)} for name, value in sources.items()}


def address_of(what: Mapping[str, Any]) -> str:
    """The name of a run that is made of what it is: 16 hexadecimal digits of the SHA-256 of its canonical JSON."""
    canonical = json.dumps(what, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _only(points: list[Point], only: Mapping[str, Any], declared: Parameters) -> list[Point]:
    for name in only:
        if name != "seed" and name not in declared.by_name:
            declared.check_one(name, None)
    kept = [
        point
        for point in points
        if all((point.seed if name == "seed" else point.parameters[name]) == value for name, value in only.items())
    ]
    if not kept:
        have = "; ".join(
            f"{name}: {sorted({str(point.seed if name == 'seed' else point.parameters[name]) for point in points})}"
            for name in only
        )
        raise BadParameter(f"--only leaves no point. They have {have}.")
    return kept


def _check_metrics(notebook: Any, path: Path, spec: Spec, source: YamlSource) -> None:
    """Hold the metrics that the notebook records to those that the spec declares, as far as can be read from it."""
    recorded: dict[str, str] = {}
    open_ended = False
    for index, cell in enumerate(notebook.cells):
        for call in calls_of_record(cell):
            for word in call.keywords:
                if word.arg is None:
                    open_ended = True
                elif word.arg not in RESERVED:
                    recorded.setdefault(word.arg, f"{path}, cell {index + 1}, line {word.value.lineno}")
    for name, where in recorded.items():
        if name not in spec.metrics:
            near = get_close_matches(name, spec.metrics, n=1)
            mend = f"did you mean {near[0]!r}?" if near else "declare it with its units."
            raise BadSpec(f"{source.at('metrics')}: {where} records {name!r}, which is not declared: {mend}")
    for name in spec.metrics:
        if name not in recorded and not open_ended:
            raise BadSpec(f"{source.at('metrics', name)}: {path} never records {name!r}.")
