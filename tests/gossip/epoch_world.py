"""Epoch machines on one seeded event heap, with a data plane that is only a delay.

Checked after every event: one content per epoch id, one certified root per operation, nobody votes
in an epoch after promising a higher ballot, operations start from the epoch's own state.
"""

from __future__ import annotations

import hashlib
import heapq
import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable

from gossip.collective.agreement.epoch import EpochMachine
from gossip.collective.agreement.epoch_events import (
    EpochEntered,
    EpochLeft,
    EpochSettings,
    MembersWaiting,
    OperationAborted,
    OperationCertified,
)
from gossip.collective.agreement.messages import Vote, decode_message_untrusted, encode
from transport.identity import Identity, NodeId

START = hashlib.sha256(b"start").digest()


def make_identities(count: int, seed: int = 0) -> list[Identity]:
    return [
        Identity.from_seed(hashlib.sha256(f"{seed}/{index}".encode()).digest())
        for index in range(count)
    ]


class Node:
    def __init__(self, world: World, identity: Identity) -> None:
        self.world = world
        self.identity = identity
        self.id = identity.node_id
        self.life = 0
        self.round, self.state = 0, START
        self.machine = self._new_machine()
        self.alive = True
        self.paused_until = 0.0
        self.begun: object = None
        self.results: dict[tuple[bytes, int], bytes] = {}

    def _new_machine(self) -> EpochMachine:
        return EpochMachine(
            b"r" * 32,
            self.identity,
            rng=random.Random(f"{self.world.seed}/{self.id.hex()}/{self.life}"),
            settings=self.world.settings,
        )


class World:
    def __init__(self, count: int, seed: int, *, settings: EpochSettings | None = None) -> None:
        self.seed = seed
        self.settings = settings or EpochSettings()
        self.rng = random.Random(seed)
        self.now = 0.0
        self.heap: list[tuple[float, int, Callable[[], None]]] = []
        self.count = 0
        self.nodes = {i.node_id: Node(self, i) for i in make_identities(count)}
        self.order = sorted(self.nodes)
        self.links: set[frozenset[NodeId]] = set()
        self.epochs: dict[bytes, object] = {}
        self.certified: dict[tuple[bytes, int], set[bytes]] = defaultdict(set)
        self.by: dict[tuple[bytes, int], set[NodeId]] = defaultdict(set)
        self.markers: Counter[str] = Counter()
        self.last_arrival: dict[tuple[NodeId, NodeId], float] = {}
        self.delay = (0.001, 0.02)
        self.train = (0.05, 0.4)
        self.on_message: Callable[[NodeId, NodeId, object], None] = lambda *_: None
        self.trace = hashlib.sha256()

    # ---- events ------------------------------------------------------------------------------

    def at(self, when: float, action: Callable[[], None]) -> None:
        self.count += 1
        heapq.heappush(self.heap, (when, self.count, action))

    def run(self, until: float, done: Callable[[], bool] = lambda: False) -> None:
        while self.heap and self.heap[0][0] <= until and not done():
            self.now, _, action = heapq.heappop(self.heap)
            action()
        if not done():
            self.now = until

    def connect_all(self) -> None:
        for index, a in enumerate(self.order):
            for b in self.order[index + 1 :]:
                self.connect(a, b)

    def connect(self, a: NodeId, b: NodeId) -> None:
        if not (self.nodes[a].alive and self.nodes[b].alive) or frozenset((a, b)) in self.links:
            return
        self.links.add(frozenset((a, b)))
        for x, y in ((a, b), (b, a)):
            node = self.nodes[x]
            node.machine.peer_up(y, self.nodes[y].identity.public_key, self.now)
            self.pump(node)

    def disconnect(self, a: NodeId, b: NodeId, reason: str = "cut") -> None:
        if frozenset((a, b)) not in self.links:
            return
        self.links.discard(frozenset((a, b)))
        for x, y in ((a, b), (b, a)):
            node = self.nodes[x]
            if node.alive:
                node.machine.peer_down(y, reason, self.now)
                self.pump(node)

    def crash(self, a: NodeId) -> None:
        node = self.nodes[a]
        node.alive = False
        node.life += 1
        self.markers["crash"] += 1
        for b in self.order:
            self.disconnect(a, b, "crashed")

    def restart(self, a: NodeId) -> None:
        node = self.nodes[a]
        if node.alive:
            return
        node.alive, node.begun, node.results = True, None, {}
        node.machine = node._new_machine()
        node.round, node.state = 0, START
        for b in self.order:
            self.connect(a, b)
        self.ready(node)

    def ready(self, node: Node) -> None:
        node.machine.set_ready(node.round, node.state, self.now)
        self.pump(node)

    def pause(self, a: NodeId, seconds: float) -> None:
        self.nodes[a].paused_until = self.now + seconds
        self.markers["pause"] += 1

    # ---- driver ------------------------------------------------------------------------------

    def pump(self, node: Node) -> None:
        machine = node.machine
        while (event := machine.next_event()) is not None:
            self.note(node, event)
        for target, message in machine.outgoing():
            self.post(node.id, target, encode(message))
        deadline = machine.next_deadline()
        if deadline < math.inf:
            life = node.life
            self.at(max(deadline, self.now), lambda: self.tick(node, life))

    def tick(self, node: Node, life: int) -> None:
        if not node.alive or node.life != life:
            return
        if node.paused_until > self.now:
            self.at(node.paused_until, lambda: self.tick(node, life))
            return
        if node.machine.next_deadline() <= self.now:
            node.machine.tick(self.now)
            self.pump(node)

    def post(self, source: NodeId, target: NodeId, data: bytes) -> None:
        if frozenset((source, target)) not in self.links:
            return
        arrival = self.now + self.rng.uniform(*self.delay)
        arrival = max(arrival, self.last_arrival.get((source, target), 0.0))
        self.last_arrival[source, target] = arrival
        lives = self.nodes[source].life, self.nodes[target].life
        self.at(arrival, lambda: self.deliver(source, target, data, lives))

    def deliver(self, source: NodeId, target: NodeId, data: bytes, lives: tuple[int, int]) -> None:
        node = self.nodes[target]
        if (self.nodes[source].life, node.life) != lives:
            return
        if frozenset((source, target)) not in self.links:
            return
        if node.paused_until > self.now:
            self.at(node.paused_until, lambda: self.deliver(source, target, data, lives))
            return
        message = decode_message_untrusted(data)
        self.trace.update(f"{self.now:.9f}".encode() + source + target + data)
        self.on_message(source, target, message)
        if not node.alive or frozenset((source, target)) not in self.links:
            return
        if isinstance(message, Vote):
            self.markers["vote"] += 1
        node.machine.receive(source, message, self.now)
        self.pump(node)

    def note(self, node: Node, event: object) -> None:
        match event:
            case EpochEntered(epoch, behind, holders):
                known = self.epochs.setdefault(epoch.id, epoch)
                assert known == epoch
                assert node.id in epoch.members
                self.markers["entered"] += 1
                if behind:
                    self.markers["behind"] += 1
                    life = node.life
                    self.at(self.now + 0.05, lambda: self.sync(node, life, epoch, holders))
                else:
                    self.schedule_begin(node)
            case EpochLeft():
                node.begun = None
            case OperationCertified(operation, certificate):
                key = (certificate.epoch, certificate.sequence)
                self.certified[key].add(certificate.root)
                assert len(self.certified[key]) == 1, "two results of one operation"
                assert certificate.verify(operation.epoch.members)
                assert certificate.root == operation.root
                self.by[key].add(node.id)
                self.markers["certified"] += 1
                if operation.state.value == "aborted":
                    self.markers["certified late"] += 1
                node.begun = None
                node.round += 1
                node.state = hashlib.sha256(node.state + certificate.root).digest()
                life = node.life
                self.at(self.now + 0.005, lambda: self.applied(node, life))
            case OperationAborted():
                node.begun = None
                self.markers["aborted"] += 1
            case MembersWaiting():
                self.markers["waiting"] += 1

    def applied(self, node: Node, life: int) -> None:
        if node.alive and node.life == life:
            self.ready(node)
            self.schedule_begin(node)

    def sync(self, node: Node, life: int, epoch: object, holders: object) -> None:
        if not node.alive or node.life != life or node.machine.epoch is not epoch:
            return
        node.round, node.state = epoch.round, epoch.state
        self.markers["synced"] += 1
        self.ready(node)
        self.schedule_begin(node)

    def schedule_begin(self, node: Node) -> None:
        life = node.life
        self.at(self.now + self.rng.uniform(*self.train), lambda: self.begin(node, life))

    def begin(self, node: Node, life: int) -> None:
        if not node.alive or node.life != life or not node.machine.can_begin or node.begun:
            return
        if node.paused_until > self.now:
            self.at(node.paused_until, lambda: self.begin(node, life))
            return
        descriptor = hashlib.sha256(b"op%d" % node.round + node.state).digest()
        operation = node.machine.begin(descriptor, self.now)
        node.begun = operation
        self.pump(node)
        self.data_plane(operation)

    def data_plane(self, operation: object) -> None:
        """Once every member has begun it, each gets the result after a delay of its own."""
        members = [self.nodes[member] for member in operation.epoch.members]
        mine = [
            (node, node.begun)
            for node in members
            if node.alive
            and node.begun is not None
            and node.begun.epoch_id == operation.epoch_id
            and node.begun.sequence == operation.sequence
        ]
        if len(mine) < len(members):
            return
        root = hashlib.sha256(operation.epoch_id + b"%d" % operation.sequence).digest()
        for node, begun in mine:
            life = node.life
            self.at(
                self.now + self.rng.uniform(0.001, 0.05),
                lambda node=node, begun=begun, life=life: self.got(node, begun, life, root),
            )

    def got(self, node: Node, begun: object, life: int, root: bytes) -> None:
        if node.alive and node.life == life and node.machine.operation is begun:
            node.machine.result(root, self.now)
            self.pump(node)

    # ---- helpers -----------------------------------------------------------------------------

    def start(self) -> None:
        self.connect_all()
        for id_ in self.order:
            self.ready(self.nodes[id_])

    def rounds(self) -> list[int]:
        return [self.nodes[id_].round for id_ in self.order if self.nodes[id_].alive]
