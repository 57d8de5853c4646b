"""One operation of an epoch, from `begin` to its certificate (sans-IO).

States::

    RUNNING --voted--> VOTED --all votes equal--> CERTIFIED
       |                 |
       +----failed-------+----> ABORTED

A member signs at most one result per operation (`vote` is refused a second time). A vote for other
bytes than ours ends the operation: the members diverge and the reason names who.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

from gossip.collective.agreement.certificate import Certificate, Epoch, SignedBy, vote_statement
from gossip.collective.agreement.messages import Vote
from transport.identity import Identity, NodeId, verify


class OperationState(enum.Enum):
    """Where an operation stands."""

    RUNNING = "running"
    VOTED = "voted"
    CERTIFIED = "certified"
    ABORTED = "aborted"


class Operation:
    """Book-keeping of one operation at one member."""

    def __init__(
        self,
        epoch: Epoch,
        sequence: int,
        descriptor: bytes,
        identity: Identity,
        lane: int = 0,
    ) -> None:
        self.epoch = epoch
        self.epoch_id = epoch.id
        self.lane = lane
        self.sequence = sequence
        self.descriptor = descriptor
        self.state = OperationState.RUNNING
        self.root: bytes | None = None
        self.certificate: Certificate | None = None
        self._identity = identity
        self._votes: dict[NodeId, Vote] = {}

    def vote(self, root: bytes) -> Vote:
        """Sign the local result; legal once, while RUNNING."""
        if self.state is not OperationState.RUNNING:
            raise RuntimeError(f"cannot vote in an operation that is {self.state.value}")
        statement = vote_statement(self.epoch_id, self.sequence, self.descriptor, root, self.lane)
        vote = Vote(
            self.epoch_id,
            self.sequence,
            self.descriptor,
            root,
            self._identity.sign(statement),
            self.lane,
        )
        self.root = root
        self.state = OperationState.VOTED
        self._votes[self._identity.node_id] = vote
        return vote

    def voted(self, member: NodeId) -> bool:
        """True when that member's vote is here."""
        return member in self._votes

    def add_vote(self, member: NodeId, public_key: bytes, vote: Vote) -> str | None:
        """Take another member's vote; returns a reason when it can never be certified."""
        if not self.is_signed(public_key, vote):
            return f"{member.short} sent a vote with a wrong signature"
        if vote.descriptor != self.descriptor:
            return f"{member.short} runs another operation than this node"
        self._votes.setdefault(member, vote)
        return self._disagreement()

    @staticmethod
    def is_signed(public_key: bytes, vote: Vote) -> bool:
        """True when the vote's signature holds, whatever it says."""
        statement = vote_statement(vote.epoch, vote.sequence, vote.descriptor, vote.root, vote.lane)
        return verify(public_key, vote.signature, statement)

    def _disagreement(self) -> str | None:
        if self.root is None:
            return None
        for member in sorted(self._votes):
            if self._votes[member].root != self.root:
                return f"{member.short} holds another result than this node"
        return None

    def certify(self, public_keys: Mapping[NodeId, bytes]) -> str | None:
        """Make the certificate once every member's vote is here and equal.

        Returns a reason when members disagree; None otherwise (look at `state`).
        """
        if self.state is not OperationState.VOTED:
            return None
        reason = self._disagreement()
        if reason is not None:
            return reason
        if any(member not in self._votes for member in self.epoch.members):
            return None
        assert self.root is not None
        self.certificate = Certificate(
            self.epoch_id,
            self.sequence,
            self.descriptor,
            self.root,
            tuple(
                SignedBy(public_keys[member], self._votes[member].signature)
                for member in self.epoch.members
            ),
            self.lane,
        )
        self.state = OperationState.CERTIFIED
        return None

    def settle(self, certificate: Certificate, public_keys: Mapping[NodeId, bytes]) -> bool:
        """Take a certificate that another member has made of all votes; False when it is not that of the result signed here.

        Votes that are here, the own one among them, are compared and not checked again.
        """
        members, signatures = self.epoch.members, certificate.signatures
        if (
            self.state is not OperationState.VOTED
            or not self._is_of_own_result(certificate)
            or [signed.public_key for signed in signatures]
            != [public_keys.get(member) for member in members]
        ):
            return False
        statement = vote_statement(
            self.epoch_id, self.sequence, self.descriptor, certificate.root, self.lane
        )
        for member, signed in zip(members, signatures, strict=True):
            vote = self._votes.get(member)
            known = vote is not None and vote.signature == signed.signature
            if not (known or verify(signed.public_key, signed.signature, statement)):
                return False
        self.certificate = certificate
        self.state = OperationState.CERTIFIED
        return True

    def abort(self) -> None:
        """Give up; what was signed stays signed."""
        if self.state is not OperationState.CERTIFIED:
            self.state = OperationState.ABORTED

    def settled_by(self, certificate: Certificate) -> bool:
        """True when somebody else's certificate proves the result this node signed."""
        return self._is_of_own_result(certificate) and certificate.verify(self.epoch.members)

    def _is_of_own_result(self, certificate: Certificate) -> bool:
        """What it says, signatures apart, is what this node has signed."""
        return (
            self.root is not None
            and certificate.epoch == self.epoch_id
            and (certificate.lane, certificate.sequence) == (self.lane, self.sequence)
            and certificate.descriptor == self.descriptor
            and certificate.root == self.root
        )
