"""How two peers get a bulk connection between them, whoever of them can be dialed.

Problem: bulk data wants connections of its own, but one side may be behind a NAT, or both. Idea:
three ways, the best first: dial the peer; ask it to dial us; open a stream of the connection there
is and treat it as a connection. Each has a bound, and the way that worked last is tried first, so
that a peer that cannot be dialed costs its three seconds once; to a peer that had to be punched
the other ways are hopeless, so there the last is first.

Invariant: every attempt's reason is kept, with the word for its way in front.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Final, NoReturn

import trio

from transport.address import Address
from transport.address_kinds import is_credible
from transport.bulk.in_stream import open_over_stream
from transport.bulk.link import BulkLink
from transport.bulk.rendezvous import Delivery, Rendezvous
from transport.connect.context import LOGGER, Context
from transport.connect.dialer import Commit, dial
from transport.connect.registry import Registry
from transport.errors import (
    ConnectionBroken,
    HandshakeFailed,
    PeerLost,
    PeerUnreachable,
    RemoteCallFailed,
    StreamLimitReached,
    UsageError,
)
from transport.identity import NodeId
from transport.network import Path, RawStream
from transport.peer import Peer
from transport.secure.handshake import MAX_LABEL_BYTES, Intro
from transport.secure.link import shake_hands

DIAL_BACK: Final = "bulk/dial-back"
OVER_STREAM: Final = "over-stream"
TOKEN_BYTES: Final = 16

BULK_DIAL_S: Final = 3.0
"""Longest direct attempt at a bulk connection before the peer is asked to dial us, and longest
attempt of the peer then."""

MAX_ANSWERED: Final = 4
"""Ports of a peer that are tried when it asks to be dialed."""

NOT_REACHED: Final = "you could not be dialed"
"""What a peer learns of a dial that it has asked for and that failed, whatever was the matter."""

DIAL_BACK_S: Final = 2 * BULK_DIAL_S
"""Longest that asking may take: its attempt, and two ways for question and answer."""


class BulkDoor:
    """Opens and accepts the bulk connections of one endpoint."""

    def __init__(self, context: Context, registry: Registry) -> None:
        self.rendezvous = Rendezvous()
        self._context = context
        self._registry = registry
        self._answering: Counter[NodeId] = Counter()  # dials that peers have asked for

    async def offer(self, key: tuple[NodeId, bytes], delivery: Delivery) -> None:
        """Hand an inbound bulk connection to whoever waits for it."""
        refusal = await self.rendezvous.offer(key, delivery)
        if refusal:
            self._context.reporter.count(refusal)

    async def accept(self, peer_id: NodeId, label: bytes) -> BulkLink:
        """Do the work of `Endpoint.accept_bulk`."""
        await trio.lowlevel.checkpoint_if_cancelled()
        peer = self._registry.peers.get(peer_id)
        if peer is None:
            raise PeerLost("not connected")
        peer.reserve_link()
        try:
            taker = self.rendezvous.expect((peer_id, label))
            return self._adopt(peer, await self.rendezvous.wait(taker))
        finally:
            peer.release_link()

    async def open(self, peer: Peer, label: bytes) -> BulkLink:
        """Do the work of `Peer.open_bulk`."""
        if len(label) > MAX_LABEL_BYTES:
            raise UsageError(f"a bulk label has at most {MAX_LABEL_BYTES} bytes")
        ways = {
            "direct": self._open_directly,
            "dial-back": self._ask_to_dial_back,
            OVER_STREAM: self._open_over_stream,
        }
        first = peer.bulk_way or (OVER_STREAM if peer.path is Path.PUNCHED else "")
        order = sorted(ways, key=lambda way: way != first)  # stable: the rest as written
        attempts: list[tuple[str, str]] = []
        for way in order:
            try:
                delivery = await ways[way](peer, label)
            except PeerUnreachable as error:
                attempts += error.attempts
            else:
                peer.bulk_way = way
                return self._adopt(peer, delivery)
        peer.bulk_way = ""
        raise PeerUnreachable(attempts=attempts)

    def _adopt(self, peer: Peer, delivery: Delivery) -> BulkLink:
        raw, result = delivery
        return peer.adopt_link(self._registry.paced(raw, peer.node_id), result)

    # The three ways

    async def _open_directly(self, peer: Peer, label: bytes) -> Delivery:
        with trio.move_on_after(BULK_DIAL_S):
            return await self.dial(peer, label)
        raise PeerUnreachable(
            attempts=[(str(peer.address), f"direct: no answer within {BULK_DIAL_S:g} s")]
        )

    async def _ask_to_dial_back(self, peer: Peer, label: bytes) -> Delivery:
        token = self._context.random_bytes(TOKEN_BYTES)
        taker = self.rendezvous.expect((peer.node_id, token))
        reason = f"no answer within {DIAL_BACK_S:g} s"
        try:
            with trio.move_on_after(DIAL_BACK_S):
                await peer.call(DIAL_BACK, token + label)
                return await self.rendezvous.wait(taker)
        except RemoteCallFailed as error:
            reason = str(error)
        except BaseException:
            self.rendezvous.forget(taker)
            raise
        self.rendezvous.forget(taker)
        raise PeerUnreachable(attempts=[("dial-back", reason)])

    async def _open_over_stream(self, peer: Peer, label: bytes) -> Delivery:
        try:
            raw = await open_over_stream(peer)
            return await self._shake_hands(raw, peer, label, lambda: True)
        except (ConnectionBroken, HandshakeFailed, StreamLimitReached) as error:
            raise PeerUnreachable(attempts=[(OVER_STREAM, str(error))]) from None

    # Dialing

    async def dial(self, peer: Peer, label: bytes) -> Delivery:
        """Open a bulk connection to an address of `peer`, from a port of its own.

        Raises:
            PeerUnreachable: every reason is kept.
        """
        return await self._dial(peer, self._candidates(peer), label)

    def _candidates(self, peer: Peer) -> list[Address]:
        seen = peer.address
        seen_host = "" if seen.relay else seen.host
        named = [address for address in peer.listen if not address.relay]
        candidates = [address for address in named if is_credible(address.host, seen_host)]
        if peer.path in (Path.DIRECT, Path.REVERSED):
            if peer.initiated:
                candidates.insert(0, seen)
            else:  # behind a port-preserving NAT the host we see is right and the one it knows is not
                candidates += [Address(seen.host, address.port) for address in named]
        return candidates

    async def _dial(self, peer: Peer, candidates: Sequence[Address], label: bytes) -> Delivery:
        async def establish(raw: RawStream, _address: Address, commit: Commit) -> Delivery:
            return await self._shake_hands(raw, peer, label, commit)

        return await dial(
            self._context.network,
            candidates,
            establish,
            lambda delivery: delivery[0].abort(),
            hold=self._context.dialing,
        )

    async def _shake_hands(
        self, raw: RawStream, peer: Peer, label: bytes, commit: Commit
    ) -> Delivery:
        context = self._context
        intro = Intro("bulk", context.name, (), label)
        handshake = context.handshake("initiator", intro, peer.node_id)
        result = await shake_hands(
            raw, handshake, deadline=context.handshake_deadline(), commit=commit
        )
        return raw, result

    async def answer_dial_back(self, peer: Peer, request: bytes) -> bytes:
        """A peer cannot reach us: open the bulk connection that it wants to open.

        Only at the host where we see the peer, and few at a time: it decides when and where we
        dial, so it must not be able to send us against somebody else.
        """
        token, label = request[:TOKEN_BYTES], request[TOKEN_BYTES:]
        if len(token) < TOKEN_BYTES or len(label) > MAX_LABEL_BYTES:
            raise RemoteCallFailed("malformed request")
        if peer.path is Path.RELAYED:
            raise RemoteCallFailed("connected over a relay, so your address is not known here")
        if self._answering[peer.node_id] >= self._context.limits.bulk_links_per_peer:
            raise RemoteCallFailed("enough dials for you are under way")
        candidates = [at for at in self._candidates(peer) if at.host == peer.address.host]
        self._answering[peer.node_id] += 1
        try:
            with trio.move_on_after(BULK_DIAL_S) as dialing:
                delivery = await self._dial(peer, candidates[:MAX_ANSWERED], token)
        except PeerUnreachable as error:
            self._refuse_dial_back(peer, str(error))
        finally:
            self._answering[peer.node_id] -= 1
            if not self._answering[peer.node_id]:
                del self._answering[peer.node_id]
        if dialing.cancelled_caught:
            self._refuse_dial_back(peer, f"no answer within {BULK_DIAL_S:g} s")
        self._context.nursery.start_soon(self.offer, (peer.node_id, label), delivery)
        return b""

    def _refuse_dial_back(self, peer: Peer, reason: str) -> NoReturn:
        """Keep the reason here: what we found on its ports, seen from us, is not for the peer to know."""
        self._context.reporter.count("dial-back-failed")
        LOGGER.debug("a bulk connection that %s asked for failed: %s", peer.node_id.short, reason)
        raise RemoteCallFailed(NOT_REACHED)
