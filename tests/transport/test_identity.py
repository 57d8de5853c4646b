"""Node ids, keys and signatures: round trips, mistyped texts, and the keys that must never be accepted."""

import hashlib
import pickle
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport.errors import InvalidNodeId, InvalidPublicKey, TransportError, UsageError
from transport.identity import Identity, NodeId, is_acceptable_public_key, verify
from transport.text import decode32, encode32

FIELD_PRIME = 2**255 - 19
# RFC 8032 section 7.1, test 2.
RFC_SEED = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
RFC_PUBLIC = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
RFC_SIGNATURE = bytes.fromhex(
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)
SMALL_ORDER = [
    "0100000000000000000000000000000000000000000000000000000000000000",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000080",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
]
NON_CANONICAL = [
    (FIELD_PRIME + extra | sign << 255).to_bytes(32, "little")
    for extra in range(19)
    for sign in (0, 1)
] + [
    (1 | 1 << 255).to_bytes(32, "little"),  # x = 0 with the sign set
    (FIELD_PRIME - 1 | 1 << 255).to_bytes(32, "little"),
]


def test_the_rfc_vector_signs_and_verifies():
    identity = Identity.from_seed(RFC_SEED)
    assert identity.public_key == RFC_PUBLIC
    assert identity.sign(b"\x72") == RFC_SIGNATURE
    assert verify(RFC_PUBLIC, RFC_SIGNATURE, b"\x72")
    assert not verify(RFC_PUBLIC, RFC_SIGNATURE, b"\x73")
    assert identity.node_id == hashlib.sha256(RFC_PUBLIC).digest()
    assert identity.seed == RFC_SEED


def test_golden_text_of_a_node_id():
    assert str(NodeId(bytes(range(32)))) == (
        "nd-aaaq-eaye-auda-ocaj-bifq-ydio-b4ib-ceqt-cqkr-mfyy-denb-wha5-dypq-j"
    )
    assert NodeId(bytes(range(32))).short == "nd-aaaq-eaye"


@pytest.mark.parametrize("key", [bytes.fromhex(text) for text in SMALL_ORDER] + NON_CANONICAL)
def test_small_order_and_non_canonical_keys_are_refused(key):
    assert not is_acceptable_public_key(key)
    with pytest.raises(InvalidPublicKey):
        NodeId.of_public_key(key)
    # The forgery that OpenSSL accepts for the identity point: R = identity, S = 0.
    for r in (key, bytes.fromhex(SMALL_ORDER[0])):
        assert not verify(key, r + bytes(32), b"any message")


def test_the_order_eight_points_are_the_ones_on_the_curve():
    """The listed encodings really are points whose order divides eight, so the list is not a typing error."""
    d = -121665 * pow(121666, -1, FIELD_PRIME) % FIELD_PRIME
    for text in SMALL_ORDER:
        y = int.from_bytes(bytes.fromhex(text), "little") & (2**255 - 1)
        # Doubling changes y to (y^2 + x^2) / (1 - d x^2 y^2), and x^2 follows from y: three doublings give the identity.
        for _ in range(3):
            x2 = (y * y - 1) * pow(d * y * y + 1, -1, FIELD_PRIME) % FIELD_PRIME
            y = (y * y + x2) * pow(1 - d * x2 * y * y, -1, FIELD_PRIME) % FIELD_PRIME
        assert y == 1


@given(st.binary(max_size=40), st.binary(max_size=70), st.binary(max_size=40))
def test_verify_never_raises(public_key, signature, data):
    assert verify(public_key, signature, data) is False


def test_a_key_off_the_curve_verifies_nothing():
    rng = random.Random(5)
    for _ in range(50):
        key = rng.randbytes(32)
        assert verify(key, rng.randbytes(64), b"data") is False


@given(st.binary(min_size=32, max_size=32))
def test_text_round_trip(value):
    node_id = NodeId(value)
    assert NodeId.parse(str(node_id)) == node_id
    assert NodeId.parse(str(node_id).upper().replace("-", " ")) == node_id
    assert str(node_id).startswith(node_id.short)


@given(st.binary(min_size=32, max_size=32), st.data())
def test_one_wrong_character_or_a_swap_of_neighbours_is_noticed(value, data):
    text = encode32("nd", value).replace("-", "")
    place = data.draw(st.integers(2, len(text) - 1))
    other = data.draw(st.sampled_from("abcdefghijklmnopqrstuvwxyz234567"))
    wrong = text[:place] + other + text[place + 1 :]
    if wrong != text:
        with pytest.raises(InvalidNodeId):
            NodeId.parse(wrong)
    if place + 1 < len(text) and text[place] != text[place + 1]:
        swapped = text[:place] + text[place + 1] + text[place] + text[place + 2 :]
        with pytest.raises(InvalidNodeId):
            NodeId.parse(swapped)


def test_look_alikes_are_read_as_what_was_meant():
    text = encode32("nd", bytes(range(32)))
    assert decode32("nd", "ND" + text[2:].replace("o", "0").replace("b", "8")) == bytes(range(32))


@given(st.text(max_size=200))
def test_random_text_raises_only_the_typed_error(text):
    with pytest.raises(InvalidNodeId) as caught:
        NodeId.parse(text)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("nd" + "a" * 200, "too long"),
        ("xx-aaaa", "begin with nd-"),
        ("nd-aaa!", "not base32"),
        ("nd-aaaa", "4 characters"),
        (str(NodeId(bytes(32)))[:-1] + "b", "check character"),
    ],
)
def test_what_is_wrong_with_a_text_is_said(text, reason):
    with pytest.raises(InvalidNodeId, match=reason):
        NodeId.parse(text)


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_public_key_has_32_bytes(size):
    with pytest.raises(InvalidPublicKey):
        NodeId.of_public_key(bytes([2]) * size)


def test_the_unused_bit_must_be_zero():
    from transport.text import check_character

    body = encode32("nd", bytes(32)).replace("-", "")[2:54]
    body = body[:-1] + "b"
    with pytest.raises(InvalidNodeId, match="last bit"):
        NodeId.parse("nd" + body + check_character(body))


@pytest.mark.parametrize("value", [b"", bytes(31), bytes(33), "text", 5])
def test_only_32_bytes_are_a_node_id(value):
    with pytest.raises(InvalidNodeId):
        NodeId(value)


def test_a_node_id_is_its_bytes():
    node_id = NodeId(bytes(32))
    assert node_id == bytes(32)
    assert {node_id: 1}[bytes(32)] == 1
    assert f"{node_id}".startswith("nd-aaaa")
    assert "aaaa" in repr(node_id)
    restored = pickle.loads(pickle.dumps(node_id))
    assert type(restored) is NodeId
    assert restored == node_id


def test_private_bytes_stay_out_of_repr():
    identity = Identity.from_seed(RFC_SEED)
    assert RFC_SEED.hex() not in repr(identity)
    assert repr(RFC_SEED) not in repr(identity)
    with pytest.raises(UsageError):
        Identity.from_seed(b"short")


def test_generate_uses_the_given_randomness():
    assert (
        Identity.generate(random.Random(1).randbytes).public_key
        == Identity.generate(random.Random(1).randbytes).public_key
    )
    assert issubclass(InvalidNodeId, TransportError)
