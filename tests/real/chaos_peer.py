"""One peer of the chaos test: a process of its own with an endpoint on 127.0.0.1 and a collective group.

chaos_peer.py SPEC     SPEC is JSON: index, ports, memory (a file), seed

Without end it runs operations in three lanes: rounds in lane 0, and two tags. What a member brings to an operation follows from its
index, the lane and the operation's number, so anybody can say what the result has to be for any set of members; values
are whole numbers, so the sum is exact. Each certified result is checked here in full and told in a line, for comparison
with what the others hold. Commands on standard input: "rst" resets every connection, "drop SECONDS" lets nothing through.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import trio

from gossip.collective.agreement.epoch_events import EpochSettings
from gossip.collective.call import Call
from gossip.collective.group import Behind, Group, Job, open_group
from gossip.errors import CollectiveAborted, Indeterminate
from tests.trusted import SWARM, trust_of
from transport.address import Address
from transport.buffer import Buffer
from transport.bulk.link import BulkLink
from transport.endpoint import Endpoint, open_endpoint
from transport.errors import TransportError
from transport.identity import Identity
from transport.network import Network, RawListener, RawStream
from transport.tcp import TcpNetwork

RUN = hashlib.sha256(b"the run of the chaos test").digest()
START = hashlib.sha256(b"start").digest()
LENGTHS = {0: 120_000, 1: 3_000, 2: 40_000}
"""Values in an operation, by lane."""
CALL_S = 20.0
GRACE_S = 2.0
PAUSE_S = 0.05
BASE = np.arange(max(LENGTHS.values()), dtype=np.int64)


def identity(index: int) -> Identity:
    return Identity.from_seed(hashlib.sha256(b"chaos/%d" % index).digest())


def brings(index: int, lane: int, number: int, length: int | None = None) -> np.ndarray:
    """Whole numbers below 1009: of eight members the sum is exact."""
    values = BASE[: LENGTHS[lane] if length is None else length]
    return ((values * (index + 7) + 31 * number + 7 * lane) % 1009).astype(np.float32)


def say(**words: Any) -> None:
    """One line, written at once: who says it may be dead the next moment."""
    os.write(1, (json.dumps(words) + "\n").encode())


class FaultyStream(RawStream):
    """Another stream that can fall silent."""

    def __init__(self, network: FaultyNetwork, inner: RawStream) -> None:
        self._network, self._inner = network, inner
        self.local, self.remote = inner.local, inner.remote
        self.path = inner.path
        network.streams.add(self)

    @property
    def can_send_now(self) -> bool:  # type: ignore[override]
        return not self._network.silent and self._inner.can_send_now

    def send_now(self, data: memoryview) -> int:
        return 0 if self._network.silent else self._inner.send_now(data)

    def receive_now(self, buffer: memoryview) -> int:
        return 0 if self._network.silent else self._inner.receive_now(buffer)

    def expect_bulk(self) -> None:
        self._inner.expect_bulk()

    async def send_all(self, data: Buffer) -> None:
        await self._network.heard()
        await self._inner.send_all(data)

    async def receive_into(self, buffer: memoryview) -> int:
        await self._network.heard()
        return await self._inner.receive_into(buffer)

    async def aclose(self) -> None:
        self._network.streams.discard(self)
        await self._inner.aclose()

    def abort(self) -> None:
        self._network.streams.discard(self)
        self._inner.abort()


class FaultyListener(RawListener):
    def __init__(self, network: FaultyNetwork, inner: RawListener) -> None:
        self._network, self._inner = network, inner
        self.address = inner.address

    async def accept(self) -> RawStream:
        return FaultyStream(self._network, await self._inner.accept())

    async def aclose(self) -> None:
        await self._inner.aclose()


class FaultyNetwork(Network):
    """Kernel TCP with faults on demand."""

    def __init__(self) -> None:
        self._inner = TcpNetwork()
        self.streams: set[FaultyStream] = set()
        self.silent = False
        self._again = trio.Event()

    async def heard(self) -> None:
        while self.silent:
            await self._again.wait()

    def drop(self) -> None:
        self.silent = True

    def heal(self) -> None:
        self.silent = False
        self._again.set()
        self._again = trio.Event()

    def reset(self) -> None:
        for stream in list(self.streams):
            stream.abort()

    async def connect(self, address: Address, *, source: Address | None = None) -> RawStream:
        await self.heard()
        return FaultyStream(self, await self._inner.connect(address, source=source))

    async def listen(self, address: Address) -> RawListener:
        return FaultyListener(self, await self._inner.listen(address))


class Peer:
    def __init__(self, spec: dict[str, Any], endpoint: Endpoint, group: Group) -> None:
        self.index: int = spec["index"]
        self.addresses = [Address("127.0.0.1", port) for port in spec["ports"]]
        self.ids = {identity(index).node_id: index for index in range(len(self.addresses))}
        self.endpoint, self.group = endpoint, group
        self.round, self.state = 0, START
        self.certified = 0
        self._frozen_s = 0.0
        self._looked_at = trio.current_time()

    def frozen_s(self) -> float:
        """Seconds in which nothing happened in this process at all: it was stopped, or the machine was busy.

        Asked for, and not kept by `watch_time` alone: of the tasks that wake after a stop another one may be the first.
        """
        now = trio.current_time()
        self._frozen_s += max(0.0, now - self._looked_at - 0.3)
        self._looked_at = now
        return self._frozen_s

    async def watch_time(self) -> None:
        while True:
            await trio.sleep(0.1)
            self.frozen_s()

    async def stay_connected(self) -> None:
        """Whoever has the higher index dials; a fault may strike in the middle of it."""
        while True:
            for node, index in self.ids.items():
                if index < self.index and node not in self.endpoint.peers:
                    with trio.move_on_after(3):
                        try:
                            await self.endpoint.connect([self.addresses[index]], expected=node)
                        except TransportError:
                            continue
            await trio.sleep(0.2)

    async def call(self, lane: int, number: int, descriptor: bytes) -> bool:
        """One operation to its end, checked; False if there is no certificate."""
        source = brings(self.index, lane, number)
        before, out = source.copy(), np.empty_like(source)
        deadline, frozen_s = trio.current_time() + CALL_S, self.frozen_s()
        call = Call().bind(descriptor, source)
        try:
            reduced = await self.group.run_job(Job(call, source, out, lane, deadline))
        except (CollectiveAborted, Indeterminate) as error:
            late = trio.current_time() - deadline - (self.frozen_s() - frozen_s)
            say(ended=type(error).__name__, lane=lane, late=late)
            return False
        finally:
            if not np.array_equal(source, before):
                say(wrong="the source was written")
        members = [self.ids[member] for member in reduced.epoch.members]
        expected = sum(brings(index, lane, number) for index in members)
        if not np.array_equal(out, expected):
            say(wrong=f"a sum that {members} cannot have")
        if trio.current_time() > deadline + GRACE_S + self.frozen_s() - frozen_s:
            say(wrong="a call that outlived its deadline")
        self.certified += 1
        say(
            epoch=reduced.epoch.id.hex()[:24],
            lane=lane,
            sequence=reduced.certificate.sequence,
            number=number,
            members=members,
            digest=hashlib.sha256(out.tobytes()).hexdigest()[:24],
            first=[float(value) for value in out[:4]],
        )
        return True

    async def rounds(self) -> None:
        while True:
            self.group.set_position(self.round, self.state)
            descriptor = self.state + b"%d" % self.round
            try:
                if not await self.call(0, self.round, descriptor):
                    continue
            except Behind as behind:
                # What a run would fetch; here the position is all there is.
                self.round, self.state = behind.epoch.round, behind.epoch.state
                continue
            self.round += 1
            self.state = hashlib.sha256(self.state + b"%d" % self.round).digest()
            await trio.sleep(PAUSE_S)

    async def tag(self, lane: int) -> None:
        while True:
            await self.call(lane, 0, b"tag %d" % lane)
            await trio.sleep(PAUSE_S)


async def commands(network: FaultyNetwork, peer: Peer) -> None:
    """Do what standard input says; its end is the end."""
    async with trio.open_nursery() as nursery:
        reader = trio.lowlevel.FdStream(os.dup(0))
        pending = b""
        while data := await reader.receive_some(4096):
            pending += data
            *lines, pending = pending.split(b"\n")
            for line in lines:
                match line.decode().split():
                    case ["rst"]:
                        network.reset()
                    case ["drop", seconds]:
                        nursery.start_soon(silence, network, float(seconds))
                    case ["report"]:
                        gc.collect()
                        process = psutil.Process()
                        memory = process.memory_info()
                        say(
                            report=True,
                            round=peer.round,
                            state=peer.state.hex(),
                            certified=peer.certified,
                            fds=process.num_fds(),
                            links=sum(isinstance(one, BulkLink) for one in gc.get_objects()),
                            of_epoch=links_of(peer.group),
                            tasks=trio.lowlevel.current_statistics().tasks_living,
                            # Without what it shares with others: the slots of its links, which a hub has several times as many of.
                            memory=memory.rss - memory.shared,
                            accused=sum(peer.group.accusations.values()),
                            notes=list(peer.group.notes)[-8:],
                        )
        nursery.cancel_scope.cancel()


def links_of(group: Group) -> int:
    """Bulk links of the present epoch."""
    lanes = group._mesh._lanes.values()
    return sum(len(lane._out) + len(lane._into) for lane in lanes)


async def silence(network: FaultyNetwork, seconds: float) -> None:
    network.drop()
    await trio.sleep(seconds)
    network.heal()


async def main(spec: dict[str, Any]) -> None:
    me, memory = identity(spec["index"]), Path(spec["memory"])
    network, rng = FaultyNetwork(), random.Random(os.urandom(8))

    stored = memory.read_bytes() if memory.exists() else None  # noqa: ASYNC240 - before anything runs

    def remember(data: bytes) -> None:
        new = memory.with_suffix(".new")
        new.write_bytes(data)
        new.replace(memory)

    async with (
        open_endpoint(
            me,
            SWARM,
            network,
            [Address("127.0.0.1", spec["ports"][spec["index"]])],
            trust=trust_of(me),
            name=f"chaos{spec['index']}",
            rng=rng,
            random_bytes=os.urandom,
        ) as endpoint,
        open_group(
            endpoint,
            RUN,
            settings=EpochSettings(min_members=len(spec["ports"])),
            rng=rng,
            memory=stored,
            remember=remember,
        ) as group,
        trio.open_nursery() as nursery,
    ):
        peer = Peer(spec, endpoint, group)
        nursery.start_soon(peer.stay_connected)
        nursery.start_soon(peer.watch_time)
        nursery.start_soon(peer.rounds)
        nursery.start_soon(peer.tag, 1)
        nursery.start_soon(peer.tag, 2)
        say(ready=True)
        await commands(network, peer)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, json.loads(sys.argv[1]))
