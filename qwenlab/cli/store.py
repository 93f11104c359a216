"""The commands `qwenlab runs ...`: what the store holds, shown, compared, reported and thinned out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.json import JSON
from rich.table import Table

from qwenlab import experiments
from qwenlab.cli.experiments import STORE

if TYPE_CHECKING:
    import pandas as pd

    from qwenlab.experiments.store.compare import Comparison

app = typer.Typer(help="The runs that the store holds.", no_args_is_help=True)
_COLUMNS = ("name", "state", "seed", "began", "seconds", "exit")


@app.command("list")
def list_runs(
    experiment: Annotated[str | None, typer.Argument(help="Only the runs of this one.")] = None,
    where: Annotated[str | None, typer.Option(help="SQL: '\"params.checkpoint\" = 'toy-moe''.")] = None,
    state: Annotated[str, typer.Option(help="finished, failed, interrupted, running, broken_off, or all.")] = "all",
    store: Annotated[str | None, STORE] = None,
) -> None:
    """The runs, one a line."""
    found = experiments.find(experiment, where=where, state=None if state == "all" else state, store=store)
    varied = [name for name in found if name.startswith("params.") and found[name].astype(str).nunique() > 1]
    columns = [name for name in (*_COLUMNS, *varied) if name in found]
    _print(found[columns].rename(columns={name: name.removeprefix("params.") for name in varied}))


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="experiment/address, or as much of it as names one run.")],
    store: Annotated[str | None, STORE] = None,
) -> None:
    """Everything that is known of one run, and its metrics."""
    facts, console = experiments.facts(name, store=store), Console()
    console.print(JSON.from_data(facts))
    whose = f"folder = '{facts['folder']}'"
    values = experiments.metrics(facts["experiment"], where=whose, state=None, store=store)
    _print(values.drop(columns=["name", "seed"]))


@app.command()
def diff(
    old: Annotated[str, typer.Argument(help="A run, or a store (a folder or an address).")],
    new: Annotated[str, typer.Argument(help="The same.")],
    experiment: Annotated[str | None, typer.Option(help="Of two stores: only the runs of this one.")] = None,
    exit_code: Annotated[bool, typer.Option(help="Exit with 1 where a metric moved beyond noise.")] = False,
    store: Annotated[str | None, STORE] = None,
) -> None:
    """What differs between two runs, or between the runs of two stores, and which metrics moved beyond noise."""
    if all(Path(each).is_dir() or "://" in each for each in (old, new)):
        found = experiments.compare_stores(old, new, experiment)
    else:
        found = experiments.compare(old, new, store=store)
    _show_comparison(found)
    if exit_code and found.moved:
        raise typer.Exit(1)


@app.command()
def report(
    experiment: Annotated[str, typer.Argument(help="The experiment's name.")],
    out: Annotated[Path | None, typer.Option(help="The page. Default: report.html in its folder of the store.")] = None,
    store: Annotated[str | None, STORE] = None,
) -> None:
    """One self-contained HTML page of an experiment: its question, runs, metrics and figures."""
    page = experiments.report(experiment, out, store=store)
    Console().print(str(page), soft_wrap=True, highlight=False, markup=False)


@app.command()
def export(
    experiment: Annotated[str, typer.Argument(help="The experiment's name.")],
    mlflow: Annotated[str, typer.Option(help="The tracking server: http://HOST:5000, sqlite:///FILE.")],
    where: Annotated[str | None, typer.Option(help="SQL, as in `qwenlab runs list`.")] = None,
    datasets: Annotated[bool, typer.Option("--datasets", help="Send the datasets too.")] = False,
    store: Annotated[str | None, STORE] = None,
) -> None:
    """Send the finished runs of an experiment to an MLflow tracking server, those that it does not have yet."""
    sent = experiments.export_mlflow(experiment, tracking_uri=mlflow, store=store, where=where, datasets=datasets)
    console = Console()
    for name in sent:
        console.print(name, soft_wrap=True, highlight=False, markup=False)
    console.print(f"{len(sent)} sent")


@app.command()
def prune(
    experiment: Annotated[str | None, typer.Argument(help="Only of this one.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Delete. Without it, only print what would be.")] = False,
    store: Annotated[str | None, STORE] = None,
) -> None:
    """Delete what did not finish: failed, interrupted and broken-off attempts. Finished runs stay."""
    folders = experiments.prune(experiment, store=store, delete=yes)
    console = Console()
    for folder in folders:
        console.print(str(folder), soft_wrap=True, highlight=False, markup=False)
    console.print(f"{len(folders)} {'deleted' if yes else 'would be deleted: --yes deletes them'}")


def _show_comparison(found: Comparison) -> None:
    console = Console()
    console.print(f"{found.points} run{'s' if found.points > 1 else ''} beside each other")
    if len(found.facts):
        _print(found.facts)
    table = Table("metric", "units", "old", "new", "difference", "95 % interval", "n", "moved", box=box.SIMPLE_HEAD)
    for row in found.metrics.itertuples():
        interval = "one value" if math.isnan(row.low) else f"{row.low:.3g} to {row.high:.3g}"
        moved = {True: "yes", False: "no"}.get(row.moved, "unknown" if row.difference else "no")
        worse = " (worse)" if row.metric in found.worse else ""
        numbers = (f"{row.old:.4g}", f"{row.new:.4g}", f"{row.difference:+.3g}", interval, f"{row.n} {row.unit}")
        table.add_row(row.metric, row.units, *numbers, moved + worse)
    console.print(table)


def _print(table: pd.DataFrame) -> None:
    shown = Table(*map(str, table.columns), box=box.SIMPLE_HEAD)
    for row in table.itertuples(index=False):
        shown.add_row(*map(_cell, row))
    Console().print(shown)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4g}"
    return "" if value is None else str(value)
