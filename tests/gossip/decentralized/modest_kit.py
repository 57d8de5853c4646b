"""What tests of MoDeST have in common: a problem whose optimum is known, and settings."""

from __future__ import annotations

import numpy as np

from gossip.decentralized.kit.rehearsal import Quadratic

EXACT = {"success_fraction": 1.0}
IMPATIENT = {"aggregation_timeout": 5.0, "stall_timeout": 5.0, "ping_timeout": 1.0}


def quadratic(count, seed=0):
    rng = np.random.default_rng(seed)
    return Quadratic([rng.standard_normal(8) for _ in range(count)])
