"""A stream over an encrypted, multiplexed connection keeps every rule of a trio stream."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio
from trio.testing import check_half_closeable_stream, wait_all_tasks_blocked

from tests.transport.nodes import address, nodes
from transport.errors import (
    EndOfStream,
    MalformedMessage,
    MessageTooLarge,
    PeerLost,
    StreamClosed,
    StreamReset,
)
from transport.simulated.memory import LinkSettings, MemoryNetwork
from transport.streams.frames import Priority, ResetCode
from transport.streams.stream import Stream


class Pairs:
    """Makes connected stream pairs between two endpoints."""

    def __init__(self, world: MemoryNetwork) -> None:
        self.world = world
        self._streams, self._arrivals = trio.open_memory_channel[Stream](10)

    async def start(self, stack: AsyncExitStack) -> None:
        self.a, self.b = await stack.enter_async_context(nodes(self.world, 2))
        self.b.serve("test", self._hold)
        self.peer = await self.a.connect([address(2)])

    async def _hold(self, stream: Stream) -> None:
        await self._streams.send(stream)
        await trio.sleep_forever()

    async def pair(self) -> tuple[Stream, Stream]:
        ours = await self.peer.open_stream("test")
        return ours, await self._arrivals.receive()

    async def clogged(self) -> tuple[Stream, Stream]:
        ours, theirs = await self.pair()
        with trio.move_on_after(5):
            await ours.send_all(bytes(10_000_000))
        with trio.move_on_after(5):
            await theirs.send_all(bytes(10_000_000))
        return ours, theirs


@asynccontextmanager
async def pairs(world: MemoryNetwork | None = None) -> AsyncIterator[Pairs]:
    async with AsyncExitStack() as stack:
        made = Pairs(MemoryNetwork(1) if world is None else world)
        await made.start(stack)
        yield made


async def test_trios_own_checks_pass(autojump_clock: object) -> None:
    async with pairs() as made:
        await check_half_closeable_stream(made.pair, made.clogged)


async def test_trios_own_checks_pass_on_a_slow_and_split_network(autojump_clock: object) -> None:
    settings = LinkSettings(latency_s=0.01, jitter_s=0.005, split=0.2, stall=0.01)
    async with pairs(MemoryNetwork(2, default=settings)) as made:
        await check_half_closeable_stream(made.pair, None)


async def test_messages_keep_their_borders_and_end_cleanly(autojump_clock: object) -> None:
    async with pairs() as made:
        ours, theirs = await made.pair()
        messages = [b"", b"a", bytes(65536), b"last"]

        async def send() -> None:
            for message in messages:
                await ours.send_message(message)
            await ours.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            for message in messages:
                assert await theirs.receive_message() == message
            with pytest.raises(EndOfStream):
                await theirs.receive_message()
        with pytest.raises(MessageTooLarge):
            await theirs.send_message(bytes(65537))


@pytest.mark.parametrize("bad", [b"\xff\xff\xff\xff", b"\0\0\0\5abc"], ids=["long", "cut"])
async def test_bad_framing_is_a_malformed_message(bad: bytes, autojump_clock: object) -> None:
    async with pairs() as made:
        ours, theirs = await made.pair()
        await ours.send_all(bad)
        await ours.send_eof()
        with pytest.raises(MalformedMessage):
            await theirs.receive_message()


async def test_a_cancelled_receive_message_loses_nothing(autojump_clock: object) -> None:
    async with pairs() as made:
        ours, theirs = await made.pair()
        await ours.send_all(b"\0\0\0\4ab")
        with trio.move_on_after(1) as scope:
            await theirs.receive_message()
        assert scope.cancelled_caught
        await ours.send_all(b"cd")
        assert await theirs.receive_message() == b"abcd"


async def test_send_all_cancelled_before_anything_was_taken_sends_nothing(
    autojump_clock: object,
) -> None:
    async with pairs() as made:
        ours, theirs = await made.pair()
        with trio.CancelScope() as scope:
            scope.cancel()
            await ours.send_all(b"never")
        await ours.send_all(b"x")
        assert await theirs.receive_some() == b"x"


async def test_a_message_cancelled_halfway_is_completed_by_the_next_send(
    autojump_clock: object,
) -> None:
    async with pairs() as made:
        ours, theirs = await made.pair()
        filler = 0
        with trio.move_on_after(5):
            while True:
                await ours.send_message(bytes(60_000))
                filler += 1
        received: list[bytes] = []

        async def read() -> None:
            received.extend([message async for message in messages_of(theirs)])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await ours.send_message(b"after")
            await ours.send_eof()
        assert received[-1] == b"after"
        assert all(message == bytes(60_000) for message in received[:-1])
        assert len(received) in (filler + 1, filler + 2)


async def messages_of(stream: Stream) -> AsyncIterator[bytes]:
    while True:
        try:
            yield await stream.receive_message()
        except EndOfStream:
            return


async def test_a_stream_closed_amid_a_message_is_reset_not_ended(autojump_clock: object) -> None:
    async with pairs() as made:
        ours, theirs = await made.pair()
        with trio.move_on_after(5):
            while True:
                await ours.send_message(bytes(60_001))
        await ours.aclose()
        with pytest.raises(StreamReset):
            [_ async for _ in messages_of(theirs)]


async def test_reset_tells_the_code_and_drops_what_was_not_read(autojump_clock: object) -> None:
    async with pairs() as made:
        ours, theirs = await made.pair()
        await ours.send_all(b"unread")
        await trio.sleep(1)
        ours.reset(ResetCode.CANCELLED)
        await trio.sleep(1)
        with pytest.raises(StreamReset) as caught:
            await theirs.receive_some()
        assert caught.value.reset_code == ResetCode.CANCELLED
        with pytest.raises(StreamClosed):
            await ours.send_all(b"x")


async def test_an_answer_arrives_although_the_upload_goes_on(autojump_clock: object) -> None:
    """The server answers early and closes; TCP would lose the answer, or part of it."""
    slow = LinkSettings(latency_s=0.02, bandwidth_bytes_per_s=4e6)
    async with pairs(MemoryNetwork(1, default=slow)) as made:
        ours, theirs = await made.pair()
        answer = bytes(range(256)) * 4000
        got: list[bytes] = []

        async def upload() -> None:
            while True:
                await ours.send_all(bytes(100_000))

        async def upload_until_stopped() -> None:
            with pytest.raises(StreamReset):
                await upload()

        async def respond() -> None:
            await theirs.receive_some()
            await theirs.send_all(answer)
            await theirs.aclose()

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(upload_until_stopped)
                nursery.start_soon(respond)
                while part := await ours.receive_some():
                    got.append(part)
                    await trio.sleep(0.01)
        assert b"".join(got) == answer
        await ours.aclose()


async def test_a_reader_that_stops_bounds_what_the_writer_costs(autojump_clock: object) -> None:
    async with pairs() as made:
        ours, _theirs = await made.clogged()
        statistics = made.peer.primary.mux.statistics()
        assert statistics.queued_bytes <= 256 * 1024
        assert statistics.unconsumed_bytes <= 256 * 1024
        other, far = await made.pair()  # nobody else is held up
        await other.send_all(b"through")
        assert await far.receive_some() == b"through"
        await ours.aclose()


async def test_urgent_overtakes_normal(autojump_clock: object) -> None:
    slow = LinkSettings(bandwidth_bytes_per_s=100_000)
    async with pairs(MemoryNetwork(1, default=slow, window_bytes=65536)) as made:
        normal, _ = await made.pair()
        urgent = await made.peer.open_stream("test", priority=Priority.URGENT)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(normal.send_all, bytes(400_000))
            await trio.sleep(0.1)
            start = trio.current_time()
            await urgent.send_all(b"now")
            far = await made._arrivals.receive()
            assert await far.receive_some() == b"now"
            # Behind at most two records and the window of the network, not behind 256 KiB.
            assert trio.current_time() - start < 2.5
            nursery.cancel_scope.cancel()


async def test_losing_the_peer_wakes_everybody_with_the_reason(autojump_clock: object) -> None:
    async with pairs(MemoryNetwork(1, default=LinkSettings(latency_s=0.1))) as made:
        reader, _ = await made.pair()
        writer, _ = await made.clogged()

        async def expect_lost(operation: object, *args: object) -> None:
            with pytest.raises(PeerLost, match="reset") as caught:
                await operation(*args)  # type: ignore[operator]
            if isinstance(operation.__self__, Stream):  # type: ignore[attr-defined]
                assert isinstance(caught.value, trio.BrokenResourceError)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_lost, reader.receive_some)
            nursery.start_soon(expect_lost, writer.send_all, b"x")
            nursery.start_soon(expect_lost, made.peer.call, "test", b"")
            nursery.start_soon(expect_lost, made.peer.ping)
            await wait_all_tasks_blocked()
            made.world.reset_connections("10.0.0.1", "10.0.0.2")
        assert made.peer.closed.is_set()
        await expect_lost(reader.receive_some)
        await expect_lost(reader.send_all, b"x")
        await expect_lost(made.peer.open_stream, "test")


async def test_bytes_that_arrived_before_the_loss_can_be_read(autojump_clock: object) -> None:
    async with pairs() as made:
        ours, theirs = await made.pair()
        await theirs.send_all(b"precious")
        await trio.sleep(1)
        made.world.reset_connections("10.0.0.1", "10.0.0.2")
        await trio.sleep(1)
        assert await ours.receive_some() == b"precious"
        with pytest.raises(PeerLost):
            await ours.receive_some()


async def test_a_message_is_tried_only_where_nothing_is_in_the_way(autojump_clock: object) -> None:
    async with pairs() as made:
        ours, theirs = await made.pair()
        with pytest.raises(MessageTooLarge):
            ours.try_send_message(bytes(65537))
        assert ours.try_send_message(b"first")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ours.send_message, b"second")
            await wait_all_tasks_blocked()
            assert ours.try_send_message(b"third")
        assert [await theirs.receive_message() for _ in range(3)] == [b"first", b"second", b"third"]

        # Without a reader it ends with a refusal, never with half a message.
        count = 0
        while ours.try_send_message(b"%d" % count + bytes(60_000)):
            count += 1
            await wait_all_tasks_blocked()
        assert count >= 4
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ours.send_message, bytes(65536))
            await wait_all_tasks_blocked()
            assert not ours.try_send_message(b"past the one that waits")
            for number in range(count):
                assert (await theirs.receive_message()).startswith(b"%d" % number)
            assert await theirs.receive_message() == bytes(65536)
        assert ours.try_send_message(b"again")
        await ours.send_eof()
        assert not ours.try_send_message(b"after the end")
        theirs.reset(ResetCode.CANCELLED)


async def test_bytes_leave_before_the_sender_lets_others_run(autojump_clock: object) -> None:
    async with pairs() as made:
        ours, theirs = await made.pair()
        await ours.send_message(b"opens")
        assert await theirs.receive_message() == b"opens"
        with trio.CancelScope() as scope:
            scope.cancel()
            await ours.send_message(b"never")
        assert scope.cancelled_caught
        await ours.send_message(b"then")
        assert await theirs.receive_message() == b"then"
