"""D-PSGD: the matrix it mixes with, and its rounds among nodes that are slow, silent, late or gone."""

from __future__ import annotations

import numpy as np
import pytest

from gossip.decentralized.rehearsal import World, idle
from gossip.decentralized.topology import KINDS
from gossip.protocols.dpsgd import DPSGD


def spread_start(index):
    return np.random.default_rng(index).standard_normal(8).astype(np.float32)


def world(count=8, trainer=idle, **options):
    options.setdefault("initial", spread_start)
    settings = {"graph": "ring", **options.pop("settings", {})}
    made = World(DPSGD, count, trainer, settings=settings, **options)
    made.start()
    return made


def spread(models):
    wide = np.array(models, np.float64)
    return float(np.sqrt(np.square(wide - wide.mean(axis=0)).sum(axis=1).mean()))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_rounds_conserve_the_mean_and_reach_agreement(kind):
    made = world(12, rounds=40, settings={"graph": kind})
    start = np.array([spread_start(i) for i in range(12)], np.float64)
    made.run_rounds(40)
    models = np.array(made.models(), np.float64)
    np.testing.assert_allclose(models.mean(axis=0), start.mean(axis=0), atol=1e-6)
    assert spread(models) < 0.2 * spread(start)
    assert all(node.finished for node in made.nodes)
    assert all(node.core.missing == node.core.late == node.core.jumps == 0 for node in made.nodes)
