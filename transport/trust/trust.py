"""The one object that is asked whether somebody is a member, and what that member may do; sans-IO.

Problem: handshakes, streams, the shared document and the status page all ask about trust, and each answer must be the same. Idea: one object
with this node's own chain, the revocations it knows and a memory of signatures that were good; `check` turns the bytes of a
chain and a proved key into a `Member` or raises why not, and counts that by reason and by key.

A node is refused as revoked if the root, the node itself or an issuer in the chain that it shows has revoked it; and if that holds for an issuer
in its chain, whose certificate for it was not kept (see `transport.trust.revocation`).

Room for revocations is shared: whoever stands directly below the root has a part of its own, and another for all below it, so that nobody can
use up the room for what others, or those above it, have to say; the root always finds some.

Invariants: a revocation is never forgotten; at most `MAX_VERIFIED` signatures, some `MAX_REVOKED` revocations and `MAX_KEYS` refused keys are
remembered; a chain that was good before costs hashes and no signature. More revocations never make `check` accept more.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import attrs

from transport.identity import Identity, NodeId
from transport.trust.certificate import ROLES, Certificate, Role, sign_certificate
from transport.trust.chain import (
    YEAR_MS,
    Chain,
    chain_of,
    check_links,
    check_times,
    is_root,
    parse_chain,
)
from transport.trust.refusal import CertificateRefused, Refusal
from transport.trust.revocation import Revocation, verify_revocation
from transport.trust.statement import Statement, author_of, verify_statement

MAX_VERIFIED: Final = 4096
"""Certificates whose signature was good (100 bytes each): more than a node's peers and all that stand above them."""
MAX_REVOKED: Final = 16_384
"""Revocations; as many as a swarm's document has room for. What one has said of another counts once, whatever it said again."""
MAX_REVOKED_SHARE: Final = 2048
"""Of those, by one member directly below the root; and as many again by all below it."""
MIN_REVOKED_SHARE: Final = 64
"""What such a member finds room for even if others have used up the rest."""
MAX_KEYS: Final = 256
"""Refused keys remembered for status, the least recent one goes first."""


@attrs.frozen
class Member:
    """Somebody whose certificate was accepted."""

    node_id: NodeId
    role: Role
    """What it may do; each role may do what those below it may."""
    may_invite: bool
    chain: Chain | None = attrs.field(repr=False)
    """What it showed; None for a stranger in an open swarm."""

    @property
    def may_train(self) -> bool:
        """Whether it may take part in epochs: train, vote, contribute."""
        return self.role == "trainer"

    @property
    def may_relay(self) -> bool:
        """Whether it may carry the traffic of others."""
        return self.role != "observer"

    @property
    def is_stranger(self) -> bool:
        """Whether nobody answers for it (open swarms only)."""
        return self.chain is None


@attrs.frozen
class RefusedKey:
    """What is remembered of a key that was refused."""

    refusal: Refusal
    """The latest reason."""
    count: int
    last_ms: int
    """Wall clock, ms since 1970."""


class Trust:
    """Who may be a member, as one node sees it.

    Args:
        swarm_id: of which swarm.
        chain: this node's own; `renew` replaces it. None where it is a stranger in an open swarm itself.
        strangers: in an open swarm, the role of those who certify themselves; None: they are refused.

    Attributes:
        refusals: how often each reason was the answer of `check`.
    """

    def __init__(
        self, swarm_id: bytes, chain: bytes = b"", *, strangers: Role | None = None
    ) -> None:
        self.swarm_id = swarm_id
        self.strangers = strangers
        self.refusals: Counter[Refusal] = Counter()
        self._chain = chain
        self._verified: OrderedDict[bytes, None] = OrderedDict()
        self._revoked: dict[NodeId, dict[bytes, Revocation]] = {}  # by subject, then by revoker
        self._shares: Counter[tuple[bytes, bool]] = Counter()
        self._keys: OrderedDict[NodeId, RefusedKey] = OrderedDict()

    @property
    def chain(self) -> bytes:
        """What this node shows in handshakes."""
        return self._chain

    @property
    def own(self) -> Chain | None:
        """The same, read; None without one, and for a stranger."""
        try:
            chain = parse_chain(self._chain)
        except CertificateRefused:
            return None
        return None if _is_self_issued(chain) else chain

    @property
    def revoked(self) -> Mapping[NodeId, tuple[Revocation, ...]]:
        """Nodes that somebody has revoked, with what was said; whether it counts depends on the chain shown.

        Of several by one revoker it is the last, keeping what all of them keep.
        """
        return MappingProxyType(
            {node: tuple(said.values()) for node, said in self._revoked.items()}
        )

    def is_revoked(self, node_id: NodeId) -> bool:
        """Whether anybody has revoked that node."""
        return node_id in self._revoked

    @property
    def refused_keys(self) -> Mapping[NodeId, RefusedKey]:
        """The keys refused lately, the least recent first."""
        return MappingProxyType(self._keys)

    # Asking

    def check(self, chain_untrusted: bytes, public_key: bytes, now_ms: int) -> Member:
        """Decide about a node that has proved to hold `public_key`.

        Args:
            chain_untrusted: what it shows.
            public_key: its Ed25519 key.
            now_ms: wall clock, ms since 1970.

        Raises:
            CertificateRefused: why it is no member; counted under its reason and its key.
        """
        node_id = NodeId.of_public_key(public_key)
        try:
            return self._judge(chain_untrusted, public_key, node_id, now_ms)
        except CertificateRefused as error:
            self._count(error.refusal, node_id, now_ms)
            raise

    def refusal_of(
        self, chain_untrusted: bytes, public_key: bytes, now_ms: int
    ) -> CertificateRefused | None:
        """What `check` would raise, None if nothing; not counted."""
        try:
            self._judge(chain_untrusted, public_key, NodeId.of_public_key(public_key), now_ms)
        except CertificateRefused as error:
            return error
        return None

    def check_again(self, member: Member, now_ms: int) -> None:
        """Whether somebody accepted before still is: not revoked since, its time not over. Costs no signature.

        Raises:
            CertificateRefused: why not; not counted.
        """
        self._check_node(member.node_id)
        if member.chain is not None:
            self._check_revocations(member.chain)
            check_times(member.chain, now_ms)

    def is_signed(self, certificate: Certificate) -> bool:
        """Whether the issuer signed it; a good one costs a hash the next time."""
        name = certificate.id
        if name in self._verified:
            self._verified.move_to_end(name)
            return True
        if not certificate.is_signed():
            return False
        self._verified[name] = None
        if len(self._verified) > MAX_VERIFIED:
            self._verified.popitem(last=False)
        return True

    def verify(self, statement: Statement) -> None:
        """Check a statement of the swarm's document. Raises: CertificateRefused."""
        verify_statement(statement, self.swarm_id, self.is_signed)

    # Changing

    def renew(self, chain: bytes) -> None:
        """Show another chain from now on."""
        self._chain = chain

    def learn(self, revocation: Revocation) -> bool:
        """Take a revocation for good; returns whether it says something new, and there was room.

        Raises:
            CertificateRefused: it is not one of this swarm's.
        """
        known = self._revoked.get(revocation.subject, {}).get(revocation.revoker)
        if known is not None and _implies(known, revocation):
            return False
        verify_revocation(revocation, self.swarm_id, self.is_signed)
        if known is None:
            author = author_of(revocation)
            share = (author, revocation.revoker == author)
            if not is_root(revocation.revoker, self.swarm_id) and self._is_full(share):
                return False
            self._shares[share] += 1
        elif not known.keeps_all:
            revocation = attrs.evolve(revocation, kept=known.kept & revocation.kept)
        self._revoked.setdefault(revocation.subject, {})[revocation.revoker] = revocation
        return True

    # Inside

    def _is_full(self, share: tuple[bytes, bool]) -> bool:
        used = self._shares[share]
        return used >= MAX_REVOKED_SHARE or (
            used >= MIN_REVOKED_SHARE and self._shares.total() >= MAX_REVOKED
        )

    def _judge(
        self, chain_untrusted: bytes, public_key: bytes, node_id: NodeId, now_ms: int
    ) -> Member:
        self._check_node(node_id)
        chain = parse_chain(chain_untrusted)
        if chain.leaf.subject != public_key:
            raise CertificateRefused(Refusal.WRONG_KEY)
        if self.strangers is not None and _is_self_issued(chain):
            return self._judge_stranger(chain.leaf, node_id, now_ms)
        check_links(chain, self.swarm_id)
        self._check_revocations(chain)
        check_times(chain, now_ms)
        if not all(map(self.is_signed, chain.certificates)):
            raise CertificateRefused(Refusal.FORGED)
        return Member(node_id, chain.leaf.role, chain.leaf.may_invite, chain)

    def _judge_stranger(self, certificate: Certificate, node_id: NodeId, now_ms: int) -> Member:
        assert self.strangers is not None
        if certificate.swarm_id != self.swarm_id:
            raise CertificateRefused(Refusal.OTHER_SWARM)
        certificate.check_time(now_ms)
        if not certificate.is_signed():
            raise CertificateRefused(Refusal.FORGED)
        role = min(certificate.role, self.strangers, key=ROLES.index)
        return Member(node_id, role, may_invite=False, chain=None)

    def _check_node(self, node_id: NodeId) -> None:
        """What counts against a node whatever it shows."""
        for revocation in self._revoked.get(node_id, {}).values():
            if revocation.by_subject or is_root(revocation.revoker, self.swarm_id):
                raise CertificateRefused(Refusal.REVOKED, _said(revocation))

    def _check_revocations(self, chain: Chain) -> None:
        for number, certificate in enumerate(chain.certificates):
            above = chain.issuers[: number + 1]
            for revocation in self._revoked.get(certificate.node_id, {}).values():
                if not (revocation.by_subject or revocation.revoker in above):
                    continue
                if certificate is chain.leaf:
                    raise CertificateRefused(Refusal.REVOKED, _said(revocation))
                below = chain.certificates[number + 1]
                if not revocation.keeps_all and below.mark not in revocation.kept:
                    raise CertificateRefused(Refusal.ISSUER_REVOKED)

    def _count(self, refusal: Refusal, node_id: NodeId, now_ms: int) -> None:
        self.refusals[refusal] += 1
        known = self._keys.pop(node_id, None)
        self._keys[node_id] = RefusedKey(refusal, 1 if known is None else known.count + 1, now_ms)
        if len(self._keys) > MAX_KEYS:
            self._keys.popitem(last=False)


def self_issued(
    identity: Identity, swarm_id: bytes, *, serial: bytes, now_ms: int, role: Role = "trainer"
) -> Chain:
    """What a stranger shows in an open swarm: a certificate by itself, good for a year."""
    return chain_of(
        (
            sign_certificate(
                identity,
                swarm_id=swarm_id,
                subject=identity.public_key,
                role=role,
                may_invite=False,
                serial=serial,
                issued_at_ms=now_ms,
                expires_at_ms=now_ms + YEAR_MS,
            ),
        )
    )


def _is_self_issued(chain: Chain) -> bool:
    return len(chain.certificates) == 1 and chain.leaf.issuer == chain.leaf.subject


def _implies(one: Revocation, other: Revocation) -> bool:
    """Whether `other` adds nothing to `one`: the same revoker, and no less is kept."""
    if one.revoker != other.revoker:
        return False
    return other.keeps_all or (not one.keeps_all and one.kept <= other.kept)


def _said(revocation: Revocation) -> str:
    return revocation.reason or ("it has left" if revocation.by_subject else "")
