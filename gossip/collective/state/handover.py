"""Handing the consensus state to a member that lacks it (trio driver).

All members that stand at one round hold the same bytes, so a newcomer takes them from all of them at once, as an artefact (`gossip.blocks`) that lies in
the members' own memory: each asked member describes what it holds (sizes, Merkle manifest); those with the same description are fetched from together,
block by block, each block checked as it comes; the largest such group goes first. What was assembled counts only if it has the digest of the epoch's
start state, which is in the certificate, so a group that described another state together costs one attempt and never changes anything: the
vectors are written to the fetcher's own memory, but nobody is told to use them before the digest matches.

Blame: a block that does not fit its description is one member's doing and known to be (it loses its place in this fetch); a description that does
not fit the certificate is that of all who gave it. A member whose state moves on while it is being fetched from stops giving blocks.

Everything is hashed where it lies, one block (0.6 ms) at a time, and not in threads: whole runs have to be the same to the last byte under a virtual clock.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any, Final

import attrs
import msgspec
import numpy.typing as npt
import trio

from gossip.blocks import bitmap as bits
from gossip.blocks.bitmap import Bitmap
from gossip.blocks.errors import BlocksError
from gossip.blocks.fetch import Fetch, FetchSettings
from gossip.blocks.library import Library, MemorySink, Sink, Vectors
from gossip.blocks.manifest import MAX_MANIFEST_BYTES, Manifest
from gossip.blocks.planner import PlannerSettings
from gossip.blocks.serve import ServeSettings, open_block_server
from gossip.collective.agreement.certificate import Bytes32
from gossip.collective.links.buffers import as_bytes
from gossip.errors import StateUnavailable
from transport.buffer import Buffer
from transport.codec import decode_untrusted, pack
from transport.endpoint import Endpoint
from transport.errors import MalformedMessage, TransportError
from transport.identity import NodeId
from transport.peer import Peer

ANSWER_S: Final = 10.0
"""For a description, beside what hashing the state may take."""
HASH_BYTES_PER_S: Final = 100 << 20
"""A member is not expected to hash slower than this, beside its training."""
STALL_S: Final = 20.0
"""Without anything new and with nobody to ask, until a group of holders is given up."""
PATIENCE_S: Final = 10.0
"""For one block, at first; others are asked then."""
MIN_BYTES_PER_S: Final = 65536
"""A transfer has to be this fast on the whole: a trickle would hold the fetcher for ever."""
MAX_VECTORS: Final = 16

_SERVE: Final = ServeSettings(sessions=8, sessions_per_peer=2)
_FETCH: Final = FetchSettings(patience_s=STALL_S, planner=PlannerSettings(patience_s=PATIENCE_S))

Array = npt.NDArray[Any]


@attrs.frozen
class HeldState:
    """What a holder can hand over now."""

    round: int
    state: bytes
    vectors: Sequence[Array]


class _Request(msgspec.Struct, frozen=True):
    round: Annotated[int, msgspec.Meta(ge=0, le=2**53)]
    state: Bytes32


class _Answer(msgspec.Struct, frozen=True):
    ok: bool
    sizes: Annotated[tuple[int, ...], msgspec.Meta(max_length=MAX_VECTORS)] = ()
    manifest: Annotated[bytes, msgspec.Meta(max_length=MAX_MANIFEST_BYTES)] = b""
    reason: Annotated[str, msgspec.Meta(max_length=200)] = ""


class _Memory(Library):
    """The state that this member holds, as long as it does."""

    blocking = False

    def __init__(self, held: Callable[[], HeldState | None]) -> None:
        self._held = held
        self._described: HeldState | None = None
        self._vectors: Vectors | None = None
        self._describing = trio.Lock()

    async def describe(self, held: HeldState) -> Manifest | None:
        """The manifest of what is held, worked out once; None if it changed meanwhile."""
        async with self._describing:
            if not self._current():
                self._vectors, self._described = None, None
                vectors = Vectors("state", "state", [as_bytes(each) for each in held.vectors])
                for _ in vectors.hashing():
                    await trio.lowlevel.checkpoint()
                if not _same(held, self._held()):
                    return None
                self._vectors, self._described = vectors, held
            vectors_now = self._vectors
            return None if vectors_now is None else vectors_now.manifest

    def _current(self) -> Vectors | None:
        """What was described, if it is still held."""
        return self._vectors if _same(self._described, self._held()) else None

    def manifest(self, artefact: bytes) -> Manifest | None:
        """See `Library`."""
        vectors = self._current()
        return vectors.manifest if vectors and vectors.manifest.id == artefact else None

    def page(self, artefact: bytes, page: int) -> bytes | None:
        """See `Library`."""
        vectors = self._current()
        return vectors.page(page) if vectors and vectors.manifest.id == artefact else None

    def have(self, artefact: bytes) -> Bitmap | None:
        """See `Library`."""
        manifest = self.manifest(artefact)
        return None if manifest is None else bits.full(manifest.blocks)

    def read(self, artefact: bytes, block: int) -> Buffer | None:
        """See `Library`."""
        vectors = self._current()
        return vectors.read(block) if vectors and vectors.manifest.id == artefact else None


@attrs.define
class _Group:
    """Holders that gave the same description."""

    manifest: Manifest
    holders: list[Peer] = attrs.field(factory=list)


class Handover:
    """Serves this node's state and fetches others'; made by `open_handover`.

    Attributes:
        fetched: states brought up to date from others.
        blamed: bad blocks by the member they came from.
    """

    def __init__(
        self, endpoint: Endpoint, run: bytes, held: Callable[[], HeldState | None]
    ) -> None:
        self.fetched = 0
        self.blamed: Counter[NodeId] = Counter()
        self._endpoint = endpoint
        self._protocol = f"handover/{run.hex()[:32]}"
        self._blocks_protocol = f"handover-blocks/{run.hex()[:32]}"
        self._held = held
        self._memory = _Memory(held)

    async def fetch(
        self,
        round_: int,
        state: bytes,
        holders: Sequence[NodeId],
        into: Sequence[Array],
        digest: Callable[[], bytes],
        *,
        nonce: Callable[[], bytes],
    ) -> None:
        """Fill `into` with the state of (round_, state) from all holders that have it.

        Args:
            round_: rounds completed in the wanted state.
            state: its digest.
            holders: members to ask.
            into: one vector per consensus vector, of the right sizes.
            digest: computes the state digest of what lies in `into`.
            nonce: gives 16 fresh random bytes.

        Cancellation leaves `into` undefined.

        Raises:
            StateUnavailable: no holder could; the message has every holder's reason.
        """
        reasons: dict[NodeId, str] = {}
        groups = await self._ask_all(_Request(round_, state), holders, into, reasons)
        for group in sorted(groups, key=lambda group: -len(group.holders)):
            failed = await self._fetch_from(group, into, nonce)
            if failed is None and digest() == state:
                self.fetched += 1
                return
            for peer in group.holders:
                reasons[peer.node_id] = (
                    "sent another state than it announced"
                    if failed is None
                    else failed.get(peer.node_id, "it gave nothing")
                )
        told = [f"{holder.short}: {reasons[holder]}" for holder in dict.fromkeys(holders)]
        raise StateUnavailable("; ".join(told) or "nobody holds the state")

    async def _ask_all(
        self,
        request: _Request,
        holders: Sequence[NodeId],
        into: Sequence[Array],
        reasons: dict[NodeId, str],
    ) -> list[_Group]:
        """What each holder says it has, those that say the same together."""
        manifests: dict[NodeId, Manifest] = {}

        async def ask(peer: Peer) -> None:
            try:
                manifests[peer.node_id] = await self._describe(peer, request, into)
            except (TransportError, BlocksError, StateUnavailable) as error:
                reasons[peer.node_id] = str(error)

        async with trio.open_nursery() as nursery:
            for holder in dict.fromkeys(holders):
                peer = self._endpoint.peers.get(holder)
                if peer is None:
                    reasons[holder] = "not connected"
                else:
                    nursery.start_soon(ask, peer)
        groups: dict[bytes, _Group] = {}
        for holder in dict.fromkeys(holders):
            manifest, peer = manifests.get(holder), self._endpoint.peers.get(holder)
            if manifest is None:
                continue
            if peer is None:
                reasons[holder] = "lost meanwhile"
                continue
            groups.setdefault(manifest.id, _Group(manifest)).holders.append(peer)
        return list(groups.values())

    async def _describe(self, peer: Peer, request: _Request, into: Sequence[Array]) -> Manifest:
        size = sum(vector.nbytes for vector in into)
        allowed_s = ANSWER_S + size / HASH_BYTES_PER_S
        with trio.move_on_after(allowed_s):
            try:
                answer = decode_untrusted(await peer.call(self._protocol, pack(request)), _Answer)
            except MalformedMessage as error:
                raise StateUnavailable(f"malformed answer: {error}") from None
            if not answer.ok:
                raise StateUnavailable(answer.reason or "it refused without a reason")
            if answer.sizes != tuple(vector.nbytes for vector in into):
                raise StateUnavailable("its vectors have other sizes than ours")
            manifest = Manifest.decode(answer.manifest)
            if manifest.size != size:
                raise StateUnavailable("its manifest has another size than its vectors")
            return manifest
        raise StateUnavailable(f"it does not answer (given up after {allowed_s:.0f} s)")

    async def _fetch_from(
        self, group: _Group, into: Sequence[Array], nonce: Callable[[], bytes]
    ) -> dict[NodeId, str] | None:
        """Fetch what a group describes; None if all of it has come, else why not, by holder."""
        sink = MemorySink([as_bytes(vector) for vector in into])

        async def prepare(_manifest: Manifest, _leaves: list[bytes]) -> Sink:
            return sink

        async def seek() -> list[Peer]:
            peers = self._endpoint.peers
            return [each for each in group.holders if peers.get(each.node_id) is each]

        fetch = Fetch(
            self._endpoint,
            group.manifest.id,
            prepare,
            seek,
            rng=random.Random(nonce()),
            random_bytes=lambda _count: nonce(),
            manifest=group.manifest,
            protocol=self._blocks_protocol,
            settings=_FETCH,
        )
        allowed_s = STALL_S + group.manifest.size / MIN_BYTES_PER_S
        unfinished = ""
        try:
            with trio.move_on_after(allowed_s) as patience:
                await fetch.run()
        except BlocksError as error:
            unfinished = str(error)
        finally:
            for view in fetch.holders():
                if view.report.bad:
                    self.blamed[view.node_id] += view.report.bad
        if patience.cancelled_caught:
            unfinished = f"its transfer is too slow (given up after {allowed_s:.0f} s)"
        if not unfinished:
            return None
        return {view.node_id: view.reason or unfinished for view in fetch.holders()}

    async def serve(self, _peer: Peer, request: bytes) -> bytes:
        """Call handler: describe what is asked for, if this node holds exactly that."""
        wanted = decode_untrusted(request, _Request)
        held = self._held()
        if held is None or (held.round, held.state) != (wanted.round, wanted.state):
            return pack(_Answer(ok=False, reason="this node does not hold that state"))
        manifest = await self._memory.describe(held)
        if manifest is None:
            return pack(_Answer(ok=False, reason="this node's state has changed meanwhile"))
        sizes = tuple(vector.nbytes for vector in held.vectors)
        return pack(_Answer(ok=True, sizes=sizes, manifest=manifest.raw))


def _same(one: HeldState | None, other: HeldState | None) -> bool:
    """Whether both are one and the same state, in the same memory."""
    return (
        one is not None
        and other is not None
        and (one.round, one.state) == (other.round, other.state)
        and len(one.vectors) == len(other.vectors)
        and all(
            (a.ctypes.data, a.nbytes) == (b.ctypes.data, b.nbytes)
            for a, b in zip(one.vectors, other.vectors, strict=True)
        )
    )


@asynccontextmanager
async def open_handover(
    endpoint: Endpoint, run: bytes, held: Callable[[], HeldState | None]
) -> AsyncIterator[Handover]:
    """Serve `held()` to the run's members and be able to fetch from them."""
    handover = Handover(endpoint, run, held)
    async with open_block_server(
        endpoint,
        handover._memory,  # noqa: SLF001 - one unit
        protocol=handover._blocks_protocol,  # noqa: SLF001
        settings=_SERVE,
    ):
        endpoint.serve_calls(handover._protocol, handover.serve)  # noqa: SLF001
        try:
            yield handover
        finally:
            endpoint.unserve(handover._protocol)  # noqa: SLF001
