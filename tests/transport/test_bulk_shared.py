"""Bulk links whose records pass through shared memory: two ends in one process, over real sockets."""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.transport.pool_links import result
from transport.address import Address
from transport.bulk import shared
from transport.bulk.link import MAX_PAYLOAD_BYTES, BulkLink, LinkClosed
from transport.errors import UsageError
from transport.secure.processor import can_use_aegis
from transport.tcp import TcpStream

HERE = Address("127.0.0.1", 1)
pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="Linux only")


def ignore(_sent: int, _received: int) -> None:
    pass


@asynccontextmanager
async def pair(there: Address = HERE) -> AsyncIterator[tuple[BulkLink, BulkLink]]:
    one, other = socket.socketpair()
    for sock in (one, other):
        sock.setblocking(False)
    aegis = can_use_aegis()
    sender, receiver = (
        BulkLink(TcpStream(sock, *ends), result("x", role, aegis=aegis), ignore)
        for sock, ends, role in (
            (one, (HERE, there), "initiator"),
            (other, (there, HERE), "responder"),
        )
    )
    try:
        with trio.fail_after(10):
            yield sender, receiver
    finally:
        sender.abort()
        receiver.abort()


async def share(sender: BulkLink, receiver: BulkLink) -> tuple[bool, bool]:
    answers: dict[str, bool] = {}

    async def accept() -> None:
        answers["receiver"] = await receiver.accept_memory()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        answers["sender"] = await sender.offer_memory()
    return answers["sender"], answers["receiver"]


async def take(link: BulkLink) -> tuple[bytes, bytes]:
    held = bytearray()

    def sink(_header: bytes, size: int) -> memoryview:
        held.extend(bytes(size))
        return memoryview(held)

    return await link.receive(sink), bytes(held)


async def test_transfers_pass_in_order_and_more_of_them_than_there_are_slots():
    async with pair() as (sender, receiver):
        assert await share(sender, receiver) == (True, True)
        sent = [
            (b"%d" % n, bytes([n]) * size)
            for n, size in enumerate((0, 1, 700_000, shared.MAX_SHARED_BYTES) * 3)
        ]

        async def send() -> None:
            for header, payload in sent:
                await sender.send(header, payload)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            assert [await take(receiver) for _ in sent] == sent


@pytest.mark.parametrize("through_memory", [False, True])
async def test_a_transfer_may_be_larger_where_no_connection_carries_it(through_memory: bool):
    async with pair() as (sender, receiver):
        assert sender.largest == receiver.largest == MAX_PAYLOAD_BYTES
        if through_memory:
            await share(sender, receiver)
            assert sender.largest == receiver.largest == shared.MAX_SHARED_BYTES
        too_much = bytes(sender.largest + 1)
        with pytest.raises(UsageError, match="over the limit"):
            await sender.send(b"", too_much)
        await sender.send(b"", b"and goes on")
        assert await take(receiver) == (b"", b"and goes on")


async def test_a_larger_transfer_than_a_link_carries_ends_it_when_it_is_announced(
    monkeypatch: pytest.MonkeyPatch,
):
    async with pair() as (sender, receiver):
        await sender.send(b"", bytes(100))
        monkeypatch.setattr("transport.bulk.link.MAX_PAYLOAD_BYTES", 99)
        with pytest.raises(LinkClosed, match="100 bytes announced, limit 99"):
            await receiver.receive_head()


async def test_what_can_be_sent_without_waiting_is_as_much_as_there_are_slots():
    async with pair() as (sender, receiver):
        await share(sender, receiver)
        taken = [sender.try_send(b"%d" % n, b"x" * 1000) for n in range(shared.SLOTS + 2)]
        assert taken == [True] * shared.SLOTS + [False] * 2
        for n in range(shared.SLOTS):
            assert await take(receiver) == (b"%d" % n, b"x" * 1000)
        assert sender.try_send(b"again", b"")
        assert await take(receiver) == (b"again", b"")


async def test_nothing_of_a_payload_crosses_the_socket():
    async with pair() as (sender, receiver):
        await share(sender, receiver)
        await sender.send(b"", b"z" * 100_000)
        waiting = receiver._raw._sock.recv(1 << 20, socket.MSG_PEEK)
        assert len(waiting) == 4
        assert (await take(receiver))[1] == b"z" * 100_000


async def test_what_lies_in_the_memory_is_sealed_and_a_changed_bit_ends_the_link():
    async with pair() as (sender, receiver):
        await share(sender, receiver)
        slot = sender._lane_out.slot
        await sender.send(b"head", b"secret" * 1000)
        assert b"secret" not in bytes(slot)
        slot[3000] ^= 1
        target = bytearray(6000)
        with pytest.raises(LinkClosed, match="authentication"):
            await receiver.receive(lambda _h, _n: memoryview(target))
        assert target == bytes(6000)


@pytest.mark.parametrize("notice", [0, 5, shared.SLOT_BYTES + 1, 2**32 - 1])
async def test_a_wrong_notice_ends_the_link(notice: int):
    async with pair() as (sender, receiver):
        await share(sender, receiver)
        await sender._raw.send_all(notice.to_bytes(4, "big"))
        with pytest.raises(LinkClosed, match="notice"):
            await take(receiver)


async def test_a_record_that_ends_behind_its_slots_content_ends_the_link():
    async with pair() as (sender, receiver):
        await share(sender, receiver)
        assert sender.try_begin(b"", 100)
        sender.put(b"x" * 100)
        sender._complete()
        await sender._raw.send_all((60).to_bytes(4, "big"))
        with pytest.raises(LinkClosed, match="cut"):
            await take(receiver)


async def test_the_end_of_the_other_process_is_noticed_on_both_sides():
    async with pair() as (sender, receiver):
        await share(sender, receiver)
        sender.abort()
        with pytest.raises(LinkClosed):
            await take(receiver)
    async with pair() as (sender, receiver):
        await share(sender, receiver)
        for _ in range(shared.SLOTS):
            await sender.send(b"", b"")
        receiver.abort()
        with pytest.raises(LinkClosed):
            await sender.send(b"", b"")


async def test_the_receiving_end_sends_nothing():
    async with pair() as (sender, receiver):
        await share(sender, receiver)
        with pytest.raises(UsageError, match="only receives"):
            await receiver.send(b"", b"")


async def test_between_two_machines_nothing_is_offered():
    async with pair(Address("192.0.2.1", 1)) as (sender, receiver):
        assert await share(sender, receiver) == (False, False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sender.send, b"h", b"x" * 600_000)
            assert await take(receiver) == (b"h", b"x" * 600_000)
        assert sender.try_send(b"now", b"y")
        assert await take(receiver) == (b"now", b"y")


async def test_without_such_memory_the_link_goes_on_as_it_was(monkeypatch):
    def none() -> shared.Offer:
        raise shared.NotShared("not here")

    monkeypatch.setattr(shared, "Offer", none)
    async with pair() as (sender, receiver):
        assert await share(sender, receiver) == (False, False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sender.send, b"h", b"x")
            assert await take(receiver) == (b"h", b"x")


async def test_a_peer_that_declines_is_sent_to_over_the_network(monkeypatch):
    def declined(_path: bytes, _word: bytes) -> shared.Lane:
        raise shared.NotShared("another user")

    monkeypatch.setattr(shared, "accept", declined)
    async with pair() as (sender, receiver):
        assert await share(sender, receiver) == (False, False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sender.send, b"h", b"x")
            assert await take(receiver) == (b"h", b"x")


# ---- what a peer may make us open ----------------------------------------------------------------


def refused(path: bytes, word: bytes = bytes(32)) -> str:
    with pytest.raises(shared.NotShared) as caught:
        shared.accept(path, word)
    return str(caught.value)


@pytest.mark.parametrize(
    "path",
    [
        b"",
        b"/etc/passwd",
        b"/proc/self/fd/0",
        b"/proc/1/fd/../../../etc/passwd",
        b"/proc/1/mem",
        b"/proc/1/fd/",
        b"/proc/1/fd/1/2",
        b"/proc/" + b"1" * 60 + b"/fd/1",
        b"\0",
    ],
)
def test_only_a_descriptor_of_a_process_is_opened(path: bytes):
    assert "not a path" in refused(path)


def test_a_descriptor_that_is_something_else_is_not_opened():
    for descriptor in (os.open(os.devnull, os.O_RDONLY), os.memfd_create("other")):
        assert "something else" in refused(f"/proc/{os.getpid()}/fd/{descriptor}".encode())
        os.close(descriptor)
    assert "cannot open" in refused(f"/proc/{os.getpid()}/fd/99999".encode())


@pytest.mark.parametrize(
    ("size", "seals", "reason"),
    [
        (mmap.PAGESIZE, "all", "another size"),
        (shared.TOTAL_BYTES, "none", "cut off"),
        (shared.TOTAL_BYTES, "all", "not the memory"),
    ],
)
def test_memory_of_another_make_is_refused(size: int, seals: str, reason: str):
    descriptor = os.memfd_create("noded-bulk", os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size)
        if seals == "all":
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, shared._wanted_seals())
        assert reason in refused(f"/proc/{os.getpid()}/fd/{descriptor}".encode(), b"w" * 32)
    finally:
        os.close(descriptor)


def test_the_memory_cannot_shrink_under_the_peer():
    offer = shared.Offer()
    with pytest.raises(PermissionError):
        os.ftruncate(offer._descriptor, 0)
    offer.close()


def descriptors() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


def test_no_descriptor_is_left_open():
    before = descriptors()
    offer = shared.Offer()
    lane = shared.accept(offer.path, offer.lane.word)
    refused(offer.path, b"w" * 32)
    offer.close()
    offer.lane.slot[:3] = b"abc"
    assert bytes(lane.slot[:3]) == b"abc"
    del offer, lane
    assert len(descriptors()) <= len(before)
