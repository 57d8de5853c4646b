"""Real loopback TCP: the raw stream's contract, options, errors, and running out of descriptors."""

import os
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio

from transport.address import Address
from transport.connect.source import SourceBusy
from transport.errors import AddressInUse, ConnectFailed
from transport.network import AcceptOverloaded, RawStream
from transport.tcp import TcpNetwork

pytestmark = pytest.mark.real

LOOPBACK = Address(host="127.0.0.1", port=0)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[RawStream, RawStream]]:
    network = TcpNetwork()
    listener = await network.listen(LOOPBACK)
    client = await network.connect(listener.address)
    server = await listener.accept()
    try:
        yield client, server
    finally:
        client.abort()
        server.abort()
        await listener.aclose()


async def receive_exactly(stream: RawStream, size: int) -> bytes:
    buffer = bytearray(size)
    view, got = memoryview(buffer), 0
    while got < size:
        count = await stream.receive_into(view[got:])
        assert count, "the stream ended early"
        got += count
    return bytes(buffer)


async def test_bytes_travel_both_ways_and_end() -> None:
    async with connected() as (client, server):
        assert client.remote == server.local
        assert client.local == server.remote
        big = os.urandom(3_000_000)
        received: list[bytes] = []

        async def read() -> None:
            received.append(await receive_exactly(server, len(big)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await client.send_all(big)
        assert received == [big]
        await server.send_all(memoryview(b"back"))
        await server.aclose()
        assert await receive_exactly(client, 4) == b"back"
        assert await client.receive_into(memoryview(bytearray(1))) == 0


async def test_abort_is_a_reset_for_the_peer_and_closed_for_us() -> None:
    async with connected() as (client, server):

        async def blocked_reader() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await client.receive_into(memoryview(bytearray(1)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(blocked_reader)
            await trio.testing.wait_all_tasks_blocked()
            client.abort()
        with pytest.raises(trio.BrokenResourceError, match="reset"):
            await server.receive_into(memoryview(bytearray(1)))
        with pytest.raises(trio.ClosedResourceError):
            await client.send_all(b"x")
        client.abort()
        await client.aclose()


async def test_closing_wakes_a_blocked_writer() -> None:
    async with connected() as (client, _server):

        async def blocked_writer() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await client.send_all(bytes(64 << 20))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(blocked_writer)
            await trio.testing.wait_all_tasks_blocked(0.01)
            await client.aclose()


async def test_two_writers_are_refused() -> None:
    async with connected() as (client, _server):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.send_all, bytes(64 << 20))
                await trio.testing.wait_all_tasks_blocked(0.01)
                with pytest.raises(trio.BusyResourceError):
                    await client.send_all(b"x")
                scope.cancel()


async def test_a_busy_stream_lets_other_tasks_run() -> None:
    async with connected() as (client, server):
        turns = 0

        async def counter() -> None:
            nonlocal turns
            while True:
                turns += 1
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(counter)
            await trio.lowlevel.checkpoint()
            before = turns
            buffer = memoryview(bytearray(16))
            for _ in range(1000):
                await client.send_all(b"0123456789abcdef")
                await server.receive_into(buffer)
            nursery.cancel_scope.cancel()
        assert turns - before >= 10


async def test_refused_and_unknown_addresses_are_clear() -> None:
    network = TcpNetwork()
    listener = await network.listen(LOOPBACK)
    free = listener.address
    await listener.aclose()
    with pytest.raises(ConnectFailed, match=r"connection refused"):
        await network.connect(free)
    with pytest.raises(ConnectFailed):
        await network.connect(Address(host="no-such-host.invalid", port=1))


async def test_a_taken_port_has_a_clear_error() -> None:
    network = TcpNetwork()
    listener = await network.listen(LOOPBACK)
    with pytest.raises(AddressInUse, match="already in use") as caught:
        await network.listen(listener.address)
    assert str(listener.address.port) in caught.value.hint
    await listener.aclose()
    again = await network.listen(listener.address)  # at once: SO_REUSEADDR
    await again.aclose()


async def test_options_are_set() -> None:
    async with connected() as (client, server):
        for stream in (client, server):
            sock = stream._sock  # type: ignore[attr-defined]
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert not sock.get_inheritable()


@contextmanager
def no_descriptors_left() -> Iterator[None]:
    """Lower the soft limit so that the next descriptor cannot be had."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    probe = os.open(os.devnull, os.O_RDONLY)
    os.close(probe)
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_out_of_descriptors_turns_a_client_away_and_recovers() -> None:
    network = TcpNetwork()
    listener = await network.listen(LOOPBACK)
    with socket.socket() as waiting, socket.socket() as second:
        waiting.connect((listener.address.host, listener.address.port))
        with no_descriptors_left(), pytest.raises(AcceptOverloaded) as caught:
            await listener.accept()
        assert caught.value.reason == "EMFILE"
        assert caught.value.shed
        waiting.settimeout(5)
        assert waiting.recv(1) == b""
        second.connect((listener.address.host, listener.address.port))
        stream = await listener.accept()
        stream.abort()
    await listener.aclose()


async def test_closing_a_listener_wakes_accept() -> None:
    listener = await TcpNetwork().listen(LOOPBACK)

    async def waiter() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await listener.accept()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(waiter)
        await trio.testing.wait_all_tasks_blocked()
        await listener.aclose()


async def test_cancelling_leaves_no_descriptor() -> None:
    network = TcpNetwork()
    listener = await network.listen(LOOPBACK)
    before = open_descriptors()
    for _ in range(3):
        with trio.CancelScope() as scope:
            scope.cancel()
            await network.connect(listener.address)
        with trio.CancelScope() as scope:
            scope.cancel()
            await listener.accept()
    assert open_descriptors() == before
    await listener.aclose()


# Dialing from where we listen


def listening_elsewhere(*options: int) -> socket.socket:
    """What another program might do."""
    sock = socket.socket()
    for option in options:
        sock.setsockopt(socket.SOL_SOCKET, option, 1)
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    return sock


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1"])
async def test_a_dial_leaves_from_the_listening_port(host: str) -> None:
    network = TcpNetwork()
    ours = await network.listen(Address(host=host, port=0))
    theirs, others = await network.listen(LOOPBACK), await network.listen(LOOPBACK)
    for listener in (theirs, others):  # one port, several connections
        client = await network.connect(listener.address, source=ours.address)
        server = await listener.accept()
        assert client.local.port == server.remote.port == ours.address.port
        await client.send_all(b"hello")
        assert await receive_exactly(server, 5) == b"hello"
        client.abort()
        server.abort()
    probe = await network.connect(Address(host="127.0.0.1", port=ours.address.port))
    (await ours.accept()).abort()  # the listener still listens
    probe.abort()
    for listener in (ours, theirs, others):
        await listener.aclose()


async def test_both_families_dial_from_where_they_listen() -> None:
    network = TcpNetwork()
    ours = await network.listen(Address(host="::", port=0))
    beside = await network.listen(Address(host="0.0.0.0", port=ours.address.port))
    theirs = await network.listen(Address(host="::1", port=0))
    client = await network.connect(theirs.address, source=ours.address)
    assert client.local == Address(host="::1", port=ours.address.port)
    client.abort()
    with pytest.raises(ConnectFailed, match="no address"):
        await network.connect(theirs.address, source=beside.address)
    for listener in (ours, beside, theirs):
        await listener.aclose()


@pytest.mark.parametrize(
    "options",
    [(), (socket.SO_REUSEADDR,), (socket.SO_REUSEADDR, socket.SO_REUSEPORT)],
    ids=["plain", "reuseaddr", "reuseport"],
)
async def test_a_port_of_another_program_is_not_shared(options: tuple[int, ...]) -> None:
    with listening_elsewhere(*options) as other:
        with pytest.raises(AddressInUse):
            await TcpNetwork().listen(Address(host="127.0.0.1", port=other.getsockname()[1]))
        with pytest.raises(AddressInUse):
            await TcpNetwork().listen(Address(host="0.0.0.0", port=other.getsockname()[1]))


async def test_a_second_node_does_not_get_the_port_of_one_that_dials_from_it() -> None:
    first, second = TcpNetwork(), TcpNetwork()
    ours, theirs = await first.listen(LOOPBACK), await second.listen(LOOPBACK)
    client = await first.connect(theirs.address, source=ours.address)
    for host in ("127.0.0.1", "0.0.0.0"):
        with pytest.raises(AddressInUse):
            await second.listen(Address(host=host, port=ours.address.port))
    await ours.aclose()
    again = await second.listen(ours.address)  # a restart, while the old connection still stands
    client.abort()
    await again.aclose()
    await theirs.aclose()


async def test_a_port_that_another_program_holds_is_no_source() -> None:
    network = TcpNetwork()
    theirs = await network.listen(LOOPBACK)
    with listening_elsewhere() as other:
        source = Address(host="127.0.0.1", port=other.getsockname()[1])
        with pytest.raises(SourceBusy, match="in use") as caught:
            await network.connect(theirs.address, source=source)
    assert caught.value.hint
    with pytest.raises(SourceBusy, match="cannot dial from"):
        await network.connect(theirs.address, source=Address(host="192.0.2.1", port=0))
    await theirs.aclose()


async def test_a_dial_that_our_listener_already_took_is_told_apart() -> None:
    """The other side's SYN came first: the same two ports, and the connection is in the accept queue."""
    network = TcpNetwork()
    ours, theirs = await network.listen(LOOPBACK), await network.listen(LOOPBACK)
    inbound = await network.connect(ours.address, source=theirs.address)
    with pytest.raises(SourceBusy, match="same two ports"):
        await network.connect(theirs.address, source=ours.address)
    twin = await ours.accept()
    assert (twin.local, twin.remote) == (inbound.remote, inbound.local)
    inbound.abort()
    twin.abort()
    await ours.aclose()
    await theirs.aclose()


async def test_failed_dials_from_a_shared_port_leave_no_descriptor() -> None:
    network = TcpNetwork()
    ours, nobody = await network.listen(LOOPBACK), Address(host="127.0.0.1", port=1)
    before = open_descriptors()
    for _ in range(3):
        with trio.CancelScope() as scope:
            scope.cancel()
            await network.connect(nobody, source=ours.address)
        with pytest.raises(ConnectFailed):
            await network.connect(nobody, source=ours.address)
        with pytest.raises(SourceBusy):
            await network.connect(nobody, source=Address(host="192.0.2.1", port=0))
    assert open_descriptors() == before
    await ours.aclose()
