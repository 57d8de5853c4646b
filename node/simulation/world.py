"""A swarm on a virtual clock: the cores of real runs, on modelled machines and links.

The world does for each core what the real driver does: it calls `start`, `members`, `trained`, `receive`, `undelivered`
and `tick`, and carries out the events it takes from `next_event`. It decides when: a leg of training takes its number of
steps times the node's step time; a message takes what `links` says; news of who is there takes what `views` says.

What a death means: the node's core, its leg and everything in flight from it or to it are gone at that moment. Whoever
sends to it afterwards is told one round trip later (a refused connection), unless the node went silent: then nobody is
told anything. A node that leaves in good order has its last messages delivered.

Honest limits: nodes are honest, so a `MalformedMessage` here is a fault of the protocol and ends the run; handling a
message takes no time; and sizes are those of `gossip.decentralized.network.wire`, without what encryption and TCP add.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import attrs
import numpy as np

from gossip.decentralized.arithmetic import is_finite
from gossip.decentralized.network.wire import wire_bytes
from gossip.decentralized.protocol import (
    MAX_MESSAGE_BYTES,
    MAX_VECTORS,
    Cancel,
    Completed,
    DecentralizedProtocol,
    Finished,
    Send,
    Train,
    Vector,
)
from node.simulation.chance import stream
from node.simulation.contacts import Contacts
from node.simulation.engine import Engine
from node.simulation.heap import EventHeap, SimulationFault
from node.simulation.legs import Leg, Legs, passes
from node.simulation.links import Flight, Network
from node.simulation.scenario import Discovery
from node.simulation.speeds import Speeds
from node.simulation.trace import Kind, Trace
from node.simulation.views import Views
from transport.errors import MalformedMessage
from transport.identity import NodeId

__all__ = ["Node", "Totals", "World"]

MAX_IDLE_TICKS: Final = 10_000
"""Calls of `tick` at one instant after which a core that never moves its deadline is stopped."""


@attrs.define(eq=False)
class Node:
    """One node of the world."""

    index: int
    id: NodeId
    core: DecentralizedProtocol | None = None
    """None while the node is not there."""
    silent: bool = False
    """It is gone, and its connections seem to stand."""
    joining: bool = False
    life: int = 0
    """How often it came."""
    lost_life: int = 0
    """Messages that it sent in this life or before are lost."""
    model: Vector | None = None
    """Of its last completed round, else its initial one."""
    round: int = 0
    finished: bool = False
    steps: int = 0
    """Local steps it has done: its data cursor."""
    leg: Leg | None = None
    awake_s: float = math.inf
    """When its deadline is looked at next."""
    ticks: int = 0
    """Calls of `tick` since time moved on."""
    ticked_s: float = -1.0


@attrs.define
class Totals:
    """What the whole swarm has done so far."""

    bytes: int = 0
    """Put on the network."""
    messages: int = 0
    lost: int = 0
    """Messages that did not arrive."""
    values: int = 0
    """Values of all vectors sent; divided by a model's: model transfers."""
    steps: int = 0
    """Local steps of all nodes whose leg is over."""
    completed: int = 0
    refused: int = 0
    """Messages that the wire would refuse: vectors that are not finite."""


@attrs.frozen(eq=False)
class _Parcel:
    """A message under way."""

    sender: Node
    life: int
    receiver: Node
    receiver_life: int
    send: Send
    size: int
    flight: Flight


class World:
    """All nodes of a simulated swarm.

    Args:
        ids: of the nodes, by index.
        make_core: a new core for the node of that index.
        initial: the model that a node starts with for the first time.
        engine: trains.
        network: carries.
        speeds: says how long training takes.
        discovery: says when nodes hear of one another.
        seed: of the choices made here.
        fetch: newcomers fetch a member's model.
        trace: what happens is noted there.
    """

    def __init__(
        self,
        ids: Sequence[NodeId],
        *,
        make_core: Callable[[int], DecentralizedProtocol],
        initial: Callable[[int], Vector],
        engine: Engine,
        network: Network,
        speeds: Speeds,
        discovery: Discovery,
        seed: int = 0,
        fetch: bool = True,
        trace: Trace | None = None,
    ) -> None:
        self.heap = EventHeap()
        self.nodes = [Node(index, id_) for index, id_ in enumerate(ids)]
        self.totals = Totals()
        self.trace = trace or Trace()
        self.contacts = Contacts(len(ids))
        self.numel = engine.numel
        self.present = 0
        """Nodes that are there."""
        self.finished = 0
        """Those of them that have done all their rounds."""
        self.on_completed: Callable[[Node], None] = lambda _node: None
        self.on_gone: Callable[[Sequence[int], float], None] = lambda _indices, _heard_after_s: None
        self._by_id = {node.id: node for node in self.nodes}
        self._make_core = make_core
        self._initial = initial
        self.network = network
        self._speeds = speeds
        self._discovery = discovery
        self._fetch = fetch
        self._rng = stream(seed, "world")
        self._legs = Legs(engine)
        self._views = Views(ids, discovery, self.heap, self._tell, seed)

    # ---- what happens to nodes ---------------------------------------------------------------

    def begin(self, absent: frozenset[int] = frozenset()) -> None:
        """All nodes but these start, at this moment, knowing one another."""
        there = [node.index for node in self.nodes if node.index not in absent]
        self._views.begin(there)
        self.heap.at(0.0, self._begin, [self.nodes[index] for index in there])

    def join(self, index: int) -> None:
        """A node comes, or comes back."""
        node = self.nodes[index]
        if node.core is not None or node.joining:
            return
        node.joining, node.silent = True, False
        node.life += 1
        if node.model is not None:
            self._come(node, node.model.copy(), node.round)
            return
        members = [other for other in self.nodes if other.core is not None]
        if not (self._fetch and members):
            self._come(node, self._initial(index), 0)
            return
        source = self._rng.choice(members)
        assert source.model is not None
        self._carry_model(source, node, source.model, source.round)

    def leave(self, index: int) -> None:
        """A node says goodbye and goes."""
        node = self.nodes[index]
        node.joining = False
        if node.core is None:
            return
        node.core.leave(self.now)
        self._carry(node)
        self.trace.add(self.now, Kind.LEAVE, index)
        self._stop(node)
        self._views.went((index,), self._discovery.leave_s)
        self.on_gone((index,), self._discovery.leave_s)

    def crash(self, indices: Sequence[int], *, silent: bool = False) -> None:
        """Nodes are gone at once, without a word."""
        for index in indices:
            self.nodes[index].joining = False
        gone = [node for node in map(self.nodes.__getitem__, indices) if node.core is not None]
        for node in gone:
            self.trace.add(self.now, Kind.SILENCE if silent else Kind.CRASH, node.index)
            node.lost_life = node.life
            node.silent = silent
            self.network.reset(node.index)
            self._stop(node)
        if gone:
            names = [node.index for node in gone]
            self._views.went(names, self._discovery.lost_s)
            self.on_gone(names, self._discovery.lost_s)

    # ---- for whoever runs it -----------------------------------------------------------------

    @property
    def now(self) -> float:
        """Virtual seconds since the beginning."""
        return self.heap.now

    def alive(self) -> list[Node]:
        """The nodes that are there, by index."""
        return [node for node in self.nodes if node.core is not None]

    # ---- one node's life ---------------------------------------------------------------------

    def _begin(self, nodes: Sequence[Node]) -> None:
        # All are there before the first of them starts: nobody's first message finds nobody.
        for node in nodes:
            node.life = 1
            self._appear(node, self._initial(node.index), 0)
        for node in nodes:
            assert node.core is not None
            assert node.model is not None
            node.core.start(node.model, self.now, round_=0)
            self._carry(node)

    def _come(self, node: Node, params: Vector, round_: int) -> None:
        self._views.came(node.index)
        self._appear(node, params, round_)
        assert node.core is not None
        node.core.start(params, self.now, round_=round_)
        self._carry(node)

    def _appear(self, node: Node, params: Vector, round_: int) -> None:
        core = node.core = self._make_core(node.index)
        node.joining, node.finished = False, False
        self.present += 1
        node.awake_s = math.inf
        node.round = round_
        node.model = _read_only(params)
        others = self._views.others(node.index)
        self.trace.add(self.now, Kind.START, node.index, size=round_)
        self.trace.add(self.now, Kind.MEMBERS, node.index, size=len(others))
        core.members(others, self.now)

    def _stop(self, node: Node) -> None:
        self._end_leg(node)
        node.core = None
        self.present -= 1
        self.finished -= node.finished

    def _carry_model(self, source: Node, node: Node, model: Vector, round_: int) -> None:
        """A newcomer takes a member's model; if that member goes meanwhile it begins without."""
        size = 4 * self.numel
        self.totals.bytes += size
        self.totals.values += self.numel
        flight = self.network.send(source.index, size, self.now)
        life, source_life = node.life, source.life

        def whole() -> None:
            if not node.joining or node.life != life:
                return
            if source.lost_life >= source_life:
                self._come(node, self._initial(node.index), 0)
            else:
                self._come(node, model.copy(), round_)

        def first() -> None:
            self.heap.at(self.network.arrive(node.index, size, flight, self.now), whole)

        self.heap.at(flight.first_s, first)

    def _tell(self, index: int) -> None:
        node = self.nodes[index]
        if node.core is None:
            return
        others = self._views.others(index)
        self.trace.add(self.now, Kind.MEMBERS, index, size=len(others))
        node.core.members(others, self.now)
        self._carry(node)

    # ---- a core's events ---------------------------------------------------------------------

    def carry_out(self, index: int) -> None:
        """Do what a core asks for that was called by somebody else than the world."""
        self._carry(self.nodes[index])

    def _carry(self, node: Node) -> None:
        core = node.core
        assert core is not None
        while (event := core.next_event()) is not None:
            if isinstance(event, Send):
                self._send(node, event)
            elif isinstance(event, Train):
                self._train(node, event)
            elif isinstance(event, Completed):
                self._completed(node, event)
            elif isinstance(event, Cancel):
                self.trace.add(self.now, Kind.CANCEL, node.index)
                self._end_leg(node)
            else:
                assert isinstance(event, Finished)
                self.trace.add(self.now, Kind.FINISHED, node.index)
                self.finished += not node.finished
                node.finished = True
        self._wake_for(node, core.next_deadline())

    def _train(self, node: Node, train: Train) -> None:
        if node.leg is not None:
            raise self._fault(node, "asks for a leg of training while one runs")
        if train.steps < 1 or train.params.shape != (self.numel,):
            raise self._fault(node, f"asks to train {train.steps} steps from {train.params.shape}")
        due = self.now + self._speeds.leg_s(node.index, train.steps, passes(train.rule))
        self.trace.add(self.now, Kind.TRAIN, node.index, size=train.steps)
        leg = node.leg = self._legs.begin(node.index, train, node.steps, self.now, due)
        self.heap.at(due, self._trained, node, leg)

    def _trained(self, node: Node, leg: Leg) -> None:
        if node.leg is not leg:
            return
        assert node.core is not None
        work = self._legs.result(leg)
        self._end_leg(node)
        self.trace.add(self.now, Kind.TRAINED, node.index, size=work.steps)
        node.core.trained(work, self.now)
        self._carry(node)

    def _end_leg(self, node: Node) -> None:
        if node.leg is not None:
            done = node.leg.steps_by(self.now)
            self._legs.cancel(node.leg)
            node.steps += done
            self.totals.steps += done
            node.leg = None

    def _completed(self, node: Node, event: Completed) -> None:
        self.trace.add(self.now, Kind.COMPLETED, node.index, size=event.round)
        node.model, node.round = _read_only(event.model), event.round
        self.totals.completed += 1
        self.on_completed(node)

    def _wake_for(self, node: Node, deadline: float | None) -> None:
        # One entry of the heap at a time: a deadline that moves away with every message leaves no litter behind.
        if deadline is not None and deadline < node.awake_s:
            node.awake_s = max(deadline, self.now)
            self.heap.at(node.awake_s, self._awake, node, node.life, node.awake_s)

    def _awake(self, node: Node, life: int, when: float) -> None:
        if node.core is None or node.life != life or node.awake_s != when:
            return
        node.awake_s = math.inf
        deadline = node.core.next_deadline()
        if deadline is None or deadline > self.now:
            self._wake_for(node, deadline)
            return
        node.ticks = node.ticks + 1 if node.ticked_s == self.now else 0
        node.ticked_s = self.now
        if node.ticks > MAX_IDLE_TICKS:
            raise self._fault(node, f"never moves its deadline of {deadline:.3f} s")
        self.trace.add(self.now, Kind.TICK, node.index)
        node.core.tick(self.now)
        self._carry(node)

    # ---- messages ----------------------------------------------------------------------------

    def _send(self, node: Node, send: Send) -> None:
        receiver = self._by_id.get(send.to)
        if receiver is None or receiver is node:
            raise self._fault(node, f"sends to {send.to.short}, which is no other member")
        if len(send.message) > MAX_MESSAGE_BYTES or len(send.vectors) > MAX_VECTORS:
            raise self._fault(
                node, f"sends {len(send.message)} bytes with {len(send.vectors)} vectors"
            )
        for vector in send.vectors:
            vector.flags.writeable = False
        size = wire_bytes(send.message, send.vectors)
        self.trace.add(
            self.now, Kind.SEND, node.index, receiver.index, size=size, note=send.message
        )
        self.totals.messages += 1
        if receiver.core is None and not receiver.silent:
            self._undelivered(node, receiver, send, hears=True)
            return
        if not all(map(is_finite, send.vectors)):
            self.totals.refused += 1
            self._undelivered(node, receiver, send, hears=True)
            return
        self.totals.bytes += size
        self.totals.values += sum(vector.size for vector in send.vectors)
        flight = self.network.send(node.index, size, self.now)
        parcel = _Parcel(node, node.life, receiver, receiver.life, send, size, flight)
        if flight.lost:
            self._undelivered(node, receiver, send, hears=flight.noticed)
        elif self.network.limits(receiver.index):
            self.heap.at(flight.first_s, self._reaches, parcel)
        else:
            whole = self.network.arrive(receiver.index, size, flight, flight.first_s)
            self.heap.at(whole, self._deliver, parcel)

    def _reaches(self, parcel: _Parcel) -> None:
        if parcel.sender.lost_life >= parcel.life:
            self._lose(parcel)
            return
        whole = self.network.arrive(parcel.receiver.index, parcel.size, parcel.flight, self.now)
        self.heap.at(whole, self._deliver, parcel)

    def _deliver(self, parcel: _Parcel) -> None:
        sender, receiver = parcel.sender, parcel.receiver
        core = receiver.core
        if core is None or receiver.life != parcel.receiver_life or sender.lost_life >= parcel.life:
            self._lose(parcel)
            return
        self.contacts.met(sender.index, receiver.index)
        self.trace.add(
            self.now,
            Kind.DELIVER,
            receiver.index,
            sender.index,
            size=parcel.size,
            note=parcel.send.message,
        )
        try:
            core.receive(sender.id, parcel.send.message, parcel.send.vectors, self.now)
        except MalformedMessage as error:
            raise self._fault(
                receiver, f"refuses a message of node {sender.index}: {error}"
            ) from error
        self._carry(receiver)

    def _lose(self, parcel: _Parcel) -> None:
        self._undelivered(
            parcel.sender,
            parcel.receiver,
            parcel.send,
            hears=not parcel.receiver.silent,
            sent=parcel,
        )

    def _undelivered(
        self, sender: Node, receiver: Node, send: Send, *, hears: bool, sent: _Parcel | None = None
    ) -> None:
        self.totals.lost += 1
        self.trace.add(self.now, Kind.LOST, receiver.index, sender.index)
        if hears:
            way = self.network.one_way_s(sender.index, receiver.index)
            life = sender.life if sent is None else sent.life
            delay = 2 * way if sent is None else way
            self.heap.at(self.now + delay, self._hears_of_loss, sender, life, receiver, send.key)

    def _hears_of_loss(self, sender: Node, life: int, receiver: Node, key: int) -> None:
        if sender.core is None or sender.life != life:
            return
        self.trace.add(self.now, Kind.UNDELIVERED, sender.index, receiver.index)
        sender.core.undelivered(receiver.id, key, self.now)
        self._carry(sender)

    def _fault(self, node: Node, what: str) -> SimulationFault:
        name = "a core" if node.core is None else f"protocol {type(node.core).name!r}"
        return SimulationFault(f"{name} at node {node.index}, {self.now:.3f} s: {what}")


def _read_only(model: Vector) -> Vector:
    if model.flags.writeable:
        model = model.view()
        model.flags.writeable = False
    return np.ascontiguousarray(model)
