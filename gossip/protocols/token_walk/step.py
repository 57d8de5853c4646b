"""What a visit of the token does to its model.

SA-SRRW's step is beta_n = c (n + 1)^-b down the gradient, or, with `local = "task"`, that share of the way to where a leg of the task's own
optimizer ends. In float64; a result that is not finite in float32 changes nothing.
"""

from __future__ import annotations

import numpy as np

from gossip.decentralized.protocol import LocalWork, Vector
from gossip.protocols.token_walk.settings import TokenWalkSettings


def stepped(theta: Vector, work: LocalWork, n: int, settings: TokenWalkSettings) -> Vector:
    """The model after step `n`, read-only; `theta` itself if that is not finite."""
    beta = settings.learning_rate * (n + 1) ** -settings.step_exponent
    if settings.local == "gradient":
        assert work.gradient is not None, "the rule was to give a gradient"
        after = theta - beta * work.gradient.astype(np.float64)
    else:
        share = min(1.0, beta)
        after = theta + share * (work.params.astype(np.float64) - theta)
    with np.errstate(over="ignore"):
        narrow: Vector = after.astype(np.float32)
    if not np.isfinite(narrow).all():
        return theta
    narrow.flags.writeable = False
    return narrow
