"""A pool whose one end serves on demand: it hears what is expected, and sends or refuses it."""

from __future__ import annotations

import pytest
import trio

from tests.transport.pool_links import Side
from tests.transport.test_bulk_pool import K, content
from transport.bulk.messages import Gone, Reason, Want, decode
from transport.bulk.pool import BulkPool, PoolBroken, TransferCancelled, running
from transport.bulk.transfers import Transfers
from transport.simulated.memory import MemoryNetwork


async def test_what_is_expected_is_heard_sent_and_refused(autojump_clock: object) -> None:
    sides = [Side(MemoryNetwork(1), index) for index in (0, 1)]
    sides[1].world = sides[0].world
    for side in sides:
        await side.start()
    heard: list[tuple[bytes, int]] = []
    server = BulkPool(
        sides[0].open, sides[0].accept, wanted=lambda tag, size: heard.append((tag, size))
    )
    asker = BulkPool(sides[1].open, sides[1].accept, asks=True)
    async with running(server), running(asker), trio.open_nursery() as nursery:
        into = bytearray(3 * K)
        nursery.start_soon(asker.receive, b"wanted", memoryview(into))
        with trio.fail_after(5):
            while not heard:
                await trio.sleep(0.01)
        assert heard == [(b"wanted", 3 * K)]
        assert server.wants(b"wanted")
        assert not server.wants(b"something else")
        await server.send(b"wanted", content(3 * K))
        assert not server.wants(b"wanted")

        async def refuse() -> None:
            while not server.wants(b"other"):
                await trio.sleep(0.01)
            server.refuse(b"other")
            server.refuse(b"other")  # nothing to refuse any more

        nursery.start_soon(refuse)
        with trio.fail_after(5), pytest.raises(TransferCancelled):
            await asker.receive(b"other", memoryview(bytearray(5)))
        await asker.close()
        with trio.fail_after(5):
            assert await server.wait_over() == "the peer closed its pool"
            assert await asker.wait_over() != ""
    assert into == content(3 * K)


def test_a_failed_end_hands_out_no_more_chunks() -> None:
    """The writer of a link may ask once more before it hears that the pool has broken."""
    end = Transfers(lambda _link, _memory: None, lambda: None)
    end.open_link(1, 0.0)
    end.handle(1, Want(1, 2 * K, K, b"tag"), 0.0)
    end.send(b"tag", memoryview(bytes(2 * K)), lambda: None)
    assert end.next_chunk(1, 0.0) is not None
    end.fail(lambda: PoolBroken("gone"))
    assert end.next_chunk(1, 0.0) is None


def test_a_refusal_is_repeated_when_the_question_is() -> None:
    """The link that carried it may have died."""
    heard: list[bytes] = []
    end = Transfers(lambda _link, _memory: None, lambda: None, lambda tag, _size: heard.append(tag))
    end.open_link(1, 0.0)
    want = Want(7, 5, K, b"tag")
    end.handle(1, want, 0.0)
    end.refuse(b"tag")
    gone = end.next_message(1)
    assert gone is not None
    assert decode(gone, 0) == Gone(7, Reason.CANCELLED)
    assert end.next_message(1) is None
    end.handle(1, want, 0.0)
    assert end.next_message(1) == gone
    assert heard == [b"tag"]
