"""The door: one request and one answer between a node and somebody who is no member yet.

Problem: a newcomer has no certificate and does not know the swarm's secret, so it cannot get past the first flight that keeps strangers out; and
letting strangers in must cost no more than it has to. Idea: a role of its own in the handshake (`transport.secure.handshake`), keyed by the
swarm's id, which whoever was invited knows (`Gate.joining`). The member shows its certificates as to anybody, the newcomer shows nothing, and then

    newcomer    one record of kind JOIN: the request
    member      one record of kind JOIN: the answer, and the end

Nothing else is served there: no stream, no peer. What is asked has to prove itself; what is answered comes from a member of that swarm for sure, but
from the one that issued an invite only if it shows that itself.

What it may cost: no signature is verified for a newcomer. One is made, for no more than `DOOR_RATE` of them per second, and each costs its
source a token of `transport.budget.admission` that does not come back. Until the handshake is done it may be pushed out, as any stranger.

Invariants: memory for one newcomer is bounded by `MAX_REQUEST_BYTES` and the handler's answer; at most `MAX_AT_THE_DOOR` are answered at a
time, `MAX_OF_ONE_SOURCE` of each source; whatever happens, the stream is closed when `answer` or `ask_at_door` ends.
"""

import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, TypeAlias

import trio

from transport.budget.admission import source_of
from transport.budget.rates import TokenBucket
from transport.errors import ConnectionBroken, RecordError, RecordTooLarge
from transport.identity import Identity
from transport.network import RawStream
from transport.reporter import Reporter
from transport.secure.handshake import Handshake, HandshakeResult, Intro
from transport.secure.link import shake_hands
from transport.secure.record import HEADER_BYTES, OVERHEAD_BYTES, TAG_BYTES, RecordKind
from transport.swarm import Gate
from transport.trust.trust import Trust

MAX_REQUEST_BYTES: Final = 1024
MAX_ANSWER_BYTES: Final = 16384
MAX_AT_THE_DOOR: Final = 32
MAX_OF_ONE_SOURCE: Final = 16
"""Half of them, so that one address cannot take all; a classroom behind one queues."""
ANSWER_S: Final = 18.0
"""A member may have to reach another one over a relay first."""

DOOR_RATE: Final = 4.0
"""Handshakes of newcomers per second, all sources: 0.2 % of a core."""
DOOR_BURST: Final = 128
"""At once: a class room, or a hundred people with one code."""

_READ_BYTES: Final = 4096

_log = logging.getLogger(__name__)

DoorHandler: TypeAlias = Callable[[bytes, str], Awaitable[bytes]]
"""(request, the network it comes from) to the answer."""


class Door:
    """What answers at one node's door.

    Args:
        handler: makes answers; what it raises is logged and closes the connection.
        now: monotonic seconds.
    """

    def __init__(self, handler: DoorHandler, now: float) -> None:
        self._handler = handler
        self._sources: Counter[str] = Counter()
        self._bucket = TokenBucket(DOOR_RATE, DOOR_BURST, now)

    def may_enter(self, now: float) -> bool:
        """Whether the handshake of one more newcomer may go on."""
        return self._sources.total() < MAX_AT_THE_DOOR and self._bucket.take(1, now)

    async def answer(
        self, raw: RawStream, result: HandshakeResult, deadline: float, reporter: Reporter
    ) -> None:
        """Take one request from a connection that came through the door, answer it, close it.

        Args:
            raw: after its handshake.
            result: of the handshake.
            deadline: trio time by which the request must be there, as of the handshake.
            reporter: counts what came of it.
        """
        source = source_of(raw.remote.host)
        if self._sources.total() >= MAX_AT_THE_DOOR or self._sources[source] >= MAX_OF_ONE_SOURCE:
            reporter.count("refused-door-is-busy")
            raw.abort()
            return
        self._sources[source] += 1
        try:
            request = b""
            with trio.move_on_at(deadline):
                request = await _receive(raw, result, MAX_REQUEST_BYTES)
            if not request:
                reporter.count("door-timeout")
                return
            with trio.move_on_after(ANSWER_S):
                await _send(raw, result, await self._handler(request, source))
                reporter.count("door-answered")
                with suppress(trio.BrokenResourceError):
                    # Wait for the other side to close: an abort could overtake the answer.
                    await raw.receive_into(memoryview(bytearray(1)))
        except (ConnectionBroken, RecordError):
            reporter.count("door-broken")
        except Exception as error:  # noqa: BLE001 (the guard: a newcomer must not end the node)
            reporter.count("door-failed")
            _log.error("the answer for a newcomer failed", exc_info=error)
        finally:
            self._sources[source] -= 1
            self._sources += Counter()  # drops what is at zero
            raw.abort()


async def ask_at_door(
    raw: RawStream,
    swarm_id: bytes,
    identity: Identity,
    request: bytes,
    *,
    random_bytes: Callable[[int], bytes],
    handshake_s: float = 10.0,
    wall_clock: Callable[[], float] = time.time,
) -> bytes:
    """Ask the node at the other end of `raw`, and return its answer; whose word that is, it has to show itself.

    Cancelling closes the stream.

    Args:
        raw: a fresh connection; closed here.
        swarm_id: of the swarm whose member is asked; it proves with its certificates that it is one.
        identity: ours; it is not told.
        request: at most `MAX_REQUEST_BYTES`.
        random_bytes: source of fresh keys.
        handshake_s: for the handshake, seconds.
        wall_clock: seconds since 1970, for the member's certificates.

    Raises:
        HandshakeFailed: the other side is no member of that swarm, or does not answer newcomers.
        ConnectionBroken: the connection ended before the answer.
        RecordError: the answer is no record of the other side's.
    """
    trust = Trust(swarm_id)
    handshake = Handshake(
        role="join",
        identity=identity,
        gate=Gate.joining(swarm_id),
        chain=b"",
        judge=lambda chain, key: trust.check(chain, key, int(wall_clock() * 1000)),
        intro=Intro(),
        random_bytes=random_bytes,
    )
    try:
        deadline = trio.current_time() + handshake_s
        result = await shake_hands(raw, handshake, deadline=deadline)
        await _send(raw, result, request)
        return await _receive(raw, result, MAX_ANSWER_BYTES)
    finally:
        raw.abort()


async def _send(raw: RawStream, result: HandshakeResult, data: bytes) -> None:
    out = memoryview(bytearray(len(data) + 2 * OVERHEAD_BYTES))
    size = result.sealer.seal_into(RecordKind.JOIN, data, out)
    try:
        await raw.send_all(out[:size])
    except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
        raise ConnectionBroken(str(error)) from error


async def _receive(raw: RawStream, result: HandshakeResult, most: int) -> bytes:
    """One record of at most `most` bytes; the buffer grows with what is received."""
    received = bytearray(result.leftover)
    piece = memoryview(bytearray(_READ_BYTES))
    wanted = HEADER_BYTES
    while True:
        if len(received) >= HEADER_BYTES:
            kind, length = result.opener.parse_header(received[:HEADER_BYTES])
            if length > most or kind != RecordKind.JOIN:
                raise RecordTooLarge(f"record of {length} bytes at the door, limit {most}")
            wanted = length + OVERHEAD_BYTES
        if len(received) >= wanted > HEADER_BYTES:
            out = memoryview(bytearray(wanted - OVERHEAD_BYTES))
            body = received[HEADER_BYTES:wanted]
            assert len(body) == len(out) + TAG_BYTES
            result.opener.open_into(received[:HEADER_BYTES], body, out)
            return bytes(out)
        try:
            count = await raw.receive_into(piece[: min(_READ_BYTES, wanted - len(received))])
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ConnectionBroken(str(error)) from error
        if count == 0:
            raise ConnectionBroken("the other side closed the connection without an answer")
        received += piece[:count]


__all__ = [
    "MAX_ANSWER_BYTES",
    "MAX_REQUEST_BYTES",
    "Door",
    "DoorHandler",
    "ask_at_door",
]
