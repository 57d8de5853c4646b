"""A world of DHT nodes on one event heap: seeded latency, loss, churn, liars. No event loop, no clock, no real keys.

Signatures are a keyed hash that only the world can compute: as unforgeable inside the world as Ed25519 is outside, and a
hundred times faster. The trace (every delivery, with its time) is hashed; equal seeds must give equal digests.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import attrs
import msgspec

from dht.contact import Contact
from dht.messages import (
    Answer,
    FindNode,
    FindRecords,
    Hint,
    Nodes,
    Query,
    Records,
    Refused,
    Store,
    Stored,
    to_hint,
)
from dht.node import DhtNode
from dht.operation import Call, Credentials, Event, Found, Published
from dht.record import SignedRecord
from dht.settings import DhtSettings

WALL = 1_800_000_000.0  # wall clock at virtual time 0


@attrs.define(eq=False)
class SimNode:
    name: int
    credentials: Credentials
    contact: Contact
    node: DhtNode
    born_at: float
    number: int  # the node id
    alive: bool = True
    timer: int = 0
    events: dict[int, Event] = attrs.field(factory=dict)


Liar = Callable[["World", SimNode, Query, Answer], Answer]


class World:
    def __init__(
        self,
        seed: int,
        *,
        settings: DhtSettings | None = None,
        loss: float = 0.0,
        latency_s: tuple[float, float] = (0.01, 0.12),
    ) -> None:
        self.rng = random.Random(seed)
        self.settings = settings or DhtSettings()
        self.loss = loss
        self.latency_s = latency_s
        self.now = 0.0
        self.swarm_id = hashlib.sha256(b"swarm").digest()
        self.nodes: dict[bytes, SimNode] = {}
        self.liars: dict[bytes, Liar] = {}
        self.counters: Counter[str] = Counter()
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._sequence = 0
        self._secrets: dict[bytes, bytes] = {}
        self._trace = hashlib.sha256()

    # keys

    def credentials(self, name: int) -> Credentials:
        secret = hashlib.sha256(b"secret %d" % name).digest()
        public_key = hashlib.sha256(b"public" + secret).digest()
        self._secrets[public_key] = secret
        return Credentials(
            node_id=hashlib.sha256(public_key).digest(),
            public_key=public_key,
            swarm_id=self.swarm_id,
            sign=lambda data: _signature(secret, data),
            verify=self.verify,
        )

    def verify(self, public_key: bytes, signature: bytes, data: bytes) -> bool:
        self.counters["verified"] += 1
        secret = self._secrets.get(public_key)
        return secret is not None and signature == _signature(secret, data)

    # nodes

    def add(
        self, *, server: bool | None = None, node_id: bytes | None = None, host: str = ""
    ) -> SimNode:
        """A node that knows nobody; with `node_id`, one whose maker has searched for a key with that id."""
        name = len(self.nodes)
        credentials = self.credentials(name)
        if node_id is not None:
            credentials = attrs.evolve(credentials, node_id=node_id)
        settings = self.settings
        if server is not None:
            settings = attrs.evolve(settings, server=server)
        host = host or f"10.{name >> 16}.{(name >> 8) & 255}.{name & 255}"
        sim = SimNode(
            name,
            credentials,
            Contact(credentials.node_id, (f"{host}:7447",), host),
            DhtNode(
                credentials,
                rng=random.Random(self.rng.getrandbits(64)),
                now=self.now,
                settings=settings,
            ),
            self.now,
            int.from_bytes(credentials.node_id, "big"),
        )
        self.nodes[credentials.node_id] = sim
        self.flush(sim)
        return sim

    def join(self, sim: SimNode, through: SimNode) -> None:
        """Bootstrap through one node, again and again until it has answered, as the driver does."""
        if sim.alive and through.contact.node_id not in sim.node.table:
            sim.node.greet(through.contact, self.now)
            self.flush(sim)
            self.at(self.now + self.settings.query_s + 0.1, self.join, sim, through)

    def kill(self, sim: SimNode) -> None:
        sim.alive = False

    def alive(self) -> list[SimNode]:
        return [sim for sim in self.nodes.values() if sim.alive]

    def adopt(self, sim: SimNode) -> None:
        """What a join leaves behind, without its messages: a table of live nodes, and itself in theirs."""
        others = [other for other in self.alive() if other is not sim]
        near = self.nearest(sim.contact.node_id, 32)
        far = self.rng.sample(others, min(len(others), 150))
        for there in {other.name: other for other in near + far if other is not sim}.values():
            sim.node.table.seen(there.contact, self.now)
            there.node.table.seen(sim.contact, self.now)

    def prefill(self) -> None:
        """Give every table what a long, quiet life would have: contacts at every distance, in random order."""
        everybody = sorted(self.nodes.values(), key=lambda sim: sim.contact.node_id)
        for place, sim in enumerate(everybody):
            # nodes that follow each other in order share long prefixes: they are (nearly) the nearest
            near = everybody[max(0, place - 32) : place + 33]
            far = self.rng.sample(everybody, min(len(everybody), 150))
            for other in near + far:
                if other is not sim:
                    sim.node.table.seen(other.contact, self.now)

    def nearest(self, target: bytes, count: int) -> list[SimNode]:
        goal = int.from_bytes(target, "big")
        return heapq.nsmallest(count, self.alive(), key=lambda sim: sim.number ^ goal)

    # operations

    def wait(self, sim: SimNode, operation: int, limit_s: float = 60.0) -> Event:
        self.flush(sim)
        end = self.now + limit_s
        while operation not in sim.events:
            assert self._heap, "the world is at rest, yet an operation has not ended"
            assert self._heap[0][0] <= end, "an operation outlived its limit"
            self.step()
        return sim.events.pop(operation)

    def get(self, sim: SimNode, key: bytes) -> list[SignedRecord]:
        event = self.wait(sim, sim.node.get(key, self.now, self.wall))
        assert isinstance(event, Found)
        return list(event.records)

    def find(self, sim: SimNode, target: bytes) -> list[Contact]:
        event = self.wait(sim, sim.node.find(target, self.now))
        assert isinstance(event, Found)
        return list(event.contacts)

    def put(self, sim: SimNode, key: bytes, value: bytes, ttl_s: float = 7200.0) -> int:
        event = self.wait(sim, sim.node.put(key, value, ttl_s, self.now, self.wall))
        assert isinstance(event, Published)
        return event.holders

    # the heap

    @property
    def wall(self) -> float:
        return WALL + self.now

    def digest(self) -> str:
        return self._trace.hexdigest()

    def at(self, when: float, action: Callable[..., None], *args: Any) -> None:
        self._sequence += 1
        heapq.heappush(self._heap, (when, self._sequence, action, args))

    def step(self) -> None:
        when, _, action, args = heapq.heappop(self._heap)
        self.now = max(self.now, when)
        action(*args)

    def run_for(self, seconds: float) -> None:
        end = self.now + seconds
        while self._heap and self._heap[0][0] <= end:
            self.step()
        self.now = end

    def flush(self, sim: SimNode) -> None:
        if not sim.alive:
            return
        for call in sim.node.outgoing(1 << 30):
            self._send(sim, call)
        while (event := sim.node.next_event()) is not None:
            sim.events[event.operation] = event
        deadline = sim.node.next_deadline()
        if deadline is not None:
            sim.timer += 1
            self.at(max(deadline, self.now), self._tick, sim, sim.timer)

    def _tick(self, sim: SimNode, timer: int) -> None:
        if sim.alive and timer == sim.timer:
            sim.node.tick(self.now, self.wall)
            self.flush(sim)

    def _delay(self) -> float:
        return self.rng.uniform(*self.latency_s)

    def _send(self, sim: SimNode, call: Call) -> None:
        self.counters["calls"] += 1
        there = self.nodes.get(call.contact.node_id)
        reachable = (
            there is not None
            and there.alive
            and any(address in call.contact.addresses for address in there.contact.addresses)
        )
        lost = self.rng.random() < self.loss or self.rng.random() < self.loss
        if reachable and not lost:
            self.at(self.now + self._delay(), self._deliver, sim, there, call)
        else:
            self.at(self.now + self.settings.query_s, self._give_up, sim, call)

    def _deliver(self, sender: SimNode, receiver: SimNode, call: Call) -> None:
        if not receiver.alive:
            self.at(self.now + self.settings.query_s, self._give_up, sender, call)
            return
        self._note("query", sender, receiver, call.query)
        answer = receiver.node.answer(
            call.query, sender.contact, sender.credentials.public_key, self.now, self.wall
        )
        liar = self.liars.get(receiver.contact.node_id)
        if liar is not None:
            answer = liar(self, receiver, call.query, answer)
        self.flush(receiver)
        self.at(self.now + self._delay(), self._reply, sender, receiver, call, answer)

    def _reply(self, sim: SimNode, there: SimNode, call: Call, answer: Answer) -> None:
        if sim.alive:
            self._note("answer", there, sim, answer)
            sim.node.receive(call.number, there.contact, answer, self.now, self.wall)
            self.flush(sim)

    def _give_up(self, sim: SimNode, call: Call) -> None:
        if sim.alive:
            sim.node.fail(call.number, self.now, self.wall)
            self.flush(sim)

    def _note(self, kind: str, sender: SimNode, receiver: SimNode, message: Query | Answer) -> None:
        self._trace.update(
            b"%s %d %d %.9f " % (kind.encode(), sender.name, receiver.name, self.now)
        )
        self._trace.update(_brief(message))


def _brief(message: Query | Answer) -> bytes:
    """What a message says, for the trace; encoding each whole would take most of a simulation's time."""
    body = message.body
    parts = [type(body).__name__.encode(), b"s" if message.server else b"c"]
    match body:
        case FindNode():
            parts.append(body.target)
        case FindRecords():
            parts.append(body.key)
        case Store():
            parts += [body.record.signature, body.token]
        case Nodes():
            parts += [hint.node_id for hint in body.contacts]
        case Records():
            parts += [hint.node_id for hint in body.contacts]
            parts += [record.signature for record in body.records]
        case Refused():
            parts.append(body.reason.encode())
    return b"".join(parts)


def _signature(secret: bytes, data: bytes) -> bytes:
    return hashlib.blake2b(data, key=secret, digest_size=64).digest()


def build(
    seed: int, count: int, *, joins_per_s: float = 20.0, **options: Any
) -> tuple[World, list[SimNode]]:
    """A world of `count` nodes that joined one after another through the first."""
    world = World(seed, **options)
    nodes: list[SimNode] = [world.add()]
    for _ in range(count - 1):
        sim = world.add()
        nodes.append(sim)
        world.join(sim, nodes[0])
        world.run_for(1 / joins_per_s)
    world.run_for(5.0)
    return world, nodes


# Liars


def forge_records(world: World, me: SimNode, query: Query, answer: Answer) -> Answer:
    """Answer every search with records that are wrong in every way there is, and real neighbours."""
    if not isinstance(query.body, FindRecords) or not isinstance(answer.body, Records):
        return answer
    key = query.body.key
    real = answer.body.records
    victim = next(iter(world.nodes.values())).credentials.public_key
    kind = world.rng.randrange(5)
    forged = SignedRecord(
        key=key,
        value=b"forged",
        public_key=victim,
        sequence=2**62,
        expires_at=int(world.wall + 7000),
        signature=bytes(64),
    )
    if kind == 1 and real:  # altered value
        forged = msgspec.structs.replace(real[0], value=b"forged")
    elif kind == 2 and real:  # longer life
        forged = msgspec.structs.replace(real[0], expires_at=real[0].expires_at + 3600)
    elif kind == 3:  # a good signature of my own for another swarm
        forged = _signed(me, bytes(32), key, world.wall + 7000)
    elif kind == 4:  # a good signature of my own for another key
        forged = _signed(me, world.swarm_id, bytes(32), world.wall + 7000)
    world.counters["forged"] += 1
    return Answer(server=True, body=Records(answer.body.contacts, [forged, *real]))


def _signed(me: SimNode, swarm_id: bytes, key: bytes, expires_at: float) -> SignedRecord:
    from dht.record import make_record

    return make_record(
        swarm_id=swarm_id,
        key=key,
        value=b"forged",
        public_key=me.credentials.public_key,
        sequence=2**62,
        expires_at=int(expires_at),
        sign=me.credentials.sign,
    )


def poison_contacts(world: World, me: SimNode, query: Query, answer: Answer) -> Answer:
    """Point at invented neighbours, at real ones with false addresses, at nonsense and at the asker."""
    if not isinstance(answer.body, Nodes | Records):
        return answer
    target = query.body.key if isinstance(query.body, FindRecords) else query.body.target  # type: ignore[union-attr]
    invented = [
        Hint(target[:-2] + world.rng.randbytes(2), (f"10.99.{world.rng.randrange(256)}.1:7447",))
        for _ in range(6)
    ]
    misplaced = [Hint(hint.node_id, ("10.99.0.1:1",)) for hint in answer.body.contacts[:6]]
    nonsense = [
        Hint(world.rng.randbytes(32), ("0.0.0.0:1", "224.0.0.1:5", "host.example:80", "x")),
        Hint(me.contact.node_id, ("127.0.0.1:7447",)),
    ]
    contacts = invented + misplaced + nonsense
    records = answer.body.records if isinstance(answer.body, Records) else []
    body = Records(contacts, records) if isinstance(answer.body, Records) else Nodes(contacts)
    return Answer(server=True, body=body)


def stay_silent(world: World, me: SimNode, query: Query, answer: Answer) -> Answer:
    """Serve neighbours, never a record."""
    if isinstance(answer.body, Records):
        return Answer(server=True, body=Records(answer.body.contacts, []))
    return answer


class Collusion:
    """Liars who know each other: each names only the others nearest to what is sought, holds nothing and says it does."""

    def __init__(self, world: World, liars: list[SimNode]) -> None:
        self._numbers = [(int.from_bytes(sim.contact.node_id, "big"), sim) for sim in liars]
        self._known: dict[bytes, list[Hint]] = {}
        for sim in liars:
            world.liars[sim.contact.node_id] = self

    def __call__(self, world: World, me: SimNode, query: Query, answer: Answer) -> Answer:
        body = query.body
        if isinstance(body, FindNode):
            return Answer(server=True, body=Nodes(self._nearest(body.target)))
        if isinstance(body, FindRecords):
            forged = _signed(me, world.swarm_id, bytes(32), world.wall + 7000)
            records = [forged] if world.rng.random() < 0.1 else []
            world.counters["forged"] += len(records)
            return Answer(server=True, body=Records(self._nearest(body.key), records, bytes(16)))
        if isinstance(body, Store):
            return Answer(server=True, body=Stored())
        return answer

    def _nearest(self, target: bytes) -> list[Hint]:
        if target not in self._known:
            goal = int.from_bytes(target, "big")
            near = heapq.nsmallest(20, self._numbers, key=lambda item: item[0] ^ goal)
            self._known[target] = [to_hint(sim.contact) for _, sim in near]
        return self._known[target]
