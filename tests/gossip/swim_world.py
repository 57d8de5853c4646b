"""A world of members on one event heap: heartbeats, latency, loss, partitions, stalls, deaths. No event loop, no clock.

Signatures are a keyed hash that only the world can compute. Messages are encoded and decoded as on the wire, so a message that
is too large or malformed fails the test. Every delivery goes into a digest: equal seeds give equal digests.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import attrs

from gossip.membership.messages import Message, decode, encode
from gossip.membership.settings import LAN, SwimSettings
from gossip.membership.swim import Dial, Send, Swim
from gossip.membership.table import MemberState, SwimKeys
from transport.identity import NodeId

HEARTBEAT_S = 1.0
SILENCE_S = 4.0
REDIAL_S = 2.0


@attrs.define(eq=False)
class Node:
    name: int
    keys: SwimKeys
    swim: Swim
    alive: bool = True
    stalled_until: float = 0.0
    timer: int = 0
    seen: dict[NodeId, float] = attrs.field(factory=dict)  # connected -> last byte
    waiting: list[tuple[Callable[..., None], tuple[Any, ...]]] = attrs.field(factory=list)

    @property
    def id(self) -> NodeId:
        return self.keys.node_id


class World:
    def __init__(
        self,
        seed: int,
        count: int,
        *,
        settings: SwimSettings = LAN,
        degree: int | None = None,
        loss: float = 0.0,
        latency_s: tuple[float, float] = (0.0005, 0.02),
        encoded: bool = True,
        keep: int = 128,
    ) -> None:
        self.keep = keep
        self.rng = random.Random(seed)
        self.now = 0.0
        self.settings = settings
        self.loss = loss
        self.latency_s = latency_s
        self.encoded = encoded
        self.counters: Counter[str] = Counter()
        self.lost: list[tuple[float, int, int]] = []  # when, who says so, who
        self.suspected: list[tuple[float, int, int]] = []
        self.reasons: Counter[str] = Counter()
        self.largest = 0
        self.cut: Callable[[Node, Node], bool] = lambda _a, _b: False
        self.tamper: Callable[[Node, Node, Message], Message | None] = lambda _a, _b, said: said
        self.can_dial = True
        self.nodes: list[Node] = []
        self._by_id: dict[NodeId, Node] = {}
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._number = 0
        self._secrets: dict[bytes, bytes] = {}
        self._trace = hashlib.sha256()
        for _ in range(count):
            self.add()
        self.introduce()
        for index, node in enumerate(self.nodes):
            others = self.nodes[:index]
            for other in others if degree is None else self._some(others, degree // 2):
                self.connect(node, other)

    # Making

    def keys(self, name: int) -> SwimKeys:
        secret = hashlib.sha256(b"secret %d" % name).digest()
        public = hashlib.sha256(b"public" + secret).digest()
        self._secrets[public] = secret

        def verify(public_key: bytes, signature: bytes, data: bytes) -> bool:
            self.counters["verified"] += 1
            return signature == signed(self._secrets.get(public_key, b""), data)

        return SwimKeys(
            NodeId.of_public_key(public),
            public,
            b"w" * 32,
            lambda data: signed(secret, data),
            verify,
        )

    def add(self, *, incarnation: int = 1000, name: int | None = None) -> Node:
        number = len(self.nodes) if name is None else name
        keys = self.keys(number)
        swim = Swim(
            keys,
            name=f"n{number}",
            incarnation=incarnation,
            settings=self.settings,
            rng=random.Random(self.rng.getrandbits(64)),
            now=self.now,
        )
        node = Node(number, keys, swim)
        self.nodes.append(node)
        self._by_id[keys.node_id] = node
        self.at(self.now + self.rng.random() * HEARTBEAT_S, self._beat, node)
        self._arm(node)
        return node

    def introduce(self) -> None:
        """Everybody knows everybody, as after a while of gossip."""
        statements = [node.swim._state.own for node in self.nodes]
        for node in self.nodes:
            for said in statements:
                if said.member != node.id and node.swim.member(said.member) is None:
                    node.swim._meet(said, self.now)
            node.swim._state.news.__init__(  # type: ignore[misc]
                self.settings.spread, capacity=2 * self.settings.max_members
            )
            while node.swim.next_event():
                pass

    # Links

    def connect(self, a: Node, b: Node) -> None:
        if b.id in a.seen or a.id in b.seen or not (a.alive and b.alive) or self.cut(a, b):
            return
        for one, other in ((a, b), (b, a)):
            one.seen[other.id] = self.now
            one.swim.connected(other.id, self.now)
        self._flush(a)
        self._flush(b)

    def _drop(self, node: Node, other: Node, reason: str) -> None:
        if node.seen.pop(other.id, None) is not None:
            self.counters["connections lost"] += 1
            node.swim.disconnected(other.id, reason, self.now)
            self.at(self.now + REDIAL_S, self._redial, node, other)

    def _redial(self, node: Node, other: Node) -> None:
        if not node.alive or other.id in node.seen:
            return
        if other.alive and other.stalled_until <= self.now and not self.cut(node, other):
            other.seen.pop(node.id, None)  # a new connection replaces the old one
            other.swim.disconnected(node.id, "the peer opened a new connection", self.now)
            self.connect(node, other)
        else:
            self.at(self.now + REDIAL_S, self._redial, node, other)

    def _reaches(self, a: Node, b: Node) -> bool:
        return b.alive and not self.cut(a, b) and self.rng.random() >= self.loss

    def _beat(self, node: Node) -> None:
        if not node.alive:
            return
        if node.stalled_until > self.now:
            self.at(node.stalled_until, self._beat, node)
            return
        for other_id in node.seen:
            other = self._by_id[other_id]
            if node.id in other.seen and self._reaches(node, other):
                other.seen[node.id] = self.now + self._latency()
        self.at(self.now + HEARTBEAT_S, self._beat, node)

    def _latency(self) -> float:
        return self.rng.uniform(*self.latency_s)

    # Faults

    def kill(self, node: Node, *, frozen: bool = False) -> None:
        """SIGKILL (connections are reset), or SIGSTOP and a black hole (they fall silent)."""
        node.alive = False
        if not frozen:
            for other in self.nodes:
                if other.alive and node.id in other.seen:
                    self.at(self.now + self._latency(), self._reset, other, node)

    def _reset(self, node: Node, other: Node) -> None:
        self._drop(node, other, "connection reset")
        self._flush(node)

    def stall(self, node: Node, for_s: float) -> None:
        """Its loop stands still; what arrives meanwhile waits."""
        node.stalled_until = max(node.stalled_until, self.now + for_s)
        self.at(node.stalled_until, self._wake, node)

    def _wake(self, node: Node) -> None:
        if node.stalled_until > self.now:
            return
        waiting, node.waiting = node.waiting, []
        if self.rng.random() < 0.5:  # the timer or the reader: whichever task runs first
            self._tick(node, -1)
        for function, args in waiting:
            function(*args)
        self._tick(node, -1)

    # Running

    def at(self, when: float, function: Callable[..., None], *args: Any) -> None:
        self._number += 1
        heapq.heappush(self._heap, (when, self._number, function, args))

    def run(self, until: float) -> None:
        while self._heap and self._heap[0][0] <= until:
            when, _, function, args = heapq.heappop(self._heap)
            self.now = max(self.now, when)
            function(*args)
        self.now = until

    def _arm(self, node: Node) -> None:
        node.timer += 1
        self.at(max(self.now, node.swim.next_deadline()), self._tick, node, node.timer)

    def _tick(self, node: Node, timer: int) -> None:
        if not node.alive or (timer != node.timer and timer != -1):
            return
        if node.stalled_until > self.now:
            return
        for other_id, seen_at in list(node.seen.items()):
            node.swim.heard(other_id, min(seen_at, self.now), self.now)
        node.swim.tick(self.now)
        for other_id, seen_at in list(node.seen.items()):
            if self.now - max(seen_at, node.stalled_until) > SILENCE_S:
                self._drop(node, self._by_id[other_id], f"silent for {SILENCE_S:g} s")
        self._flush(node)

    def _flush(self, node: Node) -> None:
        for item in node.swim.outgoing():
            other = self._by_id[item.to]
            if isinstance(item, Dial):
                self.counters["dials"] += 1
                self.at(self.now + 2 * self._latency(), self._dialed, node, other)
                continue
            assert isinstance(item, Send)
            self.counters["messages"] += 1
            self.counters["news"] += len(item.message.news)
            tampered = self.tamper(node, other, item.message)
            if tampered is None:
                continue
            message = tampered
            if self.encoded:
                data = encode(message)
                self.counters["bytes"] += len(data)
                self.largest = max(self.largest, len(data))
                self._trace.update(f"{self.now:.6f} {node.name} {other.name} ".encode() + data)
                message = decode(data)
            if node.id in other.seen and self._reaches(node, other):
                self.at(self.now + self._latency(), self._deliver, other, node, message)
        while (event := node.swim.next_event()) is not None:
            subject = self._by_id[event.member.node_id]
            entry = (self.now, node.name, subject.name)
            if event.member.state is MemberState.LOST:
                self.lost.append(entry)
                self.reasons[event.member.reason] += 1
            elif event.member.state is MemberState.SUSPECT:
                self.suspected.append(entry)
        if node.alive:
            self._arm(node)

    def _dialed(self, node: Node, other: Node) -> None:
        if (
            self.can_dial
            and node.alive
            and other.stalled_until <= self.now
            and self._reaches(node, other)
        ):
            keep = len(node.seen) < self.keep
            self.connect(node, other)
            if not keep and node.seen.pop(other.id, None) is not None:
                other.seen.pop(node.id, None)
                for one, gone in ((node, other), (other, node)):
                    one.swim.disconnected(gone.id, "idle", self.now, orderly=True)

    def _deliver(self, node: Node, sender: Node, message: Message) -> None:
        if not node.alive:
            return
        if node.stalled_until > self.now:
            node.waiting.append((self._deliver, (node, sender, message)))
            return
        if sender.id in node.seen:
            node.seen[sender.id] = max(node.seen[sender.id], self.now)
        node.swim.receive(sender.id, message, self.now)
        self._flush(node)

    # Looking

    def state(self, at: Node, of: Node) -> MemberState | None:
        view = at.swim.member(of.id)
        return None if view is None else view.state

    def false_evictions(self) -> list[tuple[float, int, int]]:
        return [entry for entry in self.lost if self.nodes[entry[2]].alive]

    def digest(self) -> str:
        return self._trace.hexdigest()

    def _some(self, nodes: list[Node], count: int) -> list[Node]:
        return self.rng.sample(nodes, min(count, len(nodes)))


def signed(secret: bytes, data: bytes) -> bytes:
    return hashlib.sha512(secret + data).digest()


def quantiles(values: list[float]) -> str:
    ordered = sorted(values)
    last = len(ordered) - 1
    return "  ".join(
        f"{name} {ordered[round(last * share)]:.2f}"
        for name, share in (("min", 0.0), ("p50", 0.5), ("p99", 0.99), ("max", 1.0))
    )
