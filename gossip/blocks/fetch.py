"""Fetching one artefact from many holders at once (trio driver).

A visit to a holder asks for the manifest and the leaf hashes as long as they are not known, then for its blocks, then opens a bulk pool
with it; what goes through which pool says the `planner`. Each block is received into memory of its own, hashed and written to
the sink, in a thread if that goes to a disk, and counts only then. Visits end when the holder is lost, lies, or refuses; others take their place, found by
`seek` again and again.

What was not written when the fetch ends, by an error, a cancellation or a SIGKILL, is all that the next one has to fetch.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import attrs
import trio

from gossip.blocks.bitmap import unpack_bits
from gossip.blocks.errors import ArtefactUnavailable, InvalidArtefact
from gossip.blocks.library import Sink
from gossip.blocks.manifest import Manifest, artefact_id
from gossip.blocks.merkle import BLOCK_BYTES, PAGE, leaf_hash
from gossip.blocks.messages import (
    NONCE_BYTES,
    Answer,
    Data,
    GetManifest,
    GetPage,
    Have,
    Open,
    Opened,
    Refused,
    Request,
    block_tag,
    pool_label,
)
from gossip.blocks.planner import HolderReport, Planner, PlannerSettings
from gossip.blocks.serve import PROTOCOL, ask
from transport.bulk.pool import BulkPool, PoolBroken, TransferCancelled, open_bulk_pool
from transport.endpoint import Endpoint
from transport.errors import MalformedMessage, TransportError
from transport.identity import NodeId
from transport.peer import Peer

__all__ = ["Fetch", "FetchSettings", "HolderView"]

ASK_S: Final = 10.0
"""For one call to a holder; no answer is larger than 64 KiB."""
SEEK_S: Final = 2.0
"""Between two looks for more holders."""
REFRESH_S: Final = 2.0
"""Between two questions to a holder that does not have everything."""
RETRY_S: Final = 2.0
"""After a visit that failed, doubled for each further one up to `MOST_RETRY_S`."""
MOST_RETRY_S: Final = 30.0
GOODBYE_S: Final = 1.0
"""For closing the pools at the end."""
WRITERS: Final = 3
"""Threads that hash and write."""

Seek = Callable[[], Awaitable[Sequence[Peer]]]
"""Gives peers that may hold the artefact, connecting to them if need be; called again and again, and cancelled when the fetch ends."""
Prepare = Callable[[Manifest, list[bytes]], Awaitable[Sink]]
"""Gives the sink, once manifest and leaves are known and checked."""


@attrs.frozen(kw_only=True)
class FetchSettings:
    """How a fetch goes about it."""

    holders: int = 8
    """Asked at once."""
    links: int = 4
    """Bulk connections with one holder, at most."""
    patience_s: float = 60.0
    """Without anything new and with nobody to ask, until it is given up."""
    planner: PlannerSettings = attrs.field(factory=PlannerSettings)


@attrs.frozen
class HolderView:
    """One holder, as a person would like to see it."""

    node_id: NodeId
    active: bool
    report: HolderReport
    reason: str
    """Why the last visit ended; "" if it goes on."""


@attrs.define(eq=False)
class _Session:
    pool: BulkPool
    nursery: trio.Nursery
    scopes: dict[int, trio.CancelScope] = attrs.field(factory=dict)


class _Lied(Exception):
    """What a holder gave is provably not what was asked for."""


class _Declined(Exception):
    """A holder said that it does not give it."""


class Fetch:
    """One artefact on its way; `run` does it.

    Args:
        endpoint: ours.
        artefact: its id.
        prepare: see `Prepare`.
        seek: see `Seek`.
        rng: spreads the load over holders.
        random_bytes: nonces.
        manifest, leaves: if they are known here already.
        protocol: under which the holders serve.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        artefact: bytes,
        prepare: Prepare,
        seek: Seek,
        *,
        rng: random.Random,
        random_bytes: Callable[[int], bytes],
        manifest: Manifest | None = None,
        leaves: list[bytes] | None = None,
        protocol: str = PROTOCOL,
        settings: FetchSettings | None = None,
    ) -> None:
        self.artefact = artefact
        self.manifest = manifest
        self.planner: Planner[NodeId] | None = None
        self._endpoint, self._protocol = endpoint, protocol
        self._prepare, self._seek = prepare, seek
        self._rng, self._random_bytes = rng, random_bytes
        self._settings = settings or FetchSettings()
        self._pages: list[bytes] = [] if leaves is None else leaves
        self._leaves = leaves
        self._sink: Sink | None = None
        self._learning = trio.Lock()
        self._visiting: set[NodeId] = set()
        self._sessions: dict[NodeId, _Session] = {}
        self._reasons: dict[NodeId, str] = {}
        self._failures: dict[NodeId, int] = {}
        self._again_at: dict[NodeId, float] = {}
        self._liars: dict[NodeId, HolderReport] = {}
        self._buffers: list[bytearray] = []
        self._writers = trio.CapacityLimiter(WRITERS)
        self._wake = trio.Event()
        self._new_at = 0.0
        self._attempts = 0
        self._over = False

    # What can be seen

    @property
    def blocks_missing(self) -> int | None:
        """How many; None while that is not known."""
        return None if self.planner is None else self.planner.missing

    def holders(self) -> list[HolderView]:
        """Everybody who was asked, in the order of their first visit."""
        reports = {} if self.planner is None else self.planner.reports
        names = dict.fromkeys([*self._reasons, *reports])
        return [
            HolderView(
                name,
                name in self._visiting,
                self._liars.get(name) or reports.get(name) or HolderReport(),
                self._reasons.get(name, ""),
            )
            for name in names
        ]

    # Running

    async def run(self) -> Manifest:
        """Fetch what is missing; returns when every block is in the sink.

        Waits as long as there is progress. Cancelling leaves what was written.

        Raises:
            ArtefactUnavailable: nobody could give the rest; the message has every holder's reason.
            StoreFull, StoreFailed: the sink cannot take more.
        """
        self._new_at = trio.current_time()
        if self.manifest is not None and self._leaves is not None:
            await self._begin()
        failure: list[Exception] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._look_around, nursery, failure)
            try:
                await self._drive(failure)
                await self._say_goodbye()
            finally:
                nursery.cancel_scope.cancel()
        if failure:
            raise failure[0]
        assert self.manifest is not None
        return self.manifest

    async def _drive(self, failure: list[Exception]) -> None:
        """Carry out the plan until it is fulfilled, or has failed."""
        while not failure and not (self.planner is not None and self.planner.finished):
            self._wake = trio.Event()
            deadline = self._patience_ends()
            planner, now = self.planner, trio.current_time()
            if planner is not None:
                for late in planner.tick(now):
                    self._give_up(late.holder, late.block)
                for request in planner.requests(now):
                    session = self._sessions[request.holder]
                    session.nursery.start_soon(
                        self._request, request.holder, session, request.block, failure
                    )
                deadline = min(deadline, planner.next_deadline() or float("inf"))
            if now >= self._patience_ends():
                failure.append(ArtefactUnavailable(self._complaint()))
                return
            with trio.move_on_at(deadline):
                await self._wake.wait()

    async def _say_goodbye(self) -> None:
        """Close the pools in order, so that the holders have their places back at once."""
        self._over = True
        open_now = dict(self._sessions)
        for session in open_now.values():
            session.nursery.cancel_scope.cancel()
        with trio.move_on_after(GOODBYE_S):
            while not self._visiting.isdisjoint(open_now):
                self._wake = trio.Event()
                await self._wake.wait()

    def _patience_ends(self) -> float:
        """With requests under way their own deadlines say when something has to happen."""
        busy = self.planner is not None and self.planner.under_way
        return float("inf") if busy else self._new_at + self._settings.patience_s

    def _complaint(self) -> str:
        reasons = [f"{name.short}: {why}" for name, why in self._reasons.items() if why]
        what = self.artefact.hex()[:16]
        if self.planner is not None:
            what += f", {self.planner.missing} blocks of it"
        return f"nobody could give {what} ({'; '.join(reasons) or 'no holder is known'})"

    async def _look_around(self, nursery: trio.Nursery, failure: list[Exception]) -> None:
        """Visit holders, as many at once as the settings say."""
        while True:
            peers = list(await self._seek())
            self._rng.shuffle(peers)
            now = trio.current_time()
            for peer in [] if self._over else peers:
                name = peer.node_id
                if len(self._visiting) >= self._settings.holders:
                    break
                if name in self._visiting or name in self._liars:
                    continue
                if now < self._again_at.get(name, 0.0):
                    continue
                self._visiting.add(name)
                self._reasons[name] = ""
                nursery.start_soon(self._visit, peer, failure)
            await trio.sleep(SEEK_S)

    async def _visit(self, peer: Peer, failure: list[Exception]) -> None:
        name = peer.node_id
        try:
            await self._learn(peer)
            await self._exchange(peer)
            reason = "it closed the exchange"
        except (_Lied, InvalidArtefact) as error:
            self._liars[name] = HolderReport(bad=1, banned=True)
            reason = f"it gave what is not the artefact's: {error}"
        except MalformedMessage as error:
            reason = f"its answer makes no sense: {error}"
        except (_Declined, TransportError) as error:
            reason = str(error)
        except trio.TooSlowError:
            reason = f"it does not answer (given up after {ASK_S:.0f} s)"
        except Exception as error:  # noqa: BLE001 - of the sink: it ends the fetch, in one place
            failure.append(error)
            reason = str(error)
        finally:
            self._visiting.discard(name)
            self._wake.set()
        if self._over:
            reason = ""
        planner = self.planner
        if planner is not None and planner.banned(name):
            self._liars[name] = planner.reports[name]
            reason = "it gave a block that is not the artefact's"
        self._reasons[name] = reason
        failures = self._failures[name] = self._failures.get(name, -1) + 1
        pause_s = min(MOST_RETRY_S, RETRY_S * 2.0 ** min(failures, 10))
        self._again_at[name] = trio.current_time() + pause_s

    # Manifest and leaves

    async def _learn(self, peer: Peer) -> None:
        """Have manifest, leaves and sink, asking `peer` for what is missing."""
        if self.planner is not None:
            return
        if self.manifest is None:
            data = await self._data(peer, GetManifest(self.artefact))
            if artefact_id(data) != self.artefact:
                raise _Lied("its manifest has another hash")
            if self.manifest is None:
                self.manifest = Manifest.decode(data)
                self._new_at = trio.current_time()
        async with self._learning:  # one holder at a time: who comes next goes on where it stopped
            manifest = self.manifest
            while self._leaves is None and len(self._pages) < manifest.blocks:
                page = len(self._pages) // PAGE
                data = await self._data(peer, GetPage(self.artefact, page))
                self._pages += manifest.check_page(page, data)
                self._new_at = trio.current_time()
            if self._leaves is None:
                self._leaves = self._pages
            if self.planner is None:
                await self._begin()

    async def _begin(self) -> None:
        assert self.manifest is not None
        assert self._leaves is not None
        self._sink = sink = await self._prepare(self.manifest, self._leaves)
        self.planner = Planner(sink.have(), rng=self._rng, settings=self._settings.planner)
        self._wake.set()

    async def _data(self, peer: Peer, request: Request) -> bytes:
        answer = await self._ask(peer, request)
        if not isinstance(answer, Data):
            raise MalformedMessage("an answer to another question")
        return answer.data

    async def _ask(self, peer: Peer, request: Request) -> Answer:
        with trio.fail_after(ASK_S):
            answer = await ask(peer, self._protocol, request)
        if isinstance(answer, Refused):
            raise _Declined(f"it refused: {answer.reason}")
        return answer

    # Blocks

    async def _exchange(self, peer: Peer) -> None:
        planner, manifest, name = self.planner, self.manifest, peer.node_id
        assert planner is not None
        assert manifest is not None
        bitmap = unpack_bits(await self._data(peer, Have(self.artefact)), manifest.blocks)
        nonce = self._random_bytes(NONCE_BYTES)
        opened = await self._ask(peer, Open(self.artefact, nonce))
        if not isinstance(opened, Opened):
            raise MalformedMessage("an answer to another question")
        async with (
            open_bulk_pool(
                self._endpoint, peer, pool_label(nonce), max_links=self._settings.links, asks=True
            ) as pool,
            trio.open_nursery() as nursery,
        ):
            session = self._sessions[name] = _Session(pool, nursery)
            try:
                if not planner.add(name, bitmap, opened.window):
                    return
                self._wake.set()
                nursery.start_soon(self._refresh, peer, bool(bitmap.all()))
                await pool.wait_over()
            finally:
                nursery.cancel_scope.cancel()
                planner.remove(name)
                if self._sessions.get(name) is session:
                    del self._sessions[name]
                self._wake.set()

    async def _refresh(self, peer: Peer, complete: bool) -> None:
        """Ask again what a holder has that did not have everything, or has refused something since."""
        planner, manifest = self.planner, self.manifest
        assert planner is not None
        assert manifest is not None
        seen = planner.reports[peer.node_id].refused
        while True:
            await trio.sleep(REFRESH_S)
            report = planner.reports[peer.node_id]
            if complete and report.refused == seen:
                continue
            seen = report.refused
            try:
                bitmap = unpack_bits(await self._data(peer, Have(self.artefact)), manifest.blocks)
            except (TransportError, InvalidArtefact, _Declined, trio.TooSlowError):
                continue  # if it is gone, the pool will say so
            complete = bool(bitmap.all())
            planner.update(peer.node_id, bitmap)
            self._wake.set()

    async def _request(
        self, name: NodeId, session: _Session, block: int, failure: list[Exception]
    ) -> None:
        planner, manifest = self.planner, self.manifest
        assert planner is not None
        assert manifest is not None
        buffer = self._buffers.pop() if self._buffers else bytearray(BLOCK_BYTES)
        view = memoryview(buffer)[: manifest.block_size(block)]
        scope = session.scopes[block] = trio.CancelScope()
        self._attempts += 1
        tag = block_tag(block, self._attempts)
        try:
            with scope:
                await session.pool.receive(tag, view)
                assert self._sink is not None
                if self._sink.blocking:
                    good = await trio.to_thread.run_sync(
                        self._keep, block, view, limiter=self._writers
                    )
                else:
                    good = self._keep(block, view)
                if session.scopes.get(block) is scope:
                    del session.scopes[block]
                self._judge(name, block, good=good)
        except TransferCancelled:
            planner.refused(name, block)
        except PoolBroken:
            pass  # the visit ends, and the planner hears of it there
        except Exception as error:  # noqa: BLE001 - of the sink: it ends the fetch, in one place
            failure.append(error)
        finally:
            if session.scopes.get(block) is scope:
                del session.scopes[block]
            self._buffers.append(buffer)
            self._wake.set()

    def _keep(self, block: int, view: memoryview) -> bool:
        """Check a block and write it, perhaps in a thread; whether it was the right one."""
        assert self._leaves is not None
        assert self._sink is not None
        if leaf_hash(view) != self._leaves[block]:
            return False
        assert self.planner is not None
        if not self.planner.have[block]:  # a second copy, in the end-game
            self._sink.write(block, view)
        return True

    def _judge(self, name: NodeId, block: int, *, good: bool) -> None:
        planner = self.planner
        assert planner is not None
        for request in planner.arrived(name, block, trio.current_time(), good=good):
            self._give_up(request.holder, request.block)
        if good:
            self._new_at = trio.current_time()
            self._failures.pop(name, None)
        elif name in self._sessions:
            self._sessions[name].nursery.cancel_scope.cancel()

    def _give_up(self, name: NodeId, block: int) -> None:
        session = self._sessions.get(name)
        scope = None if session is None else session.scopes.pop(block, None)
        if scope is not None:
            scope.cancel()
