"""Swarms for tests: their root keys, and certificates for whoever is to be a member."""

from collections.abc import Callable
from typing import Any

from transport.identity import Identity
from transport.swarm import Swarm
from transport.trust.certificate import MAX_TIME_MS, Role
from transport.trust.chain import Chain, certify, certify_by_root
from transport.trust.trust import Member, Trust

ROOT = Identity.from_seed(b"root".ljust(32, b"."))
SWARM = Swarm(bytes(range(32)), ROOT.public_key)
FOREIGN_ROOT = Identity.from_seed(b"foreign root".ljust(32, b"."))
FOREIGN = Swarm(bytes(32), FOREIGN_ROOT.public_key)
"""Another swarm."""
FOREVER_MS = MAX_TIME_MS
"""Clocks of simulations begin anywhere; certificates of tests that are not about time hold at all of them."""


def member_chain(
    identity: Identity,
    role: Role = "trainer",
    *,
    root: Identity = ROOT,
    may_invite: bool = False,
    is_open: bool = False,
) -> Chain:
    """A certificate by the root itself."""
    return certify_by_root(
        root,
        subject=identity.public_key,
        role=role,
        serial=identity.node_id[:16],
        now_ms=0,
        lifetime_ms=FOREVER_MS,
        may_invite=may_invite,
        is_open=is_open,
    )


def invited_chain(
    issuer: Identity,
    issuer_chain: Chain,
    identity: Identity,
    role: Role = "trainer",
    *,
    may_invite: bool = False,
) -> Chain:
    """A certificate by a member that may invite."""
    return certify(
        issuer,
        issuer_chain,
        subject=identity.public_key,
        role=role,
        serial=identity.node_id[:16],
        now_ms=0,
        lifetime_ms=FOREVER_MS,
        may_invite=may_invite,
    )


def trust_of(identity: Identity, swarm: Swarm = SWARM, role: Role = "trainer") -> Trust:
    """What a member of one of the swarms above asks."""
    root = ROOT if swarm.root == ROOT.public_key else FOREIGN_ROOT
    return Trust(swarm.id, member_chain(identity, role, root=root, is_open=swarm.is_open).raw)


def shaking(identity: Identity, swarm: Swarm = SWARM) -> dict[str, Any]:
    """The arguments of a `Handshake` that say who we are and whom we take."""
    trust = trust_of(identity, swarm)
    return {
        "identity": identity,
        "gate": swarm.gate,
        "chain": trust.chain,
        "judge": judge_of(trust),
    }


def judge_of(trust: Trust, now_ms: int = 0) -> Callable[[bytes, bytes], Member]:
    """The question of a handshake, at one moment."""
    return lambda chain, public_key: trust.check(chain, public_key, now_ms)
