"""One member of the simulated swarm: a process that may die, and the disk that it comes back with."""

from __future__ import annotations

import functools
import hashlib
import random
from collections.abc import Callable

import attrs
import pytest

import gossip.collective.agreement.certificate as certificate_module
import gossip.collective.agreement.former as former_module
import gossip.collective.agreement.lineage as lineage_module
import gossip.collective.agreement.operation as operation_module
from gossip.collective.agreement.certificate import Epoch
from gossip.collective.agreement.epoch import EpochMachine
from gossip.collective.agreement.epoch_events import EpochSettings
from gossip.collective.agreement.lineage import Memory
from gossip.collective.agreement.operation import Operation
from transport.identity import Identity, verify

START = hashlib.sha256(b"start").digest()
RUN = b"r" * 32


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
class Disk:
    """What a node finds when it starts again."""

    round: int = 0
    state: bytes = START
    memory: Memory | None = None


class Node:
    def __init__(self, seed: object, settings: EpochSettings, identity: Identity) -> None:
        self.seed = seed
        self.settings = settings
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
        self.remembered: tuple[object, ...] | None = None
        return EpochMachine(
            RUN,
            self.identity,
            rng=random.Random(f"{self.seed}/{self.id.hex()}/{self.life}"),
            settings=self.settings,
            memory=self.disk.memory,
        )

    def remember(self) -> None:
        """Before anything is sent; what is known of operations goes to the disk with a checkpoint."""
        if self.machine.lasting != self.remembered:
            self.remembered = self.machine.lasting
            self.disk.memory = self.machine.memory or self.disk.memory

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
