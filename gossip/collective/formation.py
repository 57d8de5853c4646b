"""The steps of forming an epoch, and the pure rules they follow (sans-IO).

=========== =========================== ===============================================
state       entered by                  left by
=========== =========================== ===============================================
Collecting  being due and preparing     all answers (or the deadline) -> Accepted
Promised    another node's Prepare      its Propose -> Accepted; deadline -> next attempt
Accepted    a proposal that holds       everybody's signature -> entered; deadline
=========== =========================== ===============================================
"""

from __future__ import annotations

import hashlib
import struct
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import attrs

from gossip.collective.certificate import Ballot, Certificate, Epoch
from gossip.collective.messages import Begin, Promise, Wait
from transport.identity import NodeId

WAIT_EXTENSION_S = 30.0  # a node that runs an operation answers when it has ended; see `Wait`


class Collecting:
    """This node is the proposer and gathers promises."""

    def __init__(
        self, ballot: Ballot, others: Iterable[NodeId], now: float, patience_s: float
    ) -> None:
        self.ballot = ballot
        self.due = now + patience_s
        self.promises: dict[NodeId, Promise] = {}
        self._missing = set(others)
        self._waiting: dict[NodeId, float] = {}

    @property
    def complete(self) -> bool:
        """True when nobody's answer is missing any more."""
        return not self._missing

    def promise(self, sender: NodeId, promise: Promise) -> bool:
        """Take a promise for this ballot; False when it is not one."""
        if promise.ballot != self.ballot or sender not in self._missing:
            return False
        self._missing.discard(sender)
        self._waiting.pop(sender, None)
        self.promises[sender] = promise
        return True

    def wait(self, sender: NodeId, wait: Wait, now: float) -> None:
        """The sender answers later: it gets more time than the silent ones."""
        if wait.ballot == self.ballot and sender in self._missing:
            self._waiting.setdefault(sender, now + WAIT_EXTENSION_S)

    def drop(self, node: NodeId) -> None:
        """Go on without that node."""
        self._missing.discard(node)
        self._waiting.pop(node, None)

    def give_up_on_silent(self, now: float) -> None:
        """The deadline has passed: only those that asked for time are waited for."""
        patient = {node: until for node, until in self._waiting.items() if until > now}
        self._missing &= set(patient)
        self._waiting = patient
        if patient:
            self.due = min(patient.values())


@attrs.define
class Promised:
    """This node follows another one's ballot."""

    ballot: Ballot
    due: float


@attrs.define
class Accepted:
    """This node has signed an epoch and waits for everybody's signature."""

    epoch: Epoch
    holders: tuple[NodeId, ...]
    proof: Certificate | None
    """Set when the start position is the result this node signed and could not certify itself."""
    due: float
    signed: set[NodeId] = attrs.field(factory=set)
    begins: dict[NodeId, Begin] = attrs.field(factory=dict)


@attrs.frozen
class Start:
    """Where the next epoch starts from."""

    round: int
    state: bytes
    holders: tuple[NodeId, ...]
    previous: bytes
    previous_members: tuple[NodeId, ...] | None
    certificate: Certificate | None


def choose_start(promises: Mapping[NodeId, Promise]) -> Start:
    """The position to go on from: most rounds, then most holders, then the lowest digest.

    At equal progress the state that most nodes hold costs the fewest transfers; the digest makes
    the choice the same whoever proposes.
    """
    top = max(promise.round for promise in promises.values())
    at_top = {node: promise for node, promise in promises.items() if promise.round == top}
    held = Counter(promise.state for promise in at_top.values())
    state = min(held, key=lambda digest: (-held[digest], digest))
    holders = tuple(sorted(node for node, promise in at_top.items() if promise.state == state))
    # All holders of one state come from the same lineage; the largest member set is the strictest.
    leading = max(
        (promises[node] for node in holders),
        key=lambda promise: (len(promise.members), promise.epoch),
    )
    certificate = next(
        (promises[node].certificate for node in holders if promises[node].certificate is not None),
        None,
    )
    members = tuple(NodeId(member) for member in leading.members)
    return Start(top, state, holders, leading.epoch, members or None, certificate)


def has_quorum(
    members: Iterable[NodeId],
    previous: Sequence[NodeId] | None,
    left: set[NodeId],
    *,
    rule: str,
    min_members: int,
) -> bool:
    """True when `members` may form the epoch after `previous`.

    Dynamic linear voting (Jajodia and Mutchler 1990): more than half of the previous members, or
    exactly half with the first of them; those that left in good order do not count. The very first
    epoch needs `min_members`.
    """
    present = set(members)
    if previous is None:
        return len(present) >= min_members
    if rule == "any":
        return bool(present)
    counted = [member for member in previous if member not in left]
    if not counted:
        return bool(present)
    here = [member for member in counted if member in present]
    return 2 * len(here) > len(counted) or (2 * len(here) == len(counted) and counted[0] in present)


def connected_members(promises: Mapping[NodeId, Promise]) -> tuple[NodeId, ...]:
    """Responders that all reach each other; those with most progress are placed first.

    Greedy, not a maximum clique: a node that cannot reach somebody is left out of this epoch rather
    than making everybody fail to enter it.
    """
    chosen: list[NodeId] = []
    order = sorted(
        promises, key=lambda node: (-promises[node].round, -len(promises[node].reaches), node)
    )
    for node in order:
        reaches = set(promises[node].reaches)
        if all(other in reaches and node in promises[other].reaches for other in chosen):
            chosen.append(node)
    return tuple(sorted(chosen))


def proposer_of(candidates: Sequence[NodeId], number: int, attempt: int) -> NodeId:
    """Whose turn it is: an order nobody can choose, rotated by the attempt."""

    def rank(node: NodeId) -> bytes:
        return hashlib.sha256(struct.pack(">Q", number) + node).digest()

    order = sorted(candidates, key=rank)
    return order[attempt % len(order)]
