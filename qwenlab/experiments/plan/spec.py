"""The schema of spec.yaml: an experiment's question, notebook, parameters, sweep, needs and metrics."""

from __future__ import annotations

import re
from difflib import get_close_matches
from itertools import count, takewhile
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
    parts = re.fullmatch(r"([0-9.]+) *([A-Za-z]+)", str(value))
    if parts is None or parts[2] not in units:
        raise ValueError(
            f"{value!r} is not a quantity: write a number and one of {', '.join(units)}, such as {example}"
        )
    return float(parts[1]) * units[parts[2]]


Seconds = Annotated[float, BeforeValidator(lambda value: _quantity(value, _UNITS_OF_TIME, "20 min"))]
Bytes = Annotated[float, BeforeValidator(lambda value: _quantity(value, _UNITS_OF_SIZE, "8 GiB"))]


class _Strict(BaseModel):
    # Pydantic's own errors quote the input, which may contain a secret; ours name file and line.
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, hide_input_in_errors=True)


class Range(_Strict):
    """Numbers `from` ... `to`, spaced by a `step` or by a factor `times`. `to` is included if the spacing meets it."""

    start: float | int = Field(alias="from")
    stop: float | int = Field(alias="to")
    step: float | int | None = None
    times: float | int | None = None

    @model_validator(mode="after")
    def _check_rising(self) -> Range:
        rising = (self.step is not None and self.step > 0) or (self.times is not None and self.times > 1)
        if (self.step is None) == (self.times is None) or not rising or self.start > self.stop:
            raise ValueError("give `from`, a larger `to`, and either `step` (above 0) or `times` (above 1)")
        if self.times is not None and self.start <= 0:
            raise ValueError("with `times`, `from` must be above 0")
        return self

    def values(self) -> list[float | int]:
        """The numbers; integers stay integers."""
        limit = self.stop + 1e-9 * abs(self.stop)
        step, times = self.step or 0, self.times or 1
        return [*takewhile(lambda number: number <= limit, (self.start * times**n + n * step for n in count()))]


_RANGE, _LIST = "(range)", "(list)"  # no key of a spec can have these names
AxisValues = Annotated[
    Annotated[Range, Tag(_RANGE)] | Annotated[list[Any], Tag(_LIST)],
    Discriminator(lambda value: _RANGE if isinstance(value, (dict, Range)) else _LIST),
]


class SweepAxes(_Strict):
    """Parameters with several values: all combinations of the `grid` axes, the `zip` rows and the `list` entries."""

    grid: dict[str, AxisValues] = {}
    zipped: dict[str, AxisValues] = Field(default={}, alias="zip")
    listed: list[dict[str, Any]] = Field(default=[], alias="list")


class Needs(_Strict):
    """Resources and extras that a machine must have for one run."""

    gpus: int = Field(default=0, ge=0)
    cores: int = Field(default=1, ge=1)
    memory: Bytes | None = None
    extras: list[str] = []


COLUMNS = {"name", "seed", "metric", "value", "units", "folder"}
"""The columns of metric tables; a dimension cannot have one of these names."""


class Metric(_Strict):
    """A number that each run must record."""

    units: str  # of its values, "1" for a share or a ratio
    over: list[str] = []  # names of its dimensions; a plain number has none
    pairs: str | None = None  # the dimension along which two runs are compared value by value, such as texts or prompts
    better: Literal["lower", "higher"] | None = None  # the better direction, for the regression report
    meaning: str = ""

    @model_validator(mode="after")
    def _check_dimensions(self) -> Metric:
        if taken := set(self.over) & COLUMNS:
            raise ValueError(
                f"no dimension in `over` can have the name {', '.join(sorted(taken))}: it is a column of the tables"
            )
        if self.pairs is not None and self.pairs not in self.over:
            raise ValueError(f"`pairs: {self.pairs}` must be one of `over`: {self.over}")
        return self


class Spec(_Strict):
    """One checked spec.yaml.

    question    the question that the experiment asks
    notebook    path of its notebook, relative to the spec's folder
    parameters  values that are the same in every run
    secrets     names of parameters whose values are never written; those that are `{env: NAME}` are secret anyway
    sweep       values that differ between runs
    seeds       each point is run with each seed
    needs, timeout, retries   of each run
    metrics     the numbers that each run must record with `ql.experiments.record`
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
    """Read and check the spec in an experiment's folder (or at the path of a spec.yaml), with the lines of its keys.

    Raises UnknownExperiment, and BadSpec with file and line.
    """
    path = folder / FILE if folder.is_dir() else folder
    if not path.is_file():
        others = [spec.parent.name for spec in sorted(folder.parent.glob(f"*/{FILE}"))]
        near = get_close_matches(folder.name, others, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"Experiments there: {', '.join(others) or 'none'}."
        raise UnknownExperiment(f"no {FILE} in {folder}. {hint}")
    source = read_yaml(path.resolve())
    if not isinstance(source.content, dict):
        raise BadSpec(f"{path}:1: a spec is a mapping: question, notebook, parameters, ...")
    name = source.path.parent.name
    if not NAME.fullmatch(name):
        raise BadSpec(
            f"{path}: the name of an experiment's folder has only a-z, 0-9, dot, dash and underscore, not {name!r}."
        )
    try:
        return _hide(Spec.model_validate(source.content)), source
    except ValidationError as error:
        raise BadSpec("\n".join(dict.fromkeys(_message(detail, source) for detail in error.errors()))) from error


def _hide(spec: Spec) -> Spec:
    """Replace the value of each parameter in `secrets` by a Secret, so that no repr shows it."""

    def hidden(values: dict[str, Any]) -> dict[str, Any]:
        return {name: hide(value) if name in spec.secrets else value for name, value in values.items()}

    def hidden_axes(axes: dict[str, AxisValues]) -> dict[str, AxisValues]:
        return axes | {
            name: [hide(value) for value in (axis.values() if isinstance(axis, Range) else axis)]
            for name, axis in axes.items()
            if name in spec.secrets
        }

    sweep = spec.sweep.model_copy(
        update={
            "grid": hidden_axes(spec.sweep.grid),
            "zipped": hidden_axes(spec.sweep.zipped),
            "listed": [hidden(values) for values in spec.sweep.listed],
        }
    )
    return spec.model_copy(update={"parameters": hidden(spec.parameters), "sweep": sweep})


def _message(error: Any, source: YamlSource) -> str:
    key = tuple(part for part in error["loc"] if part not in (_RANGE, _LIST))
    name, where = ".".join(map(str, key)), source.at(*key)
    if error["type"] == "extra_forbidden":
        known = _fields_near(key)
        near = get_close_matches(str(key[-1]), known, n=1, cutoff=0.0)
        return f"{where}: {name!r} is not a known key: did you mean {near[0]!r}? Known keys: {', '.join(known)}."
    if error["type"] == "missing":
        return f"{where}: {name!r} is missing."
    return f"{where}: {name}: {error['msg'].removeprefix('Value error, ')}."


def _fields_near(key: tuple[Any, ...]) -> list[str]:
    """The names that are valid in place of this key."""
    model: Any = Spec
    inner = {"sweep": SweepAxes, "needs": Needs, "metrics": Metric}
    if len(key) > 1 and key[0] in inner:
        model = Range if key[0] == "sweep" and len(key) > 2 else inner[key[0]]
    return [field.alias or name for name, field in model.model_fields.items()]
