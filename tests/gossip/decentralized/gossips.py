"""Nodes with a driver each, on the network in memory."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from contextlib import suppress

import attrs
import numpy as np
import trio

from gossip.decentralized.network.driver import Driver, Progressed, Trainer, open_driver
from gossip.decentralized.protocol import Context, DecentralizedProtocol, TensorSpec
from tests.trusted import SWARM, trust_of
from transport.address import Address
from transport.endpoint import Endpoint, open_endpoint
from transport.errors import PeerUnreachable
from transport.identity import Identity
from transport.simulated.link_model import LinkSettings
from transport.simulated.memory import MemoryNetwork

PORT = 7447
RUN = bytes(range(32))
MODEL = hashlib.sha256(b"a model").digest()


@attrs.define(eq=False)
class Life:
    """One life of one node."""

    endpoint: Endpoint
    driver: Driver
    scope: trio.CancelScope
    progress: list[Progressed] = attrs.field(factory=list)

    @property
    def core(self) -> DecentralizedProtocol:
        return self.driver.core


class Gossips:
    def __init__(
        self,
        seed: int,
        make: Callable[[Context], DecentralizedProtocol],
        trainer: Callable[[int], Trainer],
        *,
        numel: int = 50,
        rounds: int = 5,
        link: LinkSettings | None = None,
    ) -> None:
        self.seed, self.numel, self.rounds = seed, numel, rounds
        self.network = MemoryNetwork(
            seed, default=link or LinkSettings(latency_s=0.01, jitter_s=0.005)
        )
        self.lives: dict[int, Life] = {}
        self._make, self._trainer = make, trainer

    def ip(self, index: int) -> str:
        return f"10.0.0.{index + 1}"

    def identity(self, index: int) -> Identity:
        return Identity.from_seed(hashlib.sha256(f"{self.seed}/{index}".encode()).digest())

    def context(self, index: int, rng: random.Random) -> Context:
        return Context(
            me=self.identity(index).node_id,
            run=RUN,
            tensors=(TensorSpec("w", 0, (self.numel,)),),
            numel=self.numel,
            rng=rng,
            every=2,
            rounds=self.rounds,
        )

    async def node(
        self,
        index: int,
        *,
        others: int = 0,
        model: bytes = MODEL,
        params: float = 0.0,
        round_: int = 0,
        task_status: trio.TaskStatus[Life] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Live until cancelled; start with `others` neighbours there."""
        rng = random.Random(f"{self.seed}/{index}")
        identity = self.identity(index)
        progress: list[Progressed] = []
        with trio.CancelScope() as scope:
            async with open_endpoint(
                identity,
                SWARM,
                self.network.host(self.ip(index)),
                [Address(self.ip(index), PORT)],
                trust=trust_of(identity),
                name=f"n{index}",
                rng=rng,
                random_bytes=rng.randbytes,
            ) as endpoint:
                core = self._make(self.context(index, random.Random(rng.getrandbits(64))))
                async with open_driver(
                    endpoint,
                    core,
                    self._trainer(index),
                    model=model,
                    on_progress=progress.append,
                ) as driver:
                    self.lives[index] = life = Life(endpoint, driver, scope, progress)
                    task_status.started(life)
                    for other in range(index):
                        with suppress(PeerUnreachable):
                            await endpoint.connect(
                                [Address(self.ip(other), PORT)],
                                expected=self.identity(other).node_id,
                            )
                    await driver.wait_members(others)
                    driver.start(np.full(self.numel, params, np.float32), round_)
                    await trio.sleep_forever()
