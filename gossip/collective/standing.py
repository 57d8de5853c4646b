"""Where this node stands in a run, and what it knows of the others (sans-IO).

Shared by the two halves of the epoch machine: `gossip.collective.former` reads it to form epochs, and
`gossip.collective.epoch` keeps it current.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from gossip.collective.certificate import Certificate, Epoch
from gossip.collective.messages import MAX_MEMBERS, Message, Status
from gossip.collective.operation import Operation
from transport.identity import Identity, NodeId

NO_MODEL = bytes(32)


@attrs.define
class Candidate:
    """What is known of a connected peer."""

    public_key: bytes
    status: Status | None = None
    since: float = 0.0
    """When it was last seen to become ready."""

    benched: bool = False
    """It let an operation wait for too long, and has not stepped back since."""

    @property
    def ready(self) -> bool:
        """True when it has said that it can take part."""
        return self.status is not None and self.status.ready


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
    """The epoch entered last, whether it still stands or not."""
    unsettled: Operation | None = None
    """An operation this node signed a result of, and whose outcome it does not know."""
    last_certificate: Certificate | None = None
    peers: dict[NodeId, Candidate] = attrs.field(factory=dict)
    left: set[NodeId] = attrs.field(factory=set)
    """Nodes that left in good order: they do not count for the quorum."""
    outbox: list[tuple[NodeId, Message]] = attrs.field(factory=list)

    @property
    def me(self) -> NodeId:
        """This node's id."""
        return self.identity.node_id

    def holds(self, round_: int, state: bytes) -> bool:
        """True when this node stands exactly there."""
        return (self.round, self.state) == (round_, state)

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
        return Status(self.ready, self.leaving, self.model, self.number, self.round, self.state)

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
