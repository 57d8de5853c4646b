"""One node's replica of the swarm's document, beside what the node trusts; sans-IO.

Problem: the document and the object that handshakes ask must never disagree: what is read of a revocation is refused from the same moment on.
Idea: one value owns the statements, and what is taken goes to `Trust` in the same step, and to whoever keeps it (`on_taken`).

Invariants: only statements that `Trust` has verified are in; nothing is ever taken out but for want of room (`crdt.statements`).
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import attrs

from crdt.errors import CrdtError, Forged
from crdt.statements import Judged, Statements
from transport.identity import Identity, NodeId
from transport.trust.chain import Chain, parse_chain
from transport.trust.refusal import CertificateRefused
from transport.trust.revocation import MAX_KEPT, Revocation, revoke
from transport.trust.statement import (
    CERTIFIED,
    Statement,
    author_of,
    encode_statement,
    parse_statement,
    said_at_ms,
    weight_of,
)
from transport.trust.trust import Member, Trust

NAME = "swarm"
"""Of the document, among those that are replicated."""


@attrs.frozen
class Entry:
    """One line of the swarm's history."""

    at_ms: int
    """When, ms since 1970, by the clock of who said it."""
    statement: Statement


class SwarmDocument:
    """Certificates issued and revocations.

    Args:
        trust: verifies statements, and learns revocations.

    Attributes:
        statements: the replica, to be kept equal with others'.
        on_taken: told of each new statement, as bytes, after it counts.
        on_revoked: told of each node that a revocation has put out, connected or not.
    """

    def __init__(self, trust: Trust) -> None:
        self.trust = trust
        self.statements = Statements(self._judge, self._taken)
        self.on_taken: Callable[[bytes], None] = lambda _raw: None
        self.on_revoked: Callable[[NodeId], None] = lambda _node_id: None
        self._members: tuple[int, frozenset[NodeId]] = (0, frozenset())
        own = trust.own
        if own is not None:
            self.say(own)

    def load(self, stored: Iterable[bytes]) -> int:
        """Take what was kept by a former process; returns how many pieces were no good (a torn end, another swarm's)."""
        bad = 0
        for raw in stored:
            try:
                self.statements.add(raw)
            except CrdtError:
                bad += 1
        return bad

    def say(self, statement: Statement) -> bool:
        """Add a statement, and the certificates that it rests on; returns whether it was new.

        Raises:
            CrdtError: it does not prove itself.
        """
        chain = statement.above if isinstance(statement, Chain) else statement.chain
        if chain is not None:
            self.say(chain)
        return self.statements.add(encode_statement(statement))

    # Reading

    def history(self) -> list[Entry]:
        """Who was made a member and who was revoked, the earliest first."""
        found = [(said_at_ms(each), raw, each) for raw, each in self._read()]
        return [Entry(at_ms, each) for at_ms, _, each in sorted(found, key=lambda row: row[:2])]

    def certified(self) -> Iterator[Chain]:
        """All certificates that are known, with those above them, in the order in which this node learnt them."""
        return (each for _, each in self._read() if isinstance(each, Chain))

    def members(self) -> frozenset[NodeId]:
        """All nodes that a known certificate is for, revoked ones included; costs nothing while nothing is learnt."""
        version = self.statements.version
        if self._members[0] != version:
            self._members = version, frozenset(chain.node_id for chain in self.certified())
        return self._members[1]

    def chains(self) -> dict[NodeId, Chain]:
        """The certificate of each node that runs for longest, by node id; revoked ones included."""
        found: dict[NodeId, Chain] = {}
        for chain in self.certified():
            known = found.get(chain.node_id)
            rank = (chain.leaf.expires_at_ms, chain.raw)
            if known is None or rank > (known.leaf.expires_at_ms, known.raw):
                found[chain.node_id] = chain
        return dict(sorted(found.items()))

    def issued_by(self, issuer: NodeId, now_ms: int) -> list[bytes]:
        """Marks of the certificates that a member has issued and that are not over: the 64 that this node learnt first.

        Who has stolen a key dates what it signs as it likes, but it cannot make us have heard of it earlier than of what the owner had signed.
        """
        marks = (
            chain.leaf.mark
            for chain in self.certified()
            if chain.leaf.issuer_id == issuer and chain.leaf.expires_at_ms > now_ms
        )
        return list(islice(marks, MAX_KEPT))

    def revocation(
        self,
        revoker: Identity,
        subject: NodeId,
        *,
        at_ms: int,
        reason: str = "",
        leaving: bool = False,
    ) -> Revocation:
        """Make a revocation that keeps, of what the subject has issued, whatever this document knows of.

        Args:
            revoker: the root key, one above the subject, or the subject itself.
            subject: who is out.
            at_ms: wall clock, ms since 1970.
            reason: for people.
            leaving: in good standing: all that the subject has issued stays good.

        Raises:
            UsageError: this key may not revoke that node.
        """
        kept = self.issued_by(subject, at_ms)
        shown = self._shown_above(revoker, subject)
        return revoke(
            revoker,
            swarm_id=self.trust.swarm_id,
            subject=subject,
            at_ms=at_ms,
            reason=reason,
            kept=() if leaving else kept,
            keeps_all=leaving,
            chain=shown,
        )

    def _shown_above(self, revoker: Identity, subject: NodeId) -> Chain | None:
        """The subject's chain in which the revoker has a part; any, where it has none, for the error's sake."""
        own = [chain for chain in self.certified() if chain.node_id == subject]
        with_part = [
            chain for chain in own if revoker.public_key in (*chain.issuers, chain.leaf.subject)
        ]
        return max(with_part or own, key=lambda chain: chain.leaf.expires_at_ms, default=None)

    def _read(self) -> Iterator[tuple[bytes, Statement]]:
        for raw in self.statements.statements.values():
            yield raw, parse_statement(raw)

    # Inside

    def _judge(self, untrusted: bytes) -> Judged:
        try:
            statement = parse_statement(untrusted)
            self.trust.verify(statement)
        except CertificateRefused as error:
            raise Forged(f"statement: {error}") from None
        return Judged(author_of(statement), (weight_of(statement), said_at_ms(statement)))

    def _taken(self, raw: bytes) -> None:
        statement = parse_statement(raw)
        is_news = isinstance(statement, Revocation) and self.trust.learn(statement)
        if isinstance(statement, Revocation) and is_news and self._puts_out(statement):
            self.on_revoked(statement.subject)
        self.on_taken(raw)

    def _puts_out(self, revocation: Revocation) -> bool:
        """Whether no known certificate of the subject is left that would be accepted.

        An inviter can certify the key of any member, and revoke that: it is no reason to treat the member as gone.
        """
        chain = revocation.chain
        if chain is None or revocation.by_subject:
            return True
        key = chain.leaf.subject
        for raw in self.statements.statements.values():
            if raw.startswith(CERTIFIED) and key in raw:  # few are read
                shown = parse_chain(raw[1:])
                if shown.leaf.subject == key and self._is_accepted(shown):
                    return False
        return True

    def _is_accepted(self, chain: Chain) -> bool:
        member = Member(chain.node_id, chain.leaf.role, chain.leaf.may_invite, chain)
        try:
            self.trust.check_again(member, chain.leaf.issued_at_ms)
        except CertificateRefused:
            return False
        return True
