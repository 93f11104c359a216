"""The points of a sweep handed to the workers of a Ray cluster, as long as there are points."""

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
from qwenlab.experiments.sweep.attempt import Job, Outcome, Stop
from qwenlab.experiments.sweep.worker import Folder, Terms, Worker

RESTARTS = 3
"""Times that a worker which died, by itself or with its node, is started again before its point counts as failed."""

LOOK, GRACE, LAST = 2.0, 5.0, 30.0
"""Seconds between two looks at the nodes; for a worker to answer; for interrupted runs to be written down."""

_NEEDS = {"CPU": ("cores", 1, "cores"), "GPU": ("gpus", 1, "GPUs"), "memory": ("memory", 2**30, "GiB of memory")}
"""What Ray calls it -> what spec.yaml does, one of its units, and their name."""


class RemoteSweep:
    """The points that are left, the workers, and who is at what.

    patience  seconds that a node with what a run needs is waited for
    """

    def __init__(
        self, planned: Plan, wanted: list[Job], terms: Terms, folder: Folder, stop: Stop, *, patience: float
    ) -> None:
        import ray

        self.ray, self.planned, self.terms, self.stop, self.patience = ray, planned, terms, stop, patience
        needs = planned.spec.needs
        amounts = {"CPU": needs.cores, "GPU": needs.gpus, "memory": int(needs.memory or 0)}
        self.wants = {name: amount for name, amount in amounts.items() if amount}
        # One worker's points follow one another by checkpoint, so that it is read once.
        self.waiting = deque(sorted(wanted, key=lambda job: str(job.point.checkpoints)))
        self.folder = ray.put(folder)
        self.workers: list[Any] = []
        self.running: dict[Any, tuple[Any, Job]] = {}
        self.hopeless_since: float | None = None
        self.until = float("inf")

    def outcomes(self) -> Iterator[Outcome]:
        """How each point ended, as it ends. Ctrl-C ends the runs; asked a second time, it raises."""
        while self.running or (self.waiting and not self.stop.wanted.is_set()):
            try:
                self._engage()
                done, _ = self.ray.wait(list(self.running), timeout=LOOK)
                ended = [self._ended(each) for each in done]
            except KeyboardInterrupt:
                if self.stop.wanted.is_set():
                    raise
                self._interrupt()
                continue
            yield from (each for each in ended if each is not None)
            if time.monotonic() > self.until:
                return

    def end(self) -> None:
        """End every worker, and with it its kernel."""
        self._dismiss(list(self.workers))

    def _engage(self) -> None:
        """A worker for each slot that the nodes have now, as long as there are points for it."""
        if self.stop.wanted.is_set():
            return
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        slots = sum(slots_of(node, self.wants) for node in nodes)
        self._require_hope(nodes, slots)
        room: dict[str, Any] = dict(num_cpus=self.wants["CPU"], num_gpus=self.wants.get("GPU", 0))
        room |= {"memory": self.wants["memory"]} if "memory" in self.wants else {}
        while self.waiting and len(self.running) < max(1, slots):  # one is asked for always: an autoscaler may hear it
            # A node that died is silent for a while before Ray knows: tries in that time must not be counted.
            actor = self.ray.remote(Worker).options(**room, max_restarts=RESTARTS, max_task_retries=-1)
            self.workers.append(actor.remote(self.terms, partial(self.ray.get, self.folder)))
            self._give(self.workers[-1])

    def _require_hope(self, nodes: Iterable[Mapping[str, float]], slots: int) -> None:
        """Raise NeedsNotMet where no node has had what a run needs for as long as our patience lasts."""
        now = time.monotonic()
        if slots:
            self.hopeless_since = None
            return
        complaint = _complaint(self.planned, self.wants, nodes)
        if self.hopeless_since is None:
            self.hopeless_since = now
            if self.patience:
                tqdm.write(f"{complaint}\nWaiting up to {self.patience:g} s for one that has.")
        if now - self.hopeless_since >= self.patience:
            raise NeedsNotMet(complaint)

    def _give(self, worker: Any) -> None:
        job = self.waiting.popleft()
        self.running[worker.run.remote(job)] = worker, job

    def _ended(self, done: Any) -> Outcome | None:
        """How a point ended; None where another runner has it in hand. Its worker takes the next one."""
        worker, job = self.running.pop(done)
        outcome = self._outcome(done, job)
        if outcome is None:
            self._dismiss([worker], grace=0)
            return self._lost(job)
        if outcome.state == "elsewhere":
            self.waiting.append(job)
        if self.waiting and not self.stop.wanted.is_set():
            self._give(worker)
        else:  # its slot is then free for a worker that lost its node
            self._dismiss([worker])
        return None if outcome.state == "elsewhere" else replace(outcome, point=job.point)

    def _outcome(self, done: Any, job: Job) -> Outcome | None:
        """What the worker says; None where it died once too often. Raises what it raised."""
        failures = self.ray.exceptions
        try:
            found: Outcome = self.ray.get(done)
        except failures.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, Exception) else error) from None
        except failures.RayActorError as error:
            if error.actor_init_failed:
                raise ClusterFailed(
                    f"A worker could not be started; every node needs qwenlab {self.terms.version}, as here.\n{error}"
                ) from error
            return None
        except failures.RayError:
            return None
        return found

    def _lost(self, job: Job) -> Outcome:
        if self.stop.wanted.is_set():
            return Outcome(job.point, "interrupted", reason="stopped by the user")
        return Outcome(job.point, "failed", reason=f"its worker died {RESTARTS + 1} times; the usual cause is memory")

    def _interrupt(self) -> None:
        """Let every worker end its run and write down how it ended; those that do not listen have none."""
        self.stop.now()
        self.until = time.monotonic() + LAST
        told = {worker.interrupt.remote(): worker for worker in self.workers}
        if told:
            _, deaf = self.ray.wait(list(told), num_returns=len(told), timeout=GRACE)
            for each in deaf:
                self._dismiss([told[each]], grace=0)

    def _dismiss(self, workers: list[Any], grace: float = GRACE) -> None:
        """End these workers, their kernels first."""
        with suppress(Exception):  # Ray is gone: then so are they
            closing = [worker.close.remote() for worker in workers if grace]
            if closing:
                self.ray.wait(closing, num_returns=len(closing), timeout=grace)
        for worker in workers:
            self.workers.remove(worker)
            with suppress(Exception):
                self.ray.kill(worker)


def slots_of(node: Mapping[str, float], wants: Mapping[str, float]) -> int:
    """How many workers a node has room for."""
    return min(int(node.get(name, 0) // amount) for name, amount in wants.items())


def _complaint(planned: Plan, wants: Mapping[str, float], nodes: Iterable[Mapping[str, float]]) -> str:
    """Which need no node meets, where the spec says it, and the most that one has."""
    lines, most = planned.source, {name: max((node.get(name, 0) for node in nodes), default=0) for name in wants}
    for name, amount in wants.items():
        if most[name] < amount:
            key, unit, units = _NEEDS[name]
            return (
                f"{lines.at('needs', key)}: a run needs {amount / unit:g} {units}, and no node of the cluster has "
                f"more than {most[name] / unit:.3g}."
            )
    return f"{lines.at('needs')}: no node of the cluster has all that a run needs at the same time."
