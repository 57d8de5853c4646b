"""Messages between members: golden bytes, round trips, and hostile input."""

from __future__ import annotations

import random

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.collective.agreement.certificate import Ballot, Certificate, SignedBy
from gossip.collective.agreement.layout import Layout
from gossip.collective.agreement.lineage import MAX_FAREWELLS, Link, trimmed
from gossip.collective.agreement.messages import (
    MAX_MEMBERS,
    Abort,
    Accept,
    Answer,
    Ask,
    Begin,
    Certified,
    Message,
    Nack,
    Prepare,
    Promise,
    Propose,
    Status,
    Vote,
    Wait,
    decode_message_untrusted,
    encode,
    from_bits,
    to_bits,
)
from transport.codec import MAX_MESSAGE_BYTES
from transport.errors import MalformedMessage
from transport.identity import NodeId

A, B, E, S, D, R = (bytes([byte]) * 32 for byte in (0xAA, 0xBB, 0xEE, 0x55, 0xDD, 0x77))
SIGNATURE = b"\x99" * 64
BALLOT = Ballot(3, 1, A)
PROOF = Certificate(E, 2, D, R, (SignedBy(A, SIGNATURE),))
LINK = Link(
    BALLOT, E, 40, S, b"\x66" * 16, (A, B), (SIGNATURE, SIGNATURE), (SignedBy(A, SIGNATURE),)
)

MESSAGES: dict[str, Message] = {
    "status": Status(
        ready=True, leaving=False, model=A, number=3, round=41, state=S, base=E, farewell=None
    ),
    "farewell": Status(
        ready=False,
        leaving=True,
        model=A,
        number=3,
        round=41,
        state=S,
        base=E,
        farewell=SIGNATURE,
    ),
    "prepare": Prepare(BALLOT),
    "wait": Wait(BALLOT),
    "promise": Promise(BALLOT, 41, S, (), None, (), (B,)),
    "promise with proof": Promise(BALLOT, 41, S, (LINK,), PROOF, (SignedBy(B, SIGNATURE),), (A, B)),
    "nack": Nack(BALLOT, Ballot(4, 0, B), "not ready"),
    "propose": Propose(
        BALLOT,
        (A, B),
        41,
        S,
        b"\x66" * 16,
        (LINK,),
        None,
        b"\x01",
        b"\x02",
        (SignedBy(B, SIGNATURE),),
        Layout(b"\x01\x00", b"", 50_000, 1000, True),
    ),
    "accept": Accept(E, SIGNATURE),
    "begin": Begin(E, 2, D),
    "vote": Vote(E, 2, D, R, SIGNATURE),
    "certified": Certified(PROOF),
    "abort": Abort(E, 2, "lost a member", mismatch=True, lane=3),
    "begin in a lane": Begin(E, 2, D, 15),
    "ask": Ask(E, 15, 2),
    "answer": Answer(E, 15, 2, None),
}

GOLDEN: dict[str, str] = {
    "status": "89a174a6737461747573a57265616479c3a76c656176696e67c2a56d6f64656cc420(aax32)a66e756d62657203a5726f756e6429a57374617465c420(55x32)a462617365c420(eex32)a86661726577656c6cc0",
    "farewell": "89a174a6737461747573a57265616479c2a76c656176696e67c3a56d6f64656cc420(aax32)a66e756d62657203a5726f756e6429a57374617465c420(55x32)a462617365c420(eex32)a86661726577656c6cc440(99x64)",
    "prepare": "82a174a770726570617265a662616c6c6f74930301c420(aax32)",
    "wait": "82a174a477616974a662616c6c6f74930301c420(aax32)",
    "promise": "88a174a770726f6d697365a662616c6c6f74930301c420(aax32)a5726f756e6429a57374617465c420(55x32)a56c696e6b7390ab6365727469666963617465c0a46c65667490a77265616368657391c420(bbx32)",
    "promise with proof": "88a174a770726f6d697365a662616c6c6f74930301c420(aax32)a5726f756e6429a57374617465c420(55x32)a56c696e6b739199930301c420(aax32)c420(eex32)28c420(55x32)c4106666666666666666666666666666666692c420(aax32)c420(bbx32)92c440(99x64)c440(99x64)9192c420(aax32)c440(99x64)95c400c4000000c2ab636572746966696361746585a565706f6368c420(eex32)a873657175656e636502aa64657363726970746f72c420(ddx32)a4726f6f74c420(77x32)aa7369676e6174757265739192c420(aax32)c440(99x64)a46c6566749192c420(bbx32)c440(99x64)a77265616368657392c420(aax32)c420(bbx32)",
    "nack": "84a174a46e61636ba662616c6c6f74930301c420(aax32)a768696768657374930400c420(bbx32)a6726561736f6ea96e6f74207265616479",
    "propose": "8ca174a770726f706f7365a662616c6c6f74930301c420(aax32)a76d656d6265727392c420(aax32)c420(bbx32)a5726f756e6429a57374617465c420(55x32)a473616c74c41066666666666666666666666666666666a56c696e6b739199930301c420(aax32)c420(eex32)28c420(55x32)c4106666666666666666666666666666666692c420(aax32)c420(bbx32)92c440(99x64)c440(99x64)9192c420(aax32)c440(99x64)95c400c4000000c2ab6365727469666963617465c0a7686f6c64657273c40101a56672657368c40102a46c6566749192c420(bbx32)c440(99x64)a66c61796f757495c4020100c400cdc350cd03e8c3",
    "accept": "83a174a6616363657074a565706f6368c420(eex32)a97369676e6174757265c440(99x64)",
    "begin": "84a174a5626567696ea565706f6368c420(eex32)a873657175656e636502aa64657363726970746f72c420(ddx32)",
    "vote": "86a174a4766f7465a565706f6368c420(eex32)a873657175656e636502aa64657363726970746f72c420(ddx32)a4726f6f74c420(77x32)a97369676e6174757265c440(99x64)",
    "certified": "82a174a9636572746966696564ab636572746966696361746585a565706f6368c420(eex32)a873657175656e636502aa64657363726970746f72c420(ddx32)a4726f6f74c420(77x32)aa7369676e6174757265739192c420(aax32)c440(99x64)",
    "abort": "86a174a561626f7274a565706f6368c420(eex32)a873657175656e636502a6726561736f6ead6c6f73742061206d656d626572a86d69736d61746368c3a46c616e6503",
    "begin in a lane": "85a174a5626567696ea565706f6368c420(eex32)a873657175656e636502aa64657363726970746f72c420(ddx32)a46c616e650f",
    "ask": "84a174a361736ba565706f6368c420(eex32)a46c616e650fa873657175656e636502",
    "answer": "85a174a6616e73776572a565706f6368c420(eex32)a46c616e650fa873657175656e636502ab6365727469666963617465c0",
}


def squeeze(data: bytes) -> str:
    """Hex, with runs of 32 and 64 equal bytes written as in the tables of the wire page."""
    text = data.hex()
    for byte in ("aa", "bb", "ee", "55", "dd", "77"):
        text = text.replace(byte * 32, f"({byte}x32)")
    return text.replace("99" * 64, "(99x64)")


@pytest.mark.parametrize("name", MESSAGES)
def test_golden_bytes(name: str) -> None:
    assert squeeze(encode(MESSAGES[name])) == GOLDEN[name]


@pytest.mark.parametrize("name", MESSAGES)
def test_round_trip(name: str) -> None:
    assert decode_message_untrusted(encode(MESSAGES[name])) == MESSAGES[name]


def test_every_message_is_among_the_golden_ones() -> None:
    assert {type(message) for message in MESSAGES.values()} == set(Message.__subclasses__())
    assert set(GOLDEN) == set(MESSAGES)


@pytest.mark.parametrize("name", MESSAGES)
def test_unknown_fields_are_ignored(name: str) -> None:
    fields = msgpack.unpackb(encode(MESSAGES[name]))
    data = msgpack.packb({**fields, "from_a_later_version": [1, {"x": b"y"}]})
    assert decode_message_untrusted(data) == MESSAGES[name]


@pytest.mark.parametrize("name", MESSAGES)
def test_a_missing_or_wrong_field_is_malformed(name: str) -> None:
    fields = msgpack.unpackb(encode(MESSAGES[name]))
    optional = {"mismatch", "late", "farewell", "lane"}
    for key in fields:
        without = {other: value for other, value in fields.items() if other != key}
        if key not in optional:
            with pytest.raises(MalformedMessage):
                decode_message_untrusted(msgpack.packb(without))
        for wrong in (-1, 2**64 - 1, 1.5, "text", b"short", b"x" * 33, [1], {"t": 1}, [None]):
            if key == "reason" and isinstance(wrong, str):
                continue
            if key in {"holders", "fresh"} and wrong == b"short":
                continue
            with pytest.raises(MalformedMessage):
                decode_message_untrusted(msgpack.packb({**fields, key: wrong}))


@pytest.mark.parametrize(
    "changed",
    [
        {"t": "abort", "epoch": E, "sequence": 1, "reason": "x" * 201},
        {"t": "abort", "epoch": E, "sequence": 2**53 + 1, "reason": ""},
        {"t": "prepare", "ballot": [1, 2]},
        {"t": "prepare", "ballot": [1, 2**31 + 1, A]},
        {"t": "prepare", "ballot": {"number": 1, "attempt": 1, "proposer": A}},
        {"t": "nothing"},
        {},
        [],
        None,
    ],
)
def test_out_of_range(changed: object) -> None:
    with pytest.raises(MalformedMessage):
        decode_message_untrusted(msgpack.packb(changed))


@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_malformed(data: bytes) -> None:
    try:
        message = decode_message_untrusted(data)
    except MalformedMessage:
        return
    assert isinstance(message, Message)


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.binary(max_size=40)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(st.sampled_from(sorted(MESSAGES)), st.data())
def test_any_change_of_a_field_is_a_message_or_malformed(name: str, data: st.DataObject) -> None:
    fields = msgpack.unpackb(encode(MESSAGES[name]))
    key = data.draw(st.sampled_from(sorted(fields)))
    fields[key] = data.draw(PLAIN)
    try:
        message = decode_message_untrusted(msgpack.packb(fields))
    except MalformedMessage:
        return
    assert isinstance(message, Message)
    assert decode_message_untrusted(encode(message)) == message


@pytest.mark.parametrize("name", MESSAGES)
def test_every_cut_and_many_flips_are_a_message_or_malformed(name: str) -> None:
    data = encode(MESSAGES[name])
    for end in range(len(data)):
        with pytest.raises(MalformedMessage):
            decode_message_untrusted(data[:end])
    with pytest.raises(MalformedMessage):
        decode_message_untrusted(data + b"\x00")
    rng = random.Random(name)
    for _ in range(200):
        flipped = bytearray(data)
        flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        try:
            assert isinstance(decode_message_untrusted(bytes(flipped)), Message)
        except MalformedMessage:
            pass


def test_the_largest_epoch_fits_into_a_message() -> None:
    members = tuple(index.to_bytes(32, "big") for index in range(MAX_MEMBERS))
    proof = Certificate(E, 2**53, D, R, tuple(SignedBy(node, SIGNATURE) for node in members))
    ballot = Ballot(2**53, 2**31, A)
    signatures = (SIGNATURE,) * MAX_MEMBERS
    farewells = (SignedBy(A, SIGNATURE),) * MAX_FAREWELLS
    short = Link(ballot, E, 2**53, S, bytes(16), members[:3], signatures[:3])
    ranks = bytes(range(MAX_MEMBERS))
    widest = Layout(ranks, ranks, 10**8, 2**40, True)
    largest = Link(ballot, E, 2**53, S, bytes(16), members, signatures, farewells, widest)
    links = trimmed((short, short, largest))
    assert links == (largest,), "one so large is alone"
    every = to_bits(members, members)
    for message in (
        Promise(ballot, 2**53, S, links, proof, farewells, members),
        Propose(
            ballot, members, 2**53, S, bytes(16), links, proof, every, every, farewells, widest
        ),
    ):
        data = encode(message)
        assert len(data) <= MAX_MESSAGE_BYTES
        assert decode_message_untrusted(data) == message


def test_one_member_more_is_malformed() -> None:
    members = tuple(index.to_bytes(32, "big") for index in range(MAX_MEMBERS + 1))
    for message in (
        Promise(BALLOT, 0, S, (), None, (), members),
        Propose(BALLOT, members, 0, S, bytes(16), (), None, b"", b"", (), Layout()),
        Propose(BALLOT, (), 0, S, bytes(16), (), None, b"\0" * 33, b"", (), Layout()),
        Propose(
            BALLOT,
            (),
            0,
            S,
            bytes(16),
            (),
            None,
            b"",
            b"",
            (SignedBy(A, SIGNATURE),) * 17,
            Layout(),
        ),
        Propose(BALLOT, (), 0, S, bytes(16), (LINK,) * 65, None, b"", b"", (), Layout()),
        msgspec.structs.replace(
            MESSAGES["promise"],
            certificate=Certificate(E, 0, D, R, (SignedBy(A, SIGNATURE),) * (MAX_MEMBERS + 1)),
        ),
    ):
        with pytest.raises(MalformedMessage):
            decode_message_untrusted(encode(message))


@given(st.integers(0, MAX_MEMBERS), st.data())
def test_sets_of_members_as_bits(count: int, data: st.DataObject) -> None:
    members = tuple(NodeId(index.to_bytes(32, "big")) for index in range(count))
    picked = data.draw(st.sets(st.sampled_from(members))) if members else set()
    chosen = tuple(member for member in members if member in picked)
    assert from_bits(members, to_bits(members, chosen)) == chosen
    assert from_bits(members, b"\xff" * 40) == members, "bits beyond the last member mean nothing"
