"""What the DHT's drivers need of the transport, and how they read it.

The protocols are the smallest part of `transport.endpoint` that will do, so that tests put a dictionary in its place.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

import trio

from dht.contact import Contact, peer_addresses
from transport.address import Address
from transport.identity import Identity, NodeId
from transport.network import Path
from transport.streams.frames import CloseCode
from transport.swarm import Swarm


class DhtPeer(Protocol):
    """What this service needs of a connected peer (`transport.endpoint.Peer`)."""

    @property
    def node_id(self) -> NodeId: ...  # noqa: D102
    @property
    def public_key(self) -> bytes: ...  # noqa: D102
    @property
    def address(self) -> Address: ...  # noqa: D102
    @property
    def listen(self) -> Sequence[Address]: ...  # noqa: D102
    @property
    def initiated(self) -> bool: ...  # noqa: D102
    @property
    def path(self) -> Path: ...  # noqa: D102
    async def call(self, protocol: str, request: bytes) -> bytes: ...  # noqa: D102
    def close(self, reason: str, code: CloseCode) -> None: ...  # noqa: D102


Peer_co = TypeVar("Peer_co", bound=DhtPeer, covariant=True)
Handler = Callable[[DhtPeer, bytes], Awaitable[bytes]]


class DhtEndpoint(Protocol[Peer_co]):
    """What this service needs of the endpoint (`transport.endpoint.Endpoint`)."""

    @property
    def node_id(self) -> NodeId: ...  # noqa: D102
    @property
    def identity(self) -> Identity: ...  # noqa: D102
    @property
    def swarm(self) -> Swarm: ...  # noqa: D102
    @property
    def peers(self) -> Mapping[NodeId, Peer_co]: ...  # noqa: D102
    @property
    def advertised(self) -> Sequence[Address]: ...  # noqa: D102
    async def connect(  # noqa: D102
        self, addresses: Sequence[Address], *, expected: NodeId | None = None
    ) -> Peer_co: ...
    def serve_calls(self, protocol: str, handler: Handler) -> None: ...  # noqa: D102
    def unserve(self, protocol: str) -> None: ...  # noqa: D102
    def watch(  # noqa: D102
        self,
    ) -> AbstractContextManager[trio.abc.ReceiveChannel[object]]: ...


def contact_of(peer: DhtPeer) -> Contact:
    """Return what a connection proves about a peer, and what the peer says of itself."""
    # Who was punched, or dialed us, is not proved to take connections where we see it.
    dialed = peer.initiated and peer.path in (Path.DIRECT, Path.RELAYED)
    return Contact(
        bytes(peer.node_id),
        peer_addresses(peer.listen, peer.address, dialed=dialed),
        "" if peer.address.relay else peer.address.host,
    )
