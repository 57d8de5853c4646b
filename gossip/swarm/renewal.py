"""Renewing certificates before they run out; sans-IO.

Problem: certificates end, so that a lost key is not good for ever, and nobody should have to remember when. Idea: in the last third of its time a
member asks those above it in its chain, nearest first, for the same certificate once more. The connection proves who asks and the chain
that it showed says what it had, so the request is empty; the answer is the whole new chain.

Whoever may invite and stands in the asker's chain can renew: the new certificate is by its own hand, hence the chain may become shorter, never longer.
No certificate reaches beyond the one above it, so those above renew first, and those below ask again until they have a full span.

A certificate that is not in its last third is not renewed, and who asks again gets the same answer (`gossip.swarm.service`): each renewal is a statement that
all members keep, so that nobody may cause as many as it likes.

Invariants: nobody gets a wider role or the right to invite by renewing; a revoked member renews nothing (it is not connected).
"""

from collections.abc import Callable
from typing import Final

from transport.errors import RemoteCallFailed, UsageError
from transport.identity import Identity, NodeId
from transport.trust.certificate import SERIAL_BYTES
from transport.trust.chain import MAX_CERTIFICATES, YEAR_MS, Chain, certify, parse_chain
from transport.trust.refusal import CertificateRefused
from transport.trust.trust import Member, Trust

PROTOCOL: Final = "swarm/renew"
ASK_EVERY_S: Final = 3600.0
"""Between two attempts while a certificate is in its last third: four months of them, with the usual year."""


def is_due(chain: Chain, now_ms: int) -> bool:
    """Whether the member's certificate is in the last third of its time."""
    leaf = chain.leaf
    return now_ms >= leaf.expires_at_ms - (leaf.expires_at_ms - leaf.issued_at_ms) // 3


def whom_to_ask(chain: Chain) -> list[NodeId]:
    """Members above, the nearest first; the root is no node."""
    return [NodeId.of_public_key(issuer) for issuer in reversed(chain.issuers[1:])]


def renewed(
    issuer: Identity,
    own: Chain | None,
    member: Member,
    *,
    now_ms: int,
    lifetime_ms: int = YEAR_MS,
    random_bytes: Callable[[int], bytes],
) -> Chain:
    """Answer a member that asks for its certificate once more.

    Raises:
        RemoteCallFailed: it cannot be renewed here; says why, for the asker.
    """
    old = member.chain
    if own is None or old is None or issuer.public_key not in old.issuers:
        raise RemoteCallFailed("this node does not stand above you: ask the one that invited you")
    if not is_due(old, now_ms):
        raise RemoteCallFailed("not renewed: your certificate is not in the last third of its time")
    may_invite = old.leaf.may_invite and len(own.certificates) < MAX_CERTIFICATES - 1
    try:
        return certify(
            issuer,
            own,
            subject=old.leaf.subject,
            role=old.leaf.role,
            serial=random_bytes(SERIAL_BYTES),
            now_ms=now_ms,
            lifetime_ms=lifetime_ms,
            may_invite=may_invite,
            invite=old.leaf.invite,
            inviter=old.leaf.inviter,
        )
    except UsageError as error:
        raise RemoteCallFailed(f"not renewed: {error}") from None


def accepted(trust: Trust, answer_untrusted: bytes, public_key: bytes, now_ms: int) -> Chain | None:
    """Read the answer; None if it is no better than what we have.

    Raises:
        CertificateRefused: it would not be accepted by others either; the one we have stays.
    """
    current = trust.own
    member = trust.check(answer_untrusted, public_key, now_ms)
    chain = parse_chain(answer_untrusted)
    if current is None or member.role != current.leaf.role:
        return None
    gained_ms = chain.leaf.expires_at_ms - current.leaf.expires_at_ms
    return chain if gained_ms > 0 else None


__all__ = [
    "ASK_EVERY_S",
    "PROTOCOL",
    "CertificateRefused",
    "accepted",
    "is_due",
    "renewed",
    "whom_to_ask",
]
