"""The bulk pool: everything arrives in its place, whatever happens to links, tags and peers."""

import random
from contextlib import suppress

import pytest
import trio

from tests.transport.nodes import node, nodes
from tests.transport.pool_links import HOSTS, hostile, pools
from transport.address import Address
from transport.bulk.chunks import MIN_CHUNK_BYTES, ChunkRefused
from transport.bulk.link import LinkClosed
from transport.bulk.messages import (
    Ack,
    Bye,
    ChunkHead,
    Gone,
    Hello,
    Kind,
    Reason,
    Stop,
    Want,
    decode,
    encode,
)
from transport.bulk.pool import (
    BARREN_LINKS,
    HELLO_S,
    LINKLESS_S,
    STALL_S,
    BulkPool,
    PoolBroken,
    TransferCancelled,
    TransferMismatch,
    open_bulk_pool,
)
from transport.errors import ConnectFailed, PeerLost, UsageError
from transport.simulated.link_model import LinkSettings
from transport.simulated.memory import MemoryNetwork
from transport.tcp import TcpNetwork

K = MIN_CHUNK_BYTES
SLOW = LinkSettings(latency_s=0.01, bandwidth_bytes_per_s=4e6)


def content(size: int, seed: object = 0) -> bytes:
    return random.Random(repr(seed)).randbytes(size)


async def carry(sender: BulkPool, receiver: BulkPool, tag: bytes, size: int) -> None:
    """One transfer, checked."""
    data, into = content(size, tag), bytearray(size)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sender.send, tag, data)
        await receiver.receive(tag, memoryview(into))
        assert into == data


@pytest.mark.parametrize(
    "message",
    [
        Hello(),
        Want(1, 2**40, K, b"tag"),
        Want(2**64 - 1, 0, 4 * K, bytes(64)),
        ChunkHead(1, 2, 3),
        Ack(7),
        Stop(8),
        Gone(9, Reason.OTHER_SIZE),
        Bye(),
    ],
)
def test_messages_survive_the_wire(message: object) -> None:
    header = encode(message)  # type: ignore[arg-type]
    assert decode(header, 0) == message
    if not isinstance(message, ChunkHead):
        with pytest.raises(ChunkRefused):
            decode(header, 1)
    if not isinstance(message, Want):
        for cut in (header[:-1], header + b"\0"):
            with pytest.raises(ChunkRefused):
                decode(cut, 0)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"\0",
        b"\x08",
        bytes((Kind.WANT,)) + bytes(8) + (2**40 + 1).to_bytes(8, "big") + K.to_bytes(4, "big"),
        bytes((Kind.WANT,)) + bytes(20),  # chunks of 0 bytes
        bytes((Kind.WANT,)) + bytes(16) + K.to_bytes(4, "big") + bytes(65),
        bytes((Kind.GONE,)) + bytes(8) + b"\x02",
    ],
)
def test_messages_that_are_none_are_refused(header: bytes) -> None:
    with pytest.raises(ChunkRefused):
        decode(header, 0)


@pytest.mark.parametrize("size", [0, 1, K, K + 1, 9_000_001])
async def test_a_region_arrives(size: int, autojump_clock: object) -> None:
    async with pools(MemoryNetwork(1)) as (a, b, _, _):
        await carry(a, b, b"there", size)
        await carry(b, a, b"back", size)
        assert a.bytes_acknowledged == b.bytes_acknowledged == size


@pytest.mark.parametrize("receiver_first", [False, True])
async def test_whoever_is_first_waits(receiver_first: bool, autojump_clock: object) -> None:
    async with pools(MemoryNetwork(1)) as (a, b, _, _):
        into = bytearray(1000)
        async with trio.open_nursery() as nursery:
            first, second = (a.send, b"t", content(1000)), (b.receive, b"t", memoryview(into))
            if receiver_first:
                first, second = second, first  # type: ignore[assignment]
            nursery.start_soon(*first)
            await trio.sleep(50)
            nursery.start_soon(*second)
        assert into == content(1000)


async def test_many_tags_both_ways_at_once(autojump_clock: object) -> None:
    async with (
        pools(MemoryNetwork(2, default=SLOW)) as (a, b, _, _),
        trio.open_nursery() as nursery,
    ):
        for number in range(12):
            nursery.start_soon(carry, *((a, b), (b, a))[number % 2], b"%d" % number, 10**6 + number)


async def test_a_tag_may_be_used_again(autojump_clock: object) -> None:
    async with pools(MemoryNetwork(1)) as (a, b, _, _):
        for _ in range(5):
            await carry(a, b, b"same", 2 * K + 3)


async def test_links_are_added_where_each_adds_goodput(autojump_clock: object) -> None:
    """A send window of 256 KiB per connection and 100 ms of path: 2.5 MB/s each."""
    world = MemoryNetwork(1, default=LinkSettings(latency_s=0.05), window_bytes=K)
    async with pools(world, rtt_s=lambda: 0.1) as (a, b, _, _):
        seen = []

        async def watch() -> None:
            while True:
                seen.append(a.links)
                await trio.sleep(0.5)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            await carry(a, b, b"t", 120 << 20)
            nursery.cancel_scope.cancel()
        assert max(seen) == 8
        await trio.sleep(60)
        assert a.links == b.links == 0  # nothing to do for half a minute
        await carry(a, b, b"u", K)


async def test_a_number_of_links_can_be_fixed(autojump_clock: object) -> None:
    async with pools(MemoryNetwork(1, default=SLOW), links=8) as (a, b, _, _):
        await carry(a, b, b"t", 8 << 20)
        assert a.links == b.links == 8


async def test_both_ends_may_want_the_last_place(autojump_clock: object) -> None:
    async with pools(MemoryNetwork(1, default=SLOW), links=2, max_links=2) as (a, b, _, _):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(carry, a, b, b"there", 8 << 20)
            nursery.start_soon(carry, b, a, b"back", 8 << 20)
        assert a.links <= 2


# Faults


@pytest.mark.parametrize("seed", range(6))
async def test_a_lost_link_costs_its_unacknowledged_chunks_only(
    seed: int, autojump_clock: object
) -> None:
    world = MemoryNetwork(seed, default=SLOW)
    rng = random.Random(seed)
    sent = 0
    async with pools(world, links=3) as (a, b, side, _):

        def count(link: object, wire_bytes: int) -> None:
            nonlocal sent
            sent += wire_bytes

        async def lose() -> None:
            for _ in range(4):
                await trio.sleep(rng.uniform(0.2, 0.9))
                for link in side.links:
                    link._on_bytes = lambda out, _: count(None, out)
                alive = [link for link in side.links if not link.closed]
                if len(alive) > 1:
                    rng.choice(alive).abort("cut")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(lose)
            for tag in (b"1", b"2", b"3"):
                nursery.start_soon(carry, a, b, tag, (5 << 20) + 11)
    assert sent < 2 * (15 << 20)


@pytest.mark.parametrize("seed", range(8))
async def test_resets_and_stalls_everywhere(seed: int, autojump_clock: object) -> None:
    """Also of all links at once: the sender opens new ones, and nothing is lost."""
    settings = LinkSettings(
        latency_s=0.02,
        jitter_s=0.02,
        bandwidth_bytes_per_s=8e6,
        stall=0.02,
        split=0.1,
        stall_s=0.3,
    )
    world = MemoryNetwork(seed, default=settings)
    rng = random.Random(seed)
    async with pools(world, links=3) as (a, b, _, _), trio.open_nursery() as nursery:

        async def faults() -> None:
            for _ in range(3):
                await trio.sleep(rng.uniform(0.3, 1.0))
                world.reset_connections(*HOSTS)

        async with trio.open_nursery() as transfers:
            nursery.start_soon(faults)
            for number in range(4):
                ends = (a, b) if number % 2 else (b, a)
                transfers.start_soon(carry, *ends, b"%d" % number, (3 << 20) + number)
        nursery.cancel_scope.cancel()


async def test_all_links_lost_for_good_is_an_error_on_both_sides(autojump_clock: object) -> None:
    world = MemoryNetwork(1, default=SLOW)
    async with pools(world) as (a, b, side, _):
        errors = []

        async def expect(act: object, *args: object) -> None:
            with pytest.raises(PoolBroken) as caught:
                await act(*args)  # type: ignore[operator]
            errors.append(str(caught.value))

        def refuse() -> None:
            raise ConnectFailed("connection refused")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect, a.send, b"t", bytes(50 << 20))
            nursery.start_soon(expect, b.receive, b"t", memoryview(bytearray(50 << 20)))
            await trio.sleep(2)
            side.fail = refuse
            world.reset_connections(*HOSTS)
            began = trio.current_time()
        assert trio.current_time() - began <= LINKLESS_S + 1
        assert sorted(errors) == [
            "all links were lost",
            "no link to the peer can be kept: connection refused",
        ]
        with pytest.raises(PoolBroken):
            await a.send(b"u", b"")
        with pytest.raises(PoolBroken):
            await a.receive(b"u", memoryview(bytearray()))


async def test_a_pool_whose_other_end_leaves_fails_at_once(autojump_clock: object) -> None:
    async with (
        pools(MemoryNetwork(1, default=SLOW)) as (a, b, _, _),
        trio.open_nursery() as nursery,
    ):

        async def expect_broken() -> None:
            with pytest.raises(PoolBroken, match="the peer closed its pool"):
                await a.send(b"u", b"")

        async def expect_cancelled() -> None:
            with pytest.raises((TransferCancelled, PoolBroken)):  # STOP or BYE, as they come
                await a.send(b"t", bytes(50 << 20))

        nursery.start_soon(expect_broken)
        nursery.start_soon(expect_cancelled)
        with trio.move_on_after(2):
            await b.receive(b"t", memoryview(bytearray(50 << 20)))
        await b.close()
        assert trio.current_time() < 3


async def test_an_error_in_the_block_comes_out_bare(autojump_clock: object) -> None:
    with pytest.raises(KeyError):
        async with pools(MemoryNetwork(1)):
            raise KeyError


# Cancelling


@pytest.mark.parametrize("who", ["sender", "receiver"])
async def test_cancelling_one_transfer_disturbs_no_other(who: str, autojump_clock: object) -> None:
    async with pools(MemoryNetwork(1, default=SLOW), links=2) as (a, b, side, _):
        size = 4 << 20
        memory = bytearray(size)
        after = b""

        async def send() -> None:
            with trio.move_on_after(0.9 if who == "sender" else 60):
                if who == "sender":
                    await a.send(b"cancelled", content(size))
                else:
                    with pytest.raises(TransferCancelled):
                        await a.send(b"cancelled", content(size))

        async def receive() -> None:
            nonlocal after
            with trio.move_on_after(0.9 if who == "receiver" else 60):
                if who == "receiver":
                    await b.receive(b"cancelled", memoryview(memory))
                else:
                    with pytest.raises(TransferCancelled):
                        await b.receive(b"cancelled", memoryview(memory))
            after = bytes(memory)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(carry, a, b, b"other", size)
            nursery.start_soon(carry, b, a, b"back", size)
            nursery.start_soon(send)
            nursery.start_soon(receive)
        assert any(after), "cancelled before anything came: the test shows nothing"
        assert after != content(size)
        assert bytes(memory) == after  # not written after the call had ended
        assert all(not link.closed for link in side.links)
        await carry(a, b, b"cancelled", size)


async def test_sizes_that_differ_fail_both_calls_only(autojump_clock: object) -> None:
    async with pools(MemoryNetwork(1)) as (a, b, _, _):
        for _ in range(2):
            async with trio.open_nursery() as nursery:

                async def send() -> None:
                    with pytest.raises(TransferMismatch):
                        await a.send(b"t", bytes(10))

                nursery.start_soon(send)
                with pytest.raises(TransferMismatch):
                    await b.receive(b"t", memoryview(bytearray(11)))
        await carry(a, b, b"t", 10)


async def test_tags_share_a_link_fairly(autojump_clock: object) -> None:
    """A small region behind a large one does not wait for all of it."""
    async with pools(MemoryNetwork(1, default=SLOW), links=1) as (a, b, _, _):
        ends: dict[bytes, float] = {}

        async def timed(tag: bytes, size: int) -> None:
            await carry(a, b, tag, size)
            ends[tag] = trio.current_time()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(timed, b"large", 40 << 20)
            await trio.sleep(1)
            nursery.start_soon(timed, b"small", 2 << 20)
        assert ends[b"small"] < 3.5 < ends[b"large"]


async def test_wrong_use_is_refused(autojump_clock: object) -> None:
    async with pools(MemoryNetwork(1)) as (a, _, _, _), trio.open_nursery() as nursery:
        nursery.start_soon(a.send, b"t", b"x")
        nursery.start_soon(a.receive, b"t", memoryview(bytearray(1)))
        await trio.sleep(1)
        with pytest.raises(UsageError):
            await a.send(b"t", b"x")
        with pytest.raises(UsageError):
            await a.receive(b"t", memoryview(bytearray(1)))
        with pytest.raises(UsageError):
            await a.receive(b"u", memoryview(b"read-only"))
        with pytest.raises(UsageError):
            await a.send(bytes(65), b"x")
        with pytest.raises(UsageError):
            BulkPool(a._open_link, a._accept_link, max_links=9)
        nursery.cancel_scope.cancel()


# Hostile peers


def no_place(_header: bytes, size: int) -> memoryview:
    return memoryview(bytearray(size))


HOSTILE = {
    "never expected": lambda id_: [(ChunkHead(id_ + 1, 0, 3 * K), K)],
    "number zero": lambda _: [(ChunkHead(0, 0, 3 * K), K)],
    "off the grid": lambda id_: [(ChunkHead(id_, 1, 3 * K), K)],
    "behind the end": lambda id_: [(ChunkHead(id_, 3 * K, 3 * K), K)],
    "far behind the end": lambda id_: [(ChunkHead(id_, 2**63, 3 * K), K)],
    "overlapping": lambda id_: [(ChunkHead(id_, 0, 3 * K), K + 1)],
    "too short": lambda id_: [(ChunkHead(id_, 0, 3 * K), K - 1)],
    "another size": lambda id_: [(ChunkHead(id_, 0, 3 * K + 1), K)],
    "acknowledged, never sent": lambda _: [(Ack(1), 0)],
    "a payload where none belongs": lambda _: [(Ack(0), 1)],
    "too many tags": lambda _: [(Want(n + 1, 1, K, b"%d" % n), 0) for n in range(600)],
}


@pytest.mark.parametrize("how", HOSTILE)
async def test_a_peer_that_breaks_the_rules_loses_the_pool(
    how: str, autojump_clock: object
) -> None:
    async with hostile(MemoryNetwork(1)) as (pool, link, _):
        memory = bytearray(3 * K)
        async with trio.open_nursery() as nursery:

            async def receive() -> None:
                with pytest.raises(PoolBroken, match="broke the rules"):
                    await pool.receive(b"t", memoryview(memory))

            nursery.start_soon(receive)
            await link.receive(no_place)  # HELLO
            want = decode(await link.receive(no_place), 0)
            assert isinstance(want, Want)
            assert (want.size, want.tag) == (3 * K, b"t")
            with suppress(LinkClosed):
                for message, size in HOSTILE[how](want.id):
                    await link.send(encode(message), b"\xff" * size)
        assert not any(memory)


async def test_a_chunk_that_comes_twice_and_differs_is_noticed(autojump_clock: object) -> None:
    async with hostile(MemoryNetwork(1)) as (pool, link, _):
        memory = bytearray(3 * K)
        async with trio.open_nursery() as nursery:

            async def receive() -> None:
                with pytest.raises(PoolBroken, match="came twice, and differs"):
                    await pool.receive(b"t", memoryview(memory))

            nursery.start_soon(receive)
            await link.send(encode(Stop(9)), b"")  # about nothing: ignored
            await link.send(encode(Gone(9, Reason.CANCELLED)), b"")
            await trio.sleep(1)
            for fill in (b"a", b"a", b"b"):
                await link.send(encode(ChunkHead(1, K, 3 * K)), fill * K)
        assert bytes(memory) == bytes(K) + b"a" * K + bytes(K)


async def test_a_peer_that_never_acknowledges_is_given_up(autojump_clock: object) -> None:
    async with hostile(MemoryNetwork(1)) as (pool, link, other), trio.open_nursery() as nursery:

        async def silent(silent_link: object) -> None:
            with suppress(LinkClosed):
                while True:
                    await silent_link.receive(no_place)  # type: ignore[attr-defined]

        async def silent_to_all() -> None:
            while True:
                link = await other.accept()
                await link.send(encode(Hello()), b"")
                nursery.start_soon(silent, link)

        nursery.start_soon(silent_to_all)
        nursery.start_soon(silent, link)
        await link.send(encode(Want(1, 9 * K, K, b"t")), b"")
        began = trio.current_time()
        with pytest.raises(PoolBroken, match="no link to the peer can be kept"):
            await pool.send(b"t", bytes(9 * K))
        assert trio.current_time() - began < (BARREN_LINKS + 1) * (STALL_S + 1)
        nursery.cancel_scope.cancel()


async def test_a_peer_that_does_not_greet_is_given_up(autojump_clock: object) -> None:
    async with hostile(MemoryNetwork(1)) as (pool, link, _):
        link.abort()
        began = trio.current_time()
        with pytest.raises(PoolBroken):
            await pool.send(b"t", b"x")
        assert trio.current_time() - began < (BARREN_LINKS + 1) * (HELLO_S + 1)


# With endpoints


@pytest.mark.parametrize("who", [0, 1])
async def test_pools_of_two_nodes(who: int, autojump_clock: object) -> None:
    world = MemoryNetwork(1, default=LinkSettings(latency_s=0.01))
    async with nodes(world, 2) as ends:
        peer = await ends[0].connect(ends[1].addresses)
        await trio.sleep(1)
        back = ends[1].peers[ends[0].node_id]
        async with (
            open_bulk_pool(ends[0], peer, b"run/1", links=8) as one,
            open_bulk_pool(ends[1], back, b"run/1", links=8) as other,
        ):
            pair = (one, other) if who == 0 else (other, one)
            await carry(*pair, b"tensor", 9 << 20)
            assert one.links == 8
            async with trio.open_nursery() as nursery:

                async def lost() -> None:
                    with pytest.raises(PoolBroken, match="the peer was lost"):
                        await pair[1].receive(b"x", memoryview(bytearray(9)))

                nursery.start_soon(lost)
                await trio.sleep(1)
                world.kill_host("10.0.0.1")
        await trio.sleep(1)
        assert world.open_connections == 0


async def test_a_pool_that_nobody_meets(autojump_clock: object) -> None:
    async with nodes(MemoryNetwork(1), 2) as (a, b):
        peer = await a.connect(b.addresses)
        async with open_bulk_pool(a, peer, b"alone") as pool:
            with pytest.raises(PoolBroken):
                await pool.send(b"t", b"x")
        with pytest.raises(PeerLost):
            await a.accept_bulk(a.node_id, b"")


@pytest.mark.real
@pytest.mark.parametrize("links", [None, 4])
async def test_pools_over_tcp(links: int | None) -> None:
    network, listen = TcpNetwork(), [Address("127.0.0.1", 0)]
    with trio.fail_after(60):
        async with (
            node(network, 1, listen=listen) as a,
            node(network, 2, listen=listen) as b,
        ):
            peer = await a.connect(b.addresses, expected=b.node_id)
            while a.node_id not in b.peers:
                await trio.lowlevel.checkpoint()
            async with (
                open_bulk_pool(a, peer, b"x", links=links) as one,
                open_bulk_pool(b, b.peers[a.node_id], b"x", links=links) as other,
                trio.open_nursery() as nursery,
            ):
                for number in range(3):
                    nursery.start_soon(carry, one, other, b"%d" % number, (20 << 20) + number)
                nursery.start_soon(carry, other, one, b"back", 20 << 20)
