"""Bulk pools over in-memory raw streams, with fixed keys instead of handshakes and without a control connection."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import trio

from transport.address import Address
from transport.bulk.link import BulkLink
from transport.bulk.pool import BulkPool, running
from transport.identity import Identity
from transport.network import RawListener, RawStream
from transport.secure.handshake import HandshakeResult, Intro
from transport.secure.record import Opener, Sealer
from transport.simulated.memory import MemoryNetwork

HOSTS = ("10.0.0.1", "10.0.0.2")
PORT = 4000


def result(seed: str, role: str, *, aegis: bool = False) -> HandshakeResult:
    keys = [hashlib.sha256(f"{seed}{side}".encode()).digest() for side in (0, 1)]
    ours, theirs = keys if role == "initiator" else keys[::-1]
    identity = Identity.from_seed(bytes(32))
    return HandshakeResult(
        node_id=identity.node_id,
        public_key=identity.public_key,
        member=None,
        intro=Intro(kind="bulk", name="", listen=(), label=b""),
        sealer=Sealer(ours, aegis=aegis),
        opener=Opener(theirs, aegis=aegis),
        session_id=bytes(32),
        leftover=b"",
        role=role,  # type: ignore[arg-type]
        tie_break=0,
        remote_tie_break=1,
    )


def ignore(_sent: int, _received: int) -> None:
    pass


class Side:
    """One host: opens links to the other, and accepts."""

    def __init__(self, world: MemoryNetwork, index: int) -> None:
        self.world, self.index = world, index
        self.opened = 0
        self.fail: Callable[[], None] = lambda: None  # may raise instead of opening
        self.listener: RawListener
        self.links: list[BulkLink] = []

    async def start(self) -> None:
        self.listener = await self.world.host(HOSTS[self.index]).listen(
            Address(HOSTS[self.index], PORT)
        )

    async def open(self) -> BulkLink:
        self.fail()
        self.opened += 1
        raw = await self.world.host(HOSTS[self.index]).connect(Address(HOSTS[1 - self.index], PORT))
        return self._link(raw, str(raw.local), "initiator")

    async def accept(self) -> BulkLink:
        raw = await self.listener.accept()
        return self._link(raw, str(raw.remote), "responder")

    def _link(self, raw: RawStream, seed: str, role: str) -> BulkLink:
        link = BulkLink(raw, result(seed, role), ignore)
        self.links.append(link)
        return link


@asynccontextmanager
async def pools(
    world: MemoryNetwork, **settings: Any
) -> AsyncIterator[tuple[BulkPool, BulkPool, Side, Side]]:
    """Two pools, and what they open their links with."""
    sides = [Side(world, index) for index in (0, 1)]
    for side in sides:
        await side.start()
    ends = [BulkPool(side.open, side.accept, **settings) for side in sides]
    async with AsyncExitStack() as stack:
        for end in ends:
            await stack.enter_async_context(running(end))
        yield ends[0], ends[1], sides[0], sides[1]


@asynccontextmanager
async def hostile(world: MemoryNetwork) -> AsyncIterator[tuple[BulkPool, BulkLink, Side]]:
    """A pool, and a bare link to it that its peer has opened and greeted on."""
    honest, other = Side(world, 0), Side(world, 1)
    await honest.start()
    await other.start()
    pool = BulkPool(honest.open, honest.accept)
    async with running(pool):
        with trio.fail_after(30):
            link = await other.open()
        yield pool, link, other
