"""A sweep of ablations over tasks named in a word, with matched random controls: a recording, findings, figures."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, get_args

import xarray as xr

from qwenlab import ablations, plots, stats, tasks as made
from qwenlab.ablations.ablation import Ablation
from qwenlab.ablations.controls import MATCHES, Match
from qwenlab.checkpoint.open import Checkpoint, open
from qwenlab.errors import BadArgument
from qwenlab.record.recording import Recording
from qwenlab.record.whole_files import replacing
from qwenlab.stats.ablations import Score
from qwenlab.tasks.cutting import passages
from qwenlab.tasks.task import Task

DEFAULT_TASKS = ("code", "prose", "mqar:8")
TASKS = {
    **{domain: domain for domain in made.DOMAINS},
    "mqar": "mqar:PAIRS",
    "needle": "needle:LENGTH or needle:LENGTH:DEPTH",
    "copying": "copying:LENGTH",
    "induction": "induction:LENGTH",
}
"""What a task can be named, and how it is written: a domain of held-out texts, or a recall task with its size."""


@dataclass(frozen=True)
class Ablated:
    """What was found, and where it lies: a recording with the node "ablations", its findings, and figures.

    statistics         of `stats.ablations`
    without_controls   names of ablations that nothing matches
    """

    folder: Path
    recording: Path
    findings: Path
    figures: tuple[Path, ...]
    statistics: xr.Dataset
    without_controls: tuple[str, ...]


def ablate(
    source: str | Path | Checkpoint,
    out: str | Path,
    *,
    tasks: Sequence[str] | None = None,
    texts: Mapping[str, str | Sequence[str]] | None = None,
    of: Sequence[str] = ("mixer",),
    layers: Iterable[int] | None = None,
    score: Score = "loss",
    controls: int = 6,
    match: Match = "number",
    count: int = 16,
    max_tokens: int = 256,
    batch_size: int = 8,
    seed: int = 0,
    keep: str | PathLike[str] | None = None,
    device: str | None = None,
    dtype: str | None = None,
    progress: bool = True,
) -> Ablated:
    """Ablate the parts of a checkpoint one by one; save recording.nc, findings.md and figures in `out`.

    source      what `qwenlab.open` takes, or a Checkpoint that is open already
    tasks       "code", "prose", "arithmetic", "recall" (held-out texts), "mqar:8", "needle:256:0.5", "copying:65",
                "induction:64"; by default code, prose and mqar:8, or nothing beside texts of your own
    texts       by label: several, or one long one, of which the first passages are read
    of          kinds of parts, as `ablations.units` has them;  layers: only of these
    score       what is held against the unedited model: loss, accuracy, kl or agreement
    controls    random sets of other parts for each ablation, matched by `match`: number, kind or parameters; 0: none.
                A set that is one of the ablations itself takes no time
    count       sequences of each task;  max_tokens: of each text
    seed        of tasks, controls and intervals
    keep        a file in which what is done is saved as it comes, and from which a sweep that was broken off goes on

    Raises BadArgument for names that are none, and what `ablations.sweep` and `stats.ablations` raise.
    """
    if score not in get_args(Score):  # found out before hours of sweeping
        raise BadArgument(f"score={score!r}: choose among {', '.join(get_args(Score))}.")
    if match not in MATCHES:
        raise BadArgument(f"match={match!r}: choose among {', '.join(MATCHES)}.")
    if isinstance(controls, bool) or not isinstance(controls, int) or controls < 0:
        raise BadArgument(f"controls={controls!r}: give how many of each, 0 for none.")
    checkpoint = source if isinstance(source, Checkpoint) else open(source, device=device, dtype=dtype)
    units, matched, without = _parts(checkpoint, of, layers, controls, match, seed)
    chosen = DEFAULT_TASKS if tasks is None and not texts else tasks or ()
    asked = [_task(checkpoint, name, count, max_tokens, seed) for name in chosen]
    asked += [_of_texts(checkpoint, name, some, count, max_tokens) for name, some in (texts or {}).items()]
    swept = ablations.sweep(checkpoint, [*units, *matched], asked, batch_size=batch_size, keep=keep, progress=progress)
    folder = Path(out).resolve()
    recording = Recording({"ablations": swept}, swept.attrs).save(folder / "recording.nc")
    found = stats.ablations(swept, score=score, seed=seed)
    findings = folder / "findings.md"
    with replacing(findings) as beside:
        beside.write_text(stats.ablation_findings(found), encoding="utf-8")
    return Ablated(folder, recording, findings, tuple(_draw(found, folder)), found, without)


def _parts(
    checkpoint: Checkpoint, of: Sequence[str], layers: Iterable[int] | None, number: int, match: Match, seed: int
) -> tuple[list[Ablation], list[Ablation], tuple[str, ...]]:
    """Ablations, their controls, and the names of those that have none."""
    if isinstance(of, str) or not of:
        raise BadArgument(f"of={of!r}: give a list of kinds of parts, such as ['mixer', 'mlp'].")
    some = None if layers is None else list(layers)
    units: list[Ablation] = []
    matched: list[Ablation] = []
    refused: dict[str, BadArgument] = {}
    for kind in dict.fromkeys(of):
        own = ablations.units(checkpoint, kind, layers=some)
        units += own
        if not number:
            continue
        among = ablations.units(checkpoint, "mixer" if kind == "kind" else kind)
        for unit in own:
            try:
                matched += ablations.controls([unit], among, match=match, number=number, seed=seed)
            except BadArgument as error:
                refused[unit.name] = error
    if refused and len(refused) == len(units):
        raise next(iter(refused.values()))
    return units, matched, tuple(refused)


def _task(checkpoint: Checkpoint, written: str, count: int, max_tokens: int, seed: int) -> Task:
    """The task that a word means: its name, and its sizes after colons."""
    name, *sizes = written.split(":")
    if name in made.DOMAINS and not sizes:
        return made.text_task(checkpoint, made.texts(name, count), name=name, max_tokens=max_tokens)
    makers: dict[str, tuple[Callable[..., Task], tuple[str, ...]]] = {
        "mqar": (made.mqar, ("pairs",)),
        "needle": (made.needle, ("length", "depth")),
        "copying": (made.copying, ("length",)),
        "induction": (made.induction, ("length",)),
    }
    if name not in makers:
        raise BadArgument(_no_task(written, name))
    make, names = makers[name]
    numbers = [_number(each) for each in sizes]
    if not 1 <= len(sizes) <= len(names) or None in numbers:
        raise BadArgument(f"task {written!r}: write {TASKS[name]}, with numbers.")
    given: dict[str, Any] = dict(zip(names, numbers, strict=False))
    if name == "needle":
        given.setdefault("depth", 0.5)
    return make(checkpoint, count=count, seed=seed, **given)


def _number(written: str) -> int | float | None:
    for read in (int, float):
        try:
            return read(written)
        except ValueError:
            continue
    return None


def _no_task(written: str, name: str) -> str:
    near = difflib.get_close_matches(name, TASKS, n=1)
    if name in made.DOMAINS:
        return f"task {written!r}: {name} has no size.\nWrite {name!r}."
    return f"There is no task {written!r}; there are {', '.join(TASKS.values())}." + (
        f"\nDid you mean {TASKS[near[0]]!r}?" if near else ""
    )


def _of_texts(checkpoint: Checkpoint, name: str, some: str | Sequence[str], count: int, max_tokens: int) -> Task:
    """Texts of the user's as a task."""
    cut = passages(checkpoint, some, tokens=max_tokens, count=count) if isinstance(some, str) else some[:count]
    return made.text_task(checkpoint, cut, name=name, max_tokens=max_tokens)


def _draw(found: xr.Dataset, folder: Path) -> Iterable[Path]:
    """Save the map, and a ranking of each task."""
    drawn = {"ablation_map": plots.ablation_map(found)}
    for task in found["task"].values.tolist():
        name = re.sub(r"[^\w.-]+", "_", str(task)).strip("_")
        drawn[f"ablation_ranking_{name}"] = plots.ablation_ranking(found, task)
    for name, figure in drawn.items():
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=150)
        yield path
