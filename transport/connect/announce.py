"""Telling connected peers that the addresses at which we can be dialed have changed.

Problem: a router maps a port, a relay is found, an interface goes: what the handshake said is wrong
from then on, and peers hand it on. Idea: one call, "reach/addresses", with the whole new list, to
every connected peer; newer lists overtake older ones, and a peer that does not answer is left
alone, since the next handshake tells it.

Invariant: at most `PARALLEL` calls run at once, each bounded by `CALL_S`.
"""

import math
from collections.abc import Sequence
from typing import Final

import msgspec
import trio

from transport.address import Address
from transport.codec import decode_untrusted, pack
from transport.connect.context import Context
from transport.connect.registry import Registry
from transport.errors import (
    InvalidAddress,
    MalformedMessage,
    PeerLost,
    RemoteCallFailed,
    UsageError,
)
from transport.identity import NodeId
from transport.peer import Peer
from transport.secure.handshake import MAX_LISTEN

PROTOCOL: Final = "reach/addresses"
PARALLEL: Final = 16
CALL_S: Final = 10.0


class _Addresses(msgspec.Struct, frozen=True):
    listen: tuple[str, ...]


class Announcer:
    """Keeps connected peers informed; `run` it for the life of the endpoint."""

    def __init__(self, context: Context, registry: Registry) -> None:
        self._context = context
        self._registry = registry
        self._due: dict[NodeId, Peer] = {}  # connected peers to tell; at most limits.max_peers
        self._wake = trio.lowlevel.ParkingLot()
        self._changed_at = -math.inf

    def set(self, addresses: Sequence[Address]) -> None:
        """Do the work of `Endpoint.set_advertised`."""
        advertised = tuple(dict.fromkeys(addresses))
        if len(advertised) > MAX_LISTEN:
            raise UsageError(f"a node advertises at most {MAX_LISTEN} addresses")
        if advertised != self._context.advertised:
            self._context.advertised = advertised
            self._changed_at = trio.current_time()
            self._due.update(self._registry.peers)
            self._wake.unpark_all()

    def peer_up(self, peer: Peer) -> None:
        """Look after a new peer: its handshake may have begun before the last change."""
        if trio.current_time() - self._changed_at <= self._context.limits.handshake_timeout_s:
            self._due[peer.node_id] = peer
            self._wake.unpark_all()

    async def run(self) -> None:
        """Tell peers whenever there is something new."""
        while True:
            while not self._due:
                await self._wake.park()
            batch = [self._due.pop(node_id) for node_id in list(self._due)[:PARALLEL]]
            async with trio.open_nursery() as nursery:
                for peer in batch:
                    nursery.start_soon(self._tell, peer)

    async def _tell(self, peer: Peer) -> None:
        message = _Addresses(tuple(str(address) for address in self._context.advertised))
        try:
            with trio.move_on_after(CALL_S):
                await peer.call(PROTOCOL, pack(message))
        except (PeerLost, RemoteCallFailed):
            self._context.reporter.count("announce-failed")

    async def answer(self, peer: Peer, request: bytes) -> bytes:
        """A peer says where it can be dialed from now on."""
        try:
            message = decode_untrusted(request, _Addresses)
            if len(message.listen) > MAX_LISTEN:
                raise RemoteCallFailed(f"more than {MAX_LISTEN} addresses")
            listen = [Address.parse(text) for text in message.listen]
        except (MalformedMessage, InvalidAddress) as error:
            raise RemoteCallFailed(f"malformed request: {error}") from None
        peer.set_listen(listen)
        return b""
