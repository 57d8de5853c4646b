"""A token bucket for each of many: identities, networks, whoever asks; in a table that strangers cannot grow; sans-IO.

Invariant: at most `most` are remembered. The one not used for longest is forgotten first: its bucket has refilled most, so being forgotten gives it
the least. Where keys cost nothing, a limit for all together has to stand beside the table.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

from transport.budget.rates import TokenBucket

Key = TypeVar("Key", bound=Hashable)


class Accounts(Generic[Key]):
    """Token buckets by key.

    Args:
        rate: tokens per second of each.
        burst: most tokens of each at rest, and at first.
        most: keys remembered (about 300 bytes each).
    """

    def __init__(self, rate: float, burst: float, *, most: int) -> None:
        self._rate = rate
        self._burst = burst
        self._most = most
        self._buckets: OrderedDict[Key, TokenBucket] = OrderedDict()  # least recently used first

    def __len__(self) -> int:
        return len(self._buckets)

    def of(self, key: Key, now: float) -> TokenBucket:
        """The bucket of `key`, full if it is not remembered; `now` is monotonic seconds."""
        bucket = self._buckets.get(key)
        if bucket is None:
            while len(self._buckets) >= self._most:
                self._buckets.popitem(last=False)
            bucket = self._buckets[key] = TokenBucket(self._rate, self._burst, now)
        self._buckets.move_to_end(key)
        return bucket

    def remembered(self, key: Key) -> TokenBucket | None:
        """The bucket of `key` if there is one; looking is not using."""
        return self._buckets.get(key)

    def take(self, key: Key, now: float) -> bool:
        """Take one token of `key`'s; False if there is none."""
        return self.of(key, now).take(1, now)
