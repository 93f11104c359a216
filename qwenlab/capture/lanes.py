"""Lanes: calls of one model that take turns, each with hooks and blocks of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol


class Placement(Protocol):
    """Something that is in place while its lane runs: `place` puts it there, `remove` takes it away."""

    def place(self) -> None: ...

    def remove(self) -> None: ...


@dataclass(frozen=True, eq=False)
class PlacedByCalls:
    """A placement by two functions."""

    place: Callable[[], None]
    remove: Callable[[], None]


class Lane:
    """One of several calls that take turns on a model (`layer_major`).

    Hooks and blocks that the call enters are in place during its own turns only. So are the passes that blocks around
    all lanes follow.

    first  the first layer that runs in this lane
    """

    def __init__(self, first: int = 0) -> None:
        self.first = first
        self._placements: list[Placement] = []

    def add(self, placement: Placement) -> None:
        """Add something that is in place now."""
        self._placements.append(placement)

    def discard(self, placement: Placement) -> None:
        """Forget something that is removed for good."""
        self._placements.remove(placement)

    def leave(self) -> None:
        """End a turn: remove everything, the newest first. If that raises, everything is in place again."""
        removed: list[Placement] = []
        try:
            for placement in reversed(self._placements):
                placement.remove()
                removed.append(placement)
        except BaseException:
            for placement in reversed(removed):
                placement.place()
            raise

    def enter(self) -> None:
        """Begin a turn: put everything back in its order."""
        for placement in self._placements:
            placement.place()


current_lane: ContextVar[Lane | None] = ContextVar("current_lane", default=None)
"""The lane that is running; None outside of all lanes. A greenlet has a context of its own, and so a value of its own.
"""


@contextmanager
def placed(place: Callable[[], None], remove: Callable[[], None]) -> Iterator[None]:
    """Context manager that puts something in place; during turns of other lanes it is removed."""
    lane, placement = current_lane.get(), PlacedByCalls(place, remove)
    place()
    if lane is not None:
        lane.add(placement)
    try:
        yield
    finally:
        if lane is not None:
            lane.discard(placement)
        remove()
