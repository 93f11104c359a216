"""Acceptance of a checkpoint's MTP head on your texts: rounds, rates, a verdict on losslessness, what it pays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr

from qwenlab import plots, stats
from qwenlab.checkpoint.open import Checkpoint, open
from qwenlab.errors import BadArgument
from qwenlab.speculative.generate import generate
from qwenlab.speculative.lossless.check import LosslessReport, check_lossless
from qwenlab.speculative.step_times import step_times
from qwenlab.speculative.trace.trace import Trace
from qwenlab.speculative.trace.tracing import trace as trace_of
from qwenlab.tasks.cutting import passages as passages_of

CHECKED = 2
"""Prompts on which losslessness is checked."""


@dataclass(frozen=True)
class Acceptance:
    """What was found, and where it lies: a recording with the nodes "rounds" and "trace", and figures of it.

    rates, by_label  of `stats.acceptance`;  speedup: of `stats.speedup`;  lossless: of `decode.check_lossless`
    """

    folder: Path
    recording: Path
    figures: tuple[Path, ...]
    rates: xr.Dataset
    by_label: xr.Dataset
    speedup: xr.Dataset
    lossless: LosslessReport


def acceptance(
    source: str | Path | Checkpoint,
    texts: Mapping[str, str | Sequence[str]],
    out: str | Path,
    *,
    depth: int = 3,
    prompt_tokens: int = 64,
    new_tokens: int = 64,
    prompts: int = 8,
    device: str | None = None,
    dtype: str | None = None,
    progress: bool = True,
) -> Acceptance:
    """Decode with drafts after the beginnings of texts, by the rule greedy; save recording.nc and figures in `out`.

    source         what `qwenlab.open` takes, or a Checkpoint that is open already
    texts          by label: several, or one long one, which is cut into as many passages as are read
    depth          drafts a round, at most
    prompt_tokens  of each text's beginning;  new_tokens: decoded after it;  prompts: read of each label

    Intervals are over prompts, so they need two or more. Raises NoMtpHead, BadPrompt and BadArgument.
    """
    if not texts:
        raise BadArgument("acceptance(texts={}): give at least one label and its texts.")
    checkpoint = source if isinstance(source, Checkpoint) else open(source, device=device, dtype=dtype)
    begun, labels = _beginnings(checkpoint, texts, prompt_tokens, prompts)
    made = generate(checkpoint, begun, depth=depth, max_new_tokens=new_tokens, labels=labels, progress=progress)
    lossless = check_lossless(
        checkpoint, begun[:CHECKED], depth=depth, max_new_tokens=min(new_tokens, 32), progress=progress
    )
    traced = trace_of(checkpoint, made, depth=depth, progress=progress)
    costs = step_times(checkpoint, max(made.tokens, key=len), depth=depth, progress=progress)
    folder = Path(out).resolve()
    recording = made.recording()
    recording.tree["trace"] = xr.DataTree(traced.dataset)
    saved = recording.save(folder / "recording.nc")
    rates = stats.acceptance(recording)
    by_label, speed = stats.acceptance(recording, by="label"), stats.speedup(recording, costs)
    drawn: dict[str, Any] = {
        "acceptance": plots.acceptance(rates),
        "acceptance_by_label": plots.acceptance(by_label),
        "teacher_forced": plots.teacher_forced(stats.agreement(recording), rates),
        "speedup": plots.speedup(speed),
    }
    figures = []
    for name, figure in drawn.items():
        figures.append(folder / f"{name}.png")
        figure.savefig(figures[-1], dpi=150)
    return Acceptance(folder, saved, tuple(figures), rates, by_label, speed, lossless)


def trace(
    source: str | Path | Checkpoint,
    texts: Mapping[str, str],
    out: str | Path,
    *,
    depth: int = 3,
    window: int = 1024,
    device: str | None = None,
    dtype: str | None = None,
    progress: bool = True,
) -> Trace:
    """Every draft at every place of texts of any length, by label, cut into windows; saved as the file `out`."""
    checkpoint = source if isinstance(source, Checkpoint) else open(source, device=device, dtype=dtype)
    made = trace_of(checkpoint, list(texts.values()), depth=depth, window=window, labels=list(texts), progress=progress)
    made.save(out)
    return made


def _beginnings(
    checkpoint: Checkpoint, texts: Mapping[str, str | Sequence[str]], tokens: int, count: int
) -> tuple[list[list[int]], list[str]]:
    """The first tokens of every text, and its label."""
    begun: list[list[int]] = []
    labels: list[str] = []
    for label, some in texts.items():
        cut = passages_of(checkpoint, some, tokens=tokens, count=count) if isinstance(some, str) else some[:count]
        for text in cut:
            begun.append(checkpoint.tokenizer(text)["input_ids"][:tokens])
            labels.append(label)
    return begun, labels
