"""Credit by direct calls: who may send how much, who gives it back, and when a window is widened."""

import pytest

from tests.transport.muxes import NORMAL, NOW, URGENT, events, move, pair, sent
from transport.errors import StreamClosed, UsageError
from transport.secure.record import RECORD_BYTES
from transport.streams.frames import (
    CLASS_WINDOW_BYTES,
    WIDEST_BYTES,
    WINDOW_BYTES,
    Credit,
    Priority,
    ResetCode,
    decode,
    encode,
)
from transport.streams.frames import Reset as ResetFrame
from transport.streams.mux import DataReceived, Finished, Reset, Writable


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
