from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.run.manifest import RunManifest
from node.trainer_messages import (
    MAX_MESSAGE_BYTES,
    Applied,
    Attach,
    Attached,
    CancelLeg,
    Conclude,
    Contribute,
    Evaluated,
    Failed,
    Finished,
    FrameReader,
    Hurry,
    Layout,
    Leg,
    LegDone,
    Look,
    Looked,
    Outcome,
    Ready,
    Report,
    Resync,
    Sample,
    Saved,
    SaveFailed,
    SaveNow,
    Start,
    Stop,
    TensorPlace,
    TrainerProtocolError,
    decode_daemon_message,
    decode_trainer_message,
    encode,
)

DIGEST = bytes(range(32))
MANIFEST = RunManifest(name="demo", task="byte-gpt", task_settings={"width": 64})
FROM_TRAINER = [
    Attach(1, "demo", 42, 1000, DIGEST, 32, True),
    Ready(0, 0, DIGEST),
    Report(5, None, 2560, 51200.0),
    Contribute(0, 32, 16384.0, 2.5, DIGEST),
    Applied(1, 32, DIGEST),
    Evaluated(1, 32, 2.5, 12288),
    Evaluated(1, 32, 2.5, 12288, 0.75),
    Layout((TensorPlace("0.weight", 0, (3, 4)), TensorPlace("scale", 16, ()))),
    LegDone(4, 8, 64.0, 1.5, 40, finite=True),
    Looked(2),
    Saved("/x/y", 1, 32, 100, DIGEST, DIGEST),
    SaveFailed(32, "disk full"),
    Sample("def f():\n    é"),
    Finished(1, 32),
    Failed("no"),
]
FROM_DAEMON = [
    Attached(1000, ("params", "theta"), MANIFEST, "/x"),
    Start(0, 0, "own"),
    Outcome(0, 4, 65536.0, False),
    Resync(3, 96),
    Hurry(3),
    SaveNow(),
    Leg(4, 2, 8),
    Leg(5, 2, 8, "sam", 0.05),
    CancelLeg(4),
    Look(1, 3, evaluate=True),
    Conclude(9),
    Stop("enough"),
]


@pytest.mark.parametrize("message", FROM_TRAINER, ids=lambda m: type(m).__name__)
def test_trainer_messages_survive_the_wire(message):
    assert decode_trainer_message(encode(message)[4:]) == message


@pytest.mark.parametrize("message", FROM_DAEMON, ids=lambda m: type(m).__name__)
def test_daemon_messages_survive_the_wire(message):
    assert decode_daemon_message(encode(message)[4:]) == message


def test_wire_bytes_are_pinned():
    assert encode(Hurry(3)).hex() == "0000001382a474797065a56875727279a5726f756e6403"
    assert encode(SaveNow()).hex() == "0000000f81a474797065a8736176655f6e6f77"


def test_sides_do_not_understand_each_others_messages():
    with pytest.raises(TrainerProtocolError):
        decode_trainer_message(encode(Hurry(1))[4:])
    with pytest.raises(TrainerProtocolError):
        decode_daemon_message(encode(Ready(0, 0, DIGEST))[4:])


def test_unknown_fields_are_ignored():
    body = msgspec.msgpack.encode({"type": "hurry", "round": 1, "since": "the next version"})
    assert decode_daemon_message(body) == Hurry(1)


@pytest.mark.parametrize(
    "fields",
    [
        {"type": "ready", "round": -1, "step": 0, "state_sha256": DIGEST},
        {"type": "ready", "round": 1.5, "step": 0, "state_sha256": DIGEST},
        {"type": "ready", "round": 1, "step": 0, "state_sha256": b"short"},
        {"type": "ready", "round": 1, "step": 0},
        {"type": "ready", "round": 2**63, "step": 0, "state_sha256": DIGEST},
        {"type": "report", "step": 1, "loss": "nan", "tokens": 0, "tokens_per_s": 0.0},
        {"type": "contribute", "round": 0, "steps": 1, "weight": -1.0, "loss": 0.0,
         "state_sha256": DIGEST},
        {"type": "no-such"},
        {"round": 1},
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused(fields):
    with pytest.raises(TrainerProtocolError):
        decode_trainer_message(msgspec.msgpack.encode(fields))


@given(st.binary(max_size=300))
def test_any_bytes_give_a_message_or_one_error(data):
    for decode in (decode_trainer_message, decode_daemon_message):
        try:
            decode(data)
        except TrainerProtocolError:
            continue


@pytest.mark.parametrize("body", [b"\x91" * 5000 + b"\xc0", b"\x81\xa4type" * 400])
def test_deep_nesting_is_refused(body):
    with pytest.raises(TrainerProtocolError):
        decode_trainer_message(body)


def test_messages_over_the_limit_are_not_sent():
    with pytest.raises(TrainerProtocolError):
        encode(Sample("x" * (MAX_MESSAGE_BYTES + 1)))


@given(st.lists(st.sampled_from(FROM_TRAINER), max_size=6), st.integers(1, 50))
def test_frames_are_cut_wherever_the_stream_breaks(messages, size):
    stream = b"".join(encode(message) for message in messages)
    reader, found = FrameReader(), []
    for start in range(0, len(stream), size):
        reader.feed(stream[start : start + size])
        while (body := reader.next_body()) is not None:
            found.append(decode_trainer_message(body))
    assert found == messages
    assert reader.pending_bytes == 0


def test_a_length_over_the_limit_is_refused_before_its_body_comes():
    reader = FrameReader()
    reader.feed((MAX_MESSAGE_BYTES + 1).to_bytes(4, "big"))
    with pytest.raises(TrainerProtocolError):
        reader.next_body()
