"""The streams between this node and the others of its run (trio driver).

One outgoing URGENT stream per peer (`Outgoing`), and one incoming, read by a handler of the endpoint. A peer takes part once
both directions are there: then neither side misses a message. What it says before that is kept, a few messages of it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import Final

import trio

from gossip.collective.agreement.messages import (
    AnyMessage,
    Message,
    decode_message_untrusted,
    encode,
)
from gossip.collective.first_error import first_error
from gossip.collective.outgoing import Outgoing
from transport.endpoint import Endpoint, PeerDown, PeerUp
from transport.errors import MalformedMessage, TransportError
from transport.identity import NodeId
from transport.peer import Peer
from transport.streams.frames import Priority
from transport.streams.stream import Stream
from transport.watch import Lagged

MAX_EARLY: Final = 16
"""Messages of a peer kept until both directions are there; its status, and little more."""
RETRY_S: Final = 0.2
"""Before a refused stream is tried again while the peer talks to us."""


class Talk:
    """Who is there, and what they say.

    Args:
        endpoint: whose peers these are.
        protocol: name of the streams.
        nursery: where the streams' tasks run.
        on_up: a peer takes part from now on; its id and public key.
        on_down: it does not any more, and why.
        on_message: what it says.
        on_note: something worth a line for people.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        protocol: str,
        nursery: trio.Nursery,
        *,
        on_up: Callable[[NodeId, bytes], None],
        on_down: Callable[[NodeId, str], None],
        on_message: Callable[[NodeId, AnyMessage], None],
        on_note: Callable[[str], None],
    ) -> None:
        self._endpoint = endpoint
        self._protocol = protocol
        self._nursery = nursery
        self._on_up = on_up
        self._on_down = on_down
        self._on_message = on_message
        self._on_note = on_note
        self._early: dict[NodeId, deque[AnyMessage]] = {}
        self._senders: dict[NodeId, Outgoing] = {}
        self._inbound: Counter[NodeId] = Counter()
        self._talking: set[NodeId] = set()
        self._listening: set[trio.CancelScope] = set()
        self._linked: set[NodeId] = set()
        self._leaving = False
        self._closed = False
        self._silent = trio.Event()  # set when the last outgoing stream has ended, after `finish`

    def send(self, node: NodeId, message: Message) -> None:
        """Say something to a peer; never blocks. One that does not read what it is told is dropped."""
        sender = self._senders.get(node)
        if sender is None:
            return
        try:
            sender.send(encode(message))
        except trio.WouldBlock:
            self._on_note(f"{node.short} does not read its messages")
            self._nursery.start_soon(self._drop_deaf, node)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._senders.pop(node, None)

    async def _drop_deaf(self, node: NodeId) -> None:
        peer = self._endpoint.peers.get(node)
        if peer is not None:
            peer.close("does not read its messages")
        self._forget(node, "does not read its messages")

    async def finish(self) -> None:
        """Say nothing new, and wait until what was said is written.

        Cancellation leaves some of it unsaid.
        """
        self._leaving = True
        for sender in list(self._senders.values()):
            sender.close()
        if self._senders:
            await self._silent.wait()

    def close(self) -> None:
        """Handlers of incoming streams belong to the endpoint and outlive this object's tasks: end them."""
        self._closed = True
        for listening in self._listening:
            listening.cancel()

    # ---- who is there ------------------------------------------------------------------------

    async def watch_peers(self) -> None:
        """Talk to every peer that is connected, until cancelled."""
        with self._endpoint.watch() as events:
            for peer in list(self._endpoint.peers.values()):
                self._talk(peer)
            async for event in events:
                match event:
                    case PeerUp(peer=peer):
                        self._talk(peer)
                    case PeerDown(peer=peer, reason=reason):
                        self._forget(peer.node_id, reason)
                    case Lagged():
                        self._reconcile_peers()

    def _reconcile_peers(self) -> None:
        """Events were lost: compare with who is connected now."""
        peers = self._endpoint.peers
        for node in [node for node in self._senders if node not in peers]:
            self._forget(node, "lost")
        for node in sorted(peers):
            self._talk(peers[node])

    def _talk(self, peer: Peer) -> None:
        if peer.node_id not in self._talking:
            self._talking.add(peer.node_id)
            self._nursery.start_soon(self._talk_to, peer)

    def _forget(self, node: NodeId, reason: str) -> None:
        """The outgoing stream to `node` is of no use any more."""
        sender = self._senders.pop(node, None)
        if sender is not None:
            sender.close()
        if not self._senders and self._leaving:
            self._silent.set()
        self._update(node, reason)

    def _update(self, node: NodeId, reason: str = "") -> None:
        linked = node in self._senders and self._inbound[node] > 0
        if linked and node not in self._linked:
            peer = self._endpoint.peers.get(node)
            if peer is not None:
                self._linked.add(node)
                self._on_up(node, peer.public_key)
                for message in self._early.pop(node, ()):
                    self._on_message(node, message)
        elif not linked and node in self._linked:
            self._linked.discard(node)
            self._on_down(node, reason)

    # ---- outgoing ----------------------------------------------------------------------------

    async def _talk_to(self, peer: Peer) -> None:
        """Own the outgoing stream to one peer for as long as it is connected and interested.

        A peer that does not serve the run (yet) refuses the stream; it opens one itself when it
        does, and then this side tries again.
        """
        node = peer.node_id
        try:
            while not peer.closed.is_set() and not self._leaving:
                await self._speak(peer)
                if self._inbound[node] == 0:
                    break
                await trio.sleep(RETRY_S)
        finally:
            self._talking.discard(node)
            current = self._endpoint.peers.get(node)
            if current is not None and current is not peer:
                self._talk(current)

    async def _speak(self, peer: Peer) -> None:
        """One outgoing stream, from opening it to its end."""
        node = peer.node_id
        sender: Outgoing | None = None
        reason = "left the run"
        try:
            stream = await peer.open_stream(self._protocol, priority=Priority.URGENT)
            sender = self._senders[node] = Outgoing(stream)
            self._update(node)
            async with stream, trio.open_nursery() as nursery:
                nursery.start_soon(_wait_for_end, stream, nursery.cancel_scope)
                await sender.run()
                nursery.cancel_scope.cancel()
        except* TransportError as group:
            reason = str(first_error(group))
        finally:
            if sender is not None and self._senders.get(node) is sender:
                self._forget(node, reason)

    # ---- incoming ----------------------------------------------------------------------------

    async def listen(self, stream: Stream) -> None:
        """Handler of a peer's incoming stream."""
        peer = stream.peer
        node = peer.node_id
        reason = "left the run"
        listening = trio.CancelScope()
        self._listening.add(listening)
        self._inbound[node] += 1
        self._talk(peer)
        self._update(node)
        try:
            with listening:
                while True:
                    message = decode_message_untrusted(await stream.receive_message())
                    if node not in self._linked:
                        # It was quicker than the answer to our own stream; see `_update`.
                        self._early.setdefault(node, deque(maxlen=MAX_EARLY)).append(message)
                        continue
                    self._on_message(node, message)
        except MalformedMessage as error:
            peer.close(f"malformed run message: {error}")
        except TransportError as error:
            reason = str(error) or reason
        finally:
            self._listening.discard(listening)
            self._inbound[node] -= 1
            if not self._inbound[node]:
                del self._inbound[node]
                self._early.pop(node, None)
            if not self._closed:
                self._update(node, reason)


async def _wait_for_end(stream: Stream, writer: trio.CancelScope) -> None:
    """Nothing ever comes back on this stream, except its end: a peer that is not in the run."""
    try:
        await stream.receive_some(1)
    finally:
        writer.cancel()
