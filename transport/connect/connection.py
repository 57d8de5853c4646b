"""One control connection: the tasks between a secure link and the mux.

Problem: many tasks use a connection, but a record half written by a cancelled task would end it,
and a peer that dies silently would block them all. Idea: exactly one task reads, one writes, one
watches the clock; everybody else only touches the queues of the mux and gives the writer a kick.

* The writer takes frames from the mux, seals them, and writes, in that order and nowhere else;
  while it rests, others may do that for it in one step (`transport.connect.outlet`).
* The clock sends a ping each `limits.heartbeat_s` and ends the connection when nothing at all
  has come for `limits.silence_s`. Time in which our own loop stood still does not count: a late
  wake-up extends the peer's time by as much (the idea of Lifeguard, Dadgar et al. 2018).
* Ending is one synchronous step: every stream, call and ping fails at once with the reason. Only
  then the goodbye is sent, shielded from cancellation and bounded by `GOODBYE_S`.

The link below may change while all this goes on (`transport.connect.migration`): the writer and the reader
each move at their own record, and nothing above them notices.

Invariants: no task outlives `run`; nothing waits on a connection that has ended; an exception in
a handler ends that handler's stream and nothing else.
"""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import trio

from transport.budget.scopes import Reservation
from transport.connect.migration import Switch, worthwhile
from transport.connect.outlet import Outlet
from transport.errors import (
    ConnectionBroken,
    PeerLost,
    ProtocolViolation,
    RecordError,
    StreamReset,
)
from transport.limits import Limits
from transport.reporter import Reporter
from transport.secure.link import GOODBYE_S, SecureLink
from transport.secure.record import RecordKind
from transport.streams.frames import CloseCode, Priority, ResetCode
from transport.streams.mux import (
    MAX_PINGS,
    Closed,
    DataReceived,
    Event,
    Finished,
    Mux,
    Opened,
    Pong,
    Reset,
    Writable,
)
from transport.streams.stream import Stream

if TYPE_CHECKING:
    from transport.peer import Peer

RECORDS_PER_TURN: Final = 32
"""Records read before other tasks get a turn: about a millisecond of small ones."""

LATE_S: Final = 0.05
"""A wake-up later than this is a stall of our loop, not the scheduler's ordinary work."""

Handler = Callable[[Stream], Awaitable[None]]


class Connection:
    """One authenticated control connection to a peer.

    Args:
        link: right after a handshake of kind "control".
        limits: heartbeat, silence and stream budgets.
        find_handler: protocol name -> handler of inbound streams, or None.
        reporter: for failures of handlers.
        leads: whether this side decides which other link it moves to.

    Attributes:
        peer: set once, before `run`.
        link: what it runs over; the older one while it moves to another.
        end_reason: why it ended; "" while it lives.
        cut: whether it ended without anybody's intention.
        goodbye: the code with which either side ended it; None while it lives, when it broke, and for codes of later releases.
        rtt_s: the last measured round trip in seconds, None before the first.
        retired: a duplicate; no new streams, ends when the old ones have.
        initiated: whether this side began it; moving to another link does not change that.
    """

    peer: "Peer"

    def __init__(
        self,
        link: SecureLink,
        limits: Limits,
        find_handler: Callable[[str], Handler | None],
        reporter: Reporter,
        *,
        leads: bool = False,
    ) -> None:
        self.link = link
        self.leads = leads
        self.connection_id = link.result.session_id
        self.initiated = link.result.role == "initiator"
        self.cut = False
        self.goodbye: CloseCode | None = None
        self.held: Reservation | None = None  # given back with the end
        self.pending = 0  # links that wait to take over; the registry bounds them
        self.mux = Mux(role=link.result.role, limits=limits)
        self.opened_at = trio.current_time()
        self.end_reason = ""
        self.rtt_s: float | None = None
        self.retired = False
        self.slots = trio.lowlevel.ParkingLot()  # who waits for a stream to become free
        self.on_moved: Callable[[], None] = lambda: None
        self._limits = limits
        self._find_handler = find_handler
        self._reporter = reporter
        self._switch = Switch(leads=leads, link=link)
        self._claimed = False  # leader: a pending link is being told that it is the one
        self._moves = trio.lowlevel.ParkingLot()  # who waits for a move, or for the end
        self._until_end: set[trio.CancelScope] = set()  # at most MAX_PENDING
        self._past_sent = self._past_received = 0  # over links that were left
        self._received_at = 0.0  # of links that were left
        self._records_read = 0
        self._streams: dict[int, Stream] = {}  # bounded by limits.streams_per_peer, twice
        self._pings: dict[int, float] = {}  # token -> sent at; bounded by MAX_PINGS
        self._ping_waiters: dict[int, tuple[trio.Event, list[float]]] = {}
        self._next_token = 1
        self._idle_since = self.opened_at
        self._outlet = Outlet(self.mux, self._dispatch)
        self._ending = trio.Event()
        self._scope = trio.CancelScope(shield=True)  # gets its deadline when the end begins
        self._handlers: trio.Nursery | None = None
        self._serving = 0  # handlers at work, also for streams that are gone already
        self.on_end: Callable[[Connection], None] = lambda _: None

    def __repr__(self) -> str:
        state = f" ended: {self.end_reason}" if self.end_reason else ""
        return f"<Connection {self.link.raw.local} -> {self.link.raw.remote}{state}>"

    @property
    def alive(self) -> bool:
        """Whether it has not begun to end."""
        return not self.end_reason

    @property
    def links(self) -> tuple[SecureLink, ...]:
        """The links in use: one, or two while it moves."""
        return tuple(dict.fromkeys((self._switch.reading, self._switch.writing)))

    @property
    def bytes_sent(self) -> int:
        """On the wire since the handshake, over all links."""
        return self._past_sent + sum(link.bytes_sent for link in self.links)

    @property
    def bytes_received(self) -> int:
        """On the wire since the handshake, over all links."""
        return self._past_received + sum(link.bytes_received for link in self.links)

    @property
    def received_at(self) -> float:
        """Trio time of the last byte from the peer."""
        return max(self._received_at, *(link.received_at for link in self.links))

    # For streams and calls

    def open(self, protocol: str, priority: Priority) -> Stream:
        """Open a stream; the peer learns of it with the next record, for which the caller must see (`kick`, or send).

        Raises:
            PeerLost: the connection has ended.
            StreamLimitReached: too many streams are open.
            UsageError: not a protocol name.
        """
        if self.end_reason:
            raise PeerLost(self.end_reason)
        stream_id = self.mux.open(protocol, priority)
        stream = self._streams[stream_id] = Stream(self, stream_id, protocol)
        return stream

    def kick(self) -> None:
        """Have the writer look at the mux."""
        self._outlet.wake()

    def push(self, leave: int = 0) -> None:
        """Send what is queued, at once if it is little and nothing is in the way; see `Outlet.push`. Never blocks."""
        if self.mux.closed or self._switch.must_write:
            self._outlet.wake()
        else:
            self._outlet.push(self._switch.writing, leave)

    def forget(self, stream_id: int) -> None:
        """Stop telling a stream what happens to it."""
        if self._streams.pop(stream_id, None) is not None:
            self.slots.unpark()
            if not self._streams:
                self._idle_since = trio.current_time()

    async def ping(self) -> float:
        """Measure one round trip.

        Returns:
            Seconds.

        Raises:
            PeerLost: the connection has ended or ends meanwhile.
        """
        if self.end_reason:
            raise PeerLost(self.end_reason)
        answered = trio.Event()
        result: list[float] = []
        token = self._send_ping()
        self._ping_waiters[token] = (answered, result)
        try:
            await answered.wait()
        finally:
            self._ping_waiters.pop(token, None)
        if not result:
            raise PeerLost(self.end_reason)
        return result[0]

    def _send_ping(self) -> int:
        token = self._next_token
        self._next_token += 1
        while len(self._pings) >= MAX_PINGS:
            del self._pings[next(iter(self._pings))]
        self._pings[token] = trio.current_time()
        self.mux.ping(token)
        self.kick()
        return token

    # Ending

    def close(self, reason: str, code: CloseCode = CloseCode.NORMAL) -> None:
        """Begin to end on purpose: fail everything here, say goodbye, close. Never blocks."""
        if not self.end_reason:
            self.goodbye = code
            self.mux.close(code, reason)
            self._end(f"closed here: {reason}" if reason else "closed here")
            self._scope.deadline = trio.current_time() + GOODBYE_S
            self.kick()

    def drop(self, reason: str, *, cut: bool = False) -> None:
        """End at once without a goodbye; `cut` if that was nobody's intention."""
        self._fail(reason, cut=cut)

    def _fail(self, reason: str, *, cut: bool = False) -> None:
        """End now: there is nobody to say goodbye to."""
        self._end(reason, cut=cut)
        self._scope.cancel()

    def _end(self, reason: str, *, cut: bool = False) -> None:
        if self.end_reason:
            return
        self.end_reason = reason
        self.cut = cut
        for stream in list(self._streams.values()):
            stream.on_failure(PeerLost(reason))
        self._streams.clear()
        for answered, _ in self._ping_waiters.values():
            answered.set()
        self.slots.unpark_all()
        self._moves.unpark_all()
        for scope in self._until_end:
            scope.cancel()
        self._ending.set()
        self.on_end(self)

    # Tasks

    async def run(self) -> None:
        """Drive the connection until it ends; cancelling ends it with a short goodbye."""
        try:
            async with trio.open_nursery() as handlers:
                self._handlers = handlers
                handlers.start_soon(self._drive)
                try:
                    await self._ending.wait()
                finally:
                    self.close("shutting down", CloseCode.LEAVING)
                    handlers.cancel_scope.cancel()  # ends the handlers; `_drive` is shielded
        finally:
            self._fail("the connection task ended")
            for link in (*self.links, self._switch.target):
                if link is not None:
                    link.abort()

    async def _drive(self) -> None:
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read)
                nursery.start_soon(self._clock)
                nursery.start_soon(self._write)
        if not self._scope.cancelled_caught:
            for link in self.links:
                await link.raw.aclose()

    async def _read(self) -> None:
        mux, since_pause = self.mux, 0
        link = self._switch.reading
        try:
            while True:
                kind, plaintext = await link.receive()
                self._records_read += 1
                since_pause += 1
                if since_pause >= RECORDS_PER_TURN:  # a buffer full of tiny records never waits
                    since_pause = 0
                    await trio.lowlevel.checkpoint()
                if kind == RecordKind.DATA:
                    mux.receive(plaintext, link.received_at)
                    self._dispatch()
                    if mux.wants_write:
                        self.push()
                elif kind == RecordKind.SWITCH:
                    link = await self._read_switch(link, bytes(plaintext))
                elif kind == RecordKind.CLOSE:
                    self._fail("closed by the peer")
                    return
                else:
                    raise ProtocolViolation("a bulk record on a control connection")
        except ConnectionBroken as error:
            self._fail(str(error), cut=True)
        except ProtocolViolation as error:
            self._reporter.report(
                "protocol-violation", trio.current_time(), f"{self._who()}: {error}"
            )
            self._end(f"the peer broke the protocol: {error}")
            self._scope.deadline = trio.current_time() + GOODBYE_S
            self.kick()
        except RecordError as error:
            self._reporter.report("record-refused", trio.current_time(), f"{self._who()}: {error}")
            self._fail(f"unreadable record: {error}")

    async def _write(self) -> None:
        link, mux = self._switch.writing, self.mux
        try:
            while True:
                if self._switch.must_write and not mux.closed:
                    link = await self._write_switch(link)
                if await self._outlet.write(link):
                    continue
                if mux.closed:
                    # The mux ignores what comes after its own goodbye, so two sides that close
                    # at once tell each other with this record that they are through.
                    await link.send(RecordKind.CLOSE, b"")
                    return  # the reader waits for the peer to hang up
                await self._outlet.rest()
        except ConnectionBroken as error:
            self._fail(str(error), cut=True)

    async def _clock(self) -> None:
        limits = self._limits
        received_at, allowance_s = self.received_at, 0.0
        ping_at = trio.current_time()
        while True:
            now = trio.current_time()
            if self.received_at != received_at:
                received_at, allowance_s = self.received_at, 0.0
            lost_at = received_at + limits.silence_s + allowance_s
            if now >= lost_at:
                self._fail(f"silent for {limits.silence_s:g} s", cut=True)
                return
            if now >= ping_at:
                self._send_ping()
                ping_at = now + limits.heartbeat_s
            if self.retired and not self._streams and now - self._idle_since >= limits.silence_s:
                self.close("another connection stays", CloseCode.DUPLICATE)
            wake_at = min(lost_at, ping_at)
            await trio.sleep_until(wake_at)
            late_s = trio.current_time() - wake_at
            if late_s > LATE_S:
                allowance_s += late_s

    def retire(self) -> None:
        """Another connection replaces this one: end it as soon as its streams are done."""
        if not self.retired:
            self.retired = True
            self._idle_since = trio.current_time()

    def _who(self) -> str:
        return f"peer {self.link.result.node_id.short} at {self.link.raw.remote}"

    # Moving to another link: the half of `transport.connect.migration` that touches this connection

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Count a link that waits to take over."""
        self.pending += 1
        try:
            yield
        finally:
            self.pending -= 1

    @contextmanager
    def until_end(self) -> Iterator[trio.CancelScope]:
        """Cancel the block when the connection ends, or has ended already."""
        with trio.CancelScope() as scope:
            if self.end_reason:
                scope.cancel()
            self._until_end.add(scope)
            try:
                yield scope
            finally:
                self._until_end.discard(scope)

    def claim(self, link: SecureLink) -> bool:
        """Leader: reserve the connection for `link`, if it is to move there now."""
        may = (
            self.leads
            and self.alive
            and not self.retired
            and not self._claimed
            and self._switch.at_rest
            and worthwhile(self.link.raw.path, link.raw.path)
        )
        self._claimed = self._claimed or may
        return may

    def unclaim(self) -> None:
        """Leader: the link that `claim` was for is of no use."""
        self._claimed = False

    def move_to(self, link: SecureLink) -> None:
        """Leader: go to `link`, which knows. Ends what `claim` began."""
        self._claimed = False
        if self.alive:
            self._switch.choose(link.result.session_id, link)
            self.kick()

    def offer(self, link: SecureLink) -> None:
        """Follower: the leader has announced that it goes to `link`."""
        self._switch.offer(link.result.session_id, link)
        self._moves.unpark_all()
        self.kick()

    def uses(self, link: SecureLink) -> bool:
        """Whether `link` belongs to the connection by now."""
        return link in self.links or link is self._switch.target

    async def moved_to(self, link: SecureLink) -> bool:
        """Wait until the connection runs over `link`; False if it ended first."""
        try:
            while self.link is not link and self.alive:
                await self._moves.park()
        finally:
            self._switch.withdraw(link.result.session_id)
        return self.link is link

    async def _read_switch(self, link: SecureLink, session: bytes) -> SecureLink:
        """Take the other side's last record on a link; return the one to go on with."""
        if self._records_read == 1:  # the link was to take over a connection that is gone here
            if not session:
                return link  # the peer only said that it holds it
            raise ConnectionBroken("the connection was cut while it moved to another link")
        if link.buffered:
            raise ProtocolViolation("a record after the switch to another link")
        self._switch.read(session)
        if self._switch.waits:
            with trio.move_on_after(self._limits.handshake_timeout_s):
                while self._switch.waits:
                    await self._moves.park()
            if self._switch.waits:
                raise ProtocolViolation("a switch to a link that does not exist")
        self.kick()
        await self._leave(link)
        return self._switch.reading

    async def _write_switch(self, link: SecureLink) -> SecureLink:
        """Write our last record on a link; return the one to go on with."""
        target = self._switch.target
        assert target is not None
        await link.send(RecordKind.SWITCH, self._switch.begin_writing())
        self._switch.written()
        await self._leave(link)
        return target

    async def _leave(self, old: SecureLink) -> None:
        """Close the old link once both directions have left it."""
        if not self._switch.at_rest or old in self.links:
            return
        self._past_sent += old.bytes_sent
        self._past_received += old.bytes_received
        self._received_at = max(self._received_at, old.received_at)
        self.link = self._switch.reading
        self._moves.unpark_all()
        if self.alive:
            self.on_moved()
        await old.raw.aclose()

    # Events

    def _dispatch(self) -> None:
        while (event := self.mux.next_event()) is not None:
            self._handle(event)

    def _handle(self, event: Event) -> None:
        match event:
            case DataReceived(stream_id, data):
                stream = self._streams.get(stream_id)
                if stream is None:
                    self.mux.abandon(stream_id)  # closed here
                else:
                    stream.on_data(data)
            case Finished(stream_id):
                stream = self._streams.get(stream_id)
                if stream is None:
                    self.slots.unpark()
                else:
                    stream.on_finished()
            case Opened(stream_id, protocol, _):
                self._accept(stream_id, protocol)
            case Writable(stream_id):
                stream = self._streams.get(stream_id)
                if stream is not None:
                    stream.on_writable()
            case Reset(stream_id, code):
                stream = self._streams.get(stream_id)
                if stream is not None:
                    stream.on_failure(StreamReset(reset_code=code))
                    self.forget(stream_id)
            case Pong(token):
                sent_at = self._pings.pop(token, None)
                if sent_at is not None:
                    self.rtt_s = trio.current_time() - sent_at
                    waiter = self._ping_waiters.get(token)
                    if waiter is not None:
                        waiter[1].append(self.rtt_s)
                        waiter[0].set()
            case Closed(code, text, by_remote):
                if by_remote:
                    if not self.end_reason and code in CloseCode.__members__.values():
                        self.goodbye = CloseCode(code)
                    said = text if text.isprintable() else ascii(text)
                    self._fail(f"closed by the peer: {said}" if said else "closed by the peer")

    def _accept(self, stream_id: int, protocol: str) -> None:
        handler = self._find_handler(protocol)
        if handler is None or self.end_reason or self._handlers is None:
            self._reporter.count("no-such-protocol")
            self.mux.reset(stream_id, ResetCode.NO_SUCH_PROTOCOL)
            return
        if self._serving >= 2 * self._limits.streams_per_peer:
            # A peer that resets its streams while our handlers sleep must not gather tasks here.
            self._reporter.count("refused-handlers")
            self.mux.reset(stream_id, ResetCode.REFUSED)
            return
        stream = self._streams[stream_id] = Stream(self, stream_id, protocol)
        self._serving += 1
        self._handlers.start_soon(self._serve, handler, stream)

    async def _serve(self, handler: Handler, stream: Stream) -> None:
        """Run one handler; its failure ends its stream only."""
        try:
            await handler(stream)
        except BaseException as error:
            stream.reset(ResetCode.HANDLER_FAILED)
            if _is_lost(error):
                self._reporter.count("handler-lost-peer")
                return
            rest = self._reporter.report_errors(
                "handler-failed",
                trio.current_time(),
                f"handler of {stream.protocol!r} for {self._who()} failed",
                error,
            )
            if rest is error:
                raise
            if rest is not None:
                raise rest from None
        else:
            stream.close()
        finally:
            self._serving -= 1


def _is_lost(error: BaseException) -> bool:
    """Whether a handler ended only because its peer or stream went away, which is no failure."""
    if isinstance(error, BaseExceptionGroup):
        return all(_is_lost(inner) for inner in error.exceptions)
    return isinstance(error, PeerLost | StreamReset)
