"""Members that wait for each other in different lanes, at machines whose messages are moved by hand."""

from __future__ import annotations

import random

import pytest

from gossip.collective.agreement.certificate import LANES
from gossip.collective.agreement.epoch_events import (
    OperationAborted,
)
from gossip.collective.agreement.messages import (
    Begin,
    Vote,
    decode_message_untrusted,
    encode,
)
from gossip.collective.agreement.operation import Operation, OperationState
from tests.gossip.by_hand import ROOT, D, Three
from transport.errors import MalformedMessage


@pytest.fixture
def three() -> Three:
    return Three()


def wait_in(
    swarm: Three, index: int, lane: int, *, queued: dict[int, int] | None = None
) -> Operation:
    """That member begins an operation beside which its caller calls nothing more."""
    machine = swarm.machines[index]
    operation = machine.begin(D, swarm.now, lane)
    machine.wait_for(lane, queued or {}, swarm.now)
    return operation


def announced(swarm: Three, *, keep=lambda _s, _t, _m: True) -> None:
    """Long enough for what runs to be announced, and everything delivered."""
    swarm.now += 0.011
    for machine in swarm.machines:
        machine.tick(swarm.now)
    swarm.deliver(keep=keep)


def aborts(swarm: Three, index: int) -> dict[int, bool]:
    """By lane, whether the members called different operations."""
    return {
        event.operation.lane: event.mismatch
        for event in swarm.events(index)
        if isinstance(event, OperationAborted)
    }


def test_members_that_wait_in_different_lanes_are_told_at_once(three) -> None:
    for machine in three.machines:
        machine.begin(D, three.now, 2)  # of all; it is cut off, and has no fault of its own
    ends = [wait_in(three, 0, 4), wait_in(three, 1, 9), wait_in(three, 2, 4)]
    announced(three)
    assert aborts(three, 0) == {2: False, 4: True}
    assert aborts(three, 1) == {2: False, 9: True}
    assert aborts(three, 2) == {2: False, 4: True}
    assert all(operation.state is OperationState.ABORTED for operation in ends)


def test_the_reason_names_who_waits_where(three) -> None:
    wait_in(three, 0, 4)
    wait_in(three, 1, 9)
    announced(three)
    first, second, _ = three.world.order
    (event,) = [event for event in three.events(0) if isinstance(event, OperationAborted)]
    assert "members call different tags: " in event.reason
    assert f"{first.short} waits in tag 4 for {second.short}" in event.reason
    assert f"{second.short} waits in tag 9 for {first.short}" in event.reason


def test_one_that_has_called_a_dead_operation_and_says_nothing_is_told_as_well(three) -> None:
    wait_in(three, 0, 4)
    wait_in(three, 1, 9)
    for lane in (4, 9, 5):
        three.machines[2].begin(D, three.now, lane)
    announced(three)
    assert aborts(three, 2) == {4: True, 9: True, 5: False}


def test_a_circle_of_three_is_told_to_all_of_them_whoever_finds_it(three) -> None:
    """A and B are told by C alone, which has heard of both when they have not heard of each other."""
    c = three.world.order[2]
    calls = {0: (3, 1), 1: (1, 2), 2: (2, 3)}  # each has called what the one before it waits for
    for index, (other, lane) in calls.items():
        three.machines[index].begin(D, three.now, other)
        wait_in(three, index, lane)

    def keep(source, target, message) -> bool:
        return not isinstance(message, Begin) or target == c

    announced(three, keep=keep)
    assert three.machines[0].epoch is None
    assert aborts(three, 0) == {1: True, 3: True}
    assert aborts(three, 1) == {1: True, 2: True}
    assert aborts(three, 2) == {2: True, 3: True}


def test_what_waits_for_its_turn_was_called_and_nobody_waits_for_it_in_vain(three) -> None:
    wait_in(three, 0, 4, queued={9: 1})
    wait_in(three, 1, 9)
    announced(three)
    assert not aborts(three, 0)
    three.machines[0].begin(D, three.now, 9)
    three.machines[2].begin(D, three.now, 9)
    for machine in three.machines:
        machine.result(ROOT, three.now, 9)
    three.deliver()
    assert [operation.lane for operation in three.machines[0].operations] == [4]
    assert not three.machines[1].operations, (
        "its wait is over, and it may call what the first one waits for"
    )


def test_one_that_has_seen_the_end_of_what_another_still_waits_for_is_no_circle(three) -> None:
    """The last votes are on their way to A when B, who has them all, waits in the next lane already."""
    a = three.world.order[0]
    for index in range(3):
        wait_in(three, index, 1)
        three.machines[index].result(ROOT, three.now, 1)
    late: list[tuple[int, Vote]] = []

    def keep(source, target, message) -> bool:
        if isinstance(message, Vote) and target == a and source == three.world.order[2]:
            late.append((2, message))
            return False
        return True

    three.deliver(keep=keep)
    assert not three.machines[1].operations
    wait_in(three, 1, 2)
    announced(three)
    assert [operation.lane for operation in three.machines[0].operations] == [1]
    assert not aborts(three, 0)
    for index, vote in late:
        three.machines[0].receive(three.world.order[index], vote, three.now)
    assert not three.machines[0].operations


def test_one_that_has_voted_says_that_it_waits_too(three) -> None:
    """A barrier has nothing but votes."""
    for index, lane in ((0, 4), (1, 9)):
        wait_in(three, index, lane)
        three.machines[index].result(ROOT, three.now, lane)
    three.deliver()
    assert three.machines[0].operations
    announced(three)
    assert aborts(three, 0) == {4: True}
    assert aborts(three, 1) == {9: True}
    assert three.machines[0].signed(4) is not None, (
        "its outcome is asked for, as of all that was signed"
    )


def test_who_does_not_wait_may_call_the_other_lane_at_any_time(three) -> None:
    """As members do that start several at once: none is wrong before its deadline."""
    three.machines[0].begin(D, three.now, 4)
    wait_in(three, 1, 9)
    three.machines[2].begin(D, three.now, 9)
    announced(three)
    assert not any(aborts(three, index) for index in range(3))


def test_lane_0_is_waited_for_by_nobody(three) -> None:
    three.machines[0].begin(D, three.now, 0)
    three.machines[0].wait_for(0, {}, three.now)
    wait_in(three, 1, 9)
    announced(three)
    assert not any(aborts(three, index) for index in range(3))


def test_a_word_that_cannot_be_is_not_taken_for_a_wait(three) -> None:
    first, other = three.machines[0], three.world.order[1]
    wait_in(three, 0, 4)
    announced(three)
    for word in (
        Begin(first.epoch.id, 0, D, 9, (1,)),  # waits for what it has not called
        Begin(first.epoch.id, 0, D, 0, (1,)),  # in the lane of the rounds
        Begin(b"e" * 32, 0, D, 9, (0,) * 9 + (1,)),  # of another epoch
    ):
        first.receive(other, word, three.now)
    assert not aborts(three, 0)
    first.receive(other, Begin(first.epoch.id, 0, D, 9, (0,) * 9 + (1,)), three.now)
    assert aborts(three, 0) == {4: True}


@pytest.mark.parametrize("count", [3, 5])
@pytest.mark.parametrize("seed", range(6))
def test_right_programs_with_all_tags_in_random_order_are_never_told_so(count, seed) -> None:
    """Windows of lanes, called in any order and then waited for, one after another: the same windows at all members."""
    swarm, rng = Three(count), random.Random(seed)
    windows = [rng.sample(range(1, 16), rng.randint(1, 15)) for _ in range(6)]
    left = [[rng.sample(window, len(window)) for window in windows] for _ in range(count)]
    waited: list[list[int]] = [[] for _ in range(count)]
    running: list[dict[int, Operation]] = [{} for _ in range(count)]
    said: list[Operation | None] = [None] * count
    mail: dict[tuple[bytes, bytes], list[object]] = {}

    def goes_on(index: int) -> bool:
        machine, mine = swarm.machines[index], running[index]
        while waited[index] and mine[waited[index][0]].state is OperationState.CERTIFIED:
            waited[index].pop(0)
        if waited[index]:
            now_waits = mine[waited[index][0]]
            if said[index] is not now_waits:
                machine.wait_for(now_waits.lane, {}, swarm.now)
                said[index] = now_waits
            busy = [op for op in mine.values() if op.state is OperationState.RUNNING]
            if busy and rng.random() < 0.5:
                machine.result(ROOT, swarm.now, rng.choice(busy).lane)
                return True
            return bool(busy)
        if not left[index]:
            return False
        window = left[index][0]
        lane = window.pop()
        mine[lane] = machine.begin(D, swarm.now, lane)
        if not window:
            left[index].pop(0)
            waited[index] = rng.sample(sorted(mine), len(mine))
        return True

    for _ in range(100_000):
        moved = goes_on(rng.randrange(count))
        swarm.now += rng.choice([0.0, 0.001, 0.02])
        for source, machine in zip(swarm.world.order, swarm.machines, strict=True):
            machine.tick(swarm.now)
            for target, message in machine.outgoing():
                mail.setdefault((source, target), []).append(message)
        pairs = [pair for pair, words in mail.items() if words]
        if pairs and rng.random() < 0.8:
            source, target = rng.choice(pairs)
            word = mail[source, target].pop(0)
            swarm.world.nodes[target].machine.receive(source, word, swarm.now)
        elif not pairs and not moved and not any(left) and not any(waited):
            break
    assert not any(left)
    assert not any(waited)
    for index in range(count):
        assert not aborts(swarm, index)
        assert swarm.machines[index].epoch is not None


def test_the_word_of_who_does_not_wait_is_as_long_as_ever_and_no_word_is_longer_than_all_lanes() -> (
    None
):
    plain = encode(Begin(ROOT, 0, D, 9))
    assert b"called" not in plain
    longest = Begin(ROOT, 0, D, 9, (2**53,) * LANES)
    assert decode_message_untrusted(encode(longest)) == longest
    assert len(encode(longest)) < len(plain) + 16 * 9 + 16
    with pytest.raises(MalformedMessage):
        decode_message_untrusted(encode(Begin(ROOT, 0, D, 9, (1,) * (LANES + 1))))
