"""What a raw stream that somebody else opened becomes: a peer, a bulk link, a probe, or nothing.

Problem: streams come from listeners, over relays and inside other connections, from anybody, and
until the handshake is done nobody knows what they are for. Idea: one way in for all of them, with
the same admission, the same deadline and the same counters; the initiator's introduction then
decides.

Invariants: each admitted stream is released from admission exactly once, when its handshake is
over, and waits for nothing before that; a stream is given on or
closed; every refusal is counted by reason.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import trio

from transport.address import Address
from transport.budget.admission import Pending
from transport.budget.scopes import ScopeExceeded
from transport.bulk.rendezvous import Delivery
from transport.connect.context import Context
from transport.connect.listener import admit, serve_listener
from transport.connect.registry import Registry
from transport.errors import ConnectionBroken, HandshakeFailed, TransportError
from transport.identity import NodeId
from transport.limits import HANDSHAKE_BYTES
from transport.network import Path, RawListener, RawStream
from transport.secure.handshake import HandshakeResult
from transport.secure.link import shake_hands

Offer = Callable[[tuple[NodeId, bytes], Delivery], Awaitable[None]]

MAX_UNNAMED: Final = 8
"""Connections from hosts that no punch has named, whose hello of the punch role is answered, at a time.

A NAT may have several addresses, and a node may know only some of its own; so the other side of a punch may come from
elsewhere. What a stranger gets so is our hello, and that only while somebody punches.
"""

MAX_EARLY: Final = 16
"""Bulk connections that have come before the control connection of their node, one of each node: rare, and over in a round trip."""


class Inbound:
    """The way in of one endpoint.

    Args:
        context: who we are.
        registry: takes control connections.
        offer: takes bulk connections.
    """

    def __init__(self, context: Context, registry: Registry, offer: Offer) -> None:
        self._context = context
        self._registry = registry
        self._offer = offer
        self._listeners: list[RawListener] = []
        self._punching: Counter[NodeId] = Counter()  # with whom punches are under way
        self._named: Counter[str] = Counter()  # the hosts that they may come from
        self._unnamed = 0  # handshakes that may be punches, from elsewhere
        self._early: set[NodeId] = (
            set()
        )  # whose bulk connection waits for a peer; at most MAX_EARLY

    async def listen(self, addresses: Sequence[Address]) -> None:
        """Listen on all of `addresses` or on none, and take what comes until `close`.

        Raises:
            ListenFailed: (or `AddressInUse`) one of them cannot be listened on.
        """
        context = self._context
        try:
            for address in addresses:
                listener = await context.network.listen(address)
                self._listeners.append(listener)
        except BaseException:
            with trio.CancelScope(shield=True):  # closing a listener never waits
                await self.close()
            raise
        context.listening = tuple(listener.address for listener in self._listeners)
        for listener in self._listeners:
            context.nursery.start_soon(self._serve, listener)

    async def _serve(self, listener: RawListener) -> None:
        context = self._context
        await serve_listener(
            listener,
            nursery=context.nursery,
            admission=context.admission,
            handle=self.handle,
            reporter=context.reporter,
        )

    async def close(self) -> None:
        """Stop listening."""
        for listener in self._listeners:
            await listener.aclose()

    @contextmanager
    def expect_punch(self, node_id: NodeId, hosts: Collection[str]) -> Iterator[None]:
        """Take the punch role of `node_id` inside the block, from `hosts` for sure."""
        self._punching[node_id] += 1
        self._named.update(hosts)
        try:
            yield
        finally:
            self._punching -= Counter((node_id,))
            self._named -= Counter(hosts)

    @contextmanager
    def _punchers(self, host: str) -> Iterator[Collection[NodeId]]:
        """Whose punch a connection from `host` may be."""
        if not self._punching or (host not in self._named and self._unnamed >= MAX_UNNAMED):
            yield ()
            return
        unnamed = host not in self._named
        self._unnamed += unnamed
        try:
            yield frozenset(self._punching)
        finally:
            self._unnamed -= unnamed

    async def take(self, raw: RawStream, bulk_of: NodeId | None = None) -> None:
        """Do the work of `Endpoint.take_inbound`."""
        pending = admit(raw, self._context.admission, self._context.reporter)
        if pending is None:
            return
        try:
            await self.handle(raw, pending, bulk_of)
        except BaseException:
            raw.abort()
            raise

    async def handle(self, raw: RawStream, pending: Pending, bulk_of: NodeId | None = None) -> None:
        """Take one admitted connection through its handshake to its purpose."""
        try:
            held = self._context.scopes.unauthenticated.reserve(
                bytes=HANDSHAKE_BYTES,
                connections=1,
                descriptors=0 if raw.path is Path.RELAYED else 1,
            )
        except ScopeExceeded as error:
            self._context.reporter.count(f"refused-{error.resource.name.lower()}")
            pending.release(trio.current_time())
            raw.abort()
            return
        with held:  # until a peer's scope holds it, or nobody
            await self._handle(raw, pending, bulk_of)

    async def _handle(self, raw: RawStream, pending: Pending, bulk_of: NodeId | None) -> None:
        context = self._context
        deadline = context.handshake_deadline()
        result = None
        try:
            result = await self._shake_hands(raw, deadline, pending)
            if result is None:
                return
        finally:
            pending.release(trio.current_time(), member=result is not None and self._fits(result))
            if result is None:
                raw.abort()
        if result.member is None:
            if context.door is None or bulk_of is not None:
                raw.abort()
            else:
                await context.door.answer(raw, result, deadline, context.reporter)
            return
        if bulk_of is not None and (result.intro.kind, result.node_id) != ("bulk", bulk_of):
            context.reporter.count("refused-not-a-bulk-link")
            raw.abort()
            return
        match result.intro.kind:
            case "control":
                await self._take_control(raw, result)
            case "bulk":
                await self._take_bulk(raw, result, deadline)
            case "probe":
                await raw.aclose()
                context.reporter.count("probes-answered")
                if context.on_probe is not None:
                    context.on_probe(result.node_id, result.intro.label)

    async def _shake_hands(
        self, raw: RawStream, deadline: float, pending: Pending
    ) -> HandshakeResult | None:
        context = self._context
        intro = context.control_intro(raw)
        try:
            with self._punchers(raw.remote.host) as punching:
                handshake = context.handshake("responder", intro, punching=punching)

                def proved() -> None:
                    if not handshake.joining:  # whose proof everybody can make
                        pending.proved()

                return await shake_hands(raw, handshake, deadline=deadline, on_answer=proved)
        except HandshakeFailed as error:
            context.reporter.count(f"handshake-{error.code}")
        except ConnectionBroken:
            if not pending.pushed_out:
                context.reporter.count("handshake-broken")
        return None

    async def _take_control(self, raw: RawStream, result: HandshakeResult) -> None:
        named = result.intro.label
        connection = self._registry.connection_named(result.node_id, named)
        if named and (
            connection is not None or result.node_id in self._registry.lost or result.punched
        ):
            raw.path = upgraded_path(raw, result)  # from a newcomer the name means nothing
        if connection is None and (not named or result.node_id not in self._registry.peers):
            # A connection that it was to take over, and that is gone here, is gone there soon.
            try:
                self._registry.register(self._registry.secure(raw, result))
            except TransportError:
                return
            return
        if connection is None:
            self._context.reporter.count("refused-upgrade-without-connection")
            raw.abort()
            return
        await self._registry.adopt(self._registry.secure(raw, result), connection).wait()

    def _fits(self, result: HandshakeResult) -> bool:
        """Whether a handshake had a purpose: a bulk link without a peer costs its source a token, and so does a newcomer."""
        if result.member is None:
            return False
        return result.intro.kind != "bulk" or result.node_id in self._registry.peers

    async def _take_bulk(self, raw: RawStream, result: HandshakeResult, deadline: float) -> None:
        if result.node_id not in self._registry.peers:
            await self._wait_for_peer(result.node_id, deadline)
        if result.node_id in self._registry.peers:
            await self._offer((result.node_id, result.intro.label), (raw, result))
        else:
            raw.abort()
            self._context.reporter.count("refused-bulk-without-peer")

    async def _wait_for_peer(self, node_id: NodeId, deadline: float) -> None:
        """Let a bulk connection that has overtaken its control connection wait for that one.

        In a place of its own: no newcomer needs it, and a member that never comes takes only one.
        """
        if node_id in self._early or len(self._early) >= MAX_EARLY:
            return
        self._early.add(node_id)
        try:
            with trio.move_on_at(deadline):
                while node_id not in self._registry.peers:
                    await self._registry.arrivals.park()
        finally:
            self._early.remove(node_id)


def upgraded_path(raw: RawStream, result: HandshakeResult) -> Path:
    """How a stream travels that is to take over a relayed connection, as both sides see it."""
    if result.punched:
        return Path.PUNCHED
    return Path.REVERSED if raw.path is Path.DIRECT else raw.path
