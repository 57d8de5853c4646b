"""A protocol and an engine that are small enough to predict, and a world made of them."""

from __future__ import annotations

import hashlib
from typing import Annotated

import msgspec
import numpy as np

from gossip.decentralized.arithmetic import mean
from gossip.decentralized.protocol import (
    Completed,
    DecentralizedProtocol,
    Finished,
    LocalWork,
    Send,
    TensorSpec,
    Train,
    frozen,
)
from node.simulation.engine import Engine, Score
from node.simulation.links import Network
from node.simulation.run import Simulation
from node.simulation.scenario import Discovery, Links, Speed, parse_scenario
from node.simulation.speeds import Speeds
from node.simulation.trace import Trace
from node.simulation.world import World
from transport.identity import NodeId

NUMEL = 4


class ToyEngine(Engine):
    """Each step moves a model a tenth of the way to the node's own number; a good model is all ones."""

    numel = NUMEL
    tensors = (TensorSpec("w", 0, (NUMEL,)),)

    def __init__(self) -> None:
        self.calls: list[list[int]] = []

    def initial(self, node, *, common):
        return np.full(NUMEL, 0.0 if common else node, np.float32)

    def train(self, jobs):
        self.calls.append([job.node for job in jobs])
        found = []
        for job in jobs:
            params = job.params.copy()
            for step in range(job.cursor, job.cursor + job.steps):
                params += np.float32(0.1) * (np.float32(0.5 + job.node % 2 + step % 2 / 8) - params)
            found.append(LocalWork(params, job.steps, float(job.steps), 1.0))
        return found

    def score(self, models):
        losses = [float(np.abs(model - 1).mean()) for model in models]
        return [Score(loss, max(0.0, 1 - loss)) for loss in losses]


class Shout(DecentralizedProtocol):
    """Trains, sends its model to the next few, and takes the mean of what has come meanwhile; waits for nobody."""

    name = "shout"

    class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        """Its options."""

        fan: Annotated[int, msgspec.Meta(ge=0)] = 2
        graph: str = "ring"
        degree: int = 2

    def __init__(self, settings, context):
        super().__init__(settings, context)
        self.others = ()
        self.inbox = []
        self.round = 0
        self.failed = []

    def members(self, others, now):
        self.others = others

    def start(self, params, now, *, round_=0):
        self.params, self.round = frozen(params), round_
        self._next()

    def _next(self):
        if self.context.rounds and self.round >= self.context.rounds:
            self._emit(Finished())
        else:
            self._emit(Train(self.params, self.context.every))

    def trained(self, work, now):
        self.params = frozen(mean([work.params, *self.inbox]))
        self.inbox = []
        self.round += 1
        self._emit(Completed(self.round, self.params))
        later = [node for node in self.others if node > self.context.me]
        chosen = (later + [node for node in self.others if node < self.context.me])[
            : self.settings.fan
        ]
        for node in chosen:
            self._emit(Send(node, b"%d" % self.round, (self.params,), key=self.round))
        self._next()

    def receive(self, sender, message, vectors, now):
        self.inbox += [vector.copy() for vector in vectors]

    def undelivered(self, to, key, now):
        self.failed.append((to, key, now))

    def leave(self, now):
        for node in self.others:
            self._emit(Send(node, b"bye"))

    @property
    def model(self):
        return self.params


def ids(count: int) -> list[NodeId]:
    return [NodeId(hashlib.sha256(b"toy-%d" % index).digest()) for index in range(count)]


def toy_world(
    make_core,
    count: int = 4,
    *,
    links: Links | None = None,
    discovery: Discovery | None = None,
    speed: Speed | None = None,
    seed: int = 0,
    engine: Engine | None = None,
    **options,
):
    """A world of `make_core(index, ids)`, and the list in which everything that happens is noted."""
    happened: list = []
    names = ids(count)
    world = World(
        names,
        make_core=lambda index: make_core(index, names),
        initial=lambda index: np.full(NUMEL, index, np.float32),
        engine=engine or ToyEngine(),
        network=Network(links or Links(latency_s=0.5), count, seed),
        speeds=Speeds(speed or Speed(step_s=1.0), count, seed),
        discovery=discovery or Discovery(),
        seed=seed,
        trace=Trace(happened.append),
        **options,
    )
    return world, happened


def simulate(*, watch=None, engine=None, protocol=Shout, hashes=False, **changes):
    """Run a scenario of toys; its records."""
    records: list = []
    values = {"nodes": 6, "rounds": 5, **{k.replace("__", "."): v for k, v in changes.items()}}
    simulation = Simulation(
        parse_scenario({"protocol": "shout"}, values),
        write=records.append,
        watch=watch,
        hashes=hashes,
        engine=engine or ToyEngine(),
        protocol=protocol,
    )
    simulation.run()
    return records
