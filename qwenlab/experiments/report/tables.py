"""Tables of a REPORT.md: spreads over runs, in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd
from scipy import stats


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


def markdown(table: pd.DataFrame) -> str:
    """A frame as a Markdown table, its index as the first columns."""
    table = table.reset_index()
    return rows(list(map(str, table.columns)), table.astype(str).values.tolist())


def rows(header: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A Markdown table of cells that are text already."""
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *body))
