"""Two ends that agree on transfers over links that die: whoever still wants a region gets it, and nobody else is written to."""

import random
from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from transport.bulk.chunks import MIN_CHUNK_BYTES, ChunkRefused
from transport.bulk.messages import Ack, ChunkHead, Want, decode, encode
from transport.bulk.transfers import (
    MAX_CONTROL,
    Transfer,
    TransferCancelled,
    TransferMismatch,
    Transfers,
)

K = MIN_CHUNK_BYTES
SENDER, RECEIVER = 0, 1
TAGS = st.sampled_from([b"a", b"a", b"b"])
SIZES = st.sampled_from([0, 5, 5, 2 * K + 1])  # often alike, so that they meet


class Job:
    """One call of send or receive, as the application sees it."""

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.memory = bytearray(random.Random(seed).randbytes(size) if seed else bytes(size))
        self.over = False
        self.after = b""  # the memory when the call ended
        self.transfer: Transfer

    def end(self) -> None:
        assert not self.over
        self.over = True
        self.after = bytes(self.memory)


class TwoEnds(RuleBasedStateMachine):
    """Application, links and network, one step at a time."""

    @initialize()
    def begin(self) -> None:
        self.ends = [
            Transfers(lambda link, memory, end=end: self.redirect(end, link, memory), lambda: None)  # type: ignore[misc]
            for end in (SENDER, RECEIVER)
        ]
        self.jobs: list[tuple[int, bytes, Job]] = []
        self.wires: dict[int, tuple[deque[tuple[bytes, bytes]], ...]] = {}  # link -> to each end
        self.half: dict[tuple[int, int], tuple[memoryview, bytes, int]] = {}
        self.next_link = 1
        self.seed = 0

    def redirect(self, end: int, link: int, memory: memoryview) -> None:
        if (end, link) in self.half:
            _, payload, done = self.half[end, link]
            self.half[end, link] = (memory, payload, done)

    def live(self, end: int, tag: bytes) -> Job | None:
        return next((j for e, t, j in self.jobs if (e, t) == (end, tag) and not j.over), None)

    # The application

    @rule(tag=TAGS, size=SIZES)
    def send(self, tag: bytes, size: int) -> None:
        if self.live(SENDER, tag) is None:
            self.seed += 1
            self.start(SENDER, tag, Job(size, self.seed))

    @rule(tag=TAGS, size=SIZES)
    def receive(self, tag: bytes, size: int) -> None:
        if self.live(RECEIVER, tag) is None:
            self.start(RECEIVER, tag, Job(size, 0))

    def start(self, end: int, tag: bytes, job: Job) -> None:
        act = self.ends[end].send if end == SENDER else self.ends[end].receive
        self.jobs.append((end, tag, job))
        job.transfer = act(tag, memoryview(job.memory), job.end)

    @rule(tag=TAGS, end=st.sampled_from([SENDER, RECEIVER]))
    def cancel(self, tag: bytes, end: int) -> None:
        job = self.live(end, tag)
        if job is not None:
            job.end()
            self.ends[end].give_up(job.transfer)

    # The network

    @precondition(lambda self: len(self.wires) < 3)
    @rule()
    def open(self) -> None:
        for end in self.ends:
            end.open_link(self.next_link, 0.0)
        self.wires[self.next_link] = (deque(), deque())
        self.next_link += 1

    @precondition(lambda self: self.wires)
    @rule(data=st.data(), end=st.sampled_from([SENDER, RECEIVER]), count=st.integers(1, 4))
    def transmit(self, data: st.DataObject, end: int, count: int) -> None:
        link = data.draw(st.sampled_from(sorted(self.wires)))
        for _ in range(count):
            self.transmit_one(link, end)

    def transmit_one(self, link: int, end: int) -> bool:
        message = self.ends[end].next_message(link)
        if message is not None:
            self.wires[link][1 - end].append((message, b""))
            return True
        chunk = self.ends[end].next_chunk(link, 0.0)
        if chunk is not None:
            self.wires[link][1 - end].append((chunk[0], bytes(chunk[1])))
        return chunk is not None

    @precondition(lambda self: self.wires)
    @rule(data=st.data(), end=st.sampled_from([SENDER, RECEIVER]), count=st.integers(1, 4))
    def deliver(self, data: st.DataObject, end: int, count: int) -> None:
        link = data.draw(st.sampled_from(sorted(self.wires)))
        for _ in range(count):
            self.deliver_one(link, end)

    def deliver_one(self, link: int, end: int) -> bool:
        """A message, or half a chunk: the first half is written when it begins."""
        if (end, link) in self.half:
            target, payload, done = self.half.pop((end, link))
            target[done : len(payload)] = payload[done:]
            self.ends[end].arrived(link)
            return True
        if not self.wires[link][end]:
            return False
        header, payload = self.wires[link][end].popleft()
        message = decode(header, len(payload))
        if isinstance(message, ChunkHead):
            target = self.ends[end].place(link, message, len(payload))
            middle = len(payload) // 2
            target[:middle] = payload[:middle]
            self.half[end, link] = (target, payload, middle)
        else:
            self.ends[end].handle(link, message, 0.0)
        return True

    @precondition(lambda self: self.wires)
    @rule(steps=st.lists(st.tuples(st.integers(0, 9), st.booleans(), st.booleans()), max_size=30))
    def go_on(self, steps: list[tuple[int, bool, bool]]) -> None:
        links = sorted(self.wires)
        for number, end, delivery in steps:
            act = self.deliver_one if delivery else self.transmit_one
            act(links[number % len(links)], int(end))

    @precondition(lambda self: self.wires)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        link = data.draw(st.sampled_from(sorted(self.wires)))
        self.kill(link)

    def kill(self, link: int) -> None:
        del self.wires[link]
        for number, end in enumerate(self.ends):
            self.half.pop((number, link), None)
            end.close_link(link)
            assert len(end._control) <= MAX_CONTROL

    # What must hold

    def teardown(self) -> None:
        if not hasattr(self, "ends"):
            return
        for link in list(self.wires):
            self.kill(link)
        self.open()
        link = self.next_link - 1
        moved = True
        while moved:
            moved = False
            for end in (SENDER, RECEIVER):
                while self.transmit_one(link, end):
                    moved = True
                while self.deliver_one(link, end):
                    moved = True
        for tag in (b"a", b"b"):
            assert self.live(SENDER, tag) is None or self.live(RECEIVER, tag) is None
        sent = {(t, bytes(j.memory)) for e, t, j in self.jobs if e == SENDER}
        for end, tag, job in self.jobs:
            error = job.transfer.error
            assert error is None or isinstance(error, TransferCancelled | TransferMismatch)
            if end == RECEIVER and job.over:
                assert bytes(job.memory) == job.after, "written after the call had ended"
                if job.transfer.error is None and job.transfer.region.complete:  # type: ignore[attr-defined]
                    assert (tag, job.after) in sent


TestTwoEnds = TwoEnds.TestCase
TestTwoEnds.settings = settings(max_examples=120, stateful_step_count=50, deadline=None)


def test_a_chunk_halfway_in_is_sent_elsewhere_when_the_receiver_gives_up() -> None:
    redirected = []
    end = Transfers(lambda link, memory: redirected.append((link, len(memory))), lambda: None)
    end.open_link(1, 0.0)
    memory = bytearray(2 * K)
    transfer = end.receive(b"t", memoryview(memory), lambda: None)
    end.place(1, ChunkHead(transfer.id, K, 2 * K), K)[:9] = b"123456789"
    end.give_up(transfer)
    assert redirected == [(1, 4 * K)]
    end.arrived(1)
    assert end.next_message(1) == encode(Ack(1))
    assert not end.receiving


@pytest.mark.parametrize("sending", [False, True])
def test_one_number_for_two_transfers_is_the_fault_of_who_asks(sending: bool) -> None:
    end = Transfers(lambda _link, _memory: None, lambda: None)
    end.open_link(1, 0.0)
    if sending:
        end.send(b"a", memoryview(bytes(2 * K)), lambda: None)
    end.handle(1, Want(5, 2 * K, K, b"a"), 0.0)
    end.handle(1, Want(5, 2 * K, K, b"a"), 0.0)  # asked again, as after a lost link
    with pytest.raises(ChunkRefused):
        end.handle(1, Want(5, 2 * K, K, b"b"), 0.0)
    end.send(b"b", memoryview(bytes(2 * K)), lambda: None)
    assert end.chunks_waiting == sending
