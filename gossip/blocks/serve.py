"""Giving blocks to others (trio driver).

Answers the calls of `messages` from a `Library`, and runs one bulk pool per fetcher and artefact in which the fetcher asks for blocks by expecting their
tags. What is asked waits in `turns`, so that fetchers get equal shares and the upload cap holds; a block is read when its turn has come,
in a thread, and refused if it cannot be had any more.

Invariants: at most `sessions` pools, `sessions_per_peer` with one peer, one for an artefact; at most `places` blocks in memory; a fetcher that asks
for more than twice its window is refused the surplus; a pool that nobody uses for `IDLE_S` is closed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import attrs
import trio

from gossip.blocks.bitmap import pack_bits
from gossip.blocks.library import Library
from gossip.blocks.manifest import Manifest
from gossip.blocks.messages import (
    Answer,
    Data,
    GetManifest,
    GetPage,
    Have,
    Open,
    Opened,
    Refusal,
    Refused,
    Request,
    pool_label,
    read_tag,
)
from gossip.blocks.turns import Turns
from transport.bulk.pool import BulkPool, PoolBroken, TransferCancelled, open_bulk_pool
from transport.codec import decode_untrusted, pack
from transport.endpoint import Endpoint
from transport.errors import MalformedMessage
from transport.identity import NodeId
from transport.peer import Peer

__all__ = ["PROTOCOL", "BlockServer", "ServeSettings", "open_block_server"]

PROTOCOL: Final = "blocks"
IDLE_S: Final = 30.0
"""Without a request a fetcher's pool is closed; it may open another."""
SEND_S: Final = 330.0
"""For one block, so that a peer that takes nothing does not keep its place for ever. The fetcher's own patience is shorter."""
SLACK: Final = 2
"""A fetcher asks for the next block as soon as it has one; here that one counts until its acknowledgement has come."""
READERS: Final = 4
"""Threads that read blocks."""


@attrs.frozen(kw_only=True)
class ServeSettings:
    """How much a node gives to others."""

    upload_bytes_per_s: int = 0
    """Cap on all blocks together; 0 for none beyond `limits.upload_bytes_per_s`."""
    window: int = 16
    """Blocks that one fetcher may ask for at once."""
    places: int = 64
    """Blocks being read and sent at once, 1 MiB of memory each."""
    sessions: int = 32
    sessions_per_peer: int = 4
    links: int = 4
    """Bulk connections per pool, at most."""


@attrs.define(eq=False)
class _Session:
    peer: Peer
    manifest: Manifest
    scope: trio.CancelScope
    pool: BulkPool | None = None
    nursery: trio.Nursery | None = None
    replaced: bool = False
    asked: set[bytes] = attrs.field(factory=set)


class BlockServer:
    """Serves one library; made by `open_block_server`.

    Attributes:
        counters: requests and refusals by reason, and "blocks" and "bytes" sent.
    """

    def __init__(
        self, endpoint: Endpoint, library: Library, nursery: trio.Nursery, settings: ServeSettings
    ) -> None:
        self.counters: Counter[str] = Counter()
        self._endpoint, self._library = endpoint, library
        self._nursery, self._settings = nursery, settings
        self._turns: Turns[NodeId, tuple[_Session, int, bytes]] = Turns(
            places=settings.places,
            queue=settings.window * settings.sessions_per_peer,
            bytes_per_s=settings.upload_bytes_per_s,
        )
        self._sessions: set[_Session] = set()
        self._readers = trio.CapacityLimiter(READERS)
        self._wake = trio.Event()

    @property
    def sessions(self) -> int:
        """Fetchers being served now."""
        return len(self._sessions)

    # Calls

    async def answer(self, peer: Peer, request: bytes) -> bytes:
        """Answer one call; whatever the bytes, there is an answer."""
        try:
            wanted: Request = decode_untrusted(request, Request)  # type: ignore[arg-type]
        except MalformedMessage:
            return pack(self._refuse(Refusal.MALFORMED))
        return pack(self._reply(peer, wanted))

    def _reply(self, peer: Peer, wanted: Request) -> Answer:
        library = self._library
        manifest = library.manifest(wanted.id)
        if manifest is None:
            return self._refuse(Refusal.UNKNOWN)
        match wanted:
            case GetManifest():
                return Data(manifest.raw)
            case GetPage(artefact, page):
                if page >= len(manifest.pages):
                    return self._refuse(Refusal.MALFORMED)
                leaves = library.page(artefact, page)
                return self._refuse(Refusal.UNKNOWN) if leaves is None else Data(leaves)
            case Have(artefact):
                have = library.have(artefact)
                return self._refuse(Refusal.UNKNOWN) if have is None else Data(pack_bits(have))
            case Open(_, nonce):
                return self._open(peer, manifest, nonce)

    def _refuse(self, reason: Refusal) -> Refused:
        self.counters[f"refused-{reason}"] += 1
        return Refused(reason)

    def _open(self, peer: Peer, manifest: Manifest, nonce: bytes) -> Answer:
        settings = self._settings
        for session in self._sessions:
            # It begins anew, and may have broken off the last one without a word.
            if session.peer is peer and session.manifest.id == manifest.id and not session.replaced:
                session.replaced = True
                session.scope.cancel()
        of_peer = sum(session.peer is peer and not session.replaced for session in self._sessions)
        if len(self._sessions) >= settings.sessions or of_peer >= settings.sessions_per_peer:
            return self._refuse(Refusal.BUSY)
        scope = trio.CancelScope(deadline=trio.current_time() + IDLE_S)
        session = _Session(peer, manifest, scope)
        self._sessions.add(session)
        self._nursery.start_soon(self._serve, session, nonce)
        return Opened(settings.window)

    # One fetcher

    async def _serve(self, session: _Session, nonce: bytes) -> None:
        def wanted(tag: bytes, size: int) -> None:
            self._asked(session, tag, size)

        try:
            with session.scope:
                async with (
                    open_bulk_pool(
                        self._endpoint,
                        session.peer,
                        pool_label(nonce),
                        max_links=self._settings.links,
                        wanted=wanted,
                    ) as pool,
                    trio.open_nursery() as nursery,
                ):
                    session.pool, session.nursery = pool, nursery
                    await pool.wait_over()
                    nursery.cancel_scope.cancel()
        finally:
            session.nursery = None
            self._sessions.discard(session)
            self._wake.set()

    def _asked(self, session: _Session, tag: bytes, size: int) -> None:
        """The fetcher expects a tag in its pool."""
        pool, manifest, block = session.pool, session.manifest, read_tag(tag)
        assert pool is not None, "nothing is expected before there are links"
        session.scope.deadline = trio.current_time() + IDLE_S
        good = (
            block is not None
            and block < manifest.blocks
            and size == manifest.block_size(block)
            and len(session.asked) < SLACK * self._settings.window
        )
        name = session.peer.node_id
        if not good or block is None or not self._turns.put(name, (session, block, tag), size):
            self.counters["refused-request"] += 1
            pool.refuse(tag)
            return
        session.asked.add(tag)
        self._wake.set()

    async def run(self) -> None:
        """Hand out turns until cancelled."""
        while True:
            self._wake = trio.Event()
            now = trio.current_time()
            while (turn := self._turns.next(now)) is not None:
                name, (session, block, tag) = turn
                if session.nursery is None:  # it has ended since
                    self._turns.done(name)
                else:
                    session.nursery.start_soon(self._send, name, session, block, tag)
            at = self._turns.next_at(now)
            with trio.move_on_at(float("inf") if at is None else at):
                await self._wake.wait()

    async def _send(self, name: NodeId, session: _Session, block: int, tag: bytes) -> None:
        pool = session.pool
        assert pool is not None
        try:
            if not pool.wants(tag):  # given up while it waited for its turn
                return
            read, artefact = self._library.read, session.manifest.id
            if self._library.blocking:
                data = await trio.to_thread.run_sync(read, artefact, block, limiter=self._readers)
            else:
                data = read(artefact, block)
            if data is None or len(data) != session.manifest.block_size(block):
                self.counters["refused-unreadable"] += 1
                pool.refuse(tag)
            elif pool.wants(tag):
                with trio.fail_after(SEND_S):
                    await pool.send(tag, data)
                self.counters["blocks"] += 1
                self.counters["bytes"] += len(data)
                session.scope.deadline = trio.current_time() + IDLE_S
        except (TransferCancelled, PoolBroken, trio.TooSlowError):
            pass  # the fetcher has given it up, or is gone
        finally:
            session.asked.discard(tag)
            self._turns.done(name)
            self._wake.set()


@asynccontextmanager
async def open_block_server(
    endpoint: Endpoint,
    library: Library,
    *,
    protocol: str = PROTOCOL,
    settings: ServeSettings | None = None,
) -> AsyncIterator[BlockServer]:
    """Serve `library` to every connected peer for as long as the block runs.

    Leaving it closes all pools; what was under way is asked elsewhere by those who wanted it.

    Raises:
        UsageError: the protocol is served already.
    """
    async with trio.open_nursery() as nursery:
        server = BlockServer(endpoint, library, nursery, settings or ServeSettings())
        endpoint.serve_calls(protocol, server.answer)
        nursery.start_soon(server.run)
        try:
            yield server
        finally:
            endpoint.unserve(protocol)
            nursery.cancel_scope.cancel()


async def ask(peer: Peer, protocol: str, request: Request) -> Answer:
    """Make one call to a holder.

    Raises:
        MalformedMessage: the answer is none.
        TransportError: the peer is lost, or does not serve the protocol.
    """
    return decode_untrusted(await peer.call(protocol, pack(request)), Answer)  # type: ignore[arg-type]
