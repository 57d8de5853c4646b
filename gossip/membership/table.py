"""Who is known, and what is thought of them: the bounded table of members.

    alive    it says so, and nothing speaks against it
    suspect  it does not answer, or others say so; it has time to refute
    left     it said goodbye, signed
    lost     it did not refute in time

Invariants: at most `limit` members; a member without a statement signed by itself is not in the table; a newcomer takes the
place of one that is gone, then of one that is only hearsay, never of one we have had contact with ourselves: identities cost
nothing, contacts do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import StrEnum

import attrs

from gossip.membership.messages import (
    Ack,
    Alive,
    Doubt,
    Left,
    Statement,
    ack_bytes,
    alive_bytes,
    doubt_bytes,
    left_bytes,
    statement_bytes,
)
from gossip.membership.suspicion import Suspicion
from transport.identity import NodeId


class MemberState(StrEnum):
    """What is thought of a member."""

    ALIVE = "alive"
    SUSPECT = "suspect"
    LEFT = "left"
    LOST = "lost"


PRESENT = frozenset({MemberState.ALIVE, MemberState.SUSPECT})


@attrs.frozen
class MemberView:
    """What others see of a member."""

    node_id: NodeId
    name: str
    """What it calls itself; not unique, not verified."""
    state: MemberState
    since: float
    """Monotonic seconds at which this state began."""
    reason: str
    """Why it is suspect, left or lost; empty while it is alive."""
    incarnation: int
    connected: bool
    heard_at: float | None
    """Monotonic seconds of the last sign of life that we have ourselves; None if there was none."""


@attrs.define(eq=False)
class Member:
    """One member, as this node sees it."""

    node_id: NodeId
    statement: Statement
    """Its newest own word."""
    state: MemberState
    since: float
    name: str = ""
    reason: str = ""
    connected: bool = False
    evidence_at: float | None = None
    """Of our own last sign of life."""
    quiet_since: float = 0.0
    """As `evidence_at`, moved by the stalls of our own loop."""
    gap: str = ""
    """Why the last connection ended."""
    suspicion: Suspicion | None = None
    via: NodeId | None = None
    """Through whom it answered a probe last, ours or one that we passed on."""
    look: bytes | None = None
    """Nonce of the probe of ours that is under way."""
    looked_at: float = 0.0
    offered: set[bytes] = attrs.field(factory=set)
    """Authors whose doubt it was told of, since its last statement; at most 8."""

    @property
    def incarnation(self) -> int:
        """Of its newest statement."""
        return self.statement.incarnation

    def view(self) -> MemberView:
        """Return a copy that does not change."""
        return MemberView(
            self.node_id,
            self.name,
            self.state,
            self.since,
            self.reason,
            self.incarnation,
            self.connected,
            self.evidence_at,
        )


class Table:
    """All members but ourselves.

    Args:
        limit: most members.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._members: dict[NodeId, Member] = {}
        self.version = 0
        """Rises with everything that changes who is present, and at which incarnation."""

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Member]:
        return iter(self._members.values())

    def get(self, node_id: bytes) -> Member | None:
        """Return the member of that id, if it is known."""
        return self._members.get(node_id)  # type: ignore[call-overload, no-any-return]

    @property
    def present(self) -> int:
        """How many are alive or suspect."""
        return sum(member.state in PRESENT for member in self._members.values())

    def add(self, member: Member) -> bool:
        """Make room for a newcomer; returns whether there was any."""
        if len(self._members) >= self._limit:
            victim = self._least_valuable(newcomer=member)
            if victim is None:
                return False
            del self._members[victim.node_id]
        self._members[member.node_id] = member
        self.version += 1
        return True

    def forget_gone(self, before: float) -> None:
        """Drop who has been gone since before that time."""
        for member in [m for m in self if m.state not in PRESENT and m.since < before]:
            del self._members[member.node_id]

    def _least_valuable(self, newcomer: Member) -> Member | None:
        gone = [m for m in self if m.state not in PRESENT and not m.connected]
        if gone:
            return min(gone, key=lambda m: m.since)
        if not newcomer.connected:
            return None
        hearsay = [
            m for m in self if m.evidence_at is None and not m.connected and m.suspicion is None
        ]
        return min(hearsay, key=lambda m: m.since, default=None)


@attrs.frozen
class SwimKeys:
    """Who we are, and how signatures are made and checked."""

    node_id: NodeId
    public_key: bytes
    swarm_id: bytes
    sign: Callable[[bytes], bytes]
    verify: Callable[[bytes, bytes, bytes], bool]

    def alive(self, incarnation: int, name: str) -> Alive:
        """Make our own word that we take part."""
        signed = self.sign(alive_bytes(self.swarm_id, self.node_id, incarnation, name))
        return Alive(self.public_key, incarnation, name, signed)

    def left(self, incarnation: int, reason: str) -> Left:
        """Make our own word that we go."""
        signed = self.sign(left_bytes(self.swarm_id, self.node_id, incarnation, reason))
        return Left(self.public_key, incarnation, reason, signed)

    def doubt(self, member: NodeId, incarnation: int, *, lost: bool) -> Doubt:
        """Make our claim that we do not reach a member."""
        data = doubt_bytes(self.swarm_id, member, incarnation, self.node_id, lost=lost)
        return Doubt(member, incarnation, self.node_id, lost, self.sign(data))

    def ack(self, asker: NodeId, nonce: bytes) -> Ack:
        """Make our answer to a probe."""
        signed = self.sign(ack_bytes(self.swarm_id, self.node_id, asker, nonce))
        return Ack(asker, self.node_id, nonce, signed)

    def is_genuine(self, said: Statement) -> bool:
        """Whether a statement was made by the member that it is about."""
        return self.verify(said.public_key, said.signature, statement_bytes(self.swarm_id, said))

    def is_of_author(self, doubt: Doubt, public_key: bytes) -> bool:
        """Whether a claim was made by its author."""
        data = doubt_bytes(
            self.swarm_id, doubt.member, doubt.incarnation, doubt.author, lost=doubt.lost
        )
        return self.verify(public_key, doubt.signature, data)

    def answers(self, ack: Ack, public_key: bytes) -> bool:
        """Whether an ack was made by its target for us."""
        data = ack_bytes(self.swarm_id, ack.target, ack.asker, ack.nonce)
        return ack.asker == self.node_id and self.verify(public_key, ack.signature, data)
