"""How an address becomes a peer: dialing, and upgrading a connection that a relay carries.

Problem: several tasks may want the same node, several addresses may lead to it, the node may dial
us meanwhile, and a NAT between us remembers only the ports it has seen. Idea: tasks that want the
same node share one dial; the addresses are raced; who wins is decided once, right before the
message that completes a handshake; and some dials leave from the port we listen on, so that a NAT
maps both to one public address, which those we dial can tell us.

A dial from that port which nobody answers leaves a trace in our NAT, under which a punch with the
same address fails for a minute or two (measured: 0 of 8 once both sides had tried). So it is only
done where `Context.leave_from_listener` wants it, and never towards a node that has relays, which is best met
over those.

Invariant: at most one dial at a time completes a handshake with one node.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import trio

from transport.address import Address
from transport.address_kinds import AddressKind, kind_of
from transport.connect.context import Context
from transport.connect.dialer import RELAY_DELAY_S, STAGGER_S, Commit, dial
from transport.connect.inbound import upgraded_path
from transport.connect.registry import Registry
from transport.connect.source import SourceBusy, source_for
from transport.errors import (
    ConnectFailed,
    ConnectionBroken,
    HandshakeFailed,
    PeerUnreachable,
    SelfDialed,
)
from transport.identity import NodeId
from transport.network import Path, RawStream
from transport.peer import Peer
from transport.secure.handshake import HandshakeResult, HandshakeRole, Intro
from transport.secure.link import shake_hands

RelayDialer = Callable[[Address, NodeId], Awaitable[RawStream]]
SITE_KINDS: Final = frozenset({AddressKind.PRIVATE, AddressKind.CGNAT, AddressKind.ULA})
"""Addresses that mean something only within their site."""


class _Dialing:
    """One dial with an expected node id, and those who wait for it.

    Attributes:
        addresses: where it looks.
        done: set when it has ended.
        error: why it failed, if that is known.
    """

    def __init__(self, addresses: Sequence[Address]) -> None:
        self.addresses = frozenset(addresses)
        self.done = trio.Event()
        self.error: PeerUnreachable | None = None


class Outbound:
    """The dials of one endpoint.

    Attributes:
        relay_dialer: how a relayed address becomes a raw stream; None without a relay client.
    """

    def __init__(self, context: Context, registry: Registry) -> None:
        self.relay_dialer: RelayDialer | None = None
        self._context = context
        self._registry = registry
        self._committing: dict[NodeId, trio.Event] = {}  # dials about to complete
        self._dialing: dict[NodeId, _Dialing] = {}

    async def connect(self, addresses: Sequence[Address], expected: NodeId | None) -> Peer:
        """Do the work of `Endpoint.connect`."""
        await trio.lowlevel.checkpoint()
        if expected is None:
            return await self._dial(addresses, None)
        if expected == self._context.node_id:
            raise SelfDialed("this is our own node id")
        peers = self._registry.peers
        while True:
            peer = peers.get(expected)
            if peer is not None:
                return peer
            under_way = self._dialing.get(expected)
            if under_way is None:
                break
            await under_way.done.wait()  # another task dials the same node: share its result
            failed = under_way.error
            shared = expected not in peers and under_way.addresses.issuperset(addresses)
            if failed is not None and shared:
                raise PeerUnreachable(attempts=failed.attempts, hint=failed.hint)
        dialing = self._dialing[expected] = _Dialing(addresses)
        try:
            return await self._dial(addresses, expected)
        except PeerUnreachable as error:
            peer = peers.get(expected)
            if peer is None:
                dialing.error = error
                raise
            return peer  # it could reach us while we could not reach it
        finally:
            del self._dialing[expected]
            dialing.done.set()

    async def _dial(self, addresses: Sequence[Address], expected: NodeId | None) -> Peer:
        self._context.check_open()

        behind_nat = any(address.relay for address in addresses)

        async def connect(address: Address) -> RawStream:
            if address.relay:
                return await self._dial_over_relay(address, expected)
            return await self._dial_directly(address, may_leave_trace=not behind_nat)

        async def establish(raw: RawStream, address: Address, commit: Commit) -> Peer:
            while True:
                try:
                    return await self._establish(raw, expected, commit)
                except (HandshakeFailed, ConnectionBroken) as error:
                    # Two dials from listening ports may meet in the middle (RFC 9293, section 3.5): one
                    # connection with two initiators, which the one refuses and the other sees break.
                    # From a port of its own there will be two connections.
                    plain = type(error) in (HandshakeFailed, ConnectionBroken)
                    if not plain or not self._from_listening_port(raw):
                        raise
                raw = await self._context.network.connect(address)

        # A peer that nobody takes stays connected: it is known to us and to itself by now.
        ordered = sorted(addresses, key=lambda at: not at.relay and not self._is_promising(at))
        promising = any(self._is_promising(at) for at in addresses if not at.relay)
        return await dial(
            self._context.network,
            ordered,
            establish,
            lambda _: None,
            connect=connect,
            hold=self._context.dialing,
            head_start_s=RELAY_DELAY_S if promising else STAGGER_S,
        )

    def _is_promising(self, address: Address) -> bool:
        """Whether a direct dial may succeed: not a private address of a network that we are not in."""
        return kind_of(address.host) not in SITE_KINDS or self._context.is_near(address.host)

    # Raw streams

    async def _dial_over_relay(self, address: Address, expected: NodeId | None) -> RawStream:
        if self.relay_dialer is None:
            raise ConnectFailed("no relay client")
        if expected is None:
            raise ConnectFailed("a relayed address needs the node id that it is for")
        return await self.relay_dialer(address, expected)

    async def _dial_directly(self, address: Address, *, may_leave_trace: bool) -> RawStream:
        context, listening = self._context, self._context.listening
        # No NAT lies on the way to our own machine, and a socket may connect to itself.
        local = address.is_loopback or address in listening
        if may_leave_trace and not local:
            source = source_for(listening, address)
            if source is not None and context.leave_from_listener(address):
                try:
                    return await context.network.connect(address, source=source)
                except SourceBusy:
                    pass  # usually an earlier connection between the same two ports: TIME-WAIT
        return await context.network.connect(address)

    def _from_listening_port(self, raw: RawStream) -> bool:
        return raw.path is Path.DIRECT and any(
            raw.local.port == listening.port for listening in self._context.listening
        )

    # Handshakes

    async def _establish(self, raw: RawStream, expected: NodeId | None, commit: Commit) -> Peer:
        """Turn a dialed connection into a peer; an existing connection to the same node wins."""
        context = self._context
        handshake = context.handshake("initiator", context.control_intro(raw), expected)
        committed = trio.Event()
        ours = False

        def may_complete() -> bool:
            nonlocal ours
            assert handshake.result is not None
            node_id = handshake.result.node_id
            if node_id in self._registry.peers or node_id in self._committing or not commit():
                return False
            self._committing[node_id] = committed
            ours = True
            return True

        try:
            result = await shake_hands(
                raw, handshake, deadline=context.handshake_deadline(), commit=may_complete
            )
        except HandshakeFailed:
            node_id = handshake.result.node_id if handshake.result is not None else None
            if node_id is None or ours:
                raise
            other = self._committing.get(node_id)
            if other is not None:
                await other.wait()
            peer = self._registry.peers.get(node_id)
            if peer is None:
                raise
            return peer
        else:
            return self._registry.register(self._registry.secure(raw, result))
        finally:
            if ours:
                assert handshake.result is not None
                del self._committing[handshake.result.node_id]
                committed.set()

    async def probe(self, raw: RawStream, node_id: NodeId, nonce: bytes) -> HandshakeResult:
        """Do the work of `Endpoint.probe`."""
        context = self._context
        handshake = context.handshake("initiator", Intro("probe", context.name, (), nonce), node_id)
        return await shake_hands(raw, handshake, deadline=context.handshake_deadline())

    async def upgrade(self, peer: Peer, raw: RawStream, role: HandshakeRole) -> bool:
        """Do the work of `Endpoint.upgrade`."""
        context = self._context
        try:
            connection = None if peer.close_reason or context.closed else peer.primary
            if connection is None or peer.path is not Path.RELAYED:
                context.reporter.count("upgrade-not-needed")
                raw.abort()
                return False
            intro = context.control_intro(raw, connection.connection_id)
            handshake = context.handshake(role, intro, peer.node_id)
            try:
                result = await shake_hands(raw, handshake, deadline=context.handshake_deadline())
            except (HandshakeFailed, ConnectionBroken):
                context.reporter.count("upgrade-handshake-failed")
                return False
        except BaseException:
            raw.abort()
            raise
        raw.path = upgraded_path(raw, result)
        link = self._registry.secure(raw, result)
        if result.intro.label not in (b"", connection.connection_id) or context.closed:
            link.abort()
            return False
        return await self._registry.adopt(link, connection).wait()
