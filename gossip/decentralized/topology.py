"""Who is whose neighbour: graphs that every node derives alike from the run's id and the list of its nodes.

Problem: nodes that mix with neighbours need one graph, and there is nobody to draw it. Idea: sort the members, and draw
from a generator that is SHA-256 in counter mode over (kind, run, round): equal lists give equal graphs on every machine
and with every version of Python, whose own generator promises less. Nodes whose lists differ for a moment derive different
graphs; a protocol has to live with an edge of which one end does not know.

Undirected graphs are symmetric mappings, neighbours ascending. "one-peer-exponential" is directed: it maps a node to the
one that it sends to in this round.

Sources: random regular graphs by A. Steger, N. Wormald, "Generating random regular graphs quickly" (1999); preferential
attachment by A.-L. Barabási, R. Albert (1999); small worlds by D. Watts, S. Strogatz (1998); one-peer exponential graphs by
M. Assran et al., "Stochastic Gradient Push" (2019); Metropolis-Hastings weights by L. Xiao, S. Boyd (2004).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from types import MappingProxyType
from typing import Final, Literal, TypeVar, get_args

from gossip.errors import InvalidSettings
from transport.identity import NodeId

T = TypeVar("T")

Kind = Literal[
    "ring",
    "random-regular",
    "exponential",
    "one-peer-exponential",
    "barabasi-albert",
    "small-world",
    "full",
]
KINDS: Final[tuple[str, ...]] = get_args(Kind)
DIRECTED: Final = frozenset({"one-peer-exponential"})
CHANGING: Final = DIRECTED
"""Kinds that are another graph in every round by nature; `round_` makes "random-regular" one, too."""
REWIRING: Final = 0.1
"""Share of a small world's edges that lead anywhere: few enough to stay clustered, enough to be near."""
MAX_ATTEMPTS: Final = 1000
"""Draws of a random graph until one is simple and connected; a few are enough for every size but the smallest."""
SWAPS: Final = 3
"""Exchanges tried for each edge of a dense regular graph."""
REMEMBERED: Final = 64

Graph = Mapping[NodeId, tuple[NodeId, ...]]
Edges = list[set[int]]


class HashStream:
    """Uniform draws from SHA-256 over a seed and a counter: the same on every machine, for as long as SHA-256 is.

    Not `random.Random`: its methods may draw differently in another version of Python, and nodes of one
    swarm need not run the same.
    """

    def __init__(self, *seed: bytes) -> None:
        self._key = hashlib.sha256(b"".join(len(part).to_bytes(4, "big") + part for part in seed))
        self._counter = 0
        self._words: list[int] = []

    def _word(self) -> int:
        """64 uniform bits."""
        if not self._words:
            block = self._key.copy()
            block.update(self._counter.to_bytes(8, "big"))
            self._counter += 1
            digest = block.digest()
            self._words = [int.from_bytes(digest[at : at + 8], "big") for at in (24, 16, 8, 0)]
        return self._words.pop()

    def below(self, bound: int) -> int:
        """Uniform in [0, bound), without bias."""
        limit = (1 << 64) - (1 << 64) % bound
        while (word := self._word()) >= limit:
            pass
        return word % bound

    def uniform(self) -> float:
        """Uniform in [0, 1), a multiple of 2**-53."""
        return (self._word() >> 11) / (1 << 53)

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """A uniform permutation (Fisher and Yates)."""
        out = list(items)
        for at in range(len(out) - 1, 0, -1):
            other = self.below(at + 1)
            out[at], out[other] = out[other], out[at]
        return out


def graph(
    kind: str, nodes: Sequence[NodeId], run: bytes, *, degree: int = 4, round_: int = 0
) -> Graph:
    """The neighbours of every node; the same for all who know the same nodes.

    Args:
        kind: one of KINDS.
        nodes: all members of the run, this node included; in any order.
        run: the run's id.
        degree: neighbours of each node ("random-regular"; if nodes times degree is odd, one node has one fewer; "small-world",
            rounded up to even), or links that each new node brings ("barabasi-albert"). Others have no choice.
        round_: names one of many graphs of the kind; 0 for one that lasts.

    Raises:
        InvalidSettings: no such kind, or a degree below 1. For graphs that last see also `check_lasting`.
    """
    if kind not in KINDS:
        raise InvalidSettings(f"no graph {kind!r}", hint=f"there are: {', '.join(KINDS)}")
    if degree < 1:
        raise InvalidSettings(
            f"a degree of {degree}", hint="each node needs a neighbour: 1 or more"
        )
    return _graph(kind, tuple(sorted(nodes)), run, degree, round_)


@lru_cache(maxsize=REMEMBERED)
def _graph(kind: str, nodes: tuple[NodeId, ...], run: bytes, degree: int, round_: int) -> Graph:
    # Remembered, because the thousand cores of a simulation ask for the same graph.
    size = len(nodes)
    assert len(set(nodes)) == size, "a node is named twice"
    stream = HashStream(b"noded graph v1", kind.encode(), run, round_.to_bytes(8, "big"))
    edges = _MAKERS[kind](size, degree, round_, stream)
    return MappingProxyType(
        {node: tuple(nodes[j] for j in sorted(edges[i])) for i, node in enumerate(nodes)}
    )


def check_lasting(protocol: str, kind: str, degree: int) -> None:
    """Refuse a graph that is never connected among more than two nodes; for settings of protocols whose graph lasts.

    Pairs that are drawn anew in every round (`round_`) do mix; pairs that last never do: each half would
    train on what its own two nodes have. All other kinds are connected with any degree.

    Args:
        protocol: its name, for the message.
        kind: one of KINDS.
        degree: as `graph` has it.

    Raises:
        InvalidSettings: the graph would fall apart into pairs.
    """
    if kind == "random-regular" and degree == 1:
        raise InvalidSettings(
            f"protocol {protocol!r}: degree = 1 makes lasting pairs of a random-regular graph, which never learn of each other",
            hint='set degree = 2 or more (two nodes are a pair with any), or graph = "ring"',
        )


def metropolis(neighbours: Graph) -> Mapping[NodeId, Mapping[NodeId, float]]:
    """Metropolis-Hastings weights `1 / (1 + max(d_i, d_j))`, and the rest on the node itself (AA 3.1).

    Symmetric and doubly stochastic on any undirected graph, so that mixing with them keeps the mean of all nodes.
    """
    return {
        node: metropolis_row(node, len(near), {other: len(neighbours[other]) for other in near})
        for node, near in neighbours.items()
    }


def metropolis_row(
    me: NodeId, degree: int, degrees: Mapping[NodeId, int], self_weight: float = 0.0
) -> dict[NodeId, float]:
    """One node's weights, its own included, from its degree and those of the neighbours it mixes with.

    A neighbour that is left out of `degrees` leaves its weight to `me`. `self_weight` c > 0 gives the lazy variant
    `(1 - c) / max(d_i, d_j)`: c for oneself and the rest in equal parts where all degrees are equal; symmetric, too.
    """
    largest = {other: max(degree, theirs) for other, theirs in sorted(degrees.items())}
    # In fractions, so that what is left for oneself is the float of the exact value: nodes that all hear each other then
    # have equal weights, and so equal models.
    shared = 1 - Fraction(self_weight)
    values = {
        most: shared / most if self_weight else Fraction(1, 1 + most) for most in largest.values()
    }
    floats = {most: float(value) for most, value in values.items()}
    row = {other: floats[most] for other, most in largest.items()}
    times = Counter(largest.values())
    row[me] = float(1 - sum(times[most] * value for most, value in values.items()))
    return row


def components(neighbours: Graph) -> list[list[NodeId]]:
    """The connected parts of an undirected graph, largest first, each ascending."""
    left, parts = dict.fromkeys(sorted(neighbours)), []
    while left:
        part = [next(iter(left))]
        del left[part[0]]
        for node in part:  # grows while it is walked
            for other in neighbours[node]:
                if other in left:
                    del left[other]
                    part.append(other)
        parts.append(sorted(part))
    return sorted(parts, key=lambda part: (-len(part), part))


# ---- the kinds, over 0..size-1 -------------------------------------------------------------------


def _empty(size: int) -> Edges:
    return [set() for _ in range(size)]


def _link(edges: Edges, one: int, other: int) -> None:
    if one != other:
        edges[one].add(other)
        edges[other].add(one)


def _ring(size: int, _degree: int, _round: int, stream: HashStream) -> Edges:
    """One cycle through all, in random order: neighbours in it need not be near by id."""
    edges, order = _empty(size), stream.shuffled(range(size))
    for at in range(size):
        _link(edges, order[at], order[(at + 1) % size])
    return edges


def _full(size: int, _degree: int, _round: int, _stream: HashStream) -> Edges:
    return [set(range(size)) - {node} for node in range(size)]


def _exponential(size: int, _degree: int, _round: int, stream: HashStream) -> Edges:
    """Everybody at distance 1, 2, 4, ... on a circle, in both directions."""
    edges, order = _empty(size), stream.shuffled(range(size))
    hop = 1
    while hop < size:
        for at in range(size):
            _link(edges, order[at], order[(at + hop) % size])
        hop *= 2
    return edges


def _one_peer(size: int, _degree: int, round_: int, _stream: HashStream) -> Edges:
    """In round t node i sends to i + 2**(t mod ceil(log2 size)): after that many rounds, everybody has heard of everybody."""
    if size < 2:
        return _empty(size)
    # In the order of ids in every round: a circle drawn anew would lose the exact average at powers of two.
    hop = 1 << (round_ % (size - 1).bit_length())
    return [{(node + hop) % size} for node in range(size)]


def _random_regular(size: int, degree: int, _round: int, stream: HashStream) -> Edges:
    if degree >= size - 1:
        return _full(size, degree, 0, stream)
    if degree == 1:  # a matching; with an odd number of nodes one has no partner
        order, edges = stream.shuffled(range(size)), _empty(size)
        for at in range(0, size - 1, 2):
            _link(edges, order[at], order[at + 1])
        return edges
    if degree == 2:  # pairings would give several short cycles
        return _ring(size, degree, 0, stream)
    if 3 * degree > size:  # pairing free ends would end in a corner nearly every time
        while not _is_connected(swapped := _swapped(size, degree, stream)):
            pass  # each part would need more than a third of all nodes: as good as never
        return swapped
    for _ in range(MAX_ATTEMPTS):
        paired = _pair_stubs(size, degree, stream)
        if paired is not None and _is_connected(paired):
            return paired
    raise AssertionError(f"no connected {degree}-regular graph of {size} nodes was found")


def _pair_stubs(size: int, degree: int, stream: HashStream) -> Edges | None:
    """Steger and Wormald: pair free ends at random, put those back that would be a loop or a second edge, and go on."""
    edges = _empty(size)
    stubs = [node for node in range(size) for _ in range(degree)]
    if len(stubs) % 2:
        stubs.pop(stream.below(size) * degree)
    while stubs:
        order, left = stream.shuffled(stubs), []
        for at in range(0, len(order), 2):
            one, other = order[at], order[at + 1]
            if one == other or other in edges[one]:
                left += [one, other]
            else:
                _link(edges, one, other)
        if len(left) == len(stubs) and not _has_room(left, edges):
            return None
        stubs = sorted(left)
    return edges


def _swapped(size: int, degree: int, stream: HashStream) -> Edges:
    """A dense regular graph: that of the nearest on a circle, many of its pairs of edges exchanged."""
    edges, order = _empty(size), stream.shuffled(range(size))
    for hop in range(1, degree // 2 + 1):
        for at in range(size):
            _link(edges, order[at], order[(at + hop) % size])
    if degree % 2:  # and those across; with an odd number of nodes one is left
        for at in range(size // 2):
            _link(edges, order[at], order[at + size // 2])
    ends = [(one, other) for one in range(size) for other in sorted(edges[one]) if one < other]
    for _ in range(SWAPS * len(ends)):
        first, second = stream.below(len(ends)), stream.below(len(ends))
        (a, b), (c, d) = ends[first], ends[second]
        if stream.below(2):
            c, d = d, c
        if len({a, b, c, d}) == 4 and d not in edges[a] and b not in edges[c]:
            for one, other in ((a, b), (c, d)):
                edges[one].discard(other)
                edges[other].discard(one)
            _link(edges, a, d)
            _link(edges, c, b)
            ends[first], ends[second] = (a, d), (c, b)
    return edges


def _has_room(stubs: list[int], edges: Edges) -> bool:
    """Some two of the free ends may still be joined."""
    nodes = sorted(set(stubs))
    return any(other not in edges[one] for at, one in enumerate(nodes) for other in nodes[at + 1 :])


def _is_connected(edges: Edges) -> bool:
    seen, reached = {0}, [0]
    for node in reached:  # grows while it is walked
        fresh = edges[node] - seen
        seen |= fresh
        reached += sorted(fresh)
    return len(reached) == len(edges)


def _barabasi_albert(size: int, degree: int, _round: int, stream: HashStream) -> Edges:
    """Begins with a star of degree + 1 nodes; each further one links to `degree` others, drawn in proportion to their links."""
    edges, order = _empty(size), stream.shuffled(range(size))
    first = min(degree, size - 1)
    ends: list[int] = []  # every node as often as it has links
    for at in range(1, first + 1):
        _link(edges, order[0], order[at])
        ends += [order[0], order[at]]
    for at in range(first + 1, size):
        chosen: list[int] = []
        while len(chosen) < first:
            other = ends[stream.below(len(ends))]
            if other not in chosen:
                chosen.append(other)
        for other in chosen:
            _link(edges, order[at], other)
            ends += [order[at], other]
    return edges


def _small_world(size: int, degree: int, _round: int, stream: HashStream) -> Edges:
    """A circle on which each is linked to its nearest, one in ten of the links led elsewhere; connected."""
    half = (degree + 1) // 2
    if 2 * half >= size - 1:
        return _full(size, degree, 0, stream)
    for _ in range(MAX_ATTEMPTS):
        edges, order = _empty(size), stream.shuffled(range(size))
        for hop in range(1, half + 1):
            for at in range(size):
                _link(edges, order[at], order[(at + hop) % size])
        for hop in range(1, half + 1):
            for at in range(size):
                one, near = order[at], order[(at + hop) % size]
                if stream.uniform() >= REWIRING or len(edges[one]) >= size - 1:
                    continue
                while (far := stream.below(size)) == one or far in edges[one]:
                    pass
                edges[one].discard(near)
                edges[near].discard(one)
                _link(edges, one, far)
        if _is_connected(edges):
            return edges
    raise AssertionError(f"no connected small world of {size} nodes was found")


_MAKERS: Final[Mapping[str, Callable[[int, int, int, HashStream], Edges]]] = {
    "ring": _ring,
    "random-regular": _random_regular,
    "exponential": _exponential,
    "one-peer-exponential": _one_peer,
    "barabasi-albert": _barabasi_albert,
    "small-world": _small_world,
    "full": _full,
}
