"""Datagrams to the gateway and nobody else: ask, wait, ask again.

Problem: whoever can send us a datagram could answer in the gateway's place. Idea: a *connected* UDP socket on a fresh port: the
kernel hands over only what comes from the gateway's address and port, and tells at once when nothing listens there.

Invariants: an answer that does not parse counts as none; every wait is bounded; the socket closes with the object.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import TracebackType
from typing import Final, Self, TypeVar

import trio

from transport.errors import MalformedMessage, TransportError
from transport.nat import natpmp

READ_BYTES: Final = 1101
"""One more than PCP allows, so that too long an answer is seen to be one."""
MAX_STRAY: Final = 64
"""Useless answers taken per try: a gateway that floods us is waited out, not read."""

T = TypeVar("T")


class GatewaySilent(TransportError):
    """The gateway gave no answer that could be used."""


class GatewaySocket:
    """A UDP socket connected to a gateway; a context manager. One exchange at a time."""

    def __init__(self, host: str, port: int = natpmp.PORT, *, source: str = "") -> None:
        """Open and connect; no packet is sent.

        Args:
            host: the gateway; a link-local IPv6 address with its zone.
            port: where it listens.
            source: our address to send from; "" lets the routing table choose.

        Raises:
            GatewaySilent: there is no way to the gateway.
        """
        address = _sockaddr(host, port)
        raw = socket.socket(
            socket.AF_INET6 if len(address) == 4 else socket.AF_INET, socket.SOCK_DGRAM
        )
        try:
            raw.setblocking(False)
            if source:
                raw.bind(_sockaddr(source, 0))
            raw.connect(address)
            self.local_host: str = raw.getsockname()[0].partition("%")[0]
            """Our address as packets to the gateway carry it."""
        except OSError as error:
            raw.close()
            raise GatewaySilent("this machine has no way to the gateway") from error
        self._sock = trio.socket.from_stdlib_socket(raw)

    async def exchange(
        self, request: bytes, parse: Callable[[bytes], T], delays_s: Iterable[float]
    ) -> T:
        """Send `request` and return what `parse` makes of the first answer it takes.

        Cancelling loses nothing but the answer; the gateway may have acted on the request.

        Args:
            request: one datagram.
            parse: raises MalformedMessage for what is no answer to this request.
            delays_s: how long to wait after each sending; as many tries as there are.

        Raises:
            GatewaySilent: no try was answered, or nothing listens there.
            TransportError: what else `parse` raises, a refusal.
        """
        stray = ""
        try:
            for delay in delays_s:
                await self._sock.send(request)
                with trio.move_on_after(delay):
                    for _ in range(MAX_STRAY):
                        try:
                            return parse(await self._sock.recv(READ_BYTES))
                        except MalformedMessage as error:
                            stray = str(error)
                    await trio.sleep_forever()  # to the end of this try
        except ConnectionRefusedError as error:
            raise GatewaySilent("the gateway does not listen for this (port closed)") from error
        except OSError as error:
            raise GatewaySilent("the gateway cannot be reached") from error
        raise GatewaySilent(f"no usable answer ({stray})" if stray else "no answer")

    async def send(self, datagram: bytes) -> None:
        """Send without waiting for an answer; errors of the network are nobody's."""
        with suppress(OSError):
            await self._sock.send(datagram)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._sock.close()


def open_announcements(group: str, port: int) -> trio.socket.SocketType:
    """A socket that hears what gateways tell everybody (RFC 6886, section 3.2.1; RFC 6887, section 14.1.3).

    Bound to the group's own address, so that only what was sent to the group arrives; shared with other programs.

    Raises:
        OSError: the group or the port is not to be had.
    """
    raw = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        raw.setblocking(False)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        raw.bind((group, port))  # every host is a member of 224.0.0.1; nothing to join
    except OSError:
        raw.close()
        raise
    return trio.socket.from_stdlib_socket(raw)


def _sockaddr(host: str, port: int) -> tuple[str, int] | tuple[str, int, int, int]:
    if ":" not in host:
        return (host, port)
    bare, _, zone = host.partition("%")
    try:
        return (bare, port, 0, socket.if_nametoindex(zone) if zone else 0)
    except OSError as error:
        raise GatewaySilent("the interface of the gateway is gone") from error
