"""Run an experiment: every point that the store does not have yet, on this machine or on a Ray cluster."""

from __future__ import annotations

import importlib.util
import queue
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from tqdm.auto import tqdm

from qwenlab.errors import NeedsNotMet
from qwenlab.execution.engine import release
from qwenlab.experiments.plan.points import Plan, Point, plan
from qwenlab.experiments.store.store import Store, store_at
from qwenlab.experiments.sweep import provenance
from qwenlab.experiments.sweep.attempt import Job, Outcome, Stop, run_job

WAIT = 2.0
"""Seconds between two looks at a point that another runner has in hand."""


@dataclass(frozen=True)
class Result:
    """How every point of an experiment stands after a run.

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
        return not self.stopped and all(each.state in ("finished", "known") for each in self.outcomes)

    def of(self, state: str) -> list[Outcome]:
        """The outcomes of one state."""
        return [each for each in self.outcomes if each.state == state]


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
    settings    parameters that every point takes, in place of the spec's; only: leave out points with other values
    store       a folder, or an address such as "s3://bucket/runs"; by default QWENLAB_STORE, or else ./runs
    jobs        runs that go on at a time, each in a kernel of its own
    force       run again what is finished; the new run takes the place of the old one once it has finished too
    warm        keep kernels and checkpoints from run to run; False: a fresh kernel for each
    on          "ray://HOST:PORT", "local-cluster", or None for this machine alone: see `cluster`

    A run that fails is noted, and the others go on. Ctrl-C ends the kernels and leaves what was recorded. Everything is
    checked before the first run starts: raises what `points.plan` does, and NeedsNotMet.
    """
    planned, where, began = plan(experiment, settings=settings, only=only), store_at(store), time.monotonic()
    known = [point for point in planned.points if not force and where.is_finished(point.name)]
    wanted = [job(planned, point, force) for point in planned.points if point not in known]
    stop = Stop()
    if on is not None and wanted:
        from qwenlab.experiments.sweep.cluster import run_on

        results = run_on(on, planned, wanted, where, warm=warm, stop=stop)
    elif wanted:
        check_needs(planned, jobs)
        results = _run_here(planned, wanted, where, jobs, warm=warm, stop=stop)
    else:
        results = iter(())
    done = {point.address: Outcome(point, "known") for point in known}
    done |= {outcome.point.address: outcome for outcome in _shown(results, planned, len(wanted))}
    outcomes = tuple(
        done.get(point.address, Outcome(point, "interrupted", reason="not begun")) for point in planned.points
    )
    source = provenance.code()["source"]
    others = tuple(point.name for point in known if where.facts(point.name)["code"]["source"] != source)
    return Result(planned, where.url, outcomes, time.monotonic() - began, stop.wanted.is_set(), others)


def job(planned: Plan, point: Point, force: bool) -> Job:
    """What a worker has to know of one point."""
    spec = planned.spec.model_dump(mode="json", by_alias=True, exclude={"parameters", "sweep"})
    return Job(point, spec, planned.notebook_path, force)


def check_needs(planned: Plan, jobs: int) -> None:
    """Raise NeedsNotMet where this machine lacks what the spec says a run needs."""
    needs, at = planned.spec.needs, planned.source.at
    found, free = len(provenance.gpus()), psutil.virtual_memory().available
    if needs.gpus * jobs > found:
        raise NeedsNotMet(
            f"{at('needs', 'gpus')}: {jobs} x {needs.gpus} GPUs are needed, and this machine has {found}."
        )
    if needs.memory is not None and needs.memory * jobs > free:
        raise NeedsNotMet(
            f"{at('needs', 'memory')}: {jobs} x {needs.memory / 2**30:.1f} GiB are needed, and {free / 2**30:.1f} GiB "
            "are free here. Ask for fewer jobs at a time."
        )
    for extra in needs.extras:
        missing = [name for name in EXTRAS.get(extra, (extra,)) if importlib.util.find_spec(name) is None]
        if missing:
            raise NeedsNotMet(f"{at('needs', 'extras')}: {missing[0]} is not installed: pip install 'qwenlab[{extra}]'")


EXTRAS = {"cuda": ("fla", "triton"), "ray": ("ray",), "s3": ("s3fs",), "mlflow": ("mlflow",)}
"""What each extra installs, as it is imported."""


def _run_here(
    planned: Plan, wanted: list[Job], store: Store, jobs: int, *, warm: bool, stop: Stop
) -> Iterator[Outcome]:
    """Run these with so many threads, each with a kernel of its own, and yield each outcome as it comes."""
    waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
    outcomes: queue.SimpleQueue[Outcome | BaseException | None] = queue.SimpleQueue()
    # One worker's points follow one another by checkpoint, so that it is read once.
    for each in sorted(wanted, key=lambda job: str(job.point.checkpoints)):
        waiting.put(each)
    one = min(jobs, len(wanted)) == 1

    def work() -> None:
        try:
            while not stop.wanted.is_set():
                try:
                    each = waiting.get_nowait()
                except queue.Empty:
                    break
                outcome = run_job(each, store, warm=warm, bar=planned.describe(each.point) if one else "", stop=stop)
                if outcome.state == "elsewhere":
                    waiting.put(each)
                    stop.wanted.wait(WAIT)
                else:
                    outcomes.put(outcome)
        except BaseException as error:
            outcomes.put(error)
        finally:
            release()
            outcomes.put(None)

    threads = [threading.Thread(target=work, name=f"qwenlab {n}", daemon=True) for n in range(min(jobs, len(wanted)))]
    for thread in threads:
        thread.start()
    left = len(threads)
    try:
        while left:
            try:
                found = outcomes.get()
            except KeyboardInterrupt:
                if stop.wanted.is_set():  # asked a second time
                    raise
                stop.now()
                continue
            if isinstance(found, BaseException):
                raise found
            if found is None:
                left -= 1
            else:
                yield found
    finally:
        if left:  # nobody listens any more: end the kernels, and let every thread write how its run ended
            stop.now()
            for thread in threads:
                thread.join(timeout=30)


def _shown(results: Iterator[Outcome], planned: Plan, total: int) -> Iterator[Outcome]:
    """The outcomes, with a bar over the whole sweep, and a line for each that failed."""
    failed = 0
    with tqdm(total=total, desc=planned.experiment, unit="run", disable=not total) as bar:
        for outcome in results:
            if outcome.state == "failed":
                failed += 1
                tqdm.write(f"{planned.describe(outcome.point)}: {outcome.reason}\n  {outcome.where}", file=sys.stderr)
            bar.set_postfix_str(f"{failed} failed" if failed else "")
            bar.update()
            yield outcome
