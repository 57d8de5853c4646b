"""One collective operation from the values to the digest that members vote on (trio driver).

`execute` is all that the group calls: it chooses the algorithm, runs it over a lane's links, and returns what to
sign. It proves nothing by itself: a result counts once every member has signed its root.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import attrs
import numpy as np
import trio

from gossip.collective.agreement.certificate import result_root
from gossip.collective.algorithms.butterfly import butterfly
from gossip.collective.algorithms.chain import chain
from gossip.collective.algorithms.doubling import partners, recursive_doubling
from gossip.collective.algorithms.hierarchical import hierarchical, talks_to
from gossip.collective.algorithms.ring import Reduction, RingPlace, ring_all_reduce
from gossip.collective.call import Array, Call, Kind, Reduce, check_call, result_length
from gossip.collective.choice import DOUBLE_STAR_HUBS, Algorithm, choose
from gossip.collective.first_error import first_error
from gossip.collective.links.exchange import Links
from gossip.collective.links.mesh import Lane
from gossip.errors import InvalidOperation

__all__ = ["Call", "Kind", "Outcome", "Reduce", "execute"]


@attrs.frozen
class Outcome:
    """What this member got, to be signed."""

    root: bytes
    """Digest of the result, the same at all members that hold the same."""
    weight: float
    """Sum of the members' weights; of kinds that do not reduce, the number of members."""
    length: int
    """Values at the start of `out` that are the result."""
    algorithm: str


async def execute(lane: Lane, call: Call, source: Array, out: Array) -> Outcome:
    """Carry out `call` with the other members of the lane's epoch.

    `source` is only read, so the operation can be repeated from it; `out` is undefined unless this returns.
    Cancellation leaves the lane's links unusable.

    Raises:
        InvalidOperation: the call cannot be carried out; nothing was sent. No retry can help.
        NotFinite: values of this member, or a sum that it made, are not finite. No retry can help.
        RefusedPayload: a member sent values that are none; it names the member.
        DescriptorMismatch: a member runs an operation with another descriptor. No retry can help.
        CollectiveAborted: the epoch has ended, or a member sent bytes of another operation.
        LinkClosed: a link broke.
    """
    check_call(call, source, out)
    rank, world = lane.rank, lane.world
    length = result_length(call.kind, source.size, rank, world)
    if out.size < length:
        raise InvalidOperation(f"the result has {length} values, out has room for {out.size}")
    if call.kind is Kind.BARRIER:
        # That all have begun is what their votes say; there is nothing to send.
        await trio.lowlevel.checkpoint()  # a loop of these shall not keep all else from running
        return Outcome(result_root([]), float(world), 0, "votes")
    algorithm = choose(call, source.dtype, source.nbytes, world)
    hub = _hub(lane.epoch.members, call)
    try:
        links = await _links(lane, call, algorithm, hub)
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is looked for
            root, weight = await _RUNNERS[algorithm](links, call, source, out)
    except ExceptionGroup as group:  # one with a cancellation in it is left to who has cancelled
        raise first_error(group) from None
    return Outcome(root, weight, length, algorithm)


# ---- who talks to whom ---------------------------------------------------------------------------


async def _links(lane: Lane, call: Call, algorithm: Algorithm, hub: int) -> Links:
    rank, world = lane.rank, lane.world
    others = [other for other in range(world) if other != rank]
    out, into = others, others
    match algorithm:
        case Algorithm.RING:
            previous, following = _neighbours(call, rank, world)
            out, into = [following], [previous]
        case Algorithm.CHAIN:
            out, into = [(rank + 1) % world], [(rank - 1) % world]
        case Algorithm.STAR | Algorithm.DOUBLE_STAR:
            hubs = [hub] if algorithm is Algorithm.STAR else _hubs(world)
            out = into = others if rank in hubs else hubs
        case Algorithm.DOUBLING:
            out = into = partners(rank, world)
        case Algorithm.HIERARCHICAL:
            out = into = talks_to(call.sites, rank)
    if world == 1:
        out = into = []
    return await _opened(lane, out, into)


async def _opened(lane: Lane, out: Iterable[int], into: Iterable[int]) -> Links:
    for rank in out:
        lane.prepare(rank)
    return Links(
        lane.epoch.members,
        lane.rank,
        {rank: lane.opened(rank) or await lane.to(rank) for rank in out},
        {rank: lane.accepted(rank) or await lane.from_(rank) for rank in into},
        lane.workspace,
    )


def _hub(members: tuple[bytes, ...], call: Call) -> int:
    """Who is in the middle of a star: who broadcasts, or else the first member."""
    if call.root is None:
        return 0
    if call.root not in members:
        raise InvalidOperation("who is to broadcast is no member of the epoch")
    return members.index(call.root)


def _hubs(world: int) -> list[int]:
    """Who are in the middle of a double star."""
    return list(range(min(world, DOUBLE_STAR_HUBS)))


def _neighbours(call: Call, rank: int, world: int) -> tuple[int, int]:
    """Who is before and after a member in the ring."""
    order = call.order or tuple(range(world))
    if sorted(order) != list(range(world)):
        raise InvalidOperation(f"{order} is no order of {world} members")
    at = order.index(rank)
    return order[at - 1], order[(at + 1) % world]


# ---- the algorithms --------------------------------------------------------------------------------

Result = tuple[bytes, float]


async def _ring(links: Links, call: Call, source: Array, out: Array) -> Result:
    reduction = Reduction(
        call.sequence, call.descriptor, call.reduce, call.weight, careful=call.careful
    )
    previous, following = _neighbours(call, links.rank, links.world)
    place = RingPlace(
        call.order.index(links.rank) if call.order else links.rank,
        links.world,
        links.out.get(following),
        links.into.get(previous),
        links.names[previous],
    )
    result = await ring_all_reduce(place, reduction, source, out)
    return result.root, result.weight


async def _star(links: Links, call: Call, source: Array, out: Array) -> Result:
    return await butterfly(links, call, source, out, owners=(_hub(links.names, call),))


async def _double_star(links: Links, call: Call, source: Array, out: Array) -> Result:
    return await butterfly(links, call, source, out, owners=_hubs(links.world), owners_word=True)


async def _chain(links: Links, call: Call, source: Array, out: Array) -> Result:
    return await chain(links, call, _hub(links.names, call), source, out)


async def _hierarchical(links: Links, call: Call, source: Array, out: Array) -> Result:
    return await hierarchical(links, call, call.sites, source, out)


_RUNNERS: Final[dict[Algorithm, Callable[[Links, Call, Array, Array], Awaitable[Result]]]] = {
    Algorithm.RING: _ring,
    Algorithm.BUTTERFLY: butterfly,
    Algorithm.STAR: _star,
    Algorithm.DOUBLE_STAR: _double_star,
    Algorithm.DOUBLING: recursive_doubling,
    Algorithm.CHAIN: _chain,
    Algorithm.HIERARCHICAL: _hierarchical,
}
