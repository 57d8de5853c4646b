import hashlib

import numpy as np
import pytest
import trio

from gossip.decentralized.arithmetic import model_digest
from gossip.decentralized.network import neighbours
from gossip.decentralized.network.delivery import QUEUE_MESSAGES
from gossip.decentralized.protocol import Cancel, Send, Train
from gossip.errors import ProtocolFailed
from gossip.protocols.dpsgd import DPSGD
from tests.gossip.decentralized.gossips import RUN, Gossips
from tests.gossip.decentralized.toy import Everybody, Quadratic, Said
from transport.codec import pack
from transport.simulated.deterministic import run_deterministically
from transport.simulated.link_model import LinkSettings


def everybody(context):
    return Everybody(Everybody.parse_settings({}), context)


def quadratic(index):
    return Quadratic(float(index), 0.1 + 0.01 * index, trio.sleep)


async def together(gossips, count, **options):
    """All nodes, started with each other in sight, to their last round."""
    async with trio.open_nursery() as nursery:
        for index in range(count):
            await nursery.start(lambda task_status, i=index: gossips.node(
                i, others=count - 1, task_status=task_status, **options
            ))  # fmt: skip
        for life in gossips.lives.values():
            await life.driver.finished.wait()
        await trio.sleep(1)
        nursery.cancel_scope.cancel()


async def eight(seed):
    gossips = Gossips(seed, everybody, quadratic, rounds=6)
    await together(gossips, 8)
    return gossips


def trace(gossips):
    digest = hashlib.sha256(gossips.network.trace_digest())
    for _, life in sorted(gossips.lives.items()):
        for step in life.progress:
            digest.update(step.digest)
    return digest.hexdigest()


def test_eight_nodes_of_one_seed_do_the_same_twice():
    gossips = run_deterministically(3, eight, 3)
    lives = list(gossips.lives.values())
    assert [[step.round for step in life.progress] for life in lives] == [[1, 2, 3, 4, 5, 6]] * 8
    assert all(step.members == 8 for life in lives for step in life.progress)
    last = {life.progress[-1].digest for life in lives}
    assert len(last) == 1
    model = lives[0].core.model
    assert model_digest(model) in last
    assert 0 < model[0] < 3.5  # on the way to the mean of all targets
    assert lives[0].driver.described == {"round": 6, "neighbours": 7}
    statistics = lives[0].driver.statistics
    assert statistics.messages_sent == statistics.messages_received == 6 * 7
    assert statistics.bytes_received >= 6 * 7 * 4 * gossips.numel
    assert not statistics.lost
    assert trace(run_deterministically(3, eight, 3)) == trace(gossips)
    assert trace(run_deterministically(4, eight, 4)) != trace(gossips)


def test_large_models_are_called_for_in_a_thread():
    """With real time, and the same result."""

    async def three():
        gossips = Gossips(
            1, everybody, lambda i: Quadratic(float(i), 0.0, trio.sleep), rounds=2, numel=1 << 18
        )
        await together(gossips, 3)
        return gossips

    gossips = trio.run(three)
    assert len({life.progress[-1].digest for life in gossips.lives.values()}) == 1
    assert all(life.driver._threaded for life in gossips.lives.values())


def test_a_node_leaves_one_is_killed_and_one_comes_late():
    async def scenario():
        gossips = Gossips(5, everybody, quadratic, rounds=0)
        async with trio.open_nursery() as nursery:
            for index in range(4):
                await nursery.start(lambda task_status, i=index: gossips.node(
                    i, others=3, task_status=task_status
                ))  # fmt: skip
            lives = gossips.lives
            while len(lives[0].progress) < 3:
                await trio.sleep(0.1)
            gone = gossips.identity(1).node_id
            await lives[1].driver.leave()
            assert lives[1].core.left
            # Its connection is still there, but it is no member any more.
            assert gone in lives[0].endpoint.peers
            assert gone not in lives[0].core.others
            lives[1].scope.cancel()
            gossips.network.kill_host(gossips.ip(2))
            lives[2].scope.cancel()
            await trio.sleep(6)  # heartbeats find out
            assert lives[0].core.others == [gossips.identity(3).node_id]
            at = len(lives[0].progress)
            newcomer = await nursery.start(lambda task_status: gossips.node(
                4, params=9.0, round_=lives[0].core.round, task_status=task_status
            ))  # fmt: skip
            while not any(step.members == 3 for step in lives[0].progress[at:]):
                await trio.sleep(0.1)
            assert gossips.identity(4).node_id in lives[3].core.others
            assert newcomer.progress
            nursery.cancel_scope.cancel()

    run_deterministically(5, scenario)


def test_a_patience_below_the_way_of_a_model_is_told_and_so_is_what_came():
    """Three nodes learn side by side: each model comes after the round that it is of."""

    def impatient(context):
        return DPSGD(DPSGD.parse_settings({"graph": "full", "patience": 0.01}), context)

    async def scenario(latency_s, rounds):
        gossips = Gossips(
            2, impatient, quadratic, rounds=rounds, link=LinkSettings(latency_s=latency_s)
        )
        await together(gossips, 3)
        return gossips

    told = run_deterministically(2, scenario, 0.1, 12)
    for index in (0, 1):  # the slowest catches up with what came for later rounds
        life = told.lives[index]
        assert life.driver.solitude is not None
        assert life.driver.solitude.rounds >= 5
        assert "came too late" in life.driver.solitude.reason
        traffic = life.driver.delivery.traffic
        others = {told.identity(other).node_id for other in range(3) if other != index}
        assert set(traffic) == others
        for each in traffic.values():
            assert each.models_received > 0
            assert each.bytes_received > each.models_received * 4 * told.numel
            assert each.last_model_at is not None
        assert (
            sum(each.bytes_sent for each in traffic.values()) == life.driver.statistics.bytes_sent
        )
    quick = run_deterministically(2, scenario, 0.001, 12)
    assert all(life.driver.solitude is None for life in quick.lives.values())


def test_only_equal_models_are_mixed():
    async def scenario():
        gossips = Gossips(6, everybody, quadratic, rounds=3)
        async with trio.open_nursery() as nursery:
            await nursery.start(lambda task_status: gossips.node(0, task_status=task_status))
            other = hashlib.sha256(b"another model").digest()
            await nursery.start(
                lambda task_status: gossips.node(1, model=other, task_status=task_status)
            )
            for life in gossips.lives.values():
                await life.driver.finished.wait()
            assert all(
                step.members == 1 for life in gossips.lives.values() for step in life.progress
            )
            assert gossips.lives[0].driver.neighbours.counters["other-model"] >= 1
            nursery.cancel_scope.cancel()

    run_deterministically(6, scenario)


@pytest.mark.parametrize(
    "bad",
    [
        b"\x07 no message at all",
        b"\x01\x00\x00\x00\x00\x05hello",  # well framed, but none of the protocol's
        b"\x01\x01\x00\x00\x00\x00\x04" + (51).to_bytes(8, "big"),  # too long a vector
        b"\x01\x01\x00\x00\x00\x00\x04" + (1).to_bytes(8, "big") + b"\x00\x00\xc0\x7f",  # NaN
    ],
)
def test_who_sends_nonsense_is_not_listened_to_for_a_while(bad, monkeypatch):
    monkeypatch.setattr(neighbours, "OUT_S", 10.0)

    async def scenario():
        gossips = Gossips(7, everybody, quadratic, rounds=0)
        async with trio.open_nursery() as nursery:
            for index in range(3):
                await nursery.start(lambda task_status, i=index: gossips.node(
                    i, others=2, task_status=task_status
                ))  # fmt: skip
            victim, liar = gossips.lives[0], gossips.lives[2]
            while not victim.progress:
                await trio.sleep(0.1)
            peer = liar.endpoint.peers[victim.endpoint.node_id]
            stream = await peer.open_stream(f"gossip/{RUN.hex()[:32]}")
            await stream.send_all(bad)
            await stream.send_eof()
            await trio.sleep(2)
            assert victim.core.others == [gossips.identity(1).node_id]
            assert victim.driver.neighbours.counters["put-out"] == 1
            assert victim.driver.delivery.room.bytes == 0
            rounds = len(victim.progress)
            await trio.sleep(5)
            assert len(victim.progress) > rounds  # the others go on
            assert liar.driver.statistics.lost["refused"] > 0
            await trio.sleep(20)
            assert gossips.identity(2).node_id in victim.core.others
            nursery.cancel_scope.cancel()

    run_deterministically(7, scenario)


def test_one_member_cannot_take_the_room_of_all():
    """Eight vectors of float64, announced and sent slowly, would be sixteen models held for hours."""

    async def scenario():
        numel = 100_000
        gossips = Gossips(7, everybody, quadratic, rounds=0, numel=numel)
        async with trio.open_nursery() as nursery:
            for index in range(2):
                await nursery.start(lambda task_status, i=index: gossips.node(
                    i, others=1, task_status=task_status
                ))  # fmt: skip
            victim, liar = gossips.lives[0], gossips.lives[1]
            while not victim.progress:
                await trio.sleep(0.1)
            peer = liar.endpoint.peers[victim.endpoint.node_id]
            stream = await peer.open_stream(f"gossip/{RUN.hex()[:32]}")
            await stream.send_all(b"\x01\x08" + bytes(4) + 8 * (b"\x08" + numel.to_bytes(8, "big")))
            await trio.sleep(1)
            assert victim.driver.delivery.room.bytes <= 4 * 4 * numel
            assert victim.driver.neighbours.counters["put-out"] == 1
            nursery.cancel_scope.cancel()

    run_deterministically(7, scenario)


class Unsettled(Everybody):
    """There is another change of the members as soon as it has heard of one."""

    heard_of = 0
    kept_waiting = False
    driver = None

    def members(self, others, now) -> None:
        super().members(others, now)
        if self.driver is not None and self.heard_of < 1000:
            self.heard_of += 1
            self.kept_waiting = not self.started
            self.driver._members_changed()


def test_members_that_come_and_go_all_the_time_keep_nobody_waiting():
    async def scenario():
        make = Unsettled.parse_settings
        gossips = Gossips(5, lambda context: Unsettled(make({}), context), quadratic)
        async with trio.open_nursery() as nursery:
            for index in range(2):
                life = await nursery.start(lambda task_status, i=index: gossips.node(
                    i, others=1, task_status=task_status
                ))  # fmt: skip
                life.core.driver = life.driver
            core = gossips.lives[0].core
            while core.heard_of < 1000:
                await trio.sleep(0.01)
            assert core.started
            assert not core.kept_waiting
            nursery.cancel_scope.cancel()

    run_deterministically(5, scenario)


class Loose(Everybody):
    """Asks for whatever a test wants."""

    def _train(self) -> None:
        return


def test_what_cannot_be_sent_is_told_to_the_core():
    async def scenario():
        gossips = Gossips(
            8, lambda context: Loose(Loose.parse_settings({}), context), quadratic, rounds=0
        )
        async with trio.open_nursery() as nursery:
            for index in range(2):
                await nursery.start(lambda task_status, i=index: gossips.node(
                    i, others=1, task_status=task_status
                ))  # fmt: skip
            life = gossips.lives[0]
            await trio.sleep(1)
            other, stranger = gossips.identity(1).node_id, gossips.identity(9).node_id
            core, nan = life.core, np.full(3, np.nan, np.float32)
            core._emit(Send(stranger, pack(Said(0)), key=1))
            core._emit(Send(other, pack(Said(0)), (nan,), key=2))
            for key in range(QUEUE_MESSAGES + 20):
                core._emit(Send(other, pack(Said(0)), (np.zeros(5, np.float32),), key=100 + key))
            life.driver._members_changed()
            await trio.sleep(5)
            statistics = life.driver.statistics
            assert statistics.lost == {"no-neighbour": 1, "not-finite": 1, "queue-full": 20}
            assert statistics.messages_sent == QUEUE_MESSAGES
            assert {key for _, key in core.lost} == {1, 2, *range(356, 376)}
            nursery.cancel_scope.cancel()

    run_deterministically(8, scenario)


def test_a_cancelled_leg_is_never_heard_of_again():
    async def scenario():
        gossips = Gossips(
            9, lambda context: Loose(Loose.parse_settings({}), context), quadratic, rounds=0
        )
        async with trio.open_nursery() as nursery:
            life = await nursery.start(lambda task_status: gossips.node(0, task_status=task_status))
            await trio.sleep(0.1)
            core, start = life.core, np.zeros(gossips.numel, np.float32)
            heard = []
            core.trained = lambda work, now: heard.append(work.steps)
            for event in (Train(start, 3), Cancel(), Train(start, 2), Cancel(), Train(start, 1)):
                core._emit(event)
            life.driver._members_changed()
            await trio.sleep(5)
            assert heard == [1]
            nursery.cancel_scope.cancel()

    run_deterministically(9, scenario)


class Broken(Everybody):
    def trained(self, work, now):
        raise ZeroDivisionError("as protocols may")


class Greedy(Everybody):
    def _train(self) -> None:
        super()._train()
        super()._train()


@pytest.mark.parametrize("kind", [Broken, Greedy])
def test_a_protocol_that_fails_ends_its_driver_with_one_error(kind):
    async def scenario():
        gossips = Gossips(
            10, lambda context: kind(kind.parse_settings({}), context), quadratic, rounds=0
        )
        await gossips.node(0)

    with pytest.raises(ExceptionGroup) as caught:
        run_deterministically(10, scenario)
    assert caught.group_contains(ProtocolFailed, match="everybody")
