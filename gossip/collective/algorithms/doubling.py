"""All-reduce of small vectors by recursive doubling: log2(N) rounds of pairs that exchange all they have (trio driver).

Thakur, Rabenseifner and Gropp 2005, section 4.1. In round k member r exchanges its sum with member r xor 2^k, and both add
the two, the lower one's first, so that both hold the same bits (floating-point addition commutes, but a NaN's
payload would not, and neither need a rounding of zeros). With N no power of two, the first 2(N - 2^k) members
begin and end in pairs: the odd one gives its values to the even one and gets the result.

Every member sends the whole vector log2(N) times, so this is for vectors whose time is that of their messages.
Each hashes its own result: one that was told otherwise votes otherwise.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt
import trio
from blake3 import blake3

from gossip.collective.agreement.certificate import result_root
from gossip.collective.call import EXACT, Call
from gossip.collective.choice import DOUBLING_BYTES
from gossip.collective.elements import Elements, elements_of
from gossip.collective.formats.wire_format import RefusedPayload
from gossip.collective.links.buffers import as_bytes
from gossip.collective.links.carriage import Carriage
from gossip.collective.links.exchange import Exchange, Links
from gossip.collective.links.segment import Place
from gossip.errors import InvalidOperation, NotFinite

Array = npt.NDArray[Any]

_IN, _ROUND, _OUT = 0, 1, 2
_WEIGHT = struct.Struct(">d")


def partners(rank: int, world: int) -> list[int]:
    """Whom a member exchanges with, in order; one in a pair of the beginning meets its partner again at the end."""
    rounds = world.bit_length() - 1
    extra = world - (1 << rounds)
    if rank < 2 * extra and rank % 2:
        return [rank - 1]
    place = rank // 2 if rank < 2 * extra else rank - extra
    others = [place ^ (1 << number) for number in range(rounds)]
    met = [2 * other if other < extra else other + extra for other in others]
    return [rank + 1, *met] if rank < 2 * extra else met


async def recursive_doubling(
    links: Links, call: Call, source: Array, out: Array
) -> tuple[bytes, float]:
    """Carry out an all-reduce; returns the root and the members' total weight.

    `source` is only read. Cancellation leaves the links unusable.

    Raises:
        InvalidOperation: the vector is too large, or is to travel in a wire format.
        NotFinite: values of this member are not finite, or a sum.
        RefusedPayload: a member sent values that are not finite.
        CollectiveAborted, DescriptorMismatch, LinkClosed: as for `gossip.collective.dataplane.execute`.
    """
    elements = elements_of(source.dtype)
    if source.size * elements.total.itemsize > DOUBLING_BYTES:
        raise InvalidOperation(f"recursive doubling is for at most {DOUBLING_BYTES} bytes")
    if call.wire != EXACT:
        raise InvalidOperation(
            "recursive doubling has no wire formats: they would add up their errors"
        )
    if call.weight and not elements.finite(source):
        raise NotFinite(f"not all of {source.size} values are finite")
    total = links.workspace.array("total", source.size, elements.total)
    async with trio.open_nursery() as nursery:
        run = _Doubling(Exchange(links, call, nursery), elements, source, total)
        await run.all_rounds()
    elements.settle(call.reduce, total, run.weight, out)
    if not elements.finite(out):
        raise NotFinite(f"not all of {out.size} results are finite")
    digest = blake3(as_bytes(out)).digest()
    return result_root([digest, _WEIGHT.pack(run.weight)]), run.weight


class _Doubling:
    """One operation at one member."""

    def __init__(self, exchange: Exchange, elements: Elements, source: Array, total: Array) -> None:
        self._exchange, self._elements = exchange, elements
        self._call, self._links = exchange.call, exchange.links
        self._total = total
        self._carriage = Carriage(elements_of(elements.total), EXACT)
        self.weight = self._call.weight
        if self.weight:
            elements.combine(self._call.reduce, total, (source, self.weight))
        else:
            total.fill(0)

    async def all_rounds(self) -> None:
        """Exchange with every partner in turn."""
        me, world = self._links.rank, self._links.world
        met = partners(me, world)
        paired = me < 2 * (world - (1 << (world.bit_length() - 1)))
        if paired and me % 2:
            self._send(met[0], _IN, 0)
            self.weight = await self._receive(met[0], _OUT, 0, self._total)
            return
        if paired:
            await self._add_from(met[0], _IN, 0)
        for number, other in enumerate(met[paired:]):
            self._send(other, _ROUND, number)
            await self._add_from(other, _ROUND, number)
        if paired:
            self._send(met[0], _OUT, 0)

    def _send(self, other: int, phase: int, number: int) -> None:
        # A copy: the next sum is made while this one may still be leaving.
        head = self._exchange.head(Place(phase, number, 0, 0), self.weight)
        payload = self._carriage.pack(self._total.copy())
        self._exchange.post(other, iter([(head, payload)]))

    async def _receive(self, other: int, phase: int, number: int, values: Array) -> float:
        weight, _, size = await self._exchange.receive_head(other, Place(phase, number, 0, 0))
        name = self._links.names[other]
        if size != values.nbytes:
            raise RefusedPayload(name, f"{size} bytes where {values.nbytes} were expected")
        await self._exchange.receive_data(other, as_bytes(values))
        self._carriage.accept(values, size, name)
        return weight

    async def _add_from(self, other: int, phase: int, number: int) -> None:
        """Take the other's sum into the own one, the lower member's first."""
        theirs = self._links.workspace.array("theirs", self._total.size, self._total.dtype)
        weight = await self._receive(other, phase, number, theirs)
        if weight and not self.weight:
            np.copyto(self._total, theirs)
        elif weight:
            one, two = (theirs, self._total) if other < self._links.rank else (self._total, theirs)
            self._elements.combine(self._call.reduce, self._total, (one, 1.0), (two, 1.0))
        first, second = sorted([(other, weight), (self._links.rank, self.weight)])
        self.weight = first[1] + second[1]
