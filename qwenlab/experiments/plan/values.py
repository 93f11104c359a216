"""Combine the parameter values of a spec, check them against the notebook, and read its secrets."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from qwenlab.errors import BadParameter, BadSpec, MissingParameter, UnknownParameter
from qwenlab.execution.parameters import REQUIRED, Parameters
from qwenlab.execution.secrets import Secret, hide, looks_secret
from qwenlab.experiments.plan.source import YamlSource
from qwenlab.experiments.plan.spec import AxisValues, Range, Spec

LocatedValues = dict[str, tuple[Any, str]]
"""Parameter -> its value, and the place in the spec that gives it."""


def resolved(spec: Spec, source: YamlSource, declared: Parameters, settings: Mapping[str, Any]) -> list[LocatedValues]:
    """The parameter values of every point of the sweep; `settings` replace the spec's values.

    Raises BadSpec, UnknownParameter, BadParameter and MissingParameter, each with the line that gives the value. Warns
    of a plain value if the parameter's name is that of a password or an access key.
    """
    _check_secrets(spec, declared, source)
    points = [_resolve(values, spec, declared, source) for values in _combinations(spec, source, settings)]
    exposed = {name: where for values in points for name, (value, where) in values.items() if looks_secret(name, value)}
    for name, where in exposed.items():
        warnings.warn(
            f"{where}: {name!r} is written into the files of its runs. If it is a secret, write {{env: NAME}}, "
            "or list it under `secrets`.",
            stacklevel=3,
        )
    return points


def plain(values: LocatedValues) -> dict[str, Any]:
    """The values without their places."""
    return {name: value for name, (value, _) in values.items()}


def names_a_checkpoint(name: str) -> bool:
    """Whether a parameter of this name is a checkpoint, whose weights are part of a run's identity."""
    return name == "checkpoint" or name.endswith("_checkpoint")


def _combinations(spec: Spec, source: YamlSource, settings: Mapping[str, Any]) -> Iterator[LocatedValues]:
    fixed = {name: (value, source.at("parameters", name)) for name, value in spec.parameters.items()}
    fixed |= {name: (hide(value) if name in spec.secrets else value, "--set") for name, value in settings.items()}
    seen: dict[str, tuple[str, ...]] = {name: ("parameters", name) for name in spec.parameters}
    listed_names = dict.fromkeys(name for values in spec.sweep.listed for name in values)
    for kind, names in (("grid", spec.sweep.grid), ("zip", spec.sweep.zipped), ("list", listed_names)):
        for name in names:
            key = ("sweep", kind, name)
            if name in seen:
                raise BadSpec(f"{source.at(*key)}: {name!r} already has values at {source.at(*seen[name])}.")
            seen[name] = key
    grid, zipped = (
        [_choices(source, ("sweep", kind, name), axis) for name, axis in axes.items() if name not in settings]
        for kind, axes in (("grid", spec.sweep.grid), ("zip", spec.sweep.zipped))
    )
    if len({len(values) for values in zipped}) > 1:
        lengths = ", ".join(f"{axis[0][0]}: {len(axis)}" for axis in zipped)
        raise BadSpec(f"{source.at('sweep', 'zip')}: the axes of a zip must have one length, not {lengths}.")
    rows = [dict(pairs) for pairs in zip(*zipped, strict=True)] if zipped else [{}]
    listed = [
        {n: (value, source.at("sweep", "list", index, n)) for n, value in values.items() if n not in settings}
        for index, values in enumerate(spec.sweep.listed)
    ] or [{}]
    for combination, row, entry in itertools.product(itertools.product(*grid), rows, listed):
        yield {**fixed, **dict(combination), **row, **entry}


def _choices(source: YamlSource, key: tuple[str, str, str], values: AxisValues) -> list[tuple[str, tuple[Any, str]]]:
    numbers = values.values() if isinstance(values, Range) else values
    if not numbers:
        raise BadSpec(f"{source.at(*key)}: {key[-1]!r} is swept over an empty list.")
    return [(key[-1], (value, source.at(*key, index))) for index, value in enumerate(numbers)]


def _check_secrets(spec: Spec, declared: Parameters, source: YamlSource) -> None:
    """Raise if `secrets` lists a name that is not a parameter, or one that is part of a run's identity."""
    for index, name in enumerate(spec.secrets):
        try:
            declared.require(name)
        except UnknownParameter as error:
            raise UnknownParameter(f"{source.at('secrets', index)}: {error}") from None
        if _is_identity(name):
            raise BadSpec(f"{source.at('secrets', index)}: {name!r} cannot be secret: it is part of a run's identity.")


def _is_identity(name: str) -> bool:
    return name in ("seed", "revision") or names_a_checkpoint(name)


def _resolve(values: LocatedValues, spec: Spec, declared: Parameters, source: YamlSource) -> LocatedValues:
    """The values that the notebook gets. Errors name the line that gives the value."""
    result: LocatedValues = {}
    for name, (value, where) in values.items():
        try:
            result[name] = declared.resolve(name, value), where
        except (UnknownParameter, BadParameter) as error:
            raise type(error)(f"{where}: {error}") from None
        if name == "seed":
            raise BadSpec(f"{where}: use `seeds:` instead of a parameter `seed`: it is part of a run's identity.")
        if isinstance(result[name][0], Secret) and _is_identity(name):
            raise BadSpec(f"{where}: {name!r} cannot be secret: it is part of a run's identity.")
    for name in spec.secrets:  # hide the notebook's default value as well
        default = declared.by_name[name].default
        if name not in result and default is not REQUIRED and default is not None:
            result[name] = Secret(default), str(declared.path)
            declared.check(name, result[name][0])
    try:
        declared.filled(plain(result) | {"seed": 0})
    except MissingParameter as error:
        raise MissingParameter(f"{source.at('parameters')}: {error}") from None
    return result
