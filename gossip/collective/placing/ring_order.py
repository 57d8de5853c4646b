"""In which order members stand in a ring, so that its slowest link is as fast as can be.

Every link of a ring carries the same bytes at the same time: the slowest one sets the pace, and how fast the
others are makes no difference (minimising the sum of times, as a travelling salesman would, can
choose a ring that is several times slower). This is the bottleneck travelling salesman problem: exact up to
`EXACT` members by asking for each rate, fastest first, whether its links alone make a ring (Held and
Karp's table of subsets); beyond that, an insertion of each member where it hurts least, improved by moving
members one at a time.

A pure function of its arguments: members that agree on the rates agree on the order. It begins with the
lowest id, whatever order the members came in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transport.identity import NodeId

EXACT = 10
"""Members up to which the best order is found: some 10,000 subsets, tens of milliseconds."""

Rate = Callable[[NodeId, NodeId], float]
"""Bytes per second from one member to another; not the same in both directions, as a rule."""


def ring_order(members: Sequence[NodeId], rate: Rate) -> tuple[NodeId, ...]:
    """The members in the order in which each sends to the next, the last to the first."""
    nodes = sorted(members)
    if len(nodes) <= 2:
        return tuple(nodes)
    rates = [[rate(a, b) if a != b else 0.0 for b in nodes] for a in nodes]
    order = _exact(rates) if len(nodes) <= EXACT else _inserted(rates)
    return tuple(nodes[index] for index in order)


def slowest_link(order: Sequence[NodeId], rate: Rate) -> float:
    """The rate that this ring gets from end to end; infinite for a ring of one."""
    if len(order) < 2:
        return float("inf")
    following = [*order[1:], order[0]]
    return min(rate(a, b) for a, b in zip(order, following, strict=True))


def _exact(rates: list[list[float]]) -> list[int]:
    """The best of all rings, by bisecting over the rates that occur."""
    levels = sorted({value for row in rates for value in row})
    low, high = 0, len(levels) - 1
    best = _ring_above(rates, levels[0])
    assert best is not None, "any order is a ring at the lowest rate"
    while low < high:
        middle = (low + high + 1) // 2
        found = _ring_above(rates, levels[middle])
        if found is None:
            high = middle - 1
        else:
            low, best = middle, found
    return best


def _ring_above(rates: list[list[float]], least: float) -> list[int] | None:
    """A ring of links that have at least this rate; None when there is none."""
    count = len(rates)
    follows = [
        sum(1 << b for b in range(count) if a != b and rates[a][b] >= least) for a in range(count)
    ]
    # ends[s]: members at which a path from 0 through exactly the members of s can end.
    ends = [0] * (1 << count)
    ends[1] = 1
    for subset in range(1, 1 << count, 2):
        reached = ends[subset]
        for end in range(count):
            if reached >> end & 1:
                onward = follows[end] & ~subset
                while onward:
                    bit = onward & -onward
                    ends[subset | bit] |= bit
                    onward ^= bit
    subset = (1 << count) - 1
    last = next((n for n in range(count) if ends[subset] >> n & 1 and follows[n] & 1), None)
    if last is None:
        return None
    order = [last]
    while len(order) < count:
        subset ^= 1 << order[-1]
        order.append(
            next(n for n in range(count) if ends[subset] >> n & 1 and follows[n] >> order[-1] & 1)
        )
    return order[::-1]


def _inserted(rates: list[list[float]]) -> list[int]:
    """Good, not best: see the module."""
    order = [0, 1]
    for index in range(2, len(rates)):
        order = _with(rates, order, index)
    for _ in range(4):  # it settles after one or two
        before = _quality(rates, order)
        for index in range(1, len(rates)):
            order = _with(rates, [other for other in order if other != index], index)
        if _quality(rates, order) <= before:
            break
    return order


def _with(rates: list[list[float]], order: list[int], index: int) -> list[int]:
    """`order` with a member put where the slowest links stay fastest."""
    places = [[*order[:at], index, *order[at:]] for at in range(1, len(order) + 1)]
    return max(places, key=lambda ring: _quality(rates, ring))


def _quality(rates: list[list[float]], order: list[int]) -> tuple[float, ...]:
    """The slowest links of a ring, slowest first: of two rings the greater is the better one."""
    links = (rates[a][b] for a, b in zip(order, [*order[1:], order[0]], strict=True))
    return tuple(sorted(links)[:8])
