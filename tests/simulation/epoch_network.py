"""The network of the simulated swarm: one seeded event heap, sessions between members, and every fault that the transport can show.

* a **session** per connected pair: what was sent in one session never arrives in another, each end
  learns of its end at a moment of its own, and a new one is made only when both have;
* **crash** in two kinds: the process dies (what it wrote still arrives, then the end of the stream) or
  the host does (what was on its way is lost); the node comes back with what its disk holds;
* **freeze**: nothing happens inside, messages pile up, and the others give up after `SILENCE_S`;
* **cut**: messages wait, as TCP's do, until the cut heals or an end gives up.

What members do with each other over it is in `epoch_swarm.Swarm`.
"""

from __future__ import annotations

import heapq
import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable

import attrs

from gossip.collective.agreement.messages import Message, decode_message_untrusted, encode
from tests.simulation.epoch_node import Node
from transport.identity import NodeId

SILENCE_S = 4.0
"""The transport gives up a peer it hears nothing of for so long (about)."""


@attrs.define(eq=False)
class Session:
    """One connection between two nodes."""

    pair: tuple[NodeId, NodeId]
    open_at: set[NodeId] = attrs.field(factory=set)
    broken: bool = False
    """Nothing new goes in."""
    lost: bool = False
    """Nothing comes out any more either."""
    held: list[tuple[NodeId, NodeId, bytes]] = attrs.field(factory=list)
    last_arrival: dict[NodeId, float] = attrs.field(factory=dict)


class EpochNetwork(ABC):
    """Members, time, and what lies between the members.

    Args:
        nodes: all there will ever be.
        seed: of delays, and of whatever else is drawn.
    """

    def __init__(self, nodes: dict[NodeId, Node], seed: object) -> None:
        self.nodes = nodes
        self.order = sorted(nodes)
        self.seed = seed
        self.rng = random.Random(f"swarm/{seed}")
        self.now = 0.0
        self.heap: list[tuple[float, int, Callable[[], None]]] = []
        self.count = 0
        self.delivered = 0
        self.sessions: dict[frozenset[NodeId], Session] = {}
        self.cuts: set[frozenset[NodeId]] = set()
        self.markers: Counter[str] = Counter()
        self.tamper: Callable[[NodeId, NodeId, Message], list[Message]] = lambda _s, _t, m: [m]
        """What a hostile node sends instead of what its machine wanted to send."""
        self.on_message: Callable[[NodeId, NodeId, Message], None] = lambda *_: None

    @abstractmethod
    def pump(self, node: Node) -> None:
        """Carry out what the node's machine has decided."""

    @abstractmethod
    def ready(self, node: Node) -> None:
        """The node has begun, or has begun anew."""

    @abstractmethod
    def calls_lost(self, node: Node) -> None:
        """The node dies with whatever it was asked to do."""

    # ---- events ------------------------------------------------------------------------------

    def at(self, when: float, action: Callable[[], None]) -> None:
        self.count += 1
        heapq.heappush(self.heap, (when, self.count, action))

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        self.at(self.now + seconds, action)

    def run(self, until: float, done: Callable[[], bool] = lambda: False) -> None:
        while self.heap and self.heap[0][0] <= until and not done():
            self.now, _, action = heapq.heappop(self.heap)
            action()
        if not done():
            self.now = until

    def awake(self, node: Node, life: int, action: Callable[[], None]) -> None:
        """Do it now, or as soon as the node is not frozen any more; never in another life."""
        if not node.alive or node.life != life:
            return
        if node.paused_until > self.now:
            self.at(node.paused_until, lambda: self.awake(node, life, action))
            return
        action()

    def later(self, node: Node, seconds: float, action: Callable[[], None]) -> None:
        life = node.life
        self.after(seconds, lambda: self.awake(node, life, action))

    # ---- connections -------------------------------------------------------------------------

    def start(self) -> None:
        for node in self.nodes.values():
            self.ready(node)
        for index, a in enumerate(self.order):
            for b in self.order[index + 1 :]:
                self.meet(a, b)

    def meet(self, a: NodeId, b: NodeId) -> None:
        """Connect the two when both can, and neither thinks it is connected still."""
        pair = frozenset((a, b))
        one, other = self.nodes[a], self.nodes[b]
        if pair in self.cuts or pair in self.sessions or not (one.alive and other.alive):
            return
        if max(one.paused_until, other.paused_until) > self.now:
            self.at(max(one.paused_until, other.paused_until) + 0.01, lambda: self.meet(a, b))
            return
        session = self.sessions[pair] = Session((a, b))
        for here, there in ((a, b), (b, a)):
            self.later(
                self.nodes[here],
                self.rng.uniform(0.0, 0.01),
                lambda here=here, there=there: self._open(session, here, there),
            )

    def _open(self, session: Session, here: NodeId, there: NodeId) -> None:
        if self.sessions.get(frozenset((here, there))) is not session or session.broken:
            return
        session.open_at.add(here)
        node = self.nodes[here]
        node.machine.peer_up(there, self.nodes[there].identity.public_key, self.now)
        self.pump(node)

    def _close_end(self, session: Session, here: NodeId, there: NodeId, reason: str) -> None:
        """The node `here` learns that its connection is gone."""
        if here not in session.open_at:
            return
        session.open_at.discard(here)
        node = self.nodes[here]
        if node.alive:
            node.machine.peer_down(there, reason, self.now)
            self.pump(node)
        self._maybe_over(session)

    def _maybe_over(self, session: Session) -> None:
        pair = frozenset(session.pair)
        if not session.open_at and self.sessions.get(pair) is session:
            del self.sessions[pair]
            a, b = session.pair
            self.after(self.rng.uniform(0.05, 0.5), lambda: self.meet(a, b))

    def break_session(self, session: Session, reason: str, ends: dict[NodeId, float]) -> None:
        """Each end in `ends` learns of it after so many seconds; nothing new goes through."""
        session.broken = True
        a, b = session.pair
        for here, there in ((a, b), (b, a)):
            if here in ends:
                node = self.nodes[here]
                self.later(
                    node,
                    ends[here],
                    lambda here=here, there=there: self._close_end(session, here, there, reason),
                )
        self._maybe_over(session)

    def _sessions_of(self, node: NodeId) -> list[tuple[NodeId, Session]]:
        found = []
        for other in self.order:
            session = self.sessions.get(frozenset((node, other)))
            if other != node and session is not None:
                found.append((other, session))
        return found

    def post(self, source: NodeId, target: NodeId, message: Message) -> None:
        session = self.sessions.get(frozenset((source, target)))
        if session is None or source not in session.open_at or session.broken:
            return
        for changed in self.tamper(source, target, message):
            data = encode(changed)
            if frozenset((source, target)) in self.cuts:
                session.held.append((source, target, data))
            else:
                self._send(session, source, target, data)

    def _send(self, session: Session, source: NodeId, target: NodeId, data: bytes) -> None:
        arrival = self.now + self.rng.uniform(0.001, 0.02)
        arrival = max(arrival, session.last_arrival.get(target, 0.0))
        session.last_arrival[target] = arrival
        node = self.nodes[target]
        life = node.life
        self.at(
            arrival,
            lambda: self.awake(node, life, lambda: self._deliver(session, source, target, data)),
        )

    def _deliver(
        self, session: Session, source: NodeId, target: NodeId, data: bytes, *, seen: bool = False
    ) -> None:
        pair = frozenset((source, target))
        node = self.nodes[target]
        if self.sessions.get(pair) is not session or session.lost:
            return
        if target not in session.open_at:
            if not session.broken:  # the other end was quicker: the driver keeps it until then
                self.later(node, 0.002, lambda: self._deliver(session, source, target, data))
            return
        if pair in self.cuts:
            session.held.append((source, target, data))
            return
        message = decode_message_untrusted(data)
        if not seen:
            self.delivered += 1
            self.markers[type(message).__name__] += 1
            self.on_message(source, target, message)  # may crash, freeze or cut anybody
            life = node.life
            self.awake(node, life, lambda: self._deliver(session, source, target, data, seen=True))
            return
        node.machine.receive(source, message, self.now)
        self.pump(node)

    # ---- faults ------------------------------------------------------------------------------

    def where(self, node: Node) -> str:
        """What the node is in the middle of, for the markers."""
        step = node.machine._former._step
        if step is not None:
            return type(step).__name__.lower()
        operation = node.machine.operation
        if operation is not None:
            return operation.state.value
        return "settling" if node.machine._settling else "idle"

    def crash(self, victim: NodeId, *, host: bool = False) -> None:
        node = self.nodes[victim]
        if not node.alive:
            return
        self.markers[f"crash {self.where(node)}"] += 1
        self.calls_lost(node)
        node.alive = False
        for other, session in self._sessions_of(victim):
            session.open_at.discard(victim)
            session.lost = host
            arrival = max(session.last_arrival.get(other, 0.0) - self.now, 0.0) + 0.0005
            told = self.rng.uniform(0.0, 0.2) if host else arrival
            self.break_session(session, "unreachable" if host else "closed", {other: told})

    def restart(self, victim: NodeId) -> None:
        node = self.nodes[victim]
        if node.alive:
            return
        node.reborn()
        self.markers["restart"] += 1
        self.ready(node)
        for other in self.order:
            if other != victim:
                self.meet(victim, other)

    def freeze(self, victim: NodeId, seconds: float) -> None:
        node = self.nodes[victim]
        if not node.alive or node.paused_until > self.now:
            return
        self.markers[f"freeze {self.where(node)}"] += 1
        node.paused_until = self.now + seconds
        for other, session in self._sessions_of(victim):
            silence = SILENCE_S * self.rng.uniform(0.9, 1.1)
            if seconds > silence:
                self.after(
                    silence,
                    lambda s=session, o=other, q=silence: (
                        self.break_session(s, "silent", {o: 0.0, victim: seconds - q + 0.005})
                        if not s.broken
                        else None
                    ),
                )

    def cut(self, pairs: Iterable[tuple[NodeId, NodeId]], seconds: float) -> None:
        """Nothing passes between these pairs for a while."""
        for a, b in pairs:
            pair = frozenset((a, b))
            if a == b or pair in self.cuts:
                continue
            self.cuts.add(pair)
            session = self.sessions.get(pair)
            if session is not None:
                for here, there in ((a, b), (b, a)):
                    self.later(
                        self.nodes[here],
                        SILENCE_S * self.rng.uniform(0.9, 1.1),
                        lambda h=here, t=there, s=session: self._gives_up(s, h, t),
                    )
            self.after(seconds, lambda a=a, b=b: self.heal(a, b))

    def _gives_up(self, session: Session, here: NodeId, there: NodeId) -> None:
        if frozenset((here, there)) in self.cuts and here in session.open_at:
            session.broken = True
            self._close_end(session, here, there, "silent")

    def isolate(self, victim: NodeId, seconds: float) -> None:
        self.markers[f"cut {self.where(self.nodes[victim])}"] += 1
        self.cut([(victim, other) for other in self.order if other != victim], seconds)

    def heal(self, a: NodeId, b: NodeId) -> None:
        pair = frozenset((a, b))
        self.cuts.discard(pair)
        session = self.sessions.get(pair)
        if session is None:
            self.meet(a, b)
            return
        if session.broken:  # one end had given up: its reset reaches the other now
            self.break_session(session, "reset", dict.fromkeys(session.pair, 0.01))
            return
        held, session.held = session.held, []
        for source, target, data in held:
            self._send(session, source, target, data)

    def heal_all(self) -> None:
        for pair in sorted(self.cuts, key=sorted):
            self.heal(*sorted(pair))
        for id_ in self.order:
            self.restart(id_)
