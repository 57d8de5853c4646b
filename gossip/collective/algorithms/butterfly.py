"""Reduce in two hops: each part of the vector has one owner, who adds it up (trio driver).

Also called butterfly or reduce-scatter with direct exchange; as in hivemind (Ryabinin et al. 2021), with one
difference on which the equality of members hangs: there an owner answers each contributor with a difference in bytes
of its own, here with one encoding for all, and applies what that decodes to itself.

Steps at one member, for every part p with its owner::

    reduce: send the own values of p to its owner; as owner of p, add everybody's, in member order
    gather: as owner, divide, encode once and send to everybody; take the parts of the others

With a part for every member this is the *butterfly*; with all of the vector owned by one member it is the *star*, of
the fewest messages; with two halves the *double star*, which has twice as many and keeps two processors busy. An all-gather is the second step alone, with values instead of sums; a broadcast is that
with one owner; a reduce-scatter is the first step, after which owners tell only the digests of their parts.

Invariants:

* every value is encoded once on its way to the owner and once on its way back, so the error of a wire format is
  that of two encodings however many members there are (a ring of N encodes N times);
* sums are made in member order by one member, so they are the same for everybody;
* weights travel beside the values, which the owner multiplies as it adds them: rounding does not depend on them;
* unless the result stays in parts, each member hashes every part itself, as it came: an owner that sends different
  bytes to different members makes their results, and so their votes, differ, and there is no forwarder who could;
* in the double star that is the owner's word instead, as in the ring (`gossip.collective.algorithms.ring`) and at the same price: it tells the digest of
  its part, and the first attempt looks only at the sums for what is not finite;
* beyond the vectors a member holds five segments (half a MiB each, or 2 MiB in a wire format), its own packed results and what links hold: through shared memory four
  transfers each, so parts that pass in one are bounded (`gossip.collective.choice.passes_whole`);
* who finds much to do at once, as an owner does when all contributions are there, lets others run once a millisecond.
"""

from __future__ import annotations

import itertools
import struct
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import trio
from blake3 import blake3

from gossip.collective.agreement.certificate import result_root
from gossip.collective.call import EXACT, REDUCING, Call, Kind, Reduce, chunk_bounds
from gossip.collective.choice import passes_whole
from gossip.collective.elements import MOST, Weighed, elements_of
from gossip.collective.formats.wire_format import RefusedPayload
from gossip.collective.links.buffers import as_bytes
from gossip.collective.links.carriage import Carriage
from gossip.collective.links.exchange import Exchange, Links
from gossip.collective.links.outbox import Transfer
from gossip.collective.links.segment import DIGEST_BYTES, Place
from gossip.errors import CollectiveAborted, NotFinite
from transport.bulk.striped import AnyLink

Array = npt.NDArray[Any]

_REDUCE, _GATHER, _DIGEST = 0, 1, 2
_WEIGHT = struct.Struct(">d")


async def butterfly(
    links: Links,
    call: Call,
    source: Array,
    out: Array,
    *,
    owners: Sequence[int] | None = None,
    owners_word: bool = False,
    weight: float | None = None,
    stage: int = 0,
) -> tuple[bytes, float]:
    """Carry out any kind but a barrier; returns the root and the members' total weight.

    `source` is only read; `out` begins with the result when this returns. Cancellation leaves the links unusable.

    Args:
        links: to and from every member; of one that owns nothing, to and from the owners.
        call: what to do; who broadcasts is the owner.
        source: this member's values.
        out: room for the result.
        owners: who owns a part of the vector, ascending; None: everybody.
        owners_word: what others believe of a part is what its owner says, see the module.
        weight: what members of a broadcast are told as the total.
        stage: see `Exchange`.

    Raises:
        NotFinite: values of this member are not finite, or the sums of its part.
        RefusedPayload: a member sent bytes that are no such values.
        CollectiveAborted, DescriptorMismatch, LinkClosed: as for `gossip.collective.dataplane.execute`.
    """
    async with trio.open_nursery() as nursery:
        exchange = Exchange(links, call, nursery, stage)
        run = _Butterfly(exchange, source, out, owners or range(links.world), owners_word)
        if call.kind not in REDUCING:
            await run.publish_own(float(links.world) if weight is None else weight)
        await run.all_segments()
        if call.kind is Kind.REDUCE_SCATTER:
            await run.tell_digests()
    return run.root(), run.weight


class _Butterfly:
    """One operation at one member."""

    def __init__(
        self,
        exchange: Exchange,
        source: Array,
        out: Array,
        owners: Sequence[int],
        owners_word: bool,
    ) -> None:
        links, call = exchange.links, exchange.call
        self._exchange, self._call, self._links = exchange, call, links
        self._source, self._out = source, out
        self._elements = elements_of(source.dtype)
        self._me, world = links.rank, links.world
        if call.kind is Kind.ALL_GATHER:
            self._bounds = [source.size * rank for rank in range(world + 1)]
        else:
            cuts = chunk_bounds(source.size, len(owners))
            self._bounds = [cuts[bisect_left(owners, rank)] for rank in range(world + 1)]
        largest = max(self._size(rank) for rank in range(world))
        # A segment has to be a record of a link then, which it is where values are added as what they are.
        self._one_transfer = (
            call.kind in REDUCING
            and call.wire == EXACT
            and not self._elements.narrow
            and passes_whole(largest * source.itemsize, world)
        )
        self._shares = [0.0] * world  # weights of what is being added up
        self._owners_word = owners_word
        self._scaling = call.reduce in {Reduce.SUM, Reduce.MEAN} and self._elements.floating
        self._large: list[int] = []  # members by whose values a sum could become infinite
        # Of a minimum, what is not finite could be lost in the sum.
        self._looks = not owners_word or call.careful or call.reduce in {Reduce.MIN, Reduce.MAX}
        self._carriage = Carriage(
            self._elements,
            call.wire,
            largest,
            workspace=links.workspace,
            looks=self._looks,
            long=len(owners) == world,
        )
        # Somebody owns even nothing, or nobody would tell the weights.
        self._owners = [r for r in range(world) if self._size(r)] or [owners[0]]
        # Others, beginning with the next member, so that not all send to the same one first.
        self._others = [(self._me + step) % world for step in range(1, world)]
        self._hashers = [blake3() for _ in range(world)]
        self._digests = [b""] * world
        self._weight: float | None = None

    def _size(self, part: int) -> int:
        return self._bounds[part + 1] - self._bounds[part]

    def _segments(self, part: int) -> list[tuple[int, int]]:
        """First and last value of each, counted from the start of the part."""
        return self._cut(0, self._size(part)) if part in self._owners else []

    def _cut(self, start: int, stop: int) -> list[tuple[int, int]]:
        """In what is worked on together."""
        step = self._carriage.per_segment
        return [(at, min(at + step, stop)) for at in range(start, max(stop, start + 1), step)]

    def _whole(self, link: AnyLink) -> bool:
        """A part passes in one transfer, taken in segments, as each has its price; where all of it has to be on its way first, a network would rest."""
        return self._one_transfer and link.shares_memory

    def _transfers(self, link: AnyLink, part: int) -> list[tuple[int, int]]:
        """As `_segments`, what of a part passes at once."""
        segments = self._segments(part)
        return [(0, self._size(part))] if segments and self._whole(link) else segments

    @property
    def weight(self) -> float:
        """The sum of all members' weights, once it is known."""
        assert self._weight is not None, "asked before anybody could have told"
        return self._weight

    def root(self) -> bytes:
        """What to vote for."""
        digests = [
            digest or hasher.digest()
            for digest, hasher in zip(self._digests, self._hashers, strict=True)
        ]
        return result_root([*digests, _WEIGHT.pack(self.weight)])

    async def all_segments(self) -> None:
        """Reduce the own part and take those of the others, segment by segment.

        Both ends of a link know what comes next on it without a word. Between machines that is all contributions,
        then all results; so it is where memory is shared, if each part passes in one transfer. Of larger ones
        so little is on its way there that it stays in the processor's cache: c0, c1, r0,
        c2, r1 and so on, for the contributions c to the receiver's part and the results r of the sender's.
        """
        out, into = self._links.out, self._links.into
        own = self._segments(self._me)
        owners = [rank for rank in self._others if rank in self._owners]
        theirs = {rank: self._transfers(into[rank], rank) for rank in owners}
        steps = max(len(own), *map(len, theirs.values()), 0)
        reducing = self._call.kind in REDUCING
        gathering = self._call.kind is not Kind.REDUCE_SCATTER
        paced = reducing and gathering
        contributions = {rank: self._contributions(rank) for rank in theirs if reducing}
        for rank, ready in contributions.items():
            few = paced and self._few(out[rank])
            self._exchange.post(rank, itertools.islice(ready, 1 if few else None))
            await self._exchange.let_others_run()
        early = [rank for rank in theirs if paced and self._few(into[rank])]
        for number in range(steps + 1):
            for rank, ready in contributions.items():
                self._exchange.post(rank, itertools.islice(ready, 1))
                await self._exchange.let_others_run()
            if reducing and number < len(own):
                await self._reduce(*own[number])
            await self._take_results(early, theirs, number - 1)
        late = [rank for rank in theirs if rank not in early and gathering]
        # Segment by segment from everybody: whoever is read last would else wait with a full link.
        for number in range(steps):
            await self._take_results(late, theirs, number)

    def _few(self, link: AnyLink) -> bool:
        """Little of what passes is to be on its way at once."""
        return link.shares_memory and not self._one_transfer

    async def _take_results(
        self, ranks: list[int], segments: dict[int, list[tuple[int, int]]], number: int
    ) -> None:
        """The finished segments of that number, of those owners that have one."""
        for rank in ranks:
            if 0 <= number < len(segments[rank]):
                await self._take_result(rank, *segments[rank][number])
                await self._exchange.let_others_run()

    # ---- towards the owners --------------------------------------------------------------------

    async def _reduce(self, start: int, stop: int) -> None:
        """Add a segment of the own part up, in its place, and send it, if it is to be sent."""
        elements, scatter = self._elements, self._call.kind is Kind.REDUCE_SCATTER
        first = 0 if scatter else self._bounds[self._me]
        part = summed = self._out[first + start : first + stop]
        if elements.narrow:
            summed = self._links.workspace.array("total", stop - start, elements.total)
        weight = await self._add_up(start, stop, summed)
        if self._weight not in {None, weight}:
            raise CollectiveAborted("a member has one weight here and another there")
        self._weight = weight
        elements.settle(self._call.reduce, summed, weight, part)
        self._refuse_unless_finite(start, part)
        if scatter:
            self._hashers[self._me].update(as_bytes(part))
        else:
            await self._publish(start, part, self._carriage.pack_finite(part))

    async def _add_up(self, start: int, stop: int, summed: Array) -> float:
        """Let `summed` be the sum of everybody's values of a segment of the own part; returns their weight."""
        elements, reduce, first = self._elements, self._call.reduce, self._bounds[self._me]
        rounded = elements.total if reduce is Reduce.MEAN else elements.dtype
        weight = 0.0
        sum_: Weighed | None = None
        for rank in range(self._links.world):
            if rank == self._me:
                share, values = self._call.weight, self._source[first + start : first + stop]
            else:
                share, values = await self._take(rank, start, stop - start)
                await self._exchange.let_others_run()
            if not share:
                continue
            weight += share
            if self._exceed(values, share, rounded, among=self._links.world):
                self._large.append(rank)
            if sum_ is None:
                sum_ = values, share
            else:
                elements.combine(reduce, summed, sum_, (values, share))
                sum_ = summed, 1.0
        if sum_ is None:
            summed.fill(0)
        elif sum_[0] is not summed:
            elements.combine(reduce, summed, sum_)
        return weight

    def _exceed(self, values: Array, share: float, dtype: np.dtype[Any], *, among: int = 1) -> bool:
        """Of a careful attempt: whether the sum of that many such values could be more than the type holds."""
        if not (self._call.careful and self._scaling):
            return False
        return not self._elements.largest(values) * share <= MOST[dtype.name] / among

    def _contributions(self, owner: int) -> Iterator[Transfer]:
        first, weight = self._bounds[owner], self._call.weight
        for start, stop in self._transfers(self._links.out[owner], owner):
            head = self._exchange.head(Place(_REDUCE, 0, owner, start), weight)
            # What counts nothing is not looked at, nor sent: it may be anything.
            values = self._source[first + start : first + stop]
            if weight and self._exceed(values, weight, self._elements.total):
                raise NotFinite(f"not all of {values.size} values times {weight} are finite")
            yield head, self._carriage.pack(values) if weight else b""

    async def _take(self, rank: int, start: int, count: int) -> tuple[float, Array]:
        """The next values of a member for the own part, and their weight."""
        whole = self._whole(self._links.into[rank])
        size = self._carriage.largest(count)
        if not whole:
            size = await self._take_head(rank, start, count)
        elif not start:
            await self._take_head(rank, start, self._size(self._me))
        weight = self._shares[rank]
        if not weight:
            return weight, self._source[:0]
        await self._exchange.receive_data(rank, self._carriage.buffer(size))
        return weight, self._carriage.open(size, count, self._links.names[rank])

    async def _take_head(self, rank: int, start: int, count: int) -> int:
        """Of the next contribution to the own part, which is of that many values; returns its bytes."""
        place = Place(_REDUCE, 0, self._me, start)
        weight, _, size = await self._exchange.receive_head(rank, place)
        # A site's minimum counts for its members.
        counts = self._call.reduce in {Reduce.MIN, Reduce.MAX} and self._call.sites
        if not (self._scaling or weight in {0.0, 1.0} or (counts and weight.is_integer())):
            raise RefusedPayload(self._links.names[rank], f"{weight} times values that have none")
        self._refuse_size(rank, size, self._carriage.largest(count) if weight else 0)
        self._shares[rank] = weight
        return size

    def _refuse_size(self, rank: int, size: int, most: int) -> None:
        if size > most or (self._carriage.exact and size != most):
            raise RefusedPayload(self._links.names[rank], f"{size} bytes instead of {most}")

    # ---- and back --------------------------------------------------------------------------------

    def _refuse_unless_finite(self, start: int, sums: Array) -> None:
        """Of sums that are not: say because of whom; a first attempt leaves that to the next one."""
        if self._elements.finite(sums):
            return
        first = self._bounds[self._me] + start
        own = self._source[first : first + sums.size]
        if self._call.weight and not self._elements.finite(own):
            raise NotFinite(f"not all of {own.size} values are finite")
        if not self._call.careful:
            raise CollectiveAborted("a sum is not finite: all look at their values now")
        if self._large and self._me not in self._large:
            raise RefusedPayload(self._links.names[self._large[0]], "values with an infinite sum")
        raise NotFinite("a sum of finite values became infinite")

    async def publish_own(self, weight: float) -> None:
        """Without a reduction: the own part is the own values."""
        self._weight = weight
        first = self._bounds[self._me]
        for start, stop in self._segments(self._me):
            part = self._out[first + start : first + stop]
            np.copyto(part, self._source[start:stop])
            await self._publish(start, part, self._carriage.pack(part))

    async def _publish(self, start: int, part: Array, payload: memoryview) -> None:
        """Send a segment of the own part to everybody, and take what the others will decode for oneself."""
        self._hashers[self._me].update(payload)
        told, last = b"", start + part.size == self._size(self._me)
        if self._owners_word and last:
            told = self._digests[self._me] = self._hashers[self._me].digest()
        segment = self._result(start, payload, told)
        whole = None
        if self._one_transfer and last:
            first = self._bounds[self._me]
            whole = self._result(0, as_bytes(self._out[first : first + self._size(self._me)]), told)
        for rank in self._others:
            transfer = whole if self._whole(self._links.out[rank]) else segment
            if transfer is not None:
                self._exchange.post(rank, iter([transfer]))
                await self._exchange.let_others_run()
        self._carriage.apply(payload, part, self._links.names[self._me])

    def _result(self, start: int, values: memoryview, told: bytes) -> Transfer:
        place = Place(_GATHER, 0, self._me, start)
        return self._exchange.head(place, self.weight, told), values

    async def _take_result(self, rank: int, start: int, stop: int) -> None:
        place = Place(_GATHER, 0, rank, start)
        weight, told, size = await self._exchange.receive_head(rank, place)
        self._agree_on(weight, rank)
        if self._owners_word and stop == self._size(rank):
            self._take_word(rank, told)
        self._refuse_size(rank, size, self._carriage.largest(stop - start))
        segments = self._cut(start, stop)
        for at, end in segments:
            part = self._out[self._bounds[rank] + at : self._bounds[rank] + end]
            taken = size if len(segments) == 1 else part.nbytes
            memory = self._carriage.place(part, taken)
            await self._exchange.receive_data(rank, memory)
            if not self._owners_word:
                self._hashers[rank].update(memory)
            self._carriage.accept(part, taken, self._links.names[rank])

    def _agree_on(self, weight: float, rank: int) -> None:
        if self._weight is None:
            self._weight = weight
        if self._call.kind is Kind.BROADCAST:
            self._weight = weight  # as the owner tells it
        if weight != self._weight:
            raise CollectiveAborted(f"{self._links.names[rank].short} counts another total weight")

    async def tell_digests(self) -> None:
        """Of a reduce-scatter: everybody learns what the parts of all are, by their digests."""
        if self._me in self._owners:
            own = self._digests[self._me] = self._hashers[self._me].digest()
            head = self._exchange.head(Place(_DIGEST, 0, self._me, 0), self.weight, own)
            for rank in self._others:
                self._exchange.post(rank, iter([(head, b"")]))
        for rank in self._others:
            if rank in self._owners:
                place = Place(_DIGEST, 0, rank, 0)
                weight, digest, size = await self._exchange.receive_head(rank, place)
                if size:
                    raise CollectiveAborted(f"{self._links.names[rank].short} sent no digest")
                self._agree_on(weight, rank)
                self._take_word(rank, digest)

    def _take_word(self, rank: int, digest: bytes) -> None:
        """An owner says what its part is."""
        if len(digest) != DIGEST_BYTES:
            raise CollectiveAborted(f"{self._links.names[rank].short} sent no digest")
        self._digests[rank] = digest
