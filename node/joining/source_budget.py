"""How often a source may be wrong: a few failures a minute each, in a table that strangers cannot grow.

Problem: guessing a 128-bit secret is hopeless, but each refusal costs a signature, and a log line if one is careless. Idea: a token
bucket for each source. It meters *failures* only: a request with the right secret is never turned away because of others'.

Invariants: at most `MAX_SOURCES` are remembered, the one that failed longest ago is forgotten first; what is forgotten has a full
budget again, which is why there is a common budget beside it.
"""

from __future__ import annotations

from typing import Final

from transport.budget.rates import TokenBucket

__all__ = ["Failures"]

PER_MINUTE: Final = 5
MAX_SOURCES: Final = 1024


class Failures:
    """Failures by source.

    Args:
        per_minute: of one source.
        all_per_minute: of all of them together.
    """

    def __init__(self, *, per_minute: int = PER_MINUTE, all_per_minute: int = 600) -> None:
        self._per_minute = per_minute
        self._all_per_minute = all_per_minute
        self._all: TokenBucket | None = None
        self._sources: dict[str, TokenBucket] = {}

    def __len__(self) -> int:
        return len(self._sources)

    def note(self, source: str, now: float) -> bool:
        """Count a failure; False if the source (or all of them) had too many.

        Args:
            source: who failed; the caller makes sure that one party is one source.
            now: monotonic seconds.
        """
        if self._all is None:
            self._all = TokenBucket(self._all_per_minute / 60, self._all_per_minute, now)
        bucket = self._sources.pop(source, None)
        if bucket is None:
            bucket = TokenBucket(self._per_minute / 60, self._per_minute, now)
            if len(self._sources) >= MAX_SOURCES:
                del self._sources[next(iter(self._sources))]
        self._sources[source] = bucket
        return bucket.take(1, now) and self._all.take(1, now)
