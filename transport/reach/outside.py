"""Asking where we are seen from outside in one address family, of a node that we are connected to anyway.

Problem: a node with both families meets everybody over IPv6 and never learns its outside IPv4 address; then the other side of a punch
that has IPv4 alone does not know whom to let in. Idea: peers say at which public addresses they listen. One short connection of
kind "probe" to such an address, from the port we listen on, brings the answer in its handshake; nothing else happens on it.

Invariants: only addresses that a connected peer has named for itself are dialed, at most `MAX_ASKED` and within `ASK_S`; an answer
counts only from the node that we meant.
"""

from __future__ import annotations

from typing import Final

import trio

from transport.address import Address
from transport.connect.source import source_for
from transport.endpoint import Endpoint
from transport.errors import ConnectionBroken, InvalidAddress, TransportError
from transport.identity import NodeId
from transport.network import Path
from transport.punch.agreement import is_public
from transport.reach.dial_back_rules import NONCE_BYTES
from transport.secure.handshake import Handshake, Intro
from transport.secure.link import shake_hands

ASK_S: Final = 5.0
"""For all of it."""
CLOSE_S: Final = 1.0
"""For the other side to close first, so that our port keeps no trace of it (TIME-WAIT)."""
MAX_ASKED: Final = 3


async def ask_outside(endpoint: Endpoint, *, six: bool) -> Address | None:
    """Where a peer sees us when we come by IPv6 (`six`) or IPv4; None if nobody can tell.

    Waits for at most `ASK_S`; never raises for what others do.
    """
    with trio.move_on_after(ASK_S):
        for address, node_id in askable(endpoint, six=six)[:MAX_ASKED]:
            try:
                return await _ask(endpoint, address, node_id)
            except (TransportError, InvalidAddress):
                continue
    return None


def askable(endpoint: Endpoint, *, six: bool) -> list[tuple[Address, NodeId]]:
    """Whom to ask, and where: the first public address of each directly connected peer that has one in this family."""
    found = []
    for peer in endpoint.peers.values():
        if peer.path is Path.RELAYED:
            continue
        for address in peer.listen:
            right = address.is_ip and not address.relay and (":" in address.host) == six
            if right and address.port and is_public(address.host):
                found.append((address, peer.node_id))
                break
    return found


async def _ask(endpoint: Endpoint, address: Address, node_id: NodeId) -> Address:
    source = source_for(endpoint.addresses, address)
    raw = await endpoint.network.connect(address, source=source)
    handshake = Handshake(
        role="initiator",
        identity=endpoint.identity,
        swarm=endpoint.swarm,
        intro=Intro("probe", endpoint.name, (), endpoint.random_bytes(NONCE_BYTES)),
        random_bytes=endpoint.random_bytes,
        expected=node_id,
    )
    deadline = trio.current_time() + endpoint.limits.handshake_timeout_s
    try:
        result = await shake_hands(raw, handshake, deadline=deadline)
        with trio.move_on_after(CLOSE_S):
            await raw.receive_into(memoryview(bytearray(1)))
        return Address.parse(result.intro.observed)
    except trio.BrokenResourceError as error:
        raise ConnectionBroken(str(error)) from error
    finally:
        raw.abort()
