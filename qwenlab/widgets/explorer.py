"""`Explorer`: drop-down lists and a figure that follows them, in a live notebook and in its saved copy."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from html import escape
from typing import Any, NamedTuple

from IPython.display import DisplayHandle, display
from ipywidgets import Dropdown, HBox
from matplotlib.figure import Figure

from qwenlab.plots.style import LABELS, style


class Drawing(NamedTuple):
    """A figure and its caption, which is also its alternative text."""

    figure: Figure
    caption: str


class Explorer:
    """Drop-down lists, and the figure of the current choice.

        explorer = explore_layers(recording)
        explorer                            # as the last line of a cell: shows the lists and the figure
        explorer["layer"].value = 3         # the same as choosing it in the list; updates explorer.figure

    The figure and its caption are plain outputs of the cell, so the executed notebook and its HTML and PDF contain
    them. A new choice, which needs a kernel, replaces them.

    lists  drop-down lists by name
    draw   draws the current choice, from statistics that were computed once
    """

    def __init__(self, lists: Mapping[str, Dropdown], draw: Callable[[], Drawing]) -> None:
        self._lists, self._draw = dict(lists), style()(draw)
        self._outputs: tuple[DisplayHandle, ...] = ()
        self._drawn, self._drawing = self.chosen, self._draw()
        self.controls = HBox(list(self._lists.values()))
        for dropdown in self._lists.values():
            dropdown.observe(self._follow, names="value")

    def __getitem__(self, name: str) -> Dropdown:
        """The list of this name."""
        return self._lists[name]

    @property
    def chosen(self) -> dict[str, object]:
        """The current choice, by the name of the list."""
        return {name: dropdown.value for name, dropdown in self._lists.items()}

    @property
    def figure(self) -> Figure:
        """The figure of the current choice."""
        return self._drawing.figure

    @property
    def caption(self) -> str:
        """The caption of the figure, in words and numbers."""
        return self._drawing.caption

    def _follow(self, change: object) -> None:
        """Draw the current choice, once: a list that changes with another one reports the same choice again."""
        if self.chosen == self._drawn:
            return
        self._drawn, self._drawing = self.chosen, self._draw()
        for output, (data, metadata) in zip(self._outputs, self._shown(), strict=False):
            output.update(data, raw=True, metadata=metadata)

    def _ipython_display_(self) -> None:
        display(self.controls)
        self._outputs = tuple(
            display(data, raw=True, metadata=metadata, display_id=True) for data, metadata in self._shown()
        )

    def _shown(self) -> Iterator[tuple[dict[str, str], dict[str, Any]]]:
        """Data and metadata of the cell outputs: the figure, then the caption."""
        picture = io.BytesIO()
        self.figure.savefig(picture, format="png", dpi=self.figure.dpi)
        encoded = base64.b64encode(picture.getvalue()).decode()
        yield {"image/png": encoded, "text/plain": self.caption}, {"image/png": {"alt": self.caption}}
        yield {"text/html": f"<p>{escape(self.caption)}</p>", "text/plain": self.caption}, {}


def choice(name: str, options: Iterable[object], tooltip: str) -> Dropdown:
    """A drop-down list with its name; an option is a value, or a label and its value."""
    return Dropdown(options=list(options), description=name, tooltip=tooltip)


def mixer_choices(kinds: Mapping[int, str], heads_of: Callable[[int], list[int]]) -> tuple[Dropdown, Dropdown]:
    """Drop-down lists of layers, with the kinds of their mixers, and of the heads of the chosen layer."""
    named = [(f"{layer} · {LABELS[kind]}", layer) for layer, kind in sorted(kinds.items())]
    layers = choice("Layer", named, "the index of the layer")
    heads = choice("Head", heads_of(layers.value), "the head of this layer's mixer")

    def follow(change: object) -> None:
        heads.options = heads_of(layers.value)

    layers.observe(follow, names="value")
    return layers, heads
