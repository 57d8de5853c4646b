"""The log lines about being reached: plain, only what changed, and few even when everything changes all the time (sans-IO).

Problem: on a network that comes and goes, addresses, relays and verdicts change every second, and each is worth a line only while
a person can still read them. Idea: a line tells of a change against the last line, not against the last moment; a handful may come
at once (a start), then one a minute, which says how many changes it stands for.

Invariant: what the log said last was true when it said it; lines are at most BURST + elapsed / PAUSE_S.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from transport.address import Address
from transport.budget.rates import TokenBucket
from transport.reach.diagnosis import Diagnosis, Standing

BURST: Final = 8
"""Lines at once: a start takes three or four."""
PAUSE_S: Final = 60.0
"""Then one line in so many seconds."""

_TOLD: Final = frozenset({Standing.DIRECT, Standing.PUNCHABLE, Standing.RELAYED})
"""Verdicts worth a line; the others while one of these was told before."""


class ReachLog:
    """Says what changed.

    Args:
        logger: where.
        now: monotonic seconds.
    """

    def __init__(self, logger: logging.Logger, now: float) -> None:
        self._logger = logger
        self._bucket = TokenBucket(1 / PAUSE_S, BURST, now)
        self._kept_back = 0
        self._addresses: tuple[set[Address], set[Address]] = (set(), set())
        self._standing: Standing | None = None

    def addresses(self, addresses: Sequence[Address], now: float) -> None:
        """Tell what others are told, unless only the order is another."""
        direct = [address for address in addresses if not address.relay]
        relayed = [address for address in addresses if address.relay]
        new = (set(direct), set(relayed))
        if new == self._addresses:
            return
        parts = [", ".join(map(str, direct))] if direct else []
        relays = dict.fromkeys(relay.short for at in relayed if (relay := at.relay_id) is not None)
        if relays:
            parts.append(f"over {'relays' if len(relays) > 1 else 'relay'} {', '.join(relays)}")
        if self.say(f"others are told to reach this node at {'; '.join(parts) or 'nowhere'}", now):
            self._addresses = new

    def diagnosis(self, diagnosis: Diagnosis, now: float) -> None:
        """Tell the verdict when it is another one."""
        standing = diagnosis.standing
        if standing is self._standing or (self._standing is None and standing not in _TOLD):
            return
        if self.say(f"reachability: {standing.value}: {diagnosis.sentence}", now):
            self._standing = standing

    def say(self, text: str, now: float) -> bool:
        """Write a line, or keep it back and return False."""
        if not self._bucket.take(1, now):
            self._kept_back += 1
            return False
        kept_back, self._kept_back = self._kept_back, 0
        more = f" ({kept_back} changes before were not logged)" if kept_back else ""
        self._logger.info("%s%s", text, more)
        return True


__all__ = ["ReachLog"]
