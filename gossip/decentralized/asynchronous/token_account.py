"""Token accounts: how often a gossiping node may send, without bursts and without silence.

Danner and Jelasity 2018, "Token account algorithms: the best of the proactive and reactive worlds" (ICDCS), the randomised
token account; used for partitioned models by Hegedus, Danner and Jelasity 2021. A node earns one token per
period. It may spend it at once, whether or not it has news (*proactive*), or save it and spend it when something
arrives (*reactive*). With `low` = A and `capacity` = C and a balance of `a`::

    proactive(a) = 0 below A-1, (a - A + 1) / (C - A + 1) on [A-1, C]      probability of sending in a period
    reactive(a)  = a / A, rounded up or down at random so that the mean is right     sends when a message arrives

So a poor node only saves, a rich one sends in every period, and a message sets off about as many others as the
receiver can afford: news spread in a chain of reactions at the speed of the links, while the mean rate stays
at one message per period. Invariant: 0 <= a <= C.
"""

from __future__ import annotations

import math
import random


class TokenAccount:
    """The account of one node; the caller keeps the time and calls `earn` once per period."""

    def __init__(self, low: int, capacity: int, rng: random.Random, *, balance: int = 0) -> None:
        assert 1 <= low <= capacity, "the reactive part needs A >= 1, the proactive one C >= A"
        assert 0 <= balance <= capacity, "a balance between nothing and the capacity"
        self.low = low
        self.capacity = capacity
        self._balance = balance
        self._rng = rng

    @property
    def balance(self) -> int:
        """Tokens saved, 0..capacity."""
        return self._balance

    def proactive(self) -> float:
        """Probability of sending in a period at this balance."""
        return max(0.0, (self._balance - self.low + 1) / (self.capacity - self.low + 1))

    def earn(self) -> int:
        """A period is over: how many messages (0 or 1) to send; else the token is saved."""
        if self._rng.random() < self.proactive():
            return 1
        self._balance += 1
        return 0

    def react(self) -> int:
        """A message arrived: how many messages to send, paid from the balance."""
        whole = math.floor(self._balance / self.low)
        rest = self._balance / self.low - whole
        sends = whole + (self._rng.random() < rest)
        self._balance -= sends
        return sends
