"""chi1 and chi2 against published values, closed forms, and their definition by a pseudo-inverse."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.decentralized.asynchronous.graph_numbers import (
    edges,
    laplacian,
    neighbour_rates,
    numbers,
    numbers_of,
    uniform_rates,
)
from transport.identity import NodeId


def node(index: int) -> NodeId:
    return NodeId(index.to_bytes(32, "big"))


def ring(size: int) -> dict[NodeId, tuple[NodeId, ...]]:
    return {
        node(i): tuple(sorted({node((i - 1) % size), node((i + 1) % size)})) for i in range(size)
    }


def complete(size: int) -> dict[NodeId, tuple[NodeId, ...]]:
    return {node(i): tuple(node(j) for j in range(size) if j != i) for i in range(size)}


@pytest.mark.parametrize("size", [4, 16, 33])
def test_ring_with_one_exchange_per_node_has_the_closed_forms(size):
    found = numbers_of(ring(size), neighbour_rates(ring(size), 1.0))
    assert found.chi1 == pytest.approx(1 / (1 - math.cos(2 * math.pi / size)), rel=1e-9)
    assert found.chi2 == pytest.approx((size - 1) / size, rel=1e-9)


def test_published_values():
    found = numbers_of(ring(16), neighbour_rates(ring(16), 1.0))
    assert (round(found.chi1, 2), round(found.chi2, 4)) == (13.14, 0.9375)
    uniform = numbers_of(ring(20), uniform_rates(edges(ring(20))))
    assert (round(uniform.chi1, 1), round(uniform.chi2, 1)) == (204.3, 9.5)
    assert round(math.sqrt(2 * uniform.chi1 * uniform.chi2), 1) == 62.3
    full = numbers_of(complete(20), uniform_rates(edges(complete(20))))
    assert (round(full.chi1, 1), round(full.chi2, 1)) == (9.5, 9.5)
    assert round(math.sqrt(2 * full.chi1 * full.chi2), 1) == 13.4


@st.composite
def connected(draw: st.DrawFn) -> tuple[int, dict[tuple[int, int], float]]:
    """A random tree with more edges on top, each with a rate."""
    size = draw(st.integers(2, 12))
    pairs = {(draw(st.integers(0, child - 1)), child) for child in range(1, size)}
    extra = st.tuples(st.integers(0, size - 1), st.integers(0, size - 1)).filter(
        lambda p: p[0] < p[1]
    )
    pairs |= set(draw(st.lists(extra, max_size=10)))
    rate = st.floats(0.01, 100)
    return size, {pair: draw(rate) for pair in sorted(pairs)}


@given(connected())
def test_both_follow_from_the_pseudo_inverse_and_chi2_is_the_smaller(graph):
    size, rates = graph
    found = numbers(size, rates)
    lam = laplacian(size, rates)
    inverse = np.linalg.pinv(lam, rcond=1e-10, hermitian=True)
    worst = max((inverse[i, i] + inverse[j, j] - 2 * inverse[i, j]) / 2 for i, j in rates)
    assert found.chi2 == pytest.approx(worst, rel=1e-6)
    assert found.chi1 == pytest.approx(1 / np.linalg.eigvalsh(lam)[1], rel=1e-6)
    assert found.chi2 <= found.chi1 * (1 + 1e-9)


@given(connected(), st.floats(0.1, 10))
def test_faster_edges_make_both_smaller_in_proportion(graph, factor):
    size, rates = graph
    slow, fast = (
        numbers(size, rates),
        numbers(size, {edge: r * factor for edge, r in rates.items()}),
    )
    assert fast.chi1 == pytest.approx(slow.chi1 / factor, rel=1e-6)
    assert fast.chi2 == pytest.approx(slow.chi2 / factor, rel=1e-6)


def test_a_graph_in_two_parts_has_no_finite_numbers():
    assert numbers(4, {(0, 1): 1.0, (2, 3): 1.0}).chi1 == math.inf
    assert numbers(1, {}).chi2 == math.inf


def test_edges_come_once_the_lower_id_first():
    graph = {**ring(5), node(9): (node(8),), node(8): (node(9),)}
    assert len(edges(graph)) == 6
    assert all(a < b for a, b in edges(graph))


def test_rates_of_neighbours_give_every_node_of_a_regular_graph_the_same_share():
    rates = neighbour_rates(ring(7), 3.0)
    for i in range(7):
        assert sum(rate for pair, rate in rates.items() if node(i) in pair) == pytest.approx(3.0)
    assert sum(uniform_rates(edges(ring(7))).values()) == pytest.approx(1.0)
