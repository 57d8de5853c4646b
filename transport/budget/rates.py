"""Rate caps: token buckets, and fair turns among those who share one; sans-IO.

Problem: "at most so many bytes per second" for a peer or for the whole node, shared by many connections, without one of them taking
it all, without heartbeats waiting behind tensors, and without the sums drifting when a task is cancelled. Idea: a bucket that never
goes into debt (Turner, "New directions in communications", IEEE 1986: the leaky bucket as a meter), and in front of it two queues
of turns. Everybody asks for at most one *quantum* at a time and queues again for the next, so that those who wait get equal shares;
urgent turns go first, but after `URGENT_RUN` of them an ordinary one has its turn.

    ticket = meter.ask(amount, now, urgent=...)     granted at once if nobody waits and there is enough
    meter.serve(now)                                grants what can be granted, in order
    meter.ready_at(now)                             when the first in line can be granted
    meter.withdraw(ticket, now)                     it is not wanted any more; what was granted goes back

Invariants: within any time t at most `burst + rate * t` bytes are granted; tokens are never below 0 nor above the burst; a ticket is
granted once; the order of the tickets of one queue is kept.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from transport.errors import UsageError

QUANTUM_S: Final = 0.005
"""Longest turn (seconds at full rate): what an urgent turn may have to wait for."""
BURST_S: Final = 0.05
"""Tokens at rest (seconds at full rate): a loop that wakes up this late still reaches the rate."""
MIN_QUANTUM_BYTES: Final = 1024
MAX_QUANTUM_BYTES: Final = 262144
"""One record: longer turns would not make the system calls cheaper."""
URGENT_RUN: Final = 8
"""Urgent turns in a row while others wait: those get at least a ninth, whatever the urgent ones do."""


ROUNDING_S: Final = 1e-6
"""Added to a waiting time, so that rounding never makes a caller look again at the same moment."""


class TokenBucket:
    """Tokens that come in at a rate and are taken in whole amounts.

    Args:
        rate: tokens per second, positive.
        burst: most tokens at rest, and the largest amount that can be taken at once.
        now: monotonic seconds; the bucket starts full.
    """

    __slots__ = ("_level", "_updated", "burst", "rate")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        if not (rate > 0 and burst > 0):
            raise UsageError("a token bucket needs a positive rate and burst")
        self.rate = rate
        self.burst = burst
        self._level = float(burst)
        self._updated = now

    def level(self, now: float) -> float:
        """Tokens there are; a clock that went back gives none."""
        if now > self._updated:
            self._level = min(self.burst, self._level + (now - self._updated) * self.rate)
            self._updated = now
        return self._level

    def take(self, amount: float, now: float) -> bool:
        """Take all of `amount`, or nothing and return False.

        Raises:
            UsageError: more than the burst, which would never be there.
        """
        if not 0 <= amount <= self.burst:
            raise UsageError(f"{amount} tokens of a bucket of {self.burst}")
        if self.level(now) < amount:
            return False
        self._level -= amount
        return True

    def give_back(self, amount: float, now: float) -> None:
        """Return tokens that were taken and not used."""
        self._level = min(self.burst, self.level(now) + amount)

    def ready_at(self, amount: float, now: float) -> float:
        """When `amount` will be there, if nobody takes any meanwhile."""
        missing = amount - self.level(now)
        return now if missing <= 0 else now + missing / self.rate + ROUNDING_S


class Ticket:
    """A turn: asked for, then granted."""

    __slots__ = ("amount", "granted", "urgent")

    def __init__(self, amount: int, *, urgent: bool) -> None:
        self.amount = amount
        self.urgent = urgent
        self.granted = False


class Meter:
    """A bucket and the line in front of it.

    Args:
        rate: bytes per second, positive.
        now: monotonic seconds.
    """

    def __init__(self, rate: int, now: float) -> None:
        self.quantum = int(min(MAX_QUANTUM_BYTES, max(MIN_QUANTUM_BYTES, rate * QUANTUM_S)))
        """The most to ask for at once (bytes)."""
        self._bucket = TokenBucket(rate, max(2.0 * self.quantum, rate * BURST_S), now)
        self._urgent: deque[Ticket] = deque()
        self._normal: deque[Ticket] = deque()  # both bounded by the connections there are
        self._run = 0  # urgent turns in a row

    @property
    def waiting(self) -> int:
        """Tickets not granted yet."""
        return len(self._urgent) + len(self._normal)

    @property
    def head(self) -> Ticket | None:
        """Whose turn is next."""
        if self._urgent and (self._run < URGENT_RUN or not self._normal):
            return self._urgent[0]
        return self._normal[0] if self._normal else None

    def ask(self, amount: int, now: float, *, urgent: bool = False) -> Ticket:
        """Join the line, or be granted at once.

        Raises:
            UsageError: not 1 to `quantum` bytes.
        """
        if not 0 < amount <= self.quantum:
            raise UsageError(f"a turn of {amount} bytes, at most {self.quantum}")
        ticket = Ticket(amount, urgent=urgent)
        (self._urgent if urgent else self._normal).append(ticket)
        self.serve(now)
        return ticket

    def serve(self, now: float) -> list[Ticket]:
        """Grant turns while there are tokens; returns those granted now."""
        granted = []
        while (ticket := self.head) is not None and self._bucket.take(ticket.amount, now):
            self._line(ticket).popleft()
            self._run = self._run + 1 if ticket.urgent and self._normal else 0
            ticket.granted = True
            granted.append(ticket)
        return granted

    def ready_at(self, now: float) -> float | None:
        """When the first in line can be granted; None if nobody waits."""
        head = self.head
        return None if head is None else self._bucket.ready_at(head.amount, now)

    def withdraw(self, ticket: Ticket, now: float) -> None:
        """Leave the line, or return what was granted and not used."""
        if ticket.granted:
            self._bucket.give_back(ticket.amount, now)
            ticket.amount = 0
            return
        line = self._line(ticket)
        if ticket in line:
            line.remove(ticket)
        if not self._normal:
            self._run = 0

    def _line(self, ticket: Ticket) -> deque[Ticket]:
        return self._urgent if ticket.urgent else self._normal
