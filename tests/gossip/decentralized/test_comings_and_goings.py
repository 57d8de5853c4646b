"""MoDeST and the token walk among nodes that crash, leave, come back and are parted at random, with losses: both go on afterwards.

    NODED_SLOW=1 python -m pytest tests/gossip/decentralized/test_comings_and_goings.py

runs forty seeds of each instead of one for each of the settings (three minutes of CPU).
"""

from __future__ import annotations

import os
import random
from collections import Counter

import numpy as np
import pytest

from gossip.decentralized.kit.rehearsal import Links, Quadratic, World
from gossip.decentralized.protocol import Cancel, Train
from gossip.protocols.modest.protocol import MoDeST
from gossip.protocols.token_walk.protocol import TokenWalk

MODEST = [
    {
        "sample_size": 4,
        "aggregators": aggregators,
        "success_fraction": fraction,
        "aggregation_timeout": 5.0,
        "stall_timeout": 5.0,
        "ping_timeout": 1.0,
    }
    for aggregators in (3, 2, 1)
    for fraction in (0.6, 1.0)
]
WALK = [
    {
        "graph": graph,
        "lease": 3.0,
        "silence": 5.0,
        "ask_timeout": 0.5,
        "ack_timeout": 0.5,
        "visit_timeout": 0.5,
    }
    for graph in ("small-world", "ring", "full")
]


def seeds(settings):
    """Each seed takes the next of the settings."""
    return range(40) if os.environ.get("NODED_SLOW") == "1" else range(len(settings))


def eventful(protocol, settings, seed):
    """A world after thirty random events; at its end all who are there reach each other."""
    chance = random.Random(seed)
    count = chance.choice([3, 5, 8, 14])
    links = Links(
        loss=chance.choice([0, 0, 0.02, 0.1]),
        noticed=chance.random(),
        duplicates=chance.choice([0, 0.05]),
    )
    centres = [np.random.default_rng(i).standard_normal(8) for i in range(count)]
    world = World(
        protocol,
        count,
        Quadratic(centres),
        settings=settings,
        seed=seed,
        links=links,
        step_s=lambda i: 0.3 + 0.3 * (i % 3),
    )
    return world, chance


def happen(world, chance):
    count = len(world.nodes)
    world.start(range(chance.randint(1, count)))
    for _ in range(30):
        world.run(world.now + chance.uniform(0.5, 10))
        index, what = chance.randrange(count), chance.random()
        there, others = world.nodes[index].core is not None, len(world.alive) > 1
        if there and others and what < 0.3:
            world.crash(index)
        elif there and others and what < 0.45:
            world.leave(index)
        elif not there and what < 0.8:
            keeps = world.nodes[index].checkpoint and chance.random() < 0.8
            (world.restart if keeps else world.join)(index)
        elif what < 0.85:
            left = {i for i in range(count) if chance.random() < 0.5}
            world.part(sorted(left), sorted(set(range(count)) - left))
        else:
            world.heal()
    world.heal()


@pytest.mark.parametrize("seed", seeds(MODEST))
def test_everybody_that_is_left_is_drawn_again(seed):
    world, chance = eventful(MoDeST, MODEST[seed % len(MODEST)], seed)
    happen(world, chance)
    world.run(world.now + 20.0)
    before = {node.index: node.core.describe()["draws"] for node in world.alive}

    def all_drawn():
        return all(n.core.describe()["draws"] > before[n.index] + 2 for n in world.alive)

    world.run(world.now + 3000.0, stop=all_drawn)
    assert all_drawn()


@pytest.mark.parametrize("seed", seeds(WALK))
def test_the_walk_goes_on_and_makes_no_step_of_a_term_twice(seed):
    world, chance = eventful(TokenWalk, WALK[seed % len(WALK)], seed)
    steps, running = Counter(), {}

    def hear(index, event, _now):
        if isinstance(event, Train):
            term, n = world.nodes[index].core.step
            running[index] = (term, n + 1)
            steps[running[index]] += 1
        elif isinstance(event, Cancel):  # one that leaves hands the token on as it is
            steps[running[index]] -= 1

    world.on_event = hear
    happen(world, chance)
    world.run(world.now + 200.0)
    assert max(steps.values()) == 1
    before = max(node.round for node in world.alive)
    world.run(world.now + 1000.0, stop=lambda: max(n.round for n in world.alive) > before + 30)
    assert max(node.round for node in world.alive) > before + 30
