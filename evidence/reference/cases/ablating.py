"""Ablations of every kind of unit, controls, patching, and their statistics."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from evidence.reference.models import MODELS, TOYS, opened, sequences, texts
from evidence.reference.names import get, of, text
from evidence.reference.results import Cases


def cases() -> Cases:
    """Yield lists of units, sweeps of a toy, patching of both, and acceptance under ablations."""
    for model in MODELS:
        yield f"ablating/{model}/units", partial(units, model)
    for toy in TOYS:
        yield f"ablating/{toy}/sweep", partial(sweep, toy)
        yield f"ablating/{toy}/patching", partial(patching, toy)
        yield f"ablating/{toy}/acceptance", partial(acceptance, toy)
    yield "ablating/toy-moe/recipe", recipe


def of_kind(model: str, kind: str, **how: Any) -> list[Any]:
    """The units of one kind."""
    found: list[Any] = get("ablations.units")(opened(model), text(kind), **how)
    return found


def units(model: str) -> Any:
    """Every unit, with controls that match them in number and in parameters."""
    found = {kind: of_kind(model, kind) for kind in UNITS if kind != "expert" or "dense" not in model}
    pair = get("ablations.combined")(found["mixer"][:2], "two")
    found["combined"] = [pair]
    for match in ("number", "parameters"):
        found[f"controls by {match}"] = get("ablations.controls")([pair], found["mixer"], match=text(match), number=2)
    return {kind: [named(each) for each in several] for kind, several in found.items()}


def named(unit: Any) -> dict[str, Any]:
    """The fields of an ablation, its edits as they are written."""
    names = ("name", "of", "parts", "layer", "kind", "parameters", "control_of")
    return {name: of(unit, name) for name in names} | {"edits": [str(each) for each in of(unit, "edits")]}


UNITS = ("layer", "mixer", "mlp", "head", "expert", "gate", "kind")


def sweep(toy: str) -> Any:
    """A sweep over some units with controls, read back from a file too, and its statistics for every score."""
    checkpoint = opened(toy)
    mixers = of_kind(toy, "mixer")
    pair = get("ablations.combined")([mixers[1], mixers[3]], "a pair")
    value = of_kind(toy, "mixer", layers=[5], edit=partial(get("probe.noise"), seed=1))
    chosen = [*mixers[:4], *of_kind(toy, "kind"), *of_kind(toy, "head", layers=[3])[:2], *value, pair]
    controls = get("ablations.controls")([pair], mixers, number=3)
    tasks = [
        get("tasks.text_task")(checkpoint, texts("code", 5), name="code", max_tokens=40),
        get("tasks.mqar")(checkpoint, pairs=3, count=6),
    ]
    with tempfile.TemporaryDirectory() as folder:
        swept = partial(get("ablations.sweep"), checkpoint, [*chosen, *controls], tasks, progress=False, batch_size=4)
        found, again = swept(), [swept(keep=Path(folder, "sweep.npz")) for _ in range(2)][1]
    return {"sweep": found, "kept": again} | {f"by {score}": of_sweep(found, score) for score in SCORES}


SCORES = ("loss", "accuracy", "kl")


def of_sweep(swept: Any, score: str) -> Any:
    """The statistics of a sweep by one score."""
    statistics = get("stats.ablations")(swept, score=text(score))
    tables = [get("stats.ablation_table")(statistics, task) for task in statistics["task"].values.tolist()]
    return {
        "statistics": statistics,
        "tables": tables,
        "findings": str(get("stats.ablation_findings")(statistics)),
    }


def patching(toy: str) -> Any:
    """Patching of values of one text into another, layer by layer and position by position."""
    rows = sequences(toy, 9, 9, 9, 9)
    source, target = ([row.tolist() for row in rows[first::2]] for first in (0, 1))
    answers = [row[-1].item() for row in sequences(toy, 10, 11)]
    found: dict[str, Any] = {}
    calls: dict[str, Callable[..., Any]] = {
        "residual": partial(get("ablations.patching"), positions=[0, 4, 8]),
        "heads": partial(get("ablations.patching"), sites="layers.3.mixer.heads", heads=[1, 2]),
    }
    for name, call in calls.items():
        found[name] = call(opened(toy), source, target, answers, progress=False)
        found[f"statistics of {name}"] = get("stats.patching")(found[name])
    return found


def acceptance(toy: str) -> Any:
    """Acceptance length under ablations."""
    rows = [row.tolist() for row in sequences(toy, 30, 24, 36)]
    chosen = of_kind(toy, "mixer")[:3]
    found = get("ablations.acceptance")(opened(toy), chosen, rows, depth=2, labels=["a", "b", "a"], progress=False)
    return found, get("stats.ablated_acceptance")(found), get("stats.ablated_acceptance")(found, by_label=False)


def recipe() -> Any:
    """The whole sweep that `qwenlab ablate` makes, on small tasks."""
    with tempfile.TemporaryDirectory() as folder:
        made = get("runs.ablate")(
            opened("toy-moe"),
            folder,
            tasks=["code", "mqar:2"],
            layers=[0, 3],
            controls=2,
            count=4,
            max_tokens=32,
            progress=False,
        )
        return {"statistics": of(made, "statistics"), "findings": of(made, "findings").read_text()}
