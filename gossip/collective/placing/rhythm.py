"""Which member or link has become slow, told from the rhythm of the run's own operations (sans-IO).

Idea, after C4 (Dong et al. 2024): operations come at a regular beat, and each one leaves two kinds of measurement. How late
each member *began* tells about its computing: others wait for it, and it waits for nobody. How long a byte took over each link
*while there was something to send* tells about the network (its sender's kernel keeps count). Neither needs a probe.

Each series is compared with its own last values, not with the other series: links of a swarm differ by orders of magnitude,
and always being slower than the rest is no fault::

    x = log(measurement)                     z = (x - median) / (1.48 * MAD + FLOOR)   over the last HISTORY values
    flag where z > THRESHOLD                 finding = flagged in ALARM_OF of the last ALARM_IN observations

While a series is flagged its history does not move, so that a fault does not become the norm by lasting. Cells of the matrix
[source][destination] are put together: where most links *from* one member are slow its uplink is, where most links *to* one are
its downlink is, and only what is left over is a link.

Every node judges by itself, from what it saw and from what the others report; a lie about a link costs its teller's
row or column a word in a status page and nothing else.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import deque
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Final, TypeVar

import attrs

from transport.identity import NodeId

HISTORY: Final = 20
"""Values of a series that it is compared with."""
LEAST_HISTORY: Final = 5
"""With fewer there is no norm yet."""
THRESHOLD: Final = 3.0
FLOOR: Final = 0.05
"""Added to the spread, so that a quiet network does not raise alarms: 5 % for what is measured by its logarithm."""
ALARM_OF: Final = 3
ALARM_IN: Final = 5
LATE_FLOOR_S: Final = 0.05
LATE_SHARE: Final = 0.2
"""Added to how late a member began: the larger of this time and this share of what lies between two operations. Less is
scheduling, and nobody's loss."""
LEAST_FACTOR: Final = 1.25
LEAST_LATE_FACTOR: Final = 2.0
"""A finding that slows things down by less is not worth a word. Word of a beginning shares its link with what slows
that, so it takes more to say that a member begins late."""
MAX_OPERATIONS: Final = 4
"""Begun by somebody and not ended here; members are at most one apart, unless they lie."""
MAX_SERIES: Final = 4096
"""Members and links followed at once; the least recently seen goes."""

Key = TypeVar("Key")


class Ailment(StrEnum):
    """What can be found."""

    LATE = "late"
    """A member begins operations later than it used to: its trainer or its machine has become slow."""
    UPLINK = "uplink"
    """Most links from a member are slower than they were."""
    DOWNLINK = "downlink"
    """Most links to a member are slower than they were."""
    LINK = "link"
    """One link is slower than it was, and neither end's others are."""


@attrs.frozen
class Finding:
    """One thing that has become slow, and by how much."""

    ailment: Ailment
    member: NodeId
    """Whose it is; the sending end of a link."""
    other: NodeId | None
    """The receiving end of a link."""
    factor: float
    """How many times slower than usual (for LATE: of the usual lateness, with the floor that LATE_SHARE says)."""


@attrs.frozen
class Measure:
    """One observation of a link: the seconds in which data was under way, and its bytes."""

    source: NodeId
    destination: NodeId
    seconds: float
    size: int


class Series:
    """Measurements of one thing over time, with what is usual for it."""

    def __init__(self, least_factor: float) -> None:
        self._least_factor = least_factor
        self._history: deque[float] = deque(maxlen=HISTORY)
        self._flags: deque[bool] = deque(maxlen=ALARM_IN)
        self._last = 0.0
        self.z = 0.0
        """Of the last measurement, in spreads from the usual one; 0 while nothing is usual yet."""

    def observe(self, value: float) -> None:
        """Take the logarithm of a measurement."""
        self._last = value
        if len(self._history) < LEAST_HISTORY:
            self._history.append(value)
            return
        usual = statistics.median(self._history)
        spread = statistics.median(abs(each - usual) for each in self._history)
        self.z = (value - usual) / (1.48 * spread + FLOOR)
        flagged = self.z > THRESHOLD
        self._flags.append(flagged)
        if not flagged:
            self._history.append(value)

    @property
    def usual(self) -> float | None:
        """The median of the history; None while there is none."""
        return statistics.median(self._history) if self._history else None

    @property
    def last(self) -> float:
        """The measurement before this moment."""
        return self._last

    @property
    def alarmed(self) -> bool:
        """Flagged often enough to be said."""
        return sum(self._flags) >= ALARM_OF and self.factor >= self._least_factor

    @property
    def factor(self) -> float:
        """How many times its usual value the last measurement was."""
        usual = self.usual
        return 1.0 if usual is None else math.exp(self._last - usual)


class Rhythm:
    """Follows the operations of a run at one node.

    Args:
        me: this node, which has a lateness like everybody else.
    """

    def __init__(self, me: NodeId) -> None:
        self._me = me
        self._begun: dict[int, dict[NodeId, float]] = {}
        self._late: dict[NodeId, Series] = {}
        self._firsts: deque[float] = deque(maxlen=HISTORY)  # when operations were begun first
        self._lateness: dict[NodeId, deque[float]] = {}
        self._links: dict[tuple[NodeId, NodeId], Series] = {}

    # ---- what the driver tells ---------------------------------------------------------------

    def began(self, operation: int, member: NodeId, now: float) -> None:
        """A member (or this node) has begun an operation, whose number grows by one; the first word counts.

        Only the lowest numbers are kept: one that is far ahead is no operation, and must not take the place of one.
        """
        begun = self._begun
        if operation not in begun and len(begun) >= MAX_OPERATIONS:
            highest = max(begun)
            if operation > highest:
                return
            del begun[highest]
        begun.setdefault(operation, {}).setdefault(member, now)

    def ended(
        self, operation: int, members: Iterable[NodeId], measures: Iterable[Measure] = ()
    ) -> None:
        """An operation has succeeded: its members, and what this node measured of its links."""
        begun = self._begun.get(operation, {})
        known = {member: begun[member] for member in members if member in begun}
        self.passed(operation)
        if len(known) > 1:
            first = min(known.values())
            self._firsts.append(first)
            floor = self._late_floor()
            for member in sorted(known):
                late = known[member] - first
                if floor is not None:
                    _series(self._late, member, LEAST_LATE_FACTOR).observe(math.log(late + floor))
                self._lateness.setdefault(member, deque(maxlen=HISTORY)).append(late)
        for measure in measures:
            self.measured(measure)

    def passed(self, operation: int) -> None:
        """An operation has succeeded, of which nothing is to be kept."""
        for number in [number for number in self._begun if number <= operation]:
            del self._begun[number]

    def _late_floor(self) -> float | None:
        """None before it is known what lies between two operations."""
        between = [after - before for before, after in itertools.pairwise(self._firsts)]
        return max(LATE_FLOOR_S, LATE_SHARE * statistics.median(between)) if between else None

    def given_up(self) -> None:
        """The epoch has ended, and its numbers with it: who began late says nothing."""
        self._begun.clear()
        self._firsts.clear()

    def measured(self, measure: Measure) -> None:
        """A link's measurement, of this node's or reported by another member."""
        if measure.seconds > 0 and measure.size > 0:
            link = (measure.source, measure.destination)
            _series(self._links, link, LEAST_FACTOR).observe(
                math.log(measure.seconds / measure.size)
            )

    def forget(self, member: NodeId) -> None:
        """A member is gone; when it comes back it begins anew."""
        self._late.pop(member, None)
        self._lateness.pop(member, None)
        for link in [link for link in self._links if member in link]:
            del self._links[link]

    # ---- what is seen --------------------------------------------------------------------------

    def findings(self) -> list[Finding]:
        """What is slow now, worst first."""
        found = [
            Finding(Ailment.LATE, member, None, series.factor)
            for member, series in sorted(self._late.items())
            if series.alarmed
        ]
        found += self._network()
        return sorted(found, key=lambda each: (-each.factor, each.ailment, each.member))

    def _network(self) -> list[Finding]:
        slow = {link for link, series in self._links.items() if series.alarmed}
        found: list[Finding] = []
        explained: set[tuple[NodeId, NodeId]] = set()
        for end, ailment in ((0, Ailment.UPLINK), (1, Ailment.DOWNLINK)):
            for member in sorted({link[end] for link in slow}):
                its = [link for link in self._links if link[end] == member]
                sick = [link for link in its if link in slow]
                # With a single link there is no telling its ends apart.
                if len(its) > 1 and 2 * len(sick) > len(its):
                    factor = statistics.median(self._links[link].factor for link in sick)
                    found.append(Finding(ailment, member, None, factor))
                    explained.update(sick)
        found += [
            Finding(Ailment.LINK, source, destination, self._links[source, destination].factor)
            for source, destination in sorted(slow - explained)
        ]
        return found

    def lateness_s(self) -> Mapping[NodeId, float]:
        """For each member how late it usually begins, in seconds after the first."""
        return {member: statistics.median(late) for member, late in sorted(self._lateness.items())}

    def rates(self) -> Mapping[tuple[NodeId, NodeId], float]:
        """For each link (source, destination) its rate in bytes per second: the usual one, of a slow link the last."""
        return {
            link: math.exp(-(series.last if series.alarmed else series.usual))
            for link, series in sorted(self._links.items())
            if series.usual is not None
        }


def _series(table: dict[Key, Series], key: Key, least_factor: float) -> Series:
    """The series of `key`, which is now the one seen last."""
    series = table.pop(key, None)
    if series is None:
        series = Series(least_factor)
        if len(table) >= MAX_SERIES:
            del table[next(iter(table))]
    table[key] = series
    return series
