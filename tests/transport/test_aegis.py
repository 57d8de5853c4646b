"""Long records under AEGIS-256X4: the draft's vectors, golden bytes, tampering, rekeys, and that it is used only where both ends can."""

import hmac
import json
import random
from pathlib import Path

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.transport.handshakes import ALICE_INTRO, BOB_INTRO, flights, make
from tests.transport.test_record import open_, seal
from transport.errors import AuthenticationFailed, RecordError
from transport.secure.aegis import LONG_BYTES
from transport.secure.processor import can_use_aegis
from transport.secure.record import OVERHEAD_BYTES, Opener, RecordKind, Sealer, rekey

if not can_use_aegis():
    pytest.skip("no aeg here, or a processor without VAES", allow_module_level=True)
from aeg import aegis256x4 as aeg

KEY = bytes(range(32))
DERIVED = hmac.digest(KEY, b"noded aegis-256x4 v1\x01", "sha256")  # HKDF-Expand, RFC 5869 2.3
VECTORS = json.loads((Path(__file__).parent / "vectors/aegis_256x4.json").read_text())["vectors"]
DOCUMENT = Path(__file__).parents[2] / "docs/wire.md"
LONG = random.Random(5).randbytes(LONG_BYTES + 7)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_the_library_is_what_the_draft_says(vector):
    key, nonce, ad, message = (
        bytes.fromhex(vector[name]) for name in ("key", "nonce", "ad", "msg")
    )
    for tag, size in (("tag128", 16), ("tag256", 32)):
        sealed = bytes.fromhex(vector["ct"] + vector[tag])
        assert aeg.encrypt(key, nonce, message, ad, maclen=size) == sealed
        assert aeg.decrypt(key, nonce, sealed, ad, maclen=size) == message


def test_a_long_record_is_what_the_document_says():
    sealer = Sealer(KEY, aegis=True)
    seal(sealer, b"")
    data = seal(sealer, LONG, RecordKind.BULK_DATA)
    nonce = bytes(24) + (1).to_bytes(8, "big")
    assert data[:5] == len(LONG).to_bytes(4, "big") + b"\x03"
    assert data[5:] == aeg.encrypt(DERIVED, nonce, LONG, data[:5])
    zeros = seal(Sealer(KEY, aegis=True), bytes(LONG_BYTES), RecordKind.BULK_DATA)
    assert (zeros[:21] + zeros[-16:]).hex() == GOLDEN_LONG
    assert GOLDEN_LONG in "".join(DOCUMENT.read_text().split())


GOLDEN_LONG = "0000400003f973ab345e18882cc72f686a0fb9135b929437814ce013aac1fc16b01be5201c"


@given(
    st.lists(st.tuples(st.booleans(), st.integers(-2, 2)), max_size=8),
    st.integers(1, 3 * LONG_BYTES),
    st.integers(1, 7),
)
@settings(max_examples=40)
def test_round_trip_of_short_and_long_over_rekeys(sizes, rekey_bytes, rekey_records):
    limits = {"aegis": True, "rekey_bytes": rekey_bytes, "rekey_records": rekey_records}
    sealer, opener = Sealer(KEY, **limits), Opener(KEY, **limits)
    for long, by in sizes:
        payload = LONG[: LONG_BYTES + by] if long else LONG[: 10 + by]
        assert open_(opener, seal(sealer, payload)) == (payload, RecordKind.DATA)
    assert sealer._key == opener._key
    assert sealer.records == opener.records == len(sizes)


def test_the_ciphers_change_at_the_stated_size():
    plain, fast = Sealer(KEY), Sealer(KEY, aegis=True)
    assert seal(plain, LONG[: LONG_BYTES - 1]) == seal(fast, LONG[: LONG_BYTES - 1])
    assert seal(plain, LONG[:LONG_BYTES]) != seal(fast, LONG[:LONG_BYTES])


def test_no_key_and_nonce_pair_occurs_twice(monkeypatch):
    ledger = set()

    class Recorder:
        @staticmethod
        def encrypt(key, nonce, *rest, **named):
            assert (bytes(key), bytes(nonce)) not in ledger
            ledger.add((bytes(key), bytes(nonce)))
            return aeg.encrypt(key, nonce, *rest, **named)

    monkeypatch.setattr("aeg.aegis256x4", Recorder)
    sealer = Sealer(KEY, aegis=True, rekey_records=4)
    for number in range(30):
        seal(sealer, LONG if number % 3 else b"short")
    assert len(ledger) == 20
    assert len({key for key, _ in ledger}) == 8


def test_the_key_follows_the_directions():
    sealer = Sealer(KEY, aegis=True)
    seal(sealer, b"", RecordKind.REKEY)
    data = seal(sealer, LONG)
    after = hmac.digest(rekey(KEY), b"noded aegis-256x4 v1\x01", "sha256")
    nonce = bytes(24) + (1).to_bytes(8, "big")
    assert data[5:] == aeg.encrypt(after, nonce, LONG, data[:5])


@given(st.integers(0, (len(LONG) + OVERHEAD_BYTES) * 8 - 1))
def test_a_bit_flip_of_a_long_record_is_refused(place):
    wrong = bytearray(seal(Sealer(KEY, aegis=True), LONG))
    wrong[place // 8] ^= 1 << place % 8
    with pytest.raises(RecordError):
        open_(Opener(KEY, aegis=True), bytes(wrong))


@pytest.mark.parametrize("place", range((5 + 16) * 8))
def test_every_bit_flip_of_header_and_tag_is_refused(place):
    wrong = bytearray(seal(Sealer(KEY, aegis=True), LONG))
    at = place if place < 5 * 8 else len(wrong) * 8 - 1 - (place - 5 * 8)
    wrong[at // 8] ^= 1 << at % 8
    with pytest.raises(RecordError):
        open_(Opener(KEY, aegis=True), bytes(wrong))


def test_a_record_that_is_shortened_below_the_long_ones_is_refused():
    data = seal(Sealer(KEY, aegis=True), LONG[:LONG_BYTES])
    header = (LONG_BYTES - 1).to_bytes(4, "big") + b"\x00"
    opener = Opener(KEY, aegis=True)
    with pytest.raises(AuthenticationFailed):
        opener.open_into(header, data[5:-1], memoryview(bytearray(LONG_BYTES)))
    with pytest.raises(AuthenticationFailed):  # dead, as after any failure
        open_(opener, data)


def test_a_long_record_out_of_its_place_is_refused():
    sealer = Sealer(KEY, aegis=True)
    first, second = seal(sealer, LONG), seal(sealer, LONG)
    assert first != second
    for records in ((second,), (first, first)):
        opener = Opener(KEY, aegis=True)
        for data in records[:-1]:
            open_(opener, data)
        with pytest.raises(AuthenticationFailed):
            open_(opener, records[-1])


def test_one_end_with_and_one_without_do_not_understand_each_other():
    for sealing, opening in ((True, False), (False, True)):
        with pytest.raises(AuthenticationFailed):
            open_(Opener(KEY, aegis=opening), seal(Sealer(KEY, aegis=sealing), LONG))


def test_unauthenticated_plaintext_is_wiped(monkeypatch):
    class Leaving:  # the library wipes as well; what it promises about that may change
        @staticmethod
        def decrypt(_key, _nonce, sealed, _aad, *, into):
            into[:] = sealed[: len(into)]
            raise ValueError("authentication failed")

    data = seal(Sealer(KEY, aegis=True), LONG)
    monkeypatch.setattr("aeg.aegis256x4", Leaving)
    out = memoryview(bytearray(b"\xaa" * (len(LONG) + 80)))
    with pytest.raises(AuthenticationFailed):
        Opener(KEY, aegis=True).open_into(data[:5], data[5:-1] + bytes([data[-1] ^ 1]), out)
    assert bytes(out[: len(LONG)]) == bytes(len(LONG))
    assert bytes(out[len(LONG) :]) == b"\xaa" * 80


def test_sealing_and_opening_in_place():
    buffer = bytearray(OVERHEAD_BYTES + len(LONG))
    view = memoryview(buffer)
    view[5:-16] = LONG
    Sealer(KEY, aegis=True).seal_into(0, view[5:-16], view)
    assert bytes(buffer) == seal(Sealer(KEY, aegis=True), LONG)
    assert Opener(KEY, aegis=True).open_into(view[:5], view[5:], view[5:]) == len(LONG)
    assert buffer[5:-16] == LONG


def test_payloads_of_wider_items_are_taken_as_bytes():
    wide = memoryview(LONG[:LONG_BYTES]).cast("I")
    out = bytearray(LONG_BYTES + OVERHEAD_BYTES)
    Sealer(KEY, aegis=True).seal_into(0, wide, memoryview(out))
    assert open_(Opener(KEY, aegis=True), bytes(out))[0] == LONG[:LONG_BYTES]


# Who uses it


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("second", [False, True])
def test_long_records_have_it_if_both_ends_can(first, second):
    initiator = make("initiator", intro=attrs.evolve(ALICE_INTRO, aegis=first))
    responder = make("responder", intro=attrs.evolve(BOB_INTRO, aegis=second))
    flights(initiator, responder)
    here, there = initiator.result, responder.result
    assert (here.intro.aegis, there.intro.aegis) == (second, first)
    for sender, receiver in ((here, there), (there, here)):
        assert (sender.sealer._aegis is not None) == (first and second)
        assert open_(receiver.opener, seal(sender.sealer, LONG)) == (LONG, RecordKind.DATA)
