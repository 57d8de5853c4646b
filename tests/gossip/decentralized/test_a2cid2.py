"""A2CiD2: its flow against the equations, its conserved sums, and consensus faster than plain gossip on a ring."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.decentralized.kit.conformance import CHECKS, Subject
from gossip.decentralized.kit.rehearsal import Links, Quadratic, World, node_id, run_id
from gossip.decentralized.protocol import Context, LocalWork, TensorSpec
from gossip.errors import InvalidSettings
from gossip.protocols.a2cid2 import A2CiD2
from gossip.protocols.adpsgd import ADPSGD
from gossip.protocols.dadao_dynamics import exponential

NUMEL = 12
AT_ONCE = Links(delay_s=(0.0, 0.0))


@pytest.mark.parametrize(
    "check", ["finite_rounds_finish", "nodes_come_and_go", "mean_is_conserved"]
)
def test_conformance_on_a_ring(check):
    CHECKS[check](Subject(A2CiD2, {"graph": "ring", "exchanges": 3.0}))


def starts(count: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((count, NUMEL)).astype(np.float32)


def ring(protocol: type, count: int, trainer: object = None, **options: object) -> World:
    links = options.pop("links", AT_ONCE)
    more = {"trainer": trainer} if trainer is not None else {}
    return World(
        protocol,
        count,
        settings={"graph": "ring", **options},
        numel=NUMEL,
        initial=lambda index: starts(count)[index].copy(),
        links=links,
        **more,
    )


def lone() -> A2CiD2:
    context = Context(
        me=node_id(0),
        run=run_id(0),
        tensors=(TensorSpec("weight", 0, (NUMEL,)),),
        numel=NUMEL,
        rng=random.Random(0),
    )
    made = A2CiD2(A2CiD2.parse_settings({}), context)
    made.members([node_id(1)], 0.0)
    made.start(np.zeros(NUMEL, np.float32), 0.0)
    return made


@given(st.floats(0.01, 2), st.floats(0, 20), st.integers(0, 99))
def test_the_flow_is_the_exponential_of_the_equations(eta, elapsed, seed):
    core = lone()
    rng = np.random.default_rng(seed)
    x, twin = rng.standard_normal((2, NUMEL)).astype(np.float32)
    core._become(x.copy(), twin.copy())
    core._eta = eta
    core.clock.measured(1.0, 0.0)
    core._flow(elapsed)
    matrix = exponential(np.array([[-eta, eta], [eta, -eta]]) * elapsed)
    np.testing.assert_allclose(
        np.stack([core.model, core.twin]), matrix @ np.stack([x, twin]), atol=1e-6
    )


def test_coefficients_on_the_ring_of_sixteen_are_the_published_ones():
    world = ring(A2CiD2, 16)
    world.start()
    world.run(0.15)
    core = world.alive[0].core
    chi1, chi2 = 1 / (1 - math.cos(2 * math.pi / 16)), 15 / 16
    assert core._eta == pytest.approx(1 / (2 * math.sqrt(chi1 * chi2)))
    assert core.gain() == pytest.approx(0.5 * math.sqrt(chi1 / chi2))


def sums(world: World) -> tuple[np.ndarray, np.ndarray]:
    for node in world.alive:
        node.core._flow(world.now)
    cores = [node.core for node in world.alive]
    return (
        np.sum([core.model for core in cores], axis=0, dtype=np.float64),
        np.sum([core.twin for core in cores], axis=0, dtype=np.float64),
    )


def test_without_training_both_sums_stay_and_stay_equal_on_a_common_clock():
    world = ring(A2CiD2, 10)
    world.start()
    total = starts(10).sum(axis=0, dtype=np.float64)
    for _ in range(10):
        world.run(world.now + 0.73)
        x, twin = sums(world)
        np.testing.assert_allclose(x, total, atol=2e-5)
        np.testing.assert_allclose(twin, total, atol=2e-5)


@pytest.mark.parametrize("loss", [0.0, 0.3])
def test_with_delays_losses_and_unequal_clocks_the_sum_of_both_stays(loss):
    world = ring(A2CiD2, 10, links=Links(loss=loss), patience=0.3)
    world.step_s = lambda node: 0.1 * (1 + node % 3)
    world.rounds = 40
    world.start()
    world.run(100.0)  # all have finished, so that nothing is under way
    x, twin = sums(world)
    np.testing.assert_allclose(x + twin, 2 * starts(10).sum(axis=0, dtype=np.float64), atol=4e-5)


def test_on_a_ring_nodes_agree_sooner_than_by_plain_exchanges_of_the_same_number():
    def disagreement(protocol: type, rate: float) -> tuple[float, int]:
        world = ring(protocol, 16, exchanges=rate)
        world.start()
        world.run(6.0)  # 60 legs
        models = np.array(world.models(), np.float64)
        met = sum(node.core.exchanges.counts.settled for node in world.alive)
        return float(((models - models.mean(axis=0)) ** 2).sum(axis=1).mean()), met

    fast, met = disagreement(A2CiD2, 1.0)
    slow, met_slow = disagreement(ADPSGD, 0.5)  # each of a pair counts the meetings that it starts
    assert met == pytest.approx(met_slow, rel=0.15)
    assert fast < 0.2 * slow


def test_what_a_leg_changes_goes_to_both():
    core = lone()
    before, twin = core.model.copy(), core.twin.copy()
    change = np.arange(NUMEL, dtype=np.float32)
    leg = core.next_event()
    core.trained(LocalWork(leg.params + change, 1, 1.0), 1.0)
    np.testing.assert_array_equal(core.model, before + change)
    np.testing.assert_array_equal(core.twin, twin + change)


def test_training_reaches_the_common_optimum():
    centres = np.random.default_rng(1).standard_normal((10, NUMEL))
    world = ring(A2CiD2, 10, Quadratic(centres, 0.02), exchanges=2.0, links=Links())
    world.start()
    world.run(30.0)
    mean = np.mean(world.models(), axis=0)
    assert np.abs(mean - centres.mean(axis=0)).max() < 0.05


@pytest.mark.parametrize("mixing", ["variance-corrected", "median"])
def test_no_other_rule_is_accepted(mixing):
    with pytest.raises(InvalidSettings, match="pairwise exchanges"):
        A2CiD2.parse_settings({"mixing": mixing})


def test_timers_fire_once_each_where_the_clock_is_coarser_than_a_unit():
    """After 38 days of uptime a float64 of seconds has steps of 5e-10 s: none of them may be waited for at one instant."""
    world = ring(A2CiD2, 4, links=Links(delay_s=(1e-4, 2e-4)))
    world.step_s = lambda _node: 1e-3
    world.now = 3.3e6
    world.start()
    world.run(3.3e6 + 0.2)
    assert all(node.core.round > 150 for node in world.alive)
    met = sum(node.core.exchanges.counts.settled for node in world.alive)
    assert met > 50
