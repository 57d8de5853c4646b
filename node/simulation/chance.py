"""Random streams that do not disturb one another.

Every use has a generator of its own, named by the seed and what it is for, so that one fault more, or one node more,
shifts nobody else's draws. Python seeds from a string through SHA-512: the hash seed of the process plays no part.
"""

from __future__ import annotations

import math
import random

__all__ = ["lognormal", "stream"]


def stream(seed: int, *names: object) -> random.Random:
    """The generator for one purpose."""
    return random.Random("/".join(["noded simulate", str(seed), *map(str, names)]))


def lognormal(rng: random.Random, sigma: float) -> float:
    """A factor of median 1; a sigma of zero draws nothing."""
    return math.exp(rng.gauss(0.0, sigma)) if sigma else 1.0
