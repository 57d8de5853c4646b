"""How much a source may ask for: a few units a minute each, in a table that strangers cannot grow.

Problem: guessing a 128-bit secret is hopeless, but each refusal costs a signature, and each request that is passed on a call. Idea: a
token bucket for each source, and one for all of them together, since a source that was forgotten has a full budget again.

Invariant: at most `MAX_SOURCES` are remembered (`transport.budget.accounts`).
"""

from __future__ import annotations

from typing import Final

from transport.budget.accounts import Accounts
from transport.budget.rates import TokenBucket

__all__ = ["SourceBudget"]

MAX_SOURCES: Final = 1024


class SourceBudget:
    """Units taken by source.

    Args:
        per_minute: of one source.
        all_per_minute: of all of them together.
    """

    def __init__(self, *, per_minute: int, all_per_minute: int) -> None:
        self._all_per_minute = all_per_minute
        self._all: TokenBucket | None = None
        self._sources: Accounts[str] = Accounts(per_minute / 60, per_minute, most=MAX_SOURCES)

    def __len__(self) -> int:
        return len(self._sources)

    def take(self, source: str, now: float) -> bool:
        """Take a unit; False if the source (or all of them) had too many.

        Args:
            source: who asks; the caller makes sure that one party is one source.
            now: monotonic seconds.
        """
        if self._all is None:
            self._all = TokenBucket(self._all_per_minute / 60, self._all_per_minute, now)
        return self._sources.take(source, now) and self._all.take(1, now)
