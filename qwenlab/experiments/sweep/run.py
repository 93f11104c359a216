"""Run an experiment: every point that the store does not have yet, on this machine or on a Ray cluster."""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from qwenlab.execution.engine import release
from qwenlab.experiments.plan.points import Plan, Point, plan
from qwenlab.experiments.store.location import store_at
from qwenlab.experiments.store.store import Store
from qwenlab.experiments.sweep import provenance
from qwenlab.experiments.sweep.attempt import CLAIM_SECONDS, Cancellation, Job, Outcome, run_job
from qwenlab.experiments.sweep.needs import check_needs


@dataclass(frozen=True)
class Result:
    """The outcome of every point of an experiment.

    of_other_code  names of runs that were finished before, by other source of the same version of qwenlab
    """

    plan: Plan
    store: str
    outcomes: tuple[Outcome, ...]
    seconds: float
    stopped: bool = False
    of_other_code: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether the store now has every point."""
        return not self.stopped and all(outcome.state in ("finished", "known") for outcome in self.outcomes)

    def of(self, state: str) -> list[Outcome]:
        """The outcomes with this state."""
        return [outcome for outcome in self.outcomes if outcome.state == state]


def run(
    experiment: str | Path,
    *,
    settings: Mapping[str, Any] | None = None,
    only: Mapping[str, Any] | None = None,
    store: str | Path | None = None,
    jobs: int = 1,
    force: bool = False,
    warm: bool = True,
    on: str | None = None,
) -> Result:
    """Run the points of an experiment that the store does not have yet.

    experiment  its folder, with a spec.yaml
    settings    parameter values for every point; they replace those of the spec
    only        parameter values; points with other values are left out
    store       a folder, or an address such as "s3://bucket/runs"; by default QWENLAB_STORE, or else ./runs
    jobs        runs at a time, each in its own kernel
    force       run finished points again; the new run replaces the old one once it has finished too
    warm        keep kernels and checkpoints from run to run; False: a fresh kernel for each
    on          "ray://HOST:PORT", "local-cluster", or None for this machine alone: see `cluster`

    A failed run is recorded, and the others go on. Ctrl-C ends the kernels and keeps what was recorded. Everything is
    checked before the first run starts: raises the errors of `plan`, and NeedsNotMet.
    """
    planned, target, began = plan(experiment, settings=settings, only=only), store_at(store), time.monotonic()
    known = [point for point in planned.points if not force and target.is_finished(point.name)]
    pending = [job(planned, point, force) for point in planned.points if point not in known]
    cancellation = Cancellation()
    results: Iterator[Outcome] = iter(())
    if on is not None and pending:
        from qwenlab.experiments.sweep.cluster import run_on

        results = run_on(on, planned, pending, target, warm=warm, cancellation=cancellation)
    elif pending:
        check_needs(planned, jobs)
        results = _run_here(planned, pending, target, jobs, warm=warm, cancellation=cancellation)
    outcomes = {point.address: Outcome(point, "known") for point in known}
    outcomes |= {outcome.point.address: outcome for outcome in _with_progress(results, planned, len(pending))}
    ordered = tuple(
        outcomes.get(point.address, Outcome(point, "interrupted", reason="not begun")) for point in planned.points
    )
    source = provenance.code()["source"]
    others = tuple(point.name for point in known if target.facts(point.name)["code"]["source"] != source)
    return Result(planned, target.url, ordered, time.monotonic() - began, cancellation.requested.is_set(), others)


def job(planned: Plan, point: Point, force: bool) -> Job:
    """The job of one point."""
    spec = planned.spec.model_dump(mode="json", by_alias=True, exclude={"parameters", "sweep"})
    return Job(point, spec, planned.notebook_path, force)


def _run_here(
    planned: Plan, pending: list[Job], store: Store, jobs: int, *, warm: bool, cancellation: Cancellation
) -> Iterator[Outcome]:
    """Run the pending jobs in `jobs` threads, each with its own kernel, and yield outcomes as runs end."""
    waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
    outcomes: queue.SimpleQueue[Outcome | BaseException | None] = queue.SimpleQueue()
    # Jobs with the same checkpoint follow one another, so that a worker reads it once.
    for one in sorted(pending, key=lambda job: str(job.point.checkpoints)):
        waiting.put(one)
    number = min(jobs, len(pending))

    def work() -> None:
        try:
            while not cancellation.requested.is_set():
                try:
                    one = waiting.get_nowait()
                except queue.Empty:
                    break
                bar = planned.describe(one.point) if number == 1 else ""
                outcome = run_job(one, store, warm=warm, bar=bar, cancellation=cancellation)
                if outcome.state == "elsewhere":
                    waiting.put(one)
                    cancellation.requested.wait(CLAIM_SECONDS)
                else:
                    outcomes.put(outcome)
        except BaseException as error:
            outcomes.put(error)
        finally:
            release()
            outcomes.put(None)

    threads = [threading.Thread(target=work, name=f"qwenlab {n}", daemon=True) for n in range(number)]
    for thread in threads:
        thread.start()
    running = number
    try:
        while running:
            try:
                received = outcomes.get()
            except KeyboardInterrupt:
                if cancellation.requested.is_set():  # the second Ctrl-C
                    raise
                cancellation.cancel()
                continue
            if isinstance(received, BaseException):
                raise received
            if received is None:
                running -= 1
            else:
                yield received
    finally:
        if running:  # the caller stopped iterating: end the kernels, and let every thread record how its run ended
            cancellation.cancel()
            for thread in threads:
                thread.join(timeout=30)


def _with_progress(results: Iterator[Outcome], planned: Plan, total: int) -> Iterator[Outcome]:
    """Yield the outcomes, with a progress bar over the whole sweep and one line on stderr per failed run."""
    failed = 0
    with tqdm(total=total, desc=planned.experiment, unit="run", disable=not total) as bar:
        for outcome in results:
            if outcome.state == "failed":
                failed += 1
                tqdm.write(f"{planned.describe(outcome.point)}: {outcome.reason}\n  {outcome.where}", file=sys.stderr)
            bar.set_postfix_str(f"{failed} failed" if failed else "")
            bar.update()
            yield outcome
