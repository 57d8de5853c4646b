"""First flights of handshakes that were seen already, so that a recorded one is worth nothing; sans-IO.

Problem: the proof in a first flight shows that somebody with the swarm's key made it, not that whoever sends it did. A recording can
be sent again and again, and each copy would get an answer and a place that nobody can take away. Idea: every handshake has a fresh
ephemeral key, so one that comes a second time is a copy.

Invariants: at most `MAX_SEEN` keys are held; only who holds the swarm's key can make us forget one, by as many handshakes.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

MAX_SEEN: Final = 4096
"""Ephemeral keys remembered (about 200 bytes each): the members' handshakes of minutes, in a swarm that starts; of days at rest."""


class FirstFlights:
    """The ephemeral keys that have come with a valid proof.

    Args:
        max_seen: how many; the one that came least recently goes first.
    """

    def __init__(self, max_seen: int = MAX_SEEN) -> None:
        self._max_seen = max_seen
        self._seen: OrderedDict[bytes, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._seen)

    def is_new(self, ephemeral: bytes) -> bool:
        """Whether this key comes for the first time; remembers it. Ask after the proof was checked."""
        new = ephemeral not in self._seen
        self._seen[ephemeral] = None
        self._seen.move_to_end(ephemeral)
        if len(self._seen) > self._max_seen:
            self._seen.popitem(last=False)
        return new
