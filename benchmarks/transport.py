"""The transport against iperf3, trio.SSLStream and plain trio sockets, in one run.

    python benchmarks/transport.py [--parts throughput handshakes calls control long] [--repeat 9]

Client and server are processes of their own. Everything on loopback is measured in turns, one
repetition of each contender after the other, so that whatever else the machine does meets all
alike: quote the ratios. On a machine that others use, `nice -n -15` (root) before the command
keeps them out of all contenders alike. `control` and `long` need root: they run between two network namespaces.

One JSON line per case on stdout (medians), tables on stderr. GB are 1e9 bytes.

What is compared: one connection, one way. iperf3 and the plain trio socket send unencrypted; TLS
is 1.3 with AES-256-GCM. `bulk link` is one connection of `transport.bulk` in transfers of 1 MiB,
`bulk pool` a region over as many of them as pay, `stream` a stream of the control connection.
"""
# ruff: noqa: E402  (this file is called like a package it imports: the path comes first)

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import resource
import shutil
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import netpath
import trio

from transport.address import Address
from transport.bulk import BulkLink
from transport.bulk_pool import BulkPool, open_bulk_pool
from transport.endpoint import Endpoint, open_endpoint
from transport.handshake import Handshake
from transport.identity import Identity
from transport.intro import Intro
from transport.link import shake_hands
from transport.network import RawStream
from transport.peer import Peer
from transport.stream import Stream
from transport.swarm import Swarm
from transport.tcp import TcpNetwork

MIB = 1 << 20
SWARM = Swarm(hashlib.sha256(b"benchmark").digest())
PARTS = ("throughput", "handshakes", "calls", "control", "long")
CONTENDERS = {
    # name: bytes per repetition
    "iperf3": 512 * MIB,
    "raw trio": 512 * MIB,
    "trio.SSLStream": 128 * MIB,
    "bulk link": 512 * MIB,
    "bulk pool": 512 * MIB,
    "stream": 128 * MIB,
}
PATIENCE_S = 120


def cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


# ---- one side ----------------------------------------------------------------------------------

Act = Callable[[int], Awaitable[Any]]
"""One repetition with a number of bytes (or calls); both sides run it at once."""


def identity(side: str) -> Identity:
    return Identity.from_seed(hashlib.sha256(side.encode()).digest())


@contextlib.asynccontextmanager
async def connected(
    side: str, host: str, ready: Callable[[int], Awaitable[int]]
) -> AsyncIterator[tuple[Endpoint, Peer]]:
    listen = [Address(host, 0)] if side == "server" else []
    async with open_endpoint(identity(side), SWARM, TcpNetwork(), listen) as endpoint:
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

    def handshake(role: Any) -> Handshake:
        return Handshake(
            role=role,
            identity=identity(side),
            swarm=SWARM,
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


# ---- the run -----------------------------------------------------------------------------------


class Pair:
    """A server and a client process."""

    def __init__(
        self, kind: str, *, host: str = "127.0.0.1", prefixes: Sequence[list[str]] = ([], [])
    ) -> None:
        self._sides = [
            subprocess.Popen(
                [*prefix, sys.executable, __file__, "--side", side, "--kind", kind, "--host", host],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for side, prefix in zip(("server", "client"), prefixes, strict=True)
        ]
        port = self._read(0)
        self._write(1, port.strip())
        for index in (0, 1):
            assert self._read(index).strip() == "ready"

    def once(self, amount: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """One repetition: what the server and what the client say."""
        for index in (0, 1):
            self._write(index, str(amount))
        return json.loads(self._read(0)), json.loads(self._read(1))

    def _write(self, index: int, line: str) -> None:
        stdin = self._sides[index].stdin
        assert stdin is not None
        stdin.write(line + "\n")
        stdin.flush()

    def _read(self, index: int) -> str:
        stdout = self._sides[index].stdout
        assert stdout is not None
        line = stdout.readline()
        if not line:
            raise SystemExit(f"a side ended: exit code {self._sides[index].wait()}")
        return line

    def close(self) -> None:
        for process in reversed(self._sides):
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def iperf3(size: int, *options: str) -> tuple[float, float, float]:
    """Bytes per second, and CPU seconds of client and server."""
    with subprocess.Popen(
        ["iperf3", "-s", "-1", "-p", "5299"], stdout=subprocess.DEVNULL
    ) as server:
        for _ in range(100):
            done = subprocess.run(
                ["iperf3", "-c", "127.0.0.1", "-p", "5299", "-n", str(size), "-J", *options],
                capture_output=True,
                text=True,
                check=False,
            )
            result = json.loads(done.stdout)
            if "error" not in result:
                break
            time.sleep(0.05)  # the server is not there yet
        server.wait(timeout=PATIENCE_S)
    end = result["end"]
    seconds = end["sum_received"]["seconds"]
    usage = end["cpu_utilization_percent"]
    return (
        end["sum_received"]["bytes"] / seconds,
        usage["host_total"] / 100 * end["sum_sent"]["seconds"],
        usage["remote_total"] / 100 * end["sum_sent"]["seconds"],
    )


def emit(row: dict[str, Any]) -> dict[str, Any]:
    print(json.dumps({"benchmark": "transport", **row}), flush=True)
    return row


def throughput(repeat: int) -> str:
    names = [name for name in CONTENDERS if name != "iperf3" or shutil.which("iperf3")]
    pairs = {name: Pair(name) for name in names if name != "iperf3"}
    figures: dict[str, list[tuple[float, float, float]]] = {name: [] for name in names}
    for number in range(repeat + 1):
        for name in names:
            size = CONTENDERS[name]
            if name == "iperf3":
                figure = iperf3(size)
            else:
                server, client = pairs[name].once(size)
                figure = (size / client["s"], client["cpu"], server["cpu"])
            if number:  # the first warms up
                figures[name].append(figure)
    for pair in pairs.values():
        pair.close()
    ratio = {
        (name, other): statistics.median(
            one[0] / two[0] for one, two in zip(figures[name], figures[other], strict=True)
        )
        for name in names
        for other in names
    }
    medians = {
        name: [statistics.median(column) for column in zip(*rows, strict=True)]
        for name, rows in figures.items()
    }
    head = (
        f"{'one connection, loopback':<26} {'MB/s':>7} {'of iperf3':>9} {'of raw':>7} {'of TLS':>7}"
    )
    lines = [f"{head} {'CPU s/GB':>9} {'receiver':>9}"]
    for name, (speed, sending, receiving) in medians.items():
        gigabytes = CONTENDERS[name] / 1e9
        ratios = {
            key: round(ratio[name, other], 2) if other in medians else None
            for key, other in (
                ("of_iperf3", "iperf3"),
                ("of_raw_trio", "raw trio"),
                ("of_sslstream", "trio.SSLStream"),
            )
        }
        row = emit(
            {
                "case": "throughput",
                "name": name,
                "mb_per_s": round(speed / 1e6),
                **ratios,
                "sender_cpu_s_per_gb": round(sending / gigabytes, 3),
                "receiver_cpu_s_per_gb": round(receiving / gigabytes, 3),
                "repetitions": repeat,
            }
        )
        lines.append(
            f"{name:<26} {row['mb_per_s']:>7} {row['of_iperf3'] or '':>9} {row['of_raw_trio']:>7}"
            f" {row['of_sslstream']:>7} {row['sender_cpu_s_per_gb']:>9}"
            f" {row['receiver_cpu_s_per_gb']:>9}"
        )
    return "\n".join(lines)


def handshake_rate(repeat: int) -> str:
    pair, count = Pair("handshakes"), 300
    took = []
    for number in range(repeat + 1):
        server, client = pair.once(count)
        if number:
            took.append((client["s"], client["cpu"], server["cpu"]))
    pair.close()
    seconds, client_cpu, server_cpu = (statistics.median(c) for c in zip(*took, strict=True))
    row = emit(
        {
            "case": "handshakes",
            "per_s": round(count / seconds),
            "client_cpu_ms": round(client_cpu / count * 1e3, 3),
            "server_cpu_ms": round(server_cpu / count * 1e3, 3),
        }
    )
    return (
        f"handshakes, one after the other: {row['per_s']} per second, CPU {row['client_cpu_ms']} ms"
        f" the dialer, {row['server_cpu_ms']} ms the listener"
    )


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def small_messages(repeat: int) -> str:
    lines = []
    pairs = {name: Pair(name) for name in ("calls", "raw calls")}
    took: dict[str, list[float]] = {name: [] for name in pairs}
    for _ in range(repeat):
        for name, pair in pairs.items():
            took[name] += pair.once(1000)[1]["extra"][100:]
    for name, pair in pairs.items():
        pair.close()
        row = emit(
            {
                "case": name,
                "bytes": 64,
                "p50_us": round(percentile(took[name], 0.5) * 1e6),
                "p99_us": round(percentile(took[name], 0.99) * 1e6),
            }
        )
        what = "call (open, request, answer, end)" if name == "calls" else "raw trio, no protocol"
        lines.append(
            f"64 bytes there and back, {what}: p50 {row['p50_us']} us, p99 {row['p99_us']} us"
        )
    return "\n".join(lines)


def between(kind: str) -> Pair:
    """A pair in the two namespaces of `netpath`; the server is in the first."""
    prefixes = [netpath.inside(name) for name in netpath.NAMES]
    return Pair(kind, host=netpath.ADDRESSES[0], prefixes=prefixes)


def control_latency(_repeat: int) -> str:
    rate, size = 200_000_000, 250 * MIB
    lines = []
    with netpath.veth_pair(rate), contextlib.closing(between("control")) as pair:
        _, client = pair.once(size)
    took = client["extra"]
    row = emit(
        {
            "case": "control beside bulk",
            "rate_mbit": rate / 1e6,
            "bulk_mbit": round(size * 8 / client["s"] / 1e6),
            "pings": len(took),
            "p50_ms": round(percentile(took, 0.5) * 1e3, 2),
            "p99_ms": round(percentile(took, 0.99) * 1e3, 2),
        }
    )
    lines.append(
        f"control round trip beside bulk at {row['bulk_mbit']} of 200 Mbit/s:"
        f" p50 {row['p50_ms']} ms, p99 {row['p99_ms']} ms ({row['pings']} pings)"
    )
    return "\n".join(lines)


def long_paths(_repeat: int) -> str:
    rate, rtt_s = 200_000_000, 0.1
    lines = [
        f"{'100 ms, 200 Mbit/s':<20} {'loss':>7} {'1 link':>10} {'8 links':>10} {'as pays':>10}"
    ]
    for congestion in ("", "reno"):
        for loss in (0.0, 0.0005, 0.01):
            cells = []
            for kind in ("bulk pool 1", "bulk pool 8", "bulk pool"):
                with netpath.long_path(rate, rtt_s, loss, congestion):
                    slow = congestion and loss >= 0.01
                    size = 16 * MIB if slow else 64 * MIB
                    with contextlib.closing(between(kind)) as pair:
                        _, client = pair.once(size)
                row = emit(
                    {
                        "case": "long path",
                        "congestion_control": congestion or "system",
                        "rtt_ms": rtt_s * 1e3,
                        "rate_mbit": rate / 1e6,
                        "loss": loss,
                        "name": kind,
                        "links": client["extra"]["links"],
                        "mb_per_s": round(size / client["s"] / 1e6, 2),
                    }
                )
                links = f" ({row['links']})" if kind == "bulk pool" else ""
                cells.append(f"{row['mb_per_s']}{links}")
            lines.append(
                f"{congestion or 'system default':<20} {loss:>7.2%}"
                + "".join(f" {cell:>10}" for cell in cells)
                + "  MB/s"
            )
    return "\n".join(lines)


PART_MAINS = dict(
    zip(
        PARTS,
        (throughput, handshake_rate, small_messages, control_latency, long_paths),
        strict=True,
    )
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--side", choices=("server", "client"))
    parser.add_argument("--kind", choices=list(SIDES))
    parser.add_argument("--host", default="127.0.0.1")
    options = parser.parse_args()
    if options.side:
        random.seed(options.side)
        side_main(options.kind, options.side, options.host)
        return
    for part in options.parts:
        print(PART_MAINS[part](options.repeat), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
