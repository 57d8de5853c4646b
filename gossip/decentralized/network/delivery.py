"""Messages of a decentralized run to its neighbours and from them (trio driver of `wire` and `room`).

A message is a stream of its own: one that is large does not stand in front of one that is small, and the receiver says yes to
each by finishing its direction, or no by resetting it.

    send     ->  queue of that neighbour, small or large  ->  stream  ->  its receipt, or `on_lost`
    stream   ->  head  ->  room for it  ->  bytes  ->  `on_message`, and `release` when it was looked at

Invariants: a queue holds at most `QUEUE_MESSAGES` and `queue_bytes` (or one message); what has arrived waits within `room`;
every stream ends by a deadline that grows with its size; whoever sends what is no message is put out.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import attrs
import trio

from gossip.decentralized.network.neighbours import Neighbours
from gossip.decentralized.network.room import Room, RoomLimits
from gossip.decentralized.network.wire import Decoder, parts, wire_bytes
from gossip.decentralized.protocol import MAX_MESSAGE_BYTES, Send
from transport.endpoint import Endpoint
from transport.errors import MalformedMessage, StreamReset, TransportError
from transport.identity import NodeId
from transport.peer import Peer
from transport.streams.frames import ResetCode
from transport.streams.stream import Stream

__all__ = ["Delivery", "Statistics", "Traffic"]

QUEUE_MESSAGES: Final = 256
"""For one neighbour and kind; more are lost, and the protocol hears of it."""
SMALL_AT_ONCE: Final = 8
"""Streams of small messages to one neighbour."""
LARGE_AT_ONCE: Final = 2
"""Of those with vectors: one on its way, the receipt of the other one awaited."""
PATIENCE_S: Final = 30.0
"""For a message of no size; for larger ones there is more."""
SLOWEST_BYTES_PER_S: Final = 65536
"""A stream that is slower on the whole is given up: a trickle would hold memory for ever."""
GREETING_S: Final = 5.0
"""A message may be quicker than the greeting of its sender."""
ROOM_S: Final = 10.0
"""A message waits so long for room, in the network's own buffers."""


@attrs.define
class Statistics:
    """What went in and out, in messages and bytes on their streams; `lost` counts by reason."""

    messages_sent: int = 0
    messages_received: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    lost: Counter[str] = attrs.field(factory=Counter)


@attrs.define
class Traffic:
    """What went to one node and came from it, as long as it is a neighbour; models are messages with vectors."""

    models_sent: int = 0
    """With a receipt."""
    models_received: int = 0
    bytes_sent: int = 0
    """Of models and small messages alike."""
    bytes_received: int = 0
    last_model_at: float | None = None
    """When the last one came, by the event loop's clock."""


@attrs.define(eq=False)
class _Queue:
    """What waits for one neighbour, of one kind."""

    at_once: int
    waiting: deque[Send] = attrs.field(factory=deque)
    bytes: int = 0
    workers: int = 0


class Delivery:
    """Both directions; the incoming one inside `taking`.

    Args:
        endpoint: our place on the network.
        run: id of the run, 32 bytes.
        neighbours: whom to send to and take from.
        nursery: for the tasks that send; when it is cancelled, what waits is lost without a report.
        numel: values of the model.
        on_message: a message has arrived (sender, decoder that is complete); its owner calls `release` with the same two.
        on_lost: a message was not delivered, as far as is known.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        run: bytes,
        neighbours: Neighbours,
        nursery: trio.Nursery,
        *,
        numel: int,
        on_message: Callable[[NodeId, Decoder], None],
        on_lost: Callable[[Send], None],
    ) -> None:
        self.statistics = Statistics()
        self.traffic: dict[NodeId, Traffic] = {}
        """By neighbour; nodes that are none any more are forgotten when another one is added."""
        self.room = Room(RoomLimits.of(numel))
        self._endpoint = endpoint
        self._protocol = f"gossip/{run.hex()[:32]}"
        self._neighbours = neighbours
        self._nursery = nursery
        self._numel = numel
        self._most_bytes = self.room.limits.per_node_bytes + MAX_MESSAGE_BYTES
        self._on_message, self._on_lost = on_message, on_lost
        self._queues: dict[tuple[NodeId, bool], _Queue] = {}
        self._freed = trio.Event()
        self._sent = trio.Event()

    # Out

    def send(self, message: Send) -> None:
        """Have a message sent; never blocks. What becomes of it is told later, `on_lost` at the earliest after this returns."""
        large = bool(message.vectors)
        size = wire_bytes(message.message, message.vectors)
        assert size <= self._most_bytes, f"a message of {size} bytes, more than four models"
        queue = self._queues.get((message.to, large))
        if queue is None:
            queue = _Queue(LARGE_AT_ONCE if large else SMALL_AT_ONCE)
        if self._neighbours.peer(message.to) is None:
            self._lose(message, "no-neighbour")
            return
        full = len(queue.waiting) >= QUEUE_MESSAGES
        if full or (queue.waiting and queue.bytes + size > self.room.limits.per_node_bytes):
            self._lose(message, "queue-full")
            return
        self._queues[message.to, large] = queue
        queue.waiting.append(message)
        queue.bytes += size
        if queue.workers < queue.at_once:
            queue.workers += 1
            self._nursery.start_soon(self._work, message.to, large, queue)

    async def drained(self) -> None:
        """Wait until everything is delivered or lost; bound it with a deadline."""
        while self._queues:
            await self._sent.wait()

    async def _work(self, node: NodeId, large: bool, queue: _Queue) -> None:
        try:
            while queue.waiting:
                message = queue.waiting.popleft()
                size = wire_bytes(message.message, message.vectors)
                queue.bytes -= size
                peer = self._neighbours.peer(node)
                if peer is None:
                    self._lose(message, "no-neighbour")
                    await trio.lowlevel.checkpoint()
                elif reason := await self._deliver(peer, message, size):
                    self._lose(message, reason)
                else:
                    self.statistics.messages_sent += 1
                    self.statistics.bytes_sent += size
                    account = self._account(node)
                    account.models_sent += large
                    account.bytes_sent += size
        finally:
            queue.workers -= 1
            if not queue.workers:
                self._queues.pop((node, large), None)
            sent, self._sent = self._sent, trio.Event()
            sent.set()

    async def _deliver(self, peer: Peer, message: Send, size: int) -> str:
        """Send it and wait for the receipt; why it was lost, or "" if it was not."""
        with trio.move_on_after(_patience_s(size)):
            try:
                stream = await peer.open_stream(self._protocol)
                try:
                    for part in parts(message.message, message.vectors):
                        await stream.send_all(part)
                    stream.finish()
                    return "no-receipt" if await stream.receive_some(1) else ""
                finally:
                    stream.reset(ResetCode.CANCELLED)  # no effect on a stream that has ended
            except StreamReset as error:
                full = error.reset_code == ResetCode.MESSAGE_TOO_LARGE
                return "no-room-there" if full else "refused"
            except TransportError:
                return "connection"
        return "too-slow"

    def _lose(self, message: Send, reason: str) -> None:
        self.statistics.lost[reason] += 1
        self._on_lost(message)

    def _account(self, node: NodeId) -> Traffic:
        if node not in self.traffic:
            here = {*self._neighbours.nodes, node}
            self.traffic = {known: old for known, old in self.traffic.items() if known in here}
            self.traffic[node] = Traffic()
        return self.traffic[node]

    # In

    def release(self, node: NodeId, decoder: Decoder) -> None:
        """The message that `on_message` brought was looked at."""
        assert decoder.size is not None
        self.room.release(node, decoder.size)
        freed, self._freed = self._freed, trio.Event()
        freed.set()

    @contextmanager
    def taking(self) -> Iterator[None]:
        """Take messages inside the block.

        Raises:
            UsageError: the run's messages are taken on this endpoint already.
        """
        self._endpoint.serve(self._protocol, self._take, permitted=lambda m: m.may_train)
        try:
            yield
        finally:
            self._endpoint.unserve(self._protocol)

    async def _take(self, stream: Stream) -> None:
        node = stream.peer.node_id
        if not await self._neighbours.known(node, GREETING_S):
            self.statistics.lost["in-no-neighbour"] += 1
            stream.reset(ResetCode.NOT_PERMITTED)
            return
        decoder = Decoder(self._numel)
        try:
            with trio.fail_after(PATIENCE_S):
                while decoder.size is None:
                    await _feed(stream, decoder)
            if decoder.size > self._most_bytes:  # it alone would fill the room for all, for hours
                raise MalformedMessage(f"a message of {decoder.size} bytes, more than four models")
            if not await self._reserve(node, decoder.size):
                self.statistics.lost["in-no-room"] += 1
                stream.reset(ResetCode.MESSAGE_TOO_LARGE)
                return
            await self._take_rest(stream, node, decoder)
        except MalformedMessage as error:
            stream.reset(ResetCode.HANDLER_FAILED)
            self._neighbours.put_out(node, str(error))
        except trio.TooSlowError:
            self.statistics.lost["in-too-slow"] += 1
            stream.reset(ResetCode.CANCELLED)
        except TransportError:
            self.statistics.lost["in-connection"] += 1

    async def _take_rest(self, stream: Stream, node: NodeId, decoder: Decoder) -> None:
        size = decoder.size
        assert size is not None
        try:
            decoder.admit()
            with trio.fail_after(_patience_s(size)):
                while not decoder.complete:
                    await _feed(stream, decoder)
                if await stream.receive_some():
                    raise MalformedMessage("more bytes than the message announced")
        except BaseException:
            self.release(node, decoder)
            raise
        self.statistics.messages_received += 1
        self.statistics.bytes_received += size
        account = self._account(node)
        account.bytes_received += size
        if decoder.has_vectors:
            account.models_received += 1
            account.last_model_at = trio.current_time()
        self._on_message(node, decoder)
        stream.finish()

    async def _reserve(self, node: NodeId, size: int) -> bool:
        with trio.move_on_after(ROOM_S):
            while not self.room.reserve(node, size):
                await self._freed.wait()
            return True
        return False


async def _feed(stream: Stream, decoder: Decoder) -> None:
    data = await stream.receive_some()
    if not data:
        raise MalformedMessage("a message is cut off by the end of its stream")
    decoder.feed(data)


def _patience_s(size: int) -> float:
    return PATIENCE_S + size / SLOWEST_BYTES_PER_S
