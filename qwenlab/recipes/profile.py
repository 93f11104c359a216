"""A profile: what each layer of a checkpoint does with your texts, as a recording and figures in a folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwenlab import plots, probes, stats
from qwenlab.checkpoint.open import Checkpoint, open
from qwenlab.errors import BadArgument, NothingMeasured
from qwenlab.probes.session import watch
from qwenlab.record.recording import PROBES, Recording
from qwenlab.tasks.cutting import passages as passages_of
from qwenlab.tasks.reading import read


@dataclass(frozen=True, slots=True)
class Profile:
    """What a profile left in `folder`: a recording, and figures of it."""

    folder: Path
    recording: Path
    figures: tuple[Path, ...]


def profile(
    source: str | Path | Checkpoint,
    texts: Mapping[str, str | Sequence[str]],
    out: str | Path,
    *,
    probes: Iterable[str] | None = None,
    max_tokens: int = 512,
    passages: int = 16,
    batch_size: int = 8,
    decode: int = 16,
    device: str | None = None,
    dtype: str | None = None,
    progress: bool = True,
) -> Profile:
    """Watch a checkpoint read texts; save recording.nc and the figures that can be made of it in `out`.

    source      what `qwenlab.open` takes, or a Checkpoint that is open already
    texts       by label: several, or one long one, of which the first `passages` passages of `max_tokens` tokens are
                read. Intervals need two or more of a label, and 8 or more to be narrow.
    probes      names of nodes: deltanet, attention, routing, residual, timing, memory; by default all that the model
                has parts for
    max_tokens  read of each text;  batch_size  texts at a time
    decode      tokens at the end of each label's first text that are read one at a time
    """
    names = None if probes is None else _checked(probes)
    if not texts:
        raise BadArgument("profile(texts={}): give at least one label and its texts.")
    checkpoint = source if isinstance(source, Checkpoint) else open(source, device=device, dtype=dtype)
    cut = {
        label: passages_of(checkpoint, some, tokens=max_tokens, count=passages) if isinstance(some, str) else some
        for label, some in texts.items()
    }
    _warm_up(checkpoint, next(iter(cut.values())))
    with watch(checkpoint, *_probes(checkpoint, names)) as seen:
        for label, some in cut.items():
            with seen.label(label):
                read(checkpoint, some, batch_size=batch_size, max_tokens=max_tokens, decode=decode, progress=progress)
    folder = Path(out).resolve()
    recording = seen.recording()
    saved = recording.save(folder / "recording.nc")
    return Profile(folder, saved, tuple(_draw(recording, folder)))


def _warm_up(checkpoint: Checkpoint, texts: Sequence[str]) -> None:
    """Read a little, prefill and decode: first passes are slower, which is not to be taken for the time of a layer."""
    read(checkpoint, texts[:1], max_tokens=64, decode=2)


def _probes(checkpoint: Checkpoint, names: list[str] | None) -> list[Any]:
    """All that fit, or those of these names, leaving nothing out."""
    fit = {each.name: each for each in probes.thorough(checkpoint)}
    return list(fit.values()) if names is None else [fit.get(name) or getattr(probes, PROBES[name])() for name in names]


def _checked(names: Iterable[str]) -> list[str]:
    """Names of probes in the order of the nodes; raises BadArgument for a name that is none, or none at all."""
    chosen = list(names)
    unknown = [name for name in chosen if name not in PROBES]
    if unknown or not chosen:
        found = ", ".join(map(repr, unknown)) or "none"
        raise BadArgument(f"probes: {found} is no probe's name.\nChoose among {', '.join(PROBES)}.")
    return [name for name in PROBES if name in chosen]


def _draw(recording: Recording, folder: Path) -> Iterator[Path]:
    """Save every figure for which this recording has the nodes and enough of them: a comparison needs two labels."""
    for name, (nodes, statistic, plot) in _FIGURES.items():
        if not any(node in recording for node in nodes):
            continue
        try:
            measured = getattr(stats, statistic)(recording)
        except NothingMeasured:
            continue
        path = folder / f"{name}.png"
        getattr(plots, plot)(measured).savefig(path, dpi=150)
        yield path


_LAYERED = ("deltanet", "attention", "routing", "residual", "timing")
_FIGURES: dict[str, tuple[tuple[str, ...], str, str]] = {
    "layers": (_LAYERED, "layer_table", "layer_map"),
    "half_life": (("deltanet",), "half_life", "half_life"),
    "attention_distance": (("attention",), "attention_distance", "attention_distance"),
    "gates": (("deltanet", "attention"), "gates", "gate_histograms"),
    "expert_load": (("routing",), "expert_load", "expert_load"),
    "specialisation": (("routing",), "specialisation", "specialisation"),
    "coactivation": (("routing",), "coactivation", "coactivation"),
    "reach": (("implicit_attention", "softmax_attention"), "reach", "reach"),
    "residual": (("residual",), "residual", "residual"),
    "time_by_kind": (("timing",), "time_by_kind", "time_by_kind"),
    "memory_by_context": (("memory",), "memory", "memory_by_context"),
}
"""Figure -> the nodes of which it needs one, its statistic and its plot."""
