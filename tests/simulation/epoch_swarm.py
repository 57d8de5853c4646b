"""Epoch machines under every fault the transport can show them, on one seeded event heap.

What is modelled, beyond messages and delays:

* a **session** per connected pair: what was sent in one session never arrives in another, each end
  learns of its end at a moment of its own, and a new one is made only when both have;
* **crash** in two kinds: the process dies (what it wrote still arrives, then the end of the stream) or
  the host does (what was on its way is lost); the node comes back with what its disk holds;
* **freeze**: nothing happens inside, messages pile up, and the others give up after `SILENCE_S`;
* **cut**: messages wait, as TCP's do, until the cut heals or an end gives up;
* the **data plane**: a result arrives some time after everybody has begun; when a member leaves the
  epoch, the links of the others break.

A `Call` is what a caller of `Group.all_reduce` sees: one deadline, one outcome. With `tags`, every node also calls operations of
that many other lanes, each again and again at moments of its own; in the even ones the result needs the first member alone, as in a
broadcast, so that votes come before others have begun. With `sole` there is one caller for all of them: it calls every lane once, in an order of
its own, waits for each (and says so), and does it again. The rules checked at every step are in `Checker`.
"""

from __future__ import annotations

import functools
import hashlib
import heapq
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable

import attrs
import pytest

import gossip.collective.agreement.certificate as certificate_module
import gossip.collective.agreement.former as former_module
import gossip.collective.agreement.lineage as lineage_module
import gossip.collective.agreement.operation as operation_module
from gossip.collective.agreement.certificate import LANES, Certificate, Epoch
from gossip.collective.agreement.deadlock import Wait, circle_through
from gossip.collective.agreement.epoch import EpochMachine
from gossip.collective.agreement.epoch_events import (
    EpochEntered,
    EpochLeft,
    EpochSettings,
    MemberAccused,
    MembersWaiting,
    OperationAborted,
    OperationCertified,
)
from gossip.collective.agreement.lineage import Memory
from gossip.collective.agreement.messages import Message, decode_message_untrusted, encode
from gossip.collective.agreement.operation import Operation, OperationState
from transport.identity import Identity, NodeId, verify

START = hashlib.sha256(b"start").digest()
RUN = b"r" * 32
SILENCE_S = 4.0
"""The transport gives up a peer it hears nothing of for so long (about)."""

CALL_S = 30.0
GRACE_S = 2.0
"""Every call ends by its deadline and so much more."""


@functools.lru_cache(maxsize=200_000)
def cached_verify(public_key: bytes, signature: bytes, statement: bytes) -> bool:
    """All of a simulation's members check the same signatures; one check is enough."""
    return verify(public_key, signature, statement)


@pytest.fixture(autouse=True)
def fast_signatures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checking is a pure function: remembering its answers changes nothing but the time."""
    use_cached_verify(lambda module, value: monkeypatch.setattr(module, "verify", value))


def use_cached_verify(replace: Callable[[object, object], None]) -> None:
    for module in (certificate_module, former_module, lineage_module, operation_module):
        replace(module, cached_verify)


@functools.lru_cache(maxsize=64)
def identities(count: int) -> tuple[Identity, ...]:
    return tuple(
        Identity.from_seed(hashlib.sha256(f"swarm/{index}".encode()).digest())
        for index in range(count)
    )


@attrs.define
class Call:
    """One collective as its caller sees it."""

    round: int
    deadline: float
    outcome: str = ""
    lane: int = 0
    signed: list[Operation] = attrs.field(factory=list)
    """Attempts whose result this node has signed."""


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


@attrs.define(eq=False)
class Disk:
    """What a node finds when it starts again."""

    round: int = 0
    state: bytes = START
    memory: Memory | None = None


class Node:
    def __init__(self, swarm: Swarm, identity: Identity) -> None:
        self.swarm = swarm
        self.identity = identity
        self.id = identity.node_id
        self.alive = True
        self.life = 0
        self.paused_until = 0.0
        self.disk = Disk()
        self.round, self.state = 0, START
        self.call: Call | None = None
        self.tagged: dict[int, Call] = {}
        self.order: list[int] = []
        """Lanes in which a sole caller waits, one after another."""
        self.applying = False
        self.epoch: Epoch | None = None
        self.machine = self._new_machine()

    def _new_machine(self) -> EpochMachine:
        return EpochMachine(
            RUN,
            self.identity,
            rng=random.Random(f"{self.swarm.seed}/{self.id.hex()}/{self.life}"),
            settings=self.swarm.settings,
            memory=self.disk.memory,
        )

    def remember(self) -> None:
        """Before anything is sent; what is known of operations goes to the disk with a checkpoint."""
        new, old = self.machine.memory, self.disk.memory
        if new is not None and (old is None or new.lasting != old.lasting):
            self.disk.memory = new

    def save(self) -> None:
        """A checkpoint."""
        self.disk = Disk(self.round, self.state, self.machine.memory)

    def reborn(self) -> None:
        """A new process that starts from the disk."""
        self.life += 1
        self.round, self.state = self.disk.round, self.disk.state
        self.call, self.applying, self.epoch = None, False, None
        self.tagged, self.order = {}, []
        self.paused_until = 0.0
        self.machine = self._new_machine()
        self.alive = True


class Swarm:
    def __init__(
        self,
        count: int,
        seed: object,
        *,
        settings: EpochSettings | None = None,
        train: tuple[float, float] = (0.02, 0.15),
        wanted_rounds: int = 1 << 30,
        tags: int = 0,
        sole: bool = False,
    ) -> None:
        self.seed = seed
        self.rng = random.Random(f"swarm/{seed}")
        self.settings = settings or EpochSettings(min_members=count)
        self.train = train
        self.wanted_rounds = wanted_rounds
        self.tags = tags
        self.sole = sole
        self.tag_pause = (0.0, 0.2)
        self.now = 0.0
        self.heap: list[tuple[float, int, Callable[[], None]]] = []
        self.count = 0
        self.delivered = 0
        self.calm_s = 1.0
        """Mean time between two faults of a random run."""
        self.quiet = False
        """No more faults."""
        self.nodes = {i.node_id: Node(self, i) for i in identities(count)}
        self.order = sorted(self.nodes)
        self.sessions: dict[frozenset[NodeId], Session] = {}
        self.cuts: set[frozenset[NodeId]] = set()
        self.broadcast: set[tuple[bytes, int, int]] = set()
        """Operations of even lanes whose values have left the first member."""
        self.checker = Checker(quorum=self.settings.quorum)
        self.markers: Counter[str] = Counter()
        self.tamper: Callable[[NodeId, NodeId, Message], list[Message]] = lambda _s, _t, m: [m]
        """What a hostile node sends instead of what its machine wanted to send."""
        self.accusations: Counter[NodeId] | None = None
        """By accused; None in a world without liars, where any accusation is wrong."""
        self.on_message: Callable[[NodeId, NodeId, Message], None] = lambda *_: None

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
        self._call_ends(node, "crashed")
        for call in node.tagged.values():
            call.outcome = "crashed"
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

    # ---- the driver --------------------------------------------------------------------------

    def ready(self, node: Node) -> None:
        node.machine.set_ready(node.round, node.state, self.now)
        if not node.tagged:
            self.calls_tags(node)
        self.pump(node)

    def pump(self, node: Node) -> None:
        machine = node.machine
        while (event := machine.next_event()) is not None:
            self.note(node, event)
        node.remember()
        for target, message in machine.outgoing():
            self.post(node.id, target, message)
        deadline = machine.next_deadline()
        if deadline is not None:
            self.later(node, max(0.0, deadline - self.now), lambda: self.tick(node))
        self.try_begin(node)

    def tick(self, node: Node) -> None:
        deadline = node.machine.next_deadline()
        if deadline is not None and deadline <= self.now:
            node.machine.tick(self.now)
            self.pump(node)

    def note(self, node: Node, event: object) -> None:
        match event:
            case EpochEntered(epoch, behind, holders):
                self.checker.entered(node.id, epoch)
                node.epoch = epoch
                self.markers["entered"] += 1
                if behind:
                    self.markers["behind"] += 1
                    self.later(node, 0.02, lambda: self.fetch(node, epoch, holders))
                elif node.call is None:
                    self.train_then_call(node)
            case EpochLeft():
                if node.epoch is not None:
                    self.break_data_plane(node, node.epoch)
                node.epoch = None
            case OperationCertified(operation, certificate) if operation.lane:
                self.checker.certified(operation, certificate)
                self.tag_certified(node, operation)
            case OperationCertified(operation, certificate):
                self.checker.certified(operation, certificate)
                self.markers["certified"] += 1
                if operation.state is OperationState.ABORTED:
                    self.markers["certified late"] += 1
                self._call_ends(node, "certified")
                node.applying = True
                self.later(node, 0.004, lambda: self.applied(node, certificate))
            case OperationAborted(operation, _, mismatch):
                self.markers["aborted"] += 1
                if mismatch:
                    self.markers["mismatch"] += 1
                    self.checker.mismatch(operation)
                    self.tag_mismatch(node, operation)
            case MembersWaiting():
                self.markers["waiting"] += 1
            case MemberAccused(accused, reason):
                self.accused(node, accused, reason)

    def accused(self, node: Node, accused: NodeId, reason: str) -> None:
        if self.accusations is not None:
            self.accusations[accused] += 1
            return
        raise AssertionError(f"{node.id.short} accuses {accused.short}: {reason}")

    def applied(self, node: Node, certificate: Certificate) -> None:
        node.round += 1
        node.state = hashlib.sha256(node.state + certificate.root).digest()
        node.save()
        node.applying = False
        self.train_then_call(node)
        self.ready(node)

    def fetch(self, node: Node, epoch: Epoch, holders: tuple[NodeId, ...]) -> None:
        """From a holder that still stands there; else once more a little later."""
        if node.machine.epoch is not epoch:
            return
        if (node.round, node.state) == (epoch.round, epoch.state):
            return
        for holder in holders:
            there = self.nodes[holder]
            session = self.sessions.get(frozenset((node.id, holder)))
            if (
                holder != node.id
                and there.alive
                and session is not None
                and not session.broken
                and frozenset((node.id, holder)) not in self.cuts
                and there.paused_until <= self.now
                and (there.round, there.state) == (epoch.round, epoch.state)
            ):
                self._call_ends(node, "overtaken")
                node.round, node.state = epoch.round, epoch.state
                node.save()
                self.markers["synced"] += 1
                self.train_then_call(node)
                self.ready(node)
                return
        self.markers["holder gone"] += 1
        self.later(node, 0.2, lambda: self.fetch(node, epoch, holders))

    # ---- operations --------------------------------------------------------------------------

    def train_then_call(self, node: Node) -> None:
        if node.round < self.wanted_rounds:
            round_ = node.round
            self.later(node, self.rng.uniform(*self.train), lambda: self.calls(node, round_))

    def calls(self, node: Node, round_: int) -> None:
        if node.call is not None or node.round != round_ or node.applying:
            return
        call = node.call = Call(round_, self.now + CALL_S)
        self.later(node, CALL_S, lambda: self.expired(node, call))
        life = node.life

        def audit() -> None:
            if node.paused_until > call.deadline and node.paused_until + GRACE_S > self.now:
                self.at(node.paused_until + GRACE_S, audit)  # frozen then: counted from waking
                return
            assert node.life != life or call.outcome, "a call outlived its deadline"

        self.after(CALL_S + GRACE_S, audit)
        self.try_begin(node)

    def expired(self, node: Node, call: Call) -> None:
        if node.call is not call:
            return
        operation = node.machine.operation
        signed = (operation is not None and operation.root is not None) or (
            node.machine._standing.unsettled is not None
        )
        node.machine.fail("given up by its caller", self.now)
        self._call_ends(node, "indeterminate" if signed else "no certificate in time")
        self.pump(node)
        self.train_then_call(node)

    def _call_ends(self, node: Node, outcome: str) -> None:
        call, node.call = node.call, None
        if call is not None:
            assert not call.outcome, "one call, two outcomes"
            call.outcome = outcome
            self.markers[f"call {outcome}"] += 1

    # ---- operations of other lanes -------------------------------------------------------------

    def calls_tags(self, node: Node) -> None:
        """All lanes, in an order of this node's own; a sole caller then waits for them, again in its own order."""
        lanes = list(range(1, self.tags + 1))
        if self.sole:
            self.rng.shuffle(lanes)
            node.order = self.rng.sample(lanes, len(lanes))
            node.tagged = {}
        for lane in lanes:
            self.calls_tag(node, lane)

    def waits_on(self, node: Node) -> None:
        """A sole caller says what it waits for, as soon as that has begun."""
        while node.order and node.tagged[node.order[0]].outcome:
            del node.order[0]
        lane = node.order[0] if node.order else 0
        operation = node.machine._lanes.operation(lane) if lane else None
        if operation is None:
            return
        begun = {running.lane for running in node.machine.operations}
        queued = {
            number: 1
            for number, call in node.tagged.items()
            if not call.outcome and number not in begun
        }
        node.machine.wait_for(lane, queued, self.now)
        lanes = node.machine._lanes._lanes
        called = tuple(lanes[n].sequence + queued.get(n, 0) for n in range(LANES))
        self.checker.waiting(operation, node.id, called)

    def tag_mismatch(self, node: Node, operation: Operation) -> None:
        call = node.tagged[operation.lane]
        if not call.outcome and node.machine._lanes.operation(operation.lane) is None:
            node.machine.forget_unsettled(operation.lane)
            self._tag_ends(node, call, "mismatch")

    def calls_tag(self, node: Node, lane: int) -> None:
        call = node.tagged[lane] = Call(0, self.now + CALL_S, lane=lane)
        self.later(node, CALL_S, lambda: self.tag_expired(node, call))
        life = node.life

        def audit() -> None:
            if node.paused_until > call.deadline and node.paused_until + GRACE_S > self.now:
                self.at(node.paused_until + GRACE_S, audit)
                return
            assert node.life != life or call.outcome, "a call of a tag outlived its deadline"

        self.after(CALL_S + GRACE_S, audit)

    def tag_expired(self, node: Node, call: Call) -> None:
        if call.outcome:
            return
        node.machine.fail("given up by its caller", self.now, lane=call.lane)
        node.machine.forget_unsettled(call.lane)
        self._tag_ends(node, call, "no certificate in time")
        self.pump(node)

    def tag_certified(self, node: Node, operation: Operation) -> None:
        call = node.tagged[operation.lane]
        self.markers["tag certified"] += 1
        if operation.state is OperationState.ABORTED:
            self.markers["tag settled"] += 1
            assert operation in call.signed, "settled for another call"
        self.checker.goes_on(operation, node.id)
        self._tag_ends(node, call, "certified")

    def _tag_ends(self, node: Node, call: Call, outcome: str) -> None:
        assert not call.outcome, "one call of a tag, two outcomes"
        call.outcome = outcome
        self.markers[f"tag call {outcome}"] += 1

        def again() -> None:
            if node.tagged.get(call.lane) is not call:
                return
            if self.sole:
                self.calls_tags(node)
            else:
                self.calls_tag(node, call.lane)
            self.try_begin(node)

        if self.sole:
            if node.order[0] == call.lane:
                self.waits_on(node)
            if node.order:
                return  # it waits for another one, and calls nothing more
        self.later(node, self.rng.uniform(*self.tag_pause), again)

    def begin_tags(self, node: Node) -> bool:
        began = False
        for lane, call in node.tagged.items():
            if call.outcome or not node.machine.may_begin(lane):
                continue
            if call.signed:
                self._not_redone_for_nothing(node, call)
            operation = node.machine.begin(b"%032d" % lane, self.now, lane)
            self.data_plane(operation)
            if node.order and lane == node.order[0]:
                self.waits_on(node)
            began = True
        return began

    def _not_redone_for_nothing(self, node: Node, call: Call) -> None:
        """Nobody in the present epoch holds the certificate of what this node had signed last.

        Of attempts before that it holds no result any more: the later one has overwritten it.
        """
        self.markers["tag redone"] += 1
        present = node.machine.epoch
        for signed in call.signed[-1:] if self.accusations is None else ():
            for member in {*present.members} & {*signed.epoch.members} - {node.id}:
                there = self.nodes[member].machine
                held = there.certificate(signed.epoch_id, signed.lane, signed.sequence)
                assert held is None, "done again what a member of the epoch holds a certificate for"

    # ---- operations --------------------------------------------------------------------------

    def try_begin(self, node: Node) -> None:
        if not node.alive or node.paused_until > self.now:
            return
        if node.tagged and self.begin_tags(node):
            self.pump(node)
        if node.call is None or node.applying or not node.machine.can_begin:
            return
        descriptor = hashlib.sha256(b"op%d" % node.round + node.state).digest()
        operation = node.machine.begin(descriptor, self.now)
        self.checker.begins(operation.epoch, operation.sequence, node.round, node.state)
        self.pump(node)
        self.data_plane(operation)

    def running(self, member: NodeId, like: Operation) -> Operation | None:
        """That member's side of an operation, if it runs there."""
        there = self.nodes[member]
        if there.alive:
            for theirs in there.machine.operations:
                if (theirs.epoch_id, theirs.lane, theirs.sequence) == (
                    like.epoch_id,
                    like.lane,
                    like.sequence,
                ):
                    return theirs
        return None

    def data_plane(self, operation: Operation) -> None:
        """Once every member that counts has begun it, each that has gets the result after a delay of its own."""
        members = operation.epoch.members
        needed = members[:1] if operation.lane and operation.lane % 2 == 0 else members
        if (
            any(self.running(member, operation) is None for member in needed)
            and (
                operation.epoch_id,
                operation.lane,
                operation.sequence,
            )
            not in self.broadcast
        ):
            return
        if needed != members:
            self.broadcast.add((operation.epoch_id, operation.lane, operation.sequence))
        digest = hashlib.sha256(
            operation.epoch_id + b"%d/%d" % (operation.lane, operation.sequence)
        )
        for member in members:
            digest.update(member)
        root = digest.digest()
        for member in members:
            theirs = self.running(member, operation)
            if theirs is not None and theirs.state is OperationState.RUNNING:
                self.later(
                    self.nodes[member],
                    self.rng.uniform(0.001, 0.04),
                    lambda there=self.nodes[member], theirs=theirs: self.got(there, theirs, root),
                )

    def got(self, node: Node, operation: Operation, root: bytes) -> None:
        if (
            node.machine._lanes.operation(operation.lane) is operation
            and operation.state is OperationState.RUNNING
        ):
            key = (operation.epoch_id, operation.lane, operation.sequence)
            self.checker.voted.setdefault(key, self.now)
            if operation.lane:
                node.tagged[operation.lane].signed.append(operation)
            node.machine.result(root, self.now, operation.lane)
            self.pump(node)

    def break_data_plane(self, node: Node, previous: Epoch) -> None:
        """This node closes its links: its neighbours notice, if they still need them."""
        for member in previous.members:
            there = self.nodes[member]
            for theirs in there.machine.operations if member != node.id else ():
                if theirs.epoch_id == previous.id:
                    self.later(
                        there,
                        self.rng.uniform(0.001, 0.03),
                        lambda t=there, o=theirs: self.link_lost(t, o),
                    )

    def link_lost(self, node: Node, operation: Operation) -> None:
        if (
            node.machine._lanes.operation(operation.lane) is operation
            and operation.state is OperationState.RUNNING
        ):
            self.markers["link lost"] += 1
            node.machine.fail("the ring's link was closed", self.now, lane=operation.lane)
            self.pump(node)

    # ---- what tests ask ----------------------------------------------------------------------

    def rounds(self) -> list[int]:
        return [self.nodes[id_].round for id_ in self.order if self.nodes[id_].alive]

    def all_reach(self, rounds: int) -> bool:
        alive = self.rounds()
        return bool(alive) and min(alive) >= rounds

    def recovers(self, more: int = 3, within_s: float = 60.0) -> None:
        """End all faults; everybody must make progress again, on one state."""
        self.quiet = True
        self.run(max([self.now, *(node.paused_until for node in self.nodes.values())]))
        self.heal_all()
        target = max(self.rounds()) + more
        self.run(self.now + within_s, lambda: self.all_reach(target))
        assert self.all_reach(target), (self.seed, self.rounds(), self.markers)
        by_round = defaultdict(set)
        for node in self.nodes.values():
            by_round[node.round].add(node.state)
        assert all(len(states) == 1 for states in by_round.values()), "members diverged"
