"""A gateway on a real loopback socket, told by each test what to do."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio
import trio.testing

from transport.nat.gateway import Gateway

HOST = "127.0.0.1"


def epoch_bytes(epoch: int) -> bytes:
    return epoch.to_bytes(4, "big")


class FakeGateway:
    """Answers PCP and NAT-PMP as a kind router does; the attributes are what a test may change.

    Attributes:
        requests: every datagram that came.
        clients: from where.
        ignore: how many to ignore before the first answer.
        pcp, natpmp: whether it speaks them; without PCP it refuses the version as RFC 6887, appendix A, says.
        mapped: internal port -> (external port, lifetime), as a router's table.
        spoil: changes or replaces an answer; returns the datagrams to send.
    """

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self._sock = sock
        self.port: int = sock.getsockname()[1]
        self.gateway = Gateway(HOST, "lo")
        self.requests: list[bytes] = []
        self.clients: list[tuple[str, int]] = []
        self.ignore = 0
        self.pcp = self.natpmp = True
        self.epoch = 1000
        self.external = bytes([11, 1, 1, 2])
        self.lifetime: int | None = None
        self.mapped: dict[int, tuple[int, int]] = {}
        self.spoil: Callable[[bytes], list[bytes]] = lambda answer: [answer]
        self._heard = trio.Event()

    async def serve(self) -> None:
        while True:
            data, client = await self._sock.recvfrom(2000)
            self.requests.append(data)
            self.clients.append(client)
            self._heard.set()
            self._heard = trio.Event()
            if self.ignore:
                self.ignore -= 1
                continue
            answer = self.answer(data)
            if answer is not None:
                for datagram in self.spoil(answer):
                    await self._sock.sendto(datagram, client)

    async def heard(self, count: int) -> None:
        """Until so many requests have come."""
        with trio.fail_after(20):
            while len(self.requests) < count:
                await self._heard.wait()

    def answer(self, data: bytes) -> bytes | None:
        if data[0] == 2 and self.pcp:
            return self.pcp_answer(data)
        if data[0] == 2 and self.natpmp:
            return bytes([0, 128 | data[1], 0, 1]) + epoch_bytes(self.epoch)
        if data[0] == 0 and self.natpmp:
            return self.natpmp_answer(data)
        return None

    def pcp_answer(self, data: bytes) -> bytes:
        if data[1] == 0:
            return bytes([2, 128, 0, 0]) + bytes(4) + epoch_bytes(self.epoch) + bytes(12)
        internal, external = (int.from_bytes(data[i : i + 2], "big") for i in (40, 42))
        external, lifetime = self.map(internal, external, int.from_bytes(data[4:8], "big"))
        head = bytes([2, 129, 0, 0]) + lifetime.to_bytes(4, "big") + epoch_bytes(self.epoch)
        address = bytes(10) + b"\xff\xff" + self.external
        return head + bytes(12) + data[24:42] + external.to_bytes(2, "big") + address

    def natpmp_answer(self, data: bytes) -> bytes:
        head = bytes([0, 128 | data[1], 0, 0]) + epoch_bytes(self.epoch)
        if data[1] == 0:
            return head + self.external
        internal, external = (int.from_bytes(data[i : i + 2], "big") for i in (4, 6))
        external, lifetime = self.map(internal, external, int.from_bytes(data[8:12], "big"))
        return head + data[4:6] + external.to_bytes(2, "big") + lifetime.to_bytes(4, "big")

    def map(self, internal: int, external: int, lifetime: int) -> tuple[int, int]:
        if lifetime == 0:
            self.mapped.pop(internal, None)
            return 0, 0
        self.mapped[internal] = (external, lifetime)
        return external, lifetime if self.lifetime is None else self.lifetime

    def reboot(self) -> None:
        self.epoch = 0
        self.mapped.clear()


@asynccontextmanager
async def fake_gateway() -> AsyncIterator[FakeGateway]:
    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as sock:
        await sock.bind((HOST, 0))
        fake = FakeGateway(sock)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fake.serve)
            yield fake
            nursery.cancel_scope.cancel()
