"""Carry the anti-entropy of one document over an endpoint, with every peer that serves it too.

One `AntiEntropy` conversation per connected peer. Each side opens one stream, protocol
"state/<name>", on which only it speaks, and reads the stream that the other side opened: no
question of who opens first, and a broken direction is repaired by whoever speaks on it.

    per peer, outbound   open a stream; send what the conversation has to say; sleep until its
                         deadline or a wake-up. A peer that does not serve the name resets the
                         stream: try again later, or as soon as it opens one to us.
    per peer, inbound    the endpoint's handler: decode, merge, wake the outbound side
    one watcher          follows who is connected; compares with `endpoint.peers`, so a missed
                         event costs nothing

Invariants: one task sends on a stream; nothing is queued as messages (see `antientropy`), so a peer
that does not read costs a few kilobytes and delays nobody else; a malformed update ends its stream
and nothing else, and the delay before the next attempt grows to `RETRY_MOST_S`.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from typing import Any, Final, Protocol

import attrs
import trio

from crdt.exchange import Name
from gossip.antientropy import FANOUT, AntiEntropy, RefusedUpdate
from gossip.document import Document
from gossip.errors import GossipError
from transport.codec import decode_untrusted, pack
from transport.errors import EndOfStream, MalformedMessage, TransportError, UsageError
from transport.identity import NodeId
from transport.streams.frames import MAX_PROTOCOL_CHARS

RETRY_FIRST_S: Final = 0.5
"""Delay after the first failure to speak to a peer; doubles up to `RETRY_MOST_S`."""

RETRY_MOST_S: Final = 30.0
"""A peer that starts to serve the name opens a stream to us, which ends the waiting at once, so
this only bounds how long a one-sided failure goes unnoticed."""

RETRY_LEAST_S: Final = 0.1
"""Not even a peer that keeps opening streams makes us open ours more often than this."""


class ReplicationClosed(GossipError):
    """The replication ended while somebody waited for a change."""


class StateStream(Protocol):
    """What this driver needs of a stream (`transport.streams.stream.Stream`)."""

    @property
    def peer(self) -> StatePeer: ...  # noqa: D102
    async def send_message(self, message: bytes) -> None: ...  # noqa: D102
    async def receive_message(self) -> bytes: ...  # noqa: D102
    async def aclose(self) -> None: ...  # noqa: D102


class StatePeer(Protocol):
    """What this driver needs of a connected peer (`transport.peer.Peer`)."""

    @property
    def node_id(self) -> NodeId: ...  # noqa: D102
    async def open_stream(self, protocol: str) -> StateStream: ...  # noqa: D102


class StateEndpoint(Protocol):
    """What this driver needs of an endpoint (`transport.endpoint.Endpoint`)."""

    @property
    def peers(self) -> Mapping[NodeId, StatePeer]: ...  # noqa: D102
    def serve(self, protocol: str, handler: Callable[[Any], Awaitable[None]]) -> None: ...  # noqa: D102
    def unserve(self, protocol: str) -> None: ...  # noqa: D102
    def watch(self) -> AbstractContextManager[trio.abc.ReceiveChannel[Any]]: ...  # noqa: D102


@attrs.define(eq=False)
class _Link:
    """The conversation with one connected peer."""

    peer: StatePeer
    core: AntiEntropy
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    inbound: trio.CancelScope | None = None
    wake: trio.Event = attrs.field(factory=trio.Event)  # there may be something to say
    heard: trio.Event = attrs.field(factory=trio.Event)  # the peer opened a stream to us
    speaking: bool = False
    settled: bool = False  # nothing of ours waits to be handed to the transport


class Replication:
    """A document kept equal with the peers that serve it too; made by `open_replication`.

    Attributes:
        state: the replica. Edit it, then call `notify`.
        protocol: what streams are opened with.
        counters: "updates", "refused", "unserved" (streams to peers that ended),
            "opened", and the messages of conversations that ended.
    """

    def __init__(
        self,
        endpoint: StateEndpoint,
        state: Document,
        name: str,
        nursery: trio.Nursery,
        *,
        interval_s: float,
        rng: random.Random,
    ) -> None:
        self.state = state
        self.protocol = protocol_of(name)
        self.counters: Counter[str] = Counter()
        self._endpoint = endpoint
        self._nursery = nursery
        self._interval_s = interval_s
        self._rng = rng
        self._links: dict[NodeId, _Link] = {}  # at most the connected peers
        self._changed = trio.Event()
        self._seen_version = state.version
        self._progressed = trio.Event()
        self._closed = False

    # For the owner of the state

    @property
    def version(self) -> int:
        """The state's version, to be given to `wait_change`."""
        return self.state.version

    @property
    def changed(self) -> trio.Event:
        """Set at the next change, local or merged, and when the replication ends."""
        return self._changed

    @property
    def partners(self) -> list[NodeId]:
        """Connected peers to which an outbound stream is open, by id."""
        return sorted(node for node, link in self._links.items() if link.speaking)

    def notify(self) -> None:
        """Have local edits pushed at once. Never blocks; many edits may share one call."""
        self._announce()
        for link in self._links.values():
            link.settled = False
            link.wake.set()

    async def wait_change(self, version: int) -> int:
        """Wait until the state is at another version than `version`.

        Returns:
            The version then.

        Raises:
            ReplicationClosed: it ended meanwhile.
        """
        while self.state.version == version:
            if self._closed:
                raise ReplicationClosed("the replication of the document has ended")
            await self._changed.wait()
        await trio.lowlevel.checkpoint()
        return self.state.version

    async def flush(self) -> None:
        """Wait until every partner's stream has taken all local edits; bound it with a deadline.

        For the last words: `state.leave(...)`, `flush()`, then close. Peers to which no stream is
        open are not waited for.
        """
        self.notify()
        while any(link.speaking and not link.settled for link in self._links.values()):
            await self._progressed.wait()
        await trio.lowlevel.checkpoint()

    # Inside

    def _announce(self) -> None:
        if self.state.version != self._seen_version:
            self._seen_version = self.state.version
            changed, self._changed = self._changed, trio.Event()
            changed.set()

    def _progress(self) -> None:
        progressed, self._progressed = self._progressed, trio.Event()
        progressed.set()

    def _close(self) -> None:
        self._closed = True
        self._changed.set()
        for node, link in list(self._links.items()):
            self._drop(node, link)  # handlers are the endpoint's tasks: they do not end with ours

    async def _watch(self) -> None:
        with self._endpoint.watch() as events:
            self._reconcile()
            async for _ in events:
                self._reconcile()

    def _reconcile(self) -> None:
        """Hold one conversation with each connected peer, and no other."""
        connected = self._endpoint.peers
        for node, link in list(self._links.items()):
            if connected.get(node) is not link.peer:
                self._drop(node, link)
        for node in sorted(connected):
            if node not in self._links:
                link = _Link(connected[node], self._new_core())
                self._links[node] = link
                self._nursery.start_soon(self._converse, link)

    def _drop(self, node: NodeId, link: _Link) -> None:
        del self._links[node]
        link.scope.cancel()
        if link.inbound is not None:
            link.inbound.cancel()
        self.counters.update(link.core.counters)

    def _new_core(self) -> AntiEntropy:
        return AntiEntropy(
            self.state,
            interval_s=self._interval_s,
            rng=random.Random(self._rng.getrandbits(64)),
            now=trio.current_time(),
        )

    # Outbound

    async def _converse(self, link: _Link) -> None:
        """Keep an outbound stream to one peer for as long as it is connected."""
        with link.scope:
            delay_s = RETRY_FIRST_S
            while True:
                link.heard = trio.Event()
                opened_at = trio.current_time()
                with suppress(TransportError):
                    stream = await link.peer.open_stream(self.protocol)
                    await self._use(link, stream)
                self.counters["unserved"] += 1
                if trio.current_time() - opened_at > RETRY_MOST_S:
                    delay_s = RETRY_FIRST_S
                await trio.sleep(RETRY_LEAST_S)
                with trio.move_on_after(delay_s * self._rng.uniform(0.75, 1.25)) as waiting:
                    await link.heard.wait()
                delay_s = min(2 * delay_s, RETRY_MOST_S)
                if not waiting.cancelled_caught:
                    delay_s = RETRY_FIRST_S

    async def _use(self, link: _Link, stream: StateStream) -> None:
        """Speak on an open stream until it ends."""
        self.counters["opened"] += 1
        # What an earlier stream lost on its way is found by the comparison a new one begins with.
        self.counters.update(link.core.counters)
        link.core = self._new_core()
        link.speaking, link.settled = True, False
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._speak, link, stream, nursery.cancel_scope)
                # Nothing is ever said to us here: whatever comes, the stream is over.
                with suppress(TransportError):
                    await stream.receive_message()
                nursery.cancel_scope.cancel()
        finally:
            link.speaking = False
            self._progress()
            await stream.aclose()

    async def _speak(self, link: _Link, stream: StateStream, ended: trio.CancelScope) -> None:
        try:
            while True:
                link.wake = trio.Event()
                link.core.tick(trio.current_time())
                while messages := link.core.outgoing():
                    for message in messages:
                        await stream.send_message(pack(message))
                    link.core.tick(trio.current_time())
                if link.core.pushed:
                    link.settled = True
                    self._progress()
                with trio.move_on_at(link.core.next_deadline()):
                    await link.wake.wait()
        except TransportError:
            ended.cancel()

    # Inbound

    async def _listen(self, stream: StateStream) -> None:
        """Serve the stream on which a peer speaks."""
        if self._closed:
            return
        self._reconcile()
        link = self._links.get(stream.peer.node_id)
        if link is None:
            return  # gone already
        if link.inbound is not None:
            link.inbound.cancel()  # one stream per peer: the newest
        with trio.CancelScope() as scope:
            link.inbound = scope
            link.heard.set()
            try:
                while True:
                    self._receive(link, await stream.receive_message())
            except EndOfStream:
                return
            except (MalformedMessage, RefusedUpdate):
                self.counters["refused"] += 1

    def _receive(self, link: _Link, data: bytes) -> None:
        update = decode_untrusted(data, dict[str, Any])
        before = (self.state.edits, self.state.convictions)
        news = link.core.receive(update, trio.current_time())
        self.counters["updates"] += 1
        self._pass_on(link, news)
        if before != (self.state.edits, self.state.convictions):
            # It met its former self and states itself again, or a proof that all shall have.
            self.notify()
        else:
            self._announce()
            link.wake.set()

    def _pass_on(self, source: _Link, news: list[Name]) -> None:
        """Have a few others hear what is news here (see `antientropy`)."""
        others = [link for link in self._links.values() if link.speaking and link is not source]
        for link in self._rng.sample(others, min(FANOUT, len(others))) if news else []:
            link.core.pass_on(news, trio.current_time())
            link.wake.set()


@asynccontextmanager
async def open_replication(
    endpoint: StateEndpoint,
    state: Document,
    name: str,
    *,
    interval_s: float = 2.0,
    rng: random.Random,
) -> AsyncIterator[Replication]:
    """Keep `state` equal with all connected peers that do the same under `name`.

    Args:
        endpoint: an open `transport.endpoint.Endpoint`.
        state: this node's replica. Nobody else may merge into it meanwhile; edits are welcome.
        name: the run's id in hex, or "swarm"; part of the protocol name. Printable ASCII without spaces.
        interval_s: mean time between comparisons with each peer.
        rng: jitter.

    Raises:
        GossipError: the name is not acceptable, or is replicated on this endpoint already.

    Leaving the context stops serving and ends every task at once; `Replication.flush` before that
    if the last edits matter. Cancellation does the same.
    """
    if not (interval_s > 0 and math.isfinite(interval_s)):
        raise GossipError("the interval between comparisons must be a positive number of seconds")
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        replication = Replication(endpoint, state, name, nursery, interval_s=interval_s, rng=rng)
        try:
            with _serving(endpoint, replication):
                nursery.start_soon(replication._watch)  # noqa: SLF001 (one unit)
                yield replication
        except Exception as error:  # noqa: BLE001 (raised again, outside of the nursery's group)
            failure = error
        finally:
            replication._close()  # noqa: SLF001
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


@contextmanager
def _serving(endpoint: StateEndpoint, replication: Replication) -> Iterator[None]:
    try:
        endpoint.serve(replication.protocol, replication._listen)  # noqa: SLF001 (one unit)
    except UsageError as error:
        raise GossipError(f"the state cannot be replicated: {error}") from error
    try:
        yield
    finally:
        endpoint.unserve(replication.protocol)


def protocol_of(name: str) -> str:
    """The stream protocol for a document: its name, or a hash of a name too long for one."""
    protocol = f"state/{name}"
    if len(protocol) > MAX_PROTOCOL_CHARS:
        protocol = f"state/{hashlib.sha256(name.encode()).hexdigest()[:32]}"
    return protocol
