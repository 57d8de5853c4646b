"""Three nodes of one swarm, and honest, scripted and lying sides of a handshake between them."""

import hashlib
import json
import random
from pathlib import Path

import attrs

from tests.trusted import FOREIGN, SWARM, shaking
from transport.address import Address
from transport.errors import HandshakeFailed
from transport.identity import Identity
from transport.secure.handshake import Handshake, Intro
from transport.swarm import Swarm
from transport.trust.chain import certify_by_root
from transport.trust.trust import Trust

ALICE = Identity.from_seed(bytes([1]) * 32)
BOB = Identity.from_seed(bytes([2]) * 32)
CAROL = Identity.from_seed(bytes([3]) * 32)
ALICE_INTRO = Intro(name="alice", listen=(Address("10.0.0.1", 7447), Address("::1", 1)))
BOB_INTRO = Intro(name="bob")


def make(role, *, seed=None, identity=None, swarm=SWARM, intro=None, expected=None):
    return Handshake(
        role=role,
        **shaking(identity or (ALICE if role == "initiator" else BOB), swarm),
        intro=intro or (ALICE_INTRO if role == "initiator" else BOB_INTRO),
        random_bytes=random.Random(seed if seed is not None else role).randbytes,
        expected=expected,
    )


def same_tag():
    """Another swarm that shows our tag."""
    swarm = attrs.evolve(FOREIGN)
    swarm.gate.__dict__["tag"] = SWARM.tag
    return swarm


def flights(initiator, responder):
    """Run to the end; the three flights."""
    first = initiator.outgoing()
    responder.receive(first)
    second = responder.outgoing()
    initiator.receive(second)
    third = initiator.outgoing()
    responder.receive(third)
    return first, second, third


FIRST, SECOND, THIRD = flights(make("initiator"), make("responder"))


def feed(handshake, data, sizes=None):
    """Deliver `data` in pieces until it ends or the handshake has its result; the undelivered rest."""
    place, number = 0, 0
    while place < len(data) and handshake.result is None:
        size = sizes[number % len(sizes)] if sizes else len(data)
        handshake.receive(data[place : place + size])
        place, number = place + size, number + 1
    return data[place:]


WIRE = json.loads((Path(__file__).parent / "vectors" / "handshake.json").read_text())


def scripted(role, *, tie_break_of=None, punch=False):
    given_bytes = [
        bytes.fromhex(WIRE[f"{role}_ephemeral"]),
        bytes.fromhex(WIRE[f"{role}_static"]),
        bytes.fromhex(WIRE[f"{tie_break_of or role}_tie_break"]),
    ]

    def random_bytes(size):
        data = given_bytes.pop(0)
        assert len(data) == size
        return data

    root = Identity.from_seed(bytes.fromhex(WIRE["root_seed"]))
    swarm = Swarm(bytes.fromhex(WIRE["swarm_key"]), root.public_key)
    identity = Identity.from_seed(bytes.fromhex(WIRE[f"{role}_identity_seed"]))
    chain = certify_by_root(
        root,
        subject=identity.public_key,
        role="trainer",
        serial=bytes.fromhex(WIRE[f"{role}_serial"]),
        now_ms=WIRE["issued_at_ms"],
        lifetime_ms=WIRE["expires_at_ms"] - WIRE["issued_at_ms"],
    )
    trust = Trust(swarm.id, chain.raw)
    return Handshake(
        role="punch" if punch else role,
        identity=identity,
        gate=swarm.gate,
        chain=chain.raw,
        judge=lambda shown, key: trust.check(shown, key, WIRE["issued_at_ms"]),
        intro=Intro(name=role, listen=(Address.parse(WIRE[f"{role}_listen"]),)),
        random_bytes=random_bytes,
    )


def went_through(initiator, responder, flight, wrong):
    """Whether the handshake went through with the given flight replaced."""
    try:
        first = initiator.outgoing()
        responder.receive(wrong if flight == 1 else first)
        second = responder.outgoing()
        initiator.receive(wrong if flight == 2 else second)
        third = initiator.outgoing()
        responder.receive(wrong if flight == 3 else third)
    except HandshakeFailed:
        return False
    return responder.result is not None


def malicious(role, payload_of):
    """A member of the swarm with its own ideas about the identity payload."""

    class Malicious(Handshake):
        def _send_identity(self, noise):
            message = noise.write_message(payload_of(self))
            self._out += len(message).to_bytes(2, "big") + message

    return Malicious(
        role=role,
        **shaking(CAROL),
        intro=Intro(),
        random_bytes=random.Random(7).randbytes,
    )


def identity_payload(
    self,
    *,
    public_key=CAROL.public_key,
    signer=CAROL,
    role=None,
    swarm=SWARM,
    static=None,
    chain=None,
    signed_chain=None,
    intro=None,
):
    chain = self._chain if chain is None else chain
    signed = b"noded identity v2\x00" + swarm.id
    signed += bytes([{"initiator": 1, "responder": 2}[role or self._role]])
    signed += static or self._static.public
    signed += hashlib.sha256(chain if signed_chain is None else signed_chain).digest()
    body = len(chain).to_bytes(2, "big") + chain + (self._intro if intro is None else intro)
    return public_key + signer.sign(signed) + body
