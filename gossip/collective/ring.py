"""Ring all-reduce over two bulk links: reduce-scatter, then all-gather (trio driver).

Patarasuk and Yuan 2009: with N members each value crosses each link 2(N-1)/N times, the least
possible. The vector is cut into N chunks; member r sends to r+1 and receives from r-1::

    reduce-scatter, step s = 0..N-2: receive chunk (r-s-1), add the own part, pass it on
    all-gather,     step s = 0..N-2: receive chunk (r-s), keep it, pass it on

After the reduce-scatter, member r owns the finished chunk (r+1): it alone divides (for a mean) and
hashes it, and everybody else takes over the owner's bytes and digest. So all members hold the same
bits, and certification costs 1/N of the data. The price: with three members or more, one that passes
on other bytes than it received is not caught by this operation's certificate, but by the state
digest in the next one's descriptor. Chunks travel in segments, so that receiving, adding and
sending overlap.

Invariants:

* the source is only read: an operation can be repeated from it in another epoch;
* partial sums live in `out` alone, so the memory needed beyond the caller's two buffers is one
  segment, and a receiver never waits for its own sender (a ring of such waits could deadlock);
* every segment's header names the operation, so that bytes of an aborted one are never taken.

The order of additions in a chunk is the ring order starting at its first sender: deterministic for
a given member order, and the same for all members.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import Any, Final, NamedTuple

import attrs
import numpy as np
import numpy.typing as npt
import trio
from blake3 import blake3

from gossip.collective.buffers import as_bytes
from gossip.collective.certificate import result_root
from gossip.errors import CollectiveAborted, DescriptorMismatch
from transport.bulk.link import BulkLink

SEGMENT_BYTES: Final = 1 << 19
"""Segments travel whole; half a MiB keeps source, target and wire buffers in a core's cache."""

STALL_S: Final = 20.0
"""Longest wait for the next half MiB once data flows: 26 KiB/s is no link to reduce over."""
_HEADER = struct.Struct(">Q16sBHHQd")
_REDUCE, _GATHER = 0, 1
DIGEST_BYTES = 32

Array = npt.NDArray[Any]


@attrs.frozen
class RingPlace:
    """Where this node stands in the ring, with its two links."""

    rank: int
    world: int
    to_next: BulkLink | None
    from_previous: BulkLink | None

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
        mean: divide the sum by the total weight.
        weight: this node's factor; 1.0 for a plain sum.
    """

    sequence: int
    descriptor: bytes
    mean: bool = False
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


def chunk_bounds(length: int, world: int) -> list[int]:
    """`world` + 1 boundaries of chunks whose lengths differ by at most one value."""
    return [length * index // world for index in range(world + 1)]


async def ring_all_reduce(
    place: RingPlace, reduction: Reduction, source: Array, out: Array
) -> RingResult:
    """Reduce `source` over the ring into `out` (both 1-D, contiguous, same type and length).

    Cancellation leaves both links unusable and `out` undefined; `source` is never written.

    Raises:
        CollectiveAborted: a link failed or brought bytes of another operation.
        DescriptorMismatch: the neighbour runs an operation with another descriptor.
        LinkClosed: as it says.
    """
    if place.world == 1:
        return _alone(reduction, source, out)
    run = _Run(place, reduction, source, out)
    async with trio.open_nursery() as nursery:
        watching = trio.CancelScope()
        nursery.start_soon(run.send)
        nursery.start_soon(run.watch, watching)
        await run.receive()
        watching.cancel()
    return RingResult(_root(run.digests, run.total_weight), run.total_weight)


def _root(digests: list[bytes], weight: float) -> bytes:
    return result_root([*digests, struct.pack(">d", weight)])


def _alone(reduction: Reduction, source: Array, out: Array) -> RingResult:
    weight = reduction.weight
    if weight == 0.0:
        out.fill(0)
    elif reduction.mean or weight == 1.0:
        np.copyto(out, source)
    else:
        np.multiply(source, weight, out=out)
    return RingResult(_root([blake3(as_bytes(out)).digest()], weight), weight)


class _Run:
    """One all-reduce at one member."""

    def __init__(self, place: RingPlace, reduction: Reduction, source: Array, out: Array) -> None:
        self._place = place
        self._reduction = reduction
        self._source = source
        self._out = out
        self._bounds = chunk_bounds(source.size, place.world)
        self._per_segment = max(1, SEGMENT_BYTES // source.itemsize)
        self._scaled = reduction.weight != 1.0
        self._silent = reduction.weight == 0.0  # 0 * NaN is NaN: what counts nothing is not touched
        self._scratch = np.empty(min(self._per_segment, self._bounds_max()), source.dtype)
        # Bounded by the operation itself: every segment passes once in each phase.
        self._to_send: deque[_Segment] = deque()
        self._wake = trio.Event()
        self._all_passed_on = False
        self._hasher = blake3()
        self._segments_in = 0
        self.digests: list[bytes] = [b""] * place.world
        self.total_weight = 0.0

    def _bounds_max(self) -> int:
        pairs = zip(self._bounds, self._bounds[1:], strict=False)
        return max(1, *(stop - start for start, stop in pairs))

    def _segments(self, chunk: int) -> list[tuple[int, int]]:
        """Ranges of the chunk's segments; an empty chunk has one empty segment."""
        first, last = self._bounds[chunk], self._bounds[chunk + 1]
        starts = range(first, last, self._per_segment) or [first]
        return [(start, min(start + self._per_segment, last)) for start in starts]

    # ---- sending ---------------------------------------------------------------------------

    async def send(self) -> None:
        """Send the own chunk, then whatever the receiver has made ready, in its order."""
        rank, weight = self._place.rank, self._reduction.weight
        scaled = np.empty_like(self._scratch) if self._scaled else self._scratch
        for start, stop in self._segments(rank):
            values = self._source[start:stop]
            if self._silent:
                values = scaled[: stop - start]
                values.fill(0)
            elif self._scaled:
                values = np.multiply(values, weight, out=scaled[: stop - start])
            await self._put(_Segment(_REDUCE, 0, rank, start, stop, weight), values)
        while True:
            while self._to_send:
                segment = self._to_send.popleft()
                await self._put(segment, self._out[segment.start : segment.stop])
            if self._all_passed_on:
                return
            self._wake = trio.Event()
            await self._wake.wait()

    async def _put(self, segment: _Segment, values: Array) -> None:
        header = _HEADER.pack(
            self._reduction.sequence,
            self._reduction.descriptor[:16],
            segment.phase,
            segment.step,
            segment.chunk,
            segment.start,
            segment.weight,
        )
        link = self._place.to_next
        assert link is not None, "a ring of one sends nothing"
        await link.send(header + segment.digest, as_bytes(values))

    async def watch(self, watching: trio.CancelScope) -> None:
        """Once data flows, silence is a fault; the first segment waits for whoever is late."""
        with watching:
            seen = 0
            while True:
                await trio.sleep(STALL_S)
                if self._segments_in and self._segments_in == seen:
                    raise CollectiveAborted(f"no data from the neighbour for {STALL_S:.0f} s")
                seen = self._segments_in

    # ---- receiving -------------------------------------------------------------------------

    async def receive(self) -> None:
        """Take every chunk of both phases in the ring's order."""
        rank, world = self._place.rank, self._place.world
        for step in range(world - 1):
            chunk = (rank - step - 1) % world
            for start, stop in self._segments(chunk):
                await self._reduce(step, chunk, start, stop)
        for step in range(world - 1):
            chunk = (rank - step) % world
            for start, stop in self._segments(chunk):
                await self._gather(step, chunk, start, stop)
        self._all_passed_on = True
        self._wake.set()

    async def _reduce(self, step: int, chunk: int, start: int, stop: int) -> None:
        world = self._place.world
        arrived = self._scratch[: stop - start]
        weight, _ = await self._take(_REDUCE, step, chunk, start, arrived)
        weight += self._reduction.weight
        own, target = self._source[start:stop], self._out[start:stop]
        if self._silent:
            np.copyto(target, arrived)
        else:
            if self._scaled:
                own = np.multiply(own, self._reduction.weight, out=target)
            np.add(arrived, own, out=target)
        if step < world - 2:
            self._pass_on(_Segment(_REDUCE, step + 1, chunk, start, stop, weight))
            return
        if self._reduction.mean and weight > 0:
            np.divide(target, weight, out=target)
        if chunk == 0:
            self.total_weight = weight
        self._hasher.update(as_bytes(target))
        digest = b""
        if stop == self._bounds[chunk + 1]:
            digest = self.digests[chunk] = self._hasher.digest()
        self._pass_on(_Segment(_GATHER, 0, chunk, start, stop, weight, digest))

    async def _gather(self, step: int, chunk: int, start: int, stop: int) -> None:
        weight, digest = await self._take(_GATHER, step, chunk, start, self._out[start:stop])
        if chunk == 0:
            self.total_weight = weight  # of the one order of additions that everybody reports
        if stop == self._bounds[chunk + 1]:
            if len(digest) != DIGEST_BYTES:
                raise CollectiveAborted("the neighbour sent a chunk without its digest")
            self.digests[chunk] = digest
        if step < self._place.world - 2:
            self._pass_on(_Segment(_GATHER, step + 1, chunk, start, stop, weight, digest))

    def _pass_on(self, segment: _Segment) -> None:
        self._to_send.append(segment)
        self._wake.set()

    async def _take(
        self, phase: int, step: int, chunk: int, start: int, target: Array
    ) -> tuple[float, bytes]:
        """Receive exactly the expected segment into `target`."""
        weight, digest = 0.0, b""

        def sink(header: bytes, size: int) -> memoryview:
            nonlocal weight, digest
            if len(header) < _HEADER.size:
                raise CollectiveAborted("the neighbour sent a segment with a short header")
            sequence, descriptor, *place, weight = _HEADER.unpack_from(header)
            if sequence == self._reduction.sequence and (
                descriptor != self._reduction.descriptor[:16]
            ):
                raise DescriptorMismatch("the neighbour runs another operation")
            if sequence != self._reduction.sequence or place != [phase, step, chunk, start]:
                raise CollectiveAborted("the neighbour is at another place of the operation")
            if size != target.nbytes:
                raise DescriptorMismatch(f"segment of {size} bytes, expected {target.nbytes}")
            digest = header[_HEADER.size :]
            return as_bytes(target)

        link = self._place.from_previous
        assert link is not None, "a ring of one receives nothing"
        await link.receive(sink)
        self._segments_in += 1
        return weight, digest
