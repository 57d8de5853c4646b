"""What comes out of a secure channel, what gateways answer, and the transport's texts: frames, messages, addresses."""

import contextlib
import ipaddress

from dht.contact import sane_address, split_address
from tests.fuzz.targets.kit import target, text_of
from transport.address import Address
from transport.budget.admission import source_of
from transport.bulk import messages as bulk_messages
from transport.codec import decode_untrusted, pack, unpack_untrusted
from transport.errors import (
    InvalidAddress,
    InvalidNodeId,
    InvalidSwarmKey,
    MalformedMessage,
    ProtocolViolation,
    TransportError,
)
from transport.identity import NodeId
from transport.limits import Limits
from transport.nat import natpmp, pcp
from transport.punch import messages as punch
from transport.relay import messages as relay
from transport.streams import frames
from transport.streams.mux import Mux
from transport.swarm import Swarm

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


NONCE = bytes(12)


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
