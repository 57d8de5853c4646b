"""One collective operation from the values to the digest that members vote on (trio driver).

`execute` is all that the group calls: it chooses the algorithm, runs it over a lane's links, and returns what to
sign. It proves nothing by itself: a result counts once every member has signed its root.
"""

from __future__ import annotations

import attrs
import trio

from gossip.collective.call import AUTO, EXACT, Array, Call, Kind, Reduce, check_call
from gossip.collective.mesh import Lane
from gossip.collective.ring import Reduction, RingPlace, ring_all_reduce
from gossip.errors import InvalidOperation

__all__ = ["Call", "Kind", "Outcome", "Reduce", "Timings", "execute"]


@attrs.frozen
class Timings:
    """How long the parts of an operation took at this member, in seconds."""

    linked_s: float
    """Until all links it needs were there."""
    moved_s: float
    """From then to the last value."""


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
    timings: Timings


async def execute(lane: Lane, call: Call, source: Array, out: Array) -> Outcome:
    """Carry out `call` with the other members of the lane's epoch.

    `source` is only read, so the operation can be repeated from it; `out` is undefined unless this returns.
    Cancellation leaves the lane's links unusable.

    Raises:
        InvalidOperation: the call cannot be carried out; nothing was sent.
        DescriptorMismatch: a member runs an operation with another descriptor.
        CollectiveAborted: the epoch has ended, or a member sent bytes of another operation.
        LinkClosed: a link broke.
    """
    check_call(call, source, out)
    if call.kind is not Kind.ALL_REDUCE or call.reduce not in {Reduce.SUM, Reduce.MEAN}:
        raise InvalidOperation(f"{call.kind} of {call.reduce} is not there yet")
    if call.wire != EXACT or call.algorithm not in {AUTO, "ring"}:
        raise InvalidOperation(f"no {call.algorithm} with {call.wire} yet")
    began = trio.current_time()
    place = await _ring_place(lane)
    linked = trio.current_time()
    mean = call.reduce is Reduce.MEAN
    reduction = Reduction(call.sequence, call.descriptor, mean=mean, weight=call.weight)
    result = await ring_all_reduce(place, reduction, source, out)
    timings = Timings(linked - began, trio.current_time() - linked)
    return Outcome(result.root, result.weight, source.size, "ring", timings)


async def _ring_place(lane: Lane) -> RingPlace:
    if lane.world == 1:
        return RingPlace.alone()
    following, previous = (lane.rank + 1) % lane.world, (lane.rank - 1) % lane.world
    return RingPlace(
        lane.rank,
        lane.world,
        lane.opened(following) or await lane.to(following),
        lane.accepted(previous) or await lane.from_(previous),
    )
