"""DADAO: its flow against the equations, its conserved sums, and the optimum where plain gossip stalls."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossip.decentralized.kit.conformance import CHECKS, Subject
from gossip.decentralized.kit.rehearsal import Links, Quadratic, World, idle
from gossip.errors import InvalidSettings
from gossip.protocols.adpsgd import ADPSGD
from gossip.protocols.dadao import Dadao
from gossip.protocols.dadao_dynamics import (
    XT,
    YT,
    ZT,
    Coefficients,
    State,
    X,
    Y,
    Z,
    exponential,
)
from tests.gossip.decentralized.logistic import DIMENSIONS, Logistic

AT_ONCE = Links(delay_s=(0.0, 0.0))
NEAR = Links(delay_s=(0.0005, 0.001))


@pytest.mark.parametrize("check", ["finite_rounds_finish", "nodes_come_and_go", "restart_goes_on"])
@pytest.mark.parametrize("settings", [{"pace": "steady", "graph": "ring"}, {"unit": 0.5}])
def test_conformance_with_other_settings(check, settings):
    CHECKS[check](Subject(Dadao, settings))


# ---- the flow ------------------------------------------------------------------------------------

curvatures = st.tuples(st.floats(0.01, 10), st.floats(1, 1e2)).map(
    lambda pair: Coefficients(pair[0] * pair[1], pair[0])
)


def slope(c: Coefficients, s: np.ndarray) -> np.ndarray:
    """The equations, written out once more."""
    x, xt, y, yt, z, zt = s
    return np.array(
        [
            c.twin * (xt - x),
            c.twin * (x - xt),
            c.alpha * (yt - y),
            -c.theta * (y + z + c.nu * xt),
            c.alpha * (zt - z),
            c.twin * (z - zt),
        ]
    )


@settings(max_examples=5)
@given(curvatures, st.floats(0.001, 2), st.integers(0, 99))
def test_the_flow_solves_the_equations(c, elapsed, seed):
    """Against the classical Runge-Kutta method, with 20 steps for each unit of the matrix's norm."""
    s = np.random.default_rng(seed).standard_normal((6, 3))
    flowed = exponential(c.generator() * elapsed) @ s
    steps = 20 + int(20 * elapsed * np.abs(c.generator()).sum(axis=1).max())
    h = elapsed / steps
    for _ in range(steps):
        k1 = slope(c, s)
        k2 = slope(c, s + h / 2 * k1)
        k3 = slope(c, s + h / 2 * k2)
        k4 = slope(c, s + h * k3)
        s = s + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    np.testing.assert_allclose(flowed, s, rtol=1e-6, atol=1e-6 * max(1.0, np.abs(s).max()))


def test_coefficients_are_the_published_ones():
    c = Coefficients(smoothness=8.0, convexity=1.0)
    root = math.sqrt(0.5 / 8)
    assert c.nu == 0.5
    assert (c.alpha, c.twin, c.theta) == pytest.approx(
        (0.25 * root, 0.125 * root, 0.5 * math.sqrt(8 / 0.5))
    )


@given(curvatures, st.floats(0, 50), st.floats(0, 50))
def test_two_flows_are_one_and_what_each_node_keeps_stays(c, first, second):
    m = c.generator()
    both = exponential(m * second) @ exponential(m * first)
    np.testing.assert_allclose(both, exponential(m * (first + second)), rtol=1e-7, atol=1e-7)
    kept = np.zeros(6)
    kept[Z], kept[ZT] = c.twin, c.alpha
    np.testing.assert_allclose(kept @ exponential(m * first), kept, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(
        c.flow_of_z(first), exponential(m * first)[Z:, Z:], rtol=1e-9, atol=1e-12
    )


def test_a_gradient_jumps_as_published_and_what_leads_out_of_bounds_changes_nothing():
    c = Coefficients(4.0, 2.0)
    state = State(c, np.array([1.0, -2.0]))
    state.vectors[YT] = 0.25
    before = state.vectors.copy()
    gradient, at = np.array([0.5, 3.0], np.float32), np.array([1.0, -2.0], np.float32)
    assert state.gradient(gradient, at)
    v = gradient - 1.0 * at - 0.25
    np.testing.assert_allclose(state.vectors[X], before[X] - v / 16)
    np.testing.assert_allclose(state.vectors[XT], before[XT] - v / (4 * math.sqrt(4)))
    np.testing.assert_allclose(state.vectors[YT], before[YT] + (0.25 * math.sqrt(1 / 4) + 1) * v)
    np.testing.assert_array_equal(state.vectors[[Y, Z, ZT]], before[[Y, Z, ZT]])
    held = state.vectors.copy()
    assert not state.gradient(np.array([np.nan, 0], np.float32), at)
    assert not state.meet(b"peer", np.array([1e35, 0.0]), 1.0)
    np.testing.assert_array_equal(state.vectors, held)
    assert not state.accounts


@given(st.integers(0, 99), st.lists(st.floats(0, 3), min_size=1, max_size=6))
def test_an_account_taken_back_leaves_z_as_if_there_had_been_no_meeting(seed, moments):
    rng = np.random.default_rng(seed)
    with_peer, without = (State(Coefficients(3.0, 1.0), np.ones(4)) for _ in range(2))
    now = 0.0
    for elapsed in moments:
        now += elapsed
        for state in (with_peer, without):
            state.advance(now)
        shared = rng.standard_normal(4)
        for state in (with_peer, without):
            state.meet(b"stays", shared, 0.7)
        with_peer.meet(b"goes", rng.standard_normal(4), 0.7)
    with_peer.advance(now + 2)
    without.advance(now + 2)
    with_peer.take_back(b"goes")
    np.testing.assert_allclose(with_peer.vectors[Z:], without.vectors[Z:], atol=1e-12)
    assert set(with_peer.accounts) == {b"stays"}


# ---- many nodes ----------------------------------------------------------------------------------


def convex(count: int, trainer: object, *, links: Links = NEAR, **options: object) -> World:
    settings = {"graph": "ring", **options}
    return World(
        Dadao,
        count,
        trainer,
        settings=settings,
        numel=DIMENSIONS,
        initial=lambda _index: np.zeros(DIMENSIONS, np.float32),
        links=links,
    )


def problem(count: int) -> tuple[Logistic, dict[str, float]]:
    logistic = Logistic(count)
    return logistic, {"smoothness": logistic.smoothness, "convexity": logistic.convexity}


def test_sums_of_z_and_its_twin_are_zero_at_every_moment_of_a_common_clock():
    logistic, curvature = problem(8)
    world = convex(8, logistic, links=AT_ONCE, **curvature)
    world.start()
    for _ in range(20):
        world.run(world.now + 0.31)
        for node in world.alive:
            node.core._flow(world.now)
        states = [node.core.state.vectors for node in world.alive]
        largest = max(np.abs(state[Z:]).max() for state in states)
        np.testing.assert_allclose(sum(states)[Z:], 0, atol=1e-12 * max(1, largest))
    assert largest > 0.01


@pytest.mark.parametrize("loss", [0.0, 0.3])
def test_with_delays_losses_and_unequal_clocks_their_weighted_sum_is_zero(loss):
    logistic, curvature = problem(8)
    world = convex(8, logistic, links=Links(loss=loss), patience=0.3, **curvature)
    world.step_s = lambda node: 0.1 * (1 + node % 3)
    world.rounds = 60
    world.start()
    world.run(200.0)  # all have finished, so that nothing is under way
    states = [node.core.state for node in world.alive]
    c = states[0].coefficients
    total = sum(c.twin * s.vectors[Z] + c.alpha * s.vectors[ZT] for s in states)
    np.testing.assert_allclose(total, 0, atol=1e-12)
    assert max(np.abs(s.vectors[Z:]).max() for s in states) > 0.01


def test_gradients_and_meetings_have_the_rates_and_the_spread_of_poisson_processes():
    world = World(Dadao, 8, idle, settings={"graph": "ring"}, links=AT_ONCE, numel=2)
    world.start()
    world.run(1.0)
    windows, per_window = 100, []
    for _ in range(windows):
        before = sum(node.core.exchanges.counts.settled for node in world.alive)
        world.run(world.now + 0.2)  # a unit: twice a gradient's 0.1 s
        after = sum(node.core.exchanges.counts.settled for node in world.alive)
        per_window.append(after - before)
    chi1, chi2 = 8 / (2 - 2 * math.cos(math.pi / 4)), 3.5
    expected = math.sqrt(2 * chi1 * chi2)
    mean = float(np.mean(per_window))
    assert abs(mean - expected) < 4 * math.sqrt(expected / windows)
    assert abs(np.var(per_window, ddof=1) / mean - 1) < 4 * math.sqrt(2 / windows)
    gradients = sum(node.core.round for node in world.alive)
    assert abs(gradients - 8 * world.now / 0.2) < 4 * math.sqrt(8 * world.now / 0.2)


def test_it_reaches_the_optimum_where_asynchronous_gossip_stalls():
    logistic, curvature = problem(8)
    world = convex(8, logistic, **curvature)
    world.start()
    world.run_rounds(110)
    assert logistic.distance(world) < 1e-4
    for share in (1.0, 0.2):
        logistic.learning_rate = share / logistic.smoothness
        plain = World(
            ADPSGD,
            8,
            logistic,
            settings={"graph": "ring", "exchanges": 2.0},
            numel=DIMENSIONS,
            initial=lambda _index: np.zeros(DIMENSIONS, np.float32),
            links=NEAR,
        )
        plain.start()
        plain.run_rounds(40)
        assert logistic.distance(plain) > 1e-3


@pytest.mark.skipif(not os.environ.get("NODED_SLOW"), reason="12 s of CPU: set NODED_SLOW=1")
def test_on_a_ring_of_twenty_it_reaches_a_billionth():
    logistic, curvature = problem(20)
    world = convex(20, logistic, **curvature)
    world.start()
    world.run_rounds(300)
    assert logistic.distance(world) < 1e-9


def survivors(world: World, centres: np.ndarray) -> float:
    """How far the models are from the optimum of the nodes that are there."""
    optimum = centres[[node.index for node in world.alive]].mean(axis=0)
    return max(float(np.abs(model - optimum).max()) for model in world.models())


def test_after_a_crash_the_others_reach_the_optimum_of_those_that_are_there():
    centres = np.random.default_rng(4).standard_normal((5, DIMENSIONS))
    world = convex(5, Quadratic(centres), smoothness=1.0, convexity=1.0, forget=3.0)
    world.start()
    world.run(20.0)
    assert survivors(world, centres) < 5e-3
    world.crash(2)
    world.run(38.0)
    assert survivors(world, centres) < 5e-3
    world.restart(2)
    world.run(55.0)
    assert survivors(world, centres) < 5e-3


def test_a_node_that_leaves_in_good_order_is_out_of_the_duals_at_once():
    centres = np.random.default_rng(6).standard_normal((4, DIMENSIONS))
    world = convex(4, Quadratic(centres), smoothness=1.0, convexity=1.0, forget=10_000.0)
    world.start()
    world.run(10.0)
    world.leave(1)
    world.run(30.0)
    assert survivors(world, centres) < 5e-3


def test_two_parts_of_a_swarm_find_their_own_optima_and_the_common_one_after():
    centres = np.random.default_rng(5).standard_normal((4, DIMENSIONS))
    world = convex(4, Quadratic(centres), smoothness=1.0, convexity=1.0, forget=3.0)
    world.start()
    world.run(10.0)
    world.part([0, 1], [2, 3])
    world.run(30.0)
    models = world.models()
    for part in ([0, 1], [2, 3]):
        for index in part:
            assert np.abs(models[index] - centres[part].mean(axis=0)).max() < 5e-3
    world.heal()
    world.run(55.0)
    assert survivors(world, centres) < 5e-3


def test_curvatures_that_cannot_be_and_rules_that_are_none_are_refused():
    with pytest.raises(InvalidSettings, match="larger than smoothness"):
        Dadao.parse_settings({"smoothness": 1.0, "convexity": 2.0})
    for name in ("smoothness", "convexity"):  # whose root would be 0
        with pytest.raises(InvalidSettings, match=name):
            Dadao.parse_settings({name: 5e-324})
    with pytest.raises(InvalidSettings, match="pairwise exchanges"):
        Dadao.parse_settings({"mixing": "variance-corrected"})
