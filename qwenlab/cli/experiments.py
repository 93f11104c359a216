"""The commands `run`, which checks and runs an experiment, and `runs ...`, which list, compare and export runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.json import JSON

from qwenlab import experiments
from qwenlab.cli.printing import print_lines, print_table
from qwenlab.experiments.plan.source import parsed

if TYPE_CHECKING:
    import pandas as pd

    from qwenlab.experiments.plan.points import Plan
    from qwenlab.experiments.store.compare import Comparison
    from qwenlab.experiments.sweep.run import Result

STORE = typer.Option(help="A folder, or an address such as s3://bucket/runs. Default: $QWENLAB_STORE, or else ./runs.")
runs_app = typer.Typer(help="List, show, compare, report and prune the runs of a store.", no_args_is_help=True)
_COLUMNS = ("name", "state", "seed", "began", "seconds", "exit")


def run(
    experiment: Annotated[Path, typer.Argument(help="The experiment's folder, with its spec.yaml.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="name=value: set a parameter of every point. Repeat for more.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="name=value: run only points with this value.")] = None,
    dry_run: Annotated[bool, typer.Option(help="Check everything, print the points, run nothing.")] = False,
    force: Annotated[bool, typer.Option(help="Run finished points again.")] = False,
    jobs: Annotated[int, typer.Option(help="Number of parallel runs, each in its own kernel.", min=1)] = 1,
    cold: Annotated[bool, typer.Option(help="Fresh kernel, and a freshly read checkpoint, for each run.")] = False,
    on: Annotated[str | None, typer.Option(help="Ray cluster for the runs: ray://HOST:PORT, or local-cluster.")] = None,
    store: Annotated[str | None, STORE] = None,
) -> None:
    """Run the points of an experiment that the store does not have yet.

    Exit status: 0 if the store has every point, 1 if a run failed, 2 for an error in the command or the experiment,
    130 if it was interrupted.
    """
    chosen = dict(settings=parsed(settings or [], "--set"), only=parsed(only or [], "--only"))
    if dry_run:
        _show_plan(experiments.plan(experiment, **chosen), store)
        return
    try:
        result = experiments.run(experiment, **chosen, store=store, jobs=jobs, force=force, warm=not cold, on=on)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    _show_result(result)
    if not result.complete:
        raise typer.Exit(130 if result.stopped else 1)


def _show_plan(plan: Plan, store: str | None) -> None:
    opened = experiments.store_at(store)
    finished = {point.name: opened.is_finished(point.name) for point in plan.points}
    states = ("to run", "finished")
    rows = [(point.name, plan.describe(point), states[finished[point.name]]) for point in plan.points]
    print_table(("run", "parameters that differ", "state"), rows)
    missing = len(finished) - sum(finished.values())
    print_lines(f"{len(finished)} points, {missing} to run, in the store {opened.url}")


def _show_result(result: Result) -> None:
    words = {"finished": "finished", "known": "finished before", "failed": "failed", "interrupted": "not run"}
    counts = {word: len(result.of(state)) for state, word in words.items()}
    summary = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    print_lines(f"{result.plan.experiment}: {summary}, in {result.seconds:.1f} s; store {result.store}")
    print_lines(*(f"  {outcome.where}: {outcome.reason}" for outcome in result.of("failed")))
    if result.of_other_code:
        Console(stderr=True).print(
            f"{len(result.of_other_code)} of the runs finished before used other code of the same version: "
            "--force runs them again.",
            style="yellow",
            soft_wrap=True,
        )


@runs_app.command("list")
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


@runs_app.command()
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


@runs_app.command()
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


@runs_app.command()
def report(
    experiment: Annotated[str, typer.Argument(help="The experiment's name.")],
    out: Annotated[Path | None, typer.Option(help="File for the page. Default: report.html in the store.")] = None,
    store: Annotated[str | None, STORE] = None,
) -> None:
    """Write one self-contained HTML page about an experiment: question, runs, metrics, figures."""
    print_lines(experiments.report(experiment, out, store=store))


@runs_app.command()
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


@runs_app.command()
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
