"""A small swarm on paper: a root, an issuer, and newcomers; no network."""

import random

from node.joining.answer import Grant
from node.joining.code import InviteCode
from node.joining.issuer import Again, Issuer, New
from node.joining.ledger import Invite
from node.joining.redeemer import Redeemer
from node.joining.request import JoinRequest
from transport.address import Address
from transport.identity import Identity
from transport.trust.chain import certify, certify_by_root, root_swarm_id

NOW_MS = 1_800_000_000_000
HOUR_MS = 3_600_000
ROOT, ALICE, BOB, CAROL, EVE = (Identity.from_seed(bytes([n]) * 32) for n in range(1, 6))
SWARM_ID = root_swarm_id(ROOT.public_key)
SWARM_SECRET = b"s" * 32
ALICE_CHAIN = certify_by_root(
    ROOT, subject=ALICE.public_key, role="trainer", may_invite=True, serial=bytes(16), now_ms=NOW_MS
)
ADDRESS = Address("192.0.2.1", 7447)


def certified(request: JoinRequest, invite: Invite, now_ms: int) -> bytes:
    return certify(
        ALICE,
        ALICE_CHAIN,
        subject=request.subject,
        role=invite.role,
        may_invite=invite.may_invite,
        serial=request.hash[:16],
        now_ms=now_ms,
        invite=invite.id,
    ).raw


def alice_with(*invites: Invite, **more) -> Issuer:
    return Issuer(ALICE, SWARM_ID, invites, certify=certified, **more)


def invited(issuer: Issuer, *, seed: int = 0, life_ms: int = HOUR_MS, **more) -> InviteCode:
    """A new invite of the issuer, as if it were on disk."""
    secret = random.Random(f"secret {seed}").randbytes(16)
    code, invite = issuer.create(secret, [ADDRESS], now_ms=NOW_MS, life_ms=life_ms, **more)
    issuer.commit(invite)
    return code


def grant(chain: bytes) -> Grant:
    return Grant(
        chain=chain,
        swarm_secret=SWARM_SECRET,
        root_key=ROOT.public_key,
        swarm_name="attic",
        bootstrap=(str(ADDRESS),),
    )


def redeemer(code: InviteCode, who: Identity = BOB, seed: int = 0) -> Redeemer:
    return Redeemer(code, who, random.Random(f"redeemer {seed}").randbytes)


def newcomer(number: int) -> Identity:
    return Identity.from_seed(number.to_bytes(32, "big"))


def decided(issuer: Issuer, request: JoinRequest, **more):
    """The decision, committed as if the disk had it."""
    decision = issuer.decide(request, "192.0.2.9", **{"now": 0.0, "now_ms": NOW_MS, **more})
    if isinstance(decision, New):
        issuer.commit(decision.invite)
    return decision


__all__ = ["Again", "New"]
