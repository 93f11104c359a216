"""`Explorer`: drop-down lists beside a figure that follows them, in a live notebook and in its saved copy alike."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from html import escape
from typing import Any, NamedTuple

from IPython.display import DisplayHandle, display
from ipywidgets import Dropdown, HBox
from matplotlib.figure import Figure

from qwenlab.plots.style import style


class Drawing(NamedTuple):
    """A figure, and what it shows in words and numbers: its text for those who cannot see it."""

    figure: Figure
    caption: str


class Explorer:
    """Drop-down lists, and the figure of what is chosen in them.

        explorer = explore_layers(recording)
        explorer                            # as the last line of a cell: shows the lists and the figure
        explorer["layer"].value = 3         # the same as choosing it in the list; explorer.figure has followed

    The figure and the caption below it are plain outputs of the cell. So they stay in the executed notebook, in its
    HTML and on paper; and choosing, which needs a kernel, replaces them where they stand.

    lists  what can be chosen, by name
    draw   draws what is chosen, from statistics that were made once
    """

    def __init__(self, lists: Mapping[str, Dropdown], draw: Callable[[], Drawing]) -> None:
        self._lists, self._draw = dict(lists), style()(draw)
        self._outputs: tuple[DisplayHandle, ...] = ()
        self._drawn, self._drawing = self.chosen, self._draw()
        self.controls = HBox(list(self._lists.values()))
        for each in self._lists.values():
            each.observe(self._follow, names="value")

    def __getitem__(self, name: str) -> Dropdown:
        """The list of this name."""
        return self._lists[name]

    @property
    def chosen(self) -> dict[str, object]:
        """What is chosen now, by the name of the list."""
        return {name: each.value for name, each in self._lists.items()}

    @property
    def figure(self) -> Figure:
        """The figure of what is chosen now."""
        return self._drawing.figure

    @property
    def caption(self) -> str:
        """What the figure shows, in words and numbers."""
        return self._drawing.caption

    def _follow(self, change: object) -> None:
        """Draw what is chosen, once: a list that changes with another one tells of the same choice again."""
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
        """Data and metadata of the outputs of a cell: the figure, and below it the caption."""
        picture = io.BytesIO()
        self.figure.savefig(picture, format="png", dpi=self.figure.dpi)
        encoded = base64.b64encode(picture.getvalue()).decode()
        yield {"image/png": encoded, "text/plain": self.caption}, {"image/png": {"alt": self.caption}}
        yield {"text/html": f"<p>{escape(self.caption)}</p>", "text/plain": self.caption}, {}


def number_choice(name: str, numbers: Iterable[int], tooltip: str) -> Dropdown:
    """A list of numbers to choose from."""
    return choice(name, [(str(number), number) for number in numbers], tooltip)


def choice(name: str, options: list[tuple[str, object]], tooltip: str) -> Dropdown:
    """A list to choose from with its name beside it; an option is what is read, and the value it stands for."""
    return Dropdown(options=options, description=name, tooltip=tooltip)
