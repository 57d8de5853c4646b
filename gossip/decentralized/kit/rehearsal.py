"""A run of a few dozen cores in one process, to look at a decentralized protocol with.

Problem: a protocol without agreement shows what it is only among many nodes, with delays, losses and nodes that come
and go. Idea: one heap of timed events (deliveries, ends of training, deadlines, changes of membership) and a virtual
clock, everything drawn from one seed, and a toy model that trains in a microsecond. It is for tests of protocols;
`node.simulation` is the world with links, data sets and metrics.

The world is strict where a driver would be lenient: it raises `Nonconforming` when a core asks for a second leg while one
runs, sends what the contract does not allow, writes to a vector that it has handed out, or asks to be called at the same
moment for ever. Vectors that a core was lent are overwritten with NaN after the call, so that keeping one shows at once.
"""

from __future__ import annotations

import hashlib
import heapq
import random
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import attrs
import msgspec
import numpy as np

from gossip.decentralized.protocol import (
    MAX_MESSAGE_BYTES,
    MAX_VECTORS,
    AnyVector,
    Cancel,
    Completed,
    Context,
    DecentralizedProtocol,
    Finished,
    LocalWork,
    Send,
    TensorSpec,
    Train,
    Vector,
    Wide,
)
from gossip.rehearsal import require
from transport.errors import MalformedMessage
from transport.identity import NodeId

MAX_CALLS_AT_ONE_INSTANT: Final = 1000
"""Deadlines of one node at one moment, before it counts as a loop."""
MAX_EVENTS_PER_CALL: Final = 100_000

Trainer = Callable[[int, Train], LocalWork]
"""(node, leg) -> what the leg gave. `LocalWork.params` is a new vector."""


def node_id(index: int) -> NodeId:
    """Id of a rehearsal's node: SHA-256 of "node-<index>"."""
    return NodeId(hashlib.sha256(b"node-%d" % index).digest())


def run_id(seed: int) -> bytes:
    """Id of a rehearsal's run."""
    return hashlib.sha256(b"noded rehearsal v1\0%d" % seed).digest()


@attrs.frozen(eq=False)
class Quadratic:
    """A `Trainer`: node i walks down `|x - centres[i]|^2 / 2`, so that the run's optimum is the mean of the centres."""

    centres: Sequence[AnyVector] | Wide
    learning_rate: float = 0.1

    def __call__(self, node: int, leg: Train) -> LocalWork:
        """Plain gradient descent, in float64 inside."""
        centre = np.asarray(self.centres[node], np.float64)
        x = leg.params.astype(np.float64)
        loss = float(np.square(x - centre).mean()) / 2
        if leg.rule.kind == "gradient":
            return LocalWork(
                leg.params.copy(), leg.steps, leg.steps, loss, (x - centre).astype(np.float32)
            )
        for _ in range(leg.steps):
            gradient = x - centre
            if leg.rule.kind == "sam":
                length = float(np.linalg.norm(gradient)) + 1e-12
                gradient = x + leg.rule.rho * gradient / length - centre
            x -= self.learning_rate * gradient
        return LocalWork(x.astype(np.float32), leg.steps, float(leg.steps), loss)


def idle(_node: int, leg: Train) -> LocalWork:
    """A `Trainer` that learns nothing: what is left of a protocol is its mixing."""
    gradient = np.zeros_like(leg.params) if leg.rule.kind == "gradient" else None
    return LocalWork(leg.params.copy(), leg.steps, float(leg.steps), None, gradient)


@attrs.frozen(kw_only=True)
class Links:
    """What happens to a message on its way, the same between any two nodes."""

    delay_s: tuple[float, float] = (0.01, 0.05)
    """Uniform between these; messages overtake each other."""
    loss: float = 0.0
    """Share of the messages that never arrive."""
    noticed: float = 0.0
    """Share of the lost ones that the sender is told about (`undelivered`)."""
    duplicates: float = 0.0
    """Share of the messages that arrive twice. No driver does this; for what claims to be proof against it."""


@attrs.define(eq=False)
class Node:
    """One node of the world and what it has shown so far."""

    index: int
    id: NodeId
    core: DecentralizedProtocol | None = None
    """None while it is not there."""
    started: bool = False
    life: int = 0
    """Counts starts; what was on its way to or from an earlier life is lost."""
    leg: int = 0
    leg_end: float | None = None
    """When the leg that runs now will be over."""
    tick_at: float | None = None
    instant: tuple[float, int] = (-1.0, 0)
    completed: list[tuple[float, int, int]] = attrs.field(factory=list)
    """(time, round, members) of every `Completed`."""
    checkpoint: tuple[int, Vector] | None = None
    """Round and model of the last `Completed`."""
    finished: bool = False
    others: tuple[NodeId, ...] = ()
    """Members it was told last."""

    @property
    def round(self) -> int:
        """Of its last `Completed`; 0 before."""
        return self.completed[-1][1] if self.completed else 0


class World:
    """Nodes 0..count-1 of one run. Nothing happens until `start` and `run`.

    Args:
        protocol: the class under test.
        count: nodes that there can be; those that `start` does not name are started by `join`.
        trainer: what a leg of training does (`idle`, `Quadratic` or one's own).
        settings: raw, as in a run's manifest.
        numel: length of the model; one tensor covers it all unless `tensors` says otherwise.
        initial: each node's parameters at first; by default one seeded vector for all.
        step_s: virtual seconds of one local step of a node.
        notice_s: after this time the others are told that a node came or went.
    """

    def __init__(
        self,
        protocol: type[DecentralizedProtocol],
        count: int,
        trainer: Trainer = idle,
        *,
        settings: Mapping[str, Any] | None = None,
        seed: int = 0,
        every: int = 1,
        rounds: int = 0,
        numel: int = 8,
        tensors: tuple[TensorSpec, ...] | None = None,
        initial: Callable[[int], Vector] | None = None,
        links: Links | None = None,
        step_s: Callable[[int], float] = lambda _node: 0.1,
        notice_s: float = 0.5,
    ) -> None:
        self.protocol, self.trainer, self.seed = protocol, trainer, seed
        self.settings: msgspec.Struct = protocol.parse_settings(dict(settings or {}))
        self.every, self.rounds, self.numel = every, rounds, numel
        self.tensors = tensors or (TensorSpec("weight", 0, (numel,)),)
        self.links = links or Links()
        self.step_s, self.notice_s = step_s, notice_s
        self.initial = initial or self._common_start
        self.now = 0.0
        self.nodes = [Node(index, node_id(index)) for index in range(count)]
        self.index = {node.id: node.index for node in self.nodes}
        self.cut: set[tuple[int, int]] = set()
        """Pairs (lower, higher) that do not reach each other."""
        self.impatient = False
        """Call `tick` with every other input as well, due or not."""
        self.sent = 0
        self.bytes_sent = 0
        self.models_sent = 0
        """Messages with at least one vector."""
        self.lost = 0
        self.on_event: Callable[[int, Any, float], None] = lambda _node, _event, _now: None
        """Hears every event of every core, as it is emitted."""
        self._rng = random.Random(seed)
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = 0
        self._trace = hashlib.sha256()

    # ---- what a test does --------------------------------------------------------------------

    def start(self, nodes: Sequence[int] | None = None) -> None:
        """Start these nodes (default: all) now, each knowing of all the others."""
        chosen = range(len(self.nodes)) if nodes is None else nodes
        for index in chosen:
            self._create(self.nodes[index])
        for index in chosen:
            self._begin(self.nodes[index], self.initial(index), 0)

    def join(self, index: int) -> None:
        """A node that is not there starts from its initial parameters."""
        self._create(self.nodes[index])
        self._begin(self.nodes[index], self.initial(index), 0)
        self._notify_all()

    def restart(self, index: int) -> None:
        """A node that is not there starts from its last checkpoint."""
        node = self.nodes[index]
        round_, params = node.checkpoint or (0, self.initial(index))
        self._create(node)
        self._begin(node, params.copy(), round_)
        self._notify_all()

    def crash(self, index: int) -> None:
        """A node is gone at once; the others learn of it after `notice_s`."""
        self._end(self.nodes[index])

    def leave(self, index: int) -> None:
        """A node leaves in good order."""
        node = self.nodes[index]
        self._call(node, "leave", lambda core: core.leave(self.now))
        self._end(node)

    def inject(
        self, index: int, sender: NodeId, message: bytes, vectors: Sequence[AnyVector] = ()
    ) -> bool:
        """Hand a node a message that nobody sent; False if it refuses it (MalformedMessage).

        Raises:
            Nonconforming: it refuses it, but asks for something all the same or has changed its model.
        """
        node = self.nodes[index]
        core = node.core
        require(core is not None, f"node {index} is not there")
        assert core is not None
        before = core.model.tobytes() if node.started else b""
        copies = [vector.copy() for vector in vectors]
        refused = False

        def receive(core: DecentralizedProtocol) -> None:
            nonlocal refused
            try:
                core.receive(sender, message, copies, self.now)
            except MalformedMessage:
                refused = True
                require(core.next_event() is None, "a refused message leads to an event")
                require(
                    not node.started or core.model.tobytes() == before,
                    "a refused message changes the model",
                )
            for copy in copies:
                copy.fill(np.nan)

        self._call(node, "inject", receive)
        return not refused

    def report_loss(self, index: int, to: NodeId, key: int) -> None:
        """Tell a node that a message did not arrive, whether it was sent or not."""
        self._call(
            self.nodes[index], "undelivered", lambda core: core.undelivered(to, key, self.now)
        )

    def part(self, left: Sequence[int], right: Sequence[int]) -> None:
        """No message crosses between these two groups any more."""
        self.cut |= {(min(a, b), max(a, b)) for a in left for b in right}
        self._notify_all()

    def heal(self) -> None:
        """All nodes reach each other again."""
        self.cut.clear()
        self._notify_all()

    def at(self, time: float, action: Callable[[], None]) -> None:
        """Do something at a moment of virtual time."""
        self._push(time, action)

    def run(self, until: float, *, stop: Callable[[], bool] = lambda: False) -> None:
        """Let time pass up to `until`, or until `stop` holds after an event."""
        while self._heap and self._heap[0][0] <= until:
            self.now, _, action = heapq.heappop(self._heap)
            action()
            if stop():
                return
        self.now = max(self.now, until)

    def run_rounds(self, rounds: int, *, limit_s: float = 10_000.0) -> None:
        """Let time pass until every node that is there has completed this many rounds.

        Raises:
            Nonconforming: they have not within `limit_s` of virtual time.
        """
        self.run(self.now + limit_s, stop=lambda: all(node.round >= rounds for node in self.alive))
        slow = {node.index: node.round for node in self.alive if node.round < rounds}
        require(not slow, f"after {limit_s} s these nodes have not reached round {rounds}: {slow}")

    @property
    def alive(self) -> list[Node]:
        """The nodes that are there, by index."""
        return [node for node in self.nodes if node.core is not None]

    def models(self) -> list[Vector]:
        """Copies of the models of the nodes that are there, by index."""
        return [node.core.model.copy() for node in self.nodes if node.core is not None]

    def fingerprint(self) -> str:
        """Digest of everything the cores have emitted and when; equal runs give equal ones."""
        digest = self._trace.copy()
        for model in self.models():
            digest.update(model.tobytes())
        return digest.hexdigest()

    # ---- nodes that come and go --------------------------------------------------------------

    def _common_start(self, _index: int) -> Vector:
        return np.random.default_rng(self.seed).standard_normal(self.numel).astype(np.float32)

    def _create(self, node: Node) -> None:
        require(node.core is None, f"node {node.index} is there already")
        node.life += 1
        node.leg += 1
        node.leg_end, node.tick_at, node.others = None, None, ()
        node.started, node.finished = False, False
        node.core = self.protocol(self.settings, self.context(node.index))

    def context(self, index: int) -> Context:
        """What a node's core is made with."""
        node = self.nodes[index]
        return Context(
            me=node.id,
            run=run_id(self.seed),
            tensors=self.tensors,
            numel=self.numel,
            rng=random.Random(f"{self.seed} {index} {node.life}"),
            every=self.every,
            rounds=self.rounds,
        )

    def _begin(self, node: Node, params: Vector, round_: int) -> None:
        self._tell_members(node, first=True)

        def begin(core: DecentralizedProtocol) -> None:
            core.start(params, self.now, round_=round_)
            params.fill(np.nan)

        self._call(node, "start", begin)
        node.started = True

    def _end(self, node: Node) -> None:
        require(node.core is not None, f"node {node.index} is not there")
        node.core = None
        self._notify_all()

    def _notify_all(self) -> None:
        def notify() -> None:
            for node in self.nodes:
                self._tell_members(node)

        self._push(self.now + self.notice_s, notify)

    def _tell_members(self, node: Node, *, first: bool = False) -> None:
        others = tuple(
            sorted(
                other.id
                for other in self.alive
                if other is not node and self._reaches(node.index, other.index)
            )
        )
        if node.core is not None and (first or others != node.others):
            node.others = others
            self._call(node, "members", lambda core: core.members(others, self.now))

    def _reaches(self, one: int, other: int) -> bool:
        return (min(one, other), max(one, other)) not in self.cut

    # ---- the driver --------------------------------------------------------------------------

    def _push(self, time: float, action: Callable[[], None]) -> None:
        self._sequence += 1
        heapq.heappush(self._heap, (time, self._sequence, action))

    def _call(self, node: Node, what: str, call: Callable[[DecentralizedProtocol], None]) -> None:
        """One input of a core, and everything it wants done after it."""
        core = node.core
        if core is None:
            return
        self._note(f"{self.now!r} {node.index} {what}".encode())
        if self.impatient and node.started:
            core.tick(self.now)
        call(core)
        for _ in range(MAX_EVENTS_PER_CALL):
            event = core.next_event()
            if event is None:
                break
            self.on_event(node.index, event, self.now)
            self._do(node, event)
        else:
            require(False, f"node {node.index}: events after {what} do not come to an end")
        self._arm(node, core)

    def _arm(self, node: Node, core: DecentralizedProtocol) -> None:
        deadline = core.next_deadline()
        if deadline is None:
            node.tick_at = None
            return
        time, life = max(deadline, self.now), node.life
        if node.tick_at == time:
            return
        node.tick_at = time

        def due() -> None:
            if node.life != life or node.tick_at != time or node.core is None:
                return
            node.tick_at = None
            when, calls = node.instant
            node.instant = (time, calls + 1 if when == time else 1)
            require(
                node.instant[1] < MAX_CALLS_AT_ONE_INSTANT,
                f"node {node.index} wants to be called at {time} again and again",
            )
            self._call(node, "tick", lambda core: core.tick(self.now))

        self._push(time, due)

    def _do(self, node: Node, event: object) -> None:
        match event:
            case Train():
                self._train(node, event)
            case Cancel():
                require(node.leg_end is not None, f"node {node.index} cancels, but no leg runs")
                node.leg += 1
                node.leg_end = None
                self._note(b"cancel")
            case Send():
                self._send(node, event)
            case Completed():
                require(
                    not node.completed or event.round > node.round or node.life > 1,
                    f"node {node.index} completes round {event.round} after {node.round}",
                )
                self._check_vector(event.model)
                node.completed.append((self.now, event.round, event.members))
                node.checkpoint = (event.round, event.model.copy())
                self._note(b"completed %d %d" % (event.round, event.members), event.model)
            case Finished():
                require(not node.finished, f"node {node.index} finishes twice")
                node.finished = True
                self._note(b"finished")
            case _:
                require(False, f"node {node.index} emits {event!r}")

    def _train(self, node: Node, leg: Train) -> None:
        require(node.leg_end is None, f"node {node.index} trains while it trains")
        require(not node.finished, f"node {node.index} trains after it has finished")
        require(leg.steps >= 1, f"node {node.index} asks for {leg.steps} steps")
        self._check_vector(leg.params)
        self._note(
            b"train %d %s %r" % (leg.steps, leg.rule.kind.encode(), leg.rule.rho), leg.params
        )
        checksum = zlib.crc32(leg.params.tobytes())
        node.leg += 1
        number, life = node.leg, node.life
        node.leg_end = self.now + leg.steps * self.step_s(node.index)

        def over() -> None:
            if node.life != life or node.leg != number:
                return
            require(
                zlib.crc32(leg.params.tobytes()) == checksum,
                f"node {node.index} wrote to the parameters of a leg that was running",
            )
            node.leg_end = None
            work = self.trainer(node.index, leg)

            def trained(core: DecentralizedProtocol) -> None:
                core.trained(work, self.now)
                for vector in (work.params, work.gradient):
                    if vector is not None:
                        vector.fill(np.nan)

            self._call(node, "trained", trained)

        self._push(node.leg_end, over)

    def _send(self, node: Node, send: Send) -> None:
        require(send.to != node.id, f"node {node.index} sends to itself")
        require(len(send.message) <= MAX_MESSAGE_BYTES, f"a message of {len(send.message)} bytes")
        require(len(send.vectors) <= MAX_VECTORS, f"{len(send.vectors)} vectors in one message")
        for vector in send.vectors:
            self._check_vector(vector, whole=False)
        self._note(b"send %s %d " % (send.to, send.key) + send.message, *send.vectors)
        self.sent += 1
        self.models_sent += bool(send.vectors)
        self.bytes_sent += len(send.message) + sum(vector.nbytes for vector in send.vectors)
        receiver = self.nodes[self.index[send.to]] if send.to in self.index else None
        lives, life = receiver.life if receiver is not None else 0, node.life
        checksums = [zlib.crc32(vector.tobytes()) for vector in send.vectors]
        lost = self._rng.random() < self.links.loss
        noticed = self._rng.random() < self.links.noticed

        def undelivered() -> None:
            if node.life == life:
                self._call(
                    node,
                    "undelivered",
                    lambda core: core.undelivered(send.to, send.key, self.now),
                )

        def arrive() -> None:
            if (
                receiver is None
                or receiver.core is None
                or receiver.life != lives
                or not self._reaches(node.index, receiver.index)
            ):
                self._push(self.now, undelivered)
                return
            require(
                checksums == [zlib.crc32(vector.tobytes()) for vector in send.vectors],
                f"node {node.index} wrote to a vector that it had sent",
            )
            copies = [vector.copy() for vector in send.vectors]

            def receive(core: DecentralizedProtocol) -> None:
                core.receive(node.id, send.message, copies, self.now)
                for copy in copies:
                    copy.fill(np.nan)

            self._call(receiver, f"receive {node.index}", receive)

        if lost:
            self.lost += 1
            if noticed:
                self._push(self.now + self._delay(), undelivered)
            return
        self._push(self.now + self._delay(), arrive)
        if self._rng.random() < self.links.duplicates:
            self._push(self.now + self._delay(), arrive)

    def _delay(self) -> float:
        return self._rng.uniform(*self.links.delay_s)

    def _check_vector(self, vector: AnyVector, *, whole: bool = True) -> None:
        require(
            vector.ndim == 1
            and vector.flags.c_contiguous
            and vector.dtype in (np.float32, np.float64),
            f"a vector of {vector.dtype}, shape {vector.shape}",
        )
        require(vector.size == self.numel or not whole, f"a model of {vector.size} values")
        require(vector.size <= self.numel, f"a vector longer than the model: {vector.size} values")
        require(bool(np.isfinite(vector).all()), "a vector that is not finite leaves the core")

    def _note(self, what: bytes, *vectors: AnyVector) -> None:
        self._trace.update(len(what).to_bytes(4, "big") + what)
        for vector in vectors:
            self._trace.update(vector.tobytes())
