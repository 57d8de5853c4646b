"""Members that attack: floods of streams, pings and resets, announced gigabytes, bombs, and peers that never read."""

from contextlib import AsyncExitStack

import msgpack
import pytest
import trio

from tests.attacks.rig import GROWTH_BYTES, OPEN_TO_ALL, PATIENCE_S, friend, hostile, victim
from transport.errors import RemoteCallFailed
from transport.secure.intro import Intro
from transport.secure.record import RecordKind
from transport.streams import frames
from transport.streams.frames import Priority

pytestmark = pytest.mark.real

MIB = 1 << 20
SOON = {**OPEN_TO_ALL, "heartbeat_s": 0.3, "silence_s": 1.0}
"""A silent peer is given up sooner than usual, which only makes the tests shorter."""


def stream(number: int, priority: Priority = Priority.NORMAL) -> int:
    return frames.stream_id(number, priority, opened_by_responder=False)


async def test_a_flood_of_streams() -> None:
    async with victim(limits=OPEN_TO_ALL) as target, friend(target):
        before = await target.about()
        async with hostile(target.address) as member:
            with trio.move_on_after(PATIENCE_S) as scope:
                try:
                    for number in range(1, 20_000, 50):
                        await member.send(
                            *(frames.Open(stream(n), "deaf") for n in range(number, number + 50))
                        )
                except trio.BrokenResourceError:
                    pass
            assert not scope.cancelled_caught
            during = await target.about()
            assert during["tasks"] - before["tasks"] <= 2 * 256 + 20
            assert during["rss"] - before["rss"] <= GROWTH_BYTES


async def test_streams_opened_and_reset_at_once_do_not_gather_tasks() -> None:
    async with victim(limits=OPEN_TO_ALL) as target, friend(target):
        before = await target.about()
        async with hostile(target.address) as member:
            try:
                for number in range(1, 20_000, 25):
                    pairs = [
                        frame
                        for n in range(number, number + 25)
                        for frame in (frames.Open(stream(n), "deaf"), frames.Reset(stream(n), 1))
                    ]
                    await member.send(*pairs)
            except trio.BrokenResourceError:
                pass
            during = await target.about()
            assert during["tasks"] - before["tasks"] <= 2 * 256 + 20
            assert during["rss"] - before["rss"] <= GROWTH_BYTES


FRAMES = {
    "ping": frames.Ping(7),
    "pong": frames.Pong(7),
    "credit": frames.ClassCredit(Priority.NORMAL, 1),
    "reset": frames.Reset(stream(5), 1),
    "data": frames.Data(stream(5), memoryview(b"")),
}


async def test_floods_of_frames_that_ask_for_work() -> None:
    async with victim(limits=OPEN_TO_ALL) as target, friend(target) as peer:
        before = await target.about()
        for name, frame in FRAMES.items():
            async with hostile(target.address) as member:
                with trio.move_on_after(1):
                    try:
                        for _ in range(60):
                            await member.send(*([frame] * 1000))
                    except trio.BrokenResourceError:
                        pass  # hung up on: fine as well
                assert await peer.call("echo", b"meanwhile") == b"meanwhile"
                during = await target.about()
                assert during["rss"] - before["rss"] <= GROWTH_BYTES, name


async def test_a_bulk_record_on_a_control_connection_ends_it() -> None:
    async with victim(limits=OPEN_TO_ALL) as target, friend(target):
        for kind in (RecordKind.BULK_HEAD, RecordKind.BULK_DATA):
            async with hostile(target.address) as member:
                await member.raw.send_all(member.seal(bytes(100), kind))
                with trio.fail_after(PATIENCE_S):
                    await member.goodbye()


async def test_a_record_that_announces_gigabytes_ends_the_connection() -> None:
    async with victim(limits={**OPEN_TO_ALL, "silence_s": 20.0}) as target, friend(target):
        before = await target.about()
        for header in (b"\xff\xff\xff\xff\0", b"\x80\0\0\0\0", b"\0\x10\0\1\0"):
            async with hostile(target.address) as member:
                await member.raw.send_all(header)
                with trio.fail_after(10):  # at once, not after silence
                    await member.goodbye()
        assert (await target.until(record_refused=3))["rss"] - before["rss"] <= 8 * MIB


async def test_a_record_of_a_mebibyte_that_never_comes_costs_what_has_come() -> None:
    async with victim(limits=SOON) as target, friend(target):
        before = await target.about()
        async with trio.open_nursery() as nursery:

            async def promise(number: int) -> None:
                async with hostile(target.address, 100 + number) as member:
                    await member.raw.send_all(MIB.to_bytes(4, "big") + b"\0")
                    with trio.fail_after(PATIENCE_S):
                        await member.goodbye()  # silent for too long

            for number in range(20):
                nursery.start_soon(promise, number)
            while (during := await target.about())["peers"] < 21:
                await trio.sleep(0.02)
            assert during["rss"] - before["rss"] <= 20 * MIB


async def test_more_than_the_window_ends_the_connection_with_the_reason() -> None:
    async with (
        victim(limits=OPEN_TO_ALL) as target,
        friend(target),
        hostile(target.address) as member,
    ):
        await member.send(frames.Open(stream(1), "deaf"))
        with trio.fail_after(PATIENCE_S):
            try:
                for _ in range(20):
                    await member.send(frames.Data(stream(1), memoryview(bytes(60_000))))
            except trio.BrokenResourceError:
                pass
            assert "credit" in await member.goodbye()


BOMBS = {
    "array of 4 Gi": b"\xdd\xff\xff\xff\xff",
    "map of 4 Gi": b"\xdf\xff\xff\xff\xff",
    "text of 4 GiB": b"\xdb\xff\xff\xff\xff",
    "bytes of 4 GiB": b"\xc6\xff\xff\xff\xff",
    "extension of 4 GiB": b"\xc9\xff\xff\xff\xff\0",
    "empty maps": msgpack.packb([[{}] * 1000] * 65)[:65536],
    "nested arrays": b"\x91" * 60_000 + b"\xc0",
    "nested maps": b"\x81\xa1a" * 20_000 + b"\xc0",
    "arrays of arrays": msgpack.packb([[[]] * 1024] * 60),
    "a timestamp": msgpack.packb(msgpack.Timestamp(0, 0)),
    "the same key twice": b"\x82\xa1a\0\xa1a\0",
}


async def test_bombs_in_messages() -> None:
    async with victim(limits=OPEN_TO_ALL) as target, friend(target) as peer:
        before = await target.about()
        for name, bomb in BOMBS.items():
            with pytest.raises(RemoteCallFailed):
                await peer.call("decode", bomb[:65536])
            assert len(bomb) <= 65536 or name == "arrays of arrays", name
        after = await target.about()
        assert after["rss"] - before["rss"] <= 32 * MIB


async def test_a_call_longer_than_a_message_is_refused_on_the_way() -> None:
    async with (
        victim(limits=OPEN_TO_ALL) as target,
        friend(target),
        hostile(target.address) as member,
    ):
        await member.send(frames.Open(stream(1), "echo"))
        for _ in range(3):
            await member.send(frames.Data(stream(1), memoryview(bytes(30_000))))
        with trio.fail_after(PATIENCE_S):
            while (frame := await member.next_frame()) is not None:
                if isinstance(frame, frames.Reset):
                    break
            assert frame == frames.Reset(stream(1), frames.ResetCode.MESSAGE_TOO_LARGE)


async def test_a_member_that_never_reads_is_dropped_and_holds_little() -> None:
    async with victim(limits=SOON) as target, friend(target):
        before = await target.about()
        async with hostile(target.address) as member:
            for number in range(1, 65):
                await member.send(
                    frames.Open(stream(number), "flow"), frames.Credit(stream(number), 2**29)
                )
            await member.send(frames.ClassCredit(Priority.NORMAL, 2**29))
            with trio.fail_after(PATIENCE_S):
                while (await target.about())["peers"] == 2:  # it does not answer pings either
                    assert (await target.about())["rss"] - before["rss"] <= GROWTH_BYTES
                    await trio.sleep(0.1)


async def test_bulk_links_that_nobody_asked_for() -> None:
    async with (
        victim(limits=OPEN_TO_ALL) as target,
        friend(target),
        hostile(target.address),
        AsyncExitStack() as links,
    ):
        before = await target.about()
        for number in range(60):
            intro = Intro("bulk", "", (), number.to_bytes(4, "big"))
            await links.enter_async_context(hostile(target.address, intro=intro))
        during = await target.until(refused_bulk_pending=44)
        assert during["rss"] - before["rss"] <= GROWTH_BYTES
        assert during["descriptors"] - before["descriptors"] <= 16
