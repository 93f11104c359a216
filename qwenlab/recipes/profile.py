"""Profile a checkpoint: measure what each layer does with your texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from qwenlab import plots, probes as available, stats, tasks
from qwenlab.errors import BadArgument, NothingMeasured, ProbeNotRecorded
from qwenlab.recipes import inputs
from qwenlab.recipes.saving import Saved, save_figures

if TYPE_CHECKING:
    from qwenlab.checkpoint.checkpoint import Checkpoint
    from qwenlab.record.recording import Recording

_FIGURES = (
    *("layer_table", "half_life", "attention_distance", "gates", "expert_load", "specialisation"),
    *("coactivation", "reach", "residual", "time_by_kind", "memory"),
)
"""Names of functions: those of `stats` compute what those of `plots` draw."""

_FILE_NAMES = {"layer_table": "layers", "memory": "memory_by_context"}


class Profile(Saved):
    """Files of a profile."""


def profile(
    source: inputs.CheckpointInput,
    texts: inputs.LabelledTexts | None,
    out: inputs.FolderPath,
    *,
    probes: Iterable[str] | None = None,
    max_tokens: inputs.Positive = 512,
    passages: inputs.Positive = 16,
    batch_size: inputs.Positive = 8,
    decode: inputs.NonNegative | None = None,
    device: inputs.Device | None = None,
    dtype: inputs.Dtype | None = None,
    memory: inputs.MemoryBudget | None = None,
    progress: inputs.Progress = True,
) -> Profile:
    """Watch a checkpoint read texts; save a recording and figures of its layers.

    texts       texts to read, by label; without any, the held-out texts of the package
    out         folder for recording.nc and the figures
    probes      probes to attach: deltanet, attention, routing, residual, timing, memory; by default all that fit
    max_tokens  tokens read of each text, and the length of the passages into which a long text is cut
    passages    passages read of a long text; intervals need two or more for each label, and are wide below 8
    batch_size  texts read at a time
    decode      tokens at the end of each label's first text that are read one at a time, as in decoding; by default 16,
                or none with `memory`

    `source` is what `qwenlab.open` takes (with `device`, `dtype` and `memory`), or an open Checkpoint. A checkpoint
    opened with `memory` is read once per label, and its cost is printed before that with `progress`; the memory probe
    is left out, since there are no caches. Raises BadArgument for unknown probes, no texts, and `decode` or the memory
    probe with `memory`.
    """
    chosen = None if probes is None else _checked(probes)
    labelled = inputs.texts_or_shipped("profile", texts, passages)
    checkpoint = inputs.opened(source, device, dtype, memory)
    cut = {
        label: tasks.passages(checkpoint, some, tokens=max_tokens, count=passages) if isinstance(some, str) else some
        for label, some in labelled.items()
    }
    if not _is_streamed(checkpoint):
        decode = 16 if decode is None else decode
        tasks.feed(checkpoint, next(iter(cut.values()))[:1], max_tokens=64, decode=2)  # the first passes are slower
    else:
        decode = decode or 0
        if progress:
            _print_cost(checkpoint, cut, max_tokens, batch_size)
    with available.watch(checkpoint, *_probes(checkpoint, chosen)) as seen:
        for label, some in cut.items():
            with seen.label(label):
                tasks.feed(
                    checkpoint, some, batch_size=batch_size, max_tokens=max_tokens, decode=decode, progress=progress
                )
    recording, folder = seen.recording(), Path(out).resolve()
    saved = recording.save(folder / "recording.nc")
    return Profile(folder, saved, save_figures(_figures(recording), folder))


def _is_streamed(checkpoint: Checkpoint) -> bool:
    from qwenlab.checkpoint.streaming.stream import streamed_layers  # loads torch

    return streamed_layers(checkpoint.model) is not None


def _print_cost(checkpoint: Checkpoint, cut: Mapping[str, Sequence[str]], max_tokens: int, batch_size: int) -> None:
    """Print what reading the texts costs at most, by label: each label reads the layers once."""
    from qwenlab.checkpoint.streaming.cost import streaming_cost  # loads torch

    for label, some in cut.items():
        passes = -(-len(some) // batch_size)
        batch = min(batch_size, len(some))
        cost = streaming_cost(checkpoint, context=max_tokens, batch=batch, passes=passes, together=True)
        tqdm.write(f"{label}: {cost}")


def _probes(checkpoint: Checkpoint, chosen: Mapping[str, str] | None) -> list[available.Probe]:
    """All probes that fit the checkpoint, or the chosen ones; they measure every token where they can sample."""
    fit = {each.name: each for each in available.thorough(checkpoint)}
    if _is_streamed(checkpoint):
        if "memory" in (chosen or ()):
            raise BadArgument(
                "probes: memory measures caches, and a checkpoint opened with memory=... is read without them.\n"
                "Leave the probe out, or open the checkpoint without memory=..."
            )
        del fit["memory"]
    return [fit.get(name) or getattr(available, chosen[name])() for name in chosen] if chosen else list(fit.values())


def _checked(names: Iterable[str]) -> dict[str, str]:
    """Probe name -> class name, in the order of a recording's nodes. Raises BadArgument for unknown names, or none."""
    from qwenlab.record.recording import PROBES  # loads xarray

    chosen = list(names)
    unknown = [name for name in chosen if name not in PROBES]
    if unknown or not chosen:
        found = ", ".join(map(repr, unknown)) or "none"
        raise BadArgument(f"probes: {found} is not the name of a probe.\nChoose among {', '.join(PROBES)}.")
    return {name: PROBES[name] for name in PROBES if name in chosen}


def _figures(recording: Recording) -> Iterator[tuple[str, Any]]:
    """File name and figure, for each figure that the recording has the data for: comparisons, say, need two labels."""
    for name in _FIGURES:
        with suppress(ProbeNotRecorded, NothingMeasured):
            yield _FILE_NAMES.get(name, name), getattr(plots, name)(getattr(stats, name)(recording))
