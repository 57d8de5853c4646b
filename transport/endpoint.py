"""A node on the network: listens, dials, knows its peers, serves protocols.

`open_endpoint` is the only way in, and its block is the lifetime of everything: listeners,
handshakes, connections, handlers. Leaving it says goodbye to every peer and leaves no task.

Two connections between the same two nodes happen when both dial at once. A dialer never completes
a handshake with a node it is connected to (it asks `commit` right before its last message), so a
second connection means one of two things. If the first is younger than a handshake can take, the
dials crossed: both sides keep the one initiated by the lower node id and retire the other, whose
streams end undisturbed. Otherwise the peer has lost the first one (it restarted, or a middlebox
forgot it): the new one replaces it.

Invariants: `peers` holds exactly the nodes with a live control connection, at most
`limits.max_peers`; bulk connections are only taken from such peers; every refusal and failure is
counted by reason.
"""

import logging
import os
import random
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from types import MappingProxyType
from typing import Final

import trio

from transport.address import Address
from transport.bulk import BulkLink
from transport.connection import Connection, Handler
from transport.dialer import Commit, dial
from transport.errors import (
    ConnectionBroken,
    EndpointClosed,
    HandshakeFailed,
    PeerLost,
    PeerUnreachable,
    RemoteCallFailed,
    SelfDialed,
    TransportError,
    UsageError,
)
from transport.frames import CloseCode, is_protocol_name
from transport.handshake import MAX_LABEL_BYTES, MAX_LISTEN, Handshake, Intro
from transport.identity import Identity, NodeId
from transport.limits import Admission, Limits
from transport.link import SecureLink, shake_hands
from transport.listener import serve_listener
from transport.network import Network, RawListener, RawStream
from transport.peer import CallHandler, Peer, handler_of_calls
from transport.rendezvous import Delivery, Rendezvous
from transport.reporter import Reporter
from transport.swarm import Swarm
from transport.watch import LostPeer, PeerDown, PeerEvent, PeerUp, Watchers

DIAL_BACK: Final = "bulk/dial-back"
TOKEN_BYTES: Final = 16

BULK_DIAL_S: Final = 3.0
"""Longest direct attempt at a bulk connection before the peer is asked to dial us."""

MAX_LOST: Final = 1024
"""Lost peers remembered, for status and for people."""

_log = logging.getLogger(__name__)


class Endpoint:
    """One node's place on the network; made by `open_endpoint`.

    Attributes:
        identity: our key.
        swarm: the swarm we belong to.
        name: what we call ourselves in handshakes.
        limits: the budgets.
        addresses: what we really listen on.
        counters: refusals and failures by reason.
        rng: for jitter; seeded in simulations.
    """

    def __init__(
        self,
        identity: Identity,
        swarm: Swarm,
        network: Network,
        *,
        name: str,
        limits: Limits,
        random_bytes: Callable[[int], bytes],
        rng: random.Random,
        nursery: trio.Nursery,
    ) -> None:
        self.identity = identity
        self.swarm = swarm
        self.name = name
        self.limits = limits
        self.rng = rng
        self.addresses: tuple[Address, ...] = ()
        self.counters: Counter[str] = Counter()
        self._advertised: tuple[Address, ...] = ()
        self._network = network
        self._random_bytes = random_bytes
        self._nursery = nursery
        self._reporter = Reporter(_log, self.counters)
        self._admission = Admission(limits)
        self._peers: dict[NodeId, Peer] = {}  # bounded by limits.max_peers
        self._lost: OrderedDict[NodeId, LostPeer] = OrderedDict()  # bounded by MAX_LOST
        self._handlers: dict[str, Handler] = {}
        self._watchers = Watchers()
        self._rendezvous = Rendezvous()
        self._committing: dict[NodeId, trio.Event] = {}  # dials about to complete
        self._dialing: dict[NodeId, trio.Event] = {}  # dials with an expected node id
        self._arrivals = trio.lowlevel.ParkingLot()  # bulk connections ahead of their control
        self._running = 0  # connection tasks
        self._idle = trio.lowlevel.ParkingLot()
        self._closed = False
        self._handlers[DIAL_BACK] = handler_of_calls(self._dial_back)

    def __repr__(self) -> str:
        return f"<Endpoint {self.node_id.short} with {len(self._peers)} peers>"

    @property
    def node_id(self) -> NodeId:
        """Who we are."""
        return self.identity.node_id

    @property
    def peers(self) -> Mapping[NodeId, Peer]:
        """The nodes connected now; a live, read-only view in order of arrival."""
        return MappingProxyType(self._peers)

    @property
    def lost(self) -> Mapping[NodeId, LostPeer]:
        """The nodes that were connected and are not now; the oldest are forgotten."""
        return MappingProxyType(self._lost)

    @property
    def advertised(self) -> tuple[Address, ...]:
        """Where we tell peers to dial us."""
        return self._advertised

    # Serving

    def serve(self, protocol: str, handler: Handler) -> None:
        """Have `handler(stream)` run for each inbound stream of `protocol`.

        The stream is closed when the handler returns and reset when it raises; an error ends
        nothing else. Handlers are cancelled when their connection ends.

        Raises:
            UsageError: the name is not acceptable, or served already.
        """
        if not is_protocol_name(protocol):
            raise UsageError(f"not a protocol name: {protocol!r}")
        if protocol in self._handlers:
            raise UsageError(f"protocol {protocol!r} is served already")
        self._handlers[protocol] = handler

    def serve_calls(self, protocol: str, handler: CallHandler) -> None:
        """Answer `Peer.call(protocol, request)` with `await handler(peer, request)`.

        A handler that raises `RemoteCallFailed` sends its text to the caller.

        Raises:
            UsageError: the name is not acceptable, or served already.
        """
        self.serve(protocol, handler_of_calls(handler))

    def unserve(self, protocol: str) -> None:
        """Stop serving `protocol`; running handlers go on. Unknown names are ignored."""
        if protocol != DIAL_BACK:
            self._handlers.pop(protocol, None)

    def watch(self) -> AbstractContextManager[trio.MemoryReceiveChannel[PeerEvent]]:
        """Receive `PeerUp` and `PeerDown` inside a `with` block, from now on.

        Never blocks us: a watcher that falls 256 events behind gets `Lagged` instead of more.
        """
        return self._watchers.watch()

    # Connecting

    async def connect(
        self, addresses: Sequence[Address], *, expected: NodeId | None = None
    ) -> Peer:
        """Connect to the node at one of `addresses`, or return the connection we have with it.

        Args:
            addresses: candidates, the most promising first; they are raced.
            expected: the only acceptable node.

        Raises:
            PeerUnreachable: no candidate led to an acceptable node; every reason is kept.
            SelfDialed: `expected` is us.
            EndpointClosed: the endpoint is closing.
        """
        await trio.lowlevel.checkpoint()
        if expected is None:
            return await self._dial(addresses, None)
        if expected == self.node_id:
            raise SelfDialed("this is our own node id")
        while True:
            peer = self._peers.get(expected)
            if peer is not None:
                return peer
            under_way = self._dialing.get(expected)
            if under_way is None:
                break
            await under_way.wait()  # another task dials the same node: share its result
        done = self._dialing[expected] = trio.Event()
        try:
            return await self._dial(addresses, expected)
        except PeerUnreachable:
            peer = self._peers.get(expected)
            if peer is None:
                raise
            return peer  # it could reach us while we could not reach it
        finally:
            del self._dialing[expected]
            done.set()

    async def _dial(self, addresses: Sequence[Address], expected: NodeId | None) -> Peer:
        self._check_open()

        async def establish(raw: RawStream, _address: Address, commit: Commit) -> Peer:
            return await self._establish(raw, expected, commit)

        # A peer that nobody takes stays connected: it is known to us and to itself by now.
        return await dial(self._network, addresses, establish, lambda _: None)

    async def _establish(self, raw: RawStream, expected: NodeId | None, commit: Commit) -> Peer:
        """Turn a dialed connection into a peer; an existing connection to the same node wins."""
        handshake = self._handshake(
            "initiator", Intro("control", self.name, self._advertised), expected
        )
        committed = trio.Event()
        ours = False

        def may_complete() -> bool:
            nonlocal ours
            assert handshake.result is not None
            node_id = handshake.result.node_id
            if node_id in self._peers or node_id in self._committing or not commit():
                return False
            self._committing[node_id] = committed
            ours = True
            return True

        try:
            result = await shake_hands(
                raw, handshake, deadline=self._handshake_deadline(), commit=may_complete
            )
        except HandshakeFailed:
            node_id = handshake.result.node_id if handshake.result is not None else None
            if node_id is None or ours:
                raise
            other = self._committing.get(node_id)
            if other is not None:
                await other.wait()
            peer = self._peers.get(node_id)
            if peer is None:
                raise
            return peer
        else:
            return self._register(SecureLink(raw, result))
        finally:
            if ours:
                assert handshake.result is not None
                del self._committing[handshake.result.node_id]
                committed.set()

    def _handshake(self, role: str, intro: Intro, expected: NodeId | None = None) -> Handshake:
        return Handshake(
            role="initiator" if role == "initiator" else "responder",
            identity=self.identity,
            swarm=self.swarm,
            intro=intro,
            random_bytes=self._random_bytes,
            expected=expected,
        )

    def _handshake_deadline(self) -> float:
        return trio.current_time() + self.limits.handshake_timeout_s

    def _check_open(self) -> None:
        if self._closed:
            raise EndpointClosed("the endpoint is closed")

    # The registry

    def _register(self, link: SecureLink) -> Peer:
        """Make a connection of an authenticated link and decide what it is for its node."""
        if self._closed:
            link.abort()
            raise EndpointClosed("the endpoint is closed")
        node_id = link.result.node_id
        connection = Connection(link, self.limits, self._handlers.get, self._reporter)
        peer = self._peers.get(node_id)
        if peer is not None:
            old = peer.primary
            crossed = (
                old.initiated != connection.initiated
                and connection.opened_at - old.opened_at <= self.limits.handshake_timeout_s
            )
            if crossed:
                self._reporter.count("crossed-dials")
                wins = connection.initiated == (self.node_id < node_id)
                peer.add_connection(connection, primary=wins)
                self._nursery.start_soon(self._run, connection)
                return peer
            peer.replace("the peer opened a new connection")
        if len(self._peers) >= self.limits.max_peers:
            self._reporter.count("refused-max-peers")
            Peer(self, connection)
            self._nursery.start_soon(self._run, connection)
            connection.close("no room for another peer", CloseCode.LIMIT)
            raise ConnectionBroken(f"this node has {self.limits.max_peers} peers already")
        peer = self._peers[node_id] = Peer(self, connection)
        self._lost.pop(node_id, None)
        self._nursery.start_soon(self._run, connection)
        self._watchers.tell(PeerUp(peer))
        self._arrivals.unpark_all()
        return peer

    async def _run(self, connection: Connection) -> None:
        self._running += 1
        try:
            await connection.run()
        except Exception as error:  # noqa: BLE001  (a bug in one connection ends only it)
            self._reporter.report(
                "connection-crashed", trio.current_time(), "a connection failed", error=error
            )
        finally:
            self._running -= 1
            self._idle.unpark_all()

    def on_peer_lost(self, peer: Peer) -> None:
        """Forget a peer whose last connection has ended (called by the peer)."""
        if self._peers.get(peer.node_id) is not peer:
            return  # it was refused for want of room
        del self._peers[peer.node_id]
        self._lost[peer.node_id] = LostPeer(
            peer.close_reason, trio.current_time(), peer.name, peer.address
        )
        while len(self._lost) > MAX_LOST:
            self._lost.popitem(last=False)
        self._rendezvous.drop_peer(peer.node_id, peer.close_reason)
        self._watchers.tell(PeerDown(peer, peer.close_reason))

    # Inbound

    async def _inbound(self, raw: RawStream) -> None:
        """Take one admitted connection through its handshake to its purpose."""
        host, member = raw.remote.host, False
        deadline = self._handshake_deadline()
        try:
            handshake = self._handshake("responder", Intro("control", self.name, self._advertised))
            try:
                result = await shake_hands(raw, handshake, deadline=deadline)
            except HandshakeFailed as error:
                self._reporter.count(f"handshake-{error.code}")
                return
            except ConnectionBroken:
                self._reporter.count("handshake-broken")
                return
            member = True
            if result.intro.kind == "bulk":
                with trio.move_on_at(deadline):  # it may have overtaken its control connection
                    while result.node_id not in self._peers:
                        await self._arrivals.park()
        finally:
            self._admission.release(host, trio.current_time(), member=member)
            if not member:
                raw.abort()
        if result.intro.kind == "control":
            try:
                self._register(SecureLink(raw, result))
            except TransportError:
                return
        elif result.node_id in self._peers:
            await self._offer((result.node_id, result.intro.label), (raw, result))
        else:
            raw.abort()
            self._reporter.count("refused-bulk-without-peer")

    async def _offer(self, key: tuple[NodeId, bytes], delivery: Delivery) -> None:
        refusal = await self._rendezvous.offer(key, delivery)
        if refusal:
            self._reporter.count(refusal)

    # Bulk

    async def accept_bulk(self, peer_id: NodeId, label: bytes) -> BulkLink:
        """Wait for the bulk connection that `peer_id` opens with `label`.

        Cancelling gives the place up.

        Raises:
            PeerLost: the peer is not connected, or was lost meanwhile.
            StreamLimitReached: `limits.bulk_links_per_peer` are open.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        peer = self._peers.get(peer_id)
        if peer is None:
            raise PeerLost("not connected")
        peer.reserve_link()
        try:
            taker = self._rendezvous.expect((peer_id, label))
            raw, result = await self._rendezvous.wait(taker)
            return peer.adopt_link(raw, result)
        finally:
            peer.release_link()

    async def open_bulk(self, peer: Peer, label: bytes) -> BulkLink:
        """Do the work of `Peer.open_bulk`."""
        if len(label) > MAX_LABEL_BYTES:
            raise UsageError(f"a bulk label has at most {MAX_LABEL_BYTES} bytes")
        attempts: list[tuple[str, str]] = []
        with trio.move_on_after(BULK_DIAL_S) as direct:
            try:
                raw, result = await self._dial_bulk(peer, label)
            except PeerUnreachable as error:
                attempts += error.attempts
            else:
                return peer.adopt_link(raw, result)
        if direct.cancelled_caught:
            attempts.append((str(peer.address), f"no answer within {BULK_DIAL_S:g} s"))
        token = self._random_bytes(TOKEN_BYTES)
        taker = self._rendezvous.expect((peer.node_id, token))
        try:
            await peer.call(DIAL_BACK, token + label)
        except RemoteCallFailed as error:
            self._rendezvous.forget(taker)
            attempts.append(("dial-back", str(error)))
            raise PeerUnreachable(attempts=attempts) from None
        except BaseException:
            self._rendezvous.forget(taker)
            raise
        raw, result = await self._rendezvous.wait(taker)
        return peer.adopt_link(raw, result)

    async def _dial_bulk(self, peer: Peer, label: bytes) -> Delivery:
        candidates = list(peer.listen)
        if peer.initiated:
            candidates.insert(0, peer.address)
        else:  # behind a port-preserving NAT the host we see is right and the one it knows is not
            candidates += [Address(peer.address.host, address.port) for address in peer.listen]

        async def establish(raw: RawStream, _address: Address, commit: Commit) -> Delivery:
            intro = Intro("bulk", self.name, (), label)
            handshake = self._handshake("initiator", intro, peer.node_id)
            result = await shake_hands(
                raw, handshake, deadline=self._handshake_deadline(), commit=commit
            )
            return raw, result

        return await dial(
            self._network, candidates, establish, lambda delivery: delivery[0].abort()
        )

    async def _dial_back(self, peer: Peer, request: bytes) -> bytes:
        """A peer cannot reach us: open the bulk connection that it wants to open."""
        token, label = request[:TOKEN_BYTES], request[TOKEN_BYTES:]
        if len(token) < TOKEN_BYTES or len(label) > MAX_LABEL_BYTES:
            raise RemoteCallFailed("malformed request")
        try:
            delivery = await self._dial_bulk(peer, token)
        except PeerUnreachable as error:
            raise RemoteCallFailed(str(error)) from None
        self._nursery.start_soon(self._offer, (peer.node_id, label), delivery)
        return b""

    # Lifetime

    async def _listen(
        self, listen: Sequence[Address], advertise: Sequence[Address]
    ) -> list[RawListener]:
        listeners: list[RawListener] = []
        try:
            for address in listen:
                listener = await self._network.listen(address)
                listeners.append(listener)
        except BaseException:
            for listener in listeners:
                with trio.CancelScope(shield=True):  # closing a listener never waits
                    await listener.aclose()
            raise
        self.addresses = tuple(listener.address for listener in listeners)
        self._advertised = tuple(dict.fromkeys([*advertise, *self.addresses]))[:MAX_LISTEN]
        for listener in listeners:
            self._nursery.start_soon(self._serve_listener, listener)
        return listeners

    async def _serve_listener(self, listener: RawListener) -> None:
        await serve_listener(
            listener,
            nursery=self._nursery,
            admission=self._admission,
            handle=self._inbound,
            reporter=self._reporter,
        )

    async def _close(self, listeners: Sequence[RawListener]) -> None:
        """Say goodbye to everybody; bounded by the goodbye of a connection."""
        self._closed = True
        for peer in list(self._peers.values()):
            peer.close("shutting down")
        self._watchers.close()
        with trio.CancelScope(shield=True):  # closing a listener never waits; goodbyes are bounded
            for listener in listeners:
                await listener.aclose()
            while self._running:
                await self._idle.park()


@asynccontextmanager
async def open_endpoint(
    identity: Identity,
    swarm: Swarm,
    network: Network,
    listen: Sequence[Address],
    *,
    name: str = "",
    limits: Limits | None = None,
    random_bytes: Callable[[int], bytes] = os.urandom,
    rng: random.Random | None = None,
    advertise: Sequence[Address] = (),
) -> AsyncIterator[Endpoint]:
    """Run a node's endpoint for the length of the block.

    Leaving the block, also by cancellation, says goodbye to all peers (at most half a second),
    ends all handlers and closes all sockets. An exception from the block comes out as it is, not
    in a group.

    Args:
        identity: our key.
        swarm: whom we talk with.
        network: `transport.tcp.TcpNetwork()`, or a host of a `transport.memory.MemoryNetwork`.
        listen: addresses to listen on; none makes a node that only dials.
        name: what to call ourselves; at most 64 printable characters.
        limits: budgets; the defaults when None.
        random_bytes: source of keys; seeded in simulations.
        rng: source of jitter; seeded in simulations.
        advertise: addresses to tell peers besides the bound ones, for example behind a NAT.

    Raises:
        AddressInUse: another program has one of the addresses.
        ListenFailed: an address cannot be listened on for another reason.
    """
    from_body: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            endpoint = Endpoint(
                identity,
                swarm,
                network,
                name=name,
                limits=Limits() if limits is None else limits,
                random_bytes=random_bytes,
                rng=random.Random() if rng is None else rng,
                nursery=nursery,
            )
            try:
                listeners = await endpoint._listen(listen, advertise)  # noqa: SLF001
                try:
                    yield endpoint
                finally:
                    await endpoint._close(listeners)  # noqa: SLF001
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


__all__ = ["Endpoint", "LostPeer", "PeerDown", "PeerUp", "open_endpoint"]
