"""The handshake: agreement for any split of the bytes, a clear error for every mismatch, and no way in for anybody else."""

import contextlib
import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transport.address import Address
from transport.codec import pack
from transport.errors import (
    HandshakeFailed,
    NotNoded,
    SelfDialed,
    UsageError,
    VersionMismatch,
    WrongPeer,
    WrongSwarm,
)
from transport.identity import Identity, NodeId
from transport.secure.handshake import (
    HELLO_BYTES,
    MAGIC,
    MAX_HANDSHAKE_BYTES,
    Handshake,
    Intro,
)
from transport.swarm import Swarm

SWARM = Swarm(bytes(range(32)))
ALICE = Identity.from_seed(bytes([1]) * 32)
BOB = Identity.from_seed(bytes([2]) * 32)
CAROL = Identity.from_seed(bytes([3]) * 32)
ALICE_INTRO = Intro(name="alice", listen=(Address("10.0.0.1", 7447), Address("::1", 1)))
BOB_INTRO = Intro(name="bob")


def make(role, *, seed=None, identity=None, swarm=SWARM, intro=None, expected=None):
    return Handshake(
        role=role,
        identity=identity or (ALICE if role == "initiator" else BOB),
        swarm=swarm,
        intro=intro or (ALICE_INTRO if role == "initiator" else BOB_INTRO),
        random_bytes=random.Random(seed if seed is not None else role).randbytes,
        expected=expected,
    )


def flights(initiator, responder):
    """Run to the end; the three flights."""
    first = initiator.outgoing()
    responder.receive(first)
    second = responder.outgoing()
    initiator.receive(second)
    third = initiator.outgoing()
    responder.receive(third)
    return first, second, third


FIRST, SECOND, THIRD = flights(make("initiator"), make("responder"))


def feed(handshake, data, sizes=None):
    """Deliver `data` in pieces until it ends or the handshake has its result; the undelivered rest."""
    place, number = 0, 0
    while place < len(data) and handshake.result is None:
        size = sizes[number % len(sizes)] if sizes else len(data)
        handshake.receive(data[place : place + size])
        place, number = place + size, number + 1
    return data[place:]


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


WIRE = json.loads((Path(__file__).parent / "vectors" / "handshake.json").read_text())


def scripted(role, *, tie_break_of=None, punch=False):
    given_bytes = [
        bytes.fromhex(WIRE[f"{role}_ephemeral"]),
        bytes.fromhex(WIRE[f"{role}_static"]),
        bytes.fromhex(WIRE[f"{tie_break_of or role}_tie_break"]),
    ]

    def random_bytes(size):
        data = given_bytes.pop(0)
        assert len(data) == size
        return data

    return Handshake(
        role="punch" if punch else role,
        identity=Identity.from_seed(bytes.fromhex(WIRE[f"{role}_identity_seed"])),
        swarm=Swarm(bytes.fromhex(WIRE["swarm_key"])),
        intro=Intro(name=role, listen=(Address.parse(WIRE[f"{role}_listen"]),)),
        random_bytes=random_bytes,
    )


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


@pytest.mark.parametrize("flight", [1, 2, 3])
def test_every_single_bit_flip_breaks_the_handshake(flight):
    """No bit of any flight is malleable: neither side ends up with a result the other side agrees with."""
    data = (FIRST, SECOND, THIRD)[flight - 1]
    # Every byte, a different bit each; all eight bits of the clear-text hellos, lengths and proof.
    clear = HELLO_BYTES + 50 if flight < 3 else 2
    places = [
        (place, bit)
        for place in range(len(data))
        for bit in (range(8) if place < clear else (place % 8,))
    ]
    for place, bit in places:
        wrong = bytearray(data)
        wrong[place] ^= 1 << bit
        initiator, responder = make("initiator"), make("responder")
        reached = _run_with(initiator, responder, flight, bytes(wrong))
        # The side that reads the wrong bytes has no result; if the flip only shows later, the other side fails.
        assert responder.result is None, (place, bit)
        assert not reached, (place, bit)
        if flight < 3:
            assert initiator.result is None, (place, bit)


def _run_with(initiator, responder, flight, wrong):
    """Whether the handshake went through with the given flight replaced."""
    try:
        first = initiator.outgoing()
        responder.receive(wrong if flight == 1 else first)
        second = responder.outgoing()
        initiator.receive(wrong if flight == 2 else second)
        third = initiator.outgoing()
        responder.receive(wrong if flight == 3 else third)
    except HandshakeFailed:
        return False
    return responder.result is not None


@pytest.mark.parametrize("flight", [1, 2, 3])
def test_truncation_never_gives_a_result(flight):
    data = (FIRST, SECOND, THIRD)[flight - 1]
    for size in range(len(data)):
        initiator, responder = make("initiator"), make("responder")
        if flight == 1:
            responder.receive(data[:size])
            reader = responder
        else:
            responder.receive(initiator.outgoing())
            reader = initiator
            if flight == 2:
                initiator.receive(data[:size])
            else:
                initiator.receive(responder.outgoing())
                responder.receive(data[:size])
                reader = responder
        assert reader.result is None
        with pytest.raises(HandshakeFailed):
            reader.receive_eof()
        if flight == 2 or (size < len(data) and flight == 1):
            assert initiator.result is None


def test_a_replayed_first_flight_leads_nowhere():
    """An observer repeats Alice's flight to Bob, and then her message 3: Bob's fresh keys make it worthless."""
    responder = make("responder", seed=99)
    responder.receive(FIRST)
    assert responder.outgoing() != SECOND
    with pytest.raises(HandshakeFailed):
        responder.receive(THIRD)
    assert responder.result is None


def test_a_replayed_second_flight_is_refused():
    initiator = make("initiator", seed=99)
    initiator.outgoing()
    with pytest.raises(HandshakeFailed):
        initiator.receive(SECOND)
    assert initiator.outgoing() == b""


def test_reordered_messages_are_refused():
    responder = make("responder")
    with pytest.raises(HandshakeFailed):
        responder.receive(THIRD + FIRST)
    responder = make("responder")
    with pytest.raises(HandshakeFailed):
        responder.receive(FIRST + FIRST)


def test_a_reflected_flight_is_refused_in_both_roles():
    initiator = make("initiator")
    with pytest.raises(HandshakeFailed, match="role"):
        initiator.receive(initiator.outgoing())
    responder = make("responder")
    with pytest.raises(HandshakeFailed, match="role"):
        responder.receive(SECOND)
    assert responder.outgoing() == b""


def test_a_reflection_through_the_responder_role_finds_our_own_identity():
    """Somebody forwards our own dial back to our listener: both ends notice."""
    initiator = make("initiator")
    responder = make("responder", identity=ALICE)
    responder.receive(initiator.outgoing())
    with pytest.raises(SelfDialed):
        initiator.receive(responder.outgoing())
    assert initiator.outgoing() == b""  # no identity sent
    assert responder.result is None


def test_a_copied_key_is_noticed_by_the_responder_too():
    """An initiator that holds our key and does not check: `malicious` signs as Carol, the responder is Carol."""
    liar = malicious("initiator", _payload)
    responder = make("responder", identity=CAROL)
    responder.receive(liar.outgoing())
    liar._identity = ALICE  # switches its own check off
    liar.receive(responder.outgoing())
    with pytest.raises(SelfDialed):
        responder.receive(liar.outgoing())
    assert responder.result is None


def test_the_wrong_peer_is_refused_before_our_identity_goes_out():
    initiator, responder = make("initiator", expected=CAROL.node_id), make("responder")
    responder.receive(initiator.outgoing())
    with pytest.raises(WrongPeer, match=BOB.node_id.short) as caught:
        initiator.receive(responder.outgoing())
    assert CAROL.node_id.short in str(caught.value)
    assert caught.value.hint
    assert initiator.outgoing() == b""
    assert initiator.result is None


def test_a_responder_can_expect_somebody_too():
    initiator, responder = make("initiator"), make("responder", expected=CAROL.node_id)
    with pytest.raises(WrongPeer):
        flights(initiator, responder)


def test_another_swarm_is_named_on_both_sides():
    other = Swarm(bytes(32))
    initiator, responder = make("initiator"), make("responder", swarm=other)
    with pytest.raises(WrongSwarm) as caught:
        responder.receive(initiator.outgoing())
    assert caught.value.code == "wrong-swarm"
    answer = responder.outgoing()
    assert len(answer) == HELLO_BYTES
    with pytest.raises(WrongSwarm):
        initiator.receive(answer)
    assert initiator.outgoing() == b""


def test_a_stranger_who_copies_the_tag_gets_no_answer(monkeypatch):
    stranger = Swarm(bytes(32))
    stranger.__dict__["tag"] = SWARM.tag
    initiator, responder = make("initiator", swarm=stranger), make("responder")
    with pytest.raises(WrongSwarm, match="does not hold its key"):
        responder.receive(initiator.outgoing())
    assert responder.outgoing() == b""


def test_a_responder_without_the_swarm_key_learns_no_identity():
    stranger = Swarm(bytes(32))
    stranger.__dict__["tag"] = SWARM.tag
    initiator, responder = make("initiator"), make("responder", swarm=stranger)
    # It skips the proof, and knows everything but the key.
    responder._proof = lambda hello, ephemeral: FIRST[-16:]
    responder.receive(initiator.outgoing())
    with pytest.raises(HandshakeFailed):
        initiator.receive(responder.outgoing())
    assert initiator.outgoing() == b""


@pytest.mark.parametrize("version", [0, 2, 255])
def test_another_version_is_named_on_both_sides(version):
    initiator, responder = make("initiator"), make("responder")
    hello = bytearray(initiator.outgoing())
    hello[8] = version
    with pytest.raises(VersionMismatch, match=f"version {version}"):
        responder.receive(
            bytes(hello[:9])
        )  # at the first possible byte: a later version may have another hello
    answer = bytearray(responder.outgoing())
    assert len(answer) == HELLO_BYTES
    answer[8] = version
    with pytest.raises(VersionMismatch):
        initiator.receive(bytes(answer))


@pytest.mark.parametrize("field", [slice(10, 12), slice(12, 20)], ids=["flags", "tie-break"])
@pytest.mark.parametrize("flight", [1, 2])
def test_an_edited_hello_field_breaks_the_handshake(field, flight):
    """Fields that are not compared (flags, tie-break) are protected by the proof and the prologue."""
    initiator, responder = make("initiator"), make("responder")
    wrong = bytearray((FIRST, SECOND)[flight - 1])
    wrong[field] = bytes(byte ^ 0xFF for byte in wrong[field])
    assert not _run_with(initiator, responder, flight, bytes(wrong))
    assert initiator.result is None


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00",
        b"GET / HTTP/1.1\r\n\r\n",
        b"SSH-2.0-x",
        b"\x16\x03\x01",
        MAGIC[:-1] + b"\r",
        b"\x93nodes",
    ],
)
def test_garbage_is_refused_at_the_first_wrong_byte_without_a_reply(garbage):
    for role in ("initiator", "responder"):
        handshake = make(role)
        handshake.outgoing()
        with pytest.raises(NotNoded):
            handshake.receive(garbage)
        assert handshake.outgoing() == b""
        with pytest.raises(NotNoded):
            handshake.receive(FIRST)
        with pytest.raises(NotNoded):
            handshake.receive_eof()


@settings(max_examples=200)
@given(st.binary(max_size=400), st.integers(0, 200), st.sampled_from(["initiator", "responder"]))
def test_random_bytes_raise_only_handshake_failed(noise, prefix, role):
    good = FIRST if role == "responder" else SECOND
    handshake = make(role)
    first = handshake.outgoing()
    try:
        handshake.receive(good[:prefix] + noise)
    except HandshakeFailed:
        assert len(handshake.outgoing()) <= HELLO_BYTES
    assert handshake.result is None or prefix + len(noise) >= len(good)
    assert len(first) in (0, len(FIRST))


@pytest.mark.parametrize("length", [MAX_HANDSHAKE_BYTES - HELLO_BYTES - 1, 65535])
def test_more_than_four_kibibytes_are_refused_when_announced(length):
    initiator = make("initiator")
    initiator.outgoing()
    with pytest.raises(HandshakeFailed, match="4 KiB"):
        initiator.receive(SECOND[:HELLO_BYTES] + length.to_bytes(2, "big"))


def test_a_shorter_message_than_any_legal_one_is_refused():
    for length in (0, 1, 32, 95):
        initiator = make("initiator")
        initiator.outgoing()
        with pytest.raises(HandshakeFailed):
            initiator.receive(SECOND[:HELLO_BYTES] + length.to_bytes(2, "big") + bytes(length))


def malicious(role, payload_of):
    """A member of the swarm with its own ideas about the identity payload."""

    class Malicious(Handshake):
        def _send_identity(self, noise):
            message = noise.write_message(payload_of(self))
            self._out += len(message).to_bytes(2, "big") + message

    return Malicious(
        role=role,
        identity=CAROL,
        swarm=SWARM,
        intro=Intro(),
        random_bytes=random.Random(7).randbytes,
    )


def _payload(
    self,
    *,
    public_key=CAROL.public_key,
    signer=CAROL,
    role=None,
    swarm=SWARM,
    static=None,
    intro=None,
):
    signed = b"noded identity v1\x00" + swarm.id
    signed += bytes([{"initiator": 1, "responder": 2}[role or self._role]])
    signed += static or self._static.public
    return public_key + signer.sign(signed) + (self._intro if intro is None else intro)


IDENTITY_POINT = bytes([1]) + bytes(31)
LIES = {
    "no payload": lambda self: b"",
    "no signature": lambda self: CAROL.public_key,
    "somebody else's key": lambda self: _payload(self, public_key=ALICE.public_key),
    "signed by another key": lambda self: _payload(self, signer=ALICE),
    "signed for the other role": lambda self: _payload(
        self, role="responder" if self._role == "initiator" else "initiator"
    ),
    "signed for another swarm": lambda self: _payload(self, swarm=Swarm(bytes(32))),
    "signed for another static key": lambda self: _payload(self, static=bytes(32)),
    "identity point as a key": lambda self: (
        IDENTITY_POINT + IDENTITY_POINT + bytes(32) + self._intro
    ),
    "zero signature": lambda self: CAROL.public_key + bytes(64) + self._intro,
    "no intro": lambda self: _payload(self, intro=b""),
    "intro is not a map": lambda self: _payload(self, intro=b"\x90"),
    "intro of an unknown kind": lambda self: _payload(self, intro=pack({"kind": "other"})),
    "name too long": lambda self: _payload(self, intro=pack({"kind": "control", "name": "x" * 65})),
    "name with an escape": lambda self: _payload(
        self, intro=pack({"kind": "control", "name": "a\x1b[2J"})
    ),
    "too many addresses": lambda self: _payload(
        self, intro=pack({"kind": "control", "listen": ["h:1"] * 17})
    ),
    "bad address": lambda self: _payload(
        self, intro=pack({"kind": "control", "listen": ["nowhere"]})
    ),
    "label too long": lambda self: _payload(self, intro=pack({"kind": "bulk", "label": bytes(65)})),
    "label is text": lambda self: _payload(self, intro=pack({"kind": "bulk", "label": "x"})),
    "intro with an extension": lambda self: _payload(self, intro=b"\x81\xa4kind\xc7\x00\x05"),
}


@pytest.mark.parametrize("role", ["initiator", "responder"])
@pytest.mark.parametrize("lie", LIES)
def test_a_member_cannot_lie_about_who_it_is(lie, role):
    liar = malicious(role, LIES[lie])
    honest = make("responder" if role == "initiator" else "initiator")
    with pytest.raises(HandshakeFailed) as caught:
        flights(liar, honest) if role == "initiator" else flights(honest, liar)
    assert honest.result is None
    assert str(caught.value).isprintable()
    assert not isinstance(caught.value, NotNoded)


@pytest.mark.parametrize("role", ["initiator", "responder"])
def test_the_honest_payload_of_the_malicious_class_passes(role):
    """The lies above fail for what they say, not for how they are sent."""
    peer = malicious(role, _payload)
    honest = make("responder" if role == "initiator" else "initiator")
    flights(peer, honest) if role == "initiator" else flights(honest, peer)
    assert honest.result.node_id == CAROL.node_id


def test_unknown_intro_fields_are_ignored():
    liar = malicious(
        "initiator",
        lambda self: _payload(self, intro=pack({"kind": "bulk", "label": b"x", "new": {"a": [1]}})),
    )
    responder = make("responder")
    flights(liar, responder)
    assert responder.result.intro == Intro(kind="bulk", label=b"x")


def test_a_small_order_ephemeral_is_refused():
    zero = bytes(32)
    hello = FIRST[:HELLO_BYTES]
    proof = SWARM.proof(b"noded member v1", hello + zero)[:16]  # from a member
    responder = make("responder")
    with pytest.raises(HandshakeFailed, match="small order"):
        responder.receive(hello + zero + proof)
    assert responder.result is None


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
    intro = Intro(kind="bulk", name="é" * 64, listen=addresses, label=bytes(64))
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


# Observed addresses and probes


def test_each_side_tells_the_other_where_it_sees_it():
    initiator = make("initiator", intro=Intro(kind="probe", label=b"n", observed="192.0.2.9:7447"))
    responder = make("responder", intro=Intro(observed="[2001:db8::1]:40000"))
    flights(initiator, responder)
    assert responder.result.intro == Intro(kind="probe", label=b"n", observed="192.0.2.9:7447")
    assert initiator.result.intro.observed == "[2001:db8::1]:40000"


@pytest.mark.parametrize(
    "observed", ["nowhere", "h:1 ", "H:1", f"h:1/via/{ALICE.node_id}", "a" * 500, "h:99999"]
)
def test_a_malformed_observed_address_is_refused_both_ways(observed):
    with pytest.raises(UsageError):
        Intro(observed=observed)
    liar = malicious(
        "initiator",
        lambda self: _payload(self, intro=pack({"kind": "control", "observed": observed})),
    )
    with pytest.raises(HandshakeFailed):
        flights(liar, make("responder"))


# Punched: both dial at once

LOW, HIGH = 1, 2**63 + 5


EVERYBODY = (ALICE.node_id, BOB.node_id, CAROL.node_id)


def punching(
    identity, tie_break, *, role="punch", swarm=SWARM, expected=None, seed=None, agreed=EVERYBODY
):
    random_bytes = random.Random(seed if seed is not None else tie_break).randbytes
    return Handshake(
        role=role,
        identity=identity,
        swarm=swarm,
        intro=Intro(name="high" if tie_break == HIGH else "low"),
        random_bytes=lambda size: tie_break.to_bytes(8, "big") if size == 8 else random_bytes(size),
        expected=expected,
        punching=agreed if role == "responder" else (),
    )


def exchange(high, low, change=lambda number, data: data):
    """Run until both are silent; `change` may edit the flights, numbered in order of sending."""
    sent, number, silent = [], 0, 0
    while silent < 2:
        for source, sink in ((high, low), (low, high)):
            data = source.outgoing()
            silent = 0 if data else silent + 1
            if data:
                sent.append(data)
                data, number = change(number, data), number + 1
                if sink.result is None:
                    sink.receive(data)
    return sent


@pytest.mark.parametrize(
    "roles", [("punch", "punch"), ("responder", "punch"), ("punch", "responder")]
)
def test_the_higher_tie_break_is_the_initiator(roles):
    """Whether a side saw its own dial succeed or its listener: the bytes and the result are the same."""
    high = punching(ALICE, HIGH, role=roles[0], expected=BOB.node_id)
    low = punching(BOB, LOW, role=roles[1], expected=ALICE.node_id)
    sent = exchange(high, low)
    assert b"".join(sent).count(MAGIC) == 2
    for mine, theirs, role, who in (
        (high.result, low.result, "initiator", BOB),
        (low.result, high.result, "responder", ALICE),
    ):
        assert (mine.role, mine.node_id, mine.punched) == (role, who.node_id, True)
        assert mine.session_id == theirs.session_id
        assert (mine.tie_break, mine.remote_tie_break) == (
            theirs.remote_tie_break,
            theirs.tie_break,
        )
        record = bytearray(26)
        mine.sealer.seal_into(0, b"hello", memoryview(record))
        theirs.opener.open_into(record[:5], memoryview(record)[5:], memoryview(record)[5:])
        assert record[5:10] == b"hello"


def test_golden_punch():
    """The same nodes as in `test_golden_flights`, the tie-breaks exchanged so that the initiator is the same."""
    initiator = scripted("initiator", tie_break_of="responder", punch=True)
    responder = scripted("responder", tie_break_of="initiator", punch=True)
    sent = exchange(initiator, responder)
    assert sent[0].hex() == WIRE["punch_initiator_hello"]
    assert sent[1].hex() == WIRE["punch_responder_hello"]
    assert sent[2].hex() == WIRE["punch_first_message"]
    assert initiator.result.session_id.hex() == WIRE["punch_session_id"]
    assert responder.result.session_id.hex() == WIRE["punch_session_id"]


def test_a_punching_side_sends_its_bare_hello_and_waits():
    for tie_break in (LOW, HIGH):
        side = punching(ALICE, tie_break)
        hello = side.outgoing()
        assert len(hello) == HELLO_BYTES
        assert hello[9] == 3
        assert side.outgoing() == b""
        with pytest.raises(HandshakeFailed):
            side.receive_eof()


@settings(max_examples=40)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.binary(max_size=50))
def test_any_split_of_a_punched_handshake_gives_the_same_result(sizes, extra):
    high, low = punching(ALICE, HIGH), punching(BOB, LOW)
    feed(low, high.outgoing(), sizes)
    feed(high, low.outgoing(), sizes)
    feed(low, high.outgoing(), sizes)
    rest = feed(high, low.outgoing() + extra, sizes)
    assert high.result.leftover + rest == extra
    rest = feed(low, high.outgoing() + extra, sizes)
    assert low.result.leftover + rest == extra
    assert high.result.session_id == low.result.session_id


def test_every_bit_of_a_punched_handshake_counts():
    flights_sent = exchange(punching(ALICE, HIGH), punching(BOB, LOW))
    assert len(flights_sent) == 5  # two hellos, and the three messages of XX
    for flight, original in enumerate(flights_sent):
        for place in range(len(original)):
            for bit in range(8):

                def flip(number, data, *, flight=flight, place=place, bit=bit):
                    if number != flight:
                        return data
                    wrong = bytearray(data)
                    wrong[place] ^= 1 << bit
                    return bytes(wrong)

                high, low = punching(ALICE, HIGH), punching(BOB, LOW)
                with contextlib.suppress(HandshakeFailed):
                    exchange(high, low, flip)
                # Who read the wrong bytes has no result; message 3 is read by one side only.
                assert low.result is None, (flight, place, bit)
                if flight < 4:
                    assert high.result is None, (flight, place, bit)


@pytest.mark.parametrize("role", ["punch", "responder"])
def test_our_own_punching_hello_reflected_is_refused(role):
    side = punching(ALICE, HIGH, role=role)
    hello = side.outgoing() or punching(ALICE, HIGH).outgoing()
    with pytest.raises(HandshakeFailed, match="reflected"):
        side.receive(hello)
    assert len(side.outgoing()) <= HELLO_BYTES
    assert side.result is None


def test_equal_tie_breaks_fail_on_both_sides():
    one, other = punching(ALICE, HIGH, seed=1), punching(BOB, HIGH, seed=2)
    hellos = one.outgoing(), other.outgoing()
    for side, hello in ((one, hellos[1]), (other, hellos[0])):
        with pytest.raises(HandshakeFailed, match="tie-break"):
            side.receive(hello)
        assert side.outgoing() == b""


def test_everything_reflected_leads_nowhere():
    """A peer that changes our tie-break and then echoes: the transcripts differ."""
    for tie_break in (LOW, HIGH):
        side = punching(ALICE, tie_break)
        hello = bytearray(side.outgoing())
        hello[12] ^= (
            0x40 if tie_break == LOW else 0x80
        )  # so that it is the responder, the initiator
        side.receive(bytes(hello))
        echo = side.outgoing()
        assert len(echo) == (0 if tie_break == LOW else 48)
        with pytest.raises(HandshakeFailed):
            side.receive(echo + bytes(100))
        assert side.result is None


def test_an_ordinary_side_takes_no_part_in_a_punch():
    hello = punching(BOB, LOW).outgoing()
    for role in ("initiator", "responder"):
        side = make(role)
        side.outgoing()
        with pytest.raises(HandshakeFailed, match="no punch"):
            side.receive(hello)
        assert side.outgoing() == b""


@pytest.mark.parametrize("flight", [FIRST, SECOND])
def test_a_punching_side_takes_no_ordinary_hello(flight):
    side = punching(ALICE, HIGH)
    side.outgoing()
    with pytest.raises(HandshakeFailed, match="does not take part"):
        side.receive(flight)
    assert side.outgoing() == b""


def test_a_responder_that_may_punch_still_takes_an_ordinary_dial():
    initiator, responder = make("initiator"), punching(BOB, LOW, role="responder")
    flights(initiator, responder)
    assert initiator.result.session_id == responder.result.session_id
    assert not responder.result.punched
    assert initiator.result.role == "initiator"


@pytest.mark.parametrize("role", ["punch", "responder"])
def test_another_swarm_is_named_on_both_sides_of_a_punch(role):
    one, other = punching(ALICE, HIGH), punching(BOB, LOW, role=role, swarm=Swarm(bytes(32)))
    with pytest.raises(WrongSwarm):
        other.receive(one.outgoing())
    with pytest.raises(WrongSwarm):
        one.receive(other.outgoing())
    assert one.outgoing() == other.outgoing() == b""


def test_the_wrong_peer_is_refused_on_both_sides_of_a_punch():
    with pytest.raises(WrongPeer):
        exchange(punching(ALICE, HIGH, expected=CAROL.node_id), punching(BOB, LOW))
    with pytest.raises(WrongPeer):
        exchange(punching(ALICE, HIGH), punching(BOB, LOW, expected=CAROL.node_id))
    with pytest.raises(SelfDialed):
        exchange(punching(ALICE, HIGH), punching(ALICE, LOW))


@pytest.mark.parametrize("tie_breaks", [(HIGH, LOW), (LOW, HIGH)])
def test_a_listener_punches_only_with_those_it_agreed_with(tie_breaks):
    """Whichever side turns out to be the initiator."""
    for agreed, works in (((CAROL.node_id,), False), ((CAROL.node_id, ALICE.node_id), True)):
        dialer = punching(ALICE, tie_breaks[0])
        listener = punching(BOB, tie_breaks[1], role="responder", agreed=agreed)
        if works:
            exchange(dialer, listener)
            assert listener.result.node_id == ALICE.node_id
            continue
        with pytest.raises(WrongPeer, match="no punch with"):
            exchange(dialer, listener)
        assert listener.result is None


def test_who_agreed_with_somebody_takes_ordinary_connections_of_all():
    initiator, listener = (
        make("initiator"),
        punching(BOB, LOW, role="responder", agreed=(CAROL.node_id,)),
    )
    flights(initiator, listener)
    assert listener.result.node_id == ALICE.node_id


def test_a_punching_stranger_learns_nothing_but_the_hello():
    stranger = Swarm(bytes(32))
    stranger.__dict__["tag"] = SWARM.tag
    high, low = punching(ALICE, HIGH, swarm=stranger), punching(BOB, LOW)
    low.receive(high.outgoing())
    hello = low.outgoing()
    assert len(hello) == HELLO_BYTES
    high.receive(hello)
    with pytest.raises(WrongSwarm, match="does not hold its key"):
        low.receive(high.outgoing())
    assert low.outgoing() == b""


@settings(max_examples=200)
@given(st.binary(max_size=400), st.integers(0, 400), st.sampled_from([LOW, HIGH]))
def test_random_bytes_to_a_punching_side_raise_only_handshake_failed(noise, prefix, tie_break):
    sent = exchange(punching(ALICE, HIGH), punching(BOB, LOW))
    good = b"".join(sent[0::2]) if tie_break == LOW else b"".join(sent[1::2])
    side = punching(BOB if tie_break == LOW else ALICE, tie_break)
    side.outgoing()
    with contextlib.suppress(HandshakeFailed):
        side.receive(good[:prefix] + noise)
    assert side.result is None or prefix + len(noise) >= len(good) or good[:prefix] + noise == good
