"""The values that a spec gives to parameters: combined, checked against the notebook, and its secrets read."""

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

Given = dict[str, tuple[Any, str]]
"""Parameter -> its value, and where the spec says it."""


def resolved(spec: Spec, source: YamlSource, declared: Parameters, settings: Mapping[str, Any]) -> list[Given]:
    """The values of every point of the sweep, as the notebook is to have them; `settings` take the place of the spec's.

    Raises BadSpec, UnknownParameter, BadParameter and MissingParameter, each with the line that gives the value. Warns
    of what is given as it is although its name is that of a password or an access key.
    """
    _check_secrets(spec, declared, source)
    found = [_resolve(values, spec, declared, source) for values in _combinations(spec, source, settings)]
    plainly = {name: where for values in found for name, (value, where) in values.items() if looks_secret(name, value)}
    for name, where in plainly.items():
        warnings.warn(
            f"{where}: {name!r} is written into the files of its runs. If it is a secret, give it as {{env: NAME}}, "
            "or list it under `secrets`.",
            stacklevel=3,
        )
    return found


def plain(given: Given) -> dict[str, Any]:
    """The values alone."""
    return {name: value for name, (value, _) in given.items()}


def names_a_checkpoint(name: str) -> bool:
    """Whether a parameter of this name is a checkpoint, by whose weights a run is known."""
    return name == "checkpoint" or name.endswith("_checkpoint")


def _combinations(spec: Spec, source: YamlSource, settings: Mapping[str, Any]) -> Iterator[Given]:
    """The parameters that the spec gives, for every point of its sweep."""
    fixed = {name: (value, source.at("parameters", name)) for name, value in spec.parameters.items()}
    fixed |= {name: (hide(value) if name in spec.secrets else value, "--set") for name, value in settings.items()}
    seen: dict[str, tuple[str, ...]] = {name: ("parameters", name) for name in spec.parameters}
    for kind, names in (
        ("grid", spec.sweep.grid),
        ("zip", spec.sweep.zipped),
        ("list", {name: None for one in spec.sweep.listed for name in one}),
    ):
        for name in names:
            if name in seen:
                raise BadSpec(
                    f"{source.at('sweep', kind, name)}: {name!r} already has values at {source.at(*seen[name])}."
                )
            seen[name] = ("sweep", kind, name)
    grid, zipped = (
        [_choices(source, ("sweep", kind, name), each) for name, each in swept.items() if name not in settings]
        for kind, swept in (("grid", spec.sweep.grid), ("zip", spec.sweep.zipped))
    )
    if len({len(values) for values in zipped}) > 1:
        lengths = ", ".join(f"{each[0][0]}: {len(each)}" for each in zipped)
        raise BadSpec(f"{source.at('sweep', 'zip')}: what is zipped must be of one length, not {lengths}.")
    together = [dict(pairs) for pairs in zip(*zipped, strict=True)] if zipped else [{}]
    listed = [
        {n: (value, source.at("sweep", "list", index, n)) for n, value in one.items() if n not in settings}
        for index, one in enumerate(spec.sweep.listed)
    ] or [{}]
    for one in itertools.product(*grid):
        for other, third in itertools.product(together, listed):
            yield {**fixed, **dict(one), **other, **third}


def _choices(source: YamlSource, key: tuple[str, str, str], values: AxisValues) -> list[tuple[str, tuple[Any, str]]]:
    numbers = values.values() if isinstance(values, Range) else values
    if not numbers:
        raise BadSpec(f"{source.at(*key)}: {key[-1]!r} is swept over no value.")
    return [(key[-1], (value, source.at(*key, index))) for index, value in enumerate(numbers)]


def _check_secrets(spec: Spec, declared: Parameters, source: YamlSource) -> None:
    """Raise where `secrets` lists what the notebook has no parameter for, or what a run must say of itself."""
    for index, name in enumerate(spec.secrets):
        try:
            declared.require(name)
        except UnknownParameter as error:
            raise UnknownParameter(f"{source.at('secrets', index)}: {error}") from None
        if _is_written(name):
            raise BadSpec(f"{source.at('secrets', index)}: {name!r} cannot be secret: it is part of what a run is.")


def _is_written(name: str) -> bool:
    return name in ("seed", "revision") or names_a_checkpoint(name)


def _resolve(values: Given, spec: Spec, declared: Parameters, source: YamlSource) -> Given:
    """These values as the notebook is to have them. Raises what is wrong with them, with the line that gives them."""
    found: Given = {}
    for name, (value, where) in values.items():
        try:
            found[name] = declared.resolve(name, value), where
        except (UnknownParameter, BadParameter) as error:
            raise type(error)(f"{where}: {error}") from None
        if name == "seed":
            raise BadSpec(f"{where}: give `seeds:`, not a parameter `seed`: it is part of what a run is.")
        if isinstance(found[name][0], Secret) and _is_written(name):
            raise BadSpec(f"{where}: {name!r} cannot be secret: it is part of what a run is.")
    for name in spec.secrets:  # the notebook's own value is hidden as well
        default = declared.by_name[name].default
        if name not in found and default is not REQUIRED and default is not None:
            found[name] = Secret(default), str(declared.path)
            declared.check_one(name, found[name][0])
    try:
        declared.filled(plain(found) | {"seed": 0})
    except MissingParameter as error:
        raise MissingParameter(f"{source.at('parameters')}: {error}") from None
    return found
