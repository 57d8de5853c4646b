"""The one who decides: makes invites, and says yes or no to requests, each exactly once.

Problem: requests for one invite come at the same moment through many members, some of them forged, repeated or late. Idea: all of
them meet here, one after the other. `decide` changes nothing: it says what should happen. A new grant is a new value of the invite
that the caller makes durable and then hands to `commit`; only then may `answer` leave. The caller holds a lock from the one to
the other (`node.joining.service`), so two decisions never see the same state.

Order of the checks: the MAC before the signature (2 against 100 microseconds), and nothing about an invite's state is told to
somebody who has not proven to hold its code.

Invariants: a subject that was given a certificate gets the same one again, also after the invite's end; `decide` for anybody else
never returns a grant beyond the invite's uses; time and randomness are arguments.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Final, TypeAlias

import attrs
import msgspec

from node.errors import NodedError
from node.joining.answer import hearsay, refuse
from node.joining.code import ISSUER_BYTES, InviteCode, invite_id, invite_key
from node.joining.ledger import MAX_INVITES, MAX_USES, Invite, Use
from node.joining.reasons import Reason
from node.joining.request import JoinRequest
from node.joining.source_budget import SourceBudget
from transport.address import Address
from transport.errors import UsageError
from transport.identity import Identity
from transport.trust.certificate import Role

__all__ = ["Again", "Decision", "Issuer", "New", "No", "TooManyInvites"]

MAX_LIFE_MS: Final = 365 * 86400 * 1000
FAILURES_PER_MINUTE: Final = 5
"""Refusals of one source that are signed; a request with the right secret is never turned away because of others'."""

Certify: TypeAlias = Callable[[JoinRequest, Invite, int], bytes]
"""(request, invite, milliseconds since 1970) to the chain of a new certificate; raises UsageError if that may not be."""


class TooManyInvites(NodedError):
    """As many invites as there may be are good at the same time."""


@attrs.frozen
class No:
    """Nothing is granted; the answer may leave at once."""

    reason: Reason
    answer: bytes = attrs.field(repr=False)


@attrs.frozen
class Again:
    """The subject has its certificate: it is sent once more."""

    invite: Invite
    use: Use


@attrs.frozen
class New:
    """To be made durable, then committed, then answered."""

    invite: Invite
    """With the new use."""
    use: Use


Decision: TypeAlias = No | Again | New


class Issuer:
    """The invites of one node; sans-IO.

    Args:
        identity: the node's.
        swarm_id: of its swarm.
        invites: what its ledger holds.
        certify: makes a certificate for a checked request.
        standing: why a chain would not be accepted by the members, as far as is known here; None if it would.
    """

    def __init__(
        self,
        identity: Identity,
        swarm_id: bytes,
        invites: Iterable[Invite],
        *,
        certify: Certify,
        standing: Callable[[bytes], Reason | None] = lambda _chain: None,
    ) -> None:
        self._identity = identity
        self._swarm_id = swarm_id
        self._invites = {invite.id: invite for invite in invites}
        self._certify = certify
        self._standing = standing
        self._failures = SourceBudget(per_minute=FAILURES_PER_MINUTE, all_per_minute=600)
        self.counters: Counter[str] = Counter()
        """Requests by what came of them: `granted`, `repeated`, or the word of the reason."""

    @property
    def invites(self) -> Mapping[bytes, Invite]:
        """By id."""
        return self._invites

    def create(
        self,
        secret: bytes,
        addresses: Iterable[Address],
        *,
        now_ms: int,
        life_ms: int,
        uses: int = 1,
        role: Role = "trainer",
        may_invite: bool = False,
    ) -> tuple[InviteCode, Invite]:
        """A new invite: its code, and what is to be made durable and committed before the code is shown.

        Args:
            secret: 16 random bytes.
            addresses: where the newcomer asks.
            now_ms: milliseconds since 1970.
            life_ms: how long it is good.
            uses: how many nodes may join with it.
            role: of those nodes.
            may_invite: whether they may invite others.

        Raises:
            TooManyInvites: some have to expire, or to be withdrawn, first.
            NodedError: a value is out of range.
        """
        if not (1 <= uses <= MAX_USES and 1000 <= life_ms <= MAX_LIFE_MS):
            raise NodedError(
                f"an invite is for 1 to {MAX_USES} nodes and lasts from a second to a year"
            )
        if sum(invite.closed(now_ms) is None for invite in self._invites.values()) >= MAX_INVITES:
            raise TooManyInvites(
                f"{MAX_INVITES} invites are open already",
                hint="wait until some expire, or make one with more --uses",
            )
        # The code holds whole seconds: it must not promise less than the ledger keeps.
        expires_s = -(-(now_ms + life_ms) // 1000)
        code = InviteCode(
            swarm_id=self._swarm_id,
            issuer=bytes(self._identity.node_id[:ISSUER_BYTES]),
            secret=secret,
            expires_s=expires_s,
            addresses=tuple(addresses),
        )
        invite = Invite(
            id=invite_id(secret),
            key=invite_key(secret),
            uses=uses,
            created_ms=now_ms,
            expires_ms=expires_s * 1000,
            role=role,
            may_invite=may_invite,
        )
        return code, invite

    def withdraw(self, invite: bytes, now_ms: int) -> Invite | None:
        """The value of an invite that is taken back, to be made durable and committed; None if there is no such."""
        known = self._invites.get(invite)
        if known is None or known.withdrawn_ms:
            return known
        return msgspec.structs.replace(known, withdrawn_ms=now_ms)

    def commit(self, invite: Invite) -> None:
        """Take over a value that is durable now."""
        self._invites[invite.id] = invite

    def forgettable(self, now_ms: int) -> list[bytes]:
        """Invites that can be removed from the disk, and then from here with `forget`."""
        return [key for key, invite in self._invites.items() if invite.forgettable(now_ms)]

    def forget(self, invite: bytes) -> None:
        """Drop an invite; a request for it is one for an unknown invite from now on."""
        self._invites.pop(invite, None)

    def decide(self, request: JoinRequest, source: str, *, now: float, now_ms: int) -> Decision:
        """What is to happen with a request.

        Args:
            request: parsed, not checked.
            source: who brought it, for the budget of failures.
            now: monotonic seconds.
            now_ms: milliseconds since 1970.
        """
        decision = self._decide(request, now_ms)
        if isinstance(decision, Reason):
            self.counters[decision.word] += 1
            proven = decision not in {Reason.UNKNOWN, Reason.WRONG_SECRET, Reason.MALFORMED}
            if not proven and not self._failures.take(source, now):
                self.counters[Reason.BUSY.word] += 1
                return No(Reason.BUSY, hearsay(Reason.BUSY))
            return No(decision, refuse(request, decision, self._identity))
        self.counters["granted" if isinstance(decision, New) else "repeated"] += 1
        return decision

    def _decide(self, request: JoinRequest, now_ms: int) -> Reason | Again | New:
        if request.swarm_id != self._swarm_id or not request.is_for(self._identity.node_id):
            return Reason.MALFORMED
        invite = self._invites.get(request.invite)
        if invite is None:
            return Reason.UNKNOWN
        if not request.proven_by(invite.key):
            return Reason.WRONG_SECRET
        if not request.signed:
            return Reason.MALFORMED
        use = invite.use_of(request.subject)
        is_new = use is None
        if use is None:
            if (reason := invite.closed(now_ms)) is not None:
                return reason
            try:
                use = Use(request.subject, self._certify(request, invite, now_ms), now_ms)
            except UsageError:
                return Reason.CANNOT_CERTIFY
        # Also for an old one: whoever was revoked does not get the swarm's secret once more.
        if (reason := self._standing(use.chain)) is not None:
            return reason
        return New(invite.with_use(use), use) if is_new else Again(invite, use)
