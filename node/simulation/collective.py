"""Protocols with certified rounds (DiLoCo, averaging) in the simulated world, to compare the others with.

Both halves of the protocol are the real ones: coordinator and averager decide and compute as on real nodes. What lies
between them, agreement and all-reduce, is a model here:

* a round's exchange begins when every member that is there, as far as is known, has contributed, and gives all of them
  the weighted mean at the same moment;
* it takes as long as a ring all-reduce in the order of ids: `2 (n - 1)` turns, in each of which every member passes an
  n-th of the vector on, so the slowest link sets the pace. It puts `2 (n - 1)` vectors on the network in all, in the
  protocol's wire format, and everybody gets what that leaves of them;
* a member that dies breaks it off, and the survivors begin again with the inputs they kept once they have heard of it;
* who comes takes the consensus of the others, and its first contribution is waited for.

What is left out: votes and certificates (small), majorities (every part would go on), losses (the real links are TCP),
the choice of algorithm by size, and pipelining. The mean is summed in float64 where the real ring adds float32, so
models agree with those of a real run to rounding and not to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from gossip.collective.links.carriage import carried, wire_bytes
from gossip.decentralized.arithmetic import combine
from gossip.decentralized.protocol import (
    AnyVector,
    Cancel,
    Completed,
    Context,
    DecentralizedProtocol,
    Finished,
    LocalWork,
    Train,
    Vector,
    frozen,
)
from gossip.protocol import Apply, CollectiveOutcome, Contribution, Protocol, ReduceMean
from node.simulation.links import Network
from node.simulation.trace import Kind
from node.simulation.world import World
from transport.identity import NodeId

__all__ = ["CertifiedRounds", "Circle", "ring_s"]


class Circle:
    """All members of a run with certified rounds: whom a round waits for, and what comes of it.

    Args:
        plugin: the protocol.
        raw: its settings.
        ids: of all nodes, by index.
    """

    def __init__(self, plugin: type[Protocol], raw: dict[str, Any], ids: Sequence[NodeId]) -> None:
        self.plugin = plugin
        self.raw = raw
        self.round = 0
        """Rounds completed."""
        self._order = sorted(range(len(ids)), key=ids.__getitem__)
        self._members: dict[int, CertifiedRounds] = {}
        self._offers: dict[int, ReduceMean] = {}
        self._group: list[int] = []
        """Who takes part in the exchange that runs, in the ring's order; [] if none does."""
        self._attempt = 0
        self._world: World | None = None

    def bind(self, world: World) -> None:
        """The world that it all happens in."""
        self._world = world
        world.on_gone = self._gone

    @property
    def world(self) -> World:
        """Where it all happens."""
        assert self._world is not None, "bound before anybody starts"
        return self._world

    def enter(self, index: int, core: CertifiedRounds) -> CertifiedRounds | None:
        """A member begins; who holds the consensus that it should take, None before the first round."""
        holders = [self._members[i] for i in self._order if i != index and self._is_there(i)]
        self._offers.pop(index, None)
        self._members[index] = core
        return holders[0] if holders and self.round else None

    def offer(self, index: int, asked: ReduceMean) -> None:
        """A member has contributed."""
        self._offers[index] = asked
        self._begin_if_all_are_there()

    def _is_there(self, index: int) -> bool:
        """Whether a member is there in fact, and not only as far as the others know."""
        core = self._members.get(index)
        return core is not None and self.world.nodes[index].core is core

    def _gone(self, indices: Sequence[int], heard_after_s: float) -> None:
        if not set(indices).isdisjoint(self._group):
            self._group = []
            self._attempt += 1
        gone = [(index, self._members[index]) for index in indices if index in self._members]
        for index in indices:
            self._offers.pop(index, None)
        self.world.heap.at(self.world.now + heard_after_s, self._forget, gone)

    def _forget(self, gone: list[tuple[int, CertifiedRounds]]) -> None:
        for index, core in gone:
            if self._members.get(index) is core:
                del self._members[index]
        self._begin_if_all_are_there()

    def _begin_if_all_are_there(self) -> None:
        if self._group or not self._members or len(self._offers) < len(self._members):
            return
        self._group = [index for index in self._order if index in self._members]
        self._attempt += 1
        world = self.world
        size = wire_bytes(world.numel, self._offers[self._group[0]].wire)
        world.heap.at(
            world.now + ring_s(world.network, self._group, size), self._end, self._attempt
        )

    def _end(self, attempt: int) -> None:
        if attempt != self._attempt or not self._group:
            return
        world, group = self.world, self._group
        self._group = []
        cores = [self._members[index] for index in group]
        asked = [self._offers.pop(index) for index in group]
        reduced, weight = _mean(cores, asked)
        passed = 2 * (len(group) - 1)
        world.totals.bytes += passed * wire_bytes(world.numel, asked[0].wire)
        world.totals.values += passed * world.numel
        for index, next_ in zip(group, [*group[1:], group[0]], strict=True):
            world.contacts.met(index, next_)
        world.trace.add(world.now, Kind.TOGETHER, group[0], size=len(group))
        self.round += 1
        outcome = CollectiveOutcome(asked[0].round, len(group), weight)
        for core, one in zip(cores, asked, strict=True):
            core.settle(one, reduced, outcome, world.now)
        there = [index for index in sorted(self._members) if self._is_there(index)]
        for index in there:
            if index not in group:
                self._members[index].take_over(cores[0])
        for index in there:
            world.carry_out(index)


class CertifiedRounds(DecentralizedProtocol):
    """One member: the real coordinator and averager, in the shape of a core of the world."""

    name = "certified rounds"
    Settings = msgspec.Struct
    needs_common_start = True

    def __init__(
        self, settings: msgspec.Struct, context: Context, circle: Circle, index: int
    ) -> None:
        super().__init__(settings, context)
        self._circle = circle
        self._index = index
        self._coordinator = circle.plugin(settings)
        self._averager = circle.plugin.averager(circle.raw)
        self.views = {name: np.zeros(context.numel, np.float32) for name in self._averager.vectors}
        self._round = 0
        self._trains = False

    def start(self, params: Vector, now: float, *, round_: int = 0) -> None:
        """Begin with the consensus, or with the run's initial parameters before the first round."""
        del now, round_
        holder = self._circle.enter(self._index, self)
        if holder is None:
            np.copyto(self.views["params"], params)
            self._averager.start(self.views)
            self._next()
        else:
            self.take_over(holder)

    def take_over(self, holder: CertifiedRounds) -> None:
        """Go on with the consensus of another member."""
        for name in self._averager.consensus:
            np.copyto(self.views[name], holder.views[name])
        self._averager.resume(self.views)
        self._round = self._circle.round
        if self._trains:
            self._emit(Cancel())
        self._completed(1)

    def members(self, others: Sequence[NodeId], now: float) -> None:
        """The circle knows who is there."""

    def trained(self, work: LocalWork, now: float) -> None:
        """Contribute."""
        self._trains = False
        np.copyto(self.views["params"], work.params)
        self._averager.contribute(self.views)
        self._coordinator.contributed(Contribution(self._round, work.steps, work.samples), now)
        asked = self._coordinator.next_event()
        assert isinstance(asked, ReduceMean), "a contribution leads to one exchange"
        self._circle.offer(self._index, asked)

    def receive(
        self, sender: NodeId, message: bytes, vectors: Sequence[AnyVector], now: float
    ) -> None:
        """Nobody sends anything: the exchange is modelled."""
        del sender, message, vectors, now
        raise AssertionError("a member with certified rounds gets no messages")

    def settle(
        self, asked: ReduceMean, reduced: Vector, outcome: CollectiveOutcome, now: float
    ) -> None:
        """The exchange has ended: apply its result."""
        np.copyto(self.views[asked.out], reduced)
        self._coordinator.collective_done(outcome, now)
        apply = self._coordinator.next_event()
        assert isinstance(apply, Apply), "a certified outcome leads to its application"
        self._averager.apply(
            self.views, members=apply.members, weight=apply.weight, alone=apply.alone
        )
        self._round = self._circle.round
        self._completed(outcome.members)

    @property
    def model(self) -> Vector:
        """The parameters after the last round."""
        return self.views["params"]

    def _completed(self, members: int) -> None:
        self._emit(Completed(self._round, frozen(self.views["params"]), members))
        self._next()

    def _next(self) -> None:
        if self.context.rounds and self._round >= self.context.rounds:
            self._emit(Finished())
        else:
            self._trains = True
            self._emit(Train(frozen(self.views["params"]), self.context.every))


def _mean(cores: Sequence[CertifiedRounds], asked: Sequence[ReduceMean]) -> tuple[Vector, float]:
    """What everybody gets, and the weight of those in it: who has values that are not finite is left out, as in a real round."""
    wire, counted = asked[0].wire, []
    for core, one in zip(cores, asked, strict=True):
        if one.weight and np.isfinite(core.views[one.source]).all():
            counted.append((carried(core.views[one.source], wire), one.weight))
    weight = sum(share for _, share in counted)
    if not counted:
        return np.zeros_like(cores[0].views[asked[0].source]), 0.0
    sources, shares = zip(*counted, strict=True)
    return carried(combine(sources, [share / weight for share in shares]), wire), weight


def ring_s(network: Network, group: Sequence[int], size: int) -> float:
    """How long a ring all-reduce of `size` bytes takes among these nodes, in this order."""
    if len(group) < 2:
        return 0.0
    part = size / len(group)
    slowest = max(
        network.one_way_s(one, next_)
        + part / min(network.access[one].up, network.access[next_].down)
        for one, next_ in zip(group, [*group[1:], group[0]], strict=True)
    )
    return 2 * (len(group) - 1) * slowest
