"""The identity matrix: twelve ways to be nobody, each refused with its own reason before a byte of the application flows.

Every case is played in both roles, hence against a node that dials and against one that listens. The honest side is the real handshake with the
real judgement; the dishonest one is a member of the swarm as far as the outer gate goes (it holds the swarm's secret), which is
the hard case: without it, it gets no further than the first flight.
"""

import random
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import trio

from tests.transport.nodes import address, identity, node
from tests.trusted import FOREIGN_ROOT, ROOT, SWARM, invited_chain, judge_of, member_chain, trust_of
from transport.errors import (
    HandshakeFailed,
    PeerUnreachable,
    Replayed,
    SelfDialed,
    TransportError,
    VersionMismatch,
    WrongPeer,
)
from transport.identity import Identity
from transport.network import RawStream
from transport.secure.first_flights import FirstFlights
from transport.secure.handshake import HELLO_BYTES, Handshake, Intro
from transport.secure.link import shake_hands
from transport.simulated.memory import MemoryNetwork
from transport.trust.certificate import Extension, sign_certificate
from transport.trust.chain import certify_by_root, chain_of
from transport.trust.refusal import CertificateRefused, Refusal
from transport.trust.revocation import revoke
from transport.trust.trust import Trust, self_issued

NOW_MS = 1_700_000_000_000
HONEST, MALLORY, VICTIM = (identity(number) for number in (1, 66, 3))


@attrs.define
class Sides:
    """What a case may change before the two meet."""

    chain: bytes
    """What Mallory shows."""
    trust: Trust
    """Whom the honest side asks."""
    expected: Any = None
    """Whom the honest side wants to meet."""
    identity: Identity = MALLORY
    is_new: Callable[[bytes], bool] = lambda _ephemeral: True
    edit: Callable[[Handshake], None] = lambda _handshake: None
    """Changes the dishonest handshake."""
    on_wire: Callable[[int, bytes], bytes] = lambda _flight, data: data
    """A middleman: what becomes of flight 1, 2 or 3 on its way to the honest side."""


def no_certificate(sides: Sides) -> None:
    sides.chain = b""


def self_signed(sides: Sides) -> None:
    sides.chain = self_issued(MALLORY, SWARM.id, serial=bytes(16), now_ms=NOW_MS).raw


def other_swarm(sides: Sides) -> None:
    sides.chain = member_chain(MALLORY, root=FOREIGN_ROOT).raw


def expired(sides: Sides) -> None:
    sides.chain = certify_by_root(
        ROOT,
        subject=MALLORY.public_key,
        role="trainer",
        serial=bytes(16),
        now_ms=NOW_MS - 1_000_000,
        lifetime_ms=900_000,
    ).raw


def revoked(sides: Sides) -> None:
    sides.trust.learn(revoke(ROOT, swarm_id=SWARM.id, subject=MALLORY.node_id, at_ms=NOW_MS))


def wrong_expected_key(sides: Sides) -> None:
    sides.expected = VICTIM.node_id


def own_key_reflected(sides: Sides) -> None:
    sides.identity = HONEST
    sides.chain = member_chain(HONEST).raw
    # It has no reason to mind that the other side is itself.
    sides.edit = lambda handshake: setattr(handshake, "_identity", _blind(HONEST))


def _blind(identity: Identity) -> Identity:
    twin = Identity.from_seed(identity.seed)
    twin.node_id = VICTIM.node_id  # what the check against oneself compares with
    return twin


def swapped_transcript(sides: Sides) -> None:
    """The identity of one handshake, played into another: Mallory got the victim to sign for a channel of its own."""

    def swap(handshake: Handshake) -> None:
        def identity_of_another_channel(noise: Any) -> None:
            elsewhere = Handshake(
                role=handshake._role,
                identity=VICTIM,
                gate=SWARM.gate,
                chain=member_chain(VICTIM).raw,
                judge=judge_of(sides.trust, NOW_MS),
                intro=Intro(),
                random_bytes=random.Random(9).randbytes,
            )
            signed = elsewhere._signed(elsewhere._role, elsewhere._static.public, elsewhere._chain)
            payload = VICTIM.public_key + VICTIM.sign(signed)
            payload += len(elsewhere._chain).to_bytes(2, "big") + elsewhere._chain
            message = noise.write_message(payload + elsewhere._intro)
            handshake._out += len(message).to_bytes(2, "big") + message

        handshake._send_identity = identity_of_another_channel

    sides.edit = swap


def downgrade(sides: Sides) -> None:
    sides.on_wire = lambda flight, data: data[:8] + b"\x01" + data[9:] if flight < 3 else data


def truncated(sides: Sides) -> None:
    sides.chain = sides.chain[:-1]


def unknown_critical(sides: Sides) -> None:
    certificate = sign_certificate(
        ROOT,
        swarm_id=SWARM.id,
        subject=MALLORY.public_key,
        role="trainer",
        may_invite=False,
        serial=bytes(16),
        issued_at_ms=0,
        expires_at_ms=2 * NOW_MS,
        extensions=[Extension("only-on-sundays")],
    )
    body = bytearray(certificate.raw[:-64])
    body[180] = 1
    raw = bytes(body) + ROOT.sign(b"noded certificate v1".ljust(24, b"\0") + bytes(body))
    sides.chain = b"\x01" + len(raw).to_bytes(2, "big") + raw


def reused_ephemeral(sides: Sides) -> None:
    seen = FirstFlights()
    sides.is_new = seen.is_new
    sides.edit = lambda handshake: seen.is_new(handshake._ephemeral.public) and None


def issuer_revoked(sides: Sides) -> None:
    inviter = member_chain(VICTIM, may_invite=True)
    sides.chain = invited_chain(VICTIM, inviter, MALLORY).raw
    sides.trust.learn(revoke(ROOT, swarm_id=SWARM.id, subject=VICTIM.node_id, at_ms=NOW_MS))


def issued_by_nobody(sides: Sides) -> None:
    inviter = member_chain(VICTIM)  # may not invite
    certificate = sign_certificate(
        VICTIM,
        swarm_id=SWARM.id,
        subject=MALLORY.public_key,
        role="trainer",
        may_invite=False,
        serial=bytes(16),
        issued_at_ms=0,
        expires_at_ms=NOW_MS * 2,
    )
    sides.chain = chain_of((*inviter.certificates, certificate)).raw


def borrowed_certificate(sides: Sides) -> None:
    sides.chain = member_chain(VICTIM).raw


Case = tuple[Callable[[Sides], None], type[HandshakeFailed], Refusal | None]
MATRIX: dict[str, Case] = {
    "no certificate": (no_certificate, CertificateRefused, Refusal.MISSING),
    "self-signed": (self_signed, CertificateRefused, Refusal.SELF_SIGNED),
    "other swarm": (other_swarm, CertificateRefused, Refusal.OTHER_SWARM),
    "expired": (expired, CertificateRefused, Refusal.EXPIRED),
    "revoked": (revoked, CertificateRefused, Refusal.REVOKED),
    "wrong expected key": (wrong_expected_key, WrongPeer, None),
    "own key reflected": (own_key_reflected, SelfDialed, None),
    "swapped transcript": (swapped_transcript, HandshakeFailed, None),
    "downgrade": (downgrade, VersionMismatch, None),
    "truncated": (truncated, CertificateRefused, Refusal.TRUNCATED),
    "unknown critical field": (unknown_critical, CertificateRefused, Refusal.UNKNOWN_CRITICAL),
    "reused ephemeral": (reused_ephemeral, Replayed, None),
    # Beyond the twelve.
    "issuer revoked": (issuer_revoked, CertificateRefused, Refusal.ISSUER_REVOKED),
    "issuer may not invite": (issued_by_nobody, CertificateRefused, Refusal.NOT_NARROWER),
    "borrowed certificate": (borrowed_certificate, CertificateRefused, Refusal.WRONG_KEY),
}


def meet(
    case: Callable[[Sides], None], role: str
) -> tuple[Handshake, TransportError | None, Trust]:
    """Mallory plays `role`; the honest side, the first error it raised, and what it asked."""
    sides = Sides(member_chain(MALLORY).raw, trust_of(HONEST))
    case(sides)
    honest_role = "responder" if role == "initiator" else "initiator"
    mallory = Handshake(
        role=role,  # type: ignore[arg-type]
        identity=sides.identity,
        gate=SWARM.gate,
        chain=sides.chain,
        judge=judge_of(trust_of(sides.identity), NOW_MS),
        intro=Intro(name="mallory"),
        random_bytes=random.Random(66).randbytes,
    )
    honest = Handshake(
        role=honest_role,  # type: ignore[arg-type]
        identity=HONEST,
        gate=SWARM.gate,
        chain=member_chain(HONEST).raw,
        judge=judge_of(sides.trust, NOW_MS),
        intro=Intro(name="honest"),
        random_bytes=random.Random(1).randbytes,
        expected=sides.expected,
        is_new=sides.is_new,
    )
    sides.edit(mallory)
    initiator, responder = (mallory, honest) if role == "initiator" else (honest, mallory)
    error: TransportError | None = None
    for flight, (source, sink) in enumerate(
        ((initiator, responder), (responder, initiator), (initiator, responder)), start=1
    ):
        data = source.outgoing()
        if sink is honest:
            data = sides.on_wire(flight, data)
        try:
            sink.receive(data)
        except HandshakeFailed as failed:
            if sink is honest:
                error = failed
            break
    return honest, error, sides.trust


@pytest.mark.parametrize("role", ["initiator", "responder"])
@pytest.mark.parametrize("name", MATRIX)
def test_the_matrix(name: str, role: str) -> None:
    case, error_type, reason = MATRIX[name]
    if name == "reused ephemeral" and role == "responder":
        role = "initiator"  # it is the first flight that can be reused: nobody else's is remembered
    honest, error, trust = meet(case, role)
    assert honest.result is None
    assert type(error) is error_type
    if reason is None:
        assert not trust.refusals
    else:
        assert isinstance(error, CertificateRefused)
        assert error.refusal is reason
        assert trust.refusals == {reason: 1}
        assert list(trust.refused_keys) == [MALLORY.node_id]
    # All that leaves is a bare hello, or the sealed reason for whoever has proved to hold its key.
    left = honest.outgoing()
    assert len(left) <= (HELLO_BYTES if role == "responder" or reason is None else 512)


def test_without_a_lie_the_same_two_meet() -> None:
    for role in ("initiator", "responder"):
        honest, error, trust = meet(lambda _sides: None, role)
        assert error is None
        assert honest.result is not None
        assert honest.result.node_id == MALLORY.node_id
        assert not trust.refusals


REFUSED = [name for name, (_, error, _reason) in MATRIX.items() if error is CertificateRefused]


@pytest.mark.parametrize("name", REFUSED)
async def test_no_byte_of_the_application_flows(name: str, autojump_clock: object) -> None:
    """Against a whole endpoint: no peer, no stream, no handler; and the one who is refused can read why."""
    case, _, reason = MATRIX[name]
    world = MemoryNetwork(1)
    sides = Sides(member_chain(MALLORY).raw, trust_of(HONEST))
    case(sides)
    reached: list[bytes] = []

    async def echo(_peer: object, request: bytes) -> bytes:
        reached.append(request)
        return request

    async with node(
        world.host("10.0.0.1"), 1, trust=sides.trust, clock=lambda: NOW_MS / 1000
    ) as honest:
        honest.serve_calls("echo", echo)
        mallory = Trust(SWARM.id, sides.chain)
        async with node(
            world.host("10.0.0.66"), 66, trust=mallory, clock=lambda: NOW_MS / 1000
        ) as endpoint:
            try:
                peer = await endpoint.connect([address(1)])
                await peer.call("echo", b"in?")
            except TransportError:
                pass
            await trio.sleep(1)
            assert not endpoint.peers
            reasons = [lost.reason for lost in endpoint.lost.values()]
            assert reasons
            assert "your certificate is refused" in reasons[0]
            with pytest.raises(PeerUnreachable):
                await honest.connect([address(66)])
        assert not reached
        assert not honest.peers
        assert honest.counters[f"handshake-certificate-{reason}"] == 1
        assert sides.trust.refused_keys[MALLORY.node_id].count == 2
        assert honest._context.admission.pending == 0


async def test_a_member_revoked_between_handshake_and_registration_is_not_taken(
    autojump_clock: object,
) -> None:
    world = MemoryNetwork(1)
    trust = trust_of(HONEST)
    async with node(world.host("10.0.0.1"), 1, trust=trust) as honest:
        raw: RawStream = await world.host("10.0.0.66").connect(address(1))
        handshake = Handshake(
            role="initiator",
            identity=MALLORY,
            gate=SWARM.gate,
            chain=member_chain(MALLORY).raw,
            judge=judge_of(trust_of(MALLORY)),
            intro=Intro(),
            random_bytes=random.Random(1).randbytes,
        )
        register = honest._registry.register

        def slow_register(link: Any) -> Any:
            trust.learn(revoke(ROOT, swarm_id=SWARM.id, subject=MALLORY.node_id, at_ms=0))
            return register(link)

        honest._registry.register = slow_register
        await shake_hands(raw, handshake, deadline=trio.current_time() + 5)
        await trio.sleep(1)
        assert not honest.peers
