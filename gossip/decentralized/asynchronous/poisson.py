"""Poisson clocks that run in a node's own unit of time: one expected gradient.

Asynchronous gossip with guarantees (DADAO, A2CiD2) is stated for events of Poisson processes whose rates
count events per gradient, on one clock that all nodes share. Real nodes share none. Each divides its own
monotonic time by the running mean of the time that a gradient takes it; only differences of that time are
ever used, so it needs no common zero. A node whose gradients become slower sees its timers slow down with
them: the processes stay Poisson, on another clock.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Mapping
from typing import Final, Generic, TypeVar

import attrs

SMOOTHING: Final = 0.1
"""Weight of the newest leg in the running mean of their durations."""
SHORTEST_S: Final = 1e-6
"""A leg that seems to take less is taken to last this long: a clock must not stand or jump to infinity."""
LATE_EVENTS: Final = 16
"""Events of one timer that one `due` makes up for. A process that was suspended for an hour skips the rest."""


Key = TypeVar("Key", bound=Hashable)


class UnitClock:
    """A node's own time in units of (`stretch` times) the running mean of its legs' durations.

    It reads 0 until the first leg has been measured, and `stretch` below 1 is of no use: with a stretch of 2
    a node that trains once per unit is busy half of the time. With `unit_s` the unit is that long, whatever is measured.
    """

    def __init__(self, stretch: float = 1.0, unit_s: float = 0.0) -> None:
        self._stretch = stretch
        self._fixed_s = unit_s
        self._mean_s: float | None = None
        # Its reading when the unit changed last, and when that was. Reading changes nothing, so that who looks often
        # adds up no other rounding than who looks seldom.
        self._units = 0.0
        self._since = 0.0

    @property
    def running(self) -> bool:
        """A leg has been measured, so that there is a unit."""
        return self._mean_s is not None

    @property
    def unit_s(self) -> float:
        """Seconds of one unit; only while `running`."""
        assert self._mean_s is not None, "no leg has been measured yet"
        return self._fixed_s or self._mean_s * self._stretch

    def measured(self, seconds: float, now: float) -> None:
        """A leg took that long; what has passed until `now` counts in the old unit."""
        seconds = max(seconds, SHORTEST_S)
        self._units, self._since = self.read(now), now
        if self._mean_s is None:
            self._mean_s = seconds
        else:
            self._mean_s += SMOOTHING * (seconds - self._mean_s)

    def read(self, now: float) -> float:
        """Units that have passed at `now`."""
        if self._mean_s is None:
            return 0.0
        return self._units + max(0.0, now - self._since) / self.unit_s

    def when(self, units: float) -> float:
        """The moment, in the driver's seconds, at which it will read that, were the unit to stay as it is."""
        return self._since + max(0.0, units - self._units) * self.unit_s


@attrs.define
class _Timer:
    rate: float
    at: float


class PoissonTimers(Generic[Key]):
    """Independent Poisson processes by key, in units; each draws its next event when it has fired.

    Keys are kept in the order of the mapping given (callers sort), which fixes who draws first.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._timers: dict[Key, _Timer] = {}
        self._order: dict[Key, int] = {}

    def set_rates(self, rates: Mapping[Key, float], units: float) -> None:
        """From `units` on these processes run, in events per unit; one whose rate stays keeps its next event.

        Others draw anew, which changes nothing about them: an exponential time has no memory.
        """
        kept = self._timers
        self._timers = {}
        for key, rate in rates.items():
            assert rate > 0, "a process that never fires is none"
            timer = kept.get(key)
            if timer is None or timer.rate != rate:
                timer = _Timer(rate, units + self._rng.expovariate(rate))
            self._timers[key] = timer
        self._order = {key: place for place, key in enumerate(self._timers)}

    def due(self, units: float) -> list[Key]:
        """Which processes have fired up to `units`, in the order of their events."""
        fired: list[tuple[float, int, Key]] = []
        for key, timer in self._timers.items():
            for _ in range(LATE_EVENTS):
                if timer.at > units:
                    break
                fired.append((timer.at, self._order[key], key))
                timer.at += self._rng.expovariate(timer.rate)
            else:
                timer.at = max(timer.at, units + self._rng.expovariate(timer.rate))
        return [key for _, _, key in sorted(fired, key=lambda event: event[:2])]

    def next_at(self) -> float | None:
        """Units at which the next one fires."""
        return min((timer.at for timer in self._timers.values()), default=None)
