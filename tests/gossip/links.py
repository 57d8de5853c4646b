"""Bulk links over in-memory raw streams, with fixed keys instead of handshakes."""

from __future__ import annotations

import itertools
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio
import trio.testing

from gossip.collective.algorithms.ring import RingPlace
from gossip.collective.links.exchange import Links
from tests.transport.pool_links import ignore, result
from transport.address import Address
from transport.bulk.link import BulkLink
from transport.identity import NodeId
from transport.network import RawStream
from transport.simulated.memory import MemoryNetwork
from transport.tcp import TcpStream

PORT = 4000


def virtual(async_fn: Callable[..., Awaitable[Any]], *args: object) -> Any:
    """Run to the end in virtual time; what hangs is ended after a virtual minute."""

    async def limited() -> Any:
        with trio.fail_after(60):
            return await async_fn(*args)

    return trio.run(limited, clock=trio.testing.MockClock(autojump_threshold=0))


async def link_pair(
    network: MemoryNetwork, one: str, other: str, index: int
) -> tuple[BulkLink, BulkLink]:
    """A link from host `one` to host `other`: its two ends."""
    listener = await network.host(other).listen(Address(other, PORT + index))
    accepted: list[RawStream] = []

    async def accept() -> None:
        accepted.append(await listener.accept())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        dialled = await network.host(one).connect(listener.address)
    await listener.aclose()

    return (
        BulkLink(dialled, result(str(index), "initiator"), ignore),
        BulkLink(accepted[0], result(str(index), "responder"), ignore),
    )


async def ring_of(world: int, network: MemoryNetwork | None = None) -> list[RingPlace]:
    """Places of a ring of `world` members, linked."""
    network = network or MemoryNetwork(world)
    if world == 1:
        return [RingPlace(0, 1, None, None)]  # type: ignore[arg-type]
    ends = [
        await link_pair(network, f"10.0.0.{rank + 1}", f"10.0.0.{(rank + 1) % world + 1}", rank)
        for rank in range(world)
    ]
    return [
        RingPlace(rank, world, to_next=ends[rank][0], from_previous=ends[rank - 1][1])
        for rank in range(world)
    ]


def names(world: int) -> tuple[NodeId, ...]:
    return tuple(NodeId(bytes([rank + 1]) * 32) for rank in range(world))


async def links_between(world: int, network: MemoryNetwork | None = None) -> list[Links]:
    """Links from everybody to everybody."""
    network = network or MemoryNetwork(world)
    out: list[dict[int, BulkLink]] = [{} for _ in range(world)]
    into: list[dict[int, BulkLink]] = [{} for _ in range(world)]
    for index, (one, other) in enumerate(itertools.permutations(range(world), 2)):
        out[one][other], into[other][one] = await link_pair(
            network, f"10.0.0.{one + 1}", f"10.0.0.{other + 1}", index
        )
    return [Links(names(world), rank, out[rank], into[rank]) for rank in range(world)]


@asynccontextmanager
async def local_ring(
    world: int, *, shared: bool | Sequence[bool], far: Address | None = None
) -> AsyncIterator[list[RingPlace]]:
    """Places of a ring over real sockets, as within one machine, with shared memory or without.

    `shared` may say it of each link, from each member to the next; the others then lead to `far`, if it is given.
    """
    here = Address("127.0.0.1", 1)
    sharing = [shared] * world if isinstance(shared, bool) else shared
    ends: list[tuple[BulkLink, BulkLink]] = []
    for index in range(world):
        links = []
        for sock, role in zip(socket.socketpair(), ("initiator", "responder"), strict=True):
            sock.setblocking(False)
            raw = TcpStream(sock, here, here if sharing[index] or far is None else far)
            links.append(BulkLink(raw, result(str(index), role), ignore))
        ends.append((links[0], links[1]))
        if sharing[index]:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(links[1].accept_memory)
                assert await links[0].offer_memory()
    try:
        yield [
            RingPlace(rank, world, to_next=ends[rank][0], from_previous=ends[rank - 1][1])
            for rank in range(world)
        ]
    finally:
        for link in itertools.chain(*ends):
            link.abort()


@asynccontextmanager
async def local_links(
    world: int, *, shared: Callable[[int, int], bool]
) -> AsyncIterator[list[Links]]:
    """Links from everybody to everybody over real sockets, from one to another with shared memory or without."""
    here = Address("127.0.0.1", 1)
    out: list[dict[int, BulkLink]] = [{} for _ in range(world)]
    into: list[dict[int, BulkLink]] = [{} for _ in range(world)]
    for index, (one, other) in enumerate(itertools.permutations(range(world), 2)):
        ends = []
        for sock, role in zip(socket.socketpair(), ("initiator", "responder"), strict=True):
            sock.setblocking(False)
            ends.append(BulkLink(TcpStream(sock, here, here), result(str(index), role), ignore))
        if shared(one, other):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ends[1].accept_memory)
                assert await ends[0].offer_memory()
        out[one][other], into[other][one] = ends
    try:
        yield [Links(names(world), rank, out[rank], into[rank]) for rank in range(world)]
    finally:
        for links in (*out, *into):
            for link in links.values():
                link.abort()


class Between:
    """Stands before a link's sending side and lets a test change what is sent.

    `change(index, header, payload)` gives the transfers to send instead of the one with that number.
    """

    def __init__(
        self,
        link: BulkLink,
        change: Callable[[int, bytes, bytes], list[tuple[bytes, bytes]]],
    ) -> None:
        self._link = link
        self._change = change
        self._count = 0

    busy = True  # nothing passes by `send`
    waiting = local = shares_memory = False

    def try_send(self, header: bytes, payload: memoryview) -> bool:
        return False

    def try_begin(self, header: bytes, size: int) -> bool:
        return False

    async def send(self, header: bytes, payload: memoryview) -> None:
        changed = self._change(self._count, header, bytes(payload))
        self._count += 1
        for changed_header, changed_payload in changed:
            await self._link.send(changed_header, changed_payload)
