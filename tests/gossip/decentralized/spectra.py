"""How fast a graph mixes, in figures that tests compare runs with."""

from __future__ import annotations

import numpy as np

from gossip.decentralized.topology import metropolis


def mixing_matrix(neighbours):
    """`metropolis` as a matrix over the nodes in ascending order, shape (n, n)."""
    nodes = sorted(neighbours)
    at = {node: i for i, node in enumerate(nodes)}
    matrix = np.zeros((len(nodes), len(nodes)))
    for node, row in metropolis(neighbours).items():
        for other, weight in row.items():
            matrix[at[node], at[other]] = weight
    return matrix


def second_eigenvalue(matrix):
    """Largest modulus but one of a symmetric mixing matrix: what disagreement shrinks by in one round at least."""
    values = np.sort(np.abs(np.linalg.eigvalsh(matrix)))
    return float(values[-2]) if values.size > 1 else 0.0
