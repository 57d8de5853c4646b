"""Broadcast of large vectors: each member passes on what comes to the next one (trio driver).

The members stand in a ring that begins at the root. Every link carries the vector once, so the time is that of the
slowest link, where a root that sends to N-1 members itself needs N-1 times as long. Segments are passed on as they come.
The root packs each segment once and takes what that decodes to itself; every member hashes what it received, so one that
passes on something else makes the votes of those behind it differ.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import trio
from blake3 import blake3

from gossip.collective.agreement.certificate import result_root
from gossip.collective.call import Call
from gossip.collective.elements import elements_of
from gossip.collective.formats.wire_format import RefusedPayload
from gossip.collective.links.carriage import Carriage
from gossip.collective.links.exchange import Exchange, Links
from gossip.collective.links.outbox import Transfer
from gossip.collective.links.segment import Place
from transport.buffer import Buffer

Array = npt.NDArray[Any]

_WEIGHT = struct.Struct(">d")


async def chain(
    links: Links, call: Call, root: int, source: Array, out: Array
) -> tuple[bytes, float]:
    """Carry out a broadcast from the member of index `root`; returns the root digest and the number of members.

    `source` is only read, and only at the root. Cancellation leaves the links unusable.

    Raises:
        NotFinite: a value of the root cannot be carried.
        RefusedPayload: what the member before sent are no such values.
        CollectiveAborted, DescriptorMismatch, LinkClosed: as for `gossip.collective.dataplane.execute`.
    """
    carriage = Carriage(elements_of(source.dtype), call.wire, workspace=links.workspace)
    world, me = links.world, links.rank
    previous, following = (me - 1) % world, (me + 1) % world
    last = following == root
    hasher = blake3()
    step = carriage.per_segment
    async with trio.open_nursery() as nursery:
        exchange = Exchange(links, call, nursery)

        def pass_on(start: int, payload: Buffer) -> Iterator[Transfer]:
            yield exchange.head(Place(0, 0, 0, start), float(world)), payload

        for start in range(0, max(1, source.size), step):
            part = out[start : start + step]
            if me == root:
                np.copyto(part, source[start : start + step])
                payload = carriage.pack(part)
                carriage.apply(payload, part, links.names[me])
            else:
                _, _, size = await exchange.receive_head(previous, Place(0, 0, 0, start))
                if size > carriage.largest(part.size):
                    raise RefusedPayload(links.names[previous], f"{size} bytes for a segment")
                payload = carriage.place(part, size)
                await exchange.receive_data(previous, payload)
                carriage.accept(part, size, links.names[previous])
                if not carriage.exact and not last:
                    payload = memoryview(bytes(payload))  # the buffer is for the next segment
            hasher.update(payload)
            if not last:
                exchange.post(following, pass_on(start, payload))
    return result_root([hasher.digest(), _WEIGHT.pack(float(world))]), float(world)
