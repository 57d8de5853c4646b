"""What a member checks of a proposed epoch before it signs (sans-IO).

A signature says "I leave what I was in for this", so nothing in the proposal is taken from the proposer: the start
comes with its proof, and whether enough of those are here that this node owes something to is counted
against what it knows itself: the last epoch with a result, and those it voted in and does not know
the outcome of.
"""

from __future__ import annotations

from collections.abc import Collection

from gossip.collective.agreement.certificate import Epoch
from gossip.collective.agreement.epoch_events import EpochSettings
from gossip.collective.agreement.formation import has_quorum, outweighs
from gossip.collective.agreement.lineage import History, Quorum, farewells
from gossip.collective.agreement.messages import Propose, from_bits
from gossip.collective.agreement.standing import Standing
from transport.identity import NodeId


class Scrutiny:
    """This node's checks; `follows` says whether one epoch may follow on another."""

    def __init__(self, standing: Standing, settings: EpochSettings, follows: Quorum) -> None:
        self._standing = standing
        self._settings = settings
        self._follows = follows

    def quorum(
        self,
        members: Collection[NodeId],
        of: Epoch | None,
        *,
        fresh: Collection[NodeId] = (),
        left: Collection[NodeId] = (),
    ) -> bool:
        """True when `members` are enough to go on after `of`, None being the start of the run."""
        return has_quorum(
            members,
            None if of is None else of.members,
            left,
            rule=self._settings.quorum,
            min_members=self._settings.min_members,
            fresh=fresh,
        )

    def refusal(
        self,
        propose: Propose,
        members: tuple[NodeId, ...],
        history: History,
        own: History,
    ) -> str:
        """Why this node does not sign; empty when it does.

        `history` is what the proposal proves, `own` what this node can.
        """
        standing = self._standing
        holders = set(from_bits(members, propose.holders))
        fresh = set(from_bits(members, propose.fresh))
        if not standing.ready:
            return "not ready"
        if standing.me not in members or tuple(sorted(set(members))) != members:
            return "no ascending set of members with this node"
        if not propose.layout.fits(len(members)):
            return "no layout of so many members"
        if any(member != standing.me and member not in standing.peers for member in members):
            return "not connected to all members"
        if not holders or (standing.me in holders) != standing.holds(propose.round, propose.state):
            return "the holders are not those that hold the start"
        if (standing.me in fresh) != (standing.previous is None):
            return "who is fresh is not told right"
        head = history.last
        gone = frozenset() if head is None else farewells(propose.left, head.id) or frozenset()
        if head is not None and not self.quorum(members, head, fresh=fresh, left=gone):
            return "too few of the epoch that it follows on"
        if not all(
            history.settles(doubt, self._follows) or self.quorum(members, doubt, fresh=fresh)
            for doubt in standing.doubts
        ):
            return "an operation that this node voted for may have succeeded elsewhere"
        if standing.previous is None:
            return ""  # it has nothing more to hold against what the others have signed
        if head is None:
            return "the run has a past, and this begins it anew"
        return self._of_the_past(
            propose, members, history, own, holders=holders, fresh=fresh, gone=gone
        )

    def _of_the_past(
        self,
        propose: Propose,
        members: tuple[NodeId, ...],
        history: History,
        own: History,
        *,
        holders: set[NodeId],
        fresh: set[NodeId],
        gone: frozenset[NodeId],
    ) -> str:
        """As `refusal`, for a node that has been in an epoch with a result."""
        standing = self._standing
        mine, head = standing.previous, history.last
        assert mine is not None
        assert head is not None
        left = standing.left_from(mine) | (gone if head.id == mine.id else frozenset())
        superseded = history.supersedes(mine, self._follows, standing.departed(mine))
        related = superseded or head.id == mine.id or own.names(head.id)
        if self._settings.quorum == "majority":
            if not superseded and not self.quorum(members, mine, fresh=fresh, left=left):
                return "too few of the last epoch here, and nothing shows that it was left behind"
            further = propose.round >= standing.round
            if not related and not outweighs(head, mine, members, further=further):
                return "another past, of fewer members"
        proven = own.proves(standing.round, standing.state)
        backed = 2 * len(holders & set(head.members)) > len(head.members)
        if proven and not backed and not history.proves(propose.round, propose.state):
            return "nothing proves the start"
        if (
            propose.round < standing.round
            and proven
            and related
            and not self.quorum(holders, mine, fresh=fresh, left=left)
        ):
            return "it goes back behind a proven round"
        return ""
