"""The commands `qwenlab runs ...`: list, show, compare, report, export and prune the runs of a store."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.json import JSON

from qwenlab import experiments
from qwenlab.cli.experiments import STORE
from qwenlab.cli.printing import print_lines, print_table

if TYPE_CHECKING:
    import pandas as pd

    from qwenlab.experiments.store.compare import Comparison

app = typer.Typer(help="List, show, compare, report and prune the runs of a store.", no_args_is_help=True)
_COLUMNS = ("name", "state", "seed", "began", "seconds", "exit")


@app.command("list")
def list_runs(
    experiment: Annotated[str | None, typer.Argument(help="List only runs of this experiment.")] = None,
    where: Annotated[str | None, typer.Option(help="SQL condition: \"params.checkpoint\" = 'toy-moe'.")] = None,
    state: Annotated[str, typer.Option(help="finished, failed, interrupted, running, broken_off, or all.")] = "all",
    store: Annotated[str | None, STORE] = None,
) -> None:
    """List runs."""
    found = experiments.find(experiment, where=where, state=None if state == "all" else state, store=store)
    varied = [name for name in found if name.startswith("params.") and found[name].astype(str).nunique() > 1]
    columns = [name for name in (*_COLUMNS, *varied) if name in found]
    _print(found[columns].rename(columns={name: name.removeprefix("params.") for name in varied}))


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="experiment/address, or enough of it to name one run.")],
    store: Annotated[str | None, STORE] = None,
) -> None:
    """Show all facts of a run, and its metrics."""
    facts = experiments.facts(name, store=store)
    Console().print(JSON.from_data(facts))
    whose = f"folder = '{facts['folder']}'"
    values = experiments.metrics(facts["experiment"], where=whose, state=None, store=store)
    _print(values.drop(columns=["name", "seed"]))


@app.command()
def diff(
    old: Annotated[str, typer.Argument(help="A run, or a store (a folder or an address).")],
    new: Annotated[str, typer.Argument(help="A run, or a store, to compare with it.")],
    experiment: Annotated[str | None, typer.Option(help="Of two stores, compare only this experiment.")] = None,
    exit_code: Annotated[bool, typer.Option(help="Exit with status 1 if a metric moved beyond noise.")] = False,
    store: Annotated[str | None, STORE] = None,
) -> None:
    """Show what differs between two runs or two stores, and which metrics moved beyond noise."""
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
    out: Annotated[
        Path | None,
        typer.Option(help="File for the page. Default: report.html in the store."),
    ] = None,
    store: Annotated[str | None, STORE] = None,
) -> None:
    """Write one self-contained HTML page about an experiment: question, runs, metrics, figures."""
    print_lines(experiments.report(experiment, out, store=store))


@app.command()
def export(
    experiment: Annotated[str, typer.Argument(help="The experiment's name.")],
    mlflow: Annotated[str, typer.Option(help="Tracking server, such as http://HOST:5000 or sqlite:///FILE.")],
    where: Annotated[str | None, typer.Option(help="SQL condition, as for qwenlab runs list.")] = None,
    datasets: Annotated[bool, typer.Option("--datasets", help="Also send datasets.")] = False,
    store: Annotated[str | None, STORE] = None,
) -> None:
    """Send finished runs to an MLflow tracking server, except those that it has already."""
    sent = experiments.export_mlflow(experiment, tracking_uri=mlflow, store=store, where=where, datasets=datasets)
    print_lines(*sent, f"{len(sent)} sent")


@app.command()
def prune(
    experiment: Annotated[str | None, typer.Argument(help="Prune only runs of this experiment.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Delete. Without it, only list what would be deleted.")] = False,
    store: Annotated[str | None, STORE] = None,
) -> None:
    """Delete failed, interrupted and broken-off attempts. Finished runs stay."""
    folders = experiments.prune(experiment, store=store, delete=yes)
    print_lines(*folders, f"{len(folders)} {'deleted' if yes else 'would be deleted: --yes deletes them'}")


def _show_comparison(found: Comparison) -> None:
    print_lines(f"{found.points} run{'s' if found.points > 1 else ''} compared")
    if len(found.facts):
        _print(found.facts)
    rows = []
    for row in found.metrics.itertuples():
        interval = "one value" if math.isnan(row.low) else f"{row.low:.3g} to {row.high:.3g}"
        moved = {True: "yes", False: "no"}.get(row.moved, "unknown" if row.difference else "no")
        worse = " (worse)" if row.metric in found.worse else ""
        numbers = (f"{row.old:.4g}", f"{row.new:.4g}", f"{row.difference:+.3g}", interval, f"{row.n} {row.unit}")
        rows.append((row.metric, row.units, *numbers, moved + worse))
    print_table(("metric", "units", "old", "new", "difference", "95 % interval", "n", "moved"), rows)


def _print(table: pd.DataFrame) -> None:
    print_table(map(str, table.columns), (map(_cell, row) for row in table.itertuples(index=False)))


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4g}"
    return "" if value is None else str(value)
