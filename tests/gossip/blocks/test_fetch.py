"""Fetching over the in-memory network: from many holders, whatever they do."""

from __future__ import annotations

import numpy as np
import pytest
import trio
import trio.testing

from gossip.blocks import bitmap as bits
from gossip.blocks.errors import ArtefactUnavailable, StoreFull
from gossip.blocks.fetch import HolderView
from gossip.blocks.messages import Open, Opened, Refused, block_tag, pool_label
from gossip.blocks.serve import PROTOCOL, ServeSettings, ask
from tests.gossip.blocks.rig import MIB, ListSink, Shelf, content, world
from tests.transport.nodes import address
from transport.bulk.pool import TransferCancelled, open_bulk_pool
from transport.codec import pack


async def test_one_holder(autojump_clock: object) -> None:
    data = content(3 * MIB + 17)
    async with world(data, 1) as it:
        with trio.fail_after(60):
            manifest = await it.fetch().run()
        assert it.into == data
        assert manifest.size == len(data)
        assert it.servers[0].counters["blocks"] == 4


async def test_the_holder_has_its_place_back_soon(autojump_clock: object) -> None:
    async with world(content(2 * MIB), 1) as it:
        for _ in range(10):
            with trio.fail_after(5):
                it.sink.have()[:] = False
                await it.fetch().run()
            await trio.sleep(1)  # a round trip or two
            assert it.servers[0].sessions == 0


async def test_an_empty_artefact(autojump_clock: object) -> None:
    async with world(content(0), 1) as it:
        with trio.fail_after(60):
            await it.fetch().run()


async def test_four_holders_share_the_work(autojump_clock: object) -> None:
    data = content(32 * MIB)
    async with world(data, 4) as it:
        fetch = it.fetch()
        with trio.fail_after(60):
            await fetch.run()
        assert it.into == data
        assert all(server.counters["blocks"] >= 4 for server in it.servers)
        assert sum(view.report.blocks for view in fetch.holders()) == 32
        assert sorted(it.sink.written) == list(range(32))


async def test_a_liar_and_a_dead_one_cost_nothing_but_their_share(autojump_clock: object) -> None:
    data = content(24 * MIB)
    async with world(data, 4) as it:
        liar, dies = 1, 2
        it.shelves[liar].lies = set(range(24))

        def die(_block: int) -> None:
            if len(it.shelves[dies].reads) == 3:
                it.holders[dies].peers[it.fetcher.node_id].close("power cut")

        it.shelves[dies].on_read = die
        fetch = it.fetch()
        with trio.fail_after(120):
            await fetch.run()
        assert it.into == data
        views = it.named(fetch)
        assert isinstance(views[liar], HolderView)
        assert views[liar].report.banned
        assert views[liar].report.bad >= 1
        assert "not the artefact's" in views[liar].reason
        for honest in {0, 2, 3} & set(views):
            assert not views[honest].report.bad


async def test_what_was_written_is_not_fetched_again(autojump_clock: object) -> None:
    data = content(20 * MIB)
    async with world(data, 2) as it:
        with trio.CancelScope() as scope:

            def stop_halfway(_block: int) -> None:
                if len(it.sink.written) >= 8:
                    scope.cancel()

            it.shelves[0].on_read = it.shelves[1].on_read = stop_halfway
            await it.fetch().run()
        assert scope.cancelled_caught
        before = list(it.sink.written)
        assert 8 <= len(before) < 20
        it.shelves[0].on_read = it.shelves[1].on_read = lambda _block: None
        with trio.fail_after(60):
            await it.fetch().run()
        assert it.into == data
        assert sorted(it.sink.written) == list(range(20))


async def test_holders_of_parts(autojump_clock: object) -> None:
    data = content(10 * MIB)
    async with world(data, 3) as it:
        for number, shelf in enumerate(it.shelves):
            shelf.bitmap = bits.none(10)
            shelf.bitmap[number * 3 : number * 3 + 4] = True
        with trio.fail_after(60):
            await it.fetch().run()
        assert it.into == data


async def test_a_holder_that_is_fetching_itself_gets_more(autojump_clock: object) -> None:
    data = content(4 * MIB)
    async with world(data, 1) as it:
        it.shelves[0].bitmap = bits.none(4)
        it.shelves[0].bitmap[:2] = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.fetch().run)
            await trio.sleep(10)
            assert it.sink.have().sum() == 2
            it.shelves[0].bitmap = bits.full(4)
            with trio.fail_after(10):
                while not it.sink.have().all():
                    await trio.sleep(0.1)
        assert it.into == data


async def test_what_cannot_be_read_is_asked_of_others(autojump_clock: object) -> None:
    data = content(6 * MIB)
    async with world(data, 2) as it:
        it.shelves[0].unreadable = {0, 1, 2}
        fetch = it.fetch()
        with trio.fail_after(60):
            await fetch.run()
        assert it.into == data
        assert it.servers[0].counters["refused-unreadable"] >= 1


async def test_nobody_has_the_rest(autojump_clock: object) -> None:
    data = content(6 * MIB)
    async with world(data, 2) as it:
        for shelf in it.shelves:
            shelf.bitmap = bits.full(6)
            shelf.bitmap[3] = False
        with trio.fail_after(300), pytest.raises(ArtefactUnavailable, match="1 blocks of it"):
            await it.fetch(patience_s=20.0).run()
        assert it.sink.have().sum() == 5


async def test_nobody_knows_it(autojump_clock: object) -> None:
    async with world(content(MIB), 2) as it:
        with trio.fail_after(300), pytest.raises(ArtefactUnavailable, match="refused: unknown"):
            await it.fetch(bytes(32), patience_s=20.0).run()


@pytest.mark.parametrize("what", ["manifest", "page"])
async def test_a_forged_manifest_or_page_is_a_lie(what: str, autojump_clock: object) -> None:
    data = content(2 * MIB)
    other = Shelf(content(2 * MIB, seed=1))
    async with world(data, 1) as it:
        if what == "manifest":
            it.shelves[0].manifest = lambda _artefact: other.vectors.manifest  # type: ignore[method-assign]
        else:
            it.shelves[0].page = lambda _artefact, page: other.vectors.page(page)  # type: ignore[method-assign]
        fetch = it.fetch(patience_s=5.0)
        with trio.fail_after(120), pytest.raises(ArtefactUnavailable, match="not the artefact's"):
            await fetch.run()
        (view,) = fetch.holders()
        assert view.report.banned
        assert view.report.bad == 1


async def test_a_full_disk_ends_it_with_that(autojump_clock: object) -> None:
    async with world(content(4 * MIB), 1) as it:
        it.sink.fail = StoreFull("the disk is full")
        with trio.fail_after(60), pytest.raises(StoreFull):
            await it.fetch().run()


async def test_two_fetchers_of_one_holder_and_its_upload_cap(autojump_clock: object) -> None:
    """The cap is kept, and both get their share."""
    data = content(8 * MIB)
    rate = 2 * MIB
    async with world(data, 2, settings=ServeSettings(upload_bytes_per_s=rate)) as it:
        holder, other = it.holders
        await other.connect([address(2)])
        other.peers[it.fetcher.node_id].close("only the holder is asked")
        begun = trio.current_time()
        into = bytearray(len(data))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.fetch().run)
            nursery.start_soon(it.fetch(by=other, sink=ListSink(into)).run)
        assert it.into == into == data
        assert it.servers[0].counters["blocks"] == 16
        assert holder.node_id in other.peers
        took = trio.current_time() - begun
        assert took >= (2 * len(data) - 2 * MIB) / rate - 0.25


# ---- a fetcher that asks too much -----------------------------------------------------------------


async def test_more_than_the_window_and_what_does_not_exist_are_refused(
    autojump_clock: object,
) -> None:
    data = content(8 * MIB)
    async with world(data, 1, settings=ServeSettings(window=2, upload_bytes_per_s=MIB)) as it:
        server, artefact = it.servers[0], it.shelves[0].id
        peer = it.fetcher.peers[it.holders[0].node_id]
        opened = await ask(peer, PROTOCOL, Open(artefact, bytes(16)))
        assert opened == Opened(2)
        refused = []

        async def expect(tag: bytes, size: int) -> None:
            try:
                await pool.receive(tag, memoryview(bytearray(size)))
            except TransferCancelled:
                refused.append(tag)

        wrong = [(b"", MIB), (b"12345", MIB), (block_tag(8, 1), MIB), (block_tag(2**32 - 1, 1), 1)]
        wrong += [(block_tag(7, 1), MIB - 1)]
        async with (
            open_bulk_pool(it.fetcher, peer, pool_label(bytes(16)), asks=True) as pool,
            trio.open_nursery() as nursery,
        ):
            for block in range(5):
                nursery.start_soon(expect, block_tag(block, 0), MIB)
            for tag, size in wrong:
                nursery.start_soon(expect, tag, size)
        assert len(refused) == 1 + len(wrong)
        assert server.counters["refused-request"] == 1 + len(wrong)
        assert server.counters["blocks"] == 4


async def test_sessions_are_few_and_end_when_nobody_uses_them(autojump_clock: object) -> None:
    async with world(content(MIB), 1, settings=ServeSettings(sessions_per_peer=2)) as it:
        peer = it.fetcher.peers[it.holders[0].node_id]
        shelves = [Shelf(content(MIB, seed)) for seed in range(3)]
        known = {shelf.id: shelf.vectors.manifest for shelf in shelves}
        it.shelves[0].manifest = known.get  # type: ignore[method-assign]
        answers = [
            await ask(peer, PROTOCOL, Open(shelf.id, bytes([number]) * 16))
            for number, shelf in enumerate(shelves)
        ]
        assert [type(answer) for answer in answers] == [Opened, Opened, Refused]
        for number in range(5):  # who begins anew has broken off before
            again = await ask(peer, PROTOCOL, Open(shelves[0].id, bytes([9, number]) * 8))
            assert again == Opened(16)
        await trio.testing.wait_all_tasks_blocked()
        assert it.servers[0].sessions == 2
        await trio.sleep(31)
        assert it.servers[0].sessions == 0


@pytest.mark.parametrize(
    "request_",
    [
        b"",
        b"\xc1",
        pack({"type": "have", "id": b"short"}),
        pack({"type": "page", "id": bytes(32), "page": -1}),
        pack({"type": "open", "id": bytes(32), "nonce": b""}),
        pack({"type": "rm -rf", "id": bytes(32)}),
        pack([]),
    ],
)
async def test_a_malformed_request_is_answered_so(request_: bytes, autojump_clock: object) -> None:
    async with world(content(1), 1) as it:
        peer = it.fetcher.peers[it.holders[0].node_id]
        answer = await peer.call(PROTOCOL, request_)
        assert answer == pack({"type": "refused", "reason": "malformed"})


async def test_numbers_of_the_test_add_up(autojump_clock: object) -> None:
    """`MemorySink` and `Vectors` over several regions, cut across blocks."""
    regions = [np.arange(n, dtype=np.float32) for n in (300_000, 0, 3, 700_001)]
    from gossip.blocks.library import MemorySink, Vectors

    vectors = Vectors("state", "state", [memoryview(r) for r in regions])
    into = [np.full_like(r, -1) for r in regions]
    list(vectors.hashing())
    sink = MemorySink([memoryview(r) for r in into])
    for block in range(vectors.manifest.blocks):
        sink.write(block, memoryview(vectors.read(block)))
    assert sink.have().all()
    for a, b in zip(regions, into, strict=True):
        assert np.array_equal(a, b)
