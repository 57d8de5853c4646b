"""The handshake: both sides agree on keys, identities and roles, for any split of the bytes."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.transport.handshakes import (
    ALICE,
    ALICE_INTRO,
    BOB,
    BOB_INTRO,
    FIRST,
    WIRE,
    feed,
    flights,
    identity_payload,
    make,
    malicious,
    scripted,
)
from transport.address import Address
from transport.codec import pack
from transport.errors import HandshakeFailed, UsageError
from transport.identity import NodeId
from transport.secure.handshake import MAGIC, Intro
from transport.secure.processor import can_use_aegis


def test_both_sides_agree():
    initiator, responder = make("initiator", expected=BOB.node_id), make("responder")
    assert initiator.result is None
    flights(initiator, responder)
    ours, theirs = initiator.result, responder.result
    assert (ours.node_id, ours.public_key) == (BOB.node_id, BOB.public_key)
    assert (theirs.node_id, theirs.public_key) == (ALICE.node_id, ALICE.public_key)
    assert ours.intro == BOB_INTRO
    assert theirs.intro == ALICE_INTRO
    assert ours.session_id == theirs.session_id
    assert len(ours.session_id) == 32
    assert (ours.tie_break, ours.remote_tie_break) == (theirs.remote_tie_break, theirs.tie_break)
    assert (ours.role, theirs.role) == ("initiator", "responder")
    assert ours.leftover == theirs.leftover == b""
    for sealer, opener in ((ours.sealer, theirs.opener), (theirs.sealer, ours.opener)):
        out = bytearray(26)
        sealer.seal_into(0, b"hello", memoryview(out))
        opener.open_into(out[:5], memoryview(out)[5:], memoryview(out)[5:])
        assert bytes(out[5:10]) == b"hello"


def test_the_two_directions_have_different_keys():
    initiator, responder = make("initiator"), make("responder")
    flights(initiator, responder)
    records = []
    for result in (initiator.result, responder.result):
        out = bytearray(26)
        result.sealer.seal_into(0, b"hello", memoryview(out))
        records.append(bytes(out))
    assert records[0] != records[1]
    with pytest.raises(Exception, match="authentication"):
        initiator.result.opener.open_into(records[0][:5], records[0][5:], memoryview(bytearray(5)))


def test_golden_flights():
    """The exact bytes of one handshake with given keys; a change here is a change of the wire protocol (see docs/wire.md)."""
    initiator, responder = scripted("initiator"), scripted("responder")
    first, second, third = flights(initiator, responder)
    assert first.hex() == WIRE["first_flight"]
    assert second.hex() == WIRE["second_flight"]
    assert third.hex() == WIRE["third_flight"]
    assert initiator.result.session_id.hex() == WIRE["session_id"]
    for result, record in (
        (initiator.result, WIRE["first_record_of_initiator"]),
        (responder.result, WIRE["first_record_of_responder"]),
    ):
        out = bytearray(8 + 21)
        result.sealer.seal_into(0, bytes.fromhex(WIRE["record_payload"]), memoryview(out))
        assert out.hex() == record


@settings(max_examples=40)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.binary(max_size=50))
def test_any_split_of_the_bytes_gives_the_same_result(sizes, extra):
    initiator, responder = make("initiator"), make("responder")
    rest = feed(responder, initiator.outgoing(), sizes)
    assert rest == b""
    rest = feed(initiator, responder.outgoing(), sizes)
    assert initiator.result.leftover + rest == b""
    rest = feed(responder, initiator.outgoing() + extra, sizes)
    assert responder.result.leftover + rest == extra
    assert initiator.result.session_id == responder.result.session_id


def test_bytes_after_the_last_message_are_kept():
    initiator, responder = make("initiator"), make("responder")
    responder.receive(initiator.outgoing())
    # A responder never speaks before message 3, but what follows message 2 must not get lost either.
    initiator.receive(responder.outgoing() + b"early")
    assert initiator.result.leftover == b"early"
    responder.receive(initiator.outgoing() + bytes(100_000))
    assert responder.result.leftover == bytes(100_000)
    with pytest.raises(UsageError):
        responder.receive(b"more")


def test_the_responder_says_nothing_before_the_whole_first_flight():
    responder = make("responder")
    for place in range(len(FIRST) - 1):
        responder.receive(FIRST[place : place + 1])
        assert responder.outgoing() == b""
        assert responder.result is None
    responder.receive(FIRST[-1:])
    assert responder.outgoing().startswith(MAGIC)


def test_unknown_intro_fields_are_ignored():
    liar = malicious(
        "initiator",
        lambda self: identity_payload(
            self, intro=pack({"kind": "bulk", "label": b"x", "new": {"a": [1]}})
        ),
    )
    responder = make("responder")
    flights(liar, responder)
    assert responder.result.intro == Intro(kind="bulk", label=b"x")


@pytest.mark.parametrize(
    "arguments",
    [
        {"kind": "other"},
        {"name": "x" * 65},
        {"name": "a\nb"},
        {"listen": (Address("h", 1),) * 17},
        {"listen": ("h:1",)},
        {"label": bytes(65)},
        {"label": "text"},
    ],
)
def test_an_intro_that_the_other_side_would_refuse_cannot_be_made(arguments):
    with pytest.raises((UsageError, ValueError)):
        Intro(**arguments)


def test_an_intro_over_three_kibibytes_cannot_be_sent():
    long = ".".join(["x" * 60] * 4)
    with pytest.raises(UsageError):
        make("initiator", intro=Intro(listen=tuple(Address(long, port) for port in range(16))))


def test_the_largest_intro_fits_the_four_kibibytes():
    addresses = tuple(
        Address(f"fe80::{port:x}:1111:2222:3333%eth0123456789", port)
        for port in range(50000, 50016)
    )
    intro = Intro("bulk", "é" * 64, addresses, bytes(64), aegis=can_use_aegis())
    initiator, responder = make("initiator", intro=intro), make("responder", intro=intro)
    flights(initiator, responder)
    assert responder.result.intro == initiator.result.intro == intro


def test_eof_says_what_probably_happened():
    with pytest.raises(HandshakeFailed, match="without an answer") as caught:
        make("initiator").receive_eof()
    assert caught.value.hint
    with pytest.raises(HandshakeFailed, match="without saying hello"):
        make("responder").receive_eof()
    responder = make("responder")
    responder.receive(FIRST)
    with pytest.raises(HandshakeFailed, match="during the handshake"):
        responder.receive_eof()


def test_fresh_keys_every_time():
    seeds = random.Random(11)
    sessions = set()
    for _ in range(3):
        initiator = make("initiator", seed=seeds.random())
        responder = make("responder", seed=seeds.random())
        flights(initiator, responder)
        sessions.add(initiator.result.session_id)
    assert len(sessions) == 3


def test_secrets_stay_out_of_repr():
    initiator, responder = make("initiator"), make("responder")
    flights(initiator, responder)
    text = repr(initiator.result)
    assert "Sealer" not in text
    assert "session" not in text
    assert isinstance(initiator.result.node_id, NodeId)


def test_each_side_tells_the_other_where_it_sees_it():
    initiator = make("initiator", intro=Intro(kind="probe", label=b"n", observed="192.0.2.9:7447"))
    responder = make("responder", intro=Intro(observed="[2001:db8::1]:40000"))
    flights(initiator, responder)
    assert responder.result.intro == Intro(kind="probe", label=b"n", observed="192.0.2.9:7447")
    assert initiator.result.intro.observed == "[2001:db8::1]:40000"
