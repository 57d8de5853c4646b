"""Attacks on the handshake: a clear error for every mismatch, and no way in for anybody else."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.transport.handshakes import (
    ALICE,
    BOB,
    CAROL,
    FIRST,
    SECOND,
    SWARM,
    THIRD,
    flights,
    identity_payload,
    make,
    malicious,
    same_tag,
    went_through,
)
from tests.trusted import FOREIGN
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
from transport.secure.handshake import HELLO_BYTES, MAGIC, MAX_HANDSHAKE_BYTES, Intro


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
        reached = went_through(initiator, responder, flight, bytes(wrong))
        # The side that reads the wrong bytes has no result; if the flip only shows later, the other side fails.
        assert responder.result is None, (place, bit)
        assert not reached, (place, bit)
        if flight < 3:
            assert initiator.result is None, (place, bit)


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
    liar = malicious("initiator", identity_payload)
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
    other = FOREIGN
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
    stranger = same_tag()
    initiator, responder = make("initiator", swarm=stranger), make("responder")
    with pytest.raises(WrongSwarm, match="does not hold its key"):
        responder.receive(initiator.outgoing())
    assert responder.outgoing() == b""


def test_a_responder_without_the_swarm_key_learns_no_identity():
    stranger = same_tag()
    initiator, responder = make("initiator"), make("responder", swarm=stranger)
    # It skips the proof, and knows everything but the key.
    responder._proof = lambda hello, ephemeral: FIRST[-16:]
    responder.receive(initiator.outgoing())
    with pytest.raises(HandshakeFailed):
        initiator.receive(responder.outgoing())
    assert initiator.outgoing() == b""


@pytest.mark.parametrize("version", [0, 1, 3, 255])
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
    assert not went_through(initiator, responder, flight, bytes(wrong))
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
def test_more_than_five_kibibytes_are_refused_when_announced(length):
    initiator = make("initiator")
    initiator.outgoing()
    with pytest.raises(HandshakeFailed, match="5 KiB"):
        initiator.receive(SECOND[:HELLO_BYTES] + length.to_bytes(2, "big"))


def test_a_shorter_message_than_any_legal_one_is_refused():
    for length in (0, 1, 32, 95):
        initiator = make("initiator")
        initiator.outgoing()
        with pytest.raises(HandshakeFailed):
            initiator.receive(SECOND[:HELLO_BYTES] + length.to_bytes(2, "big") + bytes(length))


IDENTITY_POINT = bytes([1]) + bytes(31)
LIES = {
    "no payload": lambda self: b"",
    "no signature": lambda self: CAROL.public_key,
    "somebody else's key": lambda self: identity_payload(self, public_key=ALICE.public_key),
    "signed by another key": lambda self: identity_payload(self, signer=ALICE),
    "signed for the other role": lambda self: identity_payload(
        self, role="responder" if self._role == "initiator" else "initiator"
    ),
    "signed for another swarm": lambda self: identity_payload(self, swarm=FOREIGN),
    "signed for another static key": lambda self: identity_payload(self, static=bytes(32)),
    "identity point as a key": lambda self: (
        IDENTITY_POINT + IDENTITY_POINT + bytes(32) + b"\0\0" + self._intro
    ),
    "zero signature": lambda self: CAROL.public_key + bytes(64) + b"\0\0" + self._intro,
    "no length of a chain": lambda self: CAROL.public_key + bytes(64) + b"\0",
    "signed for another chain": lambda self: identity_payload(self, signed_chain=b"another"),
    "no intro": lambda self: identity_payload(self, intro=b""),
    "intro is not a map": lambda self: identity_payload(self, intro=b"\x90"),
    "intro of an unknown kind": lambda self: identity_payload(self, intro=pack({"kind": "other"})),
    "name too long": lambda self: identity_payload(
        self, intro=pack({"kind": "control", "name": "x" * 65})
    ),
    "name with an escape": lambda self: identity_payload(
        self, intro=pack({"kind": "control", "name": "a\x1b[2J"})
    ),
    "too many addresses": lambda self: identity_payload(
        self, intro=pack({"kind": "control", "listen": ["h:1"] * 17})
    ),
    "bad address": lambda self: identity_payload(
        self, intro=pack({"kind": "control", "listen": ["nowhere"]})
    ),
    "label too long": lambda self: identity_payload(
        self, intro=pack({"kind": "bulk", "label": bytes(65)})
    ),
    "label is text": lambda self: identity_payload(
        self, intro=pack({"kind": "bulk", "label": "x"})
    ),
    "intro with an extension": lambda self: identity_payload(
        self, intro=b"\x81\xa4kind\xc7\x00\x05"
    ),
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
    peer = malicious(role, identity_payload)
    honest = make("responder" if role == "initiator" else "initiator")
    flights(peer, honest) if role == "initiator" else flights(honest, peer)
    assert honest.result.node_id == CAROL.node_id


def test_a_small_order_ephemeral_is_refused():
    zero = bytes(32)
    hello = FIRST[:HELLO_BYTES]
    proof = SWARM.proof(b"noded member v2", hello + zero)[:16]  # from a member
    responder = make("responder")
    with pytest.raises(HandshakeFailed, match="small order"):
        responder.receive(hello + zero + proof)
    assert responder.result is None


@pytest.mark.parametrize(
    "observed", ["nowhere", "h:1 ", "H:1", f"h:1/via/{ALICE.node_id}", "a" * 500, "h:99999"]
)
def test_a_malformed_observed_address_is_refused_both_ways(observed):
    with pytest.raises(UsageError):
        Intro(observed=observed)
    liar = malicious(
        "initiator",
        lambda self: identity_payload(self, intro=pack({"kind": "control", "observed": observed})),
    )
    with pytest.raises(HandshakeFailed):
        flights(liar, make("responder"))
