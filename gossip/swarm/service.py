"""Keep the swarm's document equal with all peers, and act on it.

    replication     every peer, protocol "state/swarm"; what is new goes on at once
    what is new     `Endpoint.judge_again`: who is no member any more is disconnected in the same moment
    the clock       the same every `SWEEP_S`, for certificates that run out while their holder is connected
    renewal         answers members below this node; asks those above it when its own certificate is in its last third

Invariants: a revocation counts here before it is passed on; whoever is revoked is told so by the last words of its connections.
"""

import random
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol

import trio

from gossip.replication import Replication, StateEndpoint, open_replication
from gossip.swarm.document import NAME, SwarmDocument
from gossip.swarm.renewal import ASK_EVERY_S, PROTOCOL, accepted, is_due, renewed, whom_to_ask
from transport.address import Address
from transport.errors import TransportError
from transport.identity import Identity, NodeId
from transport.trust.chain import YEAR_MS, Chain
from transport.trust.refusal import CertificateRefused
from transport.trust.statement import Statement
from transport.trust.trust import Member

SWEEP_S: Final = 30.0
CALL_S: Final = 10.0
"""For one renewal, at one member."""
MAX_GIVEN: Final = 4096
"""Renewals remembered, so that who asks again gets the same one."""


class SwarmPeer(Protocol):
    """What this driver needs of a connected peer (`transport.peer.Peer`)."""

    @property
    def member(self) -> Member: ...  # noqa: D102
    async def call(self, protocol: str, request: bytes) -> bytes: ...  # noqa: D102


class SwarmEndpoint(StateEndpoint, Protocol):
    """What this driver needs of an endpoint (`transport.endpoint.Endpoint`)."""

    @property
    def identity(self) -> Identity: ...  # noqa: D102
    @property
    def random_bytes(self) -> Callable[[int], bytes]: ...  # noqa: D102
    def judge_again(self) -> list[NodeId]: ...  # noqa: D102
    def serve_calls(  # noqa: D102
        self, protocol: str, handler: Callable[[Any, bytes], Awaitable[bytes]]
    ) -> None: ...
    async def connect(  # noqa: D102
        self, addresses: Sequence[Address], *, expected: NodeId | None = None
    ) -> Any: ...


class SwarmService:
    """The running document; made by `open_swarm_document`.

    Attributes:
        document: the replica.
        counters: "expelled", "renewed", "renewals-failed", "renewals-given", "renewals-refused".
        on_expelled: told who was disconnected for being no member any more.
        on_renewed: told this node's new chain; it is shown in handshakes already.
    """

    def __init__(
        self,
        endpoint: SwarmEndpoint,
        document: SwarmDocument,
        replication: Replication,
        *,
        wall_ms: Callable[[], int],
        lifetime_ms: int,
        find: Callable[[NodeId], Awaitable[Sequence[Address]]] | None,
    ) -> None:
        self.document = document
        self.counters: Counter[str] = Counter()
        self.on_expelled: Callable[[NodeId], None] = lambda _node_id: None
        self.on_renewed: Callable[[Chain], None] = lambda _chain: None
        self._endpoint = endpoint
        self._replication = replication
        self._wall_ms = wall_ms
        self._lifetime_ms = lifetime_ms
        self._find = find
        self._given: OrderedDict[NodeId, Chain] = OrderedDict()  # bounded by MAX_GIVEN

    def all(self) -> list[Statement]:
        """All statements that are known, the earliest first."""
        return [entry.statement for entry in self.document.history()]

    def members(self) -> frozenset[NodeId]:
        """All nodes that a known certificate is for, revoked ones included."""
        return self.document.members()

    def issued_by(self, issuer: NodeId, now_ms: int) -> list[bytes]:
        """Marks of certificates that a revocation of `issuer` should keep; see `SwarmDocument.issued_by`."""
        return self.document.issued_by(issuer, now_ms)

    def say(self, statement: Statement) -> bool:
        """Add a statement, act on it and pass it on; returns whether it was new. Never blocks.

        Raises:
            CrdtError: it does not prove itself.
        """
        new = self.document.say(statement)
        if new:
            self._enforce()
            self._replication.notify()
        return new

    async def flush(self) -> None:
        """Wait until every partner's stream has taken what is new; bound it with a deadline."""
        await self._replication.flush()

    @property
    def partners(self) -> list[NodeId]:
        """Connected peers to which the document goes."""
        return self._replication.partners

    # Inside

    def _enforce(self) -> None:
        for node_id in self._endpoint.judge_again():
            self.counters["expelled"] += 1
            self.on_expelled(node_id)

    async def _watch(self) -> None:
        version = self._replication.version
        while True:
            version = await self._replication.wait_change(version)
            self._enforce()

    async def _sweep(self) -> None:
        while True:
            await trio.sleep(SWEEP_S)
            self._enforce()

    # Renewal

    async def _answer(self, peer: SwarmPeer, _request: bytes) -> bytes:
        given = self._given.get(peer.member.node_id)
        if given is not None and not is_due(given, self._wall_ms()):
            return given.raw
        try:
            chain = renewed(
                self._endpoint.identity,
                self.document.trust.own,
                peer.member,
                now_ms=self._wall_ms(),
                lifetime_ms=self._lifetime_ms,
                random_bytes=self._endpoint.random_bytes,
            )
        except TransportError:
            self.counters["renewals-refused"] += 1
            raise
        self.counters["renewals-given"] += 1
        self._given.pop(chain.node_id, None)
        self._given[chain.node_id] = chain
        if len(self._given) > MAX_GIVEN:
            self._given.popitem(last=False)
        self.say(chain)
        return chain.raw

    async def _renew(self) -> None:
        while True:
            own = self.document.trust.own
            if own is not None and is_due(own, self._wall_ms()):
                await self._ask(own)
            await trio.sleep(ASK_EVERY_S)

    async def _ask(self, own: Chain) -> None:
        for node_id in whom_to_ask(own):
            with trio.move_on_after(CALL_S):
                try:
                    peer = await self._reach(node_id)
                    answer = await peer.call(PROTOCOL, b"")
                    public_key = self._endpoint.identity.public_key
                    chain = accepted(self.document.trust, answer, public_key, self._wall_ms())
                except (TransportError, CertificateRefused):
                    continue
                if chain is not None:
                    self.document.trust.renew(chain.raw)
                    self.counters["renewed"] += 1
                    self.say(chain)
                    self.on_renewed(chain)
                    return
        self.counters["renewals-failed"] += 1

    async def _reach(self, node_id: NodeId) -> SwarmPeer:
        peers: Mapping[NodeId, Any] = self._endpoint.peers
        peer = peers.get(node_id)
        if peer is None:
            addresses = await self._find(node_id) if self._find is not None else ()
            peer = await self._endpoint.connect(addresses, expected=node_id)
        found: SwarmPeer = peer
        return found


@asynccontextmanager
async def open_swarm_document(
    endpoint: SwarmEndpoint,
    document: SwarmDocument,
    *,
    rng: random.Random,
    wall_ms: Callable[[], int],
    lifetime_ms: int = YEAR_MS,
    find: Callable[[NodeId], Awaitable[Sequence[Address]]] | None = None,
) -> AsyncIterator[SwarmService]:
    """Keep `document` equal with all connected members' for the length of the block, and act on it.

    Args:
        endpoint: an open endpoint whose `trust` is the document's.
        document: loaded with what former processes kept.
        rng: jitter.
        wall_ms: wall clock, ms since 1970.
        lifetime_ms: of certificates that are renewed here.
        find: where a member that is not connected can be dialed.
    """
    failure: Exception | None = None
    async with (
        open_replication(endpoint, document.statements, NAME, rng=rng) as replication,
        trio.open_nursery() as nursery,
    ):
        service = SwarmService(
            endpoint,
            document,
            replication,
            wall_ms=wall_ms,
            lifetime_ms=lifetime_ms,
            find=find,
        )
        endpoint.serve_calls(PROTOCOL, service._answer)  # noqa: SLF001 (one unit)
        try:
            for task in (service._watch, service._sweep, service._renew):  # noqa: SLF001
                nursery.start_soon(task)
            yield service
        except Exception as error:  # noqa: BLE001 (raised again, outside of the nursery's group)
            failure = error
        finally:
            endpoint.unserve(PROTOCOL)
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
