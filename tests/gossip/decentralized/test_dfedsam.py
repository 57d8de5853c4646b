"""DFedSAM: D-PSGD with another local rule, and Q exchanges that are W to the power of Q."""

from __future__ import annotations

import numpy as np
import pytest

from gossip.decentralized.kit.rehearsal import Quadratic, World, idle, node_id
from gossip.decentralized.protocol import TASK_RULE, LocalRule, Train
from gossip.decentralized.topology import graph
from gossip.protocols.dfedsam import DFedSAM
from tests.gossip.decentralized.spectra import mixing_matrix


def start_of(index):
    return np.random.default_rng(index).standard_normal(8).astype(np.float32)


def world(count=8, trainer=idle, **options):
    settings = {"graph": "ring", **options.pop("settings", {})}
    made = World(DFedSAM, count, trainer, initial=start_of, settings=settings, **options)
    made.start()
    return made


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_gossip_steps_are_a_power_of_the_matrix(steps):
    made = world(rounds=3, settings={"gossip_steps": steps})
    made.run_rounds(3)
    nodes = sorted(node.id for node in made.nodes)
    run = made.nodes[0].core.context.run
    matrix = np.linalg.matrix_power(mixing_matrix(graph("ring", nodes, run)), 3 * steps)
    start = np.array([start_of(made.index[node]) for node in nodes], np.float64)
    models = np.array([made.nodes[made.index[node]].core.model for node in nodes])
    np.testing.assert_allclose(models, matrix @ start, atol=1e-6)  # float32 between the steps
    assert made.models_sent == made.sent == 8 * 2 * 3 * steps, (
        "Q times the degree, per node and round"
    )
    assert all(len(node.completed) == 3 for node in made.nodes)


def test_the_local_rule_is_sharpness_aware_unless_rho_is_zero():
    rules = set()
    for rho in (0.0, 0.2):
        made = World(DFedSAM, 2, initial=start_of, rounds=1, settings={"rho": rho})
        made.on_event = lambda _node, event, _now: (
            rules.add(event.rule) if isinstance(event, Train) else None
        )
        made.start()
    assert rules == {TASK_RULE, LocalRule("sam", 0.2)}


def test_mean_conserved_and_one_leg_per_round():
    made = world(
        16, rounds=5, settings={"gossip_steps": 3, "graph": "barabasi-albert", "degree": 2}
    )
    legs = []
    made.on_event = lambda node, event, _now: (
        legs.append(node) if isinstance(event, Train) else None
    )
    made.run_rounds(5)
    assert len(legs) == 16 * 4, "the first ones began before"
    before = np.mean([start_of(i) for i in range(16)], axis=0, dtype=np.float64)
    np.testing.assert_allclose(np.mean(made.models(), axis=0, dtype=np.float64), before, atol=1e-6)


def test_more_gossip_steps_leave_less_disagreement_under_training():
    def spread(steps):
        made = world(
            12,
            Quadratic(3 * np.eye(12, 8)),
            rounds=15,
            settings={"gossip_steps": steps, "rho": 0.05},
        )
        made.run_rounds(15)
        models = np.array(made.models(), np.float64)
        return float(np.square(models - models.mean(axis=0)).sum())

    one, two, four = spread(1), spread(2), spread(4)
    assert four < 0.5 * two < 0.25 * one


def test_a_round_goes_on_in_the_middle_when_a_neighbour_dies():
    made = world(6, rounds=20, settings={"gossip_steps": 3, "patience": 1.0})
    made.at(0.5, lambda: made.crash(2))
    made.run_rounds(20)
    assert len(made.alive) == 5
    assert node_id(2) not in made.nodes[0].others
