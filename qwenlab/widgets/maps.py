"""Each head's map of each text, as it was kept."""

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
from qwenlab.widgets.explorer import Drawing, Explorer, choice, number_choice
from qwenlab.widgets.labels import in_words

_SAID = ("entropy", "first_mass", "previous_mass", "induction_lift")
_OPENING = 24  # characters of a text, in the list


def explore_maps(
    recording: Recording,
    *,
    tokens: Mapping[int, Sequence[str]] | None = None,
    marks: Mapping[int, Sequence[tuple[int, int]]] | None = None,
) -> Explorer:
    """Choose a text, a layer and a head of either kind, and see its map of that text, from the recording alone.

    Below it: what `stats.reach` says of the head over all rows that were measured, of all texts.

    recording  with maps kept: of ImplicitAttention(queries="all"), SoftmaxAttention(queries="all") or both
    tokens     what the tokens of a text are called, by its number in reading order
    marks      positions (query, key) of weights to frame, by the text's number

    Raises NotWatched where no map was kept.
    """
    kept, names, framed = stored_maps(recording), tokens or {}, marks or {}
    where = {int(layer): data for data in kept for layer in data["layer"].values}
    statistics = _measured(recording)
    numbers = np.unique(kept[0]["text"].values).tolist()
    texts = choice("Text", [(_named(number, names.get(number)), number) for number in numbers], "the text, as read")
    kinds = {layer: str(data["kind"].sel(layer=layer).item()) for layer, data in sorted(where.items())}
    layers = choice(
        "Layer", [(f"{layer} · {LABELS[kind]}", layer) for layer, kind in kinds.items()], "the layer, by its place"
    )

    def heads_of(layer: int) -> list[int]:
        return [int(head) for head in where[layer]["head"].values]

    heads = number_choice("Head", heads_of(layers.value), "the head of this layer's mixer")

    def offer_heads(change: object) -> None:
        heads.options = [(str(head), head) for head in heads_of(layers.value)]

    def draw() -> Drawing:
        text, layer, head = texts.value, layers.value, heads.value
        shown = attention_map(recording, layer=layer, head=head, text=text)
        figure = draw_map(shown, tokens=names.get(text), marks=framed.get(text, ()))
        title = f"text {text} · layer {layer} · {LABELS[kinds[layer]]} · head {head}"
        return Drawing(figure, _caption(title, statistics, kinds[layer], layer, head))

    layers.observe(offer_heads, names="value")
    return Explorer({"text": texts, "layer": layers, "head": heads}, draw)


def _measured(recording: Recording) -> xr.Dataset | None:
    """Statistics over the rows of all texts, where any was measured beside those kept."""
    try:
        return reach(recording)
    except NothingMeasured:
        return None


def _named(number: int, tokens: Sequence[str] | None) -> str:
    """A text's number and how it begins."""
    begins = " ".join("".join(tokens or ()).split())
    short = begins if len(begins) <= _OPENING else f"{begins[: _OPENING - 1]}…"
    return f"{number} · {short}" if short else str(number)


def _caption(title: str, statistics: xr.Dataset | None, kind: str, layer: int, head: int) -> str:
    if statistics is None:
        return title
    names = (*_SAID, "negative") if kind == DELTANET else _SAID
    one = statistics.sel(layer=layer, head=head)
    return f"{title}. Over all rows measured: {'; '.join(in_words(one, name) for name in names)}."
