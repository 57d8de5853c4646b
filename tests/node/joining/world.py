"""A swarm of joining services under virtual time: calls with latency and loss, an issuer that dies and comes back. No transport."""

import random
from collections.abc import Mapping
from pathlib import Path

import trio

from node.joining.asking import redeem
from node.joining.code import InviteCode
from node.joining.facts import SwarmFacts
from node.joining.reasons import JoinRefused
from node.joining.redeemer import Joined, Redeemer
from node.joining.service import Joining, Surroundings, open_joining
from tests.node.joining.people import NOW_MS, ROOT, SWARM_ID, SWARM_SECRET, newcomer
from transport.address import Address
from transport.errors import ConnectFailed, PeerLost
from transport.identity import Identity, NodeId
from transport.trust.chain import Chain, certify_by_root
from transport.trust.trust import Trust


class WorldPeer:
    """A connected member."""

    def __init__(self, world: "World", caller: "Member", to: "Member") -> None:
        self.node_id = to.identity.node_id
        self.address = to.address
        self.initiated = True
        self._world, self._caller, self._to = world, caller, to

    async def call(self, _protocol: str, request: bytes) -> bytes:
        await self._world.travel()
        answer = await self._to.run(
            lambda joining: joining.answer_member(self._caller.as_peer, request)
        )
        await self._world.travel()
        return answer


class Member:
    """One member: its service runs in lives, each ended by `kill`; the disk stays."""

    def __init__(self, world: "World", number: int, folder: Path) -> None:
        self.world, self.folder = world, folder
        self.identity = Identity.from_seed(bytes([100 + number]) * 32)
        self.chain = certify_by_root(
            ROOT,
            subject=self.identity.public_key,
            role="trainer",
            may_invite=True,
            serial=bytes([number]) * 16,
            now_ms=NOW_MS,
        )
        self.address = Address(f"198.51.100.{number + 1}", 7447)
        self.trust = Trust(SWARM_ID, self.chain.raw)
        self.known: list[Chain] = []
        self.joining: Joining | None = None
        self.scope = trio.CancelScope()
        self.lives = 0
        self.calls: set[trio.CancelScope] = set()
        self.as_peer = WorldPeer(world, self, self)

    # What the service sees as its endpoint

    @property
    def peers(self) -> Mapping[NodeId, WorldPeer]:
        return {
            other.identity.node_id: WorldPeer(self.world, self, other)
            for other in self.world.members
            if other is not self and other.joining is not None
        }

    @property
    def advertised(self) -> tuple[Address, ...]:
        return (self.address, Address("127.0.0.1", 7447))

    async def connect(self, addresses, *, expected):
        await self.world.travel()
        for other in self.world.members:
            if other.identity.node_id == expected and other.joining is not None:
                return WorldPeer(self.world, self, other)
        raise ConnectFailed(f"nobody at {addresses}")

    def serve_calls(self, _protocol, _handler) -> None: ...
    def unserve(self, _protocol) -> None: ...

    # Its lives

    async def live(self, *, task_status=trio.TASK_STATUS_IGNORED) -> None:
        self.scope = trio.CancelScope()
        self.lives += 1
        with self.scope:
            around = Surroundings(
                endpoint=self,
                trust=self.trust,
                swarm_secret=SWARM_SECRET,
                facts=SwarmFacts(name="attic"),
                find=self.find,
                on_member=self.known.append,
                wall_ms=lambda: NOW_MS + int(trio.current_time() * 1000),
                random_bytes=random.Random(f"{self.identity}{self.lives}").randbytes,
                in_thread=self.slow_disk,
            )
            async with open_joining(around, self.folder) as self.joining:
                task_status.started()
                await trio.sleep_forever()
        self.joining = None

    async def slow_disk(self, store, invite) -> None:
        """The kill may come before the write, or after it and before anybody knows."""
        await trio.sleep(self.world.rng.uniform(0, 0.02))
        store(invite)
        await trio.sleep(self.world.rng.uniform(0, 0.02))

    async def find(self, half: bytes):
        await self.world.travel()
        return [
            (each.identity.node_id, [each.address])
            for each in self.world.members
            if each.identity.node_id.startswith(half)
        ]

    def kill(self) -> None:
        """What it was doing is gone with it, at the next await."""
        self.joining = None
        for scope in (self.scope, *self.calls):
            scope.cancel()

    async def run(self, task):
        """Something that this life does for a caller; dies with it."""
        if self.joining is None:
            raise PeerLost("the node is gone")
        with trio.CancelScope() as scope:
            self.calls.add(scope)
            try:
                return await task(self.joining)
            finally:
                self.calls.discard(scope)
        raise PeerLost("the node is gone")


class World:
    """Some members, any of which a newcomer may ask."""

    def __init__(self, seed: int, members: int, folder: Path) -> None:
        self.rng = random.Random(seed)
        self.loss = 0.05
        self.members = [Member(self, n, folder / f"member-{n}") for n in range(members)]
        self.outcomes: list[Joined | JoinRefused] = []

    async def travel(self) -> None:
        await trio.sleep(self.rng.uniform(0.001, 0.2))
        if self.rng.random() < self.loss:
            raise PeerLost("lost on the way")

    async def ask(self, address: Address, request: bytes) -> bytes:
        await self.travel()
        member = next(each for each in self.members if each.address == address)
        answer = await member.run(
            lambda joining: joining.answer_stranger(request, str(self.rng.random()))
        )
        await self.travel()
        return answer

    async def newcomer(self, code: InviteCode, number: int) -> None:
        """Tries until it knows, through members in an order of its own; half of them forget and begin anew."""
        identity = newcomer(number)
        for attempt in range(200):
            asking = Redeemer(code, identity, random.Random(f"{number}/{attempt}").randbytes)
            ways = self.rng.sample(self.members, 3)
            try:
                joined = await redeem(
                    asking,
                    [each.address for each in ways],
                    self.ask,
                    wall_ms=lambda: NOW_MS + int(trio.current_time() * 1000),
                )
            except JoinRefused as error:
                if error.reason.word in {"issuer-unreachable", "busy"}:
                    await trio.sleep(self.rng.uniform(0.5, 3))
                    continue
                self.outcomes.append(error)
                return
            except Exception as error:
                if type(error).__name__ != "PeerNotReachable":
                    raise
                await trio.sleep(self.rng.uniform(0.5, 3))
                continue
            assert joined.chain.node_id == identity.node_id
            self.outcomes.append(joined)
            return
        raise AssertionError("two hundred attempts and no outcome")
