"""Whether the swarm hangs together: the parts of the graph of those who reached each other lately."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import attrs

__all__ = ["Contacts", "Parts"]


@attrs.frozen
class Parts:
    """Connected parts of a graph."""

    count: int
    largest: int
    """Nodes of the largest part."""
    alone: int
    """Nodes that met nobody."""


class Contacts:
    """Who reached whom since the last look (a message delivered in either direction is an edge)."""

    def __init__(self, nodes: int) -> None:
        self._nodes = nodes
        self._edges: set[int] = set()

    def met(self, one: int, other: int) -> None:
        """A message from one to the other was delivered."""
        if one != other:
            self._edges.add(min(one, other) * self._nodes + max(one, other))

    def look(self, alive: Sequence[int]) -> Parts:
        """The parts that the nodes which are there form, and begin anew."""
        root = {node: node for node in alive}

        def find(node: int) -> int:
            while root[node] != node:
                root[node] = root[root[node]]
                node = root[node]
            return node

        for edge in self._edges:
            one, other = divmod(edge, self._nodes)
            if one in root and other in root:
                root[find(one)] = find(other)
        self._edges.clear()
        sizes = Counter(find(node) for node in alive)
        return Parts(
            len(sizes), max(sizes.values(), default=0), sum(size == 1 for size in sizes.values())
        )
