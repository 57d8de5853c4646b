"""Which nodes we are connected to, and what a new connection means for its node.

Two connections between the same two nodes happen when both dial at once. A dialer never completes
a handshake with a node it is connected to, so a second connection means one of three things:

* Its handshake names a connection we have: it is to take over that one (`transport.connect.migration`).
* The first is younger than a handshake can take: the dials crossed. Both sides keep the same one
  and retire the other, whose streams end undisturbed: the one that no relay carries, else the one
  initiated by the lower node id.
* Otherwise the peer has lost the first one (it restarted, or a middlebox forgot it): the new one
  replaces it.

When all places are taken, a newcomer's network takes one from the network that holds the most, if
that has at least two more: many names on one machine cannot keep other machines out (the rule of
`transport.relay.ledger`). A peer over a relay counts for the relay's network.

A peer that is no member any more (`judge_again`) is closed at once, and a link whose handshake was done before that was known is not
taken. In an open swarm, those for whom nobody answers have a quarter of the places, and none that a member needs.

Invariants: `peers` holds exactly the nodes with a live control connection, at most
`limits.max_peers`; at most `MAX_PENDING` links wait to take over one connection; a link is given
to a connection or closed; every link is reserved for in the scope of its peer.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import trio

from transport.address import Address
from transport.budget.pacing import Budgets
from transport.budget.scopes import Reservation, Scope, ScopeExceeded
from transport.connect.connection import Connection, Handler
from transport.connect.context import Context
from transport.connect.migration import MAX_PENDING, Outcome, hold
from transport.errors import ConnectionBroken, EndpointClosed, InvalidAddress, TransportError
from transport.identity import NodeId
from transport.limits import LINK_BYTES, source_of
from transport.network import Path, RawStream
from transport.peer import Peer
from transport.secure.handshake import HandshakeResult
from transport.secure.link import SecureLink
from transport.streams.frames import CloseCode
from transport.trust.refusal import CertificateRefused
from transport.watch import Lagged, LostPeer, PeerDown, PeerEvent, PeerPathChanged, PeerUp, Watchers

if TYPE_CHECKING:
    from transport.endpoint import Endpoint

STRANGERS_SHARE: Final = 4
"""Of `limits.max_peers`, the part that strangers may have, in an open swarm."""

MAX_LOST: Final = 1024
"""Lost peers remembered, for status and for people."""


class Registry:
    """The peers of one endpoint.

    Attributes:
        handlers: protocol name -> handler of inbound streams.
        watchers: who hears of peers.
        on_up: told of each new peer.
        arrivals: parked on by bulk connections that came ahead of their control connection.
    """

    def __init__(self, context: Context, endpoint: "Endpoint") -> None:
        self.handlers: dict[str, Handler] = {}
        self.watchers: Watchers[PeerEvent] = Watchers(Lagged())
        self.arrivals = trio.lowlevel.ParkingLot()
        self.on_up: Callable[[Peer], None] = lambda _peer: None
        self._context = context
        self._endpoint = endpoint
        self._peers: dict[NodeId, Peer] = {}  # bounded by limits.max_peers
        self._lost: OrderedDict[NodeId, LostPeer] = OrderedDict()  # bounded by MAX_LOST
        self._budgets = Budgets(context.limits)
        self._running = 0  # connection tasks
        self._idle = trio.lowlevel.ParkingLot()

    @property
    def peers(self) -> Mapping[NodeId, Peer]:
        """The nodes connected now; a live, read-only view in order of arrival."""
        return MappingProxyType(self._peers)

    @property
    def lost(self) -> Mapping[NodeId, LostPeer]:
        """The nodes that were connected and are not now; the oldest are forgotten."""
        return MappingProxyType(self._lost)

    def paced(self, raw: RawStream, node_id: NodeId) -> RawStream:
        """Put an authenticated connection under the caps of its peer and of the node."""
        return self._budgets.pace(raw, bytes(node_id))

    def secure(self, raw: RawStream, result: HandshakeResult) -> SecureLink:
        """Make a link of an authenticated connection, under the caps there are."""
        return SecureLink(self.paced(raw, result.node_id), result)

    def connection_named(self, node_id: NodeId, connection_id: bytes) -> Connection | None:
        """Find the connection that a handshake with `node_id` wants to take over."""
        peer = self._peers.get(node_id)
        return None if peer is None or not connection_id else peer.connection_named(connection_id)

    # Connections come

    def register(self, link: SecureLink) -> Peer:
        """Make a connection of an authenticated link and decide what it is for its node.

        Raises:
            EndpointClosed: the endpoint is closing; the link is closed.
            ConnectionBroken: there is no room for another peer; the link is closed.
            CertificateRefused: it was revoked since the handshake; the link is closed.
        """
        context = self._context
        if context.closed:
            link.abort()
            raise EndpointClosed("the endpoint is closed")
        node_id, member = link.result.node_id, link.result.member
        assert member is not None, "who wants to join is no peer"
        try:
            context.trust.check_again(member, context.wall_ms())
        except CertificateRefused:
            link.abort()
            raise
        connection = Connection(
            link,
            context.limits,
            self.handlers.get,
            context.reporter,
            leads=context.node_id < node_id,
        )
        peer = self._peers.get(node_id)
        if peer is not None:
            old = peer.primary
            crossed = (
                old.initiated != connection.initiated
                and connection.opened_at - old.opened_at <= context.limits.handshake_timeout_s
            )
            if crossed:
                connection.held = self._reserve(peer.scope, link)
                context.reporter.count("crossed-dials")
                peer.add_connection(connection, primary=self._wins(connection, old))
                context.nursery.start_soon(self._run, connection)
                self._tell_observed(peer, link)
                return peer
            peer.replace("the peer opened a new connection")
        crowded = len(self._peers) >= context.limits.max_peers and not self._make_room(link)
        if crowded or (member.is_stranger and self._strangers_fill_their_share()):
            context.reporter.count("refused-max-peers")
            held = self._reserve(context.scopes.system, link, LINK_BYTES)
            Peer(self._endpoint, connection, self._scope_of(link))
            context.nursery.start_soon(self._turn_away, connection, held)
            connection.close("no room for another peer", CloseCode.LIMIT)
            raise ConnectionBroken(f"this node has {context.limits.max_peers} peers already")
        scope = self._scope_of(link)
        try:
            connection.held = self._reserve(scope, link)
        except ConnectionBroken:
            scope.close()
            raise
        peer = self._peers[node_id] = Peer(self._endpoint, connection, scope)
        self._lost.pop(node_id, None)
        context.nursery.start_soon(self._run, connection)
        self.watchers.tell(PeerUp(peer))
        self.on_up(peer)
        self.arrivals.unpark_all()
        self._tell_observed(peer, link)
        return peer

    def _make_room(self, newcomer: SecureLink) -> bool:
        """Close the newest peer of the network with the most, for a newcomer whose network has two less.

        Never one that we dialed: nobody else chose those.
        """
        assert newcomer.result.member is not None
        if not newcomer.result.member.is_stranger:
            for peer in reversed(self._peers.values()):
                if peer.member.is_stranger and not peer.initiated:
                    self._context.reporter.count("peers-replaced")
                    peer.close("its place is needed by a member", CloseCode.LIMIT)
                    return True
        networks = {peer: source_of(peer.address.host) for peer in self._peers.values()}
        held = Counter(networks.values())
        most = max(held.values())
        if most < held[source_of(newcomer.raw.remote.host)] + 2:
            return False
        for peer in reversed(networks):
            if held[networks[peer]] == most and not peer.initiated:
                self._context.reporter.count("peers-replaced")
                peer.close("its place is needed by a node of another network", CloseCode.LIMIT)
                return True
        return False

    def _strangers_fill_their_share(self) -> bool:
        strangers = sum(peer.member.is_stranger for peer in self._peers.values())
        return strangers >= max(1, self._context.limits.max_peers // STRANGERS_SHARE)

    def _scope_of(self, link: SecureLink) -> Scope:
        member = link.result.member
        assert member is not None
        return self._context.scopes.peer(member.node_id.short, stranger=member.is_stranger)

    def _reserve(self, scope: Scope, link: SecureLink, size: int | None = None) -> Reservation:
        """What a connection may make us hold, or `size` bytes for its link alone; given back when it has ended."""
        try:
            return scope.reserve(
                bytes=self._context.limits.connection_bytes if size is None else size,
                connections=1,
                descriptors=0 if link.raw.path is Path.RELAYED else 1,
            )
        except ScopeExceeded as error:
            self._context.reporter.count(f"refused-{error.resource.name.lower()}")
            link.abort()
            raise ConnectionBroken(f"no room for the connection: {error}") from error

    def _wins(self, new: Connection, old: Connection) -> bool:
        """Whether `new` is kept of two connections that crossed; both sides decide alike."""
        relayed = new.link.raw.path is Path.RELAYED
        if relayed != (old.link.raw.path is Path.RELAYED):
            return not relayed
        return new.initiated == (self._context.node_id < new.link.result.node_id)

    def _tell_observed(self, peer: Peer, link: SecureLink) -> None:
        text = link.result.intro.observed
        if not text or link.raw.path is Path.RELAYED:  # over a relay nobody sees us
            return
        try:
            address = Address.parse(text)
        except InvalidAddress:
            return
        for told in list(self._context.on_observed):
            told(peer, address)

    async def _run(self, connection: Connection) -> None:
        self._running += 1
        try:
            await connection.run()
        except Exception as error:  # noqa: BLE001  (a bug in one connection ends only it)
            self._context.reporter.report(
                "connection-crashed", trio.current_time(), "a connection failed", error=error
            )
        finally:
            self._running -= 1
            self._idle.unpark_all()

    async def _turn_away(self, connection: Connection, held: Reservation) -> None:
        with held:  # while we say why
            await self._run(connection)

    # Links that are to take over

    def adopt(self, link: SecureLink, connection: Connection) -> "Adoption":
        """Let `link` take over `connection`; goes on in a task of its own.

        It must have been authenticated as the same node, and name the connection.
        """
        adoption = Adoption()
        self._context.nursery.start_soon(self._hold, link, connection, adoption)
        return adoption

    async def _hold(self, link: SecureLink, connection: Connection, adoption: "Adoption") -> None:
        reporter = self._context.reporter
        outcome = Outcome.DROPPED
        try:
            if connection.pending < MAX_PENDING:
                theirs = connection.peer.scope
                # A link for a connection that has just been cut may become one of its own.
                with self._reserve(
                    self._context.scopes.system if theirs.closed else theirs, link, 0
                ):
                    outcome = await hold(link, connection, self._context.limits.handshake_timeout_s)
            else:
                reporter.count("refused-pending-links")
            if outcome is Outcome.MOVED:
                reporter.count("connections-moved")
                self._reserve_again(connection, link)
                self._tell_observed(connection.peer, link)
            elif outcome is Outcome.ORPHANED:
                reporter.count("pending-links-promoted")
                self.register(link)
        except TransportError:
            reporter.count("pending-links-refused")
        finally:
            if outcome is Outcome.DROPPED and not connection.uses(link):
                link.abort()
            adoption.settle(outcome)

    def _reserve_again(self, connection: Connection, link: SecureLink) -> None:
        """Hold for a connection what its new link needs: it may have a socket where the old one had none.

        Without a wait since the two links were reserved for, so there is room.
        """
        if connection.held is not None and connection.alive:
            connection.held.release()
            connection.held = self._reserve(connection.peer.scope, link)

    # Peers go

    def judge_again(self) -> list[NodeId]:
        """Disconnect those that are no members any more; returns who."""
        now_ms = self._context.wall_ms()
        gone = []
        for peer in list(self._peers.values()):
            try:
                self._context.trust.check_again(peer.member, now_ms)
            except CertificateRefused as error:
                self._context.reporter.count(f"expelled-{error.refusal}")
                peer.close(f"not a member any more: {error}", CloseCode.REFUSED)
                gone.append(peer.node_id)
        return gone

    def on_peer_lost(self, peer: Peer) -> bool:
        """Forget a peer whose last connection has ended; False if it was refused for want of room."""
        if self._peers.get(peer.node_id) is not peer:
            return False
        del self._peers[peer.node_id]
        self._lost[peer.node_id] = LostPeer(
            peer.close_reason, trio.current_time(), peer.name, peer.address, peer.goodbye
        )
        while len(self._lost) > MAX_LOST:
            self._lost.popitem(last=False)
        self.watchers.tell(PeerDown(peer, peer.close_reason))
        return True

    def on_path_changed(self, peer: Peer, old: Path, new: Path) -> None:
        """Tell the watchers that the primary connection of a peer travels another way."""
        if self._peers.get(peer.node_id) is peer:
            self.watchers.tell(PeerPathChanged(peer, old, new))

    def say_goodbye(self) -> None:
        """Begin to end all connections and all watching."""
        for peer in list(self._peers.values()):
            peer.close("shutting down", CloseCode.LEAVING)
        self.watchers.close()

    async def wait_idle(self) -> None:
        """Wait until no connection runs; bounded by the goodbye of a connection."""
        while self._running:
            await self._idle.park()


class Adoption:
    """What becomes of a link that is to take over a connection.

    Attributes:
        moved: whether the connection runs over it now; meaningful once `wait` has returned.
    """

    def __init__(self) -> None:
        self.moved = False
        self._done = trio.Event()

    def settle(self, outcome: Outcome) -> None:
        """Say how it ended."""
        self.moved = outcome is Outcome.MOVED
        self._done.set()

    async def wait(self) -> bool:
        """Wait until it is decided; bounded by the deadlines of the handshake and of the connection."""
        await self._done.wait()
        return self.moved
