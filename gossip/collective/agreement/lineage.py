"""What proves where a run stands: the chain of epochs that led there, signed by their members (sans-IO).

A node that says "I am at round 900" is not believed for saying so. It shows **links**, its last epochs
with every member's signature under each, and the certificate of the last operation. From these anybody
can check, without having been there:

* each epoch follows the one before: it names it, and holds a quorum of its members, each of whom signed
  that it left the one for the other. So an epoch is never claimed by fewer than it takes to form it;
* how far the run can have come: where the last epoch started, plus one round for each operation that
  all its members signed.

A link costs 100 bytes per member, so a message carries as many of the newest as fit; a node that was
away for longer than they reach back weighs the two histories instead (`gossip.collective.agreement.formation`).

Only epochs with a certified operation are links (and the one that founded the run): without a result there
is nothing that could be lost. An epoch in which a node has voted, and does not know whether the others
did, is a **doubt**: somebody may hold a certificate of it. Until that is settled the node goes on only with
a quorum of both, the last link and the doubt (ambiguous sessions: Yeger Lotem, Keidar, Dolev 1997).

What a chain cannot prove is the state that an operation led to: that is settled by those who computed
it themselves, and by holders' count where a newcomer has only claims to go by.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import attrs
import msgspec

from gossip.collective.agreement.certificate import (
    GENESIS,
    Ballot,
    Bytes16,
    Bytes32,
    Certificate,
    Epoch,
    Signature,
    SignedBy,
    accept_statement,
    leave_statement,
)
from gossip.collective.agreement.layout import PLAIN, Layout
from transport.errors import InvalidPublicKey
from transport.identity import NodeId, verify

MAX_LINKS = 64
MAX_FAREWELLS = 16
"""Leavers of one epoch that are spoken of; any more are as good as lost."""
MAX_DOUBTS = 8
"""Epochs in a row that may end between a vote and its certificate; the oldest is forgotten then."""
LINKS_BYTES = 16 * 1024
"""Share of a message that older links may take; the newest one is always there."""

Quorum = Callable[[Epoch, Epoch, frozenset[NodeId]], bool]
"""Whether the members of the first may go on after the second, less those that left it in good order."""

Round = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


Farewells = Annotated[tuple[SignedBy, ...], msgspec.Meta(max_length=MAX_FAREWELLS)]


def _epoch(run: bytes, told: Link | Doubt, members: tuple[NodeId, ...]) -> Epoch:
    """The epoch that a link or a doubt tells of."""
    return Epoch(
        run,
        told.ballot,
        members,
        told.previous,
        told.round,
        told.state,
        told.salt,
        told.layout,
    )


class Link(msgspec.Struct, frozen=True, array_like=True):
    """An epoch with all that its members signed, and their signatures."""

    ballot: Ballot
    previous: Bytes32
    round: Round
    state: Bytes32
    salt: Bytes16
    keys: Annotated[tuple[Bytes32, ...], msgspec.Meta(min_length=1, max_length=256)]
    """Public keys in the order of the members, who are named by their hashes."""
    accepts: Annotated[tuple[Signature, ...], msgspec.Meta(min_length=1, max_length=256)]
    left: Farewells = ()
    """Of members of the epoch before that left it in good order."""
    layout: Layout = PLAIN

    @property
    def size_bytes(self) -> int:
        """About what it takes in a message."""
        ranks = len(self.layout.order) + len(self.layout.sites)
        return 180 + 102 * (len(self.keys) + len(self.left)) + ranks

    def epoch(self, run: bytes) -> Epoch | None:
        """The epoch it speaks of; None when its members are no ascending set of keys."""
        try:
            members = tuple(NodeId.of_public_key(key) for key in self.keys)
        except InvalidPublicKey:
            return None
        if len(self.accepts) != len(members) or members != tuple(sorted(set(members))):
            return None
        return _epoch(run, self, members)


Links = Annotated[tuple[Link, ...], msgspec.Meta(max_length=MAX_LINKS)]


@attrs.frozen
class History:
    """Verified links: the epochs they stand for, oldest first, and how far the run can have come."""

    epochs: tuple[Epoch, ...] = ()
    limit: int = 0
    """No position of a higher round is proven."""
    left: tuple[frozenset[NodeId], ...] = ()
    """Per epoch: who had left the one before in good order."""

    @property
    def last(self) -> Epoch | None:
        """The newest epoch."""
        return self.epochs[-1] if self.epochs else None

    def names(self, epoch_id: bytes) -> bool:
        """True when that epoch is one of these, or the one before them."""
        return any(epoch_id in {epoch.id, epoch.previous} for epoch in self.epochs)

    def proves(self, round_: int, state: bytes) -> bool:
        """True when a run with this history can stand there, as far as signatures can tell."""
        last = self.last
        if last is None or round_ > self.limit:
            return False
        return round_ != last.round or state == last.state

    def settles(self, doubt: Epoch, quorum: Quorum) -> bool:
        """True when the run has gone on from where `doubt` would have: with it, or without its members.

        Both hold a quorum of the epoch before them. Whoever is in both has either not voted in `doubt`,
        then nothing was certified there, or has gone on with a quorum of it.
        """
        if any(doubt.previous == epoch.previous for epoch in self.epochs):
            return True
        if any(doubt.previous == epoch.id for epoch in self.epochs[:-1]):
            return True
        return self.supersedes(doubt, quorum)

    def supersedes(
        self, epoch: Epoch, quorum: Quorum, gone: frozenset[NodeId] = frozenset()
    ) -> bool:
        """True when the run has left `epoch` for a later one of these.

        `quorum(later, earlier, left)` says whether the members of the one may follow on the other. `gone` are members known to have
        left `epoch` in good order, who count for none, however long ago that was.
        """
        if any(one.id == epoch.id for one in self.epochs[:-1]):
            return True
        if self.epochs and self.epochs[0].previous == GENESIS:
            gone = frozenset()  # all of it is here, and it did not come from there
        return any(
            one.ballot > epoch.ballot
            and quorum(one, epoch, left | gone if one.previous == epoch.id else gone)
            for one, left in zip(self.epochs, self.left, strict=True)
        )


class Verifier:
    """Checks links and certificates, and remembers which it has seen (bounded)."""

    MAX_SEEN = 512

    def __init__(self, run: bytes, quorum: Quorum) -> None:
        self._run = run
        self._quorum = quorum
        self._seen: dict[Link, Epoch] = {}

    def add_own(self, link: Link, epoch: Epoch) -> None:
        """A link whose signatures this node has checked one by one already."""
        self._remember(link, epoch)

    def _remember(self, link: Link, epoch: Epoch) -> None:
        if len(self._seen) >= self.MAX_SEEN:
            self._seen.clear()
        self._seen[link] = epoch

    def epoch_of(self, link: Link) -> Epoch | None:
        """The epoch of a link that all its members signed; None for any other."""
        known = self._seen.get(link)
        if known is not None:
            return known
        epoch = link.epoch(self._run)
        if epoch is None:
            return None
        statement = accept_statement(epoch.id)
        pairs = zip(link.keys, link.accepts, strict=True)
        if not all(verify(key, signature, statement) for key, signature in pairs):
            return None
        if farewells(link.left, link.previous) is None:
            return None
        self._remember(link, epoch)
        return epoch

    def history(self, links: Sequence[Link], certificate: Certificate | None) -> History | None:
        """What the links prove; None when a signature in them is wrong, which is a lie.

        A link that does not follow from the one before it begins the chain anew: what is older
        counts for nothing.
        """
        epochs: list[Epoch] = []
        left: list[frozenset[NodeId]] = []
        for link in links:
            epoch = self.epoch_of(link)
            if epoch is None:
                return None
            gone = frozenset(NodeId.of_public_key(one.public_key) for one in link.left)
            if epochs and not (
                epoch.previous == epochs[-1].id and self._quorum(epoch, epochs[-1], gone)
            ):
                epochs.clear()
                left.clear()
            epochs.append(epoch)
            left.append(gone)
        if not epochs:
            return History()
        limit = epochs[-1].round
        if certificate is not None:
            of = next((epoch for epoch in epochs if epoch.id == certificate.epoch), None)
            if of is not None:
                if certificate.lane or not certificate.verify(of.members):
                    return None  # only what lane 0 certified moves a run on
                limit = max(limit, of.round + certificate.sequence + 1)
        return History(tuple(epochs), limit, tuple(left))


def farewells(signed: Sequence[SignedBy], epoch: bytes) -> frozenset[NodeId] | None:
    """Who says that it left `epoch`; None when a signature does not hold."""
    statement = leave_statement(epoch)
    if not all(verify(one.public_key, one.signature, statement) for one in signed):
        return None
    return frozenset(NodeId.of_public_key(one.public_key) for one in signed)


def trimmed(links: Sequence[Link]) -> tuple[Link, ...]:
    """The newest of `links`, as many as a message has room for."""
    kept: list[Link] = []
    room = LINKS_BYTES
    for link in reversed(links):
        room -= link.size_bytes
        if kept and (room < 0 or len(kept) == MAX_LINKS):
            break
        kept.append(link)
    return tuple(reversed(kept))


class Doubt(msgspec.Struct, frozen=True, array_like=True):
    """An epoch in which a node voted, and whose outcome it does not know."""

    ballot: Ballot
    previous: Bytes32
    round: Round
    state: Bytes32
    salt: Bytes16
    members: Annotated[tuple[Bytes32, ...], msgspec.Meta(min_length=1, max_length=256)]
    layout: Layout = PLAIN

    @classmethod
    def of(cls, epoch: Epoch) -> Doubt:
        """For the disk."""
        return cls(
            epoch.ballot,
            epoch.previous,
            epoch.round,
            epoch.state,
            epoch.salt,
            epoch.members,
            epoch.layout,
        )

    def epoch(self, run: bytes) -> Epoch:
        """From the disk."""
        members = tuple(NodeId(member) for member in self.members)
        return _epoch(run, self, members)


class Memory(msgspec.Struct, frozen=True):
    """What a node has to remember across restarts: with whom it went on last.

    Without it a node that comes back would count for a majority that it has left.
    """

    links: Links
    certificate: Certificate | None = None
    doubts: Annotated[tuple[Doubt, ...], msgspec.Meta(max_length=MAX_DOUBTS)] = ()
    left: bool = False
    """It left in good order: the others may have gone on without counting it, so it cannot count itself."""
