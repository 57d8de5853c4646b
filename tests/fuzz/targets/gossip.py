"""What members of a run say to each other, and the artefacts that they hand on."""

import contextlib
from pathlib import Path

from gossip.blocks import messages as block_messages
from gossip.blocks.bitmap import pack_bits, unpack_bits
from gossip.blocks.errors import InvalidArtefact
from gossip.blocks.manifest import FileEntry, Manifest
from gossip.blocks.merkle import BLOCK_BYTES
from gossip.collective.agreement.messages import decode_message_untrusted
from gossip.collective.agreement.messages import encode as encode_gossip
from gossip.decentralized.network import wire as decentralized_wire
from gossip.membership import messages as membership
from tests.fuzz.targets.kit import edited, target
from tests.trusted import SWARM
from transport.codec import decode_untrusted, pack
from transport.errors import MalformedMessage


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
