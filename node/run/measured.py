"""What the members measured of their links, between the run's shared document and the rhythm at this node.

Each member states the latest time of every link from itself; the others take a measurement when its count has grown. So every
node sees the whole matrix, and can tell a slow link from a slow end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

from crdt.record import LinkTime
from crdt.state import RunState
from gossip.collective.placing.rhythm import Ailment, Finding, Measure, Rhythm
from transport.errors import InvalidNodeId
from transport.identity import NodeId

__all__ = ["Measured", "rhythm_report", "sentence"]

TELL_S: Final = 10.0
"""Between two statements of this node's links."""
MIB: Final = 1 << 20


class Measured:
    """Tells this node's measurements and takes those of the others.

    Args:
        rhythm: of this node.
        state: the run's document.
        notify: lets the document's news travel.
    """

    def __init__(self, rhythm: Rhythm, state: RunState, notify: Callable[[], None]) -> None:
        self._rhythm = rhythm
        self._state = state
        self._notify = notify
        self._own: dict[NodeId, LinkTime] = {}
        self._taken: dict[tuple[bytes, bytes], int] = {}
        self._told_at = -math.inf

    def measured(self, measure: Measure) -> None:
        """This node has sent over a link; the rhythm has been told by whoever measured."""
        if measure.size <= 0 or measure.seconds <= 0:
            return
        before = self._own.get(measure.destination)
        self._own[measure.destination] = LinkTime(
            bytes(measure.destination),
            max(1, round(measure.seconds / measure.size * MIB * 1e6)),
            1 if before is None else before.transfers + 1,
        )

    def exchange(self, now: float) -> None:
        """Take what others state, and state what is new here; called every few seconds."""
        stated: set[tuple[bytes, bytes]] = set()
        for writer, links in self._state.links().items():
            if writer == self._state.node:
                continue
            for link in links:
                self._take(writer, link)
                stated.add((writer, link.destination))
        # What is not stated any more is not remembered: a member can state ever new links.
        self._taken = {ends: count for ends, count in self._taken.items() if ends in stated}
        if self._own and now >= self._told_at + TELL_S:
            self._told_at = now
            self._state.set_links(self._own.values())
            self._notify()

    def _take(self, writer: bytes, link: LinkTime) -> None:
        ends = (writer, link.destination)
        if self._taken.get(ends) == link.transfers or link.us_per_mib == 0:
            return
        self._taken[ends] = link.transfers
        try:
            source, destination = NodeId(writer), NodeId(link.destination)
        except InvalidNodeId:
            return  # the document's ids are bytes of any length up to 32
        self._rhythm.measured(Measure(source, destination, link.us_per_mib / 1e6, MIB))


def rhythm_report(rhythm: Rhythm) -> dict[str, Any]:
    """The `run.rhythm` part of the status document."""
    return {
        "members": [
            {"id": str(member), "late_s": round(late, 4)}
            for member, late in rhythm.lateness_s().items()
        ],
        "links": [
            {"source": str(source), "destination": str(destination), "bytes_per_s": round(rate)}
            for (source, destination), rate in rhythm.rates().items()
        ],
        "findings": [
            {
                "ailment": found.ailment.value,
                "member": str(found.member),
                "other": None if found.other is None else str(found.other),
                "factor": round(found.factor, 2),
            }
            for found in rhythm.findings()
        ],
    }


def sentence(found: Finding, name: Callable[[NodeId], str]) -> str:
    """A finding in words, with the names that people gave."""
    times = f"{found.factor:.1f} times slower than usual"
    match found.ailment:
        case Ailment.LATE:
            return f"{name(found.member)} begins operations {found.factor:.1f} times later than usual, and the others wait"
        case Ailment.UPLINK:
            return f"what {name(found.member)} sends to most members is {times}"
        case Ailment.DOWNLINK:
            return f"what {name(found.member)} receives from most members is {times}"
        case Ailment.LINK:
            assert found.other is not None, "a link has two ends"
            return f"the link from {name(found.member)} to {name(found.other)} is {times}"
