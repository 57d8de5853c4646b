"""From a raw connection to an authenticated peer: hello, Noise XX, identities.

Problem: before a byte of the application flows, both sides must know that they speak the same protocol version, belong to the same
swarm, and which node is at the other end; a stranger must learn nothing and cost next to nothing. Idea: a fixed hello in clear,
both hellos and the swarm key in the Noise prologue (so an edit of any bit breaks the handshake), and inside the encrypted messages the
certificates that make the sender a member (`transport.trust`) and an Ed25519 signature over them and the Noise static key.

    initiator                                    responder
      hello (28) | e (32) | proof (16)    ->
                                          <-     hello (28) | length (2) | message 2
      length (2) | message 3              ->

    hello:      magic 93 6e 6f 64 65 64 0d 0a (8), version (1), role (1: 1 initiator, 2 responder, 3 punch, 4 join), flags (2), tie-break (8),
                swarm tag (8)
    proof:      HMAC-SHA256(swarm key, "noded member v2" 00 | initiator hello | e), first 16 bytes; it is the payload of Noise message 1
    prologue:   "noded handshake v2" 00 | initiator hello | responder hello | swarm key
    payload of messages 2 and 3: Ed25519 public key (32) | signature (64) | length (2) | chain of certificates | intro, a msgpack map
    signed:     "noded identity v2" 00 | swarm id | role (1: 1 initiator, 2 responder) | Noise static public key | SHA-256 of the chain

Two nodes that dial each other at once through their NATs cannot tell who opened the connection: one may see `accept`, the other
`connect`, or both `connect`. So both send only their hello, of role 3, and the higher tie-break is the initiator (after libp2p's
simultaneous open, libp2p/specs: connections/simopen.md). From there on all is as above, without the second hello. An ordinary
responder takes a hello of role 3 only when it was told whom to expect (`punching`), and answers it with its own.

Who has an invite and nothing else opens a connection in the role "join": its first flight is keyed with what an invite tells (`Gate.joining`), its
message 3 carries nothing, so no signature is verified for it, and the result is good for one request (`transport.connect.door`).

The initiator's first flight goes out before the responder's hello is known. That is sound: Noise message 1 of XX carries no
encryption, so its bytes do not depend on the prologue, and the prologue is mixed in before message 2 is made or read.

The responder answers nothing until the proof shows that the initiator holds the swarm key; the exceptions are another version or
another swarm tag, answered with the bare hello (28 bytes) so that both sides can say what is wrong, and an agreed punch. A first
flight that came before gets no answer either: whoever sends it may have recorded it (`transport.secure.first_flights`). The initiator compares the
responder's id with the expected one before it sends its own identity. Nothing but the handshake is taken or given before
message 3 is verified (no 0-RTT), and the two together read at most 5 KiB each. A responder that refuses an initiator's certificates says so in
two sealed records before it closes, so that the operator over there can read why.

Invariants: any split of the input gives the same result; every failure is a HandshakeFailed and final; bytes after the last
message are kept in `result.leftover`, in order. After a failure `outgoing()` may still hold the bare hello: send it, then close.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Callable, Collection
from typing import Literal, TypeAlias

import attrs

from transport.buffer import Buffer
from transport.errors import (
    HandshakeFailed,
    InvalidPublicKey,
    JoinRefused,
    NotNoded,
    Replayed,
    SelfDialed,
    UsageError,
    VersionMismatch,
    WrongPeer,
    WrongSwarm,
)
from transport.identity import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, Identity, NodeId, verify
from transport.secure.intro import MAX_LABEL_BYTES, MAX_LISTEN, Intro, decode_intro, encode_intro
from transport.secure.noise import DH_BYTES, KeyPair, NoiseXX, Role
from transport.secure.record import OVERHEAD_BYTES, Opener, RecordKind, Sealer
from transport.streams.frames import CloseCode, GoAway, encode
from transport.swarm import Gate
from transport.trust.refusal import YOUR_CERTIFICATE, CertificateRefused, Refusal
from transport.trust.trust import Member

__all__ = [
    "HELLO_BYTES",
    "MAGIC",
    "MAX_HANDSHAKE_BYTES",
    "MAX_LABEL_BYTES",
    "MAX_LISTEN",
    "VERSION",
    "Handshake",
    "HandshakeResult",
    "HandshakeRole",
    "Intro",
    "Role",
]

MAGIC = b"\x93noded\r\n"
"""Not ASCII at first, so that text protocols differ at once; CR LF shows a line-ending translation."""
VERSION = 2
MAX_HANDSHAKE_BYTES = 5120
"""Bytes either side reads before it gives up."""
PROOF_BYTES = 16

_HELLO = struct.Struct(">8sBBHQ8s")
HELLO_BYTES = _HELLO.size
_FIRST_FLIGHT_BYTES = HELLO_BYTES + DH_BYTES + PROOF_BYTES
_LENGTH = struct.Struct(">H")
_ROLE_BYTE: dict[Role, int] = {"initiator": 1, "responder": 2}
_PUNCH_BYTE = 3
_JOIN_BYTE = 4
HandshakeRole: TypeAlias = Role | Literal["punch", "join"]
Judge: TypeAlias = Callable[[bytes, bytes], Member]
"""judge(chain, public key) of who has proved to hold the key; raises CertificateRefused."""

_NOTHING_TO_SAY = encode_intro(Intro())
_PROLOGUE_DOMAIN = b"noded handshake v2\x00"
_PROOF_DOMAIN = b"noded member v2"
_IDENTITY_DOMAIN = b"noded identity v2\x00"


@attrs.frozen(eq=False)
class HandshakeResult:
    """An authenticated connection, from one side."""

    node_id: NodeId
    """Who the other side is."""
    public_key: bytes
    """Its Ed25519 key."""
    member: Member | None
    """What its certificates make it; None for somebody who wants to join, of whom nothing is known: then the node id and the public key
    are those of this connection alone."""
    intro: Intro
    """What it says about itself."""
    sealer: Sealer = attrs.field(repr=False)
    """For what we send."""
    opener: Opener = attrs.field(repr=False)
    """For what we receive."""
    session_id: bytes = attrs.field(repr=False)
    """32 bytes, the same on both sides, different for every handshake; may be public."""
    leftover: bytes = attrs.field(repr=False)
    """Received after the last message of the handshake: the start of the first record."""
    role: Role
    """Ours."""
    tie_break: int
    """Our random 64 bits of the hello."""
    remote_tie_break: int
    """Theirs."""
    punched: bool = False
    """Whether the roles were decided by the tie-breaks."""


class Handshake:
    """One side of one handshake; sans-IO.

    Args:
        role: "initiator" if this side opened the connection, "responder" if it accepted it, "punch" if both sides dial at once, "join" to open
            one without being a member.
        identity: our key; of no use in the role "join".
        gate: our swarm's; for "join" the one that its id makes (`Gate.joining`).
        chain: our certificates.
        judge: decides about the other side's.
        intro: what we say about ourselves.
        random_bytes: source of the fresh keys and the tie-break; os.urandom outside simulations.
        expected: the only acceptable node id, if one is known.
        punching: for a responder: take part in a punch if the other side's hello says so, with one of these nodes.
        is_new: for a responder: whether an ephemeral key that came with a valid proof is no copy of an earlier one.
        may_join: for a responder: asked when somebody knocks who wants to join; what is refused is closed without a word.

    Raises:
        UsageError: the intro is too large to send.
    """

    def __init__(
        self,
        *,
        role: HandshakeRole,
        identity: Identity,
        gate: Gate,
        chain: bytes,
        judge: Judge,
        intro: Intro,
        random_bytes: Callable[[int], bytes],
        expected: NodeId | None = None,
        punching: Collection[NodeId] = (),
        is_new: Callable[[bytes], bool] = lambda _ephemeral: True,
        may_join: Callable[[], bool] = lambda: False,
    ) -> None:
        self._punched = role == "punch"
        self._punching = punching if role == "responder" else ()
        # A punching side learns its role from the other's hello; like a responder, it has nothing to say until then.
        self._role: Role = "initiator" if role in ("initiator", "join") else "responder"
        self._joining = role == "join"
        self._identity = identity
        self._gate = gate
        self._chain = chain
        self._judge = judge
        self._may_join = may_join
        self._intro = encode_intro(intro)
        self._aegis = intro.aegis
        self._expected = expected
        self._is_new = is_new
        self._ephemeral = KeyPair.from_private(random_bytes(DH_BYTES))
        self._static = KeyPair.from_private(random_bytes(DH_BYTES))
        self._tie_break = int.from_bytes(random_bytes(8), "big")
        self._remote_tie_break = 0
        self._hello = self._make_hello()
        self._remote_hello = b""
        self._noise: NoiseXX | None = None
        self._received = bytearray()
        self._consumed = 0
        self._out = bytearray()
        self._farewell = b""
        self._error: HandshakeFailed | None = None
        self._result: HandshakeResult | None = None
        if self._punched:
            self._out += self._hello
        elif self._role == "initiator":
            self._out += self._hello
            self._send_ephemeral()

    @property
    def result(self) -> HandshakeResult | None:
        """Set once the other side is authenticated. The initiator still has to send `outgoing()`."""
        return self._result

    @property
    def joining(self) -> bool:
        """Whether the initiator is no member and wants to become one."""
        return self._joining

    def outgoing(self) -> bytes:
        """Bytes to send now; b"" if none. Also to be sent (best effort) after `receive` raised."""
        data = bytes(self._out)
        self._out.clear()
        return data

    def receive(self, data_untrusted: Buffer) -> None:
        """Take received bytes, any split.

        Raises:
            HandshakeFailed: or a subclass; the handshake is over and every further call raises it again.
            UsageError: the handshake already has its result (further bytes belong to the records).
        """
        if self._error is not None:
            raise self._error
        if self._result is not None:
            raise UsageError("the handshake is finished")
        self._received += data_untrusted
        try:
            while self._step():
                pass
        except HandshakeFailed as error:
            self._error = error
            self._received.clear()
            if self._role == "initiator" or len(self._out) > HELLO_BYTES:
                self._out.clear()  # only the bare hello may still leave
            self._out += self._farewell
            raise

    def receive_eof(self) -> None:
        """The connection ended; always raises, with the most likely cause.

        Raises:
            HandshakeFailed: this one, or the one that already happened.
        """
        if self._error is None:
            if self._remote_hello or self._consumed:
                self._error = HandshakeFailed(
                    "the other side closed the connection during the handshake"
                )
            elif self._role == "initiator":
                self._error = HandshakeFailed(
                    "the other side closed the connection without an answer",
                    hint="it may not be a noded node, it may have another swarm key, or it may be refusing connections",
                )
            else:
                self._error = HandshakeFailed(
                    "the other side closed the connection without saying hello"
                )
        raise self._error

    def _make_hello(self) -> bytes:
        role = _PUNCH_BYTE if self._punched else _ROLE_BYTE[self._role]
        if self._joining:
            role = _JOIN_BYTE
        return _HELLO.pack(MAGIC, VERSION, role, 0, self._tie_break, self._gate.tag)

    def _send_ephemeral(self) -> None:
        self._out += self._ephemeral.public + self._proof(self._hello, self._ephemeral.public)

    def _proof(self, hello: bytes, ephemeral: bytes) -> bytes:
        return self._gate.proof(_PROOF_DOMAIN, hello + ephemeral)[:PROOF_BYTES]

    def _take(self, size: int) -> bytes:
        data = bytes(self._received[:size])
        del self._received[:size]
        self._consumed += size
        return data

    def _step(self) -> bool:
        """Consume the next unit of input; False when more bytes (or none) are needed."""
        if not self._remote_hello:
            return self._receive_hello()
        if self._noise is None:  # responder only
            return self._receive_first_message()
        return self._receive_long_message(self._noise)

    def _receive_hello(self) -> bool:
        head = bytes(self._received[:HELLO_BYTES])
        magic = head[: len(MAGIC)]
        if magic != MAGIC[: len(magic)]:
            raise NotNoded("the other side does not speak the noded protocol")
        if len(head) > len(MAGIC) and head[len(MAGIC)] != VERSION:
            self._answer_hello()
            raise VersionMismatch(
                f"the other side speaks version {head[len(MAGIC)]} of the protocol, this node version {VERSION}"
            )
        if len(head) < HELLO_BYTES:
            return False
        _, _, role, _flags, self._remote_tie_break, tag = _HELLO.unpack(head)
        if role == _PUNCH_BYTE and self._punching:
            self._punched = True
            self._hello = self._make_hello()
            self._out += self._hello
        self._check_role(role)
        if tag != self._gate.tag:
            self._answer_hello()
            raise WrongSwarm("the other side belongs to another swarm")
        if self._punched:
            self._break_the_tie()
        self._remote_hello = self._take(HELLO_BYTES)
        if self._role == "initiator":
            self._noise = self._make_noise(self._hello, self._remote_hello)
            # The same bytes that go out as the first flight; the state takes them into the transcript now.
            self._noise.write_message(self._proof(self._hello, self._ephemeral.public))
        return True

    def _check_role(self, role_untrusted: int) -> None:
        if role_untrusted == _JOIN_BYTE and self._role == "responder" and not self._punched:
            self._joining = True
            self._gate = Gate.joining(self._gate.id)
        elif self._punched:
            if role_untrusted != _PUNCH_BYTE:
                raise HandshakeFailed("the other side does not take part in the punch")
        elif role_untrusted == _PUNCH_BYTE:
            raise HandshakeFailed("the other side punches, and no punch with it was agreed")
        elif (
            role_untrusted != _ROLE_BYTE["responder" if self._role == "initiator" else "initiator"]
        ):
            raise HandshakeFailed("the other side plays our own role: the connection is reflected")

    def _break_the_tie(self) -> None:
        if self._tie_break == self._remote_tie_break:
            raise HandshakeFailed("both sides have the same tie-break: the connection is reflected")
        if self._tie_break > self._remote_tie_break:
            self._role = "initiator"
            self._send_ephemeral()

    def _answer_hello(self) -> None:
        if self._role == "responder" and not self._punched:
            self._out += self._hello

    def _make_noise(self, initiator_hello: bytes, responder_hello: bytes) -> NoiseXX:
        prologue = _PROLOGUE_DOMAIN + initiator_hello + responder_hello + self._gate.key
        return NoiseXX(
            self._role, static=self._static, ephemeral=self._ephemeral, prologue=prologue
        )

    def _receive_first_message(self) -> bool:
        if len(self._received) < DH_BYTES + PROOF_BYTES:
            return False
        message = self._take(DH_BYTES + PROOF_BYTES)
        proof = self._proof(self._remote_hello, message[:DH_BYTES])
        if not hmac.compare_digest(message[DH_BYTES:], proof):
            raise WrongSwarm("the other side names our swarm but does not hold its key")
        if (
            self._joining
        ):  # anybody may make such proofs: they have no part in the memory of members' ones
            if not self._may_join():
                raise JoinRefused(
                    "somebody wants to join, and this node takes no more requests now"
                )
        elif not self._is_new(message[:DH_BYTES]):
            raise Replayed("the other side repeats the first flight of an earlier handshake")
        self._noise = self._make_noise(self._remote_hello, self._hello)
        self._noise.read_message(message)
        if not self._punched:
            self._out += self._hello
        self._send_identity(self._noise)
        return True

    def _receive_long_message(self, noise: NoiseXX) -> bool:
        if len(self._received) < _LENGTH.size:
            return False
        (length,) = _LENGTH.unpack_from(self._received)
        if self._consumed + _LENGTH.size + length > MAX_HANDSHAKE_BYTES:
            raise HandshakeFailed("the handshake exceeds 5 KiB")
        if len(self._received) < _LENGTH.size + length:
            return False
        payload = noise.read_message(self._take(_LENGTH.size + length)[_LENGTH.size :])
        if self._joining and self._role == "responder":
            self._take_joiner(noise, payload)
            return False
        try:
            node_id, public_key, member, intro = self._check_identity(payload, noise.remote_static)
        except CertificateRefused as error:
            if self._role == "responder":
                self._farewell = _farewell(noise, error)
            raise
        if self._role == "initiator":
            self._send_identity(noise)
        self._finish(noise, node_id, public_key, member, intro)
        return False

    def _take_joiner(self, noise: NoiseXX, payload_untrusted: bytes) -> None:
        if payload_untrusted:
            raise HandshakeFailed("who wants to join says nothing about itself in the handshake")
        static = noise.remote_static
        self._finish(noise, NodeId(hashlib.sha256(static).digest()), static, None, Intro())

    def _signed(self, role: Role, static_public: bytes, chain: bytes) -> bytes:
        return b"".join(
            (
                _IDENTITY_DOMAIN,
                self._gate.id,
                bytes([_ROLE_BYTE[role]]),
                static_public,
                hashlib.sha256(chain).digest(),
            )
        )

    def _send_identity(self, noise: NoiseXX) -> None:
        payload = b""
        if not (self._joining and self._role == "initiator"):
            signed = self._signed(self._role, self._static.public, self._chain)
            payload = b"".join(
                (
                    self._identity.public_key,
                    self._identity.sign(signed),
                    _LENGTH.pack(len(self._chain)),
                    self._chain,
                    _NOTHING_TO_SAY if self._joining else self._intro,
                )
            )
        message = noise.write_message(payload)
        self._out += _LENGTH.pack(len(message)) + message

    def _check_identity(
        self, payload_untrusted: bytes, static_public: bytes
    ) -> tuple[NodeId, bytes, Member, Intro]:
        end_of_signature = PUBLIC_KEY_BYTES + SIGNATURE_BYTES
        start_of_chain = end_of_signature + _LENGTH.size
        if len(payload_untrusted) < start_of_chain:
            raise HandshakeFailed("the other side gave no identity")
        public_key = payload_untrusted[:PUBLIC_KEY_BYTES]
        signature = payload_untrusted[PUBLIC_KEY_BYTES:end_of_signature]
        (length,) = _LENGTH.unpack_from(payload_untrusted, end_of_signature)
        chain = payload_untrusted[start_of_chain : start_of_chain + length]
        try:
            node_id = NodeId.of_public_key(public_key)
        except InvalidPublicKey:
            raise HandshakeFailed("the other side's public key is not acceptable") from None
        other: Role = "responder" if self._role == "initiator" else "initiator"
        if not verify(public_key, signature, self._signed(other, static_public, chain)):
            raise HandshakeFailed("the other side's identity is forged")
        if len(chain) != length:
            raise CertificateRefused(Refusal.TRUNCATED)
        if node_id == self._identity.node_id:
            raise SelfDialed("the other side has our own identity")
        if self._expected is not None and node_id != self._expected:
            raise WrongPeer(f"expected {self._expected.short}, found {node_id.short}")
        if self._punched and self._punching and node_id not in self._punching:
            raise WrongPeer(f"no punch with {node_id.short} was agreed")
        member = self._judge(chain, public_key)
        return (
            node_id,
            public_key,
            member,
            decode_intro(payload_untrusted[start_of_chain + length :]),
        )

    def _finish(
        self,
        noise: NoiseXX,
        node_id: NodeId,
        public_key: bytes,
        member: Member | None,
        intro: Intro,
    ) -> None:
        to_responder, to_initiator = noise.split()
        sends, receives = (
            (to_responder, to_initiator)
            if self._role == "initiator"
            else (to_initiator, to_responder)
        )
        aegis = self._aegis and intro.aegis
        self._result = HandshakeResult(
            node_id=node_id,
            public_key=public_key,
            member=member,
            intro=intro,
            sealer=Sealer(sends, aegis=aegis),
            opener=Opener(receives, aegis=aegis),
            session_id=noise.handshake_hash,
            leftover=bytes(self._received),
            role=self._role,
            tie_break=self._tie_break,
            remote_tie_break=self._remote_tie_break,
            punched=self._punched,
        )
        self._received.clear()


def _farewell(noise: NoiseXX, error: CertificateRefused) -> bytes:
    """What a refused initiator is told, sealed for it alone: the end of the connection, and why."""
    _, to_initiator = noise.split()
    sealer = Sealer(to_initiator)
    out = bytearray()
    goodbye = encode(GoAway(CloseCode.REFUSED, f"{YOUR_CERTIFICATE}: {error}"))
    for kind, plaintext in ((RecordKind.DATA, goodbye), (RecordKind.CLOSE, b"")):
        record = memoryview(bytearray(len(plaintext) + OVERHEAD_BYTES))
        sealer.seal_into(kind, plaintext, record)
        out += record
    return bytes(out)
