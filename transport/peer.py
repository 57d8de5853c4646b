"""A connected node: its control connections, its calls, its bulk links.

Problem: callers think of a node, the network of connections. Two nodes that dial each other at
the same moment have two connections for a while, and bulk data has connections of its own; none
of that should show. Idea: a `Peer` stands for the node while at least one control connection
lives. New streams go to the *primary* connection. A duplicate is retired: its streams run to
their ends undisturbed, then it closes.

A call is a stream: the request and the end; back, one status byte, the answer and the end.

    status 0    the answer follows
    status 1    the handler refused; its reason follows as UTF-8

Invariants: when the last connection ends, `closed` is set, and every stream, call, ping and bulk
link of the peer fails with `PeerLost` in the same step. Both sides choose the same primary: of
two crossing connections, the one initiated by the lower node id.
"""

from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Final

import trio

from transport.address import Address
from transport.budget.scopes import Scope, ScopeExceeded
from transport.bulk.link import BulkLink
from transport.codec import MAX_MESSAGE_BYTES
from transport.connect.connection import Connection, Handler
from transport.errors import (
    MessageTooLarge,
    PeerLost,
    RemoteCallFailed,
    StreamLimitReached,
    StreamReset,
)
from transport.identity import NodeId
from transport.limits import BULK_LINK_BYTES
from transport.network import Path, RawStream
from transport.secure.handshake import HandshakeResult
from transport.streams.frames import CloseCode, Priority, ResetCode
from transport.streams.stream import Stream
from transport.trust.trust import Member

if TYPE_CHECKING:
    from transport.endpoint import Endpoint

OK: Final = b"\x00"
REFUSED: Final = b"\x01"
MAX_REASON_BYTES: Final = 256


def seen_from_here(listen: Iterable[Address], remote: Address) -> tuple[Address, ...]:
    """Where a peer can be dialed, without doubles: "any interface" becomes the host we see it at.

    Over a relay the host we see is the relay's, so such addresses mean nothing to us.
    """
    found: dict[Address, None] = {}
    for address in listen:
        if not address.is_wildcard or address.relay:
            found[address] = None
        elif not remote.relay:
            found[Address(remote.host, address.port)] = None
    return tuple(found)


CallHandler = Callable[["Peer", bytes], Awaitable[bytes]]

_RESET_REASONS: Final = {
    ResetCode.NO_SUCH_PROTOCOL: "the peer does not serve {!r}",
    ResetCode.REFUSED: "the peer has too many streams open to answer {!r}",
    ResetCode.HANDLER_FAILED: "the peer's handler of {!r} failed",
    ResetCode.NOT_PERMITTED: "this node's certificate does not let it use {!r}",
    ResetCode.MESSAGE_TOO_LARGE: "the request for {!r} was too large for the peer",
}


class Peer:
    """A node we are connected to now; made by the endpoint.

    Attributes:
        node_id: who it is, authenticated.
        public_key: its Ed25519 key.
        member: what its certificates make it.
        name: what it calls itself; not unique, not verified.
        address: the other end of the primary connection, as the network reports it; with the
            relay's id where one carries it. The last one known once the peer is lost.
        listen: where it says it can be dialed; "any interface" is replaced by the host we see.
        initiated: whether we dialed `address`; if not, it may be a port that nobody listens on.
        bulk_way: how a bulk connection with it was opened last; "" if it never was.
        connected_at: trio time.
        scope: what is held for it, closed with it.
        closed: set when the peer is lost or was closed.
        close_reason: why; "" before.
        goodbye: the code with which either side closed the last connection; None before, and when it broke.
    """

    def __init__(self, endpoint: "Endpoint", connection: Connection, scope: Scope) -> None:
        result, raw = connection.link.result, connection.link.raw
        self.node_id: NodeId = result.node_id
        self.public_key: bytes = result.public_key
        assert result.member is not None, "who wants to join is no peer"
        self.member: Member = result.member
        self.name: str = result.intro.name
        self._said_listen: tuple[Address, ...] = result.intro.listen
        self.listen: tuple[Address, ...] = ()
        self.scope = scope
        self.bulk_way = ""
        self.connected_at = trio.current_time()
        self.closed = trio.Event()
        self.close_reason = ""
        self.goodbye: CloseCode | None = None
        self._endpoint = endpoint
        self._connections: list[Connection] = []  # the primary first
        self._links: list[BulkLink] = []  # bounded by limits.bulk_links_per_peer
        self._opening_links = 0
        self._sent = self._received = 0  # by connections that have ended, and by bulk links
        self._last_seen = self.connected_at
        self.address: Address = raw.remote
        self.initiated = False
        self._path = raw.path
        self.add_connection(connection, primary=True)

    def __repr__(self) -> str:
        state = f" lost: {self.close_reason}" if self.close_reason else ""
        return f"<Peer {self.node_id.short} at {self.address}{state}>"

    # What is known

    @property
    def path(self) -> Path:
        """How the bytes travel now; how they did last once the peer is lost."""
        return self._path

    @property
    def relay(self) -> NodeId | None:
        """Who carries the bytes, if anybody does."""
        return self.address.relay_id if self._path is Path.RELAYED else None

    @property
    def local(self) -> bool:
        """True when it is on this machine, without a relay between: both ends have one address."""
        return bool(self._connections) and self._connections[0].link.raw.within_machine

    @property
    def rtt_s(self) -> float | None:
        """The last measured round trip in seconds; None before the first."""
        return self._connections[0].rtt_s if self._connections else None

    @property
    def bytes_sent(self) -> int:
        """On the wire, control and bulk, since it connected."""
        return self._sent + sum(connection.bytes_sent for connection in self._connections)

    @property
    def bytes_received(self) -> int:
        """On the wire, control and bulk, since it connected."""
        return self._received + sum(connection.bytes_received for connection in self._connections)

    @property
    def last_seen(self) -> float:
        """Trio time of the last byte on a control connection."""
        return max([self._last_seen, *(connection.received_at for connection in self._connections)])

    # Streams and calls

    async def open_stream(self, protocol: str, *, priority: Priority = Priority.NORMAL) -> Stream:
        """Open a stream to the peer's handler of `protocol`.

        Does not wait for the peer: an unknown protocol shows as a `StreamReset` on first use.

        Raises:
            PeerLost: not connected any more.
            StreamLimitReached: `limits.streams_per_peer` of ours are open.
        """
        await trio.lowlevel.checkpoint()
        connection = self._primary()
        stream = connection.open(protocol, priority)
        connection.kick()
        return stream

    async def call(
        self, protocol: str, request: bytes, *, priority: Priority = Priority.NORMAL
    ) -> bytes:
        """Send a request of at most 64 KiB and wait for the answer.

        Waits for a free stream if too many are open. Cancelling tells the peer to forget it.

        Raises:
            RemoteCallFailed: the peer does not serve `protocol`, refused, or its handler failed.
            PeerLost: the connection ended first; whether the handler ran is unknown.
            MessageTooLarge: nothing was sent.
        """
        if len(request) > MAX_MESSAGE_BYTES:
            raise MessageTooLarge(f"request of {len(request)} bytes, limit {MAX_MESSAGE_BYTES}")
        await trio.lowlevel.checkpoint_if_cancelled()
        stream = await self._open_waiting(protocol, priority)
        try:
            await stream.send_to_end(request)
            answer = await stream.receive_to_end(MAX_MESSAGE_BYTES + len(OK))
        except StreamReset as error:
            text = _RESET_REASONS.get(error.reset_code, "the peer cancelled the call of {!r}")  # type: ignore[call-overload]
            raise RemoteCallFailed(text.format(protocol)) from None
        except MessageTooLarge:
            raise RemoteCallFailed(f"the peer's answer for {protocol!r} is too large") from None
        finally:
            stream.reset(ResetCode.CANCELLED)  # no effect on a call that has ended
        status = answer[:1]
        if status == OK:
            return answer[1:]
        if status == REFUSED:
            said = answer[1 : 1 + MAX_REASON_BYTES].decode("utf-8", "replace")
            raise RemoteCallFailed(said if said.isprintable() else ascii(said))
        raise RemoteCallFailed(f"the peer's answer for {protocol!r} has no status")

    async def ping(self) -> float:
        """Measure a round trip now; returns seconds.

        Raises:
            PeerLost: the connection ended first.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        return await self._primary().ping()

    async def _open_waiting(self, protocol: str, priority: Priority) -> Stream:
        while True:
            connection = self._primary()
            try:
                return connection.open(protocol, priority)
            except StreamLimitReached:
                await connection.slots.park()

    def _primary(self) -> Connection:
        if not self._connections:
            raise PeerLost(self.close_reason)
        return self._connections[0]

    # Bulk links

    async def open_bulk(self, label: bytes) -> BulkLink:
        """Open a bulk connection that the peer takes with `accept_bulk(our id, label)`.

        Dials the peer; where that fails, asks it to dial us; where that fails too, uses a stream
        of the connection there is.

        Raises:
            PeerUnreachable: no way worked; every attempt's reason is kept.
            PeerLost: the peer is not connected, or was lost meanwhile.
            StreamLimitReached: `limits.bulk_links_per_peer` are open.
        """
        self._primary()
        self.reserve_link()
        try:
            return await self._endpoint.open_bulk(self, label)
        finally:
            self.release_link()

    def reserve_link(self) -> None:
        """Make sure one more bulk link is within the limit, and count it as opening."""
        self._links = [link for link in self._links if not link.closed]
        limit = self._endpoint.limits.bulk_links_per_peer
        if len(self._links) + self._opening_links >= limit:
            raise StreamLimitReached(
                f"{limit} bulk links with {self.node_id.short} are open",
                hint="close links that are done, or raise limits.bulk_links_per_peer",
            )
        self._opening_links += 1

    def release_link(self) -> None:
        """End what `reserve_link` began; the link itself counts from `adopt_link` on."""
        self._opening_links -= 1

    def adopt_link(self, raw: RawStream, result: HandshakeResult) -> BulkLink:
        """Make a bulk link of an authenticated connection; it dies with the peer."""
        if self.close_reason:
            raw.abort()
            raise PeerLost(self.close_reason)
        try:
            held = self.scope.reserve(
                bytes=BULK_LINK_BYTES,
                connections=1,
                descriptors=0 if raw.path is Path.RELAYED else 1,
            )
        except ScopeExceeded:
            raw.abort()
            raise
        link = BulkLink(
            raw, result, _count_nothing if raw.inner else self._count_bulk, held.release
        )
        self._links.append(link)
        return link

    def _count_bulk(self, sent: int, received: int) -> None:
        self._sent += sent
        self._received += received

    # Ending

    def close(self, reason: str, code: CloseCode = CloseCode.NORMAL) -> None:
        """Disconnect on purpose: everything fails here at once, the peer is told why.

        Bytes that streams have not sent yet are dropped. Never blocks.
        """
        for connection in list(self._connections):
            connection.close(reason, code)

    def replace(self, reason: str) -> None:
        """Drop all connections without a goodbye: the peer has given them up already."""
        for connection in list(self._connections):
            connection.drop(reason)

    # For the endpoint

    @property
    def primary(self) -> Connection:
        """The connection new streams go to.

        Raises:
            PeerLost: there is none any more.
        """
        return self._primary()

    def add_connection(self, connection: Connection, *, primary: bool) -> None:
        """Add a connection; the other ones are retired, or this one is."""
        connection.peer = self
        connection.on_end = self._connection_ended
        connection.on_moved = self._note_path
        if primary:
            for other in self._connections:
                other.retire()
            self._connections.insert(0, connection)
        else:
            connection.retire()
            self._connections.append(connection)
        for surplus in self._connections[3:]:
            surplus.close("too many connections", CloseCode.DUPLICATE)
        self._note_path()

    def set_listen(self, addresses: Iterable[Address]) -> None:
        """Take what the peer says about where it can be dialed, in place of what it said before."""
        before = [address for address in self.listen if not address.relay]
        self._said_listen = tuple(addresses)
        self.listen = seen_from_here(self._said_listen, self.address)
        if [address for address in self.listen if not address.relay] != before:
            self.bulk_way = ""  # it may be easier to dial now

    def connection_named(self, connection_id: bytes) -> Connection | None:
        """The living connection with that id, if there is one."""
        for connection in self._connections:
            if connection.connection_id == connection_id and connection.alive:
                return connection
        return None

    def _note_path(self) -> None:
        """The primary connection may be another one now, or travel another way."""
        link = self._connections[0].link
        raw = link.raw
        self.listen = seen_from_here(self._said_listen, raw.remote)
        self.initiated = link.result.role == "initiator" and raw.path is not Path.PUNCHED
        old, self._path, self.address = self._path, raw.path, raw.remote
        if old is not raw.path:
            self.bulk_way = ""
            self._endpoint.on_path_changed(self, old, raw.path)

    def _connection_ended(self, connection: Connection) -> None:
        self._connections.remove(connection)
        if connection.held is not None:
            connection.held.release()
        self._last_seen = max(self._last_seen, connection.received_at)
        self._sent += connection.bytes_sent
        self._received += connection.bytes_received
        if self._connections:
            self._note_path()
            return
        self.close_reason, self.goodbye = connection.end_reason, connection.goodbye
        self.closed.set()
        for link in self._links:
            link.abort(f"peer lost: {self.close_reason}")
        self._links.clear()
        self.scope.close()
        self._endpoint.on_peer_lost(self)


def _count_nothing(_sent: int, _received: int) -> None:
    """For a link whose bytes the connection around it counts."""


def handler_of_calls(handler: CallHandler) -> Handler:
    """Turn a request handler into a stream handler, see the module for the bytes."""

    async def serve_call(stream: Stream) -> None:
        with trio.CancelScope() as scope:
            stream.scope = scope  # a caller that gave up needs no answer
            await answer_call(stream)

    async def answer_call(stream: Stream) -> None:
        try:
            request = await stream.receive_to_end(MAX_MESSAGE_BYTES)
        except MessageTooLarge:
            stream.reset(ResetCode.MESSAGE_TOO_LARGE)
            return
        try:
            answer = OK + await handler(stream.peer, request)
        except RemoteCallFailed as refusal:
            answer = REFUSED + str(refusal).encode("utf-8", "replace")[:MAX_REASON_BYTES]
        if len(answer) > MAX_MESSAGE_BYTES + len(OK):
            raise MessageTooLarge(f"answer of {len(answer) - 1} bytes, limit {MAX_MESSAGE_BYTES}")
        await stream.send_to_end(answer)

    return serve_call
