"""Sealed records: golden bytes, rekeying, and every way to tamper with a sequence of records."""

import struct

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from transport.errors import (
    AuthenticationFailed,
    MalformedRecord,
    RecordError,
    RecordTooLarge,
    UsageError,
)
from transport.secure import record
from transport.secure.record import (
    HEADER_BYTES,
    MAX_RECORD_BYTES,
    OVERHEAD_BYTES,
    REKEY_AGE_S,
    TAG_BYTES,
    Opener,
    RecordKind,
    Sealer,
    rekey,
)

KEY = bytes(range(32))


def seal(sealer, payload, kind=RecordKind.DATA):
    out = bytearray(len(payload) + OVERHEAD_BYTES)
    assert sealer.seal_into(kind, payload, memoryview(out)) == len(out)
    return bytes(out)


def open_(opener, data):
    """Plaintext and kind, the way a driver reads: header first, then the body in place."""
    kind, length = opener.parse_header(data[:HEADER_BYTES])
    body = bytearray(data[HEADER_BYTES:])
    size = opener.open_into(data[:HEADER_BYTES], memoryview(body), memoryview(body))
    assert size == length
    return bytes(body[:size]), kind


def test_a_record_is_what_the_document_says():
    data = seal(Sealer(KEY), b"hello", RecordKind.BULK_DATA)
    header = struct.pack(">IB", 5, 3)
    assert data == header + AESGCM(KEY).encrypt(bytes(12), b"hello", header)
    assert data.hex() == GOLDEN_FIRST
    sealer = Sealer(KEY)
    seal(sealer, b"hello", RecordKind.BULK_DATA)
    assert seal(sealer, b"").hex() == GOLDEN_SECOND


GOLDEN_FIRST = "000000050366d9d9b2dabd1efc4e91590bd22df053b0c9c5c0be"
GOLDEN_SECOND = "00000000009d7e2b41ce9ad27785e1247d3ce8eb4a"


def test_rekey_is_the_one_of_noise():
    nonce = bytes(4) + b"\xff" * 8
    assert rekey(KEY) == AESGCM(KEY).encrypt(nonce, bytes(32), b"")[:32]
    assert rekey(KEY).hex() == GOLDEN_REKEY


GOLDEN_REKEY = "0201675c87335949b909793da5bb4d92fcf6d44b92a6e0792b6ae48b1881259d"


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.binary(max_size=200),
            st.sampled_from([kind for kind in RecordKind if kind != RecordKind.REKEY]),
        ),
        max_size=20,
    ),
    st.integers(1, 300),
    st.integers(1, 7),
)
def test_round_trip_over_rekeys(messages, rekey_bytes, rekey_records):
    sealer = Sealer(KEY, rekey_bytes=rekey_bytes, rekey_records=rekey_records)
    opener = Opener(KEY, rekey_bytes=rekey_bytes, rekey_records=rekey_records)
    for payload, kind in messages:
        assert open_(opener, seal(sealer, payload, kind)) == (payload, kind)
    assert sealer.records == opener.records == len(messages)


def test_no_key_and_nonce_pair_occurs_twice(monkeypatch):
    ledger = set()

    class Recorder:
        def __init__(self, key):
            self.key = key
            self.real = AESGCM(key)

        def encrypt_into(self, nonce, data, aad, out):
            assert (self.key, bytes(nonce)) not in ledger
            ledger.add((self.key, bytes(nonce)))
            return self.real.encrypt_into(nonce, data, aad, out)

        def encrypt(self, nonce, data, aad):
            assert (self.key, bytes(nonce)) not in ledger
            ledger.add((self.key, bytes(nonce)))
            return self.real.encrypt(nonce, data, aad)

    monkeypatch.setattr(record, "AESGCM", Recorder)
    sealer = Sealer(KEY, rekey_bytes=100, rekey_records=4)
    for size in range(50):
        seal(sealer, bytes(size))
    assert len({key for key, _ in ledger}) > 10
    assert (
        len(ledger) == 50 + len({key for key, _ in ledger}) - 1
    )  # records, and one rekey per old key


@pytest.mark.parametrize(("rekey_bytes", "rekey_records"), [(100, 10**9), (10**9, 3)])
def test_the_key_changes_exactly_at_the_threshold(rekey_bytes, rekey_records):
    sealer = Sealer(KEY, rekey_bytes=rekey_bytes, rekey_records=rekey_records)
    plain = Opener(KEY)
    for payload in (bytes(49), bytes(49), bytes(2)):  # 98 bytes, then 100; the third record
        assert open_(plain, seal(sealer, payload))[0] == payload
    with pytest.raises(AuthenticationFailed):
        open_(plain, seal(sealer, b"after"))
    # The counter kept running: record 3 under the new key.
    opener = Opener(rekey(KEY))
    opener._counter = 4
    assert open_(opener, seal(sealer, b"next"))[0] == b"next"


def test_every_bit_flip_of_a_record_is_refused():
    data = seal(Sealer(KEY), b"payload", RecordKind.BULK_HEAD)
    for place in range(len(data) * 8):
        wrong = bytearray(data)
        wrong[place // 8] ^= 1 << place % 8
        with pytest.raises(RecordError):
            open_(Opener(KEY), bytes(wrong))


@given(st.permutations(range(5)), st.lists(st.integers(0, 4), max_size=3))
def test_only_the_sequence_that_was_sent_opens(order, duplicates):
    sealer = Sealer(KEY)
    records = [seal(sealer, bytes([number]) * 3) for number in range(5)]
    received = [*order, *duplicates]
    opener = Opener(KEY)
    expected = 0
    for number in received:
        if number == expected:
            assert open_(opener, records[number])[0] == bytes([number]) * 3
            expected += 1
        else:
            with pytest.raises(AuthenticationFailed):
                open_(opener, records[number])
            break
    else:
        return
    # Fatal: even the record that would have been right is refused from now on.
    for data in records:
        with pytest.raises(AuthenticationFailed):
            open_(opener, data)


def test_a_truncated_or_extended_body_is_refused():
    data = seal(Sealer(KEY), bytes(30))
    for body in (data[5:-1], data[5:] + b"\x00", b"", data[5:20]):
        opener = Opener(KEY)
        out = memoryview(bytearray(64))
        with pytest.raises(MalformedRecord):
            opener.open_into(data[:5], body, out)
        with pytest.raises(AuthenticationFailed):
            open_(opener, data)


def test_a_shortened_header_with_a_matching_body_is_refused():
    data = seal(Sealer(KEY), bytes(30))
    header = struct.pack(">IB", 29, 0)
    with pytest.raises(AuthenticationFailed):
        Opener(KEY).open_into(header, data[5:-1], memoryview(bytearray(64)))


def test_unauthenticated_plaintext_is_wiped():
    data = seal(Sealer(KEY), b"secret" * 20)
    out = memoryview(bytearray(b"\xaa" * 200))
    with pytest.raises(AuthenticationFailed):
        Opener(KEY).open_into(data[:5], data[5:-1] + bytes([data[-1] ^ 1]), out)
    assert bytes(out[:120]) == bytes(120)
    assert bytes(out[120:]) == b"\xaa" * 80


def test_sealing_and_opening_in_place():
    buffer = bytearray(OVERHEAD_BYTES + 64)
    buffer[5:69] = b"x" * 64
    view = memoryview(buffer)
    Sealer(KEY).seal_into(0, view[5:69], view)
    assert bytes(buffer[5:69]) != b"x" * 64
    assert Opener(KEY).open_into(view[:5], view[5:], view[5:]) == 64
    assert bytes(buffer[5:69]) == b"x" * 64


def test_payloads_of_wider_items_are_taken_as_bytes():
    wide = memoryview(b"abcdefgh").cast("I")
    out = bytearray(8 + OVERHEAD_BYTES)
    assert Sealer(KEY).seal_into(3, wide, memoryview(out)) == len(out)
    assert open_(Opener(KEY), bytes(out))[0] == b"abcdefgh"


def test_sizes_are_checked_before_anything_is_used_up():
    sealer = Sealer(KEY)
    with pytest.raises(RecordTooLarge):
        sealer.seal_into(
            0, bytes(MAX_RECORD_BYTES + 1), memoryview(bytearray(MAX_RECORD_BYTES + 100))
        )
    with pytest.raises(UsageError):
        sealer.seal_into(0, bytes(10), memoryview(bytearray(30)))
    data = seal(sealer, b"first")
    opener = Opener(KEY)
    with pytest.raises(UsageError):
        opener.open_into(data[:5], data[5:], memoryview(bytearray(4)))
    assert open_(opener, data)[0] == b"first"
    assert len(seal(sealer, bytes(MAX_RECORD_BYTES))) == MAX_RECORD_BYTES + OVERHEAD_BYTES


@pytest.mark.parametrize(
    ("header", "error"),
    [
        (struct.pack(">IB", MAX_RECORD_BYTES + 1, 0), RecordTooLarge),
        (b"\xff\xff\xff\xff\x00", RecordTooLarge),
        (struct.pack(">IB", 1, 7), MalformedRecord),
        (b"\x00\x00\x00\x01", MalformedRecord),
    ],
)
def test_bad_headers(header, error):
    with pytest.raises(error):
        Opener(KEY).parse_header(header)


def test_a_record_over_the_limit_is_refused_even_without_parse_header():
    header = struct.pack(">IB", MAX_RECORD_BYTES + 1, 0)
    body = bytes(MAX_RECORD_BYTES + 1 + TAG_BYTES)
    with pytest.raises(RecordTooLarge):
        Opener(KEY).open_into(header, body, memoryview(bytearray(len(body))))


def test_the_counter_never_reaches_the_reserved_nonce():
    sealer, opener = Sealer(KEY), Opener(KEY)
    sealer._counter = opener._counter = 2**64 - 2
    data = seal(sealer, b"last")
    assert open_(opener, data)[0] == b"last"
    with pytest.raises(RecordError):
        seal(sealer, b"one too many")
    with pytest.raises(RecordError):
        opener.open_into(data[:5], data[5:], memoryview(bytearray(64)))


def test_a_key_is_32_bytes():
    for make in (Sealer, Opener):
        with pytest.raises(UsageError):
            make(bytes(16))


# Rekeying by time


def seal_at(sealer, now, payload):
    """What a driver does: a REKEY first when it is due."""
    records = [seal(sealer, b"", RecordKind.REKEY)] if sealer.rekey_due(now) else []
    return [*records, seal(sealer, payload)]


@given(st.lists(st.floats(0, 3 * REKEY_AGE_S), max_size=12))
def test_the_sealer_alone_decides_when_a_key_is_too_old(pauses):
    sealer, opener = Sealer(KEY), Opener(KEY)
    now, since, keys = 1e6, 1e6, 0
    assert not sealer.rekey_due(now)
    for pause in pauses:
        now += pause
        records = seal_at(sealer, now, b"x")
        if now - since >= REKEY_AGE_S:
            keys += 1
            since = now
            assert open_(opener, records[0]) == (b"", RecordKind.REKEY)
        assert open_(opener, records[-1]) == (b"x", RecordKind.DATA)
        assert not sealer.rekey_due(now)
    expected = KEY
    for _ in range(keys):
        expected = rekey(expected)
    assert sealer._key == opener._key == expected


def test_a_rekey_record_is_what_the_document_says():
    sealer = Sealer(KEY)
    assert seal(sealer, b"", RecordKind.REKEY).hex() == GOLDEN_REKEY_RECORD
    assert seal(sealer, b"next").hex() == GOLDEN_AFTER_REKEY
    header = struct.pack(">IB", 4, 0)
    nonce = bytes(4) + (1).to_bytes(8, "big")
    assert AESGCM(rekey(KEY)).encrypt(nonce, b"next", header).hex() == GOLDEN_AFTER_REKEY[10:]


GOLDEN_REKEY_RECORD = "000000000585a7d0e8a2b63bd552a937e4efada59b"
GOLDEN_AFTER_REKEY = "0000000400147e54479619529d088223378896d8e03067fe18"


def test_a_rekey_record_carries_nothing():
    with pytest.raises(UsageError):
        seal(Sealer(KEY), b"x", RecordKind.REKEY)
    header = struct.pack(">IB", 1, RecordKind.REKEY)
    body = AESGCM(KEY).encrypt(bytes(12), b"x", header)
    with pytest.raises(MalformedRecord):
        Opener(KEY).open_into(header, body, memoryview(bytearray(32)))


def test_a_forged_rekey_changes_no_key():
    opener = Opener(KEY)
    data = bytearray(seal(Sealer(KEY), b"", RecordKind.CLOSE))
    data[4] = RecordKind.REKEY
    with pytest.raises(AuthenticationFailed):
        open_(opener, bytes(data))
    assert opener._key == KEY
