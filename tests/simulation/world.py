"""Whole nodes on the in-memory network: transport, DHT, shared state, groups and rounds.

Everything a daemon runs except files, signals and the torch process; a few lines of numpy train in
its place. Time is virtual and every source of chance is seeded, so a run is a function of its seed.
"""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict

import numpy as np
import trio

from crdt.clock import HybridClock
from crdt.entry import Author
from crdt.record import MemberInfo, Progress
from crdt.state import RunState
from dht.service import open_dht
from gossip.collective.agreement.epoch_events import EpochSettings
from gossip.collective.group import open_group
from gossip.collective.state.handover import HeldState, open_handover
from gossip.protocol import Apply, Averager, Contribution
from gossip.protocols.diloco import DiLoCo
from gossip.replication import open_replication
from gossip.rounds import Offer, Position, RunReport, TrainerPort, run_rounds
from node.run.finder import RunFinder
from node.run.manifest import RunManifest
from tests.trusted import SWARM, trust_of
from transport.address import Address
from transport.endpoint import open_endpoint
from transport.identity import Identity, NodeId, verify
from transport.simulated.link_model import LinkSettings
from transport.simulated.memory import MemoryNetwork

PORT = 7447
NUMEL = 3000
EPOCH_START_S = 1_700_000_000.0


class ToyTrainer(TrainerPort):
    """Gradient descent on a quadratic whose optimum differs from node to node."""

    def __init__(self, world: World, index: int, averager: Averager, rng: random.Random) -> None:
        self.views = {name: np.zeros(NUMEL, np.float32) for name in averager.vectors}
        self.position: Position | None = None
        self._world = world
        self._averager = averager
        self._rng = rng
        self._noise = np.random.default_rng(rng.randrange(2**32))
        self._target = np.random.default_rng(index).standard_normal(NUMEL).astype(np.float32)
        self._round = 0
        self._hurried = False

    async def ready(self) -> Position:
        self._averager.start(self.views)
        return self._stand()

    def _stand(self) -> Position:
        self.position = Position(self._round, self._averager.state_digest(self.views))
        return self.position

    async def start(self, round_: int, *, synced: bool) -> None:
        self._round = round_
        if synced:
            self._averager.resume(self.views)
        self._stand()

    async def next_offer(self) -> Offer | None:
        if self._round >= self._world.rounds:
            return None
        params = self.views["params"]
        self._hurried = False
        steps = 0
        for _ in range(5):
            await trio.sleep(self._rng.uniform(0.05, 0.2))
            noise = self._noise.standard_normal(NUMEL).astype(np.float32)
            params -= np.float32(0.1) * (params - self._target + np.float32(0.1) * noise)
            steps += 1
            if self._hurried:
                break
        self._averager.contribute(self.views)
        assert self.position is not None
        return Offer(Contribution(self._round, steps, float(steps)), self.position.state)

    async def apply(self, result: Apply) -> Position:
        self.position = None
        await trio.sleep(0.01)
        self._averager.apply(
            self.views, members=result.members, weight=result.weight, alone=result.alone
        )
        self._round = result.round + 1
        return self._stand()

    async def resync(self, round_: int) -> None:
        self._round = round_
        self._averager.resume(self.views)
        self._stand()

    def hurry(self, round_: int) -> None:
        if round_ == self._round:
            self._hurried = True


class World:
    """`count` nodes, their faults, and what is checked about them."""

    def __init__(self, count: int, seed: int, *, rounds: int, min_members: int) -> None:
        self.count, self.seed, self.rounds = count, seed, rounds
        self.network = MemoryNetwork(
            seed, default=LinkSettings(latency_s=0.01, jitter_s=0.01, stall=0.005, split=0.01)
        )
        self.manifest = RunManifest(
            name="simulated", task="toy", every=5, steps=5 * rounds, min_members=min_members
        )
        self.states: dict[int, set[bytes]] = defaultdict(set)
        self.members: list[int] = []
        self.final: dict[int, Position] = {}
        self.documents: dict[int, bytes] = {}
        self.params: dict[int, np.ndarray] = {}
        self.aborted = 0
        self.fetched = 0
        self.lives: dict[int, int] = defaultdict(int)
        self.scopes: dict[int, trio.CancelScope] = {}

    def ip(self, index: int) -> str:
        return f"10.0.{index // 250}.{index % 250 + 1}"

    def identity(self, index: int) -> Identity:
        return Identity.from_seed(hashlib.sha256(f"{self.seed}/id/{index}".encode()).digest())

    def report(self, report: RunReport) -> None:
        self.states[report.round].add(report.state)
        assert len(self.states[report.round]) == 1, f"two states after round {report.round}"
        self.members.append(report.members)

    async def node(self, index: int) -> None:
        """One life of one node, until it has finished its rounds and somebody cancels it."""
        self.lives[index] += 1
        rng = random.Random(f"{self.seed}/{index}/{self.lives[index]}")
        identity = self.identity(index)
        address = Address(self.ip(index), PORT)

        def wall() -> float:
            return EPOCH_START_S + trio.current_time()

        with trio.CancelScope() as scope:
            self.scopes[index] = scope
            async with (
                open_endpoint(
                    identity,
                    SWARM,
                    self.network.host(self.ip(index)),
                    [address],
                    trust=trust_of(identity),
                    name=f"n{index}",
                    rng=rng,
                    random_bytes=rng.randbytes,
                ) as endpoint,
                open_dht(endpoint, rng=rng, wall_clock=wall) as dht,
            ):
                finder = RunFinder(endpoint, dht)
                await dht.bootstrap([] if index == 0 else [Address(self.ip(0), PORT)])
                manifest = self.manifest if index == 0 else await finder.find("simulated")
                assert manifest == self.manifest
                clock = HybridClock(identity.node_id, lambda: int(wall() * 1000))
                author = Author(identity.public_key, identity.sign)
                state = RunState(author, clock, manifest.hash, verify)
                protocol = DiLoCo(DiLoCo.parse_settings({}))
                averager = DiLoCo.averager({})
                trainer = ToyTrainer(self, index, averager, rng)

                def held() -> HeldState | None:
                    if trainer.position is None:
                        return None
                    vectors = [trainer.views[name] for name in averager.consensus]
                    return HeldState(trainer.position.round, trainer.position.state, vectors)

                run_id = manifest.hash
                async with (
                    open_replication(endpoint, state, run_id.hex()[:32], rng=rng) as replication,
                    open_group(
                        endpoint,
                        run_id,
                        settings=EpochSettings(min_members=manifest.min_members),
                        rng=rng,
                    ) as group,
                    open_handover(endpoint, run_id, held) as handover,
                    trio.open_nursery() as nursery,
                ):
                    state.set_member(MemberInfo(name=f"n{index}", addresses=(str(address),)))
                    replication.notify()

                    async def stay_connected() -> None:
                        await finder.announce(manifest, endpoint.addresses)
                        while True:
                            await finder.connect_members(run_id)
                            for node, member in state.members().items():
                                await finder.connect(NodeId(node), member.addresses)
                            await trio.sleep(2.0)

                    def on_round(report: RunReport) -> None:
                        self.report(report)
                        state.set_progress(
                            Progress(
                                round=report.round,
                                step=report.round * 5,
                                loss=None,
                                tokens=report.round,
                                tokens_per_s=0.0,
                                state_sha256=report.state,
                            )
                        )
                        replication.notify()

                    group.on_waiting = lambda count, of: (
                        trainer.hurry(trainer._round) if 2 * count >= of else None
                    )
                    nursery.start_soon(stay_connected)
                    await run_rounds(
                        group,
                        handover,
                        protocol,
                        averager,
                        trainer,
                        nonce=lambda: rng.randbytes(16),
                        on_phase=lambda _phase: None,
                        on_round=on_round,
                    )
                    assert trainer.position is not None
                    self.final[index] = trainer.position
                    self.params[index] = trainer.views["theta"].copy()
                    self.aborted += group.aborted_operations
                    self.fetched += handover.fetched
                    while len(self.final) < self.count:
                        await trio.sleep(0.5)
                    await trio.sleep(6.0)  # quiescence: several anti-entropy intervals
                    self.documents[index] = state.digest()
                    while len(self.documents) < self.count:
                        await trio.sleep(0.5)
                    nursery.cancel_scope.cancel()

    def kill(self, index: int) -> None:
        self.network.kill_host(self.ip(index))
        self.scopes[index].cancel()

    def digest(self) -> str:
        """Of everything that was sent, and when."""
        return self.network.trace_digest().hex()
