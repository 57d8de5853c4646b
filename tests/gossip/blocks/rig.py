"""Holders on one in-memory network: honest ones, and every kind that is not."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import attrs
import trio
import trio.testing

from gossip.blocks import bitmap as bits
from gossip.blocks.bitmap import Bitmap
from gossip.blocks.fetch import Fetch, FetchSettings
from gossip.blocks.library import Library, MemorySink, Sink, Vectors
from gossip.blocks.manifest import Manifest
from gossip.blocks.serve import BlockServer, ServeSettings, open_block_server
from tests.transport.nodes import address, nodes, seeded_bytes
from transport.endpoint import Endpoint
from transport.peer import Peer
from transport.simulated.memory import MemoryNetwork

MIB = 1 << 20


def content(size: int, seed: int = 0) -> bytearray:
    return bytearray(random.Random(seed).randbytes(size))


class Shelf(Library):
    """One artefact in memory, or a part of it; tests change what it says."""

    blocking = False

    def __init__(self, data: bytearray, *, have: Bitmap | None = None) -> None:
        self.vectors = Vectors("file", "artefact.bin", [memoryview(data)])
        list(self.vectors.hashing())
        self.blocks = self.vectors.manifest.blocks
        self.bitmap = bits.full(self.blocks) if have is None else have
        self.lies: set[int] = set()
        self.unreadable: set[int] = set()
        self.reads: list[int] = []
        self.on_read: Callable[[int], None] = lambda _block: None

    @property
    def id(self) -> bytes:
        return self.vectors.manifest.id

    def manifest(self, artefact: bytes) -> Manifest | None:
        return self.vectors.manifest if artefact == self.id else None

    def page(self, artefact: bytes, page: int) -> bytes | None:
        return self.vectors.page(page) if artefact == self.id else None

    def have(self, artefact: bytes) -> Bitmap | None:
        return self.bitmap if artefact == self.id else None

    def read(self, artefact: bytes, block: int) -> bytes | None:
        if artefact != self.id or not self.bitmap[block] or block in self.unreadable:
            return None
        self.reads.append(block)
        self.on_read(block)
        data = bytes(self.vectors.read(block))
        return data[:-1] + bytes([data[-1] ^ 1]) if block in self.lies else data


class ListSink(MemorySink):
    """Counts what was written, and may refuse."""

    def __init__(self, into: bytearray) -> None:
        super().__init__([memoryview(into)])
        self.written: list[int] = []
        self.fail: Exception | None = None

    def write(self, block: int, data: memoryview) -> None:
        if self.fail is not None:
            raise self.fail
        super().write(block, data)
        self.written.append(block)


@attrs.define
class World:
    fetcher: Endpoint
    holders: list[Endpoint]
    shelves: list[Shelf]
    servers: list[BlockServer]
    into: bytearray
    sink: ListSink

    def fetch(
        self,
        artefact: bytes | None = None,
        *,
        by: Endpoint | None = None,
        sink: Sink | None = None,
        **settings: object,
    ) -> Fetch:
        fetcher = by or self.fetcher

        async def prepare(_manifest: Manifest, _leaves: list[bytes]) -> Sink:
            return sink or self.sink

        async def seek() -> list[Peer]:
            return list(fetcher.peers.values())

        return Fetch(
            fetcher,
            self.shelves[0].id if artefact is None else artefact,
            prepare,
            seek,
            rng=random.Random(5),
            random_bytes=seeded_bytes("nonce"),
            settings=FetchSettings(**settings),  # type: ignore[arg-type]
        )

    def named(self, fetch: Fetch) -> dict[int, object]:
        """The fetch's view of its holders, by their number."""
        numbers = {holder.node_id: number for number, holder in enumerate(self.holders)}
        return {numbers[view.node_id]: view for view in fetch.holders()}


@asynccontextmanager
async def world(
    data: bytearray,
    count: int,
    *,
    network: MemoryNetwork | None = None,
    settings: ServeSettings | None = None,
) -> AsyncIterator[World]:
    """A fetcher that is connected to `count` holders of `data`."""
    network = network or MemoryNetwork(3)
    async with AsyncExitStack() as stack:
        fetcher, *holders = await stack.enter_async_context(nodes(network, count + 1))
        shelves = [Shelf(data) for _ in holders]
        servers = [
            await stack.enter_async_context(open_block_server(holder, shelf, settings=settings))
            for holder, shelf in zip(holders, shelves, strict=True)
        ]
        for number in range(count):
            await fetcher.connect([address(number + 2)])
        await trio.testing.wait_all_tasks_blocked()
        into = bytearray(len(data))
        yield World(fetcher, holders, shelves, servers, into, ListSink(into))
