"""The command `qwenlab run`: check an experiment, and run the points that the store does not have."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from qwenlab import experiments
from qwenlab.cli.printing import print_lines, print_table
from qwenlab.experiments.plan.source import parsed

if TYPE_CHECKING:
    from qwenlab.experiments.plan.points import Plan
    from qwenlab.experiments.sweep.run import Result

STORE = typer.Option(help="A folder, or an address such as s3://bucket/runs. Default: $QWENLAB_STORE, or else ./runs.")


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
