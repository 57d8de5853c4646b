"""AD-PSGD: pairs keep their sum, legs keep their work, staleness is bounded, nobody waits in a circle."""

from __future__ import annotations

import random

import numpy as np
import pytest

from gossip.decentralized.kit.conformance import CHECKS, Subject
from gossip.decentralized.kit.rehearsal import Links, Quadratic, World, idle, node_id, run_id
from gossip.decentralized.protocol import Context, LocalWork, Send, TensorSpec, Train
from gossip.errors import InvalidSettings
from gossip.protocols.adpsgd import ADPSGD

NUMEL = 6


@pytest.mark.parametrize(
    "check", ["finite_rounds_finish", "losses_stop_nobody", "nodes_come_and_go"]
)
def test_conformance_as_fast_as_links_allow(check):
    CHECKS[check](Subject(ADPSGD, {"exchanges": 0, "graph": "ring"}))


def core(index: int, **settings: object) -> ADPSGD:
    context = Context(
        me=node_id(index),
        run=run_id(0),
        tensors=(TensorSpec("weight", 0, (NUMEL,)),),
        numel=NUMEL,
        rng=random.Random(index),
    )
    made = ADPSGD(ADPSGD.parse_settings({"graph": "full", **settings}), context)
    made.members([node_id(1 - index)], 0.0)
    return made


def events(made: ADPSGD) -> list[object]:
    return list(iter(made.next_event, None))


def sends(made: ADPSGD) -> list[Send]:
    return [event for event in events(made) if isinstance(event, Send)]


def vec(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_a_leg_that_ends_between_offer_and_answer_is_kept_and_the_sum_comes_out_exactly():
    a, b = core(0, exchanges=0), core(1)
    a.start(vec(1, 2, 3, 4, 5, 6), 0.0)
    b.start(vec(9, 4, 1, 0, 1, 2), 0.0)
    (leg,) = [event for event in events(a) if isinstance(event, Train)]
    events(b)
    a.tick(0.0)
    (offer,) = sends(a)
    change = vec(0.5, -0.25, 8, 0, 1, 2)
    a.trained(LocalWork(leg.params + change, 1, 1.0), 0.1)
    before = a.model + b.model
    sends(a)
    b.receive(node_id(0), offer.message, offer.vectors, 0.2)
    (answer,) = sends(b)
    a.receive(node_id(1), answer.message, answer.vectors, 0.3)
    np.testing.assert_array_equal(a.model + b.model, before)
    np.testing.assert_array_equal(b.model, vec(5, 3, 2, 2, 3, 4))
    np.testing.assert_array_equal(a.model, vec(5, 3, 2, 2, 3, 4) + change)


@pytest.mark.parametrize(
    ("settings", "loss", "seconds"),
    [({}, 0.0, 15), ({}, 0.2, 30), ({"exchanges": 0}, 0.2, 20), ({"graph": "ring"}, 0.0, 40)],
)
def test_without_training_the_mean_stays_and_all_agree_on_it(settings, loss, seconds):
    rng = np.random.default_rng(5)
    start = rng.standard_normal((8, NUMEL)).astype(np.float32)
    world = World(
        ADPSGD,
        8,
        idle,
        settings={**settings, "patience": 1.0},
        numel=NUMEL,
        initial=lambda index: start[index].copy(),
        links=Links(loss=loss),
    )
    world.start()
    world.run(seconds)
    models = np.array(world.models(), np.float64)
    np.testing.assert_allclose(models.mean(axis=0), start.mean(axis=0, dtype=np.float64), atol=1e-5)
    assert models.std(axis=0).max() < 1e-3
    assert sum(node.core.exchanges.counts.unsettled for node in world.alive) == 0


def test_training_reaches_the_common_optimum():
    centres = np.random.default_rng(1).standard_normal((10, NUMEL))
    world = World(ADPSGD, 10, Quadratic(centres, 0.02), numel=NUMEL, settings={"exchanges": 4.0})
    world.start()
    world.run(15.0)
    for model in world.models():
        assert np.abs(model - centres.mean(axis=0)).max() < 0.4
    mean = np.mean(world.models(), axis=0)
    assert np.abs(mean - centres.mean(axis=0)).max() < 0.05


def test_staleness_is_bounded_and_reported():
    world = World(
        ADPSGD,
        6,
        settings={"exchanges": 0, "max_staleness": 3, "graph": "full"},
        step_s=lambda node: 5.0 if node == 0 else 0.1,
    )
    world.start()
    world.run(20.0)
    worst = [node.core.describe()["worst_staleness"] for node in world.alive]
    assert worst[0] == 3, "the slow one met as many as it may"
    assert max(worst) <= 3


def test_pairs_that_all_turn_to_each_other_at_once_do_not_wait_in_a_circle():
    """Equal speeds, equal links, everybody offers at the same instant, on the graph with most circles."""
    world = World(
        ADPSGD,
        5,
        settings={"exchanges": 0, "graph": "full"},
        links=Links(delay_s=(0.02, 0.02)),
    )
    world.start()
    world.run(8.0)
    met = [node.core.exchanges.counts.settled for node in world.alive]
    assert min(met) > 8
    assert sum(node.core.exchanges.counts.refused for node in world.alive) > 0


def test_models_that_began_apart_keep_their_variance_with_the_correction():
    def spread(mixing: str) -> float:
        rng = np.random.default_rng(2)
        start = rng.standard_normal((8, 512)).astype(np.float32)
        world = World(
            ADPSGD,
            8,
            settings={"mixing": mixing, "exchanges": 4.0},
            numel=512,
            initial=lambda index: start[index].copy(),
        )
        world.start()
        world.run(8.0)
        return float(np.mean([model.var() for model in world.models()]))

    assert spread("mean") == pytest.approx(1 / 8, rel=0.15)
    assert spread("variance-corrected") == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize("mixing", ["median", "trimmed-mean"])
def test_a_pair_has_no_majority(mixing):
    with pytest.raises(InvalidSettings, match="does not combine"):
        ADPSGD.parse_settings({"mixing": mixing})
