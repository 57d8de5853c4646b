"""What is fuzzed: one function per parser of bytes that somebody else wrote.

A target takes any bytes and returns. It may see the error that the parser documents and nothing else; where there is more to promise
than that (a round trip, a prefix, a bounded queue), it asserts it. No target keeps state between inputs.
"""

import contextlib
import hashlib
import ipaddress
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import trio

from crdt.clock import HybridClock
from crdt.entry import Author
from crdt.errors import CrdtError
from crdt.state import RunState
from dht.contact import sane_address, split_address
from dht.errors import InvalidRecord
from dht.messages import Answer, Query, from_hints
from dht.record import SignedRecord, check, make_record
from gossip.blocks import messages as block_messages
from gossip.blocks.bitmap import pack_bits, unpack_bits
from gossip.blocks.errors import InvalidArtefact
from gossip.blocks.manifest import FileEntry, Manifest
from gossip.blocks.merkle import BLOCK_BYTES
from gossip.collective.agreement.messages import decode_message_untrusted
from gossip.collective.agreement.messages import encode as encode_gossip
from gossip.decentralized.network import wire as decentralized_wire
from gossip.membership import messages as membership
from node.blocks.approvals import FILE_NAME as APPROVALS_FILE
from node.blocks.approvals import Approvals
from node.config import load_config
from node.control import ControlServer
from node.data.cifar import load_cifar
from node.data.digits import load_digits
from node.data.errors import DataError
from node.data.femnist import load_femnist
from node.data.idx import parse_idx
from node.data.movielens import load_movielens
from node.errors import NodedError
from node.joining import answer as join_answer
from node.joining.beacon import Beacon
from node.joining.code import InvalidCode, InviteCode
from node.joining.ledger import LedgerDamaged, decode_invite, encode_invite
from node.joining.redeemer import Redeemer
from node.joining.request import MalformedRequest, parse_request
from node.run.manifest import RunManifest
from node.trainer_messages import decode_trainer_message
from tests.trusted import SWARM, invited_chain, member_chain, shaking
from transport.address import Address
from transport.budget.admission import source_of
from transport.bulk import messages as bulk_messages
from transport.codec import decode_untrusted, pack, unpack_untrusted
from transport.errors import (
    HandshakeFailed,
    InvalidAddress,
    InvalidNodeId,
    InvalidSwarmKey,
    MalformedMessage,
    ProtocolViolation,
    RecordError,
    TransportError,
)
from transport.identity import Identity, NodeId, verify
from transport.limits import Limits
from transport.nat import natpmp, pcp
from transport.punch import messages as punch
from transport.relay import messages as relay
from transport.secure.handshake import Handshake
from transport.secure.intro import Intro, decode_intro, encode_intro
from transport.secure.record import HEADER_BYTES, OVERHEAD_BYTES, Opener, RecordKind, Sealer
from transport.streams import frames
from transport.streams.mux import Mux
from transport.swarm import Swarm
from transport.trust.certificate import parse_certificate
from transport.trust.chain import parse_chain, verify_chain
from transport.trust.refusal import CertificateRefused
from transport.trust.revocation import revoke
from transport.trust.statement import encode_statement, parse_statement
from transport.trust.trust import Trust

ALICE, BOB = (Identity.from_seed(bytes([number]) * 32) for number in (1, 2))
KEY = bytes(range(32))
PAYLOADS = (b"first", bytes(300), b"", b"x" * 40)
NOW = 1_700_000_000.0
NONCE = bytes(12)
UNTOUCHED = 0xEE
"""Refused before decryption, the output is as it was; after it, wiped."""

Target = Callable[[bytes], None]
TARGETS: dict[str, Target] = {}


def target(function: Target) -> Target:
    TARGETS[function.__name__.replace("_", "-")] = function
    return function


def text_of(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def edited(genuine: bytes, data: bytes) -> bytes:
    """A middleman's work: `data` says where, what kind of edit, and with which bytes."""
    place = int.from_bytes(data[:2], "big") % (len(genuine) + 1)
    kind, rest = data[2:3], data[3:]
    if kind < b"\x40":  # flip
        middle = bytes(a ^ b for a, b in zip(genuine[place:], rest, strict=False))
        return genuine[:place] + middle + genuine[place + len(middle) :]
    if kind < b"\x80":  # put in
        return genuine[:place] + rest + genuine[place:]
    if kind < b"\xc0":  # take out
        return genuine[:place] + genuine[place + len(rest) :]
    return genuine[:place]  # cut


# Messages of decentralized protocols


@target
def decentralized_message(data: bytes) -> None:
    """The first byte says in which pieces the rest arrives."""
    decoder, pieces, stream = decentralized_wire.Decoder(64), data[:1], data[1:]
    step = 1 + (pieces[0] if pieces else 0)
    with contextlib.suppress(MalformedMessage):
        for start in range(0, len(stream), step):
            waiting = decoder.size is None
            decoder.feed(stream[start : start + step])
            if waiting and decoder.size is not None:
                assert decoder.size <= 65536 + 8 * 8 * 64
                decoder.admit()
        arrived = decoder.take()
        assert b"".join(decentralized_wire.parts(arrived.message, arrived.vectors)) == stream


# The secure channel


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


def stream_of_records() -> bytes:
    sealer, out = Sealer(KEY), bytearray()
    for payload in PAYLOADS:
        piece = memoryview(bytearray(len(payload) + OVERHEAD_BYTES))
        sealer.seal_into(RecordKind.DATA, payload, piece)
        out += piece
    return bytes(out)


RECORDS = stream_of_records()


def opened(stream: bytes) -> Iterator[bytes]:
    opener, place = Opener(KEY), 0
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


# Frames and streams


@target
def frame(data: bytes) -> None:
    """A record's frames: what is read encodes to something that reads the same."""
    try:
        read = list(frames.decode(data))
    except ProtocolViolation:
        return
    for each in read:
        assert list(frames.decode(frames.encode(each))) == [each]


@target
def mux(data: bytes) -> None:
    """Records of any frames: bounded memory, a violation closes, what we answer is well formed."""
    limits = Limits(streams_per_peer=8, accept_backlog=4)
    side = Mux(role="responder", limits=limits)
    local = side.open("echo")
    side.send(local, bytes(1000))
    cut = data[:1]
    step = 1 + (cut[0] if cut else 0)
    for start in range(1, len(data), step):
        try:
            side.receive(data[start : start + step], float(start))
        except ProtocolViolation:
            assert side.closed
        while (event := side.next_event()) is not None:
            if type(event).__name__ == "DataReceived":
                side.consume(event.stream_id, len(event.data))  # type: ignore[union-attr]
        held = side.statistics()
        assert held.unconsumed_bytes <= limits.memory_per_peer_bytes
        assert held.streams <= 4 * limits.streams_per_peer
        while out := side.outgoing(65536):
            list(frames.decode(out))


# Messages


@target
def codec(data: bytes) -> None:
    """Builtins only, no bomb, and a round trip."""
    try:
        value = unpack_untrusted(data)
    except MalformedMessage:
        return
    assert type(value) in {type(None), bool, int, float, str, bytes, list, dict}
    with contextlib.suppress(
        TransportError, UnicodeEncodeError
    ):  # grew over the limit; lone surrogates
        again = unpack_untrusted(pack(value))
        assert repr(again) == repr(value)


@target
def dht_message(data: bytes) -> None:
    """Queries and answers; the hints that are used are sane."""
    for type_ in (Query, Answer):
        try:
            message = decode_untrusted(data, type_)
        except MalformedMessage:
            continue
        assert decode_untrusted(pack(message), type_) == message
        for contact in from_hints(
            getattr(message.body, "contacts", []), own_id=KEY, loopback=False
        ):
            assert all(sane_address(text, loopback=False) for text in contact.addresses)


RECORD = make_record(
    swarm_id=SWARM.id,
    key=KEY,
    value=b"value",
    public_key=ALICE.public_key,
    sequence=3,
    expires_at=int(NOW) + 60,
    sign=ALICE.sign,
)


@target
def dht_record(data: bytes) -> None:
    """Only the record that was signed verifies."""
    source = data[1:] if data[:1] < b"\x20" else edited(pack(RECORD), data[1:])
    try:
        value = decode_untrusted(source, SignedRecord)
        check(value, swarm_id=SWARM.id, key=KEY, wall=NOW, verify=verify)
    except (MalformedMessage, InvalidRecord):
        return
    assert value == RECORD


@target
def gossip_message(data: bytes) -> None:
    """Messages of a run's epochs."""
    try:
        message = decode_message_untrusted(data)
    except MalformedMessage:
        return
    assert decode_message_untrusted(encode_gossip(message)) == message


@target
def membership_message(data: bytes) -> None:
    """Who is there: what is read is written the same, its size is foreseen, and what is signed can be made of it."""
    try:
        message = membership.decode(data)
    except MalformedMessage:
        return
    assert membership.decode(membership.encode(message)) == message
    for news in message.news:
        assert len(pack(news)) <= membership.size_of(news)
        if not isinstance(news, membership.Doubt):
            assert membership.statement_bytes(SWARM.id, news)


@target
def punch_message(data: bytes) -> None:
    """Hole punching: messages alone, and a session that gets them."""
    with contextlib.suppress(MalformedMessage):
        message = punch.decode(data)
        assert punch.decode(punch.encode(message)) == message


@target
def relay_message(data: bytes) -> None:
    """What relays and their clients say to each other."""
    for read in (relay.read_reserve_answer, relay.read_connect_answer):
        with contextlib.suppress(MalformedMessage):
            answer = read(data)
            assert read(pack(answer)) == answer
            if isinstance(answer, relay.Refused):
                assert 0 <= answer.as_error().retry_s <= relay.MAX_RETRY_S
    for type_ in (relay.Reserve, relay.Ended, relay.Connect, relay.Incoming):
        with contextlib.suppress(MalformedMessage):
            decode_untrusted(data, type_, limit=relay.MAX_BYTES)


@target
def bulk_message(data: bytes) -> None:
    """Headers of bulk transfers."""
    with contextlib.suppress(bulk_messages.ChunkRefused):
        message = bulk_messages.decode(data[1:], data[0] if data else 0)
        assert (
            bulk_messages.decode(bulk_messages.encode(message), data[0] if data else 0) == message
        )


@target
def port_mapping(data: bytes) -> None:
    """Answers of a gateway, in both protocols."""
    for parse in (
        lambda: pcp.parse_map(data, NONCE, 7447),
        lambda: pcp.parse_announce(data),
        lambda: natpmp.parse_map(data, 7447),
        lambda: natpmp.parse_address(data),
    ):
        with contextlib.suppress(TransportError):
            answer = parse()
            host = getattr(answer, "external_host", None)
            if host is not None:
                assert str(ipaddress.ip_address(host)) == host


@target
def trainer_message(data: bytes) -> None:
    """What the training process says to its daemon."""
    with contextlib.suppress(NodedError):
        decode_trainer_message(data)


# Texts


@target
def address(data: bytes) -> None:
    """host:port, with a relay or without: one canonical text."""
    text = text_of(data)
    split_address(text)
    sane_address(text, loopback=True)
    source_of(text)
    try:
        value = Address.parse(text)
    except InvalidAddress:
        return
    assert Address.parse(str(value)) == value
    assert str(value).isprintable()


@target
def identifier(data: bytes) -> None:
    """Node ids and swarm keys as people write them."""
    text = text_of(data)
    with contextlib.suppress(InvalidNodeId):
        node_id = NodeId.parse(text)
        assert NodeId.parse(str(node_id)) == node_id
    with contextlib.suppress(InvalidSwarmKey):
        Swarm.parse(text)
    with contextlib.suppress(InvalidNodeId):
        NodeId(data)


# Joining

INVITE = InviteCode(
    swarm_id=SWARM.id,
    issuer=bytes(ALICE.node_id[:16]),
    secret=bytes(range(16)),
    expires_s=int(NOW) + 3600,
    addresses=(Address("192.0.2.1", 7447), Address("2001:db8::1", 7447), Address("a.example", 1)),
)


def newcomer() -> Redeemer:
    return Redeemer(INVITE, BOB, random.Random("newcomer").randbytes)


JOIN_REQUEST = newcomer().request
JOIN_GRANT = join_answer.Grant(chain=b"chain", swarm_secret=KEY, root_key=KEY, bootstrap=("a:1",))
JOIN_ANSWER = join_answer.seal_grant(
    parse_request(JOIN_REQUEST), INVITE.key, JOIN_GRANT, random.Random("issuer").randbytes
)


@target
def invite_code(data: bytes) -> None:
    """A pasted line: one value, one text; any edit of a genuine one is noticed."""
    text = text_of(data[1:] if data[:1] < b"\x20" else edited(INVITE.text.encode(), data[1:]))
    try:
        code = InviteCode.parse(text)
    except InvalidCode:
        return
    assert InviteCode.parse(code.text) == code
    assert data[:1] < b"\x20" or code == INVITE


@target
def join_request(data: bytes) -> None:
    """What a member is asked to pass on; only the request that was made is proven and signed."""
    source = data[1:] if data[:1] < b"\x20" else edited(JOIN_REQUEST, data[1:])
    try:
        request = parse_request(source)
    except MalformedRequest:
        return
    assert request.data == source
    if request.proven_by(INVITE.key) and request.signed:
        assert source == JOIN_REQUEST


@target
def join_reply(data: bytes) -> None:
    """What comes back: only the answer that was sealed opens, and a no without the issuer's signature is hearsay."""
    asked = newcomer()
    source = data[1:] if data[:1] < b"\x20" else edited(JOIN_ANSWER, data[1:])
    try:
        answer = join_answer.read_answer(
            source, parse_request(asked.request), INVITE, random.Random("newcomer").randbytes(32)
        )
    except join_answer.MalformedAnswer:
        assert asked.receive("a", source, int(NOW * 1000)) is None
        return
    assert answer == JOIN_GRANT or not getattr(answer, "signed", True) or source[1] == 2


@target
def beacon(data: bytes) -> None:
    """A datagram from anybody on the network: nothing but a genuine one gives a hint."""
    speaker = Beacon(ALICE, SWARM, random.Random(1), 0.0)
    listener = Beacon(BOB, SWARM, random.Random(1), 0.0)
    genuine = speaker.make(7447, int(NOW * 1000))
    source = data[1:] if data[:1] < b"\x20" else edited(genuine, data[1:])
    hint = listener.receive(source, "192.0.2.1", 0.0, int(NOW * 1000))
    assert hint is None or source == genuine


@target
def invite_ledger(data: bytes) -> None:
    """A file of the ledger, once its checksum is right: one more use than it may have is refused."""
    try:
        invite = decode_invite(data)
    except LedgerDamaged:
        return
    assert len(invite.used) <= invite.uses
    assert decode_invite(encode_invite(invite)) == invite


# Shared state


@target
def crdt(data: bytes) -> None:
    """Any decoded value as a delta, a context, a want or a whole state; what merged can be told on."""
    try:
        value = unpack_untrusted(data)
    except MalformedMessage:
        return

    state = run_state(b"me")
    for use in (state.merge, state.they_lack, state.we_lack):
        before = state.digest()
        try:
            use(value)
        except CrdtError:
            assert state.digest() == before
    copy = run_state(b"other")
    copy.merge(state.to_wire())
    assert copy.digest() == state.digest()
    unpack_untrusted(pack(state.to_wire()))


def run_state(seed: bytes) -> RunState:
    """A replica whose author signs with a hash, so that mutated entries get past the signature."""
    public_key = hashlib.sha256(seed).digest()
    return RunState(
        Author(public_key, lambda _data: bytes(64)),
        HybridClock(hashlib.sha256(public_key).digest(), lambda: int(NOW * 1000)),
        KEY,
        lambda _key, _signature, _data: True,
    )


# The operator's side


@target
def config(data: bytes) -> None:
    """A configuration file."""
    with tempfile.NamedTemporaryFile(suffix=".toml", dir=_SCRATCH) as file:
        file.write(data)
        file.flush()
        with contextlib.suppress(NodedError):
            load_config(Path(file.name), environ={})


_SCRATCH = "/dev/shm" if Path("/dev/shm").is_dir() else None


@target
def manifest(data: bytes) -> None:
    """What a run is, as another node tells it."""
    with contextlib.suppress(NodedError, msgspec.ValidationError):
        value = RunManifest.from_json(data)
        assert RunManifest.from_map(value.to_map()) == value


# Artefacts


LEAVES = [bytes([number]) * 32 for number in range(3)]
ARTEFACT = Manifest.describe(
    "folder", [FileEntry("a/b", 2 * BLOCK_BYTES), FileEntry("c", 5)], LEAVES
)


@target
def artefact_manifest(data: bytes) -> None:
    """A manifest that is believed unpacks to plain files below one folder, and its lists of hashes are its own."""
    mode, data = data[:1], data[1:]
    raw = data if mode < b"\x80" else edited(ARTEFACT.raw, data)
    with contextlib.suppress(InvalidArtefact):
        manifest = Manifest.decode(raw)
        assert Manifest.decode(manifest.raw) == manifest
        assert sum(entry.size for entry in manifest.files) == manifest.size
        for entry in manifest.files:
            path = Path("/folder", entry.path)
            assert Path("/folder") in path.parents
            assert ".." not in path.parts
        with contextlib.suppress(InvalidArtefact):
            assert len(manifest.check_leaves(data)) == manifest.blocks


@target
def block_message(data: bytes) -> None:
    """What a fetcher asks, what a holder answers, and which blocks it says it has."""
    for type_ in (block_messages.Request, block_messages.Answer):
        with contextlib.suppress(MalformedMessage):
            message = decode_untrusted(data, type_)
            assert decode_untrusted(pack(message), type_) == message
    block_messages.read_tag(data)
    blocks = 8 * len(data) - (data[0] % 8 if data else 0)
    with contextlib.suppress(InvalidArtefact):
        assert pack_bits(unpack_bits(data, blocks)) == data


@target
def approvals(data: bytes) -> None:
    """The list of approved code, whatever has become of the file."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, APPROVALS_FILE).write_bytes(data)
        with contextlib.suppress(NodedError):
            assert all(len(bytes.fromhex(task)) == 32 for task in Approvals(Path(folder)).all())


DATA_SETS: dict[bytes, tuple[str, Callable[[str], object]]] = {
    b"d": ("digits.csv", load_digits),
    b"c": ("data_batch_1.bin", lambda path: load_cifar(str(Path(path).parent))),
    b"t": ("cifar.tar.gz", load_cifar),
    b"z": ("movies.zip", load_movielens),
    b"u": ("u.data", lambda path: load_movielens(str(Path(path).parent))),
    b"r": ("ratings.csv", lambda path: load_movielens(str(Path(path).parent))),
    b"f": ("train/all.json", lambda path: load_femnist(str(Path(path).parent.parent))),
}
"""By the input's first byte: the file to write, and who reads it."""


@target
def data_set(data: bytes) -> None:
    """A file of a data set: arrays, or an error of its own kind."""
    with contextlib.suppress(DataError):
        parse_idx(data, "file")
    found = DATA_SETS.get(data[:1])
    if found is None:
        return
    name, load = found
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        for copy in (
            path,
            Path(folder, name.replace("train", "test").replace("data_batch_1", "test_batch")),
        ):
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(data[1:])
        with contextlib.suppress(DataError):
            load(str(path))


class FakeClient:
    """A client of the control socket that says something and hangs up."""

    def __init__(self, data: bytes) -> None:
        self.pieces = [data[start : start + 512] for start in range(0, len(data), 512)]
        self.answered = b""

    async def recv(self, _size: int) -> bytes:
        await trio.lowlevel.checkpoint()
        return self.pieces.pop(0) if self.pieces else b""

    async def send(self, data: bytes) -> int:
        self.answered += bytes(data)
        return len(data)

    def shutdown(self, _how: int) -> None:
        pass


async def _answer(_body: object) -> tuple[int, dict[str, object]]:
    return 200, {"ok": True}


async def _serve(data: bytes) -> bytes:
    client = FakeClient(data)
    server = ControlServer(
        Path("unused"), {("GET", "/v1/status"): _answer, ("POST", "/v1/stop"): _answer}
    )
    await server._serve(client)
    return client.answered


@target
def control(data: bytes) -> None:
    """HTTP on the control socket: an answer or nothing."""
    answer = trio.run(_serve, data)
    assert not answer or answer.startswith(b"HTTP/1.1 ")
