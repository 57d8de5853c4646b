"""Where this node stands in a run, and what it knows of the others (sans-IO).

Shared by the two halves of the epoch machine: `gossip.collective.agreement.former` reads it to form epochs, and
`gossip.collective.agreement.epoch` keeps it current.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

import attrs

from gossip.collective.agreement.certificate import (
    GENESIS,
    Certificate,
    Epoch,
    SignedBy,
    leave_statement,
)
from gossip.collective.agreement.epoch_events import Event, MemberAccused
from gossip.collective.agreement.lineage import (
    MAX_DOUBTS,
    MAX_FAREWELLS,
    Doubt,
    Link,
    Memory,
    farewells,
)
from gossip.collective.agreement.messages import MAX_MEMBERS, Message, Status
from gossip.collective.agreement.operation import Operation
from transport.identity import Identity, NodeId

NO_MODEL = bytes(32)

BENCH_S = 10.0
BENCH_MAX_S = 600.0
"""A node that breaks the rules is left out for the first of these, twice as long each time, at most the
second: whoever goes on with it disturbs the others once in ten minutes."""


@attrs.define
class Candidate:
    """What is known of a connected peer."""

    public_key: bytes
    status: Status | None = None
    since: float = 0.0
    """When it was last seen to become ready."""

    benched: bool = False
    """Left out for what it did; see `Standing.bench`."""
    bench_ends: float | None = None
    """When it is tried again by itself; None: once it has stepped back and is ready again."""

    @property
    def ready(self) -> bool:
        """True when it has said that it can take part."""
        return self.status is not None and self.status.ready


@attrs.define
class Offences:
    """What a node was caught at, kept also while it is not connected."""

    count: int = 0
    until: float = 0.0
    links_failed: int = 0
    """Epochs in a row whose ring could not be connected because of it."""


@attrs.define
class Standing:
    """This node's own position, its peers, and its outgoing messages."""

    run: bytes
    identity: Identity
    model: bytes
    ready: bool = False
    leaving: bool = False
    round: int = 0
    state: bytes = bytes(32)
    number: int = 0
    """Highest epoch number known to have been entered by anybody."""
    previous: Epoch | None = None
    """The last epoch that is known to have had a result, or that founded the run."""
    doubts: tuple[Epoch, ...] = ()
    """Later ones in which this node has voted, and does not know the outcome."""
    unsettled: Operation | None = None
    """An operation this node signed a result of, and whose outcome it does not know."""
    last_certificate: Certificate | None = None
    peers: dict[NodeId, Candidate] = attrs.field(factory=dict)
    left: dict[NodeId, tuple[bytes, SignedBy]] = attrs.field(factory=dict)
    """Nodes that left in good order, and from which epoch: see `left_from`."""
    links: tuple[Link, ...] = ()
    """The epochs that led to `previous`, and itself, with everybody's signatures."""
    offences: dict[NodeId, Offences] = attrs.field(factory=dict)
    events: deque[Event] = attrs.field(factory=deque)
    outbox: list[tuple[NodeId, Message]] = attrs.field(factory=list)

    @property
    def me(self) -> NodeId:
        """This node's id."""
        return self.identity.node_id

    @property
    def base(self) -> bytes:
        """Id of the last epoch that had a result."""
        return GENESIS if self.previous is None else self.previous.id

    def hear_farewell(self, node: NodeId, status: Status, now: float) -> None:
        """A connected node says that it leaves."""
        if status.farewell is None:
            return
        farewell = SignedBy(self.peers[node].public_key, status.farewell)
        if farewells((farewell,), status.base) is None:
            self.accuse(node, "signed its leaving with a wrong signature", now)
        else:
            self.note_left(node, status.base, farewell)

    def doubt(self, epoch: Epoch) -> None:
        """This node votes in `epoch`: from now on others may hold a certificate of it."""
        if epoch.id != self.base and epoch not in self.doubts:
            self.doubts = (*self.doubts, epoch)[-MAX_DOUBTS:]

    def establish(self, epoch: Epoch, links: tuple[Link, ...]) -> None:
        """`epoch` has a result: what was in doubt before it does not matter any more."""
        self.previous, self.links = epoch, links
        self.doubts = tuple(doubt for doubt in self.doubts if doubt.ballot > epoch.ballot)
        self.left.pop(self.me, None)

    @property
    def lasting(self) -> tuple[object, ...]:
        """Of `memory`, what is to be stored at once when it changes; the certificate can wait for the next checkpoint."""
        return self.links, self.doubts, self.gone

    @property
    def gone(self) -> bool:
        """This node leaves, or has left, in good order."""
        return self.leaving or self.me in self.left

    def memory(self) -> Memory | None:
        """What has to survive a restart; None: this node is in no epoch's debt."""
        if not self.links and not self.doubts:
            return None
        doubts = tuple(Doubt.of(doubt) for doubt in self.doubts)
        return Memory(self.links, self.last_certificate, doubts, self.gone)

    def recall(self, memory: Memory, last: Epoch | None) -> None:
        """Go on as the member that this node was.

        `last` is the verified end of the links; None: they do not verify, and are as good as forgotten.
        """
        self.doubts = tuple(doubt.epoch(self.run) for doubt in memory.doubts)
        if last is not None:
            self.links, self.previous = memory.links, last
            self.last_certificate = memory.certificate
            if memory.left and not self.doubts:
                self.note_left(self.me, last.id, self.farewell())
        known = [*self.doubts, last] if last else self.doubts
        self.number = max((epoch.number for epoch in known), default=0)  # ballots only rise

    def note_left(self, node: NodeId, base: bytes, farewell: SignedBy) -> None:
        """That node leaves in good order; the oldest note makes room."""
        if len(self.left) >= MAX_MEMBERS and node not in self.left:
            del self.left[next(iter(self.left))]
        self.left[node] = (base, farewell)

    def farewells_to(self, epoch: Epoch | None) -> tuple[SignedBy, ...]:
        """Of members of `epoch` that left when it was their last: they do not count for its quorum.

        One that had gone on from there before it left still does: so may those it went on with.
        """
        notes = () if epoch is None else (self.left.get(member) for member in epoch.members)
        found = [note[1] for note in notes if note is not None and epoch and note[0] == epoch.id]
        return tuple(found[:MAX_FAREWELLS])

    def left_from(self, epoch: Epoch | None) -> set[NodeId]:
        """The nodes that said these farewells."""
        return {NodeId.of_public_key(one.public_key) for one in self.farewells_to(epoch)}

    def departed(self, epoch: Epoch) -> frozenset[NodeId]:
        """This node, if it has left `epoch` in good order itself: the others may have gone on without counting it, and fewer of them."""
        return frozenset(self.left_from(epoch) & {self.me})

    def farewell(self) -> SignedBy:
        """This node's own."""
        signature = self.identity.sign(leave_statement(self.base))
        return SignedBy(self.identity.public_key, signature)

    def holds(self, round_: int, state: bytes) -> bool:
        """True when this node stands exactly there."""
        return (self.round, self.state) == (round_, state)

    def offences_of(self, node: NodeId) -> Offences:
        """The record of that node; the oldest one makes room."""
        known = self.offences.get(node)
        if known is None:
            if len(self.offences) >= MAX_MEMBERS:
                del self.offences[next(iter(self.offences))]
            known = self.offences[node] = Offences()
        return known

    def accuse(self, node: NodeId, reason: str, now: float) -> None:
        """The node broke the rules: it is left out, each time for twice as long, and named."""
        record = self.offences_of(node)
        record.count += 1
        record.until = now + min(BENCH_S * 2 ** (record.count - 1), BENCH_MAX_S)
        self.events.append(MemberAccused(node, reason))
        peer = self.peers.get(node)
        if peer is not None:
            peer.benched, peer.bench_ends = True, record.until

    def next_pardon(self) -> float:
        """When the next benched peer is to be tried again."""
        due = math.inf
        for peer in self.peers.values():
            if peer.benched and peer.bench_ends is not None:
                due = min(due, peer.bench_ends)
        return due

    def pardon(self, now: float) -> None:
        """End the benches whose time is over."""
        for peer in self.peers.values():
            if peer.benched and peer.bench_ends is not None and peer.bench_ends <= now:
                peer.benched, peer.bench_ends = False, None

    def candidates(self) -> tuple[NodeId, ...]:
        """Ready nodes of the same model, this one included when it is ready; ascending."""
        found = [
            node
            for node, peer in self.peers.items()
            if peer.ready
            and not peer.benched
            and peer.status is not None
            and peer.status.model == self.model
        ]
        if self.ready:
            found.append(self.me)
        return tuple(sorted(found)[:MAX_MEMBERS])

    def status(self) -> Status:
        """What the others are told of this node."""
        return Status(
            self.ready,
            self.leaving,
            self.model,
            self.number,
            self.round,
            self.state,
            self.base,
            self.farewell().signature if self.leaving and not self.doubts else None,
        )

    def send(self, node: NodeId, message: Message) -> None:
        """Queue a message for a connected peer; for anybody else it is dropped."""
        if node in self.peers:
            self.outbox.append((node, message))

    def send_all(self, nodes: Iterable[NodeId], message: Message) -> None:
        """Queue a message for each of `nodes` but this one, in ascending order."""
        for node in sorted(nodes):
            if node != self.me:
                self.send(node, message)

    def broadcast_status(self) -> None:
        """Tell every connected peer."""
        self.send_all(self.peers, self.status())
