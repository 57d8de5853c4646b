"""What a peer can try on the multiplexer: too many streams, floods, and frames that break the rules."""

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
from transport.errors import ProtocolViolation, StreamLimitReached, UsageError
from transport.secure.record import RECORD_BYTES
from transport.streams.frames import (
    CLASS_WINDOW_BYTES,
    MAX_CREDIT_BYTES,
    WINDOW_BYTES,
    ClassCredit,
    CloseCode,
    Credit,
    Data,
    GoAway,
    Open,
    Ping,
    ResetCode,
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
    Opened,
    Pong,
    Reset,
)


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
