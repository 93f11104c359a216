"""Distribute the points of a sweep over the workers of a Ray cluster."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from tqdm.auto import tqdm

from qwenlab.errors import ClusterFailed, NeedsNotMet
from qwenlab.experiments.plan.points import Plan
from qwenlab.experiments.sweep.attempt import Cancellation, Job, Outcome
from qwenlab.experiments.sweep.worker import NotebookFolder, Worker, WorkerSettings

RESTARTS = 3
"""Restarts of a worker that died, by itself or with its node, before its point counts as failed."""

POLL_SECONDS, ANSWER_SECONDS, SHUTDOWN_SECONDS = 2.0, 5.0, 30.0
"""Between two looks at the nodes; until a worker must answer; until interrupted runs must be recorded."""

_NEEDS = {"CPU": ("cores", 1, "cores"), "GPU": ("gpus", 1, "GPUs"), "memory": ("memory", 2**30, "GiB of memory")}
"""Ray's name of a resource -> its key in spec.yaml, one of its units, and the unit's name."""


class RemoteSweep:
    """The jobs that are left, the workers, and the job of each; waits `patience` seconds for a node that fits."""

    def __init__(
        self,
        planned: Plan,
        pending: list[Job],
        settings: WorkerSettings,
        folder: NotebookFolder,
        cancellation: Cancellation,
        *,
        patience: float,
    ) -> None:
        import ray

        self.ray, self.planned, self.settings, self.cancellation = ray, planned, settings, cancellation
        needs = planned.spec.needs
        amounts = {"CPU": needs.cores, "GPU": needs.gpus, "memory": int(needs.memory or 0)}
        self.resources = {name: amount for name, amount in amounts.items() if amount}
        # Jobs with the same checkpoint follow one another, so that a worker reads it once.
        self.pending = deque(sorted(pending, key=lambda job: str(job.point.checkpoints)))
        self.folder = ray.put(folder)
        self.workers: list[Any] = []
        self.running: dict[Any, tuple[Any, Job]] = {}
        self.patience, self.deadline = patience, float("inf")
        self.unmet_since: float | None = None

    def outcomes(self) -> Iterator[Outcome]:
        """Yield outcomes as runs end. Ctrl-C interrupts the runs; the second Ctrl-C raises KeyboardInterrupt."""
        while self.running or (self.pending and not self.cancellation.requested.is_set()):
            try:
                self._start_workers()
                done, _ = self.ray.wait(list(self.running), timeout=POLL_SECONDS)
                ended = [self._finish(task) for task in done]
            except KeyboardInterrupt:
                if self.cancellation.requested.is_set():
                    raise
                self._interrupt()
                continue
            yield from (outcome for outcome in ended if outcome is not None)
            if time.monotonic() > self.deadline:
                return

    def end(self) -> None:
        """End every worker, and with it its kernel."""
        self._end_workers(list(self.workers))

    def _start_workers(self) -> None:
        """Start a worker for each slot that the nodes have now, as long as jobs are pending."""
        if self.cancellation.requested.is_set():
            return
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        slots = sum(slots_of(node, self.resources) for node in nodes)
        self._require_slots(nodes, slots)
        options: dict[str, Any] = dict(num_cpus=self.resources["CPU"], num_gpus=self.resources.get("GPU", 0))
        options |= {"memory": self.resources["memory"]} if "memory" in self.resources else {}
        while self.pending and len(self.running) < max(1, slots):  # always request one: an autoscaler may add a node
            # Ray needs a while to notice that a node died: attempts in that time must not be counted.
            actor = self.ray.remote(Worker).options(**options, max_restarts=RESTARTS, max_task_retries=-1)
            self.workers.append(actor.remote(self.settings, partial(self.ray.get, self.folder)))
            self._submit(self.workers[-1])

    def _require_slots(self, nodes: Iterable[Mapping[str, float]], slots: int) -> None:
        """Raise NeedsNotMet if no node has had what a run needs for `patience` seconds."""
        now = time.monotonic()
        if slots:
            self.unmet_since = None
            return
        message = _unmet_need(self.planned, self.resources, nodes)
        if self.unmet_since is None:
            self.unmet_since = now
            if self.patience:
                tqdm.write(f"{message}\nWaiting up to {self.patience:g} s for one that has.")
        if now - self.unmet_since >= self.patience:
            raise NeedsNotMet(message)

    def _submit(self, worker: Any) -> None:
        job = self.pending.popleft()
        self.running[worker.run.remote(job)] = worker, job

    def _finish(self, task: Any) -> Outcome | None:
        """The outcome of a task, None if another runner has claimed its point. Its worker takes the next job."""
        worker, job = self.running.pop(task)
        outcome = self._outcome(task)
        if outcome is None:
            self._end_workers([worker], grace=0)
            if self.cancellation.requested.is_set():
                return Outcome(job.point, "interrupted", reason="stopped by the user")
            reason = f"its worker died {RESTARTS + 1} times; the usual cause is memory"
            return Outcome(job.point, "failed", reason=reason)
        if outcome.state == "elsewhere":
            self.pending.append(job)
        if self.pending and not self.cancellation.requested.is_set():
            self._submit(worker)
        else:  # its slot is then free for a worker that lost its node
            self._end_workers([worker])
        return None if outcome.state == "elsewhere" else replace(outcome, point=job.point)

    def _outcome(self, task: Any) -> Outcome | None:
        """The outcome that the worker returned; None if it died too often. Raises the worker's own error."""
        failures = self.ray.exceptions
        try:
            outcome: Outcome = self.ray.get(task)
        except failures.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, Exception) else error) from None
        except failures.RayActorError as error:
            if error.actor_init_failed:
                raise ClusterFailed(
                    f"A worker could not start. Every node needs qwenlab {self.settings.version}, as here.\n{error}"
                ) from error
            return None
        except failures.RayError:
            return None
        return outcome

    def _interrupt(self) -> None:
        """Let every worker end its run and record how it ended; end the workers that do not answer."""
        self.cancellation.cancel()
        self.deadline = time.monotonic() + SHUTDOWN_SECONDS
        calls = {worker.interrupt.remote(): worker for worker in self.workers}
        if calls:
            _, unanswered = self.ray.wait(list(calls), num_returns=len(calls), timeout=ANSWER_SECONDS)
            for call in unanswered:
                self._end_workers([calls[call]], grace=0)

    def _end_workers(self, workers: list[Any], grace: float = ANSWER_SECONDS) -> None:
        with suppress(Exception):  # Ray has ended, and the workers with it
            closing = [worker.close.remote() for worker in workers if grace]
            if closing:
                self.ray.wait(closing, num_returns=len(closing), timeout=grace)
        for worker in workers:
            self.workers.remove(worker)
            with suppress(Exception):
                self.ray.kill(worker)


def slots_of(node: Mapping[str, float], resources: Mapping[str, float]) -> int:
    """The number of workers for which a node has resources."""
    return min(int(node.get(name, 0) // amount) for name, amount in resources.items())


def _unmet_need(planned: Plan, resources: Mapping[str, float], nodes: Iterable[Mapping[str, float]]) -> str:
    """The error message for a need that no node meets: its line in the spec, and the most that one node has."""
    lines, most = planned.source, {name: max((node.get(name, 0) for node in nodes), default=0) for name in resources}
    for name, amount in resources.items():
        if most[name] < amount:
            key, unit, units = _NEEDS[name]
            return (
                f"{lines.at('needs', key)}: a run needs {amount / unit:g} {units}, and no node of the cluster has "
                f"more than {most[name] / unit:.3g}."
            )
    return f"{lines.at('needs')}: no single node of the cluster has everything that a run needs."
