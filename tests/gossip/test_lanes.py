"""Operations of several lanes at one machine, by direct calls and messages of members that need not be honest."""

from __future__ import annotations

import random

import pytest

from gossip.collective.agreement.certificate import LANES
from gossip.collective.agreement.epoch_events import (
    MemberAccused,
    OperationAborted,
    OperationCertified,
)
from gossip.collective.agreement.messages import (
    Abort,
    Begin,
    Prepare,
    Vote,
)
from gossip.collective.agreement.operation import Operation, OperationState
from gossip.errors import CollectiveAborted
from tests.gossip.by_hand import ROOT, D, Three
from tests.gossip.epoch_world import START, World


@pytest.fixture
def three() -> Three:
    return Three()


def test_every_lane_has_a_sequence_of_its_own_and_only_lane_0_waits_for_the_position(three) -> None:
    first = three.machines[0]
    order = [(lane, number) for lane in (0, 5, 15) for number in range(3 if lane else 1)]
    random.Random(3).shuffle(order)
    done: list[tuple[int, int]] = []
    for lane in [lane for lane, _ in order]:
        for machine in three.machines:
            operation = machine.begin(D, three.now, lane)
            done.append((lane, operation.sequence))
            machine.result(ROOT, three.now, lane)
        three.deliver()
    assert sorted(set(done)) == sorted(order)
    certified = [e.certificate for e in three.events(0) if isinstance(e, OperationCertified)]
    assert sorted((c.lane, c.sequence) for c in certified) == sorted(order)
    assert not first.can_begin, "the position after the round is not known"
    assert first.may_begin(5)
    first.set_ready(1, ROOT, three.now)
    assert first.can_begin
    assert first.last_certificate.lane == 0


def test_a_result_may_be_there_before_this_node_has_begun(three) -> None:
    for machine in three.machines[1:]:
        machine.begin(D, three.now, 2)
        machine.result(ROOT, three.now, 2)
    three.deliver()
    late = three.machines[0]
    assert not late.operations
    operation = late.begin(D, three.now, 2)
    assert [operation.voted(id_) for id_ in three.world.order] == [False, True, True]
    late.result(ROOT, three.now, 2)
    assert operation.state is OperationState.CERTIFIED
    three.deliver()
    for index in range(3):
        assert any(isinstance(event, OperationCertified) for event in three.events(index))


@pytest.mark.parametrize("word", ["begin", "vote"])
def test_another_operation_in_one_lane_is_a_mismatch_there_and_an_abort_elsewhere(
    three, word
) -> None:
    first, second, _ = three.machines
    wrong = second.begin(b"x" * 32, three.now, 1)
    if word == "vote":
        second.result(ROOT, three.now, 1)
    else:
        second.tick(three.now + 1.0)
    three.deliver()
    for lane in (4, 1):
        first.begin(D, three.now, lane)
    aborted = [event for event in three.events(0) if isinstance(event, OperationAborted)]
    assert {event.operation.lane: event.mismatch for event in aborted} == {1: True, 4: False}
    three.deliver()
    assert any(
        isinstance(event, OperationAborted) and event.operation is wrong and event.mismatch
        for event in three.events(1)
    )


def test_nothing_new_begins_beside_what_runs_while_somebody_waits_for_the_epoch_to_end(
    three,
) -> None:
    first, second, third = three.machines
    asks = three.world.order[2]
    for machine in (first, second):
        machine.begin(D, three.now, 1)
    ballot = first._former._promised
    higher = type(ballot)(ballot.number + 1, 0, asks)
    # It asks while it has voted in what runs; so it is given the time to see the end of that.
    third.begin(D, three.now, 1)
    third.result(ROOT, three.now, 1)
    three.deliver()
    first.receive(asks, Prepare(higher), three.now)
    assert not first.may_begin(3)
    with pytest.raises(CollectiveAborted):
        first.begin(D, three.now, 3)
    begin = Begin(first.epoch.id, 0, D, 3)
    first.receive(three.world.order[1], begin, three.now)
    assert first.may_begin(3), "others have begun it and wait for this node"


def test_words_of_no_use_change_nothing(three) -> None:
    first = three.machines[0]
    other = three.world.order[1]
    epoch = first.epoch
    operation = first.begin(D, three.now, 1)
    signer = Operation(epoch, 7, D, three.world.nodes[other].identity, 1)
    for word in (
        Begin(epoch.id, 7, b"x" * 32, 1),  # another number: perhaps it is ahead
        Begin(epoch.id, 0, b"x" * 32, 9),  # another lane
        signer.vote(ROOT),  # of what comes later
        Vote(b"e" * 32, 0, D, ROOT, bytes(64), 1),  # another epoch
        Abort(b"e" * 32, 0, "so", False, (), 1),
        Abort(epoch.id, 3, "so", False, (), 1),  # of another operation
    ):
        first.receive(other, word, three.now)
    assert first.operations == [operation]
    assert operation.state is OperationState.RUNNING
    assert first.epoch is epoch
    assert not [event for event in three.events(0) if isinstance(event, MemberAccused)]


def test_a_stranger_to_the_epoch_is_not_heard(three) -> None:
    first = three.machines[0]
    epoch = first.epoch
    first.begin(D, three.now, 1)
    stranger = World(4, seed=5).order[3]
    if stranger in epoch.members:
        stranger = next(id_ for id_ in World(4, seed=5).order if id_ not in epoch.members)
    first.peer_up(stranger, bytes(32), three.now)
    for word in (
        Begin(epoch.id, 0, b"x" * 32, 1),
        Vote(epoch.id, 0, D, ROOT, bytes(64), 1),
        Abort(epoch.id, 0, "so", False, (), 1),
    ):
        first.receive(stranger, word, three.now)
    assert first.epoch is epoch
    assert len(first.operations) == 1


@pytest.mark.parametrize("lane", [0, 7])
def test_a_wrong_signature_under_a_result_is_accused_in_any_lane(three, lane) -> None:
    first, other = three.machines[0], three.world.order[1]
    first.begin(D, three.now, lane)
    first.receive(other, Vote(first.epoch.id, 0, D, ROOT, bytes(64), lane), three.now)
    accused = [event.node for event in three.events(0) if isinstance(event, MemberAccused)]
    assert accused == [other]
    assert first.epoch is None


def test_there_are_so_many_lanes(three) -> None:
    first = three.machines[0]
    for lane in range(LANES):
        first.begin(D, three.now, lane)
    assert len(first.operations) == LANES
    assert first.epoch.state == START
