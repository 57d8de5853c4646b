"""One member of a collective group as a process, for `benchmarks/recovery.py` and `benchmarks/wan.py`.

    python benchmarks/collective_rank.py SPEC        what `Rank` starts

A rank takes commands as lines of JSON and answers each with one: `reduce` (an all-reduce of known inputs),
`check` (the last result against a float64 sum of its members' inputs), `rounds` (small reductions until so many
members take part), `join` (connect late, fetch the state). All times are CLOCK_MONOTONIC, which is the same
for all processes of a machine. A rank that is told to come to harm does it itself after a given share of
the operation's segments has arrived, and says when just before: no timer decides what "in the middle" is.
"""
# ruff: noqa: E402  (the path comes first)

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import os
import random
import signal
import struct
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import trio
from blake3 import blake3
from rank_process import RankProcess, say

from gossip.collective.agreement.epoch_events import EpochSettings
from gossip.collective.agreement.former import proposer_of
from gossip.collective.algorithms.ring import NETWORK_SEGMENT_BYTES, SEGMENT_BYTES
from gossip.collective.group import Behind, Group, Reduced, open_group
from gossip.collective.links.buffers import as_bytes
from gossip.collective.state.handover import Handover, HeldState, open_handover
from gossip.errors import GossipError
from transport.address import Address
from transport.bulk.link import BulkLink
from transport.endpoint import Endpoint, open_endpoint
from transport.errors import TransportError
from transport.identity import Identity
from transport.peer import Peer
from transport.swarm import Swarm
from transport.tcp import TcpNetwork
from transport.trust.chain import certify_by_root
from transport.trust.trust import Trust

SEED = b"benchmark of recovery"
RUN = hashlib.sha256(b"run" + SEED).digest()
PATIENCE_S = 60.0
SMALL_BYTES = 1 << 20
"""Of each round while somebody joins."""
PING_S = 0.02
PAUSE_S = 0.05
"""Between two of these rounds."""


def identity(rank: int) -> Identity:
    return Identity.from_seed(hashlib.sha256(SEED + b"%d" % rank).digest())


def inputs(rank: int, operation: int, size: int) -> np.ndarray:
    """What a rank brings to an operation: no two ranks and no two operations alike."""
    values = np.random.default_rng([rank, operation]).random(size // 4, np.float32)
    values -= np.float32(0.5)
    return values


def farthest(out: np.ndarray, ranks: Sequence[int], operation: int) -> float:
    """Largest difference to the float64 sum, in units of what rounding to float32 may cost."""
    total, size_of = np.zeros(out.size), np.zeros(out.size)
    for rank in ranks:
        values = inputs(rank, operation, out.nbytes)
        total += values
        size_of += np.abs(values)
    allowed = size_of * np.finfo(np.float32).eps * max(1, len(ranks) - 1) + 1e-30
    return float(np.max(np.abs(out - total) / allowed))


class _Steps(logging.Handler):
    """When epochs were left and entered."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.seen: list[tuple[float, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append((time.monotonic(), record.getMessage()))


class Member:
    """What one rank does."""

    def __init__(self, spec: dict[str, Any], endpoint: Endpoint, group: Group) -> None:
        self.rank: int = spec["rank"]
        self.addresses = [Address(host, port) for host, port in spec["addresses"]]
        self.endpoint, self.group = endpoint, group
        self.handover: Handover | None = None
        self.ranks = {identity(rank).node_id: rank for rank in range(len(self.addresses))}
        self.vector = np.zeros(spec["state_bytes"] // 4, np.float32)
        self.round, self.content = 0, b""
        self.out = np.zeros(0, np.float32)
        self.last: tuple[int, Reduced] | None = None
        self.steps = _Steps()
        log = logging.getLogger("gossip.collective.group")
        log.setLevel(logging.INFO)
        log.propagate = False
        log.addHandler(self.steps)
        mesh, told = group._mesh, group._mesh._on_change

        def links_are_there() -> None:
            self.steps.seen.append((time.monotonic(), "links"))
            told()

        mesh._on_change = links_are_there

    # ---- where it stands -------------------------------------------------------------------

    def state(self) -> bytes:
        return hashlib.sha256(struct.pack(">Q", self.round) + self.content).digest()

    def stand(self) -> None:
        self.group.set_position(self.round, self.state())

    def held(self) -> HeldState | None:
        return HeldState(self.round, self.state(), [self.vector]) if self.content else None

    async def connect(self, ranks: Sequence[int]) -> None:
        for rank in ranks:
            with trio.fail_after(PATIENCE_S):
                while True:
                    with contextlib.suppress(TransportError):
                        await self.endpoint.connect([self.addresses[rank]])
                        break
                    await trio.sleep(0.05)

    async def enter(self) -> None:
        """The state of one who was there from the beginning."""
        self.vector[:] = np.random.default_rng(0).random(self.vector.size, np.float32)
        self.content = hashlib.sha256(as_bytes(self.vector)).digest()
        self.stand()
        with trio.fail_after(PATIENCE_S):
            await self.group.wait_entered()

    # ---- commands --------------------------------------------------------------------------

    async def reduce(
        self, *, operation: int, size: int, harm: dict[str, Any] | None, pings: bool = False
    ) -> Any:
        # In a thread, as the check is: a member whose event loop rests for seconds counts as lost.
        source = await trio.to_thread.run_sync(inputs, self.rank, operation, size)
        if self.out.nbytes != size:
            self.out = np.ones(size // 4, np.float32)
        say(prepared=True)
        await read_line()  # so that all begin together
        if harm:
            self._come_to_harm(**harm, world=len(self.addresses), size=size)
        del self.steps.seen[:]
        began, descriptor = time.monotonic(), b"operation %d" % operation
        deadline = trio.current_time() + PATIENCE_S
        took: list[float] = []
        async with trio.open_nursery() as nursery:
            if pings:
                nursery.start_soon(self._ping, took)
            reduced = await self.group.all_reduce(descriptor, source, self.out, deadline=deadline)
            ended = time.monotonic()
            nursery.cancel_scope.cancel()
        self.last = operation, reduced
        self.round += 1
        self.stand()
        assert reduced.certificate.verify(reduced.epoch.members)
        return {
            "began": began,
            "ended": ended,
            "members": sorted(self.ranks[node] for node in reduced.epoch.members),
            "epoch": reduced.epoch.number,
            "attempt": reduced.epoch.ballot.attempt,
            "root": reduced.certificate.root.hex(),
            "pings": took,
            "steps": self.steps.seen[:],
            "next_proposer": self.ranks[
                proposer_of(list(reduced.epoch.members), reduced.epoch.number + 1, 0)
            ],
        }

    async def _ping(self, took: list[float]) -> None:
        """Control round trips to every member, one begun each `PING_S` whether the one before is back or not."""

        async def once(peer: Peer) -> None:
            took.append(await peer.ping())

        async with trio.open_nursery() as nursery:
            while True:
                for peer in self.endpoint.peers.values():
                    nursery.start_soon(once, peer)
                await trio.sleep(PING_S)

    def _come_to_harm(self, *, share: float, how: str, world: int, size: int) -> None:
        # What is cut off from the others is in a network namespace of its own, and shares no memory.
        cut = NETWORK_SEGMENT_BYTES if how == "silence" else SEGMENT_BYTES
        segments = 2 * (world - 1) * -(-size // world // cut)
        count, receive_head = 0, BulkLink.receive_head

        async def counted(link: BulkLink, most: int | None = None) -> tuple[bytes, int]:
            nonlocal count
            head = await receive_head(link, most)
            count += 1
            if count == max(1, int(share * segments)):
                say(harmed=time.monotonic())
                if how != "silence":  # that is done to its network by whoever reads this
                    os.kill(os.getpid(), getattr(signal, how))
            return head

        BulkLink.receive_head = counted  # type: ignore[method-assign]

    async def check(self, *, numbers: bool) -> Any:
        """Digest of the result and, as it costs seconds, only on demand what is known of its values."""
        assert self.last is not None
        operation, reduced = self.last
        answer = {"digest": blake3(as_bytes(self.out)).hexdigest(), "error": None}
        if numbers:
            ranks = [self.ranks[node] for node in reduced.epoch.members]
            answer["error"] = await trio.to_thread.run_sync(farthest, self.out, ranks, operation)
        return answer

    def told(self) -> str:
        """What has happened here, for whoever asks why this went wrong."""
        machine = self.group.machine
        epoch = None if machine.epoch is None else machine.epoch.number
        now = f"epoch {epoch}, {len(machine.candidates())} candidates"
        return "; ".join([*self.group.notes, now])

    async def rounds(self, *, until: int) -> Any:
        """Small reductions, one after the other, until one has `until` members; the pauses between."""
        source = np.full(SMALL_BYTES // 4, self.rank + 1, np.float32)
        out, ends = np.empty_like(source), [time.monotonic()]
        while True:
            reduced = await self.group.all_reduce(
                b"round %d" % self.round,
                source,
                out,
                deadline=trio.current_time() + PATIENCE_S,
            )
            ends.append(time.monotonic())
            ranks = [self.ranks[node] for node in reduced.epoch.members]
            assert out[0] == out[-1] == sum(ranks) + len(ranks), "wrong sum"
            self.round += 1
            self.stand()
            if len(ranks) == until:
                break
            await trio.sleep(PAUSE_S)
        pauses = [after - before for before, after in itertools.pairwise(ends)]
        return {"rounds": len(pauses), "longest_s": max(pauses), "ended": ends[-1]}

    async def join(self) -> Any:
        """Connect, be found behind, fetch, and take part."""
        assert self.handover is not None
        began, fetched_s, fetches = time.monotonic(), 0.0, 0
        await self.connect([rank for rank in range(len(self.addresses)) if rank != self.rank])
        self.group.set_position(0, bytes(32))
        rng = random.Random(self.rank)
        while True:
            try:
                await self.group.wait_entered()
                break
            except Behind as behind:
                epoch, asked = behind.epoch, time.monotonic()
                await self.handover.fetch(
                    epoch.round,
                    epoch.state,
                    behind.holders,
                    [self.vector],
                    lambda epoch=epoch: self._digest_at(epoch.round),
                    nonce=lambda: rng.randbytes(16),
                )
                fetched_s, fetches = time.monotonic() - asked, fetches + 1
                self.round = epoch.round
                self.stand()
        return {"began": began, "fetched_s": fetched_s, "fetches": fetches} | await self.rounds(
            until=len(self.addresses)
        )

    def _digest_at(self, round_: int) -> bytes:
        self.content = hashlib.sha256(as_bytes(self.vector)).digest()
        return hashlib.sha256(struct.pack(">Q", round_) + self.content).digest()


async def read_line() -> str:
    return await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)


@contextlib.asynccontextmanager
async def open_member(
    own: Identity, seed: bytes, run: bytes, at: Address, *, count: int, rank: int, **options: bool
) -> AsyncIterator[tuple[Endpoint, Group]]:
    """An endpoint and its group in a swarm that `seed` makes, for an epoch of at least `count`; `options` are the group's."""
    root = Identity.from_seed(hashlib.sha256(b"root" + seed).digest())
    swarm = Swarm(hashlib.sha256(seed).digest(), root.public_key)
    chain = certify_by_root(
        root,
        subject=own.public_key,
        role="trainer",
        serial=bytes(16),
        now_ms=int(time.time() * 1000),
    )
    rng = random.Random(rank)
    trust, settings = Trust(swarm.id, chain.raw), EpochSettings(min_members=count)
    async with (
        open_endpoint(own, swarm, TcpNetwork(), [at], trust=trust, rng=rng) as endpoint,
        open_group(endpoint, run, settings=settings, rng=rng, **options) as group,
    ):
        yield endpoint, group


async def serve(spec: dict[str, Any]) -> None:
    rank, first = spec["rank"], spec["first"]
    at = Address(*spec["addresses"][rank])
    async with open_member(identity(rank), SEED, RUN, at, count=first, rank=rank) as (
        endpoint,
        group,
    ):
        member = Member(spec, endpoint, group)
        async with open_handover(endpoint, RUN, member.held) as member.handover:
            if rank < first:
                await member.connect(range(rank))
                await member.enter()
            say(ready=True)
            while line := await read_line():
                command = json.loads(line)
                try:
                    answer = await getattr(member, command.pop("do"))(**command)
                except GossipError as error:
                    say(failed=f"{error}: {member.told()}")
                else:
                    say(answer=answer)


class Rank(RankProcess):
    """A rank, seen by the run."""

    def __init__(
        self,
        rank: int,
        addresses: Sequence[tuple[str, int]],
        *,
        first: int,
        state_bytes: int = 0,
        prefix: Sequence[str] = (),
    ) -> None:
        spec = {"rank": rank, "addresses": addresses, "first": first, "state_bytes": state_bytes}
        self.rank = rank
        super().__init__(f"rank {rank}", __file__, spec, prefix=prefix)


@contextlib.contextmanager
def members(
    addresses: Sequence[tuple[str, int]],
    *,
    first: int | None = None,
    state_bytes: int = 0,
    prefixes: Sequence[Sequence[str]] | None = None,
) -> Any:
    """Ranks at these addresses; the first `first` (all, if None) have formed an epoch."""
    ranks: list[Rank] = []
    try:
        ranks.extend(
            Rank(
                rank,
                addresses,
                first=len(addresses) if first is None else first,
                state_bytes=state_bytes,
                prefix=prefixes[rank] if prefixes else (),
            )
            for rank in range(len(addresses))
        )
        for each in ranks:
            each.hear("ready")
        yield ranks
    finally:
        for each in ranks:
            each.close()


def reduce_all(
    ranks: Sequence[Rank],
    operation: int,
    size: int,
    *,
    victim: int | None = None,
    harm: dict[str, Any] | None = None,
    pings: bool = False,
) -> None:
    """Have all begin one all-reduce together; their answers are still to be heard."""
    for each in ranks:
        harmed = harm if each.rank == victim else None
        each.tell(do="reduce", operation=operation, size=size, harm=harmed, pings=pings)
    for each in ranks:
        each.hear("prepared")
    for each in ranks:
        each.tell()


if __name__ == "__main__":
    trio.run(serve, json.loads(sys.argv[1]))
