"""How often each identity may make us check a record: a token bucket per signer, and a bounded number of them.

A record that replaces its predecessor costs a signature check (60 us) and takes no place, so the bounds of the store do not slow its
writer down. The burst lets a writer publish all the records it may hold here twice over; the rate is one a second.

Invariants: at most `most` signers are remembered. The one unheard of longest is forgotten first: its bucket has refilled most.
"""

from __future__ import annotations

from collections import OrderedDict


class Allowance:
    """A rate limit per identity; `now` is monotonic seconds."""

    def __init__(self, *, per_s: float = 1.0, burst: float = 128.0, most: int = 1024) -> None:
        self._per_s = per_s
        self._burst = burst
        self._most = most
        self._left: OrderedDict[bytes, tuple[float, float]] = OrderedDict()  # who -> (left, at)

    def __len__(self) -> int:
        return len(self._left)

    def take(self, who: bytes, now: float) -> bool:
        """Use up one of what `who` may do; return False when there is none left."""
        left, at = self._left.pop(who, (self._burst, now))
        left = min(self._burst, left + max(0.0, now - at) * self._per_s)
        allowed = left >= 1.0
        self._left[who] = (left - 1.0 if allowed else left, now)
        if len(self._left) > self._most:
            self._left.popitem(last=False)
        return allowed
