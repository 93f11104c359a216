"""Text and tables of a REPORT.md: numbers with intervals and spreads over runs, in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy import stats

from qwenlab.checkpoint.anatomy.display import LABELS


def spread(values: pd.Series) -> str:
    """Median over runs, with the smallest and the largest; one number where all are the same."""
    middle, low, high = (_number(each) for each in (values.median(), values.min(), values.max()))
    return middle if low == high else f"{middle} [{low}, {high}]"


def interval(values: pd.Series) -> str:
    """Mean over runs, with Student's interval at 95 % of it; one number where all are the same."""
    if values.nunique() == 1:
        return _number(values.mean())
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    return f"{_number(values.mean())} [{_number(low)}, {_number(high)}]"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def wide(
    values: pd.DataFrame, *by: str, along: str, heading: str = "{}", cell: Callable[[pd.Series], Any] = spread
) -> pd.DataFrame:
    """A table of values: a row for each combination of `by`, a column for each value of `along`.

    values   one number a row, in the column `value`, as `ql.experiments.metrics` returns them
    by       columns of it; parameters go by their own name, without `params.`
    heading  format of the column titles
    cell     makes the text of a cell from the numbers that share it
    """
    named = values.rename(columns=lambda name: name.removeprefix("params."))
    table = named.groupby([*by, along])["value"].agg(cell).unstack()
    if not pd.api.types.is_numeric_dtype(named[along]):
        table = table[named[along].unique()]  # words keep their order
    table.columns = pd.Index([heading.format(column) for column in table.columns])
    return table.rename(index=LABELS)


def labelled(rows: Mapping[tuple[str, ...], Sequence[str]], by: Sequence[str], columns: Sequence[str]) -> pd.DataFrame:
    """A table of cells that are text already: rows by their labels, whose headings are `by`."""
    return pd.DataFrame(list(rows.values()), pd.MultiIndex.from_tuples(rows, names=by), list(columns))


def estimate(data: xr.Dataset, name: str, number: Callable[[float], str]) -> str:
    """One estimate with its interval where it has one; an effect of an ablation is bold where it is significant.

    data  a statistic, down to one value of `name`, with `NAME_interval` [bound]
    """
    low, high = data[f"{name}_interval"].values
    text = number(float(data[name])) + ("" if np.isnan(low) else f" [{number(low)}, {number(high)}]")
    return f"**{text}**" if name == "effect" and bool(data["significant"]) else text


def figure_link(name: str, title: str) -> str:
    """A figure of the report with its title as alternative text."""
    return f"![{title}](figures/{name}.png)"


def unwrap(text: str) -> str:
    """Text in one line, as an item of a list needs it."""
    return " ".join(text.split())


def markdown(table: pd.DataFrame) -> str:
    """A frame as a Markdown table, its index as the first columns."""
    table = table.reset_index()
    lines = (map(str, table.columns), ["---"] * table.shape[1], *table.astype(str).values.tolist())
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
