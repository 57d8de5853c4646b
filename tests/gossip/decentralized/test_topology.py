"""Graphs: what each kind promises for any number of nodes, that all nodes draw the same, and their weights in exact fractions."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossip.decentralized.kit.rehearsal import node_id
from gossip.decentralized.topology import (
    DIRECTED,
    KINDS,
    HashStream,
    check_lasting,
    components,
    graph,
    metropolis,
    metropolis_row,
)
from gossip.errors import InvalidSettings
from gossip.protocol import installed_protocols, load_plugin
from tests.gossip.decentralized.spectra import mixing_matrix, second_eigenvalue

RUN = hashlib.sha256(b"a run").digest()
UNDIRECTED = sorted(set(KINDS) - DIRECTED)


def ids(count):
    return [node_id(index) for index in range(count)]


@pytest.mark.parametrize("kind", UNDIRECTED)
@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 3))
def test_undirected_graphs_are_symmetric_simple_and_connected(kind, count, degree, round_):
    edges = graph(kind, ids(count), RUN, degree=degree, round_=round_)
    assert list(edges) == sorted(ids(count))
    for node, near in edges.items():
        assert list(near) == sorted(set(near)), "ascending, each once"
        assert node not in near
        assert all(node in edges[other] for other in near)
    if not (kind == "random-regular" and degree == 1):
        assert len(components(edges)) == 1


@given(st.integers(2, 60), st.integers(1, 60), st.integers(0, 5))
def test_regular_graphs_are_regular(count, degree, round_):
    edges = graph("random-regular", ids(count), RUN, degree=degree, round_=round_)
    degrees = Counter(len(near) for near in edges.values())
    expected = min(degree, count - 1)
    if expected == 2 or count * expected % 2 == 0:
        assert degrees == {expected: count}
    else:
        assert degrees == {expected: count - 1, expected - 1: 1}


def test_each_kind_has_the_degrees_that_it_is_known_for():
    degrees = {
        kind: sorted(len(near) for near in graph(kind, ids(50), RUN, degree=2).values())
        for kind in KINDS
    }
    assert set(degrees["ring"]) == {2}
    assert set(degrees["full"]) == {49}
    assert set(degrees["exponential"]) == {12}, "1, 2, 4, ..., 32 to either side"
    assert set(degrees["one-peer-exponential"]) == {1}
    assert sum(degrees["small-world"]) == 50 * 2
    hubs = degrees["barabasi-albert"]
    assert sum(hubs) == 2 * (2 + 47 * 2), "each of the last 47 nodes brings 2 links to a star of 3"
    assert hubs[0] >= 1
    assert hubs[-1] >= 3 * np.median(hubs), "some have many more links than most"


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_equal_lists_in_any_order_give_equal_graphs(kind):
    forward = graph(kind, ids(33), RUN, degree=3, round_=2)
    assert graph(kind, ids(33)[::-1], RUN, degree=3, round_=2) == forward


def test_runs_rounds_and_kinds_draw_differently():
    drawn = [
        graph("random-regular", ids(20), RUN),
        graph("random-regular", ids(20), RUN, round_=1),
        graph("random-regular", ids(20), bytes(32)),
        graph("random-regular", ids(21)[1:], RUN),
        graph("small-world", ids(20), RUN),
    ]
    assert len({str(one) for one in drawn}) == len(drawn)


GOLDEN = {
    "ring": "1f13e662fcd1382b",
    "random-regular": "eae5e028c53e6063",
    "exponential": "bb12103d4847a8b5",
    "one-peer-exponential": "fde82cc8cedb37b4",
    "barabasi-albert": "ac3a61ac83dda222",
    "small-world": "0e6d7224641ca92d",
    "full": "01b6cdf49941e203",
}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_golden_graphs(kind):
    """Nodes of any version of Python and of this project have to draw these."""
    edges = graph(kind, ids(12), RUN, degree=3, round_=1)
    digest = hashlib.sha256(b"|".join(b"".join([node, *near]) for node, near in edges.items()))
    assert digest.hexdigest()[:16] == GOLDEN[kind]


def test_one_peer_graphs_average_exactly_at_powers_of_two():
    for count in (2, 8, 32):
        values = np.random.default_rng(count).standard_normal(count)
        current = values.copy()
        order = sorted(ids(count))
        for round_ in range(int(math.log2(count))):
            edges = graph("one-peer-exponential", order, RUN, round_=round_)
            following = current / 2
            for i, node in enumerate(order):
                following[order.index(edges[node][0])] += current[i] / 2
            current = following
        np.testing.assert_allclose(current, values.mean(), atol=1e-15)


WITH_GRAPH = [
    protocol
    for protocol in map(load_plugin, sorted(installed_protocols()))
    if {"graph", "degree"} <= set(protocol.Settings.__struct_fields__)
]


@pytest.mark.parametrize("protocol", WITH_GRAPH, ids=lambda protocol: protocol.name)
def test_every_protocol_refuses_pairs_that_last(protocol):
    """Of a random-regular graph of degree 1 each pair would train for itself for ever, with nothing to tell."""
    pairs = {"graph": "random-regular", "degree": 1}
    with pytest.raises(InvalidSettings, match="lasting pairs") as refused:
        protocol.parse_settings(pairs)
    assert "degree = 2" in refused.value.hint
    protocol.parse_settings({**pairs, "degree": 2})
    protocol.parse_settings({**pairs, "graph": "barabasi-albert"})


@pytest.mark.parametrize("kind", UNDIRECTED)
@pytest.mark.parametrize("degree", [1, 2, 3])
@pytest.mark.parametrize("count", [2, 3, 4, 7, 8, 100, 400])
def test_what_is_not_refused_is_connected(kind, degree, count):
    try:
        check_lasting("dpsgd", kind, degree)
    except InvalidSettings:
        assert count == 2 or len(components(graph(kind, ids(count), RUN, degree=degree))) > 1
    else:
        assert len(components(graph(kind, ids(count), RUN, degree=degree))) == 1


def test_an_unknown_kind_and_no_degree_are_refused():
    with pytest.raises(InvalidSettings, match="'star'") as raised:
        graph("star", ids(3), RUN)
    assert raised.value.hint.startswith("there are: ring, ")
    with pytest.raises(InvalidSettings, match="degree"):
        graph("ring", ids(3), RUN, degree=0)


# ---- weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", UNDIRECTED)
@settings(max_examples=30)
@given(st.integers(1, 24), st.integers(1, 5), st.sampled_from([0.0, 0.5, 0.25]))
def test_weights_are_symmetric_and_doubly_stochastic_in_fractions(kind, count, degree, own):
    edges = graph(kind, ids(count), RUN, degree=degree)
    share = Fraction(own)

    def weight(one, other):
        largest = max(len(edges[one]), len(edges[other]))
        return (1 - share) / largest if own else Fraction(1, 1 + largest)

    for node, near in edges.items():
        exact = {other: weight(node, other) for other in near}
        exact[node] = 1 - sum(exact.values())
        assert exact[node] > 0
        assert all(weight(node, other) == weight(other, node) for other in near)
        row = metropolis_row(node, len(near), {other: len(edges[other]) for other in near}, own)
        assert row.keys() == exact.keys()
        for other, value in exact.items():
            assert row[other] == float(value)
        if own and near and all(len(edges[other]) == len(near) for other in near):
            assert row[node] == own


@pytest.mark.parametrize("kind", UNDIRECTED)
def test_the_matrix_in_floating_point(kind):
    edges = graph(kind, ids(32), RUN, degree=3)
    matrix = mixing_matrix(edges)
    assert (matrix == matrix.T).all()
    np.testing.assert_allclose(matrix.sum(axis=0), 1, atol=1e-15)
    assert (matrix.diagonal() > 0).all()
    assert metropolis(edges)[min(edges)][min(edges)] == matrix[0, 0]


def relative_error(matrix, rounds, seed):
    values = np.random.default_rng(seed).standard_normal((matrix.shape[0], 16))
    start = np.linalg.norm(values - values.mean(axis=0))
    mean = values.mean(axis=0)
    for _ in range(rounds):
        values = matrix @ values
    assert np.abs(values.mean(axis=0) - mean).max() < 1e-12, "the mean is conserved"
    return float(np.linalg.norm(values - mean) / start)


def test_disagreement_shrinks_by_the_second_eigenvalue_at_least():
    for kind in UNDIRECTED:
        matrix = mixing_matrix(graph(kind, ids(32), RUN, degree=4))
        factor = second_eigenvalue(matrix)
        assert factor < 1
        for rounds in (1, 5, 20):
            assert relative_error(matrix, rounds, 3) <= factor**rounds + 1e-12


def test_a_ring_is_slow_and_a_random_regular_graph_is_fast():
    """Twenty rounds among 32: a fifth of the disagreement is left on the ring, a thousandth with five neighbours."""
    ring = mixing_matrix(graph("ring", ids(32), RUN))
    regular = mixing_matrix(graph("random-regular", ids(32), RUN, degree=5))
    assert np.mean([relative_error(ring, 20, s) for s in range(8)]) == pytest.approx(0.3, abs=0.1)
    assert np.mean([relative_error(regular, 20, s) for s in range(8)]) < 0.004


def test_equal_parts_on_hubs_agree_on_the_wrong_point_and_metropolis_does_not():
    edges = graph("barabasi-albert", ids(32), RUN, degree=2)
    order = sorted(edges)
    uniform = np.zeros((32, 32))
    for i, node in enumerate(order):
        for other in (node, *edges[node]):
            uniform[i, order.index(other)] = 1 / (1 + len(edges[node]))
    values = np.random.default_rng(0).standard_normal((32, 64))
    spread = values.std(axis=0).mean()
    wrong = np.linalg.matrix_power(uniform, 500) @ values
    right = np.linalg.matrix_power(mixing_matrix(edges), 500) @ values
    assert np.abs(wrong - values.mean(axis=0)).mean() > 0.03 * spread
    assert np.abs(right - values.mean(axis=0)).max() < 1e-10


# ---- draws ---------------------------------------------------------------------------------------


def test_golden_draws():
    stream = HashStream(b"seed")
    block = hashlib.sha256(b"\0\0\0\x04seed" + bytes(8)).digest()
    words = [int.from_bytes(block[at : at + 8], "big") for at in (0, 8, 16, 24)]
    assert [stream.below(1 << 64) for _ in range(4)] == words
    second = hashlib.sha256(b"\0\0\0\x04seed" + (1).to_bytes(8, "big")).digest()
    assert stream.uniform() == (int.from_bytes(second[:8], "big") >> 11) / 2**53


@given(st.integers(1, 1000), st.binary(max_size=8))
def test_draws_stay_in_their_bounds(bound, seed):
    stream = HashStream(seed)
    assert all(0 <= stream.below(bound) < bound for _ in range(20))
    assert 0 <= stream.uniform() < 1
    assert sorted(stream.shuffled(range(bound))) == list(range(bound))


def test_draws_are_uniform():
    stream, counts = HashStream(b"chi"), Counter()
    for _ in range(6000):
        counts[stream.below(6)] += 1
    chi_square = sum((count - 1000) ** 2 / 1000 for count in counts.values())
    assert chi_square < 20, (
        "5 degrees of freedom: above 20 once in a thousand seeds; this is one seed"
    )
    orders = Counter(tuple(stream.shuffled("abc")) for _ in range(6000))
    assert sum((count - 1000) ** 2 / 1000 for count in orders.values()) < 20


def test_a_boundary_word_is_drawn_again(monkeypatch):
    stream = HashStream(b"x")
    words = iter([(1 << 64) - 1, 5])
    monkeypatch.setattr(stream, "_word", lambda: next(words))
    assert stream.below(3) == 2, "the last incomplete multiple of 3 would favour 0"
