"""The ways to have a gateway open a port: one interface, three of them.

Problem: PCP, NAT-PMP and UPnP do the same three things by different means, and whoever decides what to do next (`mapping_core`) should not see which. Idea: an
abstract `Method` for one port at one gateway; two of them are datagrams by the codecs in `pcp` and `natpmp`, the third is `upnp`.

Invariants: every call has an end of its own (the delays of its retries); what goes wrong is a `TransportError`; cancelling closes the socket.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final

import attrs
import trio

from transport.nat import natpmp, pcp
from transport.nat.gateway_socket import GatewaySocket
from transport.nat.mapping_core import Grant
from transport.nat.upnp import Upnp

TRIES: Final = 4
"""250 ms doubling, 3.75 s in all, for PCP too. RFC 6886 asks nine times (two minutes) and RFC 6887 waits 3 s first: on a home
network a gateway answers within milliseconds, and the next method, or the next round, makes up for a lost packet."""

OpenSocket = Callable[[], GatewaySocket]


@attrs.frozen
class Checked:
    """What a look at a mapping brought."""

    external_host: str
    """Where the gateway is seen from outside; "" where the method does not say."""
    alive: bool
    """Whether the gateway still has what it had."""


class Method(ABC):
    """One way, for one port of ours at one gateway. Methods of this class are called one at a time."""

    @abstractmethod
    async def map(self, external_port: int, lifetime_s: int, *, external_host: str = "") -> Grant:
        """Open the port, or renew it.

        Args:
            external_port: wanted outside; the gateway may give another one.
            lifetime_s: wanted; the same.
            external_host: had until now; "" if none.

        Raises:
            TransportError: the gateway refused, was silent, or made no sense.
        """

    @abstractmethod
    async def check(self, external_port: int) -> Checked:
        """Look whether the gateway has restarted or forgotten the mapping.

        Raises:
            TransportError: it does not answer.
        """

    @abstractmethod
    async def release(self, external_port: int) -> None:
        """Close the port.

        Raises:
            TransportError: it was not confirmed.
        """


class PcpMethod(Method):
    """By PCP (RFC 6887)."""

    def __init__(self, listen_port: int, nonce: bytes, open_socket: OpenSocket) -> None:
        self._listen_port = listen_port
        self._nonce = nonce
        self._open = open_socket
        self._epoch = pcp.Epoch()

    async def map(self, external_port: int, lifetime_s: int, *, external_host: str = "") -> Grant:
        """See `Method.map`."""
        answer = await self._ask(external_port, lifetime_s, external_host)
        # A fallen epoch needs no action here: what was just mapped is in the new table.
        self._epoch.observe(answer.epoch, trio.current_time())
        return Grant(answer.external_host, answer.external_port, answer.lifetime_s)

    async def check(self, external_port: int) -> Checked:
        """See `Method.check`; the announcement tells of all mappings alike."""
        del external_port
        with self._open() as sock:
            request = pcp.announce_request(sock.local_host)
            epoch = await sock.exchange(request, pcp.parse_announce, natpmp.retry_delays(TRIES))
        return Checked("", self._epoch.observe(epoch, trio.current_time()))

    async def release(self, external_port: int) -> None:
        """See `Method.release`; the nonce says which mapping."""
        del external_port
        await self._ask(0, 0, "")

    async def _ask(self, external_port: int, lifetime_s: int, external_host: str) -> pcp.Mapped:
        with self._open() as sock:
            request = pcp.map_request(
                sock.local_host,
                self._nonce,
                internal_port=self._listen_port,
                external_port=external_port,
                lifetime_s=lifetime_s,
                external_host=external_host,
            )
            return await sock.exchange(
                request,
                lambda data: pcp.parse_map(data, self._nonce, self._listen_port),
                natpmp.retry_delays(TRIES),
            )


class NatPmpMethod(Method):
    """By NAT-PMP (RFC 6886)."""

    def __init__(self, listen_port: int, open_socket: OpenSocket) -> None:
        self._listen_port = listen_port
        self._open = open_socket
        self._epoch = natpmp.Epoch()

    async def map(self, external_port: int, lifetime_s: int, *, external_host: str = "") -> Grant:
        """See `Method.map`."""
        del external_host
        with self._open() as sock:
            address = await self._ask_address(sock)
            answer = await self._ask(sock, external_port, lifetime_s)
        self._epoch.observe(answer.epoch, trio.current_time())
        return Grant(address.host, answer.external_port, answer.lifetime_s)

    async def check(self, external_port: int) -> Checked:
        """See `Method.check`; the epoch tells of all mappings alike."""
        del external_port
        with self._open() as sock:
            answer = await self._ask_address(sock)
        return Checked(answer.host, self._epoch.observe(answer.epoch, trio.current_time()))

    async def release(self, external_port: int) -> None:
        """See `Method.release`; the inner port says which mapping."""
        del external_port
        with self._open() as sock:
            await self._ask(sock, 0, 0)

    async def _ask_address(self, sock: GatewaySocket) -> natpmp.ExternalAddress:
        return await sock.exchange(
            natpmp.address_request(), natpmp.parse_address, natpmp.retry_delays(TRIES)
        )

    async def _ask(self, sock: GatewaySocket, external_port: int, lifetime_s: int) -> natpmp.Mapped:
        return await sock.exchange(
            natpmp.map_request(self._listen_port, external_port, lifetime_s),
            lambda data: natpmp.parse_map(data, self._listen_port),
            natpmp.retry_delays(TRIES),
        )


class UpnpMethod(Method):
    """By UPnP, in a thread."""

    def __init__(self, listen_port: int, router: Upnp) -> None:
        self._listen_port = listen_port
        self._router = router

    async def map(self, external_port: int, lifetime_s: int, *, external_host: str = "") -> Grant:
        """See `Method.map`."""
        del external_host
        return await self._router.map(self._listen_port, external_port, lifetime_s)

    async def check(self, external_port: int) -> Checked:
        """See `Method.check`."""
        return Checked(*await self._router.check(external_port))

    async def release(self, external_port: int) -> None:
        """See `Method.release`."""
        await self._router.release(external_port)
