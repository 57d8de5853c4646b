"""When to search on our own account: our neighbourhood and the bucket ranges that nobody has searched for a while.

Idea (Kademlia, section 2.3): a range that no lookup has gone through for `refresh_s` is searched for a random id in it; our own id is
searched as often, since that is how neighbours learn of each other.

The first search of our neighbourhood may go wrong (a lost answer, dead hints) and leave us with one contact, so it is repeated after
`FIRST_S`, then after pauses three times as long each, up to `refresh_s`.
"""

from __future__ import annotations

import random
from collections import deque

from dht.table import Table

FIRST_S = 5.0


class Upkeep:
    """The schedule of a node's own searches; times are monotonic seconds."""

    def __init__(self, table: Table, *, rng: random.Random, refresh_s: float, now: float) -> None:
        self._table = table
        self._rng = rng
        self._refresh_s = refresh_s
        self._targets: deque[bytes] = deque()
        self._pause_s = FIRST_S
        # With jitter: nodes that start together must not search together.
        self.refresh_at = now + refresh_s * rng.uniform(0.8, 1.2)
        """When our neighbourhood is searched next."""

    @property
    def waiting(self) -> int:
        """How many ranges are to be searched now."""
        return len(self._targets)

    def next_target(self) -> bytes | None:
        """Return an id in the next range to be searched, or None."""
        return self._targets.popleft() if self._targets else None

    def begun(self, now: float) -> None:
        """Note that our neighbourhood is being searched."""
        pause_s = min(self._refresh_s, self._pause_s)
        self._pause_s = min(self._refresh_s, 3.0 * pause_s)
        self.refresh_at = now + pause_s * self._rng.uniform(0.8, 1.2)

    def ended(self, now: float, *, everything: bool) -> None:
        """Note that our neighbourhood has been searched: the ranges come next.

        Args:
            now: monotonic seconds.
            everything: whether all of them, or only those that no search has touched for half of `refresh_s`.
        """
        before = now if everything else now - self._refresh_s / 2
        self._targets = deque(self._table.stale_targets(before, self._rng))

    def hurry(self, now: float) -> None:
        """Begin anew: the first contact has been made."""
        self._pause_s = FIRST_S
        self.refresh_at = min(self.refresh_at, now)
