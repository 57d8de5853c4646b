"""A node on the network: listens, dials, knows its peers, serves protocols.

`open_endpoint` is the only way in, and its block is the lifetime of everything: listeners,
handshakes, connections, handlers. Leaving it says goodbye to every peer and leaves no task.

The work is done by the parts: `transport.connect.outbound` dials, `transport.connect.inbound` takes what others
opened, `transport.connect.registry` decides what a connection is for its node, `transport.bulk.door` opens
bulk connections, `transport.connect.announce` tells peers of new addresses. This file holds them together
and is what the rooms above see.

Invariants: `peers` holds exactly the nodes with a live control connection, at most
`limits.max_peers`; bulk connections are only taken from such peers; every refusal and failure is
counted by reason.
"""

import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager

import trio

from transport.address import Address
from transport.bulk import door as bulk_door
from transport.bulk.door import BulkDoor
from transport.bulk.in_stream import serve_bulk_streams
from transport.bulk.link import BulkLink
from transport.connect import announce
from transport.connect.announce import Announcer
from transport.connect.connection import Handler
from transport.connect.context import Context
from transport.connect.door import Door, DoorHandler
from transport.connect.inbound import Inbound
from transport.connect.outbound import Outbound
from transport.connect.registry import Registry
from transport.errors import UsageError
from transport.identity import Identity, NodeId
from transport.limits import Limits
from transport.network import Network, Path, RawStream
from transport.peer import CallHandler, Peer, handler_of_calls
from transport.secure.handshake import MAX_LISTEN, HandshakeResult, HandshakeRole
from transport.streams.frames import ResetCode, is_protocol_name
from transport.streams.stream import Stream
from transport.swarm import Swarm
from transport.trust.trust import Member, Trust
from transport.watch import LostPeer, PeerDown, PeerEvent, PeerPathChanged, PeerUp


class Endpoint:
    """One node's place on the network; made by `open_endpoint`.

    Attributes:
        identity: our key.
        swarm: the swarm we belong to.
        trust: who else does.
        name: what we call ourselves in handshakes.
        limits: the budgets.
        network: where raw streams come from.
        random_bytes: source of keys and nonces.
        counters: refusals and failures by reason.
        rng: for jitter; seeded in simulations.
        on_observed: called with (peer, address) when a handshake brought what the peer sees us at.
    """

    def __init__(self, context: Context) -> None:
        self.identity = context.identity
        self.swarm = context.swarm
        self.trust = context.trust
        self.name = context.name
        self.limits = context.limits
        self.network = context.network
        self.random_bytes = context.random_bytes
        self.rng = context.rng
        self.counters = context.counters
        self.on_observed = context.on_observed
        self._context = context
        self._registry = Registry(context, self)
        self._bulk = BulkDoor(context, self._registry)
        self._inbound = Inbound(context, self._registry, self._bulk.offer)
        self._outbound = Outbound(context, self._registry)
        self._announcer = Announcer(context, self._registry)
        self._registry.on_up = self._announcer.peer_up
        self.serve_calls(bulk_door.DIAL_BACK, self._bulk.answer_dial_back)
        self.serve_calls(announce.PROTOCOL, self._announcer.answer)
        serve_bulk_streams(self)
        self._own_protocols = frozenset(self._registry.handlers)

    def __repr__(self) -> str:
        return f"<Endpoint {self.node_id.short} with {len(self.peers)} peers>"

    @property
    def node_id(self) -> NodeId:
        """Who we are."""
        return self.identity.node_id

    @property
    def peers(self) -> Mapping[NodeId, Peer]:
        """The nodes connected now; a live, read-only view in order of arrival."""
        return self._registry.peers

    @property
    def lost(self) -> Mapping[NodeId, LostPeer]:
        """The nodes that were connected and are not now; the oldest are forgotten."""
        return self._registry.lost

    @property
    def addresses(self) -> tuple[Address, ...]:
        """What we really listen on."""
        return self._context.listening

    @property
    def advertised(self) -> tuple[Address, ...]:
        """Where we tell peers to dial us."""
        return self._context.advertised

    def set_advertised(self, addresses: Sequence[Address]) -> None:
        """Tell peers to dial us at `addresses` and nowhere else: those connected now, and later ones.

        Never blocks; the connected ones are told in the background.

        Raises:
            UsageError: more than 16 addresses.
        """
        self._announcer.set(addresses)

    # Serving

    def serve(
        self,
        protocol: str,
        handler: Handler,
        *,
        permitted: Callable[[Member], bool] | None = None,
    ) -> None:
        """Have `handler(stream)` run for each inbound stream of `protocol`.

        The stream is closed when the handler returns and reset when it raises; an error ends
        nothing else. Handlers are cancelled when their connection ends.

        Args:
            protocol: its name.
            handler: what to run.
            permitted: whether a member's certificate lets it use the protocol; streams of others are reset with
                `ResetCode.NOT_PERMITTED`, and counted. None: everybody's does.

        Raises:
            UsageError: the name is not acceptable, or served already.
        """
        if not is_protocol_name(protocol):
            raise UsageError(f"not a protocol name: {protocol!r}")
        if protocol in self._registry.handlers:
            raise UsageError(f"protocol {protocol!r} is served already")
        self._registry.handlers[protocol] = (
            handler if permitted is None else self._guarded(handler, permitted)
        )

    def _guarded(self, handler: Handler, permitted: Callable[[Member], bool]) -> Handler:
        async def serve_permitted(stream: Stream) -> None:
            if permitted(stream.peer.member):
                await handler(stream)
                return
            self._context.reporter.count("refused-not-permitted")
            stream.reset(ResetCode.NOT_PERMITTED)

        return serve_permitted

    def serve_calls(self, protocol: str, handler: CallHandler) -> None:
        """Answer `Peer.call(protocol, request)` with `await handler(peer, request)`.

        A handler that raises `RemoteCallFailed` sends its text to the caller.

        Raises:
            UsageError: the name is not acceptable, or served already.
        """
        self.serve(protocol, handler_of_calls(handler))

    def open_door(self, handler: DoorHandler) -> None:
        """Answer nodes that are no members yet: one request of each connection, with `await handler(request, source)`.

        Args:
            handler: gets at most `transport.connect.door.MAX_REQUEST_BYTES`, and the network that the request comes from;
                returns at most `MAX_ANSWER_BYTES`. It is cancelled when the one that asked is gone, or after `ANSWER_S`.
        """
        self._context.door = Door(handler, trio.current_time())

    def close_door(self) -> None:
        """Answer members alone from now on."""
        self._context.door = None

    def unserve(self, protocol: str) -> None:
        """Stop serving `protocol`; running handlers go on. Unknown names are ignored."""
        if protocol not in self._own_protocols:
            self._registry.handlers.pop(protocol, None)

    def watch(self) -> AbstractContextManager[trio.MemoryReceiveChannel[PeerEvent]]:
        """Receive `PeerUp`, `PeerPathChanged` and `PeerDown` inside a `with` block, from now on.

        Never blocks us: a watcher that falls 256 events behind gets `Lagged` instead of more.
        """
        return self._registry.watchers.watch()

    # Members

    def judge_again(self) -> list[NodeId]:
        """Disconnect every peer that is no member any more: revoked since, or its time over. Never blocks.

        Call it after `trust` has learnt something, and now and then.

        Returns:
            Whom that concerned.
        """
        return self._registry.judge_again()

    # Connecting

    async def connect(
        self, addresses: Sequence[Address], *, expected: NodeId | None = None
    ) -> Peer:
        """Connect to the node at one of `addresses`, or return the connection we have with it.

        Args:
            addresses: candidates, the most promising first; they are raced. Relayed ones come last
                and need `expected`.
            expected: the only acceptable node.

        Raises:
            PeerUnreachable: no candidate led to an acceptable node; every reason is kept.
            SelfDialed: `expected` is us.
            EndpointClosed: the endpoint is closing.
        """
        return await self._outbound.connect(addresses, expected)

    @property
    def relay_dialer(self) -> Callable[[Address, NodeId], Awaitable[RawStream]] | None:
        """Opens a circuit to a node over the relay that an address names; None without relays."""
        return self._outbound.relay_dialer

    @relay_dialer.setter
    def relay_dialer(self, dial: Callable[[Address, NodeId], Awaitable[RawStream]] | None) -> None:
        self._outbound.relay_dialer = dial

    async def upgrade(self, peer: Peer, raw: RawStream, role: HandshakeRole) -> bool:
        """Move the relayed connection with `peer` to `raw`; its streams and calls go on.

        Owns `raw` from now on. Cancelling before the handshake is done closes it; afterwards the
        move goes on without us.

        Args:
            peer: connected over a relay.
            raw: a fresh stream to it, opened some other way.
            role: ours in the handshake.

        Returns:
            Whether the connection runs over `raw` now; if not, the peer is as it was, unless the
            old connection was lost meanwhile.
        """
        return await self._outbound.upgrade(peer, raw, role)

    async def probe(self, raw: RawStream, node_id: NodeId, nonce: bytes) -> HandshakeResult:
        """Show `nonce` to a node over a fresh stream that becomes no connection; its `on_probe` is told.

        Cancelling aborts the stream.

        Args:
            raw: to the node; closed here unless a result is returned, else the caller's to close.
            node_id: the only acceptable node.
            nonce: at most 64 bytes.

        Returns:
            What the handshake brought, with the address at which the node sees us.

        Raises:
            HandshakeFailed: (or a subclass) what went wrong.
            ConnectionBroken: the connection ended or was reset meanwhile.
        """
        return await self._outbound.probe(raw, node_id, nonce)

    async def take_inbound(self, raw: RawStream, *, bulk_of: NodeId | None = None) -> None:
        """Take a raw stream that somebody else opened and no listener of ours saw.

        With `bulk_of`, only a bulk link of that node is taken.

        Same admission and handshake as for the listeners. Returns when the connection is
        registered, or refused and closed. Cancelling closes it.
        """
        await self._inbound.take(raw, bulk_of)

    def expect_punch(
        self, node_id: NodeId, hosts: Collection[str] = ()
    ) -> AbstractContextManager[None]:
        """Inside the block, take inbound connections of `node_id` that play the punch role.

        They may come from anywhere, as no one knows all addresses of a NAT; but strangers can keep
        those out that are not from `hosts`, if they come in numbers.
        """
        return self._inbound.expect_punch(node_id, hosts)

    @property
    def on_probe(self) -> Callable[[NodeId, bytes], None] | None:
        """Called with (who, nonce) when a dial-back test has reached us."""
        return self._context.on_probe

    @on_probe.setter
    def on_probe(self, told: Callable[[NodeId, bytes], None] | None) -> None:
        self._context.on_probe = told

    @property
    def is_near(self) -> Callable[[str], bool]:
        """Whether a private address may be in a network that we are in; all may unless set.

        A peer's private addresses elsewhere are tried last, and its relays do not wait for them.
        """
        return self._context.is_near

    @is_near.setter
    def is_near(self, judge: Callable[[str], bool]) -> None:
        self._context.is_near = judge

    @property
    def leave_from_listener(self) -> Callable[[Address], bool]:
        """Whether a dial of this address shall leave from the port we listen on; all shall unless set.

        It is asked right before such a dial, which then shows where that node sees our listener; but see
        `transport.connect.outbound` for what a dial that fails may spoil.
        """
        return self._context.leave_from_listener

    @leave_from_listener.setter
    def leave_from_listener(self, judge: Callable[[Address], bool]) -> None:
        self._context.leave_from_listener = judge

    def has_dialed(self, host: str) -> bool:
        """Whether we have sent something to `host`, which a NAT before us may have noted."""
        return self._context.network.has_dialed(host)

    # Bulk

    async def accept_bulk(self, peer_id: NodeId, label: bytes) -> BulkLink:
        """Wait for the bulk connection that `peer_id` opens with `label`.

        Cancelling gives the place up.

        Raises:
            PeerLost: the peer is not connected, or was lost meanwhile.
            StreamLimitReached: `limits.bulk_links_per_peer` are open.
        """
        return await self._bulk.accept(peer_id, label)

    async def open_bulk(self, peer: Peer, label: bytes) -> BulkLink:
        """Do the work of `Peer.open_bulk`."""
        return await self._bulk.open(peer, label)

    # What peers tell us

    def on_peer_lost(self, peer: Peer) -> None:
        """Forget a peer whose last connection has ended (called by the peer)."""
        if self._registry.on_peer_lost(peer):
            self._bulk.rendezvous.drop_peer(peer.node_id, peer.close_reason)

    def on_path_changed(self, peer: Peer, old: Path, new: Path) -> None:
        """Tell the watchers that a peer's bytes travel another way now (called by the peer)."""
        self._registry.on_path_changed(peer, old, new)

    # Lifetime

    async def _open(self, listen: Sequence[Address], advertise: Sequence[Address]) -> None:
        await self._inbound.listen(listen)
        advertised = dict.fromkeys([*advertise, *self.addresses])
        self._context.advertised = tuple(advertised)[:MAX_LISTEN]
        self._context.nursery.start_soon(self._announcer.run)

    async def _close(self) -> None:
        """Say goodbye to everybody; bounded by the goodbye of a connection."""
        self._context.closed = True
        with trio.CancelScope(shield=True):  # closing a listener never waits; goodbyes are bounded
            self._registry.say_goodbye()
            await self._inbound.close()
            await self._registry.wait_idle()


@asynccontextmanager
async def open_endpoint(
    identity: Identity,
    swarm: Swarm,
    network: Network,
    listen: Sequence[Address],
    *,
    trust: Trust,
    wall_clock: Callable[[], float] = time.time,
    name: str = "",
    limits: Limits | None = None,
    random_bytes: Callable[[int], bytes] = os.urandom,
    rng: random.Random | None = None,
    advertise: Sequence[Address] = (),
    aegis: bool | None = None,
) -> AsyncIterator[Endpoint]:
    """Run a node's endpoint for the length of the block.

    Leaving the block, also by cancellation, says goodbye to all peers (at most half a second),
    ends all handlers and closes all sockets. An exception from the block comes out as it is, not
    in a group.

    Args:
        identity: our key.
        swarm: whom we talk with.
        network: `transport.tcp.TcpNetwork()`, or a host of a `transport.simulated.memory.MemoryNetwork`.
        listen: addresses to listen on; none makes a node that only dials.
        trust: our certificates, and who else is a member.
        wall_clock: seconds since 1970, for the times in certificates.
        name: what to call ourselves; at most 64 printable characters.
        limits: budgets; the defaults when None.
        random_bytes: source of keys; seeded in simulations.
        rng: source of jitter; seeded in simulations.
        advertise: addresses to tell peers besides the bound ones, for example behind a NAT.
        aegis: whether to offer AEGIS for long records; None: if this process can, and no simulation would differ from one machine to the next.

    Raises:
        AddressInUse: another program has one of the addresses.
        ListenFailed: an address cannot be listened on for another reason.
    """
    from_body: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            endpoint = Endpoint(
                Context(
                    identity,
                    swarm,
                    network,
                    trust=trust,
                    wall_clock=wall_clock,
                    name=name,
                    limits=Limits() if limits is None else limits,
                    random_bytes=random_bytes,
                    rng=random.Random() if rng is None else rng,
                    nursery=nursery,
                    aegis=aegis,
                )
            )
            try:
                await endpoint._open(listen, advertise)  # noqa: SLF001
                try:
                    yield endpoint
                finally:
                    await endpoint._close()  # noqa: SLF001
            except BaseException as error:
                from_body = error
                raise
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        # The nursery wraps what the block raised; whoever wrote the block expects it bare.
        others = [error for error in group.exceptions if error is not from_body]
        if from_body is not None and all(map(_is_cancellation, others)):
            raise from_body from from_body.__cause__
        raise


def _is_cancellation(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(map(_is_cancellation, error.exceptions))
    return isinstance(error, trio.Cancelled)


__all__ = [
    "Endpoint",
    "LostPeer",
    "PeerDown",
    "PeerPathChanged",
    "PeerUp",
    "open_endpoint",
]
