"""The command `qwenlab run`: an experiment's points, checked, and those the store does not have run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from qwenlab import experiments
from qwenlab.experiments.plan.source import parsed

if TYPE_CHECKING:
    from qwenlab.experiments.plan.points import Plan
    from qwenlab.experiments.sweep.run import Result

STORE = typer.Option(help="A folder, or an address such as s3://bucket/runs. Default: $QWENLAB_STORE, or else ./runs.")


def run(
    experiment: Annotated[Path, typer.Argument(help="The experiment's folder, with its spec.yaml.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="name=value: a parameter for every point. Repeat for more.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="name=value: only the points that have it.")] = None,
    dry_run: Annotated[bool, typer.Option(help="Check everything, print the points, run nothing.")] = False,
    force: Annotated[bool, typer.Option(help="Run again what is finished.")] = False,
    jobs: Annotated[int, typer.Option(help="Runs at a time, each in a kernel of its own.", min=1)] = 1,
    cold: Annotated[bool, typer.Option(help="A fresh kernel, and a freshly read checkpoint, for each run.")] = False,
    on: Annotated[str | None, typer.Option(help="ray://HOST:PORT, or local-cluster.")] = None,
    store: Annotated[str | None, STORE] = None,
) -> None:
    """Run the points of an experiment that the store does not have yet.

    Exit status: 0 when the store has every point, 1 when a run failed, 2 when something is wrong with what was asked
    for, 130 when it was stopped.
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
    console, kept = Console(), experiments.store_at(store)
    table = Table("run", "parameters that differ", "state", box=box.SIMPLE_HEAD)
    missing = 0
    for point in plan.points:
        finished = kept.is_finished(point.name)
        missing += not finished
        table.add_row(point.name, plan.describe(point), "finished" if finished else "to run")
    console.print(table)
    console.print(f"{len(plan.points)} points, {missing} to run, in the store {kept.url}", soft_wrap=True)


def _show_result(result: Result) -> None:
    console = Console()
    counts = {state: len(result.of(state)) for state in ("finished", "known", "failed", "interrupted")}
    words = {"known": "finished before", "interrupted": "not run"}
    said = ", ".join(f"{count} {words.get(state, state)}" for state, count in counts.items() if count)
    console.print(f"{result.plan.experiment}: {said}, in {result.seconds:.1f} s; store {result.store}", soft_wrap=True)
    for outcome in result.of("failed"):
        console.print(f"  {outcome.where}: {outcome.reason}", soft_wrap=True, markup=False, highlight=False)
    if result.of_other_code:
        Console(stderr=True).print(
            f"{len(result.of_other_code)} of those finished before were run with other code of the same version: "
            "--force runs them again.",
            style="yellow",
            soft_wrap=True,
        )
