"""What the epoch machine is told to do (settings) and what it tells (events)."""

from __future__ import annotations

import attrs

from gossip.collective.agreement.certificate import Certificate, Epoch
from gossip.collective.agreement.operation import Operation
from transport.identity import NodeId


@attrs.frozen
class EpochSettings:
    """Time-outs and rules of formation; all times in seconds."""

    quorum: str = "majority"
    """"majority" pauses a minority partition; "any" lets it go on."""
    min_members: int = 1
    """Members that the very first epoch waits for."""
    attempt_s: float = 0.6
    """Wait for a due proposer; grows by half of itself with each attempt, up to `attempt_max_s`."""
    attempt_max_s: float = 4.0
    """Upper bound of the above."""
    collect_s: float = 0.4
    """Wait for promises before proposing without the silent ones."""
    settle_s: float = 0.15
    """Pause after a newcomer is seen, so that several join in one epoch."""
    vote_grace_s: float = 0.25
    """How long a running operation may still end after one of its members asked for a new epoch."""
    straggler_s: float = 120.0
    """A connected member that has not begun an operation for so long is left out until it has said
    that it is not ready and then that it is. Longer than a daemon waits for its own trainer."""
    announce_s: float = 0.01
    """An operation that has not ended by then, and in which no values have come for so long, is announced to the members that
    may be missing: a message to everybody, which most operations save."""
    announce_moving_s: float = 0.1
    """By then it is announced in any case: who is slow with its values shall not be taken for one that has not begun."""
    collect_from: int = 4
    """Members from which on votes go to one of them, who sends all the certificate: 2 (N-1) messages instead of N (N-1)."""
    spread_s: float = 0.01
    """A vote that has brought no certificate by then goes to everybody."""


@attrs.frozen
class EpochEntered:
    """Event: this node is a member of `epoch` now."""

    epoch: Epoch
    behind: bool
    """True when this node's state is not the epoch's start state and must be fetched."""
    holders: tuple[NodeId, ...]
    """Members that hold the start state."""


@attrs.frozen
class EpochLeft:
    """Event: operations are impossible until the next `EpochEntered`."""

    reason: str


@attrs.frozen
class OperationCertified:
    """Event: the running operation succeeded everywhere it succeeded at all."""

    operation: Operation
    certificate: Certificate


@attrs.frozen
class OperationAborted:
    """Event: the running operation will not complete in this epoch."""

    operation: Operation
    reason: str
    mismatch: bool
    """True when members called different operations: trying again cannot help."""


@attrs.frozen
class MembersWaiting:
    """Event: so many other members have begun the operation that this node has not."""

    count: int
    of: int


@attrs.frozen
class MemberAccused:
    """Event: that member broke the rules, and is left out for a while."""

    node: NodeId
    reason: str


Event = (
    EpochEntered
    | EpochLeft
    | OperationCertified
    | OperationAborted
    | MembersWaiting
    | MemberAccused
)
