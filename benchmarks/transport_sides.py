"""The two sides of each measurement of `benchmarks/transport.py`: one process per side.

Each contender is an async context manager that sets a connection up and yields what to do for one
repetition. The run and a side speak over pipes: a port, "ready", then one number and one line of
JSON per repetition.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import resource
import ssl
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import trio

from transport.address import Address
from transport.bulk.link import BulkLink
from transport.bulk.pool import BulkPool, open_bulk_pool
from transport.endpoint import Endpoint, open_endpoint
from transport.identity import Identity
from transport.network import RawStream
from transport.peer import Peer
from transport.secure.handshake import Handshake
from transport.secure.intro import Intro
from transport.secure.link import shake_hands
from transport.streams.stream import Stream
from transport.swarm import Swarm
from transport.tcp import TcpNetwork
from transport.trust.chain import certify_by_root
from transport.trust.trust import Trust

MIB = 1 << 20
ROOT = Identity.from_seed(hashlib.sha256(b"root").digest())
SWARM = Swarm(hashlib.sha256(b"benchmark").digest(), ROOT.public_key)


def cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


Act = Callable[[int], Awaitable[Any]]
"""One repetition with a number of bytes (or calls); both sides run it at once."""


def identity(side: str) -> Identity:
    return Identity.from_seed(hashlib.sha256(side.encode()).digest())


def trust(side: str) -> Trust:
    chain = certify_by_root(
        ROOT,
        subject=identity(side).public_key,
        role="trainer",
        serial=bytes(16),
        now_ms=int(time.time() * 1000),
    )
    return Trust(SWARM.id, chain.raw)


@contextlib.asynccontextmanager
async def connected(
    side: str, host: str, ready: Callable[[int], Awaitable[int]]
) -> AsyncIterator[tuple[Endpoint, Peer]]:
    listen = [Address(host, 0)] if side == "server" else []
    async with open_endpoint(
        identity(side), SWARM, TcpNetwork(), listen, trust=trust(side)
    ) as endpoint:
        endpoint.serve_calls("echo", echo)
        if side == "server":
            with endpoint.watch() as events:
                await ready(endpoint.addresses[0].port)
                while not endpoint.peers:
                    await events.receive()
            yield endpoint, next(iter(endpoint.peers.values()))
        else:
            yield endpoint, await endpoint.connect([Address(host, await ready(0))])


async def echo(_peer: Peer, request: bytes) -> bytes:
    return request


@contextlib.asynccontextmanager
async def bulk_link(
    side: str, host: str, ready: Callable[[int], Awaitable[int]]
) -> AsyncIterator[Act]:
    async with connected(side, host, ready) as (endpoint, peer):
        memory = memoryview(bytearray(MIB))
        link: BulkLink = await (
            endpoint.accept_bulk(peer.node_id, b"x") if side == "server" else peer.open_bulk(b"x")
        )

        async def act(size: int) -> None:
            if side == "client":
                for _ in range(size // MIB):
                    await link.send(b"", memory)
                await link.receive(lambda _header, _size: memory[:0])
            else:
                for _ in range(size // MIB):
                    await link.receive(lambda _header, _size: memory)
                await link.send(b"", b"")

        yield act


def bulk_pool(links: int | None) -> Any:
    @contextlib.asynccontextmanager
    async def pool_of(
        side: str, host: str, ready: Callable[[int], Awaitable[int]]
    ) -> AsyncIterator[Act]:
        async with (
            connected(side, host, ready) as (endpoint, peer),
            open_bulk_pool(endpoint, peer, b"pool", links=links) as pool,
        ):
            memory = memoryview(bytearray(256 * MIB))

            async def act(size: int) -> Any:
                while size > 0:
                    part = memory[: min(size, len(memory))]
                    move: Any = BulkPool.send if side == "client" else BulkPool.receive
                    await move(pool, b"tag", part)
                    size -= len(part)
                return {"links": pool.links}

            yield act

    return pool_of


@contextlib.asynccontextmanager
async def mux_stream(
    side: str, host: str, ready: Callable[[int], Awaitable[int]]
) -> AsyncIterator[Act]:
    async with connected(side, host, ready) as (endpoint, peer):
        streams: list[Stream] = []
        there, over = trio.Event(), trio.Event()

        async def take(stream: Stream) -> None:
            streams.append(stream)
            there.set()
            await over.wait()

        endpoint.serve("bench", take)
        if side == "client":
            await peer.call("echo", b"")
            streams.append(await peer.open_stream("bench"))
            await streams[0].send_all(b"x")
        else:
            await there.wait()
            await streams[0].receive_some(1)
        yield one_way(side, streams[0], bytes(MIB))
        over.set()


def one_way(side: str, stream: Any, data: bytes) -> Act:
    async def act(size: int) -> None:
        if side == "client":
            for _ in range(size // len(data)):
                await stream.send_all(data)
            assert await stream.receive_some(1)
        else:
            while size > 0:
                got = await stream.receive_some(min(size, 256 << 10))
                assert got
                size -= len(got)
            await stream.send_all(b"x")

    return act


@contextlib.asynccontextmanager
async def raw_trio(
    side: str, host: str, ready: Callable[[int], Awaitable[int]]
) -> AsyncIterator[Act]:
    async with trio_stream(side, host, ready) as stream:
        yield one_way(side, stream, bytes(MIB))


@contextlib.asynccontextmanager
async def tls(side: str, host: str, ready: Callable[[int], Awaitable[int]]) -> AsyncIterator[Act]:
    server = side == "server"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if server:
        with tempfile.TemporaryDirectory() as folder:
            files = [str(Path(folder) / name) for name in ("key", "certificate")]
            await trio.run_process(
                [
                    *("openssl", "req", "-x509", "-newkey", "ec", "-nodes", "-subj", "/CN=x"),
                    *("-pkeyopt", "ec_paramgen_curve:P-256", "-keyout", files[0]),
                    *("-out", files[1], "-days", "2"),
                ],
                capture_stderr=True,
            )
            context.load_cert_chain(files[1], files[0])
    else:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    async with trio_stream(side, host, ready) as plain:
        stream = trio.SSLStream(plain, context, server_side=server, server_hostname=None)
        await stream.do_handshake()
        assert stream.cipher()[0] == "TLS_AES_256_GCM_SHA384", stream.cipher()
        yield one_way(side, stream, bytes(MIB))


@contextlib.asynccontextmanager
async def trio_stream(
    side: str, host: str, ready: Callable[[int], Awaitable[int]]
) -> AsyncIterator[trio.SocketStream]:
    if side == "client":
        yield await trio.open_tcp_stream(host, await ready(0))
    else:
        listener = (await trio.open_tcp_listeners(0, host=host))[0]
        await ready(listener.socket.getsockname()[1])
        yield await listener.accept()


@contextlib.asynccontextmanager
async def handshakes(
    side: str, host: str, ready: Callable[[int], Awaitable[int]]
) -> AsyncIterator[Act]:
    network = TcpNetwork()
    asked = trust(side)

    def handshake(role: Any) -> Handshake:
        return Handshake(
            role=role,
            identity=identity(side),
            gate=SWARM.gate,
            chain=asked.chain,
            judge=lambda chain, key: asked.check(chain, key, int(time.time() * 1000)),
            intro=Intro("control", "", ()),
            random_bytes=os.urandom,
        )

    if side == "server":
        listener = await network.listen(Address(host, 0))
        await ready(listener.address.port)

        async def answer(raw: RawStream) -> None:
            await shake_hands(raw, handshake("responder"), deadline=trio.current_time() + 5)
            await raw.send_all(b"x")
            await raw.aclose()

        async def act(count: int) -> None:
            async with trio.open_nursery() as nursery:
                for _ in range(count):
                    nursery.start_soon(answer, await listener.accept())

        yield act
    else:
        address = Address(host, await ready(0))

        async def act(count: int) -> None:
            for _ in range(count):
                raw = await network.connect(address)
                result = await shake_hands(
                    raw, handshake("initiator"), deadline=trio.current_time() + 5
                )
                if not result.leftover:
                    await raw.receive_into(memoryview(bytearray(1)))
                await raw.aclose()

        yield act


@contextlib.asynccontextmanager
async def calls(side: str, host: str, ready: Callable[[int], Awaitable[int]]) -> AsyncIterator[Act]:
    async with connected(side, host, ready) as (_, peer):

        async def act(count: int) -> list[float]:
            took = []
            for _ in range(count if side == "client" else 0):
                began = time.perf_counter()
                await peer.call("echo", bytes(64))
                took.append(time.perf_counter() - began)
            return took

        yield act


@contextlib.asynccontextmanager
async def raw_calls(
    side: str, host: str, ready: Callable[[int], Awaitable[int]]
) -> AsyncIterator[Act]:
    async with trio_stream(side, host, ready) as stream:

        async def act(count: int) -> list[float]:
            took = []
            for _ in range(count):
                began = time.perf_counter()
                if side == "client":
                    await stream.send_all(bytes(64))
                    await stream.receive_some(64)
                else:
                    await stream.receive_some(64)
                    await stream.send_all(bytes(64))
                took.append(time.perf_counter() - began)
            return took

        yield act


@contextlib.asynccontextmanager
async def control(
    side: str, host: str, ready: Callable[[int], Awaitable[int]]
) -> AsyncIterator[Act]:
    """Pings each 20 ms while a bulk pool sends."""
    async with (
        connected(side, host, ready) as (endpoint, peer),
        open_bulk_pool(endpoint, peer, b"pool") as pool,
    ):

        async def act(size: int) -> list[float]:
            took: list[float] = []
            memory = memoryview(bytearray(size))
            async with trio.open_nursery() as nursery:

                async def pings() -> None:
                    await trio.sleep(2)  # the transfer has found its speed
                    while True:
                        took.append(await peer.ping())
                        await trio.sleep(0.02)

                if side == "client":
                    nursery.start_soon(pings)
                    await pool.send(b"tag", memory)
                else:
                    await pool.receive(b"tag", memory)
                nursery.cancel_scope.cancel()
            return took

        yield act


SIDES: dict[str, Any] = {
    "raw trio": raw_trio,
    "trio.SSLStream": tls,
    "bulk link": bulk_link,
    "bulk pool": bulk_pool(None),
    "bulk pool 1": bulk_pool(1),
    "bulk pool 8": bulk_pool(8),
    "stream": mux_stream,
    "handshakes": handshakes,
    "calls": calls,
    "raw calls": raw_calls,
    "control": control,
}


def side_main(kind: str, side: str, host: str) -> None:
    """Speak with the run: a port each way, then one line per repetition."""

    async def read_line() -> str:
        return await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)

    async def ready(port: int) -> int:
        if side == "server":
            print(port, flush=True)
            return port
        return int(await read_line())

    async def main() -> None:
        async with SIDES[kind](side, host, ready) as act:
            print("ready", flush=True)
            while line := await read_line():
                before, began = cpu_s(), time.perf_counter()
                extra = await act(int(line))
                took = time.perf_counter() - began
                print(json.dumps({"s": took, "cpu": cpu_s() - before, "extra": extra}), flush=True)

    trio.run(main)
