"""A connection moves to another link, and nothing that it carries notices.

Problem: two nodes meet over a relay and a moment later a direct connection succeeds. Closing the
first would cut every stream and call on it. Idea: the multiplexed state stays where it is and only
the sealed link below it changes, at a place in the byte stream that both sides agree on.

The new link's handshake names the connection it is for (its `label` is the connection's id: the
session id of the handshake it began with). Then, with record kind SWITCH in four places:

    follower, new link    SWITCH(nothing)             my side holds this link for that connection
    leader,   new link    SWITCH(connection id)       then I take this one; its records follow here
    leader,   old link    SWITCH(session of the new)  my last record here
    follower, old link    SWITCH(session of the new)  my last record here

The node with the lower id leads. It takes a link only when the other side has shown on that very
link that it holds it, so a link that died right after its handshake harms nobody. Each side reads
the old link up to SWITCH and goes on with the new one: no record is lost, doubled or moved.

When the old link dies first, without SWITCH on it, the new one becomes a connection of its own:
a side that finds DATA where it waits for SWITCH learns so that the other has begun anew.
When it dies between the two, the connection is lost like any other: bytes were under way on it.

`Switch` is the rule (sans-IO); `hold` is the driver of one link that waits.
"""

from enum import Enum
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import trio

from transport.errors import ConnectionBroken, ProtocolViolation, RecordError
from transport.network import Path
from transport.secure.record import RecordKind

if TYPE_CHECKING:
    from transport.connect.connection import Connection
    from transport.secure.link import SecureLink

MAX_PENDING: Final = 4
"""Links that may wait to take over one connection; each holds a task, a socket and 32 KiB."""

L = TypeVar("L")


class Switch(Generic[L]):
    """Where each direction of one connection is, and where it goes next.

    Args:
        leads: whether this side chooses the link.
        link: the link right after the handshake.

    Attributes:
        reading: the link to read from now.
        writing: the link to write to now.
        target: the link both directions go to; None at rest.
    """

    def __init__(self, *, leads: bool, link: L) -> None:
        self.leads = leads
        self.reading = link
        self.writing = link
        self.target: L | None = None
        self._target_session = b""
        self._saying = False  # our SWITCH to the target is on its way, or was written
        self._offered: dict[bytes, L] = {}  # follower: announced by the leader; at most MAX_PENDING
        self._wanted = b""  # follower: read from the old link, not announced yet

    @property
    def at_rest(self) -> bool:
        """Whether both directions use one link and none is about to move."""
        return self.target is None and not self._wanted

    @property
    def must_write(self) -> bool:
        """Whether the writer has to move before it writes anything else."""
        return self.target is not None and self.writing is not self.target

    def choose(self, session: bytes, link: L) -> None:
        """Leader: go to `link`. Only at rest."""
        assert self.leads
        assert self.at_rest
        self.target, self._target_session = link, session

    def offer(self, session: bytes, link: L) -> None:
        """Follower: the leader has announced on `link` itself that it takes it."""
        assert not self.leads
        self._offered[session] = link
        if self._wanted == session:
            self._follow(session)

    def withdraw(self, session: bytes) -> None:
        """Follower: the link is gone."""
        self._offered.pop(session, None)

    def read(self, session: bytes) -> None:
        """Take SWITCH(session) from the link that is read.

        Raises:
            ProtocolViolation: it is not its turn, or names another link than the one agreed on.
        """
        if self.leads:
            if self.target is None or not self._saying or self.reading is self.target:
                raise ProtocolViolation("a switch to another link that was not asked for")
            if session != self._target_session:
                raise ProtocolViolation("a switch to another link than the one agreed on")
            self.reading = self.target
            self._settle()
            return
        if not self.at_rest:
            raise ProtocolViolation("a second switch before the first one was complete")
        self._wanted = session
        if session in self._offered:
            self._follow(session)

    @property
    def waits(self) -> bool:
        """Follower: whether the link that the leader named is still to be announced."""
        return bool(self._wanted)

    def _follow(self, session: bytes) -> None:
        self.target, self._target_session = self._offered.pop(session), session
        self._wanted = b""
        self.reading = self.target

    def begin_writing(self) -> bytes:
        """Return the session to name in SWITCH, as our last record on the link in use.

        From here on the other side may answer: its SWITCH can be read before the task that writes ours has come back from doing so.
        """
        assert self.must_write
        self._saying = True
        return self._target_session

    def written(self) -> None:
        """Go on writing to the target: our SWITCH has left."""
        assert self._saying
        assert self.target is not None
        self.writing = self.target
        self._settle()

    def _settle(self) -> None:
        if self.target is not None and self.reading is self.target and self.writing is self.target:
            self.target, self._target_session, self._saying = None, b"", False


class Outcome(Enum):
    """How a pending link ended."""

    MOVED = "moved"
    """The connection runs over it."""
    ORPHANED = "orphaned"
    """The connection was cut without it: it may become one of its own."""
    DROPPED = "dropped"
    """It is of no use."""


async def hold(link: "SecureLink", connection: "Connection", timeout_s: float) -> Outcome:
    """Keep `link` ready for `connection` until it is taken, or its time is over.

    Owns the link's tasks until the connection takes it. Cancelling drops the link. The follower
    waits longer than the leader, which closes a link that it does not want.

    Args:
        link: authenticated, for the same peer.
        connection: which it may take over.
        timeout_s: for the other side to show that it holds the link, in seconds.
    """
    with connection.holding():
        try:
            if connection.leads:
                return await _lead(link, connection, timeout_s)
            return await _follow(link, connection, timeout_s)
        except (ConnectionBroken, RecordError):
            return Outcome.DROPPED


async def _lead(link: "SecureLink", connection: "Connection", timeout_s: float) -> Outcome:
    with trio.move_on_after(timeout_s) as scope:
        kind, said = await link.peek()
    if scope.cancelled_caught:
        return Outcome.DROPPED
    if kind == RecordKind.DATA:
        return _begun_anew(connection)
    if kind != RecordKind.SWITCH or len(said):
        return Outcome.DROPPED
    await link.receive()
    if not connection.alive:
        return _left_over(connection)
    if not connection.claim(link):
        return Outcome.DROPPED
    announced = False
    try:
        with trio.move_on_after(timeout_s):
            await link.send(RecordKind.SWITCH, connection.connection_id)
            announced = True
    finally:
        if not announced:
            connection.unclaim()
    if not announced:
        return Outcome.DROPPED
    connection.move_to(link)
    return await _moved(link, connection)


async def _follow(link: "SecureLink", connection: "Connection", timeout_s: float) -> Outcome:
    with trio.move_on_after(timeout_s) as scope:
        await link.send(RecordKind.SWITCH, b"")
    if scope.cancelled_caught:
        return Outcome.DROPPED
    with connection.until_end() as scope, trio.move_on_after(2 * timeout_s) as waiting:
        kind, said = await link.peek()
    if waiting.cancelled_caught:
        return Outcome.DROPPED
    if scope.cancelled_caught:
        return _left_over(connection)
    if kind == RecordKind.DATA:
        return _begun_anew(connection)
    if kind != RecordKind.SWITCH or bytes(said) != connection.connection_id:
        return Outcome.DROPPED
    await link.receive()
    connection.offer(link)
    return await _moved(link, connection)


async def _moved(link: "SecureLink", connection: "Connection") -> Outcome:
    """Wait until both directions have moved, or the connection has ended on the way."""
    return Outcome.MOVED if await connection.moved_to(link) else Outcome.DROPPED


def _begun_anew(connection: "Connection") -> Outcome:
    """The other side has lost the old connection, and uses the link as one of its own."""
    connection.drop("the peer opened a new connection", cut=True)
    return _left_over(connection)


def _left_over(connection: "Connection") -> Outcome:
    return Outcome.ORPHANED if connection.cut else Outcome.DROPPED


def worthwhile(old: Path, new: Path) -> bool:
    """Whether a connection should leave the one path for the other."""
    return old is Path.RELAYED and new is not Path.RELAYED
