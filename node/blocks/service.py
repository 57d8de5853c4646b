"""Artefacts at this node, while the daemon runs: serving, announcing, putting, fetching (trio driver).

Holders of an artefact are found in the DHT under its id (one record per artefact, not per block); they are hints, as always: what counts is the hash.
The most recently used artefacts are announced, as many as other nodes take records from one signer.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import trio

from dht.contact import sane_address
from dht.errors import DhtError
from dht.provider import Kind, Provider
from dht.service import Dht
from gossip.blocks.errors import InvalidArtefact
from gossip.blocks.fetch import Fetch
from gossip.blocks.library import Sink
from gossip.blocks.manifest import Manifest
from gossip.blocks.serve import BlockServer, ServeSettings, open_block_server
from node.blocks.files import Source, put_files, sources_of
from node.blocks.jobs import Job, Jobs
from node.blocks.library import InPlace, NodeLibrary
from node.blocks.store import BlockStore
from node.errors import NodedError
from transport.address import Address
from transport.endpoint import Endpoint
from transport.errors import InvalidAddress, TransportError
from transport.identity import NodeId
from transport.peer import Peer

__all__ = ["NodeBlocks", "open_blocks"]

T = TypeVar("T")

MAX_ANNOUNCED: Final = 32
"""Artefacts announced: half of the records that nodes take from one signer; the other half is for runs and addresses."""
ANNOUNCE_S: Final = 5.0
"""Between two looks for artefacts that are not announced yet."""
SEARCH_S: Final = 10.0
"""Between two searches in the DHT for one artefact."""
DIAL_S: Final = 5.0
MAX_BLAMED: Final = 256
"""Nodes whose bad blocks are remembered."""

_log = logging.getLogger(__name__)


class NodeBlocks:
    """What the daemon and its control API see; made by `open_blocks`."""

    def __init__(
        self,
        endpoint: Endpoint,
        dht: Dht,
        store: BlockStore,
        library: NodeLibrary,
        *,
        server: BlockServer,
        nursery: trio.Nursery,
        rng: random.Random,
        random_bytes: Callable[[int], bytes],
        advertised: Callable[[], tuple[str, ...]],
    ) -> None:
        self.store, self.library, self.server = store, library, server
        self.jobs = Jobs(nursery)
        self.bad_blocks: Counter[NodeId] = Counter()
        """Blocks that were not what they should be, by the node that they came from."""
        self._endpoint, self._dht = endpoint, dht
        self._rng, self._random_bytes, self._advertised = rng, random_bytes, advertised
        self._disk = trio.CapacityLimiter(2)
        self._fetching: dict[bytes, Fetch] = {}
        self._turns: dict[bytes, tuple[trio.Lock, int]] = {}

    # Putting

    async def put(self, job: Job, path: Path, *, pin: bool) -> None:
        """Copy a file or folder into the store; raises what `put_files` does."""

        def copy() -> Manifest:
            sources = sources_of(path)
            kind = "file" if path.is_file() else "folder"
            job.size = sum(source.file.stat().st_size for source in sources)

            def progress(done: int) -> None:
                job.done_bytes = done
                trio.from_thread.check_cancelled()

            return put_files(self.store, kind, sources, pin=pin, progress=progress)

        manifest = await self._in_thread(copy)
        job.artefact, job.size, job.done_bytes = manifest.id, manifest.size, manifest.size

    async def put_task(self, sources: Sequence[Source], entry: str) -> bytes:
        """Keep the code of a task, for nodes that want to look at it; returns its id."""

        def copy() -> Manifest:
            return put_files(self.store, "task", sources, entry=entry)

        return (await self._in_thread(copy)).id

    async def show_checkpoint(self, folder: Path, before: bytes | None) -> bytes | None:
        """Serve a checkpoint from where it lies, in place of an earlier one; returns its id, None if it is gone already."""
        try:
            place = await self._in_thread(lambda: InPlace.of("checkpoint", sources_of(folder)))
        except (NodedError, InvalidArtefact) as error:
            _log.info("the checkpoint %s is not offered to others: %s", folder.name, error)
            return None
        if before is not None:
            self.library.hide(before)
        return self.library.show(place)

    # Fetching

    async def get(self, job: Job, artefact: bytes, *, pin: bool = False) -> None:
        """Have all of an artefact in the store, fetching what is missing.

        Raises:
            ArtefactUnavailable, StoreFull, StoreFailed: what has arrived stays.
        """
        job.artefact = artefact
        # A holder has one exchange with us for an artefact: two fetches of it would take each other's.
        async with self._turn(artefact):
            await self._fetch(job, artefact, pin=pin)

    @asynccontextmanager
    async def _turn(self, artefact: bytes) -> AsyncIterator[None]:
        lock, users = self._turns.get(artefact, (trio.Lock(), 0))
        self._turns[artefact] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._turns.pop(artefact)
            if users > 1:
                self._turns[artefact] = (lock, users - 1)

    async def _fetch(self, job: Job, artefact: bytes, *, pin: bool) -> None:
        async def prepare(manifest: Manifest, leaves: list[bytes]) -> Sink:
            sink = await self._in_thread(self.store.add, manifest, leaves)
            job.size = manifest.size
            return sink

        fetch = Fetch(
            self._endpoint,
            artefact,
            prepare,
            _Seeker(self, artefact).seek,
            rng=self._rng,
            random_bytes=self._random_bytes,
            manifest=self.store.manifest(artefact),
            leaves=self.store.leaves(artefact),
        )
        job.further = lambda: {"holders": _holders(fetch), **_missing(fetch)}
        self._fetching[artefact] = fetch
        counting = trio.CancelScope()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_count, job, fetch, counting)
                await fetch.run()
                counting.cancel()
            if pin:
                await self._in_thread(self.store.pin, artefact)
            job.done_bytes = job.size or 0
        finally:
            del self._fetching[artefact]
            self.store.release(artefact)
            for view in fetch.holders():
                if view.report.bad and (
                    view.node_id in self.bad_blocks or len(self.bad_blocks) < MAX_BLAMED
                ):
                    self.bad_blocks[view.node_id] += view.report.bad

    async def seek(self, artefact: bytes) -> list[Peer]:
        """Holders that the DHT names, connected if they can be; else all connected peers."""
        providers: list[Provider] = []
        try:
            with trio.move_on_after(SEARCH_S):
                providers = await self._dht.providers(Kind.BLOCK, artefact)
        except DhtError as error:
            _log.debug("no search for holders: %s", error)
        async with trio.open_nursery() as nursery:
            for provider in providers[:MAX_ANNOUNCED]:
                nursery.start_soon(self._connect, provider)
        peers = self._endpoint.peers
        named = [peers[node] for each in providers if (node := NodeId(each.node_id)) in peers]
        return named + [peer for peer in peers.values() if peer not in named]

    async def _connect(self, provider: Provider) -> None:
        node = NodeId(provider.node_id)
        if node == self._endpoint.node_id or node in self._endpoint.peers:
            return
        loopback = any(own.is_loopback for own in self._endpoint.addresses)
        parsed = []
        for text in provider.addresses:
            try:
                if sane_address(text, loopback=loopback):
                    parsed.append(Address.parse(text))
            except InvalidAddress:
                continue
        with trio.move_on_after(DIAL_S):
            try:
                await self._endpoint.connect(parsed, expected=node)
            except TransportError as error:
                _log.debug("holder %s not reached: %s", node.short, error)

    # Announcing

    async def announce(self) -> None:
        """Keep the artefacts that can be given in the DHT, until cancelled."""
        told: dict[bytes, tuple[str, ...]] = {}
        while True:
            at = self._advertised()
            wanted = [] if not at else self.library.ids()[:MAX_ANNOUNCED]
            for artefact in [each for each in told if each not in wanted]:
                self._dht.withdraw_provided(Kind.BLOCK, artefact)
                del told[artefact]
            for artefact in wanted:
                if told.get(artefact) == at:
                    continue
                try:
                    await self._dht.provide(Kind.BLOCK, artefact, at)
                except DhtError as error:
                    _log.info("an artefact could not be announced: %s", error)
                told[artefact] = at
            await trio.sleep(ANNOUNCE_S)

    # For people

    def document(self) -> dict[str, Any]:
        """What is here, as JSON."""
        usage = self.store.usage()
        rows = []
        for artefact in self.library.ids():
            manifest, have = self.library.manifest(artefact), self.library.have(artefact)
            if manifest is None or have is None:
                continue
            rows.append(
                {
                    "id": artefact.hex(),
                    "kind": manifest.kind,
                    "size": manifest.size,
                    "blocks": manifest.blocks,
                    "missing": int(manifest.blocks - have.sum()),
                    "pinned": self.store.pinned(artefact),
                    "files": len(manifest.files),
                    "name": manifest.files[0].path if len(manifest.files) == 1 else "",
                }
            )
        return {
            "schema": "noded.blocks/1",
            "artefacts": rows,
            "bytes": usage.bytes,
            "quota_bytes": usage.quota_bytes,
            "damaged_blocks": usage.damaged,
            "fetching": [artefact.hex() for artefact in self._fetching],
            "serving": self.server.sessions,
            "served": dict(sorted(self.server.counters.items())),
            "bad_blocks": {str(node): count for node, count in self.bad_blocks.items()},
        }

    async def _in_thread(self, function: Callable[..., T], *args: object) -> T:
        return await trio.to_thread.run_sync(function, *args, limiter=self._disk)


class _Seeker:
    """Searches the DHT now and then; in between the connected peers will do."""

    def __init__(self, blocks: NodeBlocks, artefact: bytes) -> None:
        self._blocks, self._artefact = blocks, artefact
        self._next_at = float("-inf")

    async def seek(self) -> list[Peer]:
        now = trio.current_time()
        if now >= self._next_at:
            self._next_at = now + SEARCH_S
            return await self._blocks.seek(self._artefact)
        return list(self._blocks._endpoint.peers.values())  # noqa: SLF001 (one unit)


async def _count(job: Job, fetch: Fetch, scope: trio.CancelScope) -> None:
    with scope:
        while True:
            missing = fetch.blocks_missing
            if missing is not None and fetch.manifest is not None and fetch.manifest.blocks:
                share = 1 - missing / fetch.manifest.blocks
                job.done_bytes = int(fetch.manifest.size * share)
            await trio.sleep(0.1)


def _missing(fetch: Fetch) -> dict[str, Any]:
    blocks = None if fetch.manifest is None else fetch.manifest.blocks
    return {"blocks": blocks, "missing": fetch.blocks_missing}


def _holders(fetch: Fetch) -> list[dict[str, Any]]:
    return [
        {
            "id": str(view.node_id),
            "short_id": view.node_id.short,
            "active": view.active,
            "blocks": view.report.blocks,
            "bad": view.report.bad,
            "late": view.report.late,
            "refused": view.report.refused,
            "banned": view.report.banned,
            "reason": view.reason,
        }
        for view in fetch.holders()
    ]


@asynccontextmanager
async def open_blocks(
    endpoint: Endpoint,
    dht: Dht,
    root: Path,
    *,
    quota_bytes: int,
    upload_bytes_per_s: int,
    rng: random.Random,
    random_bytes: Callable[[int], bytes],
    advertised: Callable[[], tuple[str, ...]],
) -> AsyncIterator[NodeBlocks]:
    """Keep, serve and fetch artefacts for as long as the block runs.

    Raises:
        StoreFailed, StoreFull: the folder cannot be used.
    """
    store = await trio.to_thread.run_sync(lambda: BlockStore(root, quota_bytes=quota_bytes))
    library = NodeLibrary(store)
    settings = ServeSettings(upload_bytes_per_s=upload_bytes_per_s)
    async with (
        open_block_server(endpoint, library, settings=settings) as server,
        trio.open_nursery() as nursery,
    ):
        blocks = NodeBlocks(
            endpoint,
            dht,
            store,
            library,
            server=server,
            nursery=nursery,
            rng=rng,
            random_bytes=random_bytes,
            advertised=advertised,
        )
        nursery.start_soon(blocks.announce)
        try:
            yield blocks
        finally:
            nursery.cancel_scope.cancel()
