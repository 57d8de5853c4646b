"""Asking where our listening port is seen from outside, of nodes that we are connected to anyway.

Problem: what a NAT does with our listening port is seen on connections that leave from it, and most do not: a node that meets everybody by IPv6
never learns its outside IPv4 address, and one that has met its first peers before it listened, or lost them, has nobody to compare. Idea: one short
connection of kind "probe" from the listening port, to a place where we reached the peer before, or at which it says it listens, brings the answer
in its handshake; nothing else happens on it.

Invariants: only addresses of connected peers are dialed, where we reached them or as they name for themselves, at most `MAX_ASKED` in each family and within
`ASK_S`; an answer counts only from the node that we meant, as one word like any other; nobody is asked whose network has spoken.
"""

from __future__ import annotations

from typing import Final

import trio

from transport.address import Address
from transport.address_kinds import is_public
from transport.connect.source import source_for
from transport.endpoint import Endpoint
from transport.errors import InvalidAddress, TransportError
from transport.identity import NodeId
from transport.network import Path
from transport.reach.dial_back_rules import NONCE_BYTES
from transport.reach.observed import Observations

ASK_S: Final = 5.0
"""For all of it."""
AGAIN_S: Final = 2.0
MOST_AGAIN_S: Final = 640.0
"""Pause between two searches: the first, doubled while they bring nothing, up to the second."""
CLOSE_S: Final = 1.0
"""For the other side to close first, so that our port keeps no trace of it (TIME-WAIT)."""
MAX_ASKED: Final = 3


class Outside:
    """Asks for one endpoint.

    Args:
        endpoint: ours.
        observations: what is known, and where the answers go.
    """

    def __init__(self, endpoint: Endpoint, observations: Observations) -> None:
        self._endpoint = endpoint
        self._observations = observations
        self._after = float("-inf")
        self._pause_s = AGAIN_S

    def start_over(self) -> None:
        """Our network has changed: look as soon as there is somebody to ask."""
        self._after = float("-inf")
        self._pause_s = AGAIN_S

    @property
    def should_look(self) -> bool:
        """Whether `look` may bring something new."""
        return trio.current_time() >= self._after and any(map(self._askable, self._families()))

    async def look(self) -> None:
        """Ask, in the families in which too few networks have said where they see us; never raises for what others do."""
        self._after = float("inf")  # one search at a time
        pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, MOST_AGAIN_S)
        try:
            with trio.move_on_after(ASK_S):
                async with trio.open_nursery() as nursery:
                    for six in self._families():
                        nursery.start_soon(self._look_in, six)
        finally:
            self._after = trio.current_time() + pause_s

    async def _look_in(self, six: bool) -> None:
        """Ask in one family, one after another."""
        for address, node_id in self._askable(six)[:MAX_ASKED]:
            if not self._observations.lacks(trio.current_time(), six=six):
                return
            try:
                seen = await self._ask(address, node_id)
            except (TransportError, InvalidAddress):
                continue
            if node_id in self._endpoint.peers:
                now = trio.current_time()
                self._observations.note(node_id, address.host, seen, now, from_listener=True)
                self._pause_s = AGAIN_S

    def _families(self) -> list[bool]:
        """In which we listen, and too few see us; True is IPv6."""
        now = trio.current_time()
        listening = {":" in address.host for address in self._endpoint.addresses if address.is_ip}
        return sorted(six for six in listening if self._observations.lacks(now, six=six))

    def _askable(self, six: bool) -> list[tuple[Address, NodeId]]:
        """Whom to ask, and where: for each directly connected peer the place where we reached it, or its first public one."""
        found = []
        ports = {address.port for address in self._endpoint.addresses}
        for peer in self._endpoint.peers.values():
            raw = peer.primary.link.raw
            if peer.path is Path.RELAYED or (raw.remote in peer.listen and raw.local.port in ports):
                continue  # nobody sees us; or a connection between the two listening ports exists
            reached = [peer.address] if peer.initiated else []
            for address in (*reached, *peer.listen):
                right = address.is_ip and not address.relay and (":" in address.host) == six
                if right and address.port and is_public(address.host):
                    if not self._observations.has_spoken(address.host, trio.current_time()):
                        found.append((address, peer.node_id))
                    break
        return found

    async def _ask(self, address: Address, node_id: NodeId) -> Address:
        endpoint = self._endpoint
        source = source_for(endpoint.addresses, address)
        raw = await endpoint.network.connect(address, source=source)
        try:
            result = await endpoint.probe(raw, node_id, endpoint.random_bytes(NONCE_BYTES))
            with trio.move_on_after(CLOSE_S):
                try:
                    await raw.receive_into(memoryview(bytearray(1)))
                except trio.BrokenResourceError:
                    pass  # closed as well
            return Address.parse(result.intro.observed)
        finally:
            raw.abort()
