"""One side of one punch, with sockets and time: `transport.punch.agreement` says what is said, this does it.

Problem: up to eight addresses are dialed again and again, some of the dials connect, so may the
other side's at our listener, several handshakes run at once, and all of it must end together. Idea:
one nursery for the handshakes, which outlive a round, and one per round for the dials. A connection
that comes up becomes the peer's by `Endpoint.upgrade`, whose leader chooses one of several; so the
first to be *chosen* ends the punch, not the first to connect.

Invariants: every wait has a bound; no dial and no handshake outlives the run; whatever the peer or
the network does ends up in the report, not in an exception.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from contextlib import ExitStack
from typing import Final

import attrs
import trio

from transport.address import Address
from transport.connect.source import source_for
from transport.endpoint import Endpoint
from transport.errors import ConnectFailed, TransportError
from transport.network import Path, RawStream
from transport.peer import Peer
from transport.punch.agreement import MAX_ATTEMPTS, MAX_FAILED_HANDSHAKES, PunchSession, gap_s
from transport.punch.messages import PROTOCOL, TOKEN_BYTES, EndReason
from transport.punch.report import MAX_NOTED, Attempt, PunchReport
from transport.secure.handshake import HandshakeRole
from transport.streams.frames import Priority
from transport.streams.stream import Stream
from transport.watch import PeerEvent

MESSAGE_S: Final = 10.0
"""How long the other side may take for a message that is due."""
SETTLE_S: Final = 2.0
"""How long after the other side's word that it worked it may take to show here."""
GOODBYE_S: Final = 0.2
"""How long a cancelled coordinator may take to say so: the stream only has to take the message."""

Choose = Callable[[Iterable[Address]], tuple[list[Address], list[tuple[Address, str]]]]
Steps = Callable[[Stream, ExitStack], Awaitable[None]]


@attrs.define(eq=False)
class _Dial:
    """One dial under way, and its handshake."""

    address: Address
    round: int
    started: float
    role: HandshakeRole
    reason: str = "no answer in time"
    over: trio.Event = attrs.field(factory=trio.Event)


class PunchRun:
    """One session from one side.

    Args:
        endpoint: us.
        peer: connected over a relay.
        session: what is said; in its initial state.
        choose: splits the other side's addresses into those to dial and those refused, with reasons.

    Attributes:
        done: set by whoever runs it.
        finished: it came to its end; False if it was cancelled.
        crossed: refused by the other side in favour of a session of its own.
    """

    def __init__(
        self, endpoint: Endpoint, peer: Peer, session: PunchSession, choose: Choose
    ) -> None:
        self.done = trio.Event()
        self.finished = False
        self.crossed = False
        self._endpoint = endpoint
        self._peer = peer
        self._session = session
        self._choose = choose
        self._attempts: dict[tuple[Address, int, str], Attempt] = {}  # bounded by MAX_NOTED
        self._hopeless: set[Address] = set()  # not dialed any more; some of theirs
        self._failed_handshakes: Counter[Address] = Counter()  # the same
        self._started = trio.current_time()
        self._took = 0.0
        self._reason = ""
        self._rounds = 0
        self._expected: set[str] = set()
        self._success = trio.Event()
        self._handshakes: trio.Nursery | None = None

    @property
    def direct(self) -> bool:
        """Whether the peer is connected without a relay; also under a new `Peer` of the same node."""
        peer = self._endpoint.peers.get(self._peer.node_id)
        return peer is not None and peer.path is not Path.RELAYED

    def report(self) -> PunchReport:
        """What came of it so far."""
        ok, reason = self.direct, self._reason
        peer = self._endpoint.peers.get(self._peer.node_id)
        if not ok and not reason:
            reason = EndReason.FAILED.sentence
        return PunchReport(
            ok=ok,
            path=peer.path if ok and peer is not None else None,
            reason="" if ok else reason,
            coordinated=self._session.coordinates,
            rounds=self._rounds,
            rtt_s=self._session.rtt_s,
            took_s=self._took,
            attempts=tuple(self._attempts.values()),
        )

    async def coordinate(self) -> None:
        """Open the stream and lead the session to its end."""
        try:
            stream = await self._peer.open_stream(PROTOCOL, priority=Priority.URGENT)
        except TransportError as error:
            self._reason, self.finished = str(error), True
            return
        try:
            await self._run(stream, self._lead)
        except trio.Cancelled:
            await self._say_goodbye(stream)
            raise
        finally:
            stream.close()

    async def _say_goodbye(self, stream: Stream) -> None:
        """Tell the other side, which would go on dialing, that nobody waits for it."""
        if self._session.over:
            return
        with trio.move_on_after(GOODBYE_S, shield=True):
            try:
                await stream.send_message(self._session.end(EndReason.CANCELLED))
            except TransportError:  # the connection is gone, and with it the session
                return

    async def follow(self, stream: Stream) -> None:
        """Do as the other side says until it ends the session."""
        await self._run(stream, self._obey)

    async def _run(self, stream: Stream, steps: Steps) -> None:
        """Run the steps beside what they need: the handshakes, and an eye on the peer's path."""
        with ExitStack() as expecting, self._endpoint.watch() as events:
            async with trio.open_nursery() as nursery:
                self._handshakes = nursery
                watching = trio.CancelScope()
                nursery.start_soon(self._watch, events, watching)
                try:
                    await steps(stream, expecting)
                except trio.TooSlowError:
                    self._reason = f"the other side said nothing for {MESSAGE_S:g} s"
                except TransportError as error:
                    self._reason = str(error)
                watching.cancel()
                if self._success.is_set():
                    nursery.cancel_scope.cancel()
                # Otherwise handshakes that have begun may still succeed; each has its deadline.
        self._took = trio.current_time() - self._started
        self.finished = True

    async def _watch(
        self, events: trio.MemoryReceiveChannel[PeerEvent], scope: trio.CancelScope
    ) -> None:
        """Notice an upgrade that began elsewhere: our listener took the other side's dial."""
        with scope:
            while not self.direct:
                try:
                    await events.receive()
                except trio.EndOfChannel:
                    return
            self._success.set()

    # The two parts

    async def _lead(self, stream: Stream, expecting: ExitStack) -> None:
        session = self._session
        while session.may_go_on:
            token = self._endpoint.random_bytes(TOKEN_BYTES)
            await self._send(stream, session.begin(token, trio.current_time()))
            await self._receive(stream)
            if session.over:
                self.crossed = session.ended is EndReason.CROSSED
                self._reason = self._others_reason()
                return
            targets = self._targets(expecting)
            if session.round == 1:
                await self._reverse(targets)
            if not self._success.is_set():
                await self._send(stream, session.sync(trio.current_time()))
                await self._dial_all(stream, targets)
            if self._success.is_set() or session.over:
                break
        self._reason = self._others_reason()
        if not session.over:
            self._reason = f"{EndReason.FAILED.sentence} in {session.round} rounds"
            done = EndReason.DONE if self._success.is_set() else EndReason.FAILED
            await self._send(stream, session.end(done))

    def _others_reason(self) -> str:
        """Why the other side has ended the session; "" if it has not, or because it worked."""
        ended = self._session.ended
        return "" if ended is None else ended.sentence

    async def _obey(self, stream: Stream, expecting: ExitStack) -> None:
        session, targets = self._session, list[Address]()
        await self._receive(stream)
        while not session.over:
            if session.state == "connecting":
                targets = self._targets(expecting)
                if session.round == 1:
                    await self._receive_reversing(stream, targets)
                else:
                    await self._receive(stream)
                continue
            await self._dial_all(stream, targets)
            if self._success.is_set():
                return
            if session.state == "dialing":
                await self._receive(stream)
        self._reason = self._others_reason()
        if session.ended is EndReason.DONE:
            with trio.move_on_after(SETTLE_S):
                await self._success.wait()

    def _targets(self, expecting: ExitStack) -> list[Address]:
        """Whom to dial in this round; their hosts may dial us from now on."""
        targets, refused = self._choose(self._session.theirs)
        if self._session.round == 1:
            for address, reason in refused:
                now = trio.current_time()
                self._note(_Dial(address, 0, now, "initiator", f"not dialed: {reason}"))
        hosts = {address.host for address in targets} - self._expected
        if hosts or not self._expected:
            self._expected |= hosts
            expecting.enter_context(self._endpoint.expect_punch(self._peer.node_id, hosts))
        return [address for address in targets if address not in self._hopeless]

    async def _send(self, stream: Stream, message: bytes) -> None:
        with trio.fail_after(MESSAGE_S):
            await stream.send_message(message)

    async def _receive(self, stream: Stream) -> None:
        """Wait for the next message and answer it."""
        with trio.fail_after(MESSAGE_S):
            data = await stream.receive_message()
        await self._take(stream, data)

    async def _take(self, stream: Stream, data_untrusted: bytes) -> None:
        answer = self._session.receive(data_untrusted, trio.current_time())
        if answer:
            await self._send(stream, answer)

    # Dialing

    async def _reverse(self, targets: Iterable[Address]) -> None:
        """Dial as anybody would: the other side may simply be reachable from here."""
        with trio.move_on_after(self._session.reverse_s):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._stop_when_done, nursery.cancel_scope)
                await self._dial_plainly(targets)
                nursery.cancel_scope.cancel()

    async def _receive_reversing(self, stream: Stream, targets: Iterable[Address]) -> None:
        """Wait for the next message, and meanwhile dial as anybody would, as the coordinator does."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._dial_plainly, targets)
            failures = list[Exception]()
            try:
                await self._receive(stream)
            except (trio.TooSlowError, TransportError) as error:
                failures.append(error)  # raised below, bare
            nursery.cancel_scope.cancel()
        if failures:
            raise failures[0]

    async def _dial_plainly(self, targets: Iterable[Address]) -> None:
        async with trio.open_nursery() as dials:
            for address in targets:
                dials.start_soon(self._dial_once, address, "initiator")

    async def _dial_all(self, stream: Stream, targets: Iterable[Address]) -> None:
        """Dial until it worked, the round is over, or the other side says something.

        Raises:
            TransportError: the stream failed.
        """
        session, failures = self._session, list[TransportError]()

        async def listen(scope: trio.CancelScope) -> None:
            try:
                data = await stream.receive_message()
                scope.cancel()  # whatever it is, it ends this round
                with trio.CancelScope(shield=True):  # the answer is due all the same
                    await self._take(stream, data)
            except trio.TooSlowError:
                scope.cancel()
            except TransportError as error:
                failures.append(error)
                scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen, nursery.cancel_scope)
            with trio.move_on_at(session.dial_until):
                await trio.sleep_until(session.dial_at)
                self._rounds = session.round
                async with trio.open_nursery() as dials:
                    for address in targets:
                        dials.start_soon(self._dial_repeatedly, address)
                    await self._stop_when_done(dials.cancel_scope)
            nursery.cancel_scope.cancel()
        if failures and not self._success.is_set():
            raise failures[0]

    async def _stop_when_done(self, scope: trio.CancelScope) -> None:
        await self._success.wait()
        scope.cancel()

    async def _dial_repeatedly(self, address: Address) -> None:
        for _ in range(MAX_ATTEMPTS):
            if address in self._hopeless:
                return
            await self._dial_once(address, "punch")
            await trio.sleep(gap_s(self._endpoint.rng.random()))

    async def _dial_once(self, address: Address, role: HandshakeRole) -> None:
        """One dial and, if it connects, one handshake, which may outlive the round."""
        number = self._session.round if role == "punch" else 0
        dial = _Dial(address, number, trio.current_time(), role)
        source = source_for(self._endpoint.addresses, address) if role == "punch" else None
        raw = None
        try:
            raw = await self._endpoint.network.connect(address, source=source)
        except ConnectFailed as error:
            dial.reason = str(error)
            if error.lasting:
                self._hopeless.add(address)
        finally:
            if raw is None:
                self._note(dial)
        if raw is not None:
            assert self._handshakes is not None
            self._handshakes.start_soon(self._upgrade, raw, dial)
            await dial.over.wait()

    async def _upgrade(self, raw: RawStream, dial: _Dial) -> None:
        dial.reason = "the session ended before the handshake"
        try:
            if await self._endpoint.upgrade(self._peer, raw, dial.role):
                dial.reason = ""
                self._success.set()
            else:
                dial.reason = "connected; the handshake failed, or another connection was chosen"
                self._failed_handshakes[dial.address] += 1
                if self._failed_handshakes[dial.address] >= MAX_FAILED_HANDSHAKES:
                    self._hopeless.add(dial.address)
        except TransportError as error:
            dial.reason = str(error)
        finally:
            self._note(dial)
            dial.over.set()

    def _note(self, dial: _Dial) -> None:
        took = trio.current_time() - dial.started
        key = dial.address, dial.round, dial.reason
        known = self._attempts.get(key)
        if known is not None:
            longest = max(known.took_s, took)
            self._attempts[key] = attrs.evolve(known, count=known.count + 1, took_s=longest)
        elif len(self._attempts) < MAX_NOTED:
            self._attempts[key] = Attempt(*key[:2], dial.started - self._started, took, dial.reason)
