"""Self-doubt: how much the fault may be ours when others seem silent.

Problem: a node that trains on all its cores, swaps, or sits behind a bad line misses everybody's answers at once, and would
call healthy members dead. Idea (Lifeguard, Dadgar et al. 2018, section 4.1, "Local Health Multiplier"): keep a score of signs
that we are the slow one, and multiply our own patience by it. A second sign, which a program with one event loop has for
free: a timer of ours that fires late tells how long the loop stood still. That time counts for nobody (see `swim`), and the
score rises too, because who stalls once stalls again.

    up      a helper that did not even say "no answer"; a doubt about us that we had to refute; a late wake-up
    down    a probe of ours that was answered; a second in which nothing of that happened

Invariant: 0 <= score <= `MOST`; the multiplier is score + 1.
"""

from __future__ import annotations

from typing import Final

MOST: Final = 8
"""The paper's and memberlist's bound (there: 8 values, 0 to 7; scaled probe timeouts stay within ten times the usual)."""

LATE_S: Final = 0.2
"""A wake-up later than this is a stall: ten times what a loaded machine's scheduler usually takes."""

CALM_S: Final = 1.0
"""Without a bad sign for so long, the score falls by one."""


class LocalHealth:
    """The score of one node.

    Args:
        now: monotonic seconds.
    """

    def __init__(self, now: float) -> None:
        self.score = 0
        self._calm_since = now

    @property
    def multiplier(self) -> int:
        """By how much our patience is longer than usual."""
        return self.score + 1

    def worse(self, now: float, by: int = 1) -> None:
        """Note signs that we are slow."""
        if by > 0:
            self.score = min(MOST, self.score + by)
            self._calm_since = now

    def better(self) -> None:
        """Note an answer in time."""
        self.score = max(0, self.score - 1)

    def calm(self, now: float) -> None:
        """Let the score fall with time; call it often."""
        while self.score and now - self._calm_since >= CALM_S:
            self.score -= 1
            self._calm_since += CALM_S
        if not self.score:
            self._calm_since = now

    def late(self, late_s: float, now: float) -> bool:
        """Note how late our own timer fired; returns whether that was a stall."""
        if late_s < LATE_S:
            return False
        self.worse(now, 1 + int(late_s))
        return True
