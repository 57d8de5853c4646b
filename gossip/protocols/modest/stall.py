"""When a node looks after a run that stands still (sans-IO).

Those who hold a part of the newest round look after `timeout_s` without any news, all others after three to four times
as long, each at a moment of its own. Every attempt that brings no news doubles the pause, up to 64 times.
"""

from __future__ import annotations

from typing import Final

MAX_DOUBLINGS: Final = 6
BYSTANDERS_WAIT: Final = 3.0


class Stall:
    """The time since the last news.

    Args:
        timeout_s: of those with a part in the newest round.
        patience: of this node, drawn from [0, 1): so that not all bystanders look at once.
    """

    def __init__(self, timeout_s: float, patience: float) -> None:
        self._timeout_s, self._patience = timeout_s, patience
        self._since = 0.0
        self._sooner_s = 0.0
        self.attempts = 0
        """Since the last news."""

    def news(self, now: float) -> None:
        """The run goes on."""
        self._since, self._sooner_s, self.attempts = now, 0.0, 0

    def begin_within(self, delay_s: float, now: float) -> None:
        """Look for the first time after one to two times `delay_s`, unless there are news."""
        self.news(now)
        self._sooner_s = delay_s * (1 + self._patience)

    def attempt(self, now: float) -> int:
        """Somebody is looked for now; counts from 1."""
        self._since, self._sooner_s = now, 0.0
        self.attempts += 1
        return self.attempts

    def due(self, *, involved: bool) -> float:
        """When the next attempt is due."""
        if self._sooner_s:
            return self._since + self._sooner_s
        pause = self._timeout_s * 2.0 ** min(self.attempts, MAX_DOUBLINGS)
        return self._since + (pause if involved else pause * (BYSTANDERS_WAIT + self._patience))
