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
sending overlap. The segments of one (phase, step) come in their order, cut as the chunk's first sender cut them, or smaller: through shared
memory they are larger than a connection carries, and who passes them on to one cuts them again. How these streams mix is up to the sender. A segment is taken in pieces: received, added
and sealed for the next member before the next piece is looked at. A member passes on first what has just
arrived, and within one machine begins a new segment of its own only when an earlier one has come back summed up.

Invariants:

* the source is only read: an operation can be repeated from it in another epoch;
* a receiver never waits for its own sender (a ring of such waits could deadlock): what cannot leave at
  once is kept in its place in `out`, so the memory needed beyond the caller's two buffers is one
  piece, and where values are weighted a segment;
* every segment's header names the operation, so that bytes of an aborted one are never taken;
* a chunk that is not finite is never passed on as a result by its owner. What is not finite stays so in a sum, so the owner
  finds it; whose it is, an attempt finds that looks at everything everywhere (`Reduction.careful`). In a minimum it would be lost, so there
  everything is looked at from the beginning.

The order of additions in a chunk is the ring order starting at its first sender: deterministic for
a given member order, and the same for all members.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections import deque
from collections.abc import Iterator
from typing import Any, Final, NamedTuple, NoReturn

import attrs
import numpy as np
import numpy.typing as npt
import trio
from blake3 import blake3

from gossip.collective.agreement.certificate import result_root
from gossip.collective.call import Reduce, chunk_bounds
from gossip.collective.elements import COMBINE, elements_of
from gossip.collective.formats.wire_format import RefusedPayload
from gossip.collective.links.buffers import as_bytes
from gossip.collective.links.segment import DIGEST_BYTES, Place, read_head, write_head
from gossip.errors import CollectiveAborted, DescriptorMismatch, InvalidOperation, NotFinite
from transport.bulk.shared import MAX_SHARED_BYTES
from transport.bulk.striped import AnyLink
from transport.identity import NodeId
from transport.secure.record import BULK_RECORD_BYTES, SHARED_RECORD_BYTES

PIECE_BYTES: Final = BULK_RECORD_BYTES
"""Of what comes over a network: half a MiB keeps source, target and wire buffers in a core's cache."""

SHARED_PIECE_BYTES: Final = SHARED_RECORD_BYTES
"""Of what comes through shared memory, where there are none: half as many calls are worth more than the cache (measured: 3 to 7 % from 8 MiB on)."""

SEGMENT_BYTES: Final = MAX_SHARED_BYTES
"""Largest segment, within one machine: beside its bytes, one costs a header, a notice and waking who waits for it."""

NETWORK_SEGMENT_BYTES: Final = PIECE_BYTES
"""Of the own segments between machines, where a member that has half of one can pass that on."""

OWN_SEGMENTS: Final = 2
"""Of the own chunk on their way at once within one machine: enough to keep every link busy, and so
few that what lies between two members stays in the cache. Between machines there is no such limit."""

STALL_S: Final = 20.0
"""Longest wait for the next half MiB once data flows: 26 KiB/s is no link to reduce over."""
PATIENCE_S: Final = 1.0
"""How much earlier than after `STALL_S` it may end."""
_REDUCE, _GATHER = 0, 1
_OWN = "not all values are finite"
_NOT_FINITE = "values that are not finite"
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
        careful: look at all values, to tell whose are not finite.
    """

    sequence: int
    descriptor: bytes
    reduce: Reduce = Reduce.SUM
    weight: float = 1.0
    careful: bool = False


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
        if not elements_of(out.dtype).finite(out):
            raise NotFinite(f"not all of {out.size} values times {weight} are finite")
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
        self._careful = reduction.careful or reduction.reduce in {Reduce.MIN, Reduce.MAX}
        self._combine = COMBINE[reduction.reduce]
        self._source, self._source_bytes = source, as_bytes(source)
        self._out, self._out_bytes = out, as_bytes(out)
        self._item = source.itemsize
        self._bounds = bounds = chunk_bounds(source.size, world)
        most = SEGMENT_BYTES if place.to_next.shares_memory else NETWORK_SEGMENT_BYTES
        self._per_segment = max(1, min(most, SEGMENT_BYTES) // source.itemsize)
        shared = place.from_previous.shares_memory
        self._per_piece = (SHARED_PIECE_BYTES if shared else PIECE_BYTES) // source.itemsize
        self._scaled = reduction.weight != 1.0
        self._silent = reduction.weight == 0.0  # 0 * NaN is NaN: what counts nothing is not touched
        longest = max(1, *(stop - start for start, stop in itertools.pairwise(bounds)))
        self._scratch = np.empty(min(self._per_piece, longest), source.dtype)
        self._scratch_bytes = as_bytes(self._scratch)
        self._own_scaled = self._scratch[:0]
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
        self._relaying = False  # a segment that arrives is being sealed for the next member
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

    def _pieces(self, segment: _Segment) -> Iterator[tuple[int, int]]:
        for start in range(segment.start, segment.stop, self._per_piece):
            yield start, min(start + self._per_piece, segment.stop)

    def _try_begin(self, segment: _Segment) -> bool:
        size = (segment.stop - segment.start) * self._item
        return self._to_next.try_begin(self._header(segment), size)

    def pump(self) -> None:
        """Send what is ready as far as that needs no waiting; the rest is for `send`."""
        link = self._to_next
        while not link.busy and (segment := self._ready()) is not None:
            if not self._try_begin(segment):
                break
            for start, stop in self._pieces(segment):
                link.put(self._values(segment, start, stop))
            link.end()
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
            if self._relaying:
                await self._wake.wait()
            elif link.waiting:
                await link.flush()
            elif (segment := self._ready()) is not None:
                values = self._values(segment, segment.start, segment.stop)
                self._left(segment)
                await link.send(self._header(segment), values)
            elif self._all_received:
                return
            else:
                await self._wake.wait()

    def _header(self, segment: _Segment) -> bytes:
        reduction, place = self._reduction, Place(*segment[:4])
        return write_head(
            reduction.sequence, reduction.descriptor, place, segment.weight, segment.digest
        )

    def _values(self, segment: _Segment, start: int, stop: int) -> memoryview:
        """Of a segment that has not left yet, what to send of it."""
        own = segment is self._next_own
        return self._own_values(start, stop) if own else self._kept(start, stop)

    def _kept(self, start: int, stop: int) -> memoryview:
        return self._out_bytes[start * self._item : stop * self._item]

    def _own_values(self, start: int, stop: int) -> memoryview:
        """The own values as they count; until the next call."""
        own = self._source[start:stop]
        if self._careful and not (self._silent or self._elements.finite(own)):
            raise NotFinite(_OWN)
        if not self._scaled:
            return self._source_bytes[start * self._item : stop * self._item]
        if len(self._own_scaled) < stop - start:
            self._own_scaled = np.empty(stop - start, own.dtype)
        scaled = self._own_scaled[: stop - start]
        if self._silent:
            scaled.fill(0)
        else:
            np.multiply(own, self._reduction.weight, out=scaled)
        return as_bytes(scaled)

    # ---- receiving -------------------------------------------------------------------------

    async def receive(self) -> None:
        """Take every segment of both phases.

        Once data flows, silence is a fault; the first segment waits for whoever is late.
        """
        self.pump()
        open_streams, moved = len(self._streams), -math.inf
        link = self._from_previous
        with trio.CancelScope() as patience:
            while open_streams:
                header, size = await link.receive_head()
                segment = self._expected(header, size)
                if segment.phase == _REDUCE:
                    await self._reduce(segment)
                else:
                    await self._gather(segment)
                # Not with every segment: moving a deadline costs as much as adding a small one.
                now = trio.current_time()
                if now >= moved + PATIENCE_S:
                    patience.deadline, moved = now + STALL_S, now
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
        stop = start + size // self._item
        if size % self._item or stop > end or (not size and start != end):
            raise DescriptorMismatch(
                f"segment of {size} bytes where {(end - start) * self._item} are to come"
            )
        stream.start = None if stop == end else stop
        if phase == _GATHER and stop == end and len(digest) != DIGEST_BYTES:
            raise CollectiveAborted("the neighbour sent a chunk without its digest")
        return _Segment(phase, step, chunk, start, stop, weight, digest)

    async def _reduce(self, segment: _Segment) -> None:
        _, step, chunk, start, stop, came, _ = segment
        weight = came + self._reduction.weight
        complete = step == self._world - 2  # with the own values, this member owning the chunk
        last = stop == self._bounds[chunk + 1]
        if complete:
            onward = _Segment(_GATHER, 0, chunk, start, stop, weight)
        else:
            onward = _Segment(_REDUCE, step + 1, chunk, start, stop, weight)
        # The digest in the head of a chunk's last segment is of what has not arrived yet.
        may_relay, relayed = not (complete and last) and self._is_here(segment), False
        for first, after in self._pieces(segment):
            arrived = self._scratch[: after - first]
            await self._from_previous.receive_data(self._scratch_bytes[: arrived.nbytes])
            if first == start:
                relayed = may_relay and self._begin_relay(onward)
            total = arrived if relayed and not complete else self._out[first:after]
            self._add(came, first, after, arrived, total)
            if (complete or self._careful) and not self._elements.finite(total):
                self._refuse(first, after, total)
            if complete:
                if self._reduction.reduce is Reduce.MEAN and weight > 0:
                    np.divide(total, weight, out=total)
                self._hasher.update(as_bytes(total))
            if relayed:
                self._to_next.put(as_bytes(total))
        if complete and chunk == 0:
            self.total_weight = weight
        if complete and last:
            digest = self.digests[chunk] = self._hasher.digest()
            onward = onward._replace(digest=digest)
        self._pass_on(onward, relayed=relayed)

    def _add(self, came: float, start: int, stop: int, arrived: Array, total: Array) -> None:
        """`total` = `arrived`, of weight `came`, and the own values as they count; the place in `out` is free for use."""
        if self._silent:
            if total is not arrived:
                np.copyto(total, arrived)
            return
        own = self._source[start:stop]
        if self._scaled:
            own = np.multiply(own, self._reduction.weight, out=self._out[start:stop])
        if came == 0.0:  # nothing so far, which is no number to compare with
            np.copyto(total, own)
        else:
            self._combine(arrived, own, out=total)

    def _refuse(self, start: int, stop: int, total: Array) -> NoReturn:
        """A sum is not finite: say because of whom."""
        own = self._source[start:stop]
        if not (self._silent or self._elements.finite(own)):
            raise NotFinite(_OWN)
        if not self._careful:
            raise CollectiveAborted("a sum is not finite: all look at their values now")
        if self._silent:
            raise RefusedPayload(self._previous, _NOT_FINITE)
        # What came was finite only if the own values are so large that they carried it over the edge.
        limits = np.finfo(own.dtype)
        edge = float(limits.max) * float(limits.eps) / (8 * max(1.0, self._reduction.weight))
        if (np.abs(own[~np.isfinite(total)]) > edge).all():
            raise NotFinite("a sum of finite values became infinite")
        raise RefusedPayload(self._previous, _NOT_FINITE)

    async def _gather(self, segment: _Segment) -> None:
        _, step, chunk, _, stop, weight, digest = segment
        onward = segment._replace(step=step + 1)
        further = step < self._world - 2
        may_relay, relayed = further and self._is_here(segment), False
        for first, after in self._pieces(segment):
            piece = self._kept(first, after)
            await self._from_previous.receive_data(piece)
            if first == segment.start:
                relayed = may_relay and self._begin_relay(onward)
            if self._careful and not self._elements.finite(self._out[first:after]):
                raise RefusedPayload(self._previous, _NOT_FINITE)
            if relayed:
                self._to_next.put(piece)
        if chunk == 0:
            self.total_weight = weight  # of the one order of additions that everybody reports
        if stop == self._bounds[chunk + 1]:
            self.digests[chunk] = digest
        if step == 0:
            self._own_may_leave += 1  # the own chunk comes back in the gather's first step
        if further:
            self._pass_on(onward, relayed=relayed)
        else:
            self.pump()

    def _is_here(self, segment: _Segment) -> bool:
        """Nothing of it is waited for once its first piece has come: nothing else could leave meanwhile."""
        one = segment.stop - segment.start <= self._per_piece
        return one or self._from_previous.shares_memory

    def _begin_relay(self, onward: _Segment) -> bool:
        """Send what arrives as it arrives; False when it has to be kept in its place in `out` for a while."""
        fits = onward.stop - onward.start <= self._per_segment
        self._relaying = fits and not self._to_pass_on and self._try_begin(onward)
        return self._relaying

    def _pass_on(self, segment: _Segment, *, relayed: bool) -> None:
        """A segment is there: it is on its way already, or lies in its place in `out`."""
        if relayed:
            self._to_next.end()
            self._relaying = False
        else:
            self._to_pass_on.extend(self._cut(segment))
        self.pump()

    def _cut(self, segment: _Segment) -> Iterator[_Segment]:
        """In what the link to the next member carries; the digest belongs to the end."""
        for start in range(segment.start, segment.stop, self._per_segment) or [segment.start]:
            stop = min(start + self._per_segment, segment.stop)
            digest = segment.digest if stop == segment.stop else b""
            yield segment._replace(start=start, stop=stop, digest=digest)
