"""A notebook that shows its figures with a description and saves them, and its results, in one folder."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import xarray as xr
from IPython.core.getipython import get_ipython
from IPython.display import display
from tqdm import tqdm

from qwenlab.errors import BadArgument
from qwenlab.record.whole_files import replacing

if TYPE_CHECKING:
    from qwenlab.checkpoint.checkpoint import Checkpoint

FORMATS = ("png", "svg", "pdf")
SMALL = 1e8
"""Parameters of a model below which more threads cost time: its matrices are too small to share."""

_NAME = re.compile(r"[A-Za-z0-9_-]+")


def start(out: str | Path | None = None, *, formats: Sequence[str] = ("png", "svg"), digits: int = 3) -> Notebook:
    """Set up a notebook: figures inline, numbers of tables with `digits` digits. Returns what shows and saves.

    out      the folder for figures and results; None saves nothing
    formats  files of each figure: png, svg, pdf
    digits   significant digits of numbers in pandas tables

    Raises BadArgument for another format.
    """
    unknown = [each for each in formats if each not in FORMATS]
    if unknown:
        raise BadArgument(f"a figure cannot be saved as {unknown[0]!r}: choose from {', '.join(FORMATS)}.")
    shell: Any = get_ipython()
    if hasattr(shell, "kernel"):  # Jupyter, not IPython in a terminal
        shell.run_line_magic("matplotlib", "inline")
    pd.options.display.float_format = f"{{:.{digits}g}}".format
    return Notebook(Path(out) if out is not None else None, tuple(formats))


class Notebook:
    """Shows figures and saves them with the results of one notebook. `start` makes it.

    out      the folder; None saves nothing
    formats  files of each figure
    """

    def __init__(self, out: Path | None, formats: tuple[str, ...]) -> None:
        self.out, self.formats = out, formats
        self._figures: dict[str, None] = {}

    def open(self, checkpoint: str | Path, **options: Any) -> Checkpoint:
        """`ql.open` for a notebook: without log messages, and with one thread for a model as small as a toy."""
        import torch
        import transformers

        from qwenlab.checkpoint.open import open as open_checkpoint

        transformers.logging.set_verbosity_error()
        opened = open_checkpoint(checkpoint, **options)
        if opened.facts.parameters < SMALL:
            torch.set_num_threads(1)
        return opened

    def show(self, name: str, figure: Any, description: str) -> None:
        """Show a matplotlib figure and save it in `out`.

        name         of its files; a figure with the same name replaces the earlier one
        description  alternative text, for readers who cannot see the figure

        Raises BadArgument for a name that is not a file name.
        """
        if not _NAME.fullmatch(name):
            raise BadArgument(f"{name!r} cannot name a file: use letters, digits, dash and underscore.")
        display(figure, metadata={"image/png": {"alt": description}})
        if self.out is not None:
            self._save_figure(self.out / name, figure)
        self._figures[name] = None
        if pyplot := sys.modules.get("matplotlib.pyplot"):
            pyplot.close(figure)  # or the end of the cell would show it again

    def _save_figure(self, path: Path, figure: Any) -> None:
        layout = figure.get_layout_engine()
        figure.set_layout_engine("none")  # its layout was computed to show it, and takes longer than all else
        for suffix in self.formats:
            with replacing(path.with_suffix(f".{suffix}")) as beside:
                figure.savefig(beside, format=suffix, dpi=150)
        figure.set_layout_engine(layout)

    def save(self, **results: Any) -> None:
        """Save results in `out`, each under its own name, and list all that was saved. Without `out`, do nothing.

        results  a recording, a trace, a Dataset or a DataArray (.nc), a DataFrame (.csv), Markdown text (.md)

        Raises BadArgument for any other type, before it writes a file.
        """
        writers = {name: _writer(name, value) for name, value in results.items()}
        if self.out is None:
            return
        for name, (suffix, write) in writers.items():
            with replacing(self.out / f"{name}{suffix}") as beside:
                write(beside)
        files = [f"{name}{suffix}" for name, (suffix, _) in writers.items()]
        figures = [f"{', '.join(self._figures)} ({', '.join(f'.{each}' for each in self.formats)})"]
        tqdm.write(f"saved in {self.out}: {', '.join(files + figures * bool(self._figures))}")


def _writer(name: str, value: Any) -> tuple[str, Callable[[Path], Any]]:
    if isinstance(value, (xr.Dataset, xr.DataArray)):
        return ".nc", lambda path: value.to_netcdf(path, engine="h5netcdf")
    if isinstance(value, pd.DataFrame):
        return ".csv", value.to_csv
    if isinstance(value, str):
        return ".md", lambda path: path.write_text(value, encoding="utf-8")
    if hasattr(value, "save"):  # a recording or a trace
        return ".nc", value.save
    raise BadArgument(
        f"save({name}=...) got a {type(value).__name__}; it takes a recording, a trace, a Dataset, a DataArray, "
        "a DataFrame or Markdown text. Save figures with show(name, figure, description)."
    )
