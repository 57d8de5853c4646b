"""Endpoints on real loopback TCP: the same promises where the kernel has a say."""

import os
import random
import resource
import socket
from contextlib import aclosing
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.transport.nodes import node
from tests.transport.relayed import Traffic
from transport.address import Address
from transport.bulk.link import BulkLink
from transport.endpoint import Endpoint
from transport.identity import NodeId
from transport.network import Path as Way
from transport.network import RawStream
from transport.peer import Peer
from transport.streams.stream import Stream
from transport.tcp import TcpNetwork

pytestmark = pytest.mark.real

LOOPBACK = [Address("127.0.0.1", 0)]
PATIENCE_S = 30
"""Only ever reached by a failure."""


async def echo(_peer: Peer, request: bytes) -> bytes:
    return request


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def peer_of(endpoint: Endpoint, other: Endpoint) -> Peer:
    with endpoint.watch() as events, trio.fail_after(PATIENCE_S):
        while other.node_id not in endpoint.peers:
            await events.receive()
    return endpoint.peers[other.node_id]


async def test_calls_streams_and_bulk_over_tcp() -> None:
    network = TcpNetwork()
    descriptors = open_descriptors()
    with trio.fail_after(PATIENCE_S):
        async with (
            node(network, 1, listen=LOOPBACK) as a,
            node(network, 2, listen=LOOPBACK) as b,
        ):
            b.serve_calls("echo", echo)

            async def upper(stream: Stream) -> None:
                async for chunk in stream:
                    await stream.send_all(chunk.upper())

            b.serve("upper", upper)
            peer = await a.connect(b.addresses, expected=b.node_id)
            for size in (0, 1, 65536):
                assert await peer.call("echo", bytes(size)) == bytes(size)
            stream = await peer.open_stream("upper")
            received = bytearray()

            async def read() -> None:
                async for chunk in stream:
                    received.extend(chunk)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                await stream.send_all(b"abc" * 500_000)
                await stream.send_eof()
            assert received == b"ABC" * 500_000
            links: list[BulkLink] = []

            async def accept() -> None:
                links.append(await b.accept_bulk(a.node_id, b"tensor"))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(accept)
                ours = await peer.open_bulk(b"tensor")
            payload, target = os.urandom(1 << 20), bytearray(1 << 20)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ours.send, b"x", payload)
                await links[0].receive(lambda _header, _size: memoryview(target))
            assert target == payload
            assert peer.bytes_sent > 2_500_000
    await trio.lowlevel.checkpoint()
    assert open_descriptors() == descriptors


async def test_simultaneous_dials_over_tcp() -> None:
    network = TcpNetwork()
    with trio.fail_after(PATIENCE_S):
        for _ in range(5):
            async with (
                node(network, 1, listen=LOOPBACK) as a,
                node(network, 2, listen=LOOPBACK) as b,
            ):
                a.serve_calls("echo", echo)
                b.serve_calls("echo", echo)

                async def talk(me: Endpoint, other: Endpoint) -> None:
                    peer = await me.connect(other.addresses)
                    for _ in range(20):
                        assert await peer.call("echo", b"x") == b"x"

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(talk, a, b)
                    nursery.start_soon(talk, b, a)
                assert len(a.peers) == len(b.peers) == 1


class CancelAfter(trio.abc.Instrument):
    """Cancels a scope after so many task steps: at every place where a task can be cancelled."""

    def __init__(self, scope: trio.CancelScope, steps: int) -> None:
        self.scope = scope
        self.steps = steps

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps -= 1
        if self.steps == 0:
            self.scope.cancel()


async def test_cancelling_a_dial_at_every_step_leaves_no_descriptor_and_no_task() -> None:
    network = TcpNetwork()
    with trio.fail_after(PATIENCE_S):
        async with (
            node(network, 1, listen=LOOPBACK) as a,
            node(network, 2, listen=LOOPBACK) as b,
        ):
            descriptors = open_descriptors()
            tasks = trio.lowlevel.current_statistics().tasks_living
            cancelled = 0
            for steps in range(1, 25):
                with trio.CancelScope() as scope:
                    instrument = CancelAfter(scope, steps)
                    trio.lowlevel.add_instrument(instrument)
                    try:
                        await a.connect(b.addresses)
                    finally:
                        trio.lowlevel.remove_instrument(instrument)
                cancelled += scope.cancelled_caught
                while a.peers or b.peers or trio.lowlevel.current_statistics().tasks_living > tasks:
                    for peer in [*a.peers.values(), *b.peers.values()]:
                        peer.close("next")
                    await trio.lowlevel.checkpoint()
                assert open_descriptors() == descriptors
            assert cancelled >= 4


async def test_running_out_of_descriptors_turns_clients_away_and_passes() -> None:
    network = TcpNetwork()
    with trio.fail_after(PATIENCE_S):
        async with (
            node(network, 1, listen=LOOPBACK) as a,
            node(network, 2, listen=LOOPBACK) as b,
        ):
            b.serve_calls("echo", echo)
            peer = await a.connect(b.addresses)
            await peer_of(b, a)
            clients = [socket.socket() for _ in range(5)]
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            probe = os.open(os.devnull, os.O_RDONLY)
            os.close(probe)
            resource.setrlimit(resource.RLIMIT_NOFILE, (probe, hard))
            try:
                for client in clients:
                    client.connect((b.addresses[0].host, b.addresses[0].port))
                while b.counters["accept-emfile"] < len(clients):
                    assert await peer.call("echo", b"alive") == b"alive"
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for client in clients:
                client.settimeout(PATIENCE_S)
                assert client.recv(1) == b""
                client.close()
            async with node(network, 3, listen=[]) as c:
                again = await c.connect(b.addresses)
                assert await again.call("echo", b"recovered") == b"recovered"


async def test_a_connection_moves_under_its_streams() -> None:
    """The kernel's streams, closing included, keep what the simulated ones promise."""
    network, rng = TcpNetwork(), random.Random(5)
    with trio.fail_after(PATIENCE_S):
        async with (
            node(network, 1, listen=LOOPBACK) as a,
            node(network, 2, listen=LOOPBACK) as b,
            aclosing(await network.listen(Address("127.0.0.1", 0))) as circuits,
        ):
            descriptors = open_descriptors()

            async def carry() -> None:
                raw = await circuits.accept()
                raw.path = Way.RELAYED
                await b.take_inbound(raw)

            async def dial(target: Address, _expected: NodeId) -> RawStream:
                raw = await network.connect(target.direct)
                raw.path = Way.RELAYED
                return raw

            a.relay_dialer = dial
            async with trio.open_nursery() as nursery:
                nursery.start_soon(carry)
                at = circuits.address
                via = Address(at.host, at.port, str(NodeId(bytes(32))))
                ours = await a.connect([via], expected=b.node_id)
                theirs = await peer_of(b, a)
            traffic = Traffic(rng, streams=10, size=1_000_000)
            traffic.serve(a)
            traffic.serve(b)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(traffic.run, a, ours)
                nursery.start_soon(traffic.run, b, theirs)
                while len(traffic.received) < 10:  # amid the traffic
                    await trio.lowlevel.checkpoint()
                raw = await network.connect(b.addresses[0])
                assert await a.upgrade(ours, raw, "initiator")
            while len(traffic.finished) < len(traffic.sent):
                await trio.lowlevel.checkpoint()
            traffic.check_complete()
            assert ours.path == theirs.path == Way.REVERSED
            while open_descriptors() > descriptors + 2:  # the circuit's two ends are closed
                await trio.lowlevel.checkpoint()


async def test_a_peer_that_stops_reading_costs_a_bounded_amount() -> None:
    network = TcpNetwork()
    with trio.fail_after(PATIENCE_S):
        async with (
            node(network, 1, listen=LOOPBACK) as a,
            node(network, 2, listen=LOOPBACK) as b,
        ):

            async def deaf(_stream: Stream) -> None:
                await trio.sleep_forever()

            b.serve("deaf", deaf)
            peer = await a.connect(b.addresses)
            async with trio.open_nursery() as nursery:
                for _ in range(32):
                    stream = await peer.open_stream("deaf")
                    nursery.start_soon(stream.send_all, bytes(16 << 20))
                await wait_all_tasks_blocked(0.1)
                statistics = peer.primary.mux.statistics()
                back = b.peers[a.node_id].primary.mux.statistics()
                assert statistics.queued_bytes <= a.limits.send_buffer_bytes
                assert back.unconsumed_bytes <= b.limits.memory_per_peer_bytes
                nursery.cancel_scope.cancel()
