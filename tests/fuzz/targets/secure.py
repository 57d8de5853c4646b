"""The secure channel and who is let in: handshake, records, certificates and what the swarm says of them."""

import contextlib
import random
from collections.abc import Iterator, Sequence

from tests.fuzz.targets.kit import ALICE, BOB, KEY, edited, target
from tests.trusted import SWARM, invited_chain, member_chain, shaking
from transport.address import Address
from transport.errors import HandshakeFailed, RecordError
from transport.secure.aegis import LONG_BYTES
from transport.secure.handshake import Handshake
from transport.secure.intro import Intro, decode_intro, encode_intro
from transport.secure.processor import can_use_aegis
from transport.secure.record import HEADER_BYTES, OVERHEAD_BYTES, Opener, RecordKind, Sealer
from transport.trust.certificate import parse_certificate
from transport.trust.chain import parse_chain, verify_chain
from transport.trust.refusal import CertificateRefused
from transport.trust.revocation import revoke
from transport.trust.statement import encode_statement, parse_statement
from transport.trust.trust import Trust

PAYLOADS = (b"first", bytes(300), b"", b"x" * 40)
LONG_PAYLOADS = (bytes(LONG_BYTES), b"short", bytes(range(256)) * (LONG_BYTES // 256) + b"end")
UNTOUCHED = 0xEE
"""Refused before decryption, the output is as it was; after it, wiped."""


def shaker(role: str) -> Handshake:
    return Handshake(
        role=role,
        **shaking(ALICE if role == "initiator" else BOB),
        intro=Intro(name=role, listen=(Address("192.0.2.1", 7447),)),
        random_bytes=random.Random(role).randbytes,
        punching=(ALICE.node_id, BOB.node_id) if role == "responder" else (),
    )


def flights() -> tuple[bytes, bytes, bytes]:
    initiator, responder = shaker("initiator"), shaker("responder")
    first = initiator.outgoing()
    responder.receive(first)
    second = responder.outgoing()
    initiator.receive(second)
    return first, second, initiator.outgoing()


FIRST, SECOND, THIRD = flights()


@target
def handshake(data: bytes) -> None:
    """Any bytes to each role; an edited flight gives no result."""
    mode, data = data[:1], data[1:]
    if mode < b"\x60":
        side = shaker(("initiator", "responder", "punch")[mode[0] % 3 if mode else 0])
        side.outgoing()
        middle = len(data) // 2
        with contextlib.suppress(HandshakeFailed):
            side.receive(data[:middle])
            side.receive(data[middle:])
        assert side.result is None or data.startswith((SECOND, FIRST + THIRD))
        return
    initiator, responder = shaker("initiator"), shaker("responder")
    which = mode[0] % 3
    got = [
        edited(flight, data) if which == number else flight
        for number, flight in enumerate((FIRST, SECOND, THIRD))
    ]
    try:
        responder.receive(got[0])
        initiator.outgoing()
        initiator.receive(got[1])
        if initiator.result is not None:
            responder.receive(got[2])
    except HandshakeFailed:
        return
    if responder.result is not None:
        assert got[which].startswith((FIRST, SECOND, THIRD)[which])


@target
def intro(data: bytes) -> None:
    """What is read can be written, and reads the same."""
    try:
        value = decode_intro(data)
    except HandshakeFailed:
        return
    assert decode_intro(encode_intro(value)) == value


CHAIN = invited_chain(ALICE, member_chain(ALICE, may_invite=True), BOB)
REVOCATION = revoke(
    ALICE,
    swarm_id=SWARM.id,
    subject=BOB.node_id,
    at_ms=1,
    reason="lost",
    kept=[KEY[:16]],
    chain=CHAIN,
)


@target
def certificate(data: bytes) -> None:
    """Any bytes as a certificate and as a chain: what is read are the bytes; an edited chain never verifies."""
    for parse in (parse_certificate, parse_chain):
        with contextlib.suppress(CertificateRefused):
            assert parse(data[1:]).raw == data[1:]
    source = data[1:] if data[:1] < b"\x40" else edited(CHAIN.raw, data[1:])
    try:
        chain = parse_chain(source)
        verify_chain(chain, SWARM.id, 1)
    except CertificateRefused:
        return
    assert source in {CHAIN.raw, member_chain(ALICE, may_invite=True).raw}


@target
def statement(data: bytes) -> None:
    """What the swarm's document holds: a round trip, and nothing that somebody edited."""
    genuine = {encode_statement(CHAIN), encode_statement(REVOCATION)}
    which = sorted(genuine)[data[0] % 2 if data else 0]
    source = data[1:] if data[:1] < b"\x40" else edited(which, data[1:])
    try:
        read = parse_statement(source)
        assert encode_statement(read) == source
        Trust(SWARM.id).verify(read)
    except CertificateRefused:
        return
    assert source in genuine


def stream_of_records(payloads: Sequence[bytes], *, aegis: bool = False) -> bytes:
    sealer, out = Sealer(KEY, aegis=aegis), bytearray()
    for payload in payloads:
        piece = memoryview(bytearray(len(payload) + OVERHEAD_BYTES))
        sealer.seal_into(RecordKind.DATA, payload, piece)
        out += piece
    return bytes(out)


RECORDS = stream_of_records(PAYLOADS)
LONG_RECORDS = stream_of_records(LONG_PAYLOADS, aegis=can_use_aegis())


def opened(stream: bytes, *, aegis: bool = False) -> Iterator[bytes]:
    opener, place = Opener(KEY, aegis=aegis), 0
    while len(stream) - place >= HEADER_BYTES:
        header = stream[place : place + HEADER_BYTES]
        _, length = opener.parse_header(header)
        body = stream[place + HEADER_BYTES : place + length + OVERHEAD_BYTES]
        if len(body) < length + OVERHEAD_BYTES - HEADER_BYTES:
            return
        out = memoryview(bytearray([UNTOUCHED]) * length)
        try:
            opener.open_into(header, body, out)
        except RecordError:
            assert set(out) <= {0, UNTOUCHED}, "unauthenticated plaintext was left"
            raise
        yield bytes(out)
        place += length + OVERHEAD_BYTES


@target
def record(data: bytes) -> None:
    """Whatever a middleman does, what opens is a prefix of what was sealed."""
    got: list[bytes] = []
    stream = data[1:] if data[:1] < b"\x20" else edited(RECORDS, data[1:])
    with contextlib.suppress(RecordError):
        got.extend(opened(stream))
    assert got == list(PAYLOADS[: len(got)])


@target
def long_record(data: bytes) -> None:
    """The same with records that have the other cipher, where this process has it."""
    got: list[bytes] = []
    with contextlib.suppress(RecordError):
        got.extend(opened(edited(LONG_RECORDS, data), aegis=can_use_aegis()))
    assert got == list(LONG_PAYLOADS[: len(got)])
