"""The multiplexer by direct calls: life of a stream, credit, priorities, cancellation, limits, violations."""

import pytest

from transport.errors import ProtocolViolation, StreamClosed, StreamLimitReached, UsageError
from transport.limits import Limits
from transport.secure.record import RECORD_BYTES
from transport.streams.frames import (
    CLASS_WINDOW_BYTES,
    FRAME_PAYLOAD_BYTES,
    MAX_CREDIT_BYTES,
    WIDEST_BYTES,
    WINDOW_BYTES,
    ClassCredit,
    CloseCode,
    Credit,
    Data,
    GoAway,
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
from transport.streams.mux import (
    MAX_CONTROL_FRAMES,
    MAX_NUMBER,
    MAX_PINGS,
    Closed,
    DataReceived,
    Finished,
    Mux,
    Opened,
    Pong,
    Reset,
    Writable,
)

NORMAL, URGENT = Priority.NORMAL, Priority.URGENT
NOW = 5.0


def pair(**changes):
    limits = Limits(**changes)
    return Mux(role="initiator", limits=limits), Mux(role="responder", limits=limits)


def events(mux):
    found = []
    while (event := mux.next_event()) is not None:
        found.append(event)
    return found


def move(sender, receiver):
    """Deliver everything one side has to send."""
    while sender.wants_write:
        data = sender.outgoing()
        assert data
        receiver.receive(data, NOW)


def sent(mux):
    """The frames one side has to send, decoded."""
    found = []
    while mux.wants_write:
        found += list(decode(mux.outgoing()))
    return found


def receive(mux, *frames):
    mux.receive(b"".join(map(encode, frames)), NOW)


def remote_id(number, priority=NORMAL):
    """A stream id of the responder's series."""
    return stream_id(number, priority, opened_by_responder=True)


OPEN = Open(remote_id(1), "x")

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


# Credit.


def test_a_sender_stops_at_the_window_and_goes_on_when_the_reader_consumes():
    a, b = pair()
    s = a.open("x")
    assert a.send(s, bytes(WINDOW_BYTES)) == WINDOW_BYTES
    move(a, b)
    assert a.send(s, bytes(1000)) == 1000
    assert not a.wants_write  # queued, but no credit
    events(b)
    b.consume(s, WINDOW_BYTES // 2 - 1)
    assert not b.wants_write  # too little to be worth a frame
    b.consume(s, 1)
    move(b, a)
    assert a.wants_write
    move(a, b)
    assert sum(len(e.data) for e in events(b)) == 1000


def test_send_takes_what_fits_and_announces_room():
    a, b = pair()
    s = a.open("x")
    assert a.send(s, bytes(WINDOW_BYTES + 5)) == WINDOW_BYTES
    assert a.send(s, b"more") == 0
    assert events(a) == []
    b.receive(a.outgoing(RECORD_BYTES // 4), NOW)
    assert events(a) == []  # still more than half full
    move(a, b)
    assert events(a) == [Writable(s)]
    move(a, b)
    assert events(a) == []  # once
    assert a.send(s, b"") == 0


def test_no_writable_for_a_stream_that_was_finished_or_reset():
    a, b = pair()
    s, t = a.open("x"), a.open("x")
    for id_ in (s, t):
        assert a.send(id_, bytes(WINDOW_BYTES + 1)) == WINDOW_BYTES
    a.finish(s)
    a.reset(t)
    move(a, b)
    assert events(a) == []


def test_consumption_not_arrival_grants_credit():
    a, b = pair()
    s = a.open("x")
    a.send(s, bytes(WINDOW_BYTES))
    move(a, b)
    events(b)
    assert sent(b) == []
    b.fix_window(s)
    b.consume(s, WINDOW_BYTES)
    assert Credit(s, WINDOW_BYTES) in sent(b)


@pytest.mark.parametrize("priority", Priority)
def test_the_window_of_a_reader_that_keeps_up_is_widened_up_to_its_bound(priority):
    a, b = pair()
    s = a.open("x", priority)
    windows = []
    for _ in range(8):
        taken = 0
        while (size := a.send(s, bytes(4 * WINDOW_BYTES))) > 0:
            taken += size
            move(a, b)
        taken += a.statistics().queued_bytes  # what the credit did not let go
        events(b)
        windows.append(b.statistics().unconsumed_bytes)
        b.consume(s, windows[-1])
        move(b, a)
        events(a)
        a._streams[s].queue.clear()
        a._classes[priority].queued = a._streams[s].queued = 0
    assert windows[0] == WINDOW_BYTES
    assert windows[-1] == WIDEST_BYTES[priority]


def test_a_reader_that_lags_keeps_its_window():
    a, b = pair()
    s = a.open("x")
    for _ in range(20):
        a.send(s, bytes(WINDOW_BYTES))
        move(a, b)
        events(b)
        b.consume(s, WINDOW_BYTES // 8)
        move(b, a)
    assert b._streams[s].limit == WINDOW_BYTES


def test_what_was_sent_before_closing_leaves_although_more_comes_in():
    a, b = pair()
    s = a.open("x")
    a.send(s, b"question")
    move(a, b)
    events(b)
    answer = bytes(WINDOW_BYTES)
    assert b.send(s, answer) == len(answer)
    b.finish(s)
    b.abandon(s)  # "question" was not read
    for _ in range(10):  # the upload goes on, with new credit, and is thrown away
        assert a.send(s, bytes(WINDOW_BYTES // 2)) > 0
        move(a, b)
        assert all(isinstance(event, DataReceived | Writable) for event in events(b))
        b.abandon(s)
        assert b.statistics().unconsumed_bytes == 0
        for credit in [f for record in [b.outgoing(1024)] for f in decode(record)]:
            a.receive(encode(credit), NOW)
    move(b, a)
    found = events(a)
    assert b"".join(e.data for e in found if isinstance(e, DataReceived)) == answer
    assert found[-2:] == [Finished(s), Reset(s, ResetCode.CANCELLED)]
    assert b.statistics().streams == 0
    with pytest.raises(StreamClosed):
        a.send(s, b"more")
    assert a.statistics().queued_bytes == 0
    a.consume(s, len(answer))
    assert a.statistics().streams == 0


def test_the_class_budget_bounds_all_streams_together_and_spares_the_other_class():
    a, b = pair()
    streams = [a.open("x") for _ in range(20)]
    for s in streams:
        a.send(s, bytes(WINDOW_BYTES))
        move(a, b)
    assert b.statistics().unconsumed_bytes == CLASS_WINDOW_BYTES[NORMAL]
    assert not a.wants_write
    assert a.statistics().queued_bytes == 4 * WINDOW_BYTES
    # Pings, urgent streams, new streams and ends of streams still pass.
    urgent = a.open("u", URGENT)
    a.send(urgent, b"!")
    late = a.open("late")
    a.finish(late)
    a.ping(1)
    move(a, b)
    received = events(b)
    assert DataReceived(urgent, b"!") in received
    assert Finished(late) in received
    # Consumption of one stream serves those that wait for the class.
    b.consume(streams[0], WINDOW_BYTES)
    b.consume(streams[1], WINDOW_BYTES)
    b.consume(streams[2], WINDOW_BYTES)
    b.consume(streams[3], WINDOW_BYTES)
    move(b, a)
    assert a.wants_write
    move(a, b)
    assert a.statistics().queued_bytes == 0


def test_the_send_buffer_of_a_class_is_bounded():
    a, _ = pair(send_buffer_bytes=WINDOW_BYTES + 100)
    s, t, u = a.open("x"), a.open("x"), a.open("x", URGENT)
    assert a.send(s, bytes(WINDOW_BYTES)) == WINDOW_BYTES
    assert a.send(t, bytes(WINDOW_BYTES)) == 100
    assert a.send(u, bytes(WINDOW_BYTES)) == WINDOW_BYTES  # its own buffer
    assert a.send(t, b"x") == 0
    a.reset(a.open("x"))
    assert events(a) == []  # that made no room
    a.reset(s)  # makes room
    assert events(a) == [Writable(t)]


def test_credit_comes_back_from_streams_that_end_unread():
    """Reset by the reader, by the writer, and data under way to a forgotten stream: the class's budget is whole again."""
    a, b = pair()
    for how in ("reader", "writer", "under way"):
        for _ in range(3 * CLASS_WINDOW_BYTES[NORMAL] // WINDOW_BYTES):
            s = a.open("x")
            a.send(s, bytes(WINDOW_BYTES))
            if how == "under way":
                b.receive(a.outgoing(1024), NOW)
                b.reset(s)
                move(a, b)
            else:
                move(a, b)
                (b if how == "reader" else a).reset(s)
            move(a, b)
            move(b, a)
            events(a)
            events(b)
    assert b.statistics().unconsumed_bytes == 0
    s = a.open("x")
    a.send(s, bytes(WINDOW_BYTES))
    move(a, b)
    assert a.statistics().queued_bytes == 0


def test_more_cannot_be_consumed_than_was_received():
    a, b = pair()
    s = a.open("x")
    a.send(s, b"abc")
    move(a, b)
    for count in (4, -1):
        with pytest.raises(UsageError):
            b.consume(s, count)
    b.consume(s, 3)
    with pytest.raises(UsageError):
        b.consume(s, 1)
    b.consume(12345 * 4, 7)  # a stream that is gone: nothing happens


def test_an_ended_stream_is_kept_until_its_bytes_are_consumed():
    a, b = pair()
    s = a.open("x")
    a.send(s, b"abc")
    a.finish(s)
    move(a, b)
    b.finish(s)
    move(b, a)
    assert b.statistics().streams == 1
    b.consume(s, 3)
    assert b.statistics().streams == 0
    # The same with a reset instead: no frame, for the other side has forgotten the stream.
    s = a.open("x")
    a.send(s, b"abc")
    a.finish(s)
    move(a, b)
    b.finish(s)
    move(b, a)
    b.reset(s)
    assert b.statistics().streams == 0
    assert not any(isinstance(frame, ResetFrame) for frame in sent(b))


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


# Limits.


def test_we_cannot_open_more_streams_than_allowed():
    a, _ = pair(streams_per_peer=3)
    streams = [a.open("x") for _ in range(3)]
    with pytest.raises(StreamLimitReached):
        a.open("x")
    a.reset(streams[0])
    a.open("x")


def test_a_peer_that_opens_too_many_gets_resets():
    a, _ = pair(streams_per_peer=3)
    receive(a, *(Open(remote_id(number), "x") for number in range(1, 6)))
    assert [event.stream_id for event in events(a)] == [remote_id(number) for number in (1, 2, 3)]
    assert sent(a) == [
        ResetFrame(remote_id(4), ResetCode.REFUSED),
        ResetFrame(remote_id(5), ResetCode.REFUSED),
    ]
    # Data that was under way to a refused stream is ignored and its credit returned.
    receive(a, Data(remote_id(4), memoryview(bytes(1000))))
    assert a.statistics().unconsumed_bytes == 0
    assert events(a) == []


def test_the_backlog_of_streams_nobody_looked_at_is_bounded():
    a, _ = pair(accept_backlog=2)
    receive(a, *(Open(remote_id(number), "x") for number in range(1, 4)))
    assert sent(a) == [ResetFrame(remote_id(3), ResetCode.REFUSED)]
    assert len(events(a)) == 2
    receive(a, Open(remote_id(4), "x"))
    assert events(a) == [Opened(remote_id(4), "x", NORMAL)]


def test_ended_but_unread_streams_are_bounded_too():
    a, b = pair(streams_per_peer=4, accept_backlog=100)
    refused = 0
    for _ in range(20):
        try:
            s = a.open("x")
        except StreamLimitReached:
            break
        a.send(s, b"unread")
        a.finish(s)
        move(a, b)
        if any(isinstance(event, Opened) for event in events(b)):
            b.finish(s)
        move(b, a)
        refused += any(isinstance(event, Reset) for event in events(a))
    assert refused > 0
    assert b.statistics().streams == 8


def test_a_flood_that_asks_for_answers_ends_the_connection():
    a, _ = pair(streams_per_peer=1)
    number = 0
    with pytest.raises(ProtocolViolation):  # noqa: PT012 (which of the rounds raises is not the point)
        while True:
            receive(a, *(Open(remote_id(number := number + 1), "x") for _ in range(100)))
    assert number <= MAX_CONTROL_FRAMES + 200
    assert [type(frame) for frame in sent(a)] == [GoAway]


def test_pings_are_answered_and_bounded():
    a, b = pair()
    a.ping(7)
    move(a, b)
    move(b, a)
    assert events(a) == [Pong(7)]
    receive(a, PongFrame(7), PongFrame(8))  # not asked
    assert events(a) == []
    for token in range(100):
        a.ping(token)
        receive(b, Ping(token))
    assert a.statistics().control_frames == b.statistics().control_frames == MAX_PINGS
    move(b, a)
    assert events(a) == [Pong(token) for token in range(100 - MAX_PINGS, 100)]


def test_tiny_frames_do_not_become_many_objects():
    a, _ = pair()
    s = remote_id(1)
    one = encode(Data(s, memoryview(b"x")))
    a.receive(encode(Open(s, "x")) + one * 20_000, NOW)
    assert events(a) == [Opened(s, "x", NORMAL), DataReceived(s, b"x" * 20_000)]


def test_stream_numbers_run_out_cleanly():
    a, _ = pair()
    a._last_local[NORMAL] = MAX_NUMBER - 1
    a.open("x")
    with pytest.raises(StreamLimitReached):
        a.open("x")
    a.open("x", URGENT)


@pytest.mark.parametrize("name", ["", "x" * 65, "with space", "é", "tab\t"])
def test_protocol_names(name):
    a, _ = pair()
    with pytest.raises(UsageError):
        a.open(name)


# Violations.

VIOLATIONS = {
    "data for a stream never opened": [Data(remote_id(1), memoryview(b"x"))],
    "credit for a stream never opened": [Credit(remote_id(1), 1)],
    "reset of a stream never opened": [ResetFrame(remote_id(1), 1)],
    "data for a stream of ours never opened": [
        Data(stream_id(1, NORMAL, opened_by_responder=False), memoryview(b"x"))
    ],
    "open in our series": [Open(stream_id(1, NORMAL, opened_by_responder=False), "x")],
    "open twice": [OPEN, OPEN],
    "open of an older number": [Open(remote_id(5), "x"), Open(remote_id(4), "x")],
    "data after its end": [
        OPEN,
        Data(OPEN.stream_id, memoryview(b""), fin=True),
        Data(OPEN.stream_id, memoryview(b"x")),
    ],
    "end after its end": [OPEN, *[Data(OPEN.stream_id, memoryview(b""), fin=True)] * 2],
    "stream credit overflow": [OPEN, Credit(OPEN.stream_id, MAX_CREDIT_BYTES)],
    "class credit overflow": [ClassCredit(NORMAL, MAX_CREDIT_BYTES)],
    "over the stream's window": [
        OPEN,
        *[Data(OPEN.stream_id, memoryview(bytes(50_000)))] * 5,
        Data(OPEN.stream_id, memoryview(bytes(12_145))),
    ],
}


@pytest.mark.parametrize("frames", VIOLATIONS.values(), ids=VIOLATIONS)
def test_violations_close_the_connection_once(frames):
    a, _ = pair()
    a.open("ours")
    with pytest.raises(ProtocolViolation) as caught:  # noqa: PT012 (the last frame raises)
        for frame in frames:
            receive(a, frame)
    assert a.closed
    assert events(a) == [Closed(CloseCode.VIOLATION, str(caught.value), by_remote=False)]
    assert sent(a) == [GoAway(CloseCode.VIOLATION, str(caught.value))]
    receive(a, Ping(1))  # ignored from now on
    a.receive(b"\xff", NOW)
    assert not a.wants_write
    assert events(a) == []


def test_exactly_the_window_is_no_violation():
    a, _ = pair()
    receive(a, OPEN)
    for _ in range(4):
        receive(
            a,
            Data(OPEN.stream_id, memoryview(bytes(WINDOW_BYTES // 4 // 2))),
            Data(OPEN.stream_id, memoryview(bytes(WINDOW_BYTES // 4 // 2))),
        )
    with pytest.raises(ProtocolViolation):
        receive(a, Data(OPEN.stream_id, memoryview(b"x")))


def test_the_class_window_is_enforced_over_streams_and_forgotten_ones():
    a, _ = pair()
    piece = memoryview(bytes(32_768))
    with pytest.raises(ProtocolViolation, match="class"):  # noqa: PT012 (checked by number below)
        for number in range(1, 100):
            receive(a, Open(remote_id(number, URGENT), "x"))
            for _ in range(8):
                receive(a, Data(remote_id(number, URGENT), piece))
    assert number == CLASS_WINDOW_BYTES[URGENT] // WINDOW_BYTES + 1


def test_a_frame_for_a_stream_of_ours_whose_open_has_not_left():
    a, _ = pair()
    s = a.open("x")
    with pytest.raises(ProtocolViolation):
        receive(a, Credit(s, 1))


def test_a_record_of_the_wrong_size_is_a_violation():
    a, _ = pair()
    with pytest.raises(ProtocolViolation):
        a.receive(bytes(RECORD_BYTES + 1), NOW)


def test_unknown_extension_frames_are_ignored():
    a, _ = pair()
    a.receive(bytes.fromhex("9000000100000000aa") + encode(OPEN), NOW)
    assert len(events(a)) == 1


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
