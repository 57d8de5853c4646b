"""What the attackers use: the victim's process, plain sockets from any loopback address, and a member that writes what it likes."""

import json
import os
import resource
import socket
import sys
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from subprocess import PIPE
from typing import Any

import trio

from tests.attacks.victim import NUMBER
from tests.transport.nodes import identity, node
from tests.trusted import shaking
from transport.address import Address
from transport.identity import NodeId
from transport.limits import Limits
from transport.network import RawStream
from transport.peer import Peer
from transport.secure.handshake import Handshake, HandshakeResult
from transport.secure.intro import Intro
from transport.secure.link import shake_hands
from transport.secure.record import HEADER_BYTES, OVERHEAD_BYTES, RecordKind
from transport.streams import frames
from transport.streams.frames import Frame
from transport.tcp import TcpNetwork

ROOT = Path(__file__).parents[2]
PATIENCE_S = 30.0
"""Only ever reached by a failure."""
JOIN_S = 5.0
"""The promise: an honest node joins within this, whatever strangers do."""
GROWTH_BYTES = 64 << 20
"""The promise: a flood costs at most this much memory."""

OPEN_TO_ALL: dict[str, Any] = {"new_connections_per_source_burst": 100_000}
"""For attacks that need many connections from one place; those that the gate turns away are tested with the flood."""

LIVELY = Limits(heartbeat_s=0.1, silence_s=20.0)
"""For honest nodes of the attacks: damage shows with the next record, and patience is for failures only."""


class Victim:
    """The process, its address, and what it says about itself."""

    def __init__(self, process: trio.Process, address: Address) -> None:
        self.process = process
        self.address = address
        self.node_id = identity(NUMBER).node_id
        self._rest = b""
        self._joined = 0

    async def about(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        await self.process.stdin.send_all(b"?\n")
        answer: dict[str, Any] = json.loads(await self.line())
        return answer

    async def line(self) -> bytes:
        assert self.process.stdout is not None
        while b"\n" not in self._rest:
            more = await self.process.stdout.receive_some(65536)
            assert more, "the victim died"
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    async def until(self, **least: int) -> dict[str, Any]:
        """Wait until these counters have come so far."""
        while True:
            about = await self.about()
            if all(
                about["counters"].get(name.replace("_", "-"), 0) >= n for name, n in least.items()
            ):
                return about
            await trio.sleep(0.02)

    async def join(self, number: int = 1) -> None:
        """An honest node connects, is served, and leaves."""
        self._joined += 1  # new keys each time: a node that repeats its first flight is refused
        async with node(
            TcpNetwork(), number, listen=[], limits=LIVELY, seed=self._joined
        ) as honest:
            peer = await honest.connect([self.address], expected=self.node_id)
            assert await peer.call("echo", b"served") == b"served"


@asynccontextmanager
async def victim(**options: Any) -> AsyncIterator[Victim]:
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "tests.attacks.victim", json.dumps(options)],
        stdin=PIPE,
        stdout=PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    try:
        with trio.fail_after(PATIENCE_S):
            found = Victim(process, Address("127.0.0.1", 1))
            found.address = Address.parse((await found.line()).decode())
            yield found
            assert process.poll() is None, "the victim died"
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    await pipe.aclose()


@asynccontextmanager
async def friend(
    victim: Victim, number: int = 2, limits: Limits | None = None
) -> AsyncIterator[Peer]:
    """A member that was there before the attack and is still served after it."""
    async with node(TcpNetwork(), number, listen=[], limits=LIVELY) as honest:
        peer = await honest.connect([victim.address], expected=victim.node_id)
        assert await peer.call("echo", b"before") == b"before"
        yield peer
        assert await peer.call("echo", b"after") == b"after"


# Plain sockets


@contextmanager
def many_files() -> Iterator[None]:
    """Room for thousands of sockets in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@asynccontextmanager
async def client(
    address: Address, source: str = "127.0.0.1"
) -> AsyncIterator[trio.socket.SocketType]:
    with trio.socket.socket() as sock:
        await sock.bind((source, 0))
        await sock.connect((address.host, address.port))
        yield sock


async def until_hung_up(sock: trio.socket.SocketType) -> bytes:
    """What comes until the other side ends the connection."""
    got = b""
    try:
        while data := await sock.recv(65536):
            got += data
    except OSError:
        pass
    return got


async def flood(
    address: Address, sources: Sequence[str], count: int, say: bytes, held: list[socket.socket]
) -> None:
    """Open `count` connections from `sources` in turn, say a little on each, and keep them; `held` owns them."""
    for number in range(count):
        sock = socket.socket()
        held.append(sock)
        sock.setblocking(False)
        sock.bind((sources[number % len(sources)], 0))
        sock.connect_ex((address.host, address.port))
        if number % 20 == 19:
            await trio.sleep(0.005)  # 20 connections per turn: about 2,000 a second
            for opened in held[-20:]:
                try:
                    opened.send(say)
                except OSError:
                    pass  # refused already


# Members


class Hostile:
    """An authenticated member that writes its own records and frames."""

    def __init__(self, raw: RawStream, result: HandshakeResult) -> None:
        self.raw = raw
        self.result = result
        self._kept = bytearray(result.leftover)
        self._frames: deque[Frame] = deque()

    def seal(self, payload: bytes, kind: int = RecordKind.DATA) -> bytes:
        out = memoryview(bytearray(len(payload) + OVERHEAD_BYTES))
        self.result.sealer.seal_into(kind, payload, out)
        return bytes(out)

    async def send(self, *some: Frame) -> None:
        await self.raw.send_all(self.seal(b"".join(map(frames.encode, some))))

    async def next_frame(self) -> Frame | None:
        """What the victim says next, or None when it has hung up."""
        while not self._frames:
            if not self._open_record():
                buffer = memoryview(bytearray(65536))
                try:
                    count = await self.raw.receive_into(buffer)
                except trio.BrokenResourceError:
                    return None
                if not count:
                    return None
                self._kept += buffer[:count]
        return self._frames.popleft()

    def _open_record(self) -> bool:
        if len(self._kept) < HEADER_BYTES:
            return False
        header = bytes(self._kept[:HEADER_BYTES])
        kind, length = self.result.opener.parse_header(header)
        body = bytes(self._kept[HEADER_BYTES : length + OVERHEAD_BYTES])
        if len(body) < length + OVERHEAD_BYTES - HEADER_BYTES:
            return False
        out = memoryview(bytearray(length))
        self.result.opener.open_into(header, body, out)
        del self._kept[: length + OVERHEAD_BYTES]
        if kind == RecordKind.DATA:
            self._frames.extend(frames.decode(bytes(out)))
        return True

    async def goodbye(self) -> str:
        """Wait for the end of the connection; what the victim gave as the reason."""
        text = ""
        while (frame := await self.next_frame()) is not None:
            if isinstance(frame, frames.GoAway):
                text = frame.text
        return text


def handshake(
    role: str = "initiator",
    number: int = 66,
    intro: Intro | None = None,
    expected: NodeId | None = None,
) -> Handshake:
    return Handshake(
        role="initiator" if role == "initiator" else "responder",
        **shaking(identity(number)),
        intro=intro or Intro(name="mallory"),
        random_bytes=os.urandom,
        expected=expected,
    )


@asynccontextmanager
async def hostile(
    address: Address, number: int = 66, intro: Intro | None = None
) -> AsyncIterator[Hostile]:
    raw = await TcpNetwork().connect(address)
    result = await shake_hands(
        raw, handshake(number=number, intro=intro), deadline=trio.current_time() + PATIENCE_S
    )
    try:
        yield Hostile(raw, result)
    finally:
        raw.abort()
