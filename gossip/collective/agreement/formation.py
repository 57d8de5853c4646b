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
from collections.abc import Collection, Iterable, Mapping, Sequence

import attrs

from gossip.collective.agreement.certificate import Ballot, Certificate, Epoch, SignedBy
from gossip.collective.agreement.lineage import History, Link, Quorum
from gossip.collective.agreement.messages import Begin, Promise, Vote, Wait
from transport.identity import NodeId

WAIT_EXTENSION_S = 30.0
"""A node that runs an operation answers when it has ended; see `Wait`. So long waits only who cannot
form an epoch without it: survivors of a broken epoch have a quorum among those that answered."""


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

    def give_up_on_silent(self, now: float, *, enough: bool) -> None:
        """The deadline has passed: only those that asked for time are waited for.

        And not even they when `enough` others have answered: what they run cannot end without
        those, and if it has ended already, their certificate counts in the epoch after.
        """
        if enough:
            self._missing.clear()
            return
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
    since: float = 0.0


@attrs.define
class Accepted:
    """This node has signed an epoch and waits for everybody's signature."""

    epoch: Epoch
    holders: tuple[NodeId, ...]
    links: tuple[Link, ...]
    """What led to this epoch; with itself once everybody has signed."""
    left: tuple[SignedBy, ...]
    """Farewells to the epoch before."""
    certificate: Certificate | None
    """What proves the start position."""
    proof: Certificate | None
    """Set when the start position is the result this node signed and could not certify itself."""
    due: float
    signed: dict[NodeId, SignedBy] = attrs.field(factory=dict)
    early: dict[tuple[NodeId, int, type], Begin | Vote] = attrs.field(factory=dict)
    """What members that are in it already say of operations: the last of each kind, member and lane."""
    since: float = 0.0
    """When this node began to follow the ballot."""


@attrs.frozen
class Start:
    """Where the next epoch starts from."""

    round: int
    state: bytes
    holders: tuple[NodeId, ...]
    fresh: tuple[NodeId, ...]
    """Responders with no epoch behind them."""
    head: Epoch | None
    """The epoch that the next one follows on; None when nobody has been in one."""
    links: tuple[Link, ...]
    certificate: Certificate | None


def choose_start(
    promises: Mapping[NodeId, Promise],
    histories: Mapping[NodeId, History],
    quorum: Quorum,
    *,
    by_progress: bool = False,
) -> Start:
    """What the next epoch follows on, and the position it goes on from.

    The **head** is the epoch that no other responder's history has left behind. Where there are
    several (a run that was founded twice, or a liar), the one counts that most responders come
    from, because they cannot be made up; with `by_progress`, the one that came farthest.

    The **position** is the highest that a history proves, or that a majority of the head's members
    hold with nothing to show for it; where there is neither, the highest that is claimed. At equal
    progress the state that most nodes hold costs the fewest transfers, and the digest makes the choice
    the same whoever proposes.
    """
    lasts = {node: history.last for node, history in histories.items()}
    fresh = tuple(sorted(node for node, last in lasts.items() if last is None))
    heads: dict[bytes, list[NodeId]] = {}
    epochs: dict[bytes, Epoch] = {}
    for node, last in sorted(lasts.items()):
        if last is not None and not any(
            history.supersedes(last, quorum) for history in histories.values()
        ):
            heads.setdefault(last.id, []).append(node)
            epochs[last.id] = last

    def weight(head: bytes) -> tuple[int, int, bytes]:
        here = len(heads[head])
        progress = max(promises[node].round for node in heads[head])
        return (progress, here, head) if by_progress else (here, progress, head)

    head: Epoch | None = None
    links: tuple[Link, ...] = ()
    family = set(fresh)
    if heads:
        head = epochs[max(heads, key=weight)]
        witness = max(heads[head.id], key=lambda node: (len(histories[node].epochs), node))
        links, history = promises[witness].links, histories[witness]
        family |= {
            node
            for node, last in lasts.items()
            if last is not None
            and (last == head or history.names(last.id) or history.supersedes(last, quorum))
        }
    pool = [
        node
        for node in sorted(family)
        if histories[node].proves(promises[node].round, promises[node].state)
    ]
    if head is not None:
        claims = Counter(
            (promises[node].round, promises[node].state)
            for node in family & set(head.members) - set(pool)
        )
        believed = {claim for claim, count in claims.items() if 2 * count > len(head.members)}
        pool += [
            node
            for node in sorted(family - set(pool))
            if (promises[node].round, promises[node].state) in believed
        ]
    pool = pool or sorted(family)
    top = max(promises[node].round for node in pool)
    states = {promises[node].state for node in pool if promises[node].round == top}
    held = Counter(
        promise.state
        for promise in promises.values()
        if promise.round == top and promise.state in states
    )
    state = min(held, key=lambda digest: (-held[digest], digest))
    holders = tuple(
        sorted(
            n for n, promise in promises.items() if (promise.round, promise.state) == (top, state)
        )
    )
    certificate = next(
        (
            promises[node].certificate
            for node in holders
            if node in family
            and promises[node].certificate is not None
            and histories[node].proves(top, state)
        ),
        None,
    )
    return Start(top, state, holders, fresh, head, links, certificate)


def has_quorum(
    members: Iterable[NodeId],
    previous: Sequence[NodeId] | None,
    left: Collection[NodeId],
    *,
    rule: str,
    min_members: int,
    fresh: Iterable[NodeId] = (),
) -> bool:
    """True when `members` may form the epoch after `previous`.

    Dynamic linear voting (Jajodia and Mutchler 1990): more than half of the previous members, or
    exactly half with the first of them; those that left in good order do not count. A member that
    is `fresh` does not remember which epochs it was in (its disk is lost, say) and may have gone on
    with others since: it counts only when nobody is missing that it could have gone on with, those
    that left included: they may have come back and gone on with it. The
    very first epoch needs `min_members`.
    """
    present = set(members)
    if previous is None:
        return len(present) >= min_members
    if rule == "any":
        return bool(present)
    # When all have left, somebody has to come back; a stranger cannot go on for them.
    counted = [member for member in previous if member not in left] or list(previous)
    if present.issuperset(previous):
        return True
    present -= set(fresh)
    here = [member for member in counted if member in present]
    return 2 * len(here) > len(counted) or (2 * len(here) == len(counted) and counted[0] in present)


def outweighs(theirs: Epoch, ours: Epoch, members: Collection[NodeId], *, further: bool) -> bool:
    """True when of two histories with nothing in common theirs is the one to go on with.

    Members count, because they cannot be made up. Two founded by one node each are merged into the one
    that is `further`.
    """
    here, own = (len(set(epoch.members).intersection(members)) for epoch in (theirs, ours))
    return here > own or (here == own and len(ours.members) == 1 and further)


def connected_members(
    promises: Mapping[NodeId, Promise], proven: Collection[NodeId] = ()
) -> tuple[NodeId, ...]:
    """Responders that all reach each other; those with most progress are placed first.

    Greedy, not a maximum clique: a node that cannot reach somebody is left out of this epoch rather
    than making everybody fail to enter it. What a node claims counts for little: its progress only
    when it is `proven` (or nobody's is), its reach only where the other end says so too.
    """
    reaches = {node: set(promise.reaches) for node, promise in promises.items()}
    mutual = {
        node: sum(1 for other in promises if other in reaches[node] and node in reaches[other])
        for node in promises
    }

    def place(node: NodeId) -> tuple[int, int, NodeId]:
        counts = not proven or node in proven
        return (-promises[node].round if counts else 0, -mutual[node], node)

    chosen: list[NodeId] = []
    for node in sorted(promises, key=place):
        if all(other in reaches[node] and node in reaches[other] for other in chosen):
            chosen.append(node)
    return tuple(sorted(chosen))


def proposer_of(candidates: Sequence[NodeId], number: int, attempt: int) -> NodeId:
    """Whose turn it is: an order nobody can choose, rotated by the attempt."""

    def rank(node: NodeId) -> bytes:
        return hashlib.sha256(struct.pack(">Q", number) + node).digest()

    order = sorted(candidates, key=rank)
    return order[attempt % len(order)]
