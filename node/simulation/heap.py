"""The virtual clock: what is due, in the order of time, and of its making where times are equal.

The sequence number makes the order total, so that nothing depends on how a heap breaks ties. An instant in which far
more happens than nodes could have caused is one that never ends: two cores answering each other at no distance.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any, Final

from node.errors import NodedError

__all__ = ["EventHeap", "SimulationFault"]

MAX_AT_ONCE: Final = 5_000_000
"""Things done at one instant of virtual time; a swarm of 1,000 in which all send to all needs a million."""


class SimulationFault(NodedError):
    """A protocol breaks its contract, or the simulation cannot go on; the message names the node and the time."""


class EventHeap:
    """Actions by time."""

    def __init__(self) -> None:
        self.now = 0.0
        """Seconds since the beginning."""
        self.done = 0
        """Actions carried out so far."""
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._sequence = 0

    def __len__(self) -> int:
        return len(self._heap)

    def at(self, when: float, action: Callable[..., None], *arguments: Any) -> None:
        """Call `action` at `when`, or now if that has passed."""
        self._sequence += 1
        heapq.heappush(self._heap, (max(when, self.now), self._sequence, action, arguments))

    def next_s(self) -> float | None:
        """When the next action is due; None if there is none."""
        return self._heap[0][0] if self._heap else None

    def instant(self) -> None:
        """Move to the next moment at which something is due, and do all that is due then."""
        heap = self._heap
        self.now = when = heap[0][0]
        for _ in range(MAX_AT_ONCE):
            if not heap or heap[0][0] > when:
                return
            _, _, action, arguments = heapq.heappop(heap)
            self.done += 1
            action(*arguments)
        raise SimulationFault(
            f"more than {MAX_AT_ONCE} things happen at {when:.3f} s of virtual time",
            hint="nodes answer each other at no distance: give the links a latency",
        )
