"""The life of a run at one node: with scripted neighbours, and between endpoints."""

from __future__ import annotations

import hashlib
import itertools
import struct
from collections import deque
from collections.abc import Callable
from typing import Any, get_args

import attrs
import numpy as np
import pytest
import trio
import trio.testing

from gossip.collective.agreement.certificate import GENESIS, Ballot, Certificate, Epoch
from gossip.collective.agreement.epoch_events import EpochSettings
from gossip.collective.group import Behind, Reduced
from gossip.collective.state.handover import HeldState, open_handover
from gossip.errors import DescriptorMismatch, StateUnavailable
from gossip.protocol import Apply, Contribution
from gossip.protocols.diloco import DiLoCo, Wire
from gossip.rounds import (
    Offer,
    Position,
    RunReport,
    TrainerGone,
    TrainerPort,
    round_descriptor,
    run_rounds,
)
from tests.gossip.swarm import RUN, Node, open_node, open_swarm
from transport.identity import NodeId

NUMEL = 500
LR, MU = 0.7, 0.5


class Trainer(TrainerPort):
    """Moves its parameters by a fixed step per round; writes down what it is told."""

    def __init__(self, rounds: int, step: float = 1.0, *, gone_after: int | None = None) -> None:
        self.averager = DiLoCo.averager({})
        self.views = {name: np.zeros(NUMEL, np.float32) for name in self.averager.vectors}
        self.position: Position | None = None
        self.told: list[tuple[Any, ...]] = []
        self._rounds, self._step, self._gone_after = rounds, step, gone_after
        self._round = 0
        self.train: Callable[[], Any] = trio.lowlevel.checkpoint

    def _stand(self) -> Position:
        self.position = Position(self._round, self.averager.state_digest(self.views))
        return self.position

    async def ready(self) -> Position:
        self.averager.start(self.views)
        return self._stand()

    async def start(self, round_: int, *, synced: bool) -> None:
        self.told.append(("start", round_, synced))
        self._round = round_
        if synced:
            self.averager.resume(self.views)
        self._stand()

    async def next_offer(self) -> Offer | None:
        await self.train()
        if self._round == self._gone_after:
            raise TrainerGone("the process ended")
        if self._round >= self._rounds:
            return None
        self.told.append(("offer", self._round))
        self.views["params"] += np.float32(self._step)
        self.averager.contribute(self.views)
        assert self.position is not None
        return Offer(Contribution(self._round, 5, 2.0), self.position.state)

    async def apply(self, result: Apply) -> Position:
        self.told.append(("apply", result.round, result.members))
        self.position = None
        await trio.lowlevel.checkpoint()
        self.averager.apply(
            self.views, members=result.members, weight=result.weight, alone=result.alone
        )
        self._round = result.round + 1
        return self._stand()

    async def resync(self, round_: int) -> None:
        self.told.append(("resync", round_))
        self._round = round_
        self.averager.resume(self.views)
        self._stand()

    def hurry(self, round_: int) -> None:
        self.told.append(("hurry", round_))

    def held(self) -> HeldState | None:
        if self.position is None:
            return None
        vectors = [self.views[name] for name in self.averager.consensus]
        return HeldState(self.position.round, self.position.state, vectors)


# ---- with scripted neighbours --------------------------------------------------------------------


def later_state(fill: float) -> tuple[bytes, list[np.ndarray]]:
    vectors = [np.full(NUMEL, fill, np.float32), np.full(NUMEL, -fill, np.float32)]
    digest = hashlib.sha256(b"".join(vector.tobytes() for vector in vectors)).digest()
    return digest, vectors


HOLDER = NodeId(b"h" * 32)


def behind(round_: int, fill: float) -> Behind:
    epoch = Epoch(RUN, Ballot(round_, 0, HOLDER), (HOLDER,), GENESIS, round_, later_state(fill)[0])
    return Behind(epoch, [HOLDER])


class FakeGroup:
    """`entering` and `reducing`: what the next calls do; an error is raised, None is success."""

    def __init__(
        self,
        entering: list[Exception | None] | None = None,
        reducing: list[Exception | None] | None = None,
    ) -> None:
        self.notes: deque[str] = deque()
        self.calls: list[tuple[Any, ...]] = []
        self._entering, self._reducing = deque(entering or []), deque(reducing or [])

    def set_position(self, round_: int, state: bytes) -> None:
        self.calls.append(("position", round_, state))

    def set_not_ready(self, reason: str) -> None:
        self.calls.append(("not ready", reason))

    async def wait_entered(self) -> None:
        await trio.lowlevel.checkpoint()
        if self._entering and (error := self._entering.popleft()) is not None:
            raise error

    async def all_reduce(
        self, descriptor: bytes, source: Any, out: Any, *, mean: bool, weight: float, wire: str
    ) -> Reduced:
        await trio.lowlevel.checkpoint()
        self.calls.append(("reduce", descriptor, source.tobytes(), mean, weight, wire))
        if self._reducing and (error := self._reducing.popleft()) is not None:
            out.fill(np.nan)
            raise error
        np.copyto(out, source)
        members = (HOLDER, NodeId(b"i" * 32))
        epoch = Epoch(RUN, Ballot(1, 0, HOLDER), members, GENESIS, 0, bytes(32))
        return Reduced(epoch, Certificate(epoch.id, 0, bytes(32), bytes(32), ()), 4.0, 0.5)

    def kinds(self) -> list[str]:
        return [call[0] for call in self.calls]


class FakeHandover:
    """Gives the states in `fills`; before that, as often as `failures` says, garbage and an error."""

    def __init__(self, fills: dict[int, float], failures: int = 0) -> None:
        self._fills, self._failures = fills, failures
        self.on_fetch: Callable[[], None] = lambda: None

    async def fetch(self, round_, state, holders, into, digest, *, nonce) -> None:
        assert tuple(holders) == (HOLDER,)
        assert len(nonce()) == 16
        for vector in into:
            vector.fill(np.nan)
        self.on_fetch()
        await trio.lowlevel.checkpoint()
        if self._failures:
            self._failures -= 1
            raise StateUnavailable("nd-xxxx: sent another state than it announced")
        for vector, value in zip(into, later_state(self._fills[round_])[1], strict=True):
            np.copyto(vector, value)
        assert digest() == state


@attrs.define
class Heard:
    phases: list[str] = attrs.field(factory=list)
    rounds: list[RunReport] = attrs.field(factory=list)
    synced: list[Position] = attrs.field(factory=list)

    def callbacks(self) -> dict[str, Any]:
        nonces = itertools.count()
        return {
            "nonce": lambda: next(nonces).to_bytes(16, "big"),
            "on_phase": self.phases.append,
            "on_round": self.rounds.append,
            "on_synced": self.synced.append,
        }


async def live(group: Any, handover: Any, trainer: Trainer, **settings: Any) -> Heard:
    heard = Heard()
    protocol = DiLoCo(DiLoCo.parse_settings(settings))
    with trio.fail_after(600):
        await run_rounds(group, handover, protocol, trainer.averager, trainer, **heard.callbacks())
    return heard


async def test_rounds_to_the_end(autojump_clock: Any) -> None:
    group, trainer = FakeGroup(), Trainer(2)
    heard = await live(group, FakeHandover({}), trainer)
    assert heard.phases == [
        *("joining", "training"),
        *("waiting", "training", "waiting", "training", "finished"),
    ]
    # Told before every reduction too: the node may have stepped back for taking too long.
    assert group.kinds() == [
        *("position", "position", "reduce"),
        *("position", "position", "reduce", "position"),
    ]
    assert trainer.told == [
        ("start", 0, False),
        *(("offer", 0), ("apply", 0, 2)),
        *(("offer", 1), ("apply", 1, 2)),
    ]
    assert [report.round for report in heard.rounds] == [1, 2]
    assert {(report.members, report.seconds, report.weight) for report in heard.rounds} == {
        (2, 0.5, 4.0)
    }
    assert heard.rounds[-1].state == trainer.averager.state_digest(trainer.views)
    positions = [call[1:] for call in group.calls if call[0] == "position"]
    assert positions[-1] == (2, heard.rounds[-1].state), "it stays ready there"


async def test_what_is_reduced_is_bound_to_vector_round_and_state(autojump_clock: Any) -> None:
    group, trainer = FakeGroup(), Trainer(1)
    start = (await trainer.ready()).state
    await live(group, FakeHandover({}), trainer)
    (_, descriptor, source, mean, weight, wire), *_ = (c for c in group.calls if c[0] == "reduce")
    assert wire == "exact"
    assert descriptor == round_descriptor("delta", 0, start)
    assert np.array_equal(np.frombuffer(source, np.float32), np.full(NUMEL, -1.0))
    assert (mean, weight) == (True, 2.0)


async def test_what_is_reduced_travels_as_the_settings_say(autojump_clock: Any) -> None:
    group = FakeGroup()
    await live(group, FakeHandover({}), Trainer(2), wire="int8")
    assert [call[-1] for call in group.calls if call[0] == "reduce"] == ["int8", "int8"]


async def test_a_joiner_that_is_behind_is_synced_before_it_trains(autojump_clock: Any) -> None:
    group = FakeGroup([behind(7, 3.5)])
    trainer = Trainer(8)
    heard = await live(group, FakeHandover({7: 3.5}), trainer)
    assert trainer.told[:2] == [("start", 7, True), ("offer", 7)]
    assert heard.phases[:3] == ["joining", "syncing", "training"]
    assert heard.synced == [Position(7, later_state(3.5)[0])]
    assert group.calls[1] == ("position", 7, later_state(3.5)[0])


async def test_a_failed_hand_over_writes_nothing_and_is_tried_again(autojump_clock: Any) -> None:
    group = FakeGroup([behind(7, 3.5), behind(7, 3.5), behind(8, 4.5)])
    trainer = Trainer(8)
    handover = FakeHandover({7: 3.5, 8: 4.5}, failures=2)
    kept = []
    handover.on_fetch = lambda: kept.append([v.tobytes() for v in trainer.views.values()])
    heard = await live(group, handover, trainer)
    zeros = np.zeros(NUMEL, np.float32).tobytes()
    assert kept == [[zeros] * 5] * 3, "the shared vectors are as they were"
    assert trainer.told == [("start", 8, True)]
    assert heard.synced == [Position(8, later_state(4.5)[0])]
    assert [note.split(":")[0] for note in group.notes] == ["state not fetched"] * 2
    assert trio.current_time() >= 2.0, "it does not hammer the holders"
    assert (trainer.views["theta"] == 4.5).all()
    assert (trainer.views["params"] == 4.5).all()


async def test_a_node_overtaken_in_the_middle_of_a_round_catches_up(autojump_clock: Any) -> None:
    group = FakeGroup(reducing=[behind(5, 2.5)])
    trainer = Trainer(6)
    heard = await live(group, FakeHandover({5: 2.5}), trainer)
    assert trainer.told == [
        ("start", 0, False),
        ("offer", 0),
        ("resync", 5),
        *(("offer", 5), ("apply", 5, 2)),
    ], "what it offered for round 0 is dropped, never applied"
    assert [report.round for report in heard.rounds] == [6]
    positions = [call[1:] for call in group.calls if call[0] == "position"]
    assert positions[2] == (5, later_state(2.5)[0])


async def test_when_the_newer_state_is_lost_the_own_contribution_counts_again(
    autojump_clock: Any,
) -> None:
    group = FakeGroup([None, behind(6, 1.5), None], reducing=[behind(5, 2.5), None])
    trainer = Trainer(1)
    heard = await live(group, FakeHandover({}, failures=2), trainer)
    first, second = (call for call in group.calls if call[0] == "reduce")
    assert first == second, "offered once more, from the same values"
    assert trainer.told == [("start", 0, False), ("offer", 0), ("apply", 0, 2)]
    assert heard.synced == []


async def test_an_error_makes_the_node_not_ready(autojump_clock: Any) -> None:
    group = FakeGroup(reducing=[TrainerGone("gone")])
    with pytest.raises(TrainerGone):
        await live(group, FakeHandover({}), Trainer(3))
    assert group.calls[-1] == ("not ready", "its trainer has stopped")


async def test_a_mismatch_steps_back_and_offers_the_same_again(autojump_clock: Any) -> None:
    """One member's word must not end the run of all the others."""
    group = FakeGroup(reducing=[DescriptorMismatch("other settings"), None])
    heard = await live(group, FakeHandover({}), Trainer(1))
    first, second = (call for call in group.calls if call[0] == "reduce")
    assert first == second
    assert any(call[0] == "not ready" for call in group.calls)
    assert [report.round for report in heard.rounds] == [1]


@pytest.mark.parametrize("where", ["ready", "start", "next_offer", "apply", "resync"])
async def test_a_trainer_may_go_at_any_time(
    where: str, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(3)

    async def gone(*_: object, **__: object) -> Any:
        await trio.lowlevel.checkpoint()
        raise TrainerGone(where)

    monkeypatch.setattr(trainer, where, gone)
    group = FakeGroup(reducing=[behind(5, 2.5)] if where == "resync" else None)
    with pytest.raises(TrainerGone, match=where):
        await live(group, FakeHandover({5: 2.5}), trainer)
    assert group.calls[-1] == ("not ready", "its trainer has stopped")


async def test_cancelling_makes_the_node_not_ready(autojump_clock: Any) -> None:
    group, trainer = FakeGroup(), Trainer(3)
    trainer.train = trio.sleep_forever
    with trio.move_on_after(1):
        await live(group, FakeHandover({}), trainer)
    assert group.kinds() == ["position", "not ready"]


def test_round_descriptor() -> None:
    state = b"s" * 32
    base = round_descriptor("delta", 3, state)
    assert (
        base
        == hashlib.sha256(b"noded round v1\0" + struct.pack(">Q", 3) + state + b"delta").digest()
    )
    others = [
        round_descriptor("theta", 3, state),
        round_descriptor("delta", 4, state),
        round_descriptor("delta", 3, b"t" * 32),
    ]
    assert len({base, *others}) == 4


# ---- between endpoints ---------------------------------------------------------------------------


@attrs.define
class Living:
    """Nodes with a trainer each; `life` runs one of them."""

    heard: dict[int, Heard] = attrs.field(factory=dict)
    ended: dict[int, BaseException | None] = attrs.field(factory=dict)
    handovers: dict[int, Any] = attrs.field(factory=dict)
    settings: dict[str, Any] = attrs.field(factory=dict)

    async def life(self, index: int, node: Node, trainer: Trainer) -> None:
        heard = self.heard[index] = Heard()
        protocol = DiLoCo(DiLoCo.parse_settings(self.settings))
        async with open_handover(node.endpoint, RUN, trainer.held) as handover:
            self.handovers[index] = handover
            try:
                await run_rounds(
                    node.group, handover, protocol, trainer.averager, trainer, **heard.callbacks()
                )
                self.ended[index] = None
            except TrainerGone as error:
                self.ended[index] = error
            await trio.sleep_forever()

    async def until(self, *indices: int) -> None:
        while not set(indices) <= set(self.ended):
            await trio.sleep(0.1)


def pace(seconds: float) -> Callable[[], Any]:
    async def train() -> None:
        await trio.sleep(seconds)

    return train


def states(heard: Heard) -> dict[int, bytes]:
    return {report.round: report.state for report in heard.rounds}


@pytest.mark.parametrize("wire", get_args(Wire))
async def test_members_hold_one_state_after_every_round(autojump_clock: Any, wire: str) -> None:
    trainers = [Trainer(4, step) for step in (1.0, -2.0, 4.0)]
    world = Living(settings={"wire": wire})
    async with open_swarm(3) as (_, nodes), trio.open_nursery() as nursery:
        for index, node in enumerate(nodes):
            nursery.start_soon(world.life, index, node, trainers[index])
        with trio.fail_after(60):
            await world.until(0, 1, 2)
        nursery.cancel_scope.cancel()
    assert [states(world.heard[index]) for index in range(3)] == [states(world.heard[0])] * 3
    assert set(states(world.heard[0])) == {1, 2, 3, 4}
    theta, momentum = 0.0, 0.0
    for _ in range(4):  # each moves by its step from theta: the mean delta is -1
        momentum = MU * momentum - 1.0
        theta -= LR * (-1.0 + MU * momentum)
    for trainer in trainers:
        # All values of a vector are equal here, so a block format is as good as its scale.
        np.testing.assert_allclose(
            trainer.views["theta"], theta, rtol=1e-2 if "16" in wire else 1e-5
        )


async def test_one_that_comes_late_starts_from_the_others_state(autojump_clock: Any) -> None:
    settings = EpochSettings(min_members=2)
    trainers = [Trainer(12), Trainer(12, 2.0), Trainer(12, 3.0)]
    for trainer in trainers:
        trainer.train = pace(0.5)
    world = Living()
    async with (
        open_swarm(2, settings=settings) as (network, nodes),
        open_node(network, 2, 0, settings) as late,
        trio.open_nursery() as nursery,
    ):
        for index in range(2):
            nursery.start_soon(world.life, index, nodes[index], trainers[index])
        with trio.fail_after(120):
            while len(world.heard[0].rounds if 0 in world.heard else ()) < 3:
                await trio.sleep(0.1)
            for node in nodes:
                await late.endpoint.connect([node.address])
            nursery.start_soon(world.life, 2, late, trainers[2])
            await world.until(0, 1, 2)
        nursery.cancel_scope.cancel()
    kind, round_, synced = trainers[2].told[0]
    assert (kind, synced) == ("start", True)
    assert round_ >= 3
    assert world.heard[2].phases[:3] == ["joining", "syncing", "training"]
    assert states(world.heard[0]).get(round_) == world.heard[2].synced[0].state
    own = states(world.heard[2])
    assert own
    assert own.items() <= states(world.heard[0]).items()
    assert states(world.heard[0]) == states(world.heard[1])
    assert 3 in {report.members for report in world.heard[0].rounds}


async def test_a_finished_run_hands_its_last_state_to_one_that_comes_late(
    autojump_clock: Any,
) -> None:
    settings = EpochSettings(min_members=2)
    trainers = [Trainer(3), Trainer(3, 5.0), Trainer(3, 9.0)]
    world = Living()
    async with (
        open_swarm(2, settings=settings) as (network, nodes),
        open_node(network, 2, 0, settings) as late,
        trio.open_nursery() as nursery,
    ):
        for index in range(2):
            nursery.start_soon(world.life, index, nodes[index], trainers[index])
        with trio.fail_after(120):
            await world.until(0, 1)
            for node in nodes:
                await late.endpoint.connect([node.address])
            nursery.start_soon(world.life, 2, late, trainers[2])
            await world.until(2)
        nursery.cancel_scope.cancel()
    assert trainers[2].told == [("start", 3, True)], "there is nothing left to train"
    assert np.array_equal(trainers[2].views["params"], trainers[0].views["theta"])
    assert world.handovers[2].fetched == 1
    assert world.heard[2].phases == ["joining", "syncing", "training", "finished"]


async def test_a_node_whose_trainer_is_gone_does_not_hold_up_the_others(
    autojump_clock: Any,
) -> None:
    trainers = [Trainer(6), Trainer(6), Trainer(6, gone_after=2)]
    world = Living()
    async with open_swarm(3) as (_, nodes), trio.open_nursery() as nursery:
        for index, node in enumerate(nodes):
            nursery.start_soon(world.life, index, node, trainers[index])
        with trio.fail_after(60):
            await world.until(0, 1, 2)
        assert isinstance(world.ended[2], TrainerGone)
        assert nodes[2].group.epoch is None
        with trio.move_on_after(5):
            await nodes[2].group.wait_entered()
        assert nodes[2].group.epoch is None, "not ready: in no epoch, though still connected"
        assert nodes[0].group.epoch is not None
        assert len(nodes[0].group.epoch.members) == 2
        nursery.cancel_scope.cancel()
    assert [report.members for report in world.heard[0].rounds] == [3, 3, 2, 2, 2, 2]
    assert states(world.heard[0]) == states(world.heard[1])


async def test_a_trainer_that_comes_back_continues_with_the_others(autojump_clock: Any) -> None:
    """A new trainer of the same node starts from nothing and is brought up to date."""
    trainers = [Trainer(8), Trainer(8), Trainer(8, gone_after=2)]
    for trainer in trainers:
        trainer.train = pace(0.5)
    world = Living()
    async with open_swarm(3) as (_, nodes), trio.open_nursery() as nursery:
        for index in range(2):
            nursery.start_soon(world.life, index, nodes[index], trainers[index])
        scope = trio.CancelScope()

        async def first_life() -> None:
            with scope:
                await world.life(2, nodes[2], trainers[2])

        nursery.start_soon(first_life)
        with trio.fail_after(60):
            await world.until(2)
            scope.cancel()
            del world.ended[2]
            await trio.testing.wait_all_tasks_blocked()
            again = Trainer(8)
            again.train = pace(0.5)
            nursery.start_soon(world.life, 2, nodes[2], again)
            await world.until(0, 1, 2)
        nursery.cancel_scope.cancel()
    assert again.told[0][0] == "start"
    assert again.told[0][2] is True
    assert states(world.heard[2]).items() <= states(world.heard[0]).items()
    assert world.heard[0].rounds[-1].members == 3
