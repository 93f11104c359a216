"""Measure the MTP head of a checkpoint on your texts: acceptance rates, losslessness, speed-up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from qwenlab import plots, record, speculative, stats
from qwenlab.recipes import inputs
from qwenlab.recipes.saving import Saved, save_figures

if TYPE_CHECKING:
    import xarray as xr

    from qwenlab.speculative.lossless.check import LosslessReport
    from qwenlab.speculative.trace.trace import Trace

CHECKED = 2
"""Prompts on which losslessness is checked."""


@dataclass(frozen=True)
class AcceptanceReport(Saved):
    """Acceptance of the MTP head: files and statistics. The recording has the nodes "rounds" and "trace".

    rates, by_label  `stats.acceptance` over all prompts, and by label
    speedup          `stats.speedup`
    lossless         `speculative.check_lossless`
    """

    rates: xr.Dataset
    by_label: xr.Dataset
    speedup: xr.Dataset
    lossless: LosslessReport


def acceptance(
    source: inputs.CheckpointInput,
    texts: inputs.LabelledTexts | None,
    out: inputs.FolderPath,
    *,
    depth: inputs.Positive = 3,
    prompt_tokens: inputs.Positive = 64,
    new_tokens: inputs.TwoOrMore = 64,
    prompts: inputs.Positive = 8,
    device: inputs.Device | None = None,
    dtype: inputs.Dtype | None = None,
    progress: inputs.Progress = True,
) -> AcceptanceReport:
    """Decode with the MTP head as draft model: acceptance, losslessness, speed-up.

    texts          texts whose beginnings are the prompts, by label; without any, the held-out texts of the package
    out            folder for recording.nc and the figures
    depth          drafts per round, at most
    prompt_tokens  tokens of each prompt
    new_tokens     tokens decoded after each prompt
    prompts        prompts of each label; intervals are over prompts and need two or more

    Drafts are verified greedily. `source` is what `qwenlab.open` takes (with `device` and `dtype`), or an open
    Checkpoint. Raises NoMtpHead, BadPrompt and BadArgument.
    """
    labelled = inputs.texts_or_shipped("acceptance", texts, prompts)
    checkpoint = inputs.opened(source, device, dtype)
    cut = {label: inputs.passages_of(checkpoint, some, prompt_tokens, prompts) for label, some in labelled.items()}
    starts = [checkpoint.tokenizer(text)["input_ids"][:prompt_tokens] for text in chain.from_iterable(cut.values())]
    labels = [label for label, some in cut.items() for _ in some]
    generated = speculative.generate(
        checkpoint, starts, depth=depth, max_new_tokens=new_tokens, labels=labels, progress=progress
    )
    lossless = speculative.check_lossless(
        checkpoint, starts[:CHECKED], depth=depth, max_new_tokens=min(new_tokens, 32), progress=progress
    )
    traced = speculative.trace(checkpoint, generated, depth=depth, progress=progress)
    costs = speculative.step_times(checkpoint, max(generated.tokens, key=len), depth=depth, progress=progress)
    rounds = generated.recording()
    recording = record.Recording({"rounds": rounds["rounds"], "trace": traced.dataset}, rounds.attrs)
    folder = Path(out).resolve()
    saved = recording.save(folder / "recording.nc")
    rates = stats.acceptance(recording)
    by_label, speedup = stats.acceptance(recording, by="label"), stats.speedup(recording, costs)
    figures = {
        "acceptance": plots.acceptance(rates),
        "acceptance_by_label": plots.acceptance(by_label),
        "teacher_forced": plots.agreement(stats.agreement(recording), rates),
        "speedup": plots.speedup(speedup),
    }
    return AcceptanceReport(folder, saved, save_figures(figures.items(), folder), rates, by_label, speedup, lossless)


def trace(
    source: inputs.CheckpointInput,
    texts: Mapping[str, str],
    out: inputs.FilePath,
    *,
    depth: inputs.Positive = 3,
    window: inputs.TwoOrMore = 1024,
    device: inputs.Device | None = None,
    dtype: inputs.Dtype | None = None,
    memory: inputs.MemoryBudget | None = None,
    progress: inputs.Progress = True,
) -> Trace:
    """Draft at every token of texts of any length, teacher-forced; save the trace.

    texts     texts to read, by label
    out       file for the trace, such as trace.nc
    depth     drafts at each token
    window    tokens of the windows into which texts are cut; each is read on its own

    `source` is what `qwenlab.open` takes (with `device`, `dtype` and `memory`), or an open Checkpoint. With
    `memory`, each layer is read once per window, and the lm_head `depth` + 1 times.
    """
    checkpoint = inputs.opened(source, device, dtype, memory)
    some, labels = list(texts.values()), list(texts)
    traced = speculative.trace(checkpoint, some, depth=depth, window=window, labels=labels, progress=progress)
    traced.save(out)
    return traced
