"""Noise XX against the published vectors, and what a misused or attacked state object does."""

import json
from pathlib import Path

import pytest

from transport.errors import HandshakeFailed, UsageError
from transport.secure.noise import CipherState, KeyPair, NoiseXX

VECTORS = json.loads((Path(__file__).parent / "vectors" / "noise_xx.json").read_text())["vectors"]


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["source"] for vector in VECTORS])
def test_published_vectors(vector):
    value = {
        key: bytes.fromhex(text)
        for key, text in vector.items()
        if key.startswith(("init_", "resp_"))
    }
    initiator = NoiseXX(
        "initiator",
        static=KeyPair.from_private(value["init_static"]),
        ephemeral=KeyPair.from_private(value["init_ephemeral"]),
        prologue=value["init_prologue"],
    )
    responder = NoiseXX(
        "responder",
        static=KeyPair.from_private(value["resp_static"]),
        ephemeral=KeyPair.from_private(value["resp_ephemeral"]),
        prologue=value["resp_prologue"],
    )
    messages = [
        (bytes.fromhex(m["payload"]), bytes.fromhex(m["ciphertext"])) for m in vector["messages"]
    ]
    for number, (payload, ciphertext) in enumerate(messages[:3]):
        sender, receiver = (initiator, responder) if number % 2 == 0 else (responder, initiator)
        assert sender.write_message(payload) == ciphertext
        assert receiver.read_message(ciphertext) == payload
    assert initiator.finished
    assert responder.finished
    assert initiator.handshake_hash == responder.handshake_hash
    if "handshake_hash" in vector:
        assert initiator.handshake_hash.hex() == vector["handshake_hash"]
    assert initiator.remote_static == KeyPair.from_private(value["resp_static"]).public
    assert responder.remote_static == KeyPair.from_private(value["init_static"]).public
    assert initiator.split() == responder.split()
    to_responder, to_initiator = (CipherState(key) for key in initiator.split())
    assert len(messages) > 3
    for number, (payload, ciphertext) in enumerate(messages[3:]):
        cipher = to_initiator if number % 2 == 0 else to_responder  # the responder speaks first
        assert cipher.encrypt_with_ad(b"", payload) == ciphertext


def test_both_published_sources_are_present():
    assert {vector["source"] for vector in VECTORS} == {"cacophony", "snow"}


def pair(prologue_i=b"p", prologue_r=b"p"):
    keys = [KeyPair.from_private(bytes([number]) * 32) for number in (1, 2, 3, 4)]
    return (
        NoiseXX("initiator", static=keys[0], ephemeral=keys[1], prologue=prologue_i),
        NoiseXX("responder", static=keys[2], ephemeral=keys[3], prologue=prologue_r),
    )


def test_different_prologues_fail_at_message_two():
    initiator, responder = pair(b"a", b"b")
    responder.read_message(initiator.write_message(b""))
    with pytest.raises(HandshakeFailed):
        initiator.read_message(responder.write_message(b""))


# RFC 7748 section 6.1 asks to refuse a zero result; these are the points that give one (order 1, 2, 4, 8 and their doubles of p).
SMALL_ORDER_X = [
    0,
    1,
    0x00B8495F16056286FDB1329CEB8D09DA6AC49FF1FAE35616AEB8413B7C7AEBE0,
    0x57119FD0DD4E22D8868E1C58C45C44045BEF839C55B1D0B1248C50A3BC959C5F,
    2**255 - 20,
    2**255 - 19,
    2**255 - 18,
]


@pytest.mark.parametrize("x", SMALL_ORDER_X)
def test_small_order_points_are_refused(x):
    _, responder = pair()
    responder.read_message(x.to_bytes(32, "little"))
    with pytest.raises(HandshakeFailed, match="small order"):
        responder.write_message(b"")
    with pytest.raises(UsageError):
        responder.write_message(b"")


def test_messages_out_of_turn_are_refused_and_change_nothing():
    initiator, responder = pair()
    with pytest.raises(UsageError):
        initiator.read_message(bytes(32))
    with pytest.raises(UsageError):
        responder.write_message(b"")
    with pytest.raises(UsageError):
        initiator.split()
    responder.read_message(initiator.write_message(b""))
    initiator.read_message(responder.write_message(b"two"))
    responder.read_message(initiator.write_message(b"three"))
    with pytest.raises(UsageError):
        initiator.write_message(b"")


@pytest.mark.parametrize("size", [0, 31, 33, 79, 95])
def test_short_messages_are_refused(size):
    initiator, responder = pair()
    initiator_first = initiator.write_message(b"")
    responder.read_message(initiator_first)
    second = responder.write_message(b"")
    with pytest.raises(HandshakeFailed):
        initiator.read_message(second[:size])
    with pytest.raises(UsageError):
        initiator.write_message(b"")


def test_a_message_has_at_most_65535_bytes():
    initiator, _ = pair()
    with pytest.raises(UsageError):
        initiator.write_message(bytes(65535))


def test_secrets_stay_out_of_repr():
    assert "private" not in repr(KeyPair.from_private(bytes(range(32))))
