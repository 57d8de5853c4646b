"""What must hold in every history of the simulated swarm, whatever happens to its members."""

from __future__ import annotations

from collections import defaultdict

from gossip.collective.agreement.certificate import Certificate, Epoch
from gossip.collective.agreement.deadlock import Wait, circle_through
from gossip.collective.agreement.operation import Operation
from transport.identity import NodeId


class Checker:
    """What must hold whatever happens; every violation is an AssertionError that says which."""

    def __init__(self, *, quorum: str) -> None:
        self.quorum = quorum
        self.epochs: dict[bytes, Epoch] = {}
        self.roots: dict[tuple[bytes, int, int], bytes] = {}
        self.began: dict[tuple[bytes, int], set[tuple[int, bytes]]] = defaultdict(set)
        self.spans: dict[bytes, list[float]] = {}
        """Per epoch: when the first vote for its first and for its last certified operation was cast. A frozen
        member that wakes may complete what the others have redone without it; that is no progress."""
        self.voted: dict[tuple[bytes, int, int], float] = {}
        self.waits: dict[bytes, dict[NodeId, Wait]] = defaultdict(dict)
        """Per epoch: what each member waits for there and has called, as it is now and not as others have heard."""

    def waiting(self, operation: Operation, node: NodeId, called: tuple[int, ...]) -> None:
        self.waits[operation.epoch_id][node] = Wait(operation.lane, operation.sequence, called)

    def goes_on(self, operation: Operation, node: NodeId) -> None:
        """What the node waited for there has ended with a certificate."""
        wait = self.waits[operation.epoch_id].get(node)
        if wait is not None and (wait.lane, wait.sequence) == (operation.lane, operation.sequence):
            del self.waits[operation.epoch_id][node]

    def mismatch(self, operation: Operation) -> None:
        """Nobody calls another operation: only who waits in a circle may be told so, and that is seen from outside, too."""
        waits = self.waits[operation.epoch_id]
        assert any(circle_through(member, waits) for member in waits), "a false alarm"

    def entered(self, node: NodeId, epoch: Epoch) -> None:
        assert self.epochs.setdefault(epoch.id, epoch) == epoch, "two contents of one epoch"
        assert node in epoch.members

    def begins(self, epoch: Epoch, sequence: int, round_: int, state: bytes) -> None:
        if sequence == 0:
            assert (round_, state) == (epoch.round, epoch.state), "started on another state"
        self.began[epoch.id, sequence].add((round_, state))

    def certified(self, operation: Operation, certificate: Certificate) -> None:
        key = (certificate.epoch, certificate.lane, certificate.sequence)
        fresh = key not in self.roots
        assert self.roots.setdefault(key, certificate.root) == certificate.root, "two results"
        assert certificate.verify(operation.epoch.members)
        assert certificate.root == operation.root, "certified something else than was signed"
        if certificate.lane == 0:
            states = self.began[certificate.epoch, certificate.sequence]
            assert len(states) == 1, "an operation from two states was certified"
        if not fresh:
            return
        epoch, decided = operation.epoch, self.voted[key]
        span = self.spans.setdefault(epoch.id, [decided, decided])
        span[1] = max(span[1], decided)
        if self.quorum == "majority":
            self._one_lineage(epoch, span)

    def _one_lineage(self, epoch: Epoch, span: list[float]) -> None:
        """Two epochs with no common member never make progress side by side."""
        for other_id, (first, last) in self.spans.items():
            other = self.epochs[other_id]
            if set(other.members) & set(epoch.members):
                continue
            assert last < span[0] or span[1] < first, "two parts of a partition both go on"
