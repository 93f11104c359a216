"""Ablate the parts of a checkpoint one by one, with matched random controls, and score each on tasks."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from qwenlab import ablations, plots, record, stats, tasks as task_makers
from qwenlab.ablations.match import Match
from qwenlab.arguments import choice, integer
from qwenlab.errors import BadArgument
from qwenlab.recipes import inputs
from qwenlab.recipes.saving import Saved, save_figures
from qwenlab.record.whole_files import replacing
from qwenlab.stats.score import Score

if TYPE_CHECKING:
    import xarray as xr

    from qwenlab.ablations.ablation import Ablation
    from qwenlab.checkpoint.checkpoint import Checkpoint
    from qwenlab.tasks.task import Task

DEFAULT_TASKS = ("code", "prose", "mqar:8")
_RECALL = {"mqar": "PAIRS", "needle": "LENGTH[:POSITION]", "copying": "LENGTH", "induction": "LENGTH"}
"""Recall tasks, and the sizes that follow the name: keywords of the function of that name."""


@dataclass(frozen=True)
class Ablated(Saved):
    """A sweep of ablations: files and statistics. The recording has the node "ablations".

    findings          Markdown: what each ablation changed, beyond its controls
    statistics        `stats.ablations`
    without_controls  names of ablations that no other parts match
    """

    findings: Path
    statistics: xr.Dataset
    without_controls: tuple[str, ...]


def ablate(
    source: inputs.CheckpointInput,
    out: inputs.FolderPath,
    *,
    tasks: Sequence[str] | None = None,
    texts: inputs.LabelledTexts | None = None,
    of: Sequence[str] = ("mixer",),
    layers: Iterable[int] | None = None,
    score: Score = "loss",
    controls: inputs.NonNegative = 6,
    match: Match = "number",
    count: inputs.Positive = 16,
    max_tokens: inputs.TwoOrMore = 256,
    batch_size: inputs.Positive = 8,
    workers: inputs.Positive = 1,
    seed: int = 0,
    resume: inputs.FilePath | None = None,
    device: inputs.Device | None = None,
    dtype: inputs.Dtype | None = None,
    memory: inputs.MemoryBudget | None = None,
    progress: inputs.Progress = True,
) -> Ablated:
    """Ablate parts of a checkpoint one by one: the effect of each on each task, compared with random controls.

    out         folder for recording.nc, findings.md and figures
    tasks       held-out texts (code, prose, arithmetic, recall) or recall tasks (mqar:PAIRS, needle:LENGTH[:POSITION],
                copying:LENGTH, induction:LENGTH); by default code, prose, mqar:8, or only your own texts if any
    texts       your own texts as tasks, by label
    of          kinds of parts to ablate: layer, mixer, mlp, head, expert, gate, kind
    layers      ablate only parts of these layers; by default all
    score       score to compare with that of the intact model
    controls    random controls for each ablation; 0 for none
    match       how controls are matched: by number of parts, also by kind of layer, or by number of parameters
    count       sequences of each task; intervals need two or more
    max_tokens  tokens read of each text, and the length of the passages into which a long text is cut
    batch_size  sequences read at a time
    workers     processes over which the ablations are spread, each with a copy of the model on the CPU
    seed        random seed of tasks, controls and intervals
    resume      file in which scores are saved as they come; an interrupted sweep resumes from it

    `source` is what `qwenlab.open` takes (with `device`, `dtype` and `memory`), or an open Checkpoint. With `memory`,
    all ablations go through each layer together, and the files are read about once. Raises BadArgument for unknown
    names, and what `ablations.sweep` and `stats.ablations` raise.
    """
    choice("ablate", "score", score, get_args(Score))  # before hours of sweeping
    choice("ablate", "match", match, get_args(Match))
    integer("ablate", "controls", controls, unit="controls for each ablation")
    if isinstance(of, str) or not of:
        raise BadArgument(f"of={of!r}: give a list of kinds of parts, such as ['mixer', 'mlp'].")
    checkpoint = inputs.opened(source, device, dtype, memory)
    units, matched, without = _parts(checkpoint, of, layers, controls, match, seed, progress)
    names = DEFAULT_TASKS if tasks is None and not texts else tasks or ()
    scored = [_task(checkpoint, name, count, max_tokens, seed) for name in names]
    for label, some in (texts or {}).items():
        passages = inputs.passages_of(checkpoint, some, max_tokens, count)
        scored.append(task_makers.text_task(checkpoint, passages, name=label, max_tokens=max_tokens))
    swept = ablations.sweep(
        checkpoint,
        [*units, *matched],
        scored,
        batch_size=batch_size,
        workers=workers,
        resume=resume,
        progress=progress,
    )
    folder = Path(out).resolve()
    saved = record.Recording({"ablations": swept}, swept.attrs).save(folder / "recording.nc")
    statistics, findings = stats.ablations(swept, score=score, seed=seed), folder / "findings.md"
    with replacing(findings) as temporary:
        temporary.write_text(stats.ablation_findings(statistics), encoding="utf-8")
    return Ablated(folder, saved, save_figures(_figures(statistics), folder), findings, statistics, without)


def _parts(
    checkpoint: Checkpoint,
    of: Sequence[str],
    layers: Iterable[int] | None,
    number: int,
    match: Match,
    seed: int,
    progress: bool,
) -> tuple[list[Ablation], list[Ablation], tuple[str, ...]]:
    from qwenlab.ablations.controls import matched_controls  # loads torch, which takes seconds

    chosen = None if layers is None else list(layers)
    units: list[Ablation] = []
    matched: list[Ablation] = []
    refused: dict[str, BadArgument] = {}
    how: dict[str, Any] = dict(match=match, number=number, seed=seed, progress=progress)
    for kind in dict.fromkeys(of):
        own = ablations.units(checkpoint, kind, layers=chosen)
        units += own
        if number:
            drawn, without = matched_controls(
                own, ablations.units(checkpoint, "mixer" if kind == "kind" else kind), **how
            )
            matched += drawn
            refused |= without
    if refused and len(refused) == len(units):
        raise next(iter(refused.values()))
    return units, matched, tuple(refused)


def _task(checkpoint: Checkpoint, written: str, count: int, max_tokens: int, seed: int) -> Task:
    """The task that `written` names: a domain of held-out texts, or a recall task with its sizes after colons."""
    name, *sizes = written.split(":")
    if name in task_makers.DOMAINS:
        if sizes:
            raise BadArgument(f"task {written!r}: {name} has no size.\nWrite {name!r}.")
        return task_makers.text_task(checkpoint, task_makers.texts(name, count), name=name, max_tokens=max_tokens)
    if name not in _RECALL:
        forms = dict(zip(task_makers.DOMAINS, task_makers.DOMAINS, strict=True))
        forms |= {each: f"{each}:{form}" for each, form in _RECALL.items()}
        near = [f"\nDid you mean {forms[each]!r}?" for each in difflib.get_close_matches(name, forms, n=1)]
        raise BadArgument(f"There is no task {written!r}; there are {', '.join(forms.values())}.{''.join(near)}")
    keywords, values = re.findall("[a-z]+", _RECALL[name].lower()), []
    with suppress(ValueError):
        values = [int(size) if size.isdigit() else float(size) for size in sizes]
    if not 1 <= len(values) <= len(keywords):
        raise BadArgument(f"task {written!r}: write {name}:{_RECALL[name]}, with numbers.")
    defaults = {"position": 0.5} if name == "needle" else {}
    how: dict[str, Any] = defaults | dict(zip(keywords, values, strict=False))
    return getattr(task_makers, name)(checkpoint, count=count, seed=seed, **how)


def _figures(statistics: xr.Dataset) -> Iterator[tuple[str, Any]]:
    yield "ablation_map", plots.ablation_map(statistics)
    for task in statistics["task"].values.tolist():
        name = re.sub(r"[^\w.-]+", "_", str(task)).strip("_")
        yield f"ablation_ranking_{name}", plots.ablation_ranking(statistics, task)
