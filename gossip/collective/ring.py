"""Ring all-reduce over two bulk links: reduce-scatter, then all-gather (trio driver).

Patarasuk and Yuan 2009: with N members each value crosses each link 2(N-1)/N times, the least
possible. The vector is cut into N chunks; member r sends to r+1 and receives from r-1::

    reduce-scatter, step s = 0..N-2: receive chunk (r-s-1), add the own part, pass it on
    all-gather,     step s = 0..N-2: receive chunk (r-s), keep it, pass it on

After the reduce-scatter, member r owns the finished chunk (r+1): it alone divides (for a mean) and
hashes it, and everybody else takes over the owner's bytes and digest. So all members hold the same
bits, and certification costs 1/N of the data. The price: with three members or more, one that passes
on other bytes than it received is not caught by this operation's certificate, but by the state
digest in the next one's descriptor.

Chunks travel in segments, each with a header that names its place, so that receiving, adding and
sending overlap. The segments of one (phase, step) come in their order; how these streams mix is up to
the sender. A member passes on first what has just arrived, while it is in the processor's cache, and
within one machine begins a new segment of its own only when an earlier one has come back summed up.

Invariants:

* the source is only read: an operation can be repeated from it in another epoch;
* a receiver never waits for its own sender (a ring of such waits could deadlock): what cannot leave at
  once is kept in its place in `out`, so the memory needed beyond the caller's two buffers is one
  segment;
* every segment's header names the operation, so that bytes of an aborted one are never taken.

The order of additions in a chunk is the ring order starting at its first sender: deterministic for
a given member order, and the same for all members.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections import deque
from collections.abc import Iterator
from functools import cached_property
from typing import Any, Final, NamedTuple, NoReturn

import attrs
import numpy as np
import numpy.typing as npt
import trio
from blake3 import blake3

from gossip.collective.buffers import as_bytes
from gossip.collective.call import Reduce, chunk_bounds
from gossip.collective.certificate import result_root
from gossip.collective.elements import elements_of
from gossip.collective.formats.wire_format import RefusedPayload
from gossip.collective.segment import DIGEST_BYTES, Place, read_head, write_head
from gossip.errors import CollectiveAborted, DescriptorMismatch, InvalidOperation, NotFinite
from transport.bulk.striped import AnyLink
from transport.identity import NodeId

SEGMENT_BYTES: Final = 1 << 19
"""Segments travel whole; half a MiB keeps source, target and wire buffers in a core's cache."""

OWN_SEGMENTS: Final = 2
"""Of the own chunk on their way at once within one machine: enough to keep every link busy, and so
few that what lies between two members stays in the cache. Between machines there is no such limit."""

STALL_S: Final = 20.0
"""Longest wait for the next half MiB once data flows: 26 KiB/s is no link to reduce over."""
_REDUCE, _GATHER = 0, 1
_OWN = "not all values are finite"
_NOT_FINITE = "values that are not finite"
_COMBINE: Final[dict[Reduce, np.ufunc]] = {
    Reduce.SUM: np.add,
    Reduce.MEAN: np.add,
    Reduce.MIN: np.minimum,
    Reduce.MAX: np.maximum,
}

NOBODY: Final = NodeId(bytes(32))

Array = npt.NDArray[Any]


@attrs.frozen
class RingPlace:
    """Where this node stands in the ring, with its two links."""

    rank: int
    world: int
    to_next: AnyLink | None
    from_previous: AnyLink | None
    previous: NodeId = NOBODY
    """Who is blamed for what comes."""

    @classmethod
    def alone(cls) -> RingPlace:
        """The ring of one, which uses no links."""
        return cls(0, 1, None, None)

    def abort(self, reason: str) -> None:
        """Close both links hard."""
        for link in (self.to_next, self.from_previous):
            if link is not None:
                link.abort(reason)


@attrs.frozen
class Reduction:
    """What is computed.

    Attributes:
        sequence: number of the operation in its epoch.
        descriptor: digest that all members must agree on.
        reduce: how values become one.
        weight: this node's factor; 1.0 for a plain sum.
    """

    sequence: int
    descriptor: bytes
    reduce: Reduce = Reduce.SUM
    weight: float = 1.0


@attrs.frozen
class RingResult:
    """Digest over all chunks' digests, and the sum of the members' weights."""

    root: bytes
    weight: float


class _Segment(NamedTuple):
    phase: int
    step: int
    chunk: int
    start: int
    stop: int
    weight: float
    digest: bytes = b""


@attrs.define
class _Stream:
    """What is to come of one step of one phase: the rest of a chunk, in order."""

    chunk: int
    start: int | None
    """Of the next segment; None after the last."""


async def ring_all_reduce(
    place: RingPlace, reduction: Reduction, source: Array, out: Array
) -> RingResult:
    """Reduce `source` over the ring into `out` (both 1-D, contiguous, same type and length).

    Cancellation leaves both links unusable and `out` undefined; `source` is never written.

    Raises:
        InvalidOperation: values of 16 bits would be rounded at every hop, others cannot be reduced.
        NotFinite: values of this member are not finite, or become so when they are added.
        RefusedPayload: the neighbour sent values that are not finite.
        CollectiveAborted: a link failed or brought bytes of another operation.
        DescriptorMismatch: the neighbour runs an operation with another descriptor.
        LinkClosed: as it says.
    """
    if elements_of(source.dtype).narrow:
        raise InvalidOperation(
            f"a ring would round {source.dtype.name} at every hop: use another algorithm"
        )
    if place.world == 1:
        return _alone(reduction, source, out)
    async with trio.open_nursery() as nursery:
        run = _Run(place, reduction, source, out, nursery)
        await run.receive()
    return RingResult(_root(run.digests, run.total_weight), run.total_weight)


def _root(digests: list[bytes], weight: float) -> bytes:
    return result_root([*digests, struct.pack(">d", weight)])


def _alone(reduction: Reduction, source: Array, out: Array) -> RingResult:
    weight = reduction.weight
    if weight and not elements_of(source.dtype).finite(source):
        raise NotFinite(_OWN)
    if weight == 0.0:
        out.fill(0)
    elif reduction.reduce is not Reduce.SUM or weight == 1.0:
        np.copyto(out, source)
    else:
        np.multiply(source, weight, out=out)
    return RingResult(_root([blake3(as_bytes(out)).digest()], weight), weight)


class _Run:
    """One all-reduce at one member."""

    def __init__(
        self,
        place: RingPlace,
        reduction: Reduction,
        source: Array,
        out: Array,
        nursery: trio.Nursery,
    ) -> None:
        assert place.to_next is not None, "a ring of one uses no links"
        assert place.from_previous is not None, "a ring of one uses no links"
        rank, world = place.rank, place.world
        self._rank, self._world = rank, world
        self._to_next, self._from_previous = place.to_next, place.from_previous
        self._previous = place.previous
        self._reduction = reduction
        self._elements = elements_of(source.dtype)
        self._combine = _COMBINE[reduction.reduce]
        self._source, self._source_bytes = source, as_bytes(source)
        self._out, self._out_bytes = out, as_bytes(out)
        self._item = source.itemsize
        self._bounds = bounds = chunk_bounds(source.size, world)
        self._per_segment = max(1, SEGMENT_BYTES // source.itemsize)
        self._scaled = reduction.weight != 1.0
        self._silent = reduction.weight == 0.0  # 0 * NaN is NaN: what counts nothing is not touched
        longest = max(1, *(stop - start for start, stop in itertools.pairwise(bounds)))
        self._scratch = np.empty(min(self._per_segment, longest), source.dtype)
        self._scratch_bytes = as_bytes(self._scratch)
        self._streams = {
            (phase, step): _Stream(
                chunk := (rank - step - (phase == _REDUCE)) % world, bounds[chunk]
            )
            for phase in (_REDUCE, _GATHER)
            for step in range(world - 1)
        }
        # Bounded by the operation itself: every segment passes once in each phase.
        self._to_pass_on: deque[_Segment] = deque()
        self._own = self._own_segments()
        self._next_own = next(self._own, None)
        self._own_may_leave = OWN_SEGMENTS if place.to_next.local else math.inf
        self._nursery = nursery
        self._wake: trio.Event | None = None  # of `send`, once it has been needed
        self._all_received = False
        self._hasher = blake3()
        self.digests: list[bytes] = [b""] * world
        self.total_weight = 0.0

    # ---- sending ---------------------------------------------------------------------------

    def _own_segments(self) -> Iterator[_Segment]:
        """The own chunk; an empty one has one empty segment."""
        rank, weight = self._rank, self._reduction.weight
        first, last = self._bounds[rank], self._bounds[rank + 1]
        for start in range(first, last, self._per_segment) or [first]:
            stop = min(start + self._per_segment, last)
            yield _Segment(_REDUCE, 0, rank, start, stop, weight)

    def _ready(self) -> _Segment | None:
        """What is to be sent next, if anything."""
        if self._to_pass_on:
            return self._to_pass_on[0]
        return self._next_own if self._own_may_leave > 0 else None

    def _left(self, segment: _Segment) -> None:
        """What was ready has been taken by the link."""
        if segment is self._next_own:
            self._next_own = next(self._own, None)
            self._own_may_leave -= 1
        else:
            self._to_pass_on.popleft()

    def pump(self) -> None:
        """Send what is ready as far as that needs no waiting; the rest is for `send`."""
        link = self._to_next
        while not link.busy and (segment := self._ready()) is not None:
            if not link.try_send(self._header(segment), self._values(segment)):
                break
            self._left(segment)
        if link.waiting or self._ready() is not None:
            self._wake_sender()

    def _wake_sender(self) -> None:
        """Something has to wait before it can leave; a small operation comes through without the task for that."""
        if self._wake is None:
            self._wake = trio.Event()
            self._nursery.start_soon(self.send)
        self._wake.set()

    async def send(self) -> None:
        """Send what could not leave at once, until everything has."""
        link = self._to_next
        while True:
            self._wake = trio.Event()
            if link.waiting:
                await link.flush()
            elif (segment := self._ready()) is not None:
                header, values = self._header(segment), self._values(segment)
                self._left(segment)
                await link.send(header, values)
            elif self._all_received:
                return
            else:
                await self._wake.wait()

    def _header(self, segment: _Segment) -> bytes:
        reduction, place = self._reduction, Place(*segment[:4])
        return write_head(
            reduction.sequence, reduction.descriptor, place, segment.weight, segment.digest
        )

    def _values(self, segment: _Segment) -> memoryview:
        first, last = segment.start * self._item, segment.stop * self._item
        if segment is not self._next_own:
            return self._out_bytes[first:last]
        if not (self._silent or self._elements.finite(self._source[segment.start : segment.stop])):
            raise NotFinite(_OWN)
        if not self._scaled:
            return self._source_bytes[first:last]
        scaled = self._own_scaled[: segment.stop - segment.start]
        if self._silent:
            scaled.fill(0)
        else:
            own = self._source[segment.start : segment.stop]
            np.multiply(own, self._reduction.weight, out=scaled)
        return as_bytes(scaled)

    @cached_property
    def _own_scaled(self) -> Array:
        return np.empty_like(self._scratch)

    # ---- receiving -------------------------------------------------------------------------

    async def receive(self) -> None:
        """Take every segment of both phases.

        Once data flows, silence is a fault; the first segment waits for whoever is late.
        """
        self.pump()
        open_streams = len(self._streams)
        with trio.CancelScope() as patience:
            while open_streams:
                header, size = await self._from_previous.receive_head(SEGMENT_BYTES)
                segment = self._expected(header, size)
                if segment.phase == _REDUCE:
                    await self._reduce(segment)
                else:
                    await self._gather(segment)
                patience.deadline = trio.current_time() + STALL_S
                if segment.stop == self._bounds[segment.chunk + 1]:
                    open_streams -= 1
        if open_streams:
            raise CollectiveAborted(f"no data from the neighbour for {STALL_S:.0f} s")
        self._all_received = True
        if self._wake is not None:
            self._wake.set()

    def _expected(self, header: bytes, size: int) -> _Segment:
        """The segment that a header announces, which must be the next one of its stream."""
        reduction = self._reduction
        place, weight, digest = read_head(reduction.sequence, reduction.descriptor, header)
        phase, step, chunk, start = place
        stream = self._streams.get((phase, step))
        if stream is None or (stream.chunk, stream.start) != (chunk, start):
            raise CollectiveAborted("the neighbour is at another place of the operation")
        end = self._bounds[chunk + 1]
        stop = min(start + self._per_segment, end)
        if size != (stop - start) * self._item:
            raise DescriptorMismatch(
                f"segment of {size} bytes, expected {(stop - start) * self._item}"
            )
        stream.start = None if stop == end else stop
        if phase == _GATHER and stop == end and len(digest) != DIGEST_BYTES:
            raise CollectiveAborted("the neighbour sent a chunk without its digest")
        return _Segment(phase, step, chunk, start, stop, weight, digest)

    async def _reduce(self, segment: _Segment) -> None:
        step, chunk, start, stop = segment[1:5]
        arrived = self._scratch[: stop - start]
        await self._from_previous.receive_data(self._scratch_bytes[: arrived.nbytes])
        weight = segment.weight + self._reduction.weight
        target = self._out[start:stop]
        if step < self._world - 2:
            self._add(segment, arrived, arrived)
            self._pass_on(_Segment(_REDUCE, step + 1, chunk, start, stop, weight), arrived)
            return
        self._add(segment, arrived, target)
        if self._reduction.reduce is Reduce.MEAN and weight > 0:
            np.divide(target, weight, out=target)
        if chunk == 0:
            self.total_weight = weight
        self._hasher.update(as_bytes(target))
        digest = b""
        if stop == self._bounds[chunk + 1]:
            digest = self.digests[chunk] = self._hasher.digest()
        self._pass_on(_Segment(_GATHER, 0, chunk, start, stop, weight, digest))

    def _add(self, segment: _Segment, arrived: Array, total: Array) -> None:
        """`total` = `arrived` and the own values as they count; the place in `out` is free for use."""
        start, stop = segment.start, segment.stop
        if self._silent:
            if not self._elements.finite(arrived):
                raise RefusedPayload(self._previous, _NOT_FINITE)
            if total is not arrived:
                np.copyto(total, arrived)
            return
        own = self._source[start:stop]
        if self._scaled:
            own = np.multiply(own, self._reduction.weight, out=self._out[start:stop])
        if segment.weight == 0.0:  # nothing so far, which is no number to compare with
            np.copyto(total, own)
        else:
            with np.errstate(over="ignore", invalid="ignore"):
                self._combine(arrived, own, out=total)
        if not self._elements.finite(total):
            self._refuse(start, stop, total)

    def _refuse(self, start: int, stop: int, total: Array) -> NoReturn:
        """A sum is not finite: say because of whom."""
        own = self._source[start:stop]
        if not self._elements.finite(own):
            raise NotFinite(_OWN)
        # What came was finite only if the own values are so large that they carried it over the edge.
        limits = np.finfo(own.dtype)
        edge = float(limits.max) * float(limits.eps) / (8 * max(1.0, self._reduction.weight))
        if (np.abs(own[~np.isfinite(total)]) > edge).all():
            raise NotFinite("a sum of finite values became infinite")
        raise RefusedPayload(self._previous, _NOT_FINITE)

    async def _gather(self, segment: _Segment) -> None:
        _, step, chunk, start, stop, weight, digest = segment
        item = self._item
        await self._from_previous.receive_data(self._out_bytes[start * item : stop * item])
        if not self._elements.finite(self._out[start:stop]):
            raise RefusedPayload(self._previous, _NOT_FINITE)
        if chunk == 0:
            self.total_weight = weight  # of the one order of additions that everybody reports
        if stop == self._bounds[chunk + 1]:
            self.digests[chunk] = digest
        if step == 0:
            self._own_may_leave += 1  # the own chunk comes back in the gather's first step
        if step < self._world - 2:
            self._pass_on(segment._replace(step=step + 1))
        else:
            self.pump()

    def _pass_on(self, segment: _Segment, values: Array | None = None) -> None:
        """Send a segment from `values`, or else from its place in `out`."""
        if values is not None:
            if not self._to_pass_on and self._to_next.try_send(
                self._header(segment), as_bytes(values)
            ):
                if self._to_next.waiting:
                    self._wake_sender()
                return
            np.copyto(self._out[segment.start : segment.stop], values)
        self._to_pass_on.append(segment)
        self.pump()
