"""Transfers that are sealed part by part, as what they carry arrives: over a socket and through shared memory."""

from __future__ import annotations

import itertools
import os

import pytest
import trio

from tests.transport.test_bulk_shared import pair, share, take
from transport.bulk.link import MAX_PAYLOAD_BYTES
from transport.errors import UsageError
from transport.secure.record import BULK_RECORD_BYTES

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="Linux only")

PAYLOAD = os.urandom(MAX_PAYLOAD_BYTES)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("cuts", [(), (1,), (BULK_RECORD_BYTES,), (0, 5, 70_000, 70_000)])
async def test_parts_arrive_as_one_transfer(cuts: tuple[int, ...], shared: bool):
    async with pair() as (sender, receiver):
        if shared:
            await share(sender, receiver)
        assert sender.try_begin(b"head", len(PAYLOAD))
        bounds = [0, *cuts, len(PAYLOAD)]
        for start, stop in itertools.pairwise(bounds):
            sender.put(PAYLOAD[start:stop])
        taken: list[tuple[bytes, bytes]] = []

        async def receive() -> None:
            taken.append(await take(receiver))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            sender.end()
            await sender.flush()
        assert taken == [(b"head", PAYLOAD)]


async def test_what_comes_in_parts_can_go_on_in_parts():
    """As in a ring: the first half is on its way before the second has come."""
    async with pair() as (sender, receiver), pair() as (onward, last):
        await share(onward, last)
        assert sender.try_send(b"h", PAYLOAD[: 2 * 1000])
        header, size = await receiver.receive_head()
        assert onward.try_begin(header, size)
        piece = bytearray(size)
        await receiver.receive_data(memoryview(piece))
        onward.put(memoryview(piece)[:1000])
        onward.put(memoryview(piece)[1000:])
        onward.end()
        assert await take(last) == (b"h", PAYLOAD[:2000])


async def test_while_a_transfer_is_begun_there_is_no_other():
    async with pair() as (sender, _):
        assert sender.try_begin(b"", 10)
        assert sender.busy
        assert not sender.try_begin(b"", 1)
        assert not sender.try_send(b"", b"x")
        with pytest.raises(UsageError):
            await sender.send(b"", b"x")


async def test_neither_more_nor_less_than_was_announced():
    async with pair() as (sender, _):
        with pytest.raises(UsageError):
            sender.put(b"nothing is begun")
        assert sender.try_begin(b"", 10)
        with pytest.raises(UsageError):
            sender.put(bytes(11))
        sender.put(bytes(9))
        with pytest.raises(UsageError, match="1 bytes"):
            sender.end()
        sender.put(bytes(1))
        sender.end()
        with pytest.raises(UsageError):
            sender.end()


async def test_a_slot_that_is_not_free_begins_nothing():
    async with pair() as (sender, receiver):
        await share(sender, receiver)
        sent = 0
        while sender.try_begin(b"", 1):
            sender.put(b"x")
            sender.end()
            sent += 1
        for _ in range(sent):
            assert await take(receiver) == (b"", b"x")
        assert sender.try_begin(b"", 1), "they were emptied"
