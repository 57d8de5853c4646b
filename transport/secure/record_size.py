"""How much to put into one record: as much as the path takes in a millisecond; sans-IO.

Problem: a record that has begun must end before anything urgent can leave, so records want to be small; each costs the same work
whatever it holds, so they want to be large. Idea: both are questions of time. A slow path gets records of 64 KiB. Where writing has
turned out to be fast for a while (the same machine, a fast LAN), a record is what was written in a millisecond, up to 256 KiB; the
first writes that have to wait make them small again.

Invariant: LEAST_BYTES <= bytes <= MOST_BYTES.
"""

from __future__ import annotations

from typing import Final

from transport.secure.record import RECORD_BYTES

LEAST_BYTES: Final = 65536
"""A record on a slow or unknown path: what an urgent frame may have to wait for there."""

MOST_BYTES: Final = RECORD_BYTES

TURN_S: Final = 0.001
"""What an urgent frame may have to wait for on a fast path (seconds)."""

WEIGHT: Final = 0.125
"""Of one write in the mean."""

FIRST_S_PER_BYTE: Final = 1e-6
"""Where the mean begins: so slow that about 3 MiB must have been written fast, more than a kernel takes at once."""

TELLING_BYTES: Final = 4096
"""A smaller write says nothing about the path."""


class RecordSize:
    """Follows how long writes take.

    Attributes:
        bytes: the most to put into the next record.
    """

    def __init__(self) -> None:
        self.bytes = LEAST_BYTES
        self._s_per_byte = FIRST_S_PER_BYTE

    @property
    def fast(self) -> bool:
        """Whether the path has turned out to be fast."""
        return self.bytes > LEAST_BYTES

    def written(self, size: int, took_s: float) -> None:
        """`size` bytes were written in `took_s` seconds."""
        if size >= TELLING_BYTES:
            self._s_per_byte += WEIGHT * (took_s / size - self._s_per_byte)
            fitting = int(TURN_S / max(self._s_per_byte, 1e-12))
            self.bytes = max(LEAST_BYTES, min(fitting, MOST_BYTES))
