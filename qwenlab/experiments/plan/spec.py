"""A spec: the question an experiment asks, with which notebook, over which parameters, and what it must answer with."""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from qwenlab.errors import BadSpec, UnknownExperiment
from qwenlab.execution.secrets import hide
from qwenlab.experiments.plan.source import YamlSource, read_yaml

FILE = "spec.yaml"
NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_UNITS_OF_TIME = {"s": 1, "min": 60, "h": 3600}
_UNITS_OF_SIZE = {"MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def _quantity(value: Any, units: dict[str, int], example: str) -> float:
    words = re.fullmatch(r"([0-9.]+) *([A-Za-z]+)", str(value))
    if words is None or words[2] not in units:
        raise ValueError(f"{value!r} is no quantity: write a number and one of {', '.join(units)}, such as {example}")
    return float(words[1]) * units[words[2]]


Seconds = Annotated[float, BeforeValidator(lambda value: _quantity(value, _UNITS_OF_TIME, "20 min"))]
Bytes = Annotated[float, BeforeValidator(lambda value: _quantity(value, _UNITS_OF_SIZE, "8 GiB"))]


class _Strict(BaseModel):
    # Pydantic's own errors quote what they were given, which may be a secret; ours name file and line.
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, hide_input_in_errors=True)


class Range(_Strict):
    """Numbers from one to another, both included where they are met: by a step, or each `times` the one before."""

    start: float | int = Field(alias="from")
    stop: float | int = Field(alias="to")
    step: float | int | None = None
    times: float | int | None = None

    @model_validator(mode="after")
    def _one_way_up(self) -> Range:
        rising = (self.step is not None and self.step > 0) or (self.times is not None and self.times > 1)
        if (self.step is None) == (self.times is None) or not rising or self.start > self.stop:
            raise ValueError("give `from`, a larger `to`, and either `step` (above 0) or `times` (above 1)")
        if self.times is not None and self.start <= 0:
            raise ValueError("with `times`, `from` must be above 0")
        return self

    def values(self) -> list[float | int]:
        """The numbers; whole ones stay whole."""
        found, index = [], 0
        while (number := self._number(index)) <= self.stop + 1e-9 * abs(self.stop):
            found.append(number)
            index += 1
        return found

    def _number(self, index: int) -> float | int:
        if self.step is not None:
            return self.start + index * self.step
        return self.start * self.times**index  # type: ignore[operator]


_RANGE, _LIST = "(range)", "(list)"  # no key of a spec can be called so
AxisValues = Annotated[
    Annotated[Range, Tag(_RANGE)] | Annotated[list[Any], Tag(_LIST)],
    Discriminator(lambda value: _RANGE if isinstance(value, (dict, Range)) else _LIST),
]


class SweepAxes(_Strict):
    """Parameters that take several values: every combination of `grid`, of one place in `zip`, of one in `list`."""

    grid: dict[str, AxisValues] = {}
    zipped: dict[str, AxisValues] = Field(default={}, alias="zip")
    listed: list[dict[str, Any]] = Field(default=[], alias="list")


class Needs(_Strict):
    """What a machine must have for one run."""

    gpus: int = Field(default=0, ge=0)
    cores: int = Field(default=1, ge=1)
    memory: Bytes | None = None
    extras: list[str] = []


COLUMNS = {"name", "seed", "metric", "value", "units", "folder"}
"""What tables of metrics call their own columns."""


class Metric(_Strict):
    """A number that each run must record.

    units   of its values, "1" for a share or a ratio
    over    names of the dimensions that it has; a plain number has none
    pairs   the one of those dimensions over which two runs are compared value by value: texts, prompts
    better  which way is better, for the regression report
    """

    units: str
    over: list[str] = []
    pairs: str | None = None
    better: Literal["lower", "higher"] | None = None
    meaning: str = ""

    @model_validator(mode="after")
    def _dimensions_are_named_well(self) -> Metric:
        if taken := set(self.over) & COLUMNS:
            raise ValueError(f"no dimension in `over` can be called {', '.join(sorted(taken))}: tables use the name")
        if self.pairs is not None and self.pairs not in self.over:
            raise ValueError(f"`pairs: {self.pairs}` must be one of `over`: {self.over}")
        return self


class Spec(_Strict):
    """One checked spec.yaml.

    question    what the experiment asks
    notebook    path of its notebook, from the spec's folder
    parameters  values that are the same in every run
    secrets     names of parameters whose values are written nowhere, as are those given as `{env: NAME}`
    sweep       values that differ; seeds: each point is run with each of them
    needs, timeout, retries   of each run
    metrics     what each run must record with `ql.experiments.record`
    """

    question: str
    notebook: str
    parameters: dict[str, Any] = {}
    secrets: list[str] = []
    sweep: SweepAxes = Field(default_factory=lambda: SweepAxes.model_validate({}))
    seeds: list[int] = Field([0], min_length=1)
    needs: Needs = Needs()
    timeout: Seconds | None = None
    retries: int = Field(0, ge=0, le=10)
    metrics: dict[str, Metric] = {}


def read_spec(folder: Path) -> tuple[Spec, YamlSource]:
    """The spec of an experiment's folder (or the spec.yaml itself), and where each thing in it is said.

    Raises UnknownExperiment, and BadSpec naming file and line.
    """
    path = folder / FILE if folder.is_dir() else folder
    if not path.is_file():
        around = [each.parent.name for each in sorted(folder.parent.glob(f"*/{FILE}"))]
        near = get_close_matches(folder.name, around, n=1)
        mend = f"Did you mean {near[0]}?" if near else f"Beside it: {', '.join(around) or 'no experiment'}."
        raise UnknownExperiment(f"no {FILE} in {folder}. {mend}")
    source = read_yaml(path.resolve())
    if not isinstance(source.content, dict):
        raise BadSpec(f"{path}:1: a spec is a mapping: question, notebook, parameters, ...")
    name = source.path.parent.name
    if not NAME.fullmatch(name):
        raise BadSpec(f"{path}: an experiment's folder is named with a-z, 0-9, dot, dash and underscore; not {name!r}.")
    try:
        return _hide(Spec.model_validate(source.content)), source
    except ValidationError as error:
        raise BadSpec("\n".join(dict.fromkeys(_line(each, source) for each in error.errors()))) from error


def _hide(spec: Spec) -> Spec:
    """The spec with a Secret in the place of each value that `secrets` lists: so its repr does not show it either."""

    def given(values: dict[str, Any]) -> dict[str, Any]:
        return {name: hide(value) if name in spec.secrets else value for name, value in values.items()}

    def swept(values: dict[str, AxisValues]) -> dict[str, AxisValues]:
        listed = {name: each for name, each in values.items() if name in spec.secrets}
        return values | {
            name: [hide(value) for value in (each.values() if isinstance(each, Range) else each)]
            for name, each in listed.items()
        }

    sweep = spec.sweep.model_copy(
        update={
            "grid": swept(spec.sweep.grid),
            "zipped": swept(spec.sweep.zipped),
            "listed": [given(each) for each in spec.sweep.listed],
        }
    )
    return spec.model_copy(update={"parameters": given(spec.parameters), "sweep": sweep})


def _line(error: Any, source: YamlSource) -> str:
    """One complaint of pydantic's in our words."""
    key = tuple(part for part in error["loc"] if part not in (_RANGE, _LIST))
    name, where = ".".join(map(str, key)), source.at(*key)
    if error["type"] == "extra_forbidden":
        known = _fields_beside(key)
        near = get_close_matches(str(key[-1]), known, n=1, cutoff=0.0)
        return f"{where}: {name!r} is not known: did you mean {near[0]!r}? Known: {', '.join(known)}."
    if error["type"] == "missing":
        return f"{where}: {name!r} is missing."
    return f"{where}: {name}: {error['msg'].removeprefix('Value error, ')}."


def _fields_beside(key: tuple[Any, ...]) -> list[str]:
    """The names that could stand where this key does."""
    model: Any = Spec
    inner = {"sweep": SweepAxes, "needs": Needs, "metrics": Metric}
    if len(key) > 1 and key[0] in inner:
        model = Range if key[0] == "sweep" and len(key) > 2 else inner[key[0]]
    return [field.alias or name for name, field in model.model_fields.items()]
