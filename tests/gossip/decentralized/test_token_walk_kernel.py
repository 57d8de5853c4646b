"""The walk's kernel: base chain, self-repulsion, the lazily stored measure, and what repulsion is worth."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossip.decentralized.kit.rehearsal import node_id, run_id
from gossip.decentralized.topology import graph
from gossip.protocols.token_walk.kernel import (
    HEAD,
    Place,
    Visits,
    draw,
    gamma,
    log_decay,
    repulsion,
    weights,
)

EXPONENTS = [0.51, 0.6, 0.8, 0.9, 1.0]


class Walk:
    """The kernel on a whole graph, in one process."""

    def __init__(self, kind, count, *, alpha, a=0.8, seed=0, degree=4):
        self.nodes = sorted(node_id(i) for i in range(count))
        self.index = {node: i for i, node in enumerate(self.nodes)}
        self.edges = graph(kind, self.nodes, run_id(seed), degree=degree)
        self.visits = {node: Visits(1 / count, a) for node in self.nodes}
        self.alpha, self.mu, self.n = alpha, 1 / count, 0
        self.rng = random.Random(seed)
        self.here = self.nodes[self.rng.randrange(count)]

    def place(self, node):
        return Place(node, self.visits[node].at(self.n), len(self.edges[node]))

    def row(self, node):
        around = [self.place(j) for j in self.edges[node]]
        return weights(self.place(node), around, mu=self.mu, alpha=self.alpha, clip=1e6)

    def hop(self):
        self.here = draw(self.row(self.here), self.rng.random())
        self.n += 1
        self.visits[self.here].visit(self.n)
        return self.here

    def matrix(self):
        full = np.zeros((len(self.nodes), len(self.nodes)))
        for node in self.nodes:
            for other, weight in self.row(node):
                full[self.index[node], self.index[other]] = weight
        return full / full.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("a", EXPONENTS)
def test_the_decay_is_the_sum_that_it_stands_for(a):
    total, checked = 0.0, {1, HEAD - 1, HEAD, HEAD + 1, HEAD + 2, 1000, 50_000}
    for n in range(1, 50_001):
        total += math.log1p(-gamma(n, a))
        if n in checked:
            assert log_decay(n, a) == pytest.approx(total, rel=1e-12)
    assert log_decay(0, a) == 0.0


@pytest.mark.parametrize("a", EXPONENTS)
def test_the_decay_of_any_step_costs_the_same_and_never_rises(a):
    steps = [2**power for power in range(49)]
    decays = [log_decay(n, a) for n in steps]
    assert all(later < earlier for earlier, later in itertools.pairwise(decays))
    assert all(math.isfinite(decay) for decay in decays)


def test_the_lazily_stored_measure_is_the_one_that_is_updated_everywhere():
    walk = Walk("small-world", 50, alpha=5)
    x = np.full(50, 1 / 50)
    for n in range(1, 2001):
        j = walk.index[walk.hop()]
        x *= 1 - gamma(n, 0.8)
        x[j] += gamma(n, 0.8)
    lazy = np.array([walk.visits[node].at(2000) for node in walk.nodes])
    np.testing.assert_allclose(lazy, x, rtol=1e-12)
    assert lazy.sum() == pytest.approx(1, abs=1e-9)


def test_a_step_of_a_lost_term_is_not_undone():
    visits = Visits(0.1, 0.8)
    visits.visit(100)
    value = visits.at(100)
    assert visits.at(90) == value
    visits.visit(95)
    assert visits.at(100) == pytest.approx(value + gamma(95, 0.8))


@pytest.mark.parametrize("kind", ["ring", "small-world", "barabasi-albert", "full"])
def test_mu_is_stationary_for_the_base_chain_and_for_the_measure_it_aims_at(kind):
    base = Walk(kind, 30, alpha=0).matrix()
    np.testing.assert_allclose(base.sum(axis=0), 1, atol=1e-14)
    np.testing.assert_allclose(base, base.T, atol=1e-15)
    repelled = Walk(kind, 30, alpha=7)  # x = mu at the start
    np.testing.assert_allclose(repelled.matrix(), base, atol=1e-15)


def test_alpha_0_is_the_base_chain_with_the_same_draws():
    walk = Walk("small-world", 30, alpha=0, seed=3)
    rng = random.Random(3)
    here = walk.nodes[rng.randrange(30)]
    for _ in range(500):
        degree = len(walk.edges[here])
        row = {j: 1 / max(degree, len(walk.edges[j])) for j in walk.edges[here]}
        row[here] = max(0.0, 1 - math.fsum(row.values()))
        u = rng.random() * math.fsum(row[j] for j in sorted(row))
        for j in sorted(row):
            u -= row[j]
            if u < 0:
                break
        here = j
        assert walk.hop() == here


@given(st.integers(0, 10_000), st.sampled_from([0.0, 1.0, 5.0, 20.0]))
@settings(max_examples=20)
def test_the_token_goes_along_edges_or_stays(seed, alpha):
    walk = Walk("barabasi-albert", 15, alpha=alpha, seed=seed, degree=2)
    for _ in range(30):
        before = walk.here
        after = walk.hop()
        assert after == before or after in walk.edges[before]


def test_who_does_not_answer_is_not_gone_to_and_the_rest_stays_uniform():
    walk = Walk("random-regular", 12, alpha=0)
    silent = set(walk.nodes[:3])
    full = np.zeros((12, 12))
    for node in walk.nodes:
        around = [walk.place(j) for j in walk.edges[node] if j not in silent]
        for other, weight in weights(walk.place(node), around, mu=1 / 12, alpha=0, clip=1e6):
            full[walk.index[node], walk.index[other]] = weight
    living = [walk.index[node] for node in walk.nodes if node not in silent]
    part = full[np.ix_(living, living)]
    np.testing.assert_allclose(part.sum(axis=0), 1, atol=1e-14)
    np.testing.assert_allclose(part.sum(axis=1), 1, atol=1e-14)


@given(st.floats(0, 1e9), st.floats(0, 100))
def test_repulsion_is_bounded(ratio, alpha):
    assert 0 <= repulsion(ratio, alpha, 1e6) <= 1e6
    assert repulsion(1.0, alpha, 1e6) == 1.0


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=6), st.floats(0, 1, exclude_max=True))
def test_a_draw_takes_one_of_those_with_weight(values, u):
    weighted = [(node_id(i), value) for i, value in enumerate(values)]
    chosen = draw(weighted, u)
    assert dict(weighted)[chosen] > 0 or not any(values)


def mean_square_error(alpha, *, seeds, hops=20_000, a=0.8, b=0.9):
    """f_j = (theta - c_j)^2 / 2, c_j = 3 or -3 by the side of the graph's slowest mode: a slow walk hears one side for long.

    Mean of theta^2 over the last half of the hops; the optimum, of equally many of either, is near 0.
    """
    errors = []
    for seed in range(seeds):
        walk = Walk("small-world", 50, alpha=alpha, a=a, seed=seed)
        slow = np.linalg.eigh(Walk("small-world", 50, alpha=0, seed=seed).matrix())[1][:, -2]
        target = dict(zip(walk.nodes, np.where(slow > np.median(slow), 3.0, -3.0), strict=True))
        theta, late = 0.0, []
        for n in range(1, hops + 1):
            theta -= (n + 1) ** -b * (theta - target[walk.hop()])
            if n > hops // 2 and n % 50 == 0:
                late.append(theta * theta)
        errors.append(np.mean(late))
    return float(np.mean(errors))


def test_repulsion_lowers_the_error_more_than_five_times_on_a_slow_graph():
    plain, repelled = mean_square_error(0, seeds=4), mean_square_error(5, seeds=4)
    assert plain / repelled > 5, (plain, repelled)
