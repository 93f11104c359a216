"""`explore_maps`: the stored attention map of one head and text at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from qwenlab.checkpoint.families import DELTANET
from qwenlab.errors import NothingMeasured
from qwenlab.plots.maps import attention_map as draw_map
from qwenlab.plots.style import LABELS
from qwenlab.record.recording import Recording
from qwenlab.stats.maps import attention_map, stored_maps
from qwenlab.stats.reach import reach
from qwenlab.widgets.explorer import Drawing, Explorer, choice, mixer_choices
from qwenlab.widgets.labels import in_words

_NAMES = ("entropy", "first_mass", "previous_mass", "induction_lift")
_MOST = 24  # characters of a text in the list


def explore_maps(
    recording: Recording,
    *,
    tokens: Mapping[int, Sequence[str]] | None = None,
    marks: Mapping[int, Sequence[tuple[int, int]]] | None = None,
) -> Explorer:
    """Choose a text, a layer and a head of either kind, and see its map; needs only the recording.

    The caption gives `stats.reach` of the head over all measured rows of all texts.

    recording  with stored maps: of ImplicitAttention(queries="all"), SoftmaxAttention(queries="all") or both
    tokens     the tokens of a text as strings, by its number in reading order
    marks      positions (query, key) of weights to frame, by the number of the text

    Raises ProbeNotRecorded without stored maps.
    """
    stored, names, framed = stored_maps(recording), tokens or {}, marks or {}
    by_layer = {int(layer): data for data in stored for layer in data["layer"].values}
    statistics = _measured(recording)
    numbers = np.unique(stored[0]["text"].values).tolist()
    texts = choice("Text", [(_named(number, names.get(number)), number) for number in numbers], "the text, as read")
    kinds = {layer: str(data["kind"].sel(layer=layer).item()) for layer, data in by_layer.items()}
    layers, heads = mixer_choices(kinds, lambda layer: by_layer[layer]["head"].values.tolist())

    def draw() -> Drawing:
        text, layer, head = texts.value, layers.value, heads.value
        shown = attention_map(recording, layer=layer, head=head, text=text)
        figure = draw_map(shown, tokens=names.get(text), marks=framed.get(text, ()))
        title = f"text {text} · layer {layer} · {LABELS[kinds[layer]]} · head {head}"
        return Drawing(figure, _caption(title, statistics, kinds[layer], layer, head))

    return Explorer({"text": texts, "layer": layers, "head": heads}, draw)


def _measured(recording: Recording) -> xr.Dataset | None:
    """Statistics over the measured rows of all texts; None without such rows."""
    try:
        return reach(recording)
    except NothingMeasured:
        return None


def _named(number: int, tokens: Sequence[str] | None) -> str:
    """The number of a text and its first characters."""
    begins = " ".join("".join(tokens or ()).split())
    short = begins if len(begins) <= _MOST else f"{begins[: _MOST - 1]}…"
    return f"{number} · {short}" if short else str(number)


def _caption(title: str, statistics: xr.Dataset | None, kind: str, layer: int, head: int) -> str:
    if statistics is None:
        return title
    names = (*_NAMES, "negative") if kind == DELTANET else _NAMES
    return f"{title}. Over all rows measured: {in_words(statistics.sel(layer=layer, head=head), *names)}."
