"""How long local training takes on each node."""

from __future__ import annotations

import random

from node.simulation.chance import lognormal, stream
from node.simulation.scenario import Speed

__all__ = ["Speeds"]


class Speeds:
    """The machines of a swarm: seconds per local step, one number for each node."""

    def __init__(self, settings: Speed, nodes: int, seed: int) -> None:
        self._jitter = settings.jitter
        self._legs = [stream(seed, "leg", node) for node in range(nodes)] if settings.jitter else []
        rng = stream(seed, "speed")
        self.step_s = [settings.step_s * _factor(settings, rng) for _ in range(nodes)]

    def leg_s(self, node: int, steps: int, passes: int) -> float:
        """How long `steps` steps take now, each of `passes` passes over its batch."""
        usual = self.step_s[node] * steps * passes
        return usual * lognormal(self._legs[node], self._jitter) if self._jitter else usual


def _factor(settings: Speed, rng: random.Random) -> float:
    if settings.kind == "lognormal":
        return lognormal(rng, settings.sigma)
    if settings.kind == "two-class":
        return settings.slow_factor if rng.random() < settings.slow_share else 1.0
    return 1.0
