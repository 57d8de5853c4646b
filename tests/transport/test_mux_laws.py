"""Laws of the multiplexer: whatever two ends do, in whatever order records arrive, credit is conserved, every stream delivers exactly
what was sent on it, nobody stays blocked, and nothing is left behind.

The windows are made small for these tests, so that every step is near some limit.
"""

import random
from collections import defaultdict, deque
from contextlib import contextmanager
from unittest.mock import patch

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from transport.errors import StreamClosed, StreamLimitReached
from transport.limits import Limits
from transport.streams import mux as mux_module
from transport.streams import mux_state
from transport.streams.frames import ClassCredit, Credit, Data, Priority, decode
from transport.streams.mux import (
    Closed,
    DataReceived,
    Finished,
    Mux,
    Opened,
    Pong,
    Reset,
    Writable,
)

WINDOW = 64
WIDEST = (64, 100)
CLASS_WINDOWS = (150, 200)
WIDEST_CLASSES = (150, 300)


@contextmanager
def small_windows():
    with (
        patch.object(mux_module, "WINDOW_BYTES", WINDOW),
        patch.object(mux_module, "WIDEST_BYTES", WIDEST),
        patch.object(mux_module, "WIDEST_CLASS_BYTES", WIDEST_CLASSES),
        patch.object(mux_module, "_SMALLEST_PART", 8),
        patch.object(mux_module, "FRAME_PAYLOAD_BYTES", 20),
        patch.object(mux_module, "MAX_FRAME_PAYLOAD_BYTES", 45),
        patch.object(mux_module, "MIN_OUTGOING_BYTES", 80),
        patch.object(mux_state, "WINDOW_BYTES", WINDOW),
        patch.object(mux_state, "SEND_QUEUE_BYTES", WINDOW),
        patch.object(mux_state, "WIDEST_QUEUE_BYTES", 80),
        patch.object(mux_state, "CLASS_WINDOW_BYTES", CLASS_WINDOWS),
    ):
        yield


class End:
    """One side with a model of what its application saw and did."""

    def __init__(self, role):
        limits = Limits(streams_per_peer=6, accept_backlog=4)
        msgspec.structs.force_setattr(
            limits, "send_buffer_bytes", 120
        )  # below what the configuration allows
        self.mux = Mux(role=role, limits=limits)
        self.wire = deque()  # records on their way from here
        self.sent = defaultdict(bytes)
        self.received = defaultdict(bytes)
        self.unconsumed = defaultdict(int)
        self.finished_here = set()
        self.finished_there = set()
        self.dead = set()  # reset by either side: no event may follow
        self.reset_here = set()
        self.abandoned = set()
        self.known = []  # streams the application has heard of, in order
        self.blocked = set()
        self.counter = 0
        self.pings = []
        self.pongs = []
        self.closed = False

    def take_events(self):
        while (event := self.mux.next_event()) is not None:
            assert not self.closed, event
            id_ = getattr(event, "stream_id", None)
            if id_ is not None:
                assert id_ not in self.dead, event
            if isinstance(event, Opened):
                assert id_ not in self.known
                self.known.append(id_)
            elif isinstance(event, DataReceived):
                assert id_ in self.known
                assert id_ not in self.finished_there
                assert event.data
                if id_ in self.abandoned:
                    self.mux.abandon(id_)
                else:
                    self.received[id_] += event.data
                    self.unconsumed[id_] += len(event.data)
            elif isinstance(event, Finished):
                assert id_ not in self.finished_there
                self.finished_there.add(id_)
            elif isinstance(event, Reset):
                self.dead.add(id_)
            elif isinstance(event, Writable):
                assert id_ in self.blocked
                self.blocked.discard(id_)
            elif isinstance(event, Pong):
                self.pongs.append(event.token)
            elif isinstance(event, Closed):
                self.closed = True

    def open(self, priority):
        try:
            id_ = self.mux.open("law", priority)
        except StreamLimitReached:
            assert self.mux.statistics().streams >= 6
            return
        self.known.append(id_)

    def usable(self, pick):
        alive = [id_ for id_ in self.known if id_ not in self.dead]
        return alive[pick % len(alive)] if alive else None

    def send(self, pick, size):
        id_ = self.usable(pick)
        if id_ is None:
            return
        data = bytes((self.counter + offset) % 256 for offset in range(size))
        try:
            accepted = self.mux.send(id_, data)
        except StreamClosed:
            assert id_ in self.finished_here
            return
        assert id_ not in self.finished_here
        if accepted < size:
            self.blocked.add(id_)
        self.counter += accepted
        self.sent[id_] += data[:accepted]

    def finish(self, pick):
        id_ = self.usable(pick)
        if id_ is not None and id_ not in self.finished_here:
            self.mux.finish(id_)
            self.finished_here.add(id_)
            self.blocked.discard(id_)

    def reset(self, pick):
        id_ = self.usable(pick)
        if id_ is not None:
            self.mux.reset(id_, 9)
            self.dead.add(id_)
            self.reset_here.add(id_)
            self.blocked.discard(id_)

    def abandon(self, pick):
        """What a closed stream does: its own direction ends, and whatever comes in is thrown away."""
        id_ = self.usable(pick)
        if id_ is not None:
            if id_ not in self.finished_here:
                self.mux.finish(id_)
                self.finished_here.add(id_)
                self.blocked.discard(id_)
            if id_ in self.finished_here:
                self.abandoned.add(id_)
                self.unconsumed.pop(id_, None)
                self.mux.abandon(id_)

    def consume(self, pick, size):
        waiting = [id_ for id_, count in self.unconsumed.items() if count]
        if waiting:
            id_ = waiting[pick % len(waiting)]
            count = min(size, self.unconsumed[id_])
            self.mux.consume(id_, count)
            self.unconsumed[id_] -= count

    def write(self, size):
        wanted = self.mux.wants_write
        data = self.mux.outgoing(size)
        assert bool(data) is wanted
        assert len(data) <= size
        if data:
            self.wire.append(data)

    def ping(self):
        if len(self.pings) - len(self.pongs) < 20:
            self.pings.append(self.counter)
            self.mux.ping(self.counter)


def deliver(source, target):
    if source.wire:
        target.mux.receive(source.wire.popleft(), 0.0)


def check_credit(sender, receiver):
    """The conservation law, for one direction."""
    flying_data = defaultdict(int)
    flying_class_data = [0, 0]
    for record in sender.wire:
        for frame in decode(record):
            if isinstance(frame, Data):
                flying_data[frame.stream_id] += len(frame.data)
                flying_class_data[frame.stream_id >> 1 & 1] += len(frame.data)
    flying_credit = defaultdict(int)
    flying_class_credit = [0, 0]
    for record in [*receiver.wire, *receiver.mux._control]:
        for frame in decode(record):
            if isinstance(frame, Credit):
                flying_credit[frame.stream_id] += frame.amount
            elif isinstance(frame, ClassCredit):
                flying_class_credit[frame.priority] += frame.amount
    for priority in Priority:
        ours, theirs = sender.mux._classes[priority], receiver.mux._classes[priority]
        assert theirs.window + theirs.unconsumed + theirs.to_grant == theirs.limit
        assert CLASS_WINDOWS[priority] <= theirs.limit <= WIDEST_CLASSES[priority]
        assert (
            ours.credit + flying_class_data[priority] + flying_class_credit[priority]
            == theirs.window
        )
        assert ours.credit >= 0
        assert set(ours.blocked) <= set(sender.mux._streams)
        streams = [s for s in sender.mux._streams.values() if s.priority is priority]
        assert (
            ours.queued
            == sum(s.queued for s in streams)
            == sum(len(p) for s in streams for p in s.queue)
        )
        assert [s for s in ours.ring if not s.in_ring or not s.sendable()] == []
        assert all(s.in_ring for s in streams if s.sendable())
    for id_, stream in sender.mux._streams.items():
        other = receiver.mux._streams.get(id_)
        assert stream.credit >= 0
        assert stream.queued <= stream.queue_bound <= 80
        if other is not None and not other.fin_received:
            assert other.window + other.unconsumed + other.to_grant == other.limit
            assert WINDOW <= other.limit <= WIDEST[other.priority]
            assert stream.credit + flying_data[id_] + flying_credit[id_] == other.window
    mux = sender.mux
    for remote in (False, True):
        held = [s for s in mux._streams.values() if s.remote is remote]
        live = [s for s in held if not s.over]
        assert len(live) == mux._live[remote] <= 6
        assert len(held) == mux._held[remote] <= 12
    assert mux._unseen == sum(s.unseen for s in mux._streams.values()) <= 4


picks = st.integers(0, 30)
ends = st.integers(0, 1)
sizes = st.integers(0, 150)
steps = st.one_of(
    st.tuples(st.just("open"), ends, st.sampled_from(Priority)),
    st.tuples(st.just("send"), ends, picks, sizes),
    st.tuples(st.just("send"), ends, picks, sizes),
    st.tuples(st.just("write"), ends, st.integers(80, 400)),
    st.tuples(st.just("deliver"), ends),
    st.tuples(st.just("deliver"), ends),
    st.tuples(st.just("consume"), ends, picks, sizes),
    st.tuples(st.just("finish"), ends, picks),
    st.tuples(st.just("reset"), ends, picks),
    st.tuples(st.just("abandon"), ends, picks),
    st.tuples(st.just("ping"), ends),
)


def run_steps(script):
    both = [End("initiator"), End("responder")]
    for action, which, *arguments in script:
        end, other = both[which], both[1 - which]
        if action == "deliver":
            deliver(end, other)
            other.take_events()
        else:
            getattr(end, action)(*arguments)
            end.take_events()
        check_credit(end, other)
        check_credit(other, end)
    return both


def settle(both):
    """Let everything flow and be consumed until nothing moves."""
    for _ in range(500):
        for end, other in (both, both[::-1]):
            end.write(4096)
            deliver(end, other)
            other.take_events()
            for pick in range(len(other.known)):
                other.consume(pick, 10_000)
        if not any(end.wire or end.mux.wants_write for end in both):
            return
    raise AssertionError("the two ends never come to rest")


def check_settled(both):
    """Both ends at rest: everything sent has arrived, everybody who waits was told, nothing is left."""
    settle(both)
    for end, other in (both, both[::-1]):
        check_credit(end, other)
        dead = end.dead | other.dead
        for id_ in end.known:
            if id_ in other.abandoned:
                continue
            if id_ in end.abandoned - end.reset_here - other.reset_here:
                assert (
                    other.received[id_] == end.sent[id_]
                )  # to the last byte, though it was closed
                assert id_ in other.finished_there
            elif id_ in dead:
                assert end.sent[id_].startswith(other.received[id_])
            else:
                assert other.received[id_] == end.sent[id_]
                assert (id_ in other.finished_there) == (id_ in end.finished_here)
        assert end.blocked <= dead  # everybody who waited for room was told
        assert end.pongs == end.pings
        # Only what is open in some direction remains.
        expected = {
            id_
            for id_ in {*end.known, *other.known} - dead - end.abandoned - other.abandoned
            if not (id_ in end.finished_here and id_ in other.finished_here)
        }
        assert set(end.mux._streams) == expected
        assert end.mux.statistics().queued_bytes == 0
        assert end.mux.statistics().unconsumed_bytes == 0


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(steps, min_size=5, max_size=60))
def test_any_interleaving_conserves_credit_and_delivers_exactly_what_was_sent(script):
    with small_windows():
        check_settled(run_steps(script))


def random_script(rng, length):
    """Longer and denser than what Hypothesis likes to draw."""
    weights = {
        "open": 3,
        "send": 10,
        "write": 8,
        "deliver": 10,
        "consume": 7,
        "finish": 2,
        "reset": 1,
        "abandon": 0.5,
        "ping": 1,
    }
    for action in rng.choices(list(weights), list(weights.values()), k=length):
        which, pick, size = rng.randrange(2), rng.randrange(30), rng.randrange(150)
        match action:
            case "open":
                yield action, which, rng.choice(list(Priority))
            case "send" | "consume":
                yield action, which, pick, size
            case "write":
                yield action, which, 80 + 2 * size
            case "finish" | "reset" | "abandon":
                yield action, which, pick
            case _:
                yield action, which


@pytest.mark.parametrize("seed", range(40))
def test_long_random_walks_obey_the_same_laws(seed):
    with small_windows():
        both = run_steps(random_script(random.Random(seed), 700))
        # The walk went somewhere: data flowed both ways, streams ended in both manners, and limits were met.
        assert all(sum(map(len, end.received.values())) > 500 for end in both)
        check_settled(both)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(steps, max_size=40), ends)
def test_no_event_and_no_byte_after_close(script, which):
    with small_windows():
        both = run_steps(script)
        end, other = both[which], both[1 - which]
        end.mux.close(0, "done")
        end.take_events()
        assert end.closed
        end.write(4096)
        while end.wire:
            deliver(end, other)
        other.take_events()  # asserts that nothing follows Closed
        assert other.closed
        while other.wire:
            deliver(other, end)
        end.take_events()
        for mux in (end.mux, other.mux):
            assert not mux.wants_write
            assert mux.statistics().streams == 0


@settings(max_examples=150, deadline=None)
@given(st.lists(steps, max_size=25), st.binary(min_size=1, max_size=80), ends)
def test_hostile_records_only_ever_raise_the_typed_error(script, noise, which):
    from transport.errors import ProtocolViolation

    with small_windows():
        both = run_steps(script)
        end = both[which]
        try:
            end.mux.receive(noise, 0.0)
        except ProtocolViolation:
            assert end.mux.closed
        end.take_events()
        for _ in range(100):
            if not end.mux.wants_write:
                break
            end.mux.outgoing(4096)
        assert not end.mux.wants_write
