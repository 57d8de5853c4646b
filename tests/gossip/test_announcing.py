"""When an operation is announced to the others, and when it is given up: machines whose messages are moved by hand, then a group."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import trio

from gossip.collective.agreement.epoch_events import EpochSettings
from gossip.collective.agreement.lanes import MOVING_S
from gossip.collective.agreement.messages import Abort, Begin
from gossip.collective.talk import Talk
from tests.gossip.by_hand import D, Three
from tests.gossip.swarm import open_swarm
from transport.simulated.link_model import LinkSettings

SETTINGS = EpochSettings()


@pytest.fixture
def three() -> Three:
    return Three()


def said(three: Three, kind: type, *, at: float) -> int:
    """To how many members the first machine says such a thing when its time has come."""
    first = three.machines[0]
    first.tick(three.now + at)
    return sum(isinstance(message, kind) for _, message in first.outgoing())


def test_what_has_not_ended_in_time_is_announced_once(three: Three) -> None:
    first = three.machines[0]
    first.begin(D, three.now, 1)
    assert first.next_deadline() == three.now + SETTINGS.announce_s
    assert said(three, Begin, at=SETTINGS.announce_s - 1e-4) == 0
    assert said(three, Begin, at=SETTINGS.announce_s) == 2
    assert said(three, Begin, at=10 * SETTINGS.announce_s) == 0


def test_while_values_come_nobody_is_missing(three: Three) -> None:
    first, announce_s = three.machines[0], SETTINGS.announce_s
    first.begin(D, three.now, 1)
    first.moves(1, three.now + 0.5 * announce_s)
    assert first.next_deadline() == pytest.approx(three.now + 1.5 * announce_s)
    assert said(three, Begin, at=1.4 * announce_s) == 0
    assert said(three, Begin, at=1.51 * announce_s) == 2
    first.moves(1, three.now + 2 * announce_s)
    assert said(three, Begin, at=20 * announce_s) == 0, "once is enough"


def test_values_of_what_was_before_say_nothing(three: Three) -> None:
    first = three.machines[0]
    first.begin(D, three.now, 1)
    first.moves(1, three.now - 0.1 * SETTINGS.announce_s)
    assert said(three, Begin, at=SETTINGS.announce_s) == 2


def test_what_moves_for_long_is_announced_all_the_same_after_few_looks(three: Three) -> None:
    first = three.machines[0]
    first.begin(D, three.now, 1)
    looks, at = 0, 0.0
    while not (announced := said(three, Begin, at=at)):
        looks += 1
        at = first.next_deadline() - three.now
        assert at <= SETTINGS.announce_moving_s
        first.moves(1, three.now + at)  # as whoever ticks it tells it first
    assert announced == 2
    assert at == pytest.approx(SETTINGS.announce_moving_s)
    assert looks < 20


def test_who_is_waited_for_already_does_not_wait_with_the_word(three: Three) -> None:
    """Or the others, who may have received nothing themselves, would take it for one that never began."""
    for machine in three.machines[1:]:
        machine.begin(D, three.now, 1)
        machine.tick(three.now + 1.0)
    three.deliver()
    first = three.machines[0]
    first.begin(D, three.now, 1)
    first.moves(1, three.now + 0.9 * SETTINGS.announce_s)
    assert said(three, Begin, at=1.01 * SETTINGS.announce_s) == 2


def test_a_round_that_is_measured_is_announced_though_it_moves(three: Three) -> None:
    first = three.machines[0]
    first.begin(D, three.now, 0)
    first.moves(0, three.now + 0.9 * SETTINGS.announce_s, tell=True)
    assert said(three, Begin, at=1.01 * SETTINGS.announce_s) == 2


def test_nobody_is_given_up_while_values_come_and_then_for_a_while(three: Three) -> None:
    first, straggler_s = three.machines[0], SETTINGS.straggler_s
    first.begin(D, three.now, 1)
    assert said(three, Begin, at=1.0) == 2
    first.moves(1, three.now + straggler_s - 1.0)
    assert said(three, Abort, at=straggler_s) == 0
    assert said(three, Abort, at=straggler_s - 1.0 + MOVING_S - 0.1) == 0
    assert said(three, Abort, at=straggler_s - 1.0 + MOVING_S) == 2


@pytest.mark.parametrize(("late_s", "announced"), [(0.0, 0), (0.2, 2)])
async def test_a_group_announces_what_somebody_is_missing_from_and_not_what_takes_long(
    autojump_clock: Any, monkeypatch: pytest.MonkeyPatch, late_s: float, announced: int
) -> None:
    said: list[object] = []
    send = Talk.send

    def listened_to(talk: Talk, node: Any, message: Any) -> None:
        said.append(message)
        send(talk, node, message)

    monkeypatch.setattr(Talk, "send", listened_to)
    async with open_swarm(2) as (network, nodes):
        network.set_default(LinkSettings(latency_s=2e-4, bandwidth_bytes_per_s=200e6))

        async def reduce(index: int, number: int, length: int) -> None:
            await trio.sleep(late_s * index)
            source = np.full(length, index, np.float32)
            reduced = await nodes[index].group.all_reduce(
                b"not a round", source, np.empty_like(source), tag=1
            )
            assert number == 0 or reduced.seconds > 5 * SETTINGS.announce_s, "long enough"

        for node in nodes:
            node.group.set_position(0, bytes(32))
        with trio.fail_after(60):
            for number, length in enumerate([1, 1 << 21]):  # the first may have to wait for links
                said.clear()
                async with trio.open_nursery() as nursery:
                    for index in range(2):
                        nursery.start_soon(reduce, index, number, length)
    assert sum(isinstance(message, Begin) for message in said) == announced
