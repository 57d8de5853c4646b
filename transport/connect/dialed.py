"""A network that remembers whom we have sent something to.

Problem: a NAT or a firewall lets in whom it has seen us dial, so a connection from such a host proves nothing about strangers; and a
node dials in many places (connections, bulk links, punches, dial-backs). Idea: one wrapper around the network notes every host when
it is dialed, whether or not it answers.

Invariant: at most `MAX_HOSTS` hosts; the ones dialed longest ago are forgotten.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from transport.address import Address
from transport.network import Network, RawListener, RawStream

MAX_HOSTS: Final = 4096
"""Far more than a NAT keeps holes open for."""


class RememberingNetwork(Network):
    """`network`, and the hosts dialed through it."""

    def __init__(self, network: Network) -> None:
        self.inner = network
        self._hosts: OrderedDict[str, None] = OrderedDict()

    def has_dialed(self, host: str) -> bool:
        """Whether `host` was dialed, successfully or not."""
        return host in self._hosts

    async def connect(self, address: Address, *, source: Address | None = None) -> RawStream:
        """See `Network.connect`."""
        self._hosts[address.host] = None
        self._hosts.move_to_end(address.host)
        while len(self._hosts) > MAX_HOSTS:
            self._hosts.popitem(last=False)
        return await self.inner.connect(address, source=source)

    async def listen(self, address: Address) -> RawListener:
        """See `Network.listen`."""
        return await self.inner.listen(address)

    async def resolve(self, address: Address) -> Sequence[Address]:
        """See `Network.resolve`."""
        return await self.inner.resolve(address)
