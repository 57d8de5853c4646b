"""D-PSGD: the weights on each kind of graph; its rounds among nodes that are slow, silent, late or gone: test_rounds."""

from __future__ import annotations

import numpy as np
import pytest

from gossip.decentralized.kit.conformance import CHECKS, Nonconforming, Subject
from gossip.decentralized.kit.rehearsal import World, idle
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


@pytest.mark.parametrize("kind", ["barabasi-albert", "one-peer-exponential", "random-regular"])
def test_a_share_kept_for_oneself_conserves_the_mean_too(kind):
    made = world(9, rounds=10, settings={"graph": kind, "degree": 2, "self_weight": 0.5})
    made.run_rounds(10)
    before = np.mean([spread_start(i) for i in range(9)], axis=0, dtype=np.float64)
    np.testing.assert_allclose(np.mean(made.models(), axis=0, dtype=np.float64), before, atol=1e-6)


def test_with_equal_degrees_a_share_of_one_half_is_that_of_the_published_rule():
    """`c o + (1 - c) mean(r)`, with c = 1/2."""
    made = world(8, rounds=1, settings={"graph": "ring", "self_weight": 0.5})
    made.run_rounds(1)
    for node in made.nodes:
        near = [spread_start(made.index[id_]) for id_ in node.core.graph(0)[node.id]]
        expected = 0.5 * spread_start(node.index) + 0.5 * np.mean(near, axis=0)
        np.testing.assert_allclose(node.core.model, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mixing", ["variance-corrected", "median", "trimmed-mean"])
def test_other_rules_end_conservation_and_the_kit_knows(mixing):
    class Claims(DPSGD):
        @classmethod
        def keeps_mean(cls, settings):
            return True

    raw = {"mixing": mixing, "graph": "exponential"}
    assert not DPSGD.keeps_mean(DPSGD.parse_settings(raw))
    assert DPSGD.keeps_mean(DPSGD.parse_settings({}))
    CHECKS["mean_is_conserved"](Subject(DPSGD, raw))
    with pytest.raises(Nonconforming, match="the mean moved"):
        CHECKS["mean_is_conserved"](Subject(Claims, raw))
