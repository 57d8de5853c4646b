"""Chunks over several links: nothing is lost, doubled or misplaced, whatever the links do."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from transport.bulk.chunks import (
    CHUNKS_WANTED,
    MAX_CHUNK_BYTES,
    MAX_REGION_BYTES,
    MIN_CHUNK_BYTES,
    Chunk,
    ChunkRefused,
    Place,
    Region,
    SendQueue,
    chunk_size,
)
from transport.errors import UsageError

K = MIN_CHUNK_BYTES


@given(st.integers(0, MAX_REGION_BYTES))
def test_a_chunk_is_a_power_of_two_within_the_bounds(total: int) -> None:
    size = chunk_size(total)
    assert MIN_CHUNK_BYTES <= size <= MAX_CHUNK_BYTES
    assert size & (size - 1) == 0
    assert size == MIN_CHUNK_BYTES or total >= size * CHUNKS_WANTED


@pytest.mark.parametrize("sizes", [(-1, K), (MAX_REGION_BYTES + 1, K), (1, K - 1), (1, 2 << 20)])
def test_sizes_out_of_range_are_refused(sizes: tuple[int, int]) -> None:
    with pytest.raises(UsageError):
        Region(*sizes)
    with pytest.raises(UsageError):
        SendQueue().add(1, *sizes)


def test_an_empty_region_is_one_empty_chunk() -> None:
    queue, region = SendQueue(), Region(0, K)
    queue.add(1, 0, K)
    queue.open_link(1, 0.0)
    chunk = queue.next(1, 0.0)
    assert chunk is not None
    assert (chunk.offset, chunk.size) == (0, 0)
    assert queue.next(1, 0.0) is None
    assert region.claim(1, 0, 0) == (Place.NEW, None)
    region.arrived(1)
    assert region.complete
    assert queue.acknowledge(1, 1, 0.0).finished == (1,)


@pytest.mark.parametrize(
    ("offset", "size"),
    [
        (1, K),  # off the grid: it would overlap
        (3 * K, 1),  # behind the end
        (2 * K, K),  # over the end
        (0, K - 1),  # falls short
        (0, 2 * K),  # overlaps the next
        (2**63, K),
        (K, 0),
    ],
)
def test_a_chunk_off_the_grid_is_refused(offset: int, size: int) -> None:
    region = Region(2 * K + 7, K)
    with pytest.raises(ChunkRefused):
        region.claim(1, offset, size)
    assert region.claim(1, 2 * K, 7) == (Place.NEW, None)


def test_a_chunk_is_written_by_one_link_at_a_time() -> None:
    region = Region(K, K)
    assert region.claim(1, 0, K) == (Place.NEW, None)
    assert region.claim(2, 0, K) == (Place.TAKEN_OVER, 1)
    region.arrived(1)  # its bytes went elsewhere: no effect
    assert region.writers() == (2,)
    region.arrived(2)
    assert region.complete
    assert region.claim(3, 0, K) == (Place.DOUBLE, None)


def test_a_lost_link_leaves_its_chunk_missing() -> None:
    region = Region(K, K)
    region.claim(1, 0, K)
    with pytest.raises(UsageError):
        region.claim(1, 0, K)
    region.lost(1)
    assert region.claim(2, 0, K) == (Place.NEW, None)


def test_the_link_s_window_is_kept() -> None:
    queue = SendQueue(window_bytes=2 * K)
    queue.add(1, 9 * K, K)
    queue.open_link(1, 0.0)
    assert [queue.next(1, 1.0) is not None for _ in range(3)] == [True, True, False]
    assert queue.stalled_since(1) == 1.0
    queue.acknowledge(1, 1, 5.0)
    assert queue.stalled_since(1) == 5.0
    assert queue.next(1, 6.0) is not None


@pytest.mark.parametrize("count", [2, 2**64 - 1])
def test_more_acknowledged_than_sent_is_refused(count: int) -> None:
    queue = SendQueue()
    queue.add(1, 9 * K, K)
    queue.open_link(1, 0.0)
    queue.next(1, 0.0)
    with pytest.raises(ChunkRefused):
        queue.acknowledge(1, count, 0.0)


def test_an_acknowledgement_is_not_taken_back() -> None:
    queue = SendQueue()
    queue.add(1, 9 * K, K)
    queue.open_link(1, 0.0)
    queue.next(1, 0.0)
    queue.acknowledge(1, 1, 0.0)
    with pytest.raises(ChunkRefused):
        queue.acknowledge(1, 0, 0.0)


@given(st.lists(st.integers(20, 60), min_size=2, max_size=5), st.integers(1, 8))
def test_transfers_get_equal_shares_of_bytes(chunks: list[int], links: int) -> None:
    """Whatever the chunk sizes: as long as both have something to send, they stay within a chunk."""
    queue = SendQueue()
    for link in range(links):
        queue.open_link(link, 0.0)
    given_bytes = {}
    for number, count in enumerate(chunks):
        queue.add(number, count << 20, MAX_CHUNK_BYTES if number % 2 else MIN_CHUNK_BYTES)
        given_bytes[number] = 0
    for turn in range(20):
        chunk = queue.next(turn % links, 0.0)
        assert chunk is not None
        given_bytes[chunk.transfer] += chunk.size
        assert max(given_bytes.values()) - min(given_bytes.values()) <= MAX_CHUNK_BYTES


def test_a_newcomer_starts_level() -> None:
    queue = SendQueue()
    queue.open_link(1, 0.0)
    queue.add(1, 60 * K, K)
    for _ in range(20):
        queue.next(1, 0.0)
    queue.add(2, 60 * K, K)
    turns = [queue.next(1, 0.0) for _ in range(10)]
    assert sum(chunk is not None and chunk.transfer == 2 for chunk in turns) == 5


class Links(RuleBasedStateMachine):
    """Two transfers over links that open, deliver in order, acknowledge late, and die."""

    @initialize(sizes=st.lists(st.integers(0, 9 * K), min_size=1, max_size=3))
    def begin(self, sizes: list[int]) -> None:
        self.queue = SendQueue(window_bytes=3 * K)
        self.regions = {}
        self.alive = set(range(1, len(sizes) + 1))
        for number in self.alive:
            self.queue.add(number, sizes[number - 1], K)
            self.regions[number] = Region(sizes[number - 1], K)
        self.cancelled: set[int] = set()
        self.wires: dict[int, list[Chunk]] = {}  # sent and not delivered
        self.delivered: dict[int, int] = {}
        self.half: dict[int, object] = {}
        self.next_link = 1

    @precondition(lambda self: len(self.wires) < 4)
    @rule()
    def open(self) -> None:
        self.queue.open_link(self.next_link, 0.0)
        self.wires[self.next_link] = []
        self.delivered[self.next_link] = 0
        self.next_link += 1

    @precondition(lambda self: self.wires)
    @rule(data=st.data(), count=st.integers(1, 4))
    def send(self, data: st.DataObject, count: int) -> None:
        link = data.draw(st.sampled_from(sorted(self.wires)))
        for _ in range(count):
            chunk = self.queue.next(link, 0.0)
            if chunk is not None:
                self.wires[link].append(chunk)

    @precondition(lambda self: any(self.wires.values()))
    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        """Begin a chunk, or end the one begun."""
        link = data.draw(st.sampled_from([link for link in sorted(self.wires) if self.wires[link]]))
        chunk = self.wires[link][0]
        region = self.regions[chunk.transfer]
        if link not in self.half:
            self.half[link] = region.claim(link, chunk.offset, chunk.size)[0]
            return
        place = self.half.pop(link)
        self.wires[link].pop(0)
        if place is not Place.DOUBLE:
            region.arrived(link)
        self.delivered[link] += 1

    @precondition(lambda self: self.wires)
    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        link = data.draw(st.sampled_from(sorted(self.wires)))
        for number in self.queue.acknowledge(link, self.delivered[link], 0.0).finished:
            assert self.regions[number].complete
            self.alive.discard(number)

    @precondition(lambda self: self.wires)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        link = data.draw(st.sampled_from(sorted(self.wires)))
        carried = self.queue.carried(link)
        assert self.queue.close_link(link) <= carried
        for region in self.regions.values():
            region.lost(link)
        del self.wires[link]
        self.half.pop(link, None)

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.alive)))
        self.queue.remove(number)
        self.alive.discard(number)
        self.cancelled.add(number)

    @invariant()
    def the_queue_knows_the_living(self) -> None:
        if hasattr(self, "alive"):
            assert self.queue.transfers == len(self.alive)

    def teardown(self) -> None:
        if not hasattr(self, "alive"):
            return
        for link in list(self.wires):
            self.queue.close_link(link)
            for region in self.regions.values():
                region.lost(link)
        self.queue.open_link(0, 0.0)
        count = 0
        while (chunk := self.queue.next(0, 0.0)) is not None:
            count += 1
            if self.regions[chunk.transfer].claim(0, chunk.offset, chunk.size)[0] is Place.NEW:
                self.regions[chunk.transfer].arrived(0)
            for number in self.queue.acknowledge(0, count, 0.0).finished:
                assert self.regions[number].complete
                self.alive.discard(number)
        assert not self.alive


TestLinks = Links.TestCase
TestLinks.settings = settings(max_examples=80, stateful_step_count=60, deadline=None)
