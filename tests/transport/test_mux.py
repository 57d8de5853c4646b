"""The multiplexer by direct calls: life of a stream, order of sending, cancellation, the end of the connection."""

import pytest

from tests.transport.muxes import (
    NORMAL,
    NOW,
    OPEN,
    URGENT,
    events,
    move,
    pair,
    receive,
    remote_id,
    sent,
)
from transport.errors import StreamClosed, UsageError
from transport.secure.record import RECORD_BYTES
from transport.streams.frames import (
    FRAME_PAYLOAD_BYTES,
    WINDOW_BYTES,
    CloseCode,
    Credit,
    Data,
    Open,
    Ping,
    Priority,
    ResetCode,
    decode,
    encode,
    stream_id,
)
from transport.streams.frames import Pong as PongFrame
from transport.streams.frames import Reset as ResetFrame
from transport.streams.mux import Closed, DataReceived, Finished, Opened, Reset

# Life of a stream.


def test_a_call_and_its_answer_leave_nothing_behind():
    a, b = pair()
    s = a.open("echo/1", URGENT)
    assert a.send(s, b"question") == 8
    a.finish(s)
    move(a, b)
    assert events(b) == [Opened(s, "echo/1", URGENT), DataReceived(s, b"question"), Finished(s)]
    b.consume(s, 8)
    b.send(s, b"answer")
    b.finish(s)
    move(b, a)
    assert events(a) == [DataReceived(s, b"answer"), Finished(s)]
    a.consume(s, 6)
    assert a.statistics() == b.statistics()
    assert (a.statistics().streams, a.statistics().unconsumed_bytes) == (0, 0)
    assert a.last_received == NOW


def test_both_sides_open_streams_with_different_ids():
    a, b = pair()
    ids = [mux.open("x", priority) for mux in (a, b) for priority in Priority]
    assert len(set(ids)) == 4
    move(a, b)
    move(b, a)
    assert [type(event) for event in events(a)] == [Opened, Opened]
    assert [type(event) for event in events(b)] == [Opened, Opened]


def test_half_close_lets_the_other_direction_go_on():
    a, b = pair()
    s = a.open("x")
    a.finish(s)
    move(a, b)
    assert events(b) == [Opened(s, "x", NORMAL), Finished(s)]
    for _ in range(3):
        b.send(s, b"more")
        move(b, a)
        assert events(a) == [DataReceived(s, b"more")]
        a.consume(s, 4)
    with pytest.raises(StreamClosed):
        a.send(s, b"after finish")
    a.finish(s)  # twice is once
    assert not a.wants_write
    b.finish(s)
    move(b, a)
    assert events(a) == [Finished(s)]
    with pytest.raises(StreamClosed):
        a.finish(s)


def test_finish_comes_after_what_is_queued():
    a, b = pair()
    s = a.open("x")
    a.send(s, bytes(WINDOW_BYTES))
    a.finish(s)
    move(a, b)
    received = events(b)
    assert received[-1] == Finished(s)
    assert sum(len(e.data) for e in received if isinstance(e, DataReceived)) == WINDOW_BYTES


def test_data_that_changes_after_send_is_not_seen():
    a, b = pair()
    s = a.open("x")
    buffer = bytearray(b"before")
    a.send(s, buffer)
    a.send(s, memoryview(buffer))
    buffer[:] = b"after!"
    move(a, b)
    assert DataReceived(s, b"beforebefore") in events(b)


def test_received_data_does_not_alias_the_record():
    a, b = pair()
    s = a.open("x")
    a.send(s, b"data")
    record = bytearray(a.outgoing())
    b.receive(memoryview(record), NOW)
    record.clear()  # raises BufferError if a view were kept
    assert DataReceived(s, b"data") in events(b)


def test_wide_items_are_sent_as_bytes():
    a, b = pair()
    s = a.open("x")
    assert a.send(s, memoryview(b"abcdefgh").cast("I")) == 8
    move(a, b)
    assert DataReceived(s, b"abcdefgh") in events(b)


# Order of sending.


def test_urgent_before_normal_and_turns_inside_a_class():
    a, _ = pair()
    normal = [a.open("n") for _ in range(2)]
    urgent = [a.open("u", URGENT) for _ in range(2)]
    for s in (*normal, *urgent):
        a.send(s, bytes(2 * FRAME_PAYLOAD_BYTES))
    order = [frame.stream_id for frame in sent(a) if isinstance(frame, Data)]
    assert order == [urgent[0], urgent[1]] * 2 + [normal[0], normal[1]] * 2


def test_a_full_record_of_urgent_data_lets_nothing_normal_slip_in():
    a, _ = pair()
    n, u = a.open("n"), a.open("u", URGENT)
    a.send(n, b"x")
    a.send(u, bytes(5000))
    first = list(decode(a.outgoing(1024)))
    assert {frame.stream_id for frame in first} == {u}
    assert a.wants_write


def test_control_frames_come_first():
    a, _ = pair()
    s = a.open("x")
    a.send(s, bytes(100))
    a.ping(9)
    a.receive(encode(Ping(3)), NOW)
    assert [type(frame) for frame in sent(a)] == [PongFrame, Ping, Open, Data]


def test_small_sends_share_a_frame():
    a, _ = pair()
    s = a.open("x")
    for number in range(100):
        a.send(s, bytes([number]))
    frames = sent(a)
    assert [type(frame) for frame in frames] == [Open, Data]
    assert bytes(frames[1].data) == bytes(range(100))


@pytest.mark.parametrize("size", [1024, 5000, RECORD_BYTES])
def test_outgoing_keeps_its_size_and_whole_frames(size):
    a, b = pair()
    for priority in (URGENT, NORMAL, NORMAL):
        s = a.open("some-protocol", priority)
        a.send(s, bytes(200_000))
        a.finish(s)
    for token in range(20):
        a.ping(token)
    total = 0
    while a.wants_write:
        data = a.outgoing(size)
        assert 0 < len(data) <= size
        b.receive(data, NOW)
        total += len(data)
    assert a.outgoing(size) == b""
    assert sum(len(e.data) for e in events(b) if isinstance(e, DataReceived)) == 600_000


@pytest.mark.parametrize("size", [0, 1023, RECORD_BYTES + 1])
def test_outgoing_refuses_senseless_sizes(size):
    a, _ = pair()
    with pytest.raises(UsageError):
        a.outgoing(size)


# Cancellation.


def test_a_reset_drops_what_was_queued_and_harms_nobody_else():
    a, b = pair()
    s, t = a.open("s"), a.open("t")
    a.send(s, bytes(100_000))
    a.send(t, b"safe")
    b.receive(a.outgoing(20_000), NOW)
    assert b.next_event() == Opened(s, "s", NORMAL)
    a.reset(s, 77)
    move(a, b)
    received = events(b)
    assert Reset(s, 77) in received
    assert not any(isinstance(e, DataReceived) and e.stream_id == s for e in received)  # void
    assert DataReceived(t, b"safe") in received
    assert a.statistics().queued_bytes == 0
    with pytest.raises(StreamClosed):
        a.send(s, b"x")
    with pytest.raises(StreamClosed):
        b.send(s, b"x")
    a.reset(s)
    b.reset(s)
    assert not a.wants_write


def test_a_stream_reset_before_its_open_left_is_never_heard_of():
    a, b = pair()
    s = a.open("x")
    a.send(s, b"abc")
    a.reset(s)
    assert not a.wants_write
    t = a.open("y")
    move(a, b)
    assert events(b) == [Opened(t, "y", NORMAL)]


def test_data_and_reset_in_one_record_leave_no_view_of_it():
    a, _ = pair()
    receive(a, OPEN)
    events(a)
    record = bytearray(
        encode(Data(OPEN.stream_id, memoryview(b"void"))) + encode(ResetFrame(OPEN.stream_id, 4))
    )
    a.receive(memoryview(record), NOW)
    record.clear()  # raises BufferError if a view were kept
    assert events(a) == [Reset(OPEN.stream_id, 4)]
    assert a.statistics().unconsumed_bytes == 0


def test_frames_under_way_to_a_stream_we_reset_are_ignored():
    a, b = pair()
    s = a.open("x")
    move(a, b)
    events(b)
    b.reset(s, ResetCode.NO_SUCH_PROTOCOL)
    a.send(s, b"under way")
    a.finish(s)
    move(a, b)
    receive(b, Credit(s, 5), ResetFrame(s, 1))
    assert events(b) == []
    move(b, a)
    assert events(a) == [Reset(s, ResetCode.NO_SUCH_PROTOCOL)]
    assert a.statistics().streams == b.statistics().streams == 0


def test_both_sides_reset_at_once():
    a, b = pair()
    s = a.open("x")
    move(a, b)
    events(b)
    a.reset(s)
    b.reset(s)
    move(a, b)
    move(b, a)
    assert events(a) == events(b) == []


def test_open_and_reset_in_one_record_bother_nobody():
    a, _ = pair()
    for number in range(1, 600, 2):
        receive(
            a,
            *(
                frame
                for n in (number, number + 1)
                for frame in (Open(remote_id(n), "x"), ResetFrame(remote_id(n), 1))
            ),
        )
    assert events(a) == []
    assert a.statistics().streams == 0
    assert not a.wants_write


# The end of the connection.


def test_close_sends_one_goaway_and_ends_everything():
    a, b = pair()
    s = a.open("x")
    a.send(s, bytes(1000))
    a.close(CloseCode.NORMAL, "bye")
    a.close(CloseCode.LIMIT, "again")
    assert a.closed
    assert events(a) == [Closed(CloseCode.NORMAL, "bye", by_remote=False)]
    move(a, b)
    assert b.closed
    assert events(b) == [Closed(CloseCode.NORMAL, "bye", by_remote=True)]
    assert not b.wants_write
    for mux in (a, b):
        with pytest.raises(StreamClosed):
            mux.open("x")
        with pytest.raises(StreamClosed):
            mux.send(s, b"x")
        mux.reset(s)
        mux.consume(s, 1)
        mux.ping(1)
        assert not mux.wants_write
        assert mux.outgoing() == b""
        assert mux.next_event() is None
        assert mux.statistics().streams == 0


def test_what_came_before_a_goaway_is_delivered():
    a, b = pair()
    s = a.open("x")
    a.send(s, b"last words")
    a.finish(s)
    data = a.outgoing()
    a.close()
    b.receive(
        data + a.outgoing() + encode(Open(stream_id(9, NORMAL, opened_by_responder=False), "late")),
        NOW,
    )
    assert events(b) == [
        Opened(s, "x", NORMAL),
        DataReceived(s, b"last words"),
        Finished(s),
        Closed(CloseCode.NORMAL, "", by_remote=True),
    ]


def test_room_is_what_send_takes():
    ours, _ = pair(send_buffer_bytes=300_000)
    one, two = ours.open("x"), ours.open("y")
    assert ours.room(one) == 262_144
    assert ours.send(one, bytes(ours.room(one) - 10)) == 262_134
    assert (ours.room(one), ours.room(two)) == (10, 300_000 - 262_134)
    assert ours.send(two, bytes(262_144)) == 300_000 - 262_134
    assert ours.room(one) == ours.room(two) == 0
    ours.reset(two)
    assert ours.room(one) == 10
    ours.finish(one)
    assert ours.room(one) == ours.room(two) == ours.room(12345) == 0
