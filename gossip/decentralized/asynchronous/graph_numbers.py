"""What a graph costs those who gossip over it: two resistances, chi1 and chi2.

An edge e = (i, j) fires `rates[e]` times per unit of time. With the Laplacian of these rates
`Lam = sum_e rate_e (e_i - e_j)(e_i - e_j)^T` and its pseudo-inverse `Lam+` (Nabli and Oyallon 2022, DADAO,
arXiv 2208.00779, section 3; Nabli, Belilovsky and Oyallon 2023, A2CiD2, arXiv 2306.08289, section 3.1)::

    chi1 = 1 / lambda_2(Lam)                                 worst case over the whole graph: how slowly it mixes
    chi2 = max over edges of 1/2 (e_i - e_j)^T Lam+ (e_i - e_j)    effective resistance of the worst edge

chi2 <= chi1 always. A ring has chi1 ~ n^2 but chi2 ~ n; acceleration turns a cost of chi1 into one of
sqrt(chi1 chi2), which is why it pays on rings and trees and not on expanders or the complete graph.

The cost is an eigendecomposition, O(n^3): 0.3 s of CPU at 1,000 nodes. Results are remembered by the edge
list, because in a simulation a thousand nodes ask for the same one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final

import attrs
import numpy as np

from gossip.decentralized.protocol import Wide
from gossip.decentralized.topology import Graph
from transport.identity import NodeId

REMEMBERED: Final = 32
"""Graphs whose numbers are kept; a run has one until its members change."""

Edge = tuple[int, int]


@attrs.frozen
class GraphNumbers:
    """chi1 and chi2 of one rated graph, in units of time; both infinite for a graph that is not connected."""

    chi1: float
    chi2: float


def laplacian(nodes: int, rates: Mapping[Edge, float]) -> Wide:
    """`sum_e rate_e (e_i - e_j)(e_i - e_j)^T`, shape (nodes, nodes); one entry of `rates` for each edge."""
    out = np.zeros((nodes, nodes))
    for (i, j), rate in rates.items():
        assert i != j, "an edge joins two nodes"
        out[i, j] -= rate
        out[j, i] -= rate
        out[i, i] += rate
        out[j, j] += rate
    return out


def numbers(nodes: int, rates: Mapping[Edge, float]) -> GraphNumbers:
    """chi1 and chi2 of the graph on nodes 0..nodes-1 whose edges fire at these rates."""
    if nodes < 2 or not rates:
        return GraphNumbers(math.inf, math.inf)
    values, vectors = np.linalg.eigh(laplacian(nodes, rates))
    if values[1] <= 1e-12 * values[-1]:
        return GraphNumbers(math.inf, math.inf)
    # Coordinates in which Lam+ is the identity: resistances are then squared distances.
    scaled = vectors[:, 1:] / np.sqrt(values[1:])
    ends = np.array(sorted(rates))
    across = scaled[ends[:, 0]] - scaled[ends[:, 1]]
    return GraphNumbers(float(1 / values[1]), float(0.5 * np.max(np.sum(across**2, axis=1))))


def edges(graph: Graph) -> list[tuple[NodeId, NodeId]]:
    """Each edge once, the lower id first, ascending."""
    return sorted({(min(a, b), max(a, b)) for a, near in graph.items() for b in near if a != b})


@lru_cache(maxsize=REMEMBERED)
def _numbers_of(nodes: int, rated: tuple[tuple[Edge, float], ...]) -> GraphNumbers:
    return numbers(nodes, dict(rated))


def numbers_of(graph: Graph, rates: Mapping[tuple[NodeId, NodeId], float]) -> GraphNumbers:
    """`numbers` of a graph of node ids, remembered; `rates` by edges as `edges` names them."""
    place = {node: index for index, node in enumerate(sorted(graph))}
    rated = tuple(((place[a], place[b]), rate) for (a, b), rate in sorted(rates.items()))
    return _numbers_of(len(place), rated)


def uniform_rates(pairs: Iterable[tuple[NodeId, NodeId]]) -> dict[tuple[NodeId, NodeId], float]:
    """Every edge with probability 1/|E| (DADAO): rates that add up to one event per unit."""
    pairs = list(pairs)
    return {pair: 1 / len(pairs) for pair in pairs}


def neighbour_rates(graph: Graph, rate: float) -> dict[tuple[NodeId, NodeId], float]:
    """`rate/2 (1/d_i + 1/d_j)` (A2CiD2): every node picks among its neighbours alike, `rate` exchanges per node and unit.

    For a regular graph its Laplacian is `rate (I - A/d)`.
    """
    return {
        (a, b): rate / 2 * (1 / len(set(graph[a]) - {a}) + 1 / len(set(graph[b]) - {b}))
        for a, b in edges(graph)
    }
