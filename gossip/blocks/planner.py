"""Which block to ask of which holder; sans-IO.

Problem: of the holders of an artefact some are slow, some die, some lie, and nobody knows which. Idea: BitTorrent's, without its markets.
Rarest first, so that what only one holder has is copied while it lives, ties broken by chance so that fetchers do not all ask the same. A few
requests under way per holder, more while it delivers, one after it was late. A block that does not hash to its leaf is
proof against the holder it came over an authenticated connection from: that holder is banned for this artefact at once, and the block is asked of
somebody else. A late request is given up and the holder's patience doubled, so that a slow one gets through when there is no other.
When nothing is left to ask, idle holders double the oldest requests (end-game), at most two requests a block.

Invariants: a block counts only if the caller verified it; a holder never has more requests than its window, which is never more than the limit it
gave; nothing is asked of a holder that does not claim it, or that is banned; a refused block is not asked of the same holder again until
it says anew that it has it. As long as live honest holders together have every block, somebody is asked for each missing one.

Times are seconds on the caller's clock. A holder is any hashable name.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

import attrs
import numpy as np

from gossip.blocks.bitmap import Bitmap

__all__ = ["HolderReport", "Planner", "PlannerSettings", "Request"]

H = TypeVar("H", bound=Hashable)

_KEEP: Final = 0.7
"""Share of the old mean in a holder's mean time per block."""


@attrs.frozen(kw_only=True)
class PlannerSettings:
    """How eager a fetch is."""

    first_window: int = 4
    """Blocks asked of a new holder at once."""
    most_window: int = 16
    """16 MiB under way fill 1 Gbit/s at 130 ms."""
    patience_s: float = 20.0
    """For a request, at first; doubled each time it was too short."""
    most_patience_s: float = 320.0
    """A block over 64 kbit/s takes 130 s."""
    late: float = 2.0
    """A request so many times older than another holder takes for a block may be doubled in the end-game."""
    least_late_s: float = 0.05
    copies: int = 2
    """Requests for one block at once, in the end-game."""
    most_under_way: int = 32
    """Requests at once over all holders: each needs the memory of a block."""


@attrs.frozen
class Request(Generic[H]):
    """Ask `holder` for `block`, or stop asking."""

    holder: H
    block: int


@attrs.define
class HolderReport:
    """What came of one holder."""

    blocks: int = 0
    """Good ones, counted once each."""
    bad: int = 0
    """That did not hash to their leaf."""
    late: int = 0
    """Requests given up."""
    refused: int = 0
    banned: bool = False


@attrs.define
class _Asked:
    at: float
    deadline: float


@attrs.define(eq=False)
class _Holder:
    bitmap: Bitmap
    limit: int
    window: float
    patience_s: float
    asked: dict[int, _Asked] = attrs.field(factory=dict)
    mean_s: float | None = None
    strikes: int = 0  # late requests since the last good block

    @property
    def free(self) -> int:
        return int(self.window) - len(self.asked)


class Planner(Generic[H]):
    """The plan for one artefact.

    Args:
        have: the blocks that are here already.
        rng: breaks ties.
    """

    def __init__(
        self, have: Bitmap, *, rng: random.Random, settings: PlannerSettings | None = None
    ) -> None:
        self.have = have.copy()
        self.reports: dict[H, HolderReport] = {}
        """Of everybody who was ever asked or added."""
        self._settings = settings or PlannerSettings()
        self._holders: dict[H, _Holder] = {}
        self._requests: Counter[int] = Counter()  # block -> requests under way; no zero entries
        blocks = len(have)
        self._free = ~self.have  # missing and not asked of anybody
        self._counts = np.zeros(blocks, np.int64)
        order = list(range(blocks))
        rng.shuffle(order)
        self._order = np.array(order, np.int64)

    # What is known

    @property
    def finished(self) -> bool:
        """Whether every block is here."""
        return bool(self.have.all())

    @property
    def missing(self) -> int:
        """How many blocks are not here."""
        return int(len(self.have) - np.count_nonzero(self.have))

    @property
    def under_way(self) -> int:
        """Requests that have not ended."""
        return sum(self._requests.values())

    @property
    def holders(self) -> tuple[H, ...]:
        """Who may be asked now."""
        return tuple(self._holders)

    @property
    def stuck(self) -> bool:
        """Whether nothing is under way and nobody claims anything that is missing."""
        return (
            not self.finished
            and not self._requests
            and not any((holder.bitmap & ~self.have).any() for holder in self._holders.values())
        )

    def banned(self, name: H) -> bool:
        """Whether it has given a block that was wrong."""
        report = self.reports.get(name)
        return report is not None and report.banned

    # Holders come and go

    def add(self, name: H, bitmap: Bitmap, limit: int) -> bool:
        """A holder can be asked for the blocks of `bitmap`, at most `limit` at once; False if it is banned or known."""
        if name in self._holders or self.banned(name) or len(bitmap) != len(self.have):
            return False
        settings = self._settings
        limit = max(1, min(limit, settings.most_window))
        window = float(min(limit, settings.first_window))
        self._holders[name] = _Holder(bitmap.copy(), limit, window, settings.patience_s)
        self._counts += bitmap
        self.reports.setdefault(name, HolderReport())
        return True

    def update(self, name: H, bitmap: Bitmap) -> None:
        """A holder says anew what it has."""
        holder = self._holders.get(name)
        if holder is not None and len(bitmap) == len(self.have):
            self._counts += bitmap
            self._counts -= holder.bitmap
            holder.bitmap = bitmap.copy()

    def remove(self, name: H) -> None:
        """A holder is gone, with whatever was asked of it."""
        holder = self._holders.pop(name, None)
        if holder is not None:
            self._counts -= holder.bitmap
            for block in list(holder.asked):
                self._ended(holder, block)

    # Requests

    def requests(self, now: float) -> list[Request[H]]:
        """What to ask now; each counts as under way until it is reported."""
        made: list[Request[H]] = []
        # One each in turn: a holder that is served first must not take what is rare from the others.
        waiting = [(name, holder) for name, holder in self._holders.items() if holder.free > 0]
        # Who was late comes last, or one that never answers would be asked for the same block for ever.
        waiting.sort(key=lambda each: each[1].strikes)
        room = self._settings.most_under_way - self.under_way
        while waiting and len(made) < room:
            still = []
            for name, holder in waiting[: room - len(made)]:
                block = self._choose(holder, now)
                if block is None:
                    continue
                holder.asked[block] = _Asked(now, now + holder.patience_s)
                self._requests[block] += 1
                self._free[block] = False
                made.append(Request(name, block))
                if holder.free > 0:
                    still.append((name, holder))
            waiting = still
        return made

    def arrived(self, name: H, block: int, now: float, *, good: bool) -> list[Request[H]]:
        """A block has come from `name` and was looked at.

        Returns:
            Requests that have become pointless: the caller gives them up and reports nothing about them.
        """
        report = self.reports.get(name)
        if report is None:
            return []  # it was never a holder
        holder = self._holders.get(name)
        asked = None if holder is None else holder.asked.get(block)
        if holder is not None and asked is not None:
            self._ended(holder, block)
        if not good:
            report.bad += 1
            report.banned = True
            pointless = [Request(name, other) for other in (holder.asked if holder else ())]
            self.remove(name)
            return pointless
        if holder is not None and asked is not None:
            took = max(now - asked.at, 1e-6)
            old = took if holder.mean_s is None else holder.mean_s
            holder.mean_s = _KEEP * old + (1 - _KEEP) * took
            holder.window = min(float(holder.limit), holder.window + 1)
            holder.strikes = 0
        if self.have[block]:
            return []
        # Also if it was given up as late while it was being looked at: a good block is a good block.
        report.blocks += 1
        self.have[block] = True
        self._free[block] = False
        pointless = []
        for other, state in self._holders.items():
            if block in state.asked:
                self._ended(state, block)
                pointless.append(Request(other, block))
        return pointless

    def refused(self, name: H, block: int) -> None:
        """The holder does not give a block that it claimed."""
        holder = self._holders.get(name)
        if holder is None or block not in holder.asked:
            return
        self.reports[name].refused += 1
        self._ended(holder, block)
        if holder.bitmap[block]:
            holder.bitmap[block] = False
            self._counts[block] -= 1

    def tick(self, now: float) -> list[Request[H]]:
        """Time has passed; returns the requests that took too long and are given up."""
        settings = self._settings
        late: list[Request[H]] = []
        for name, holder in self._holders.items():
            overdue = [block for block, asked in holder.asked.items() if now >= asked.deadline]
            if not overdue:
                continue
            for block in overdue:
                self._ended(holder, block)
                late.append(Request(name, block))
            self.reports[name].late += len(overdue)
            holder.window = 1.0
            holder.strikes += 1
            holder.patience_s = min(2 * holder.patience_s, settings.most_patience_s)
        return late

    def next_deadline(self) -> float | None:
        """When to call `tick` and `requests` again if nothing happens; None if there is nothing to wait for."""
        times = [
            asked.deadline for holder in self._holders.values() for asked in holder.asked.values()
        ]
        if len(times) >= self._settings.most_under_way:
            return min(times)
        for holder in self._holders.values():
            if holder.free > 0 and holder.mean_s is not None:
                late_s = self._late_s(holder)
                times += [asked.at + late_s for asked in self._doublable(holder).values()]
        return min(times, default=None)

    # Inside

    def _choose(self, holder: _Holder, now: float) -> int | None:
        candidates = np.flatnonzero(holder.bitmap & self._free)
        if len(candidates):
            rarity = self._counts[candidates] * len(self.have) + self._order[candidates]
            return int(candidates[np.argmin(rarity)])
        if holder.mean_s is None:
            return None  # it has shown nothing yet: no reason to expect that it is quicker
        old = [
            (asked.at, block)
            for block, asked in self._doublable(holder).items()
            if now >= asked.at + self._late_s(holder)  # as `next_deadline` adds: rounding matters
        ]
        return min(old)[1] if old else None

    def _late_s(self, holder: _Holder) -> float:
        assert holder.mean_s is not None
        return max(self._settings.late * holder.mean_s, self._settings.least_late_s)

    def _doublable(self, holder: _Holder) -> dict[int, _Asked]:
        """Blocks asked of others that this holder could bring as well, each with its oldest request."""
        found: dict[int, _Asked] = {}
        for other in self._holders.values():
            if other is holder:
                continue
            for block, asked in other.asked.items():
                if (
                    holder.bitmap[block]
                    and not self.have[block]
                    and block not in holder.asked
                    and self._requests[block] < self._settings.copies
                    and (block not in found or asked.at < found[block].at)
                ):
                    found[block] = asked
        return found

    def _ended(self, holder: _Holder, block: int) -> None:
        del holder.asked[block]
        self._requests[block] -= 1
        if not self._requests[block]:
            del self._requests[block]
            self._free[block] = not self.have[block]
