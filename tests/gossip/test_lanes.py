"""Operations of several lanes at one machine, by direct calls and messages of members that need not be honest."""

from __future__ import annotations

import random

import msgspec
import pytest

from gossip.collective.certificate import LANES
from gossip.collective.epoch_events import (
    EpochSettings,
    MemberAccused,
    OperationAborted,
    OperationCertified,
)
from gossip.collective.messages import Abort, Begin, Certified, Prepare, Vote
from gossip.collective.operation import Operation, OperationState
from gossip.errors import CollectiveAborted
from tests.gossip.epoch_world import START, World

D, ROOT = b"d" * 32, b"r" * 32


class Three:
    """Members in one epoch, three if not said otherwise, whose messages are moved by hand from there on."""

    def __init__(self, count: int = 3) -> None:
        self.world = World(count, seed=5, settings=EpochSettings(min_members=count))
        self.world.train = (1e9, 1e9)  # nobody begins anything by itself
        self.world.start()
        self.world.run(30, lambda: all(m.epoch is not None for m in self.machines))
        self.now = self.world.now
        for machine in self.machines:
            machine.outgoing()
            while machine.next_event() is not None:
                pass

    @property
    def machines(self):
        return [self.world.nodes[id_].machine for id_ in self.world.order]

    def deliver(self, *, keep=lambda _s, _t, _m: True) -> None:
        """Everything that is under way, until nothing is."""
        moved = True
        while moved:
            moved = False
            for source, machine in zip(self.world.order, self.machines, strict=True):
                for target, message in machine.outgoing():
                    if keep(source, target, message):
                        self.world.nodes[target].machine.receive(source, message, self.now)
                        moved = True

    def events(self, index: int) -> list[object]:
        found = []
        while (event := self.machines[index].next_event()) is not None:
            found.append(event)
        return found


@pytest.fixture
def three() -> Three:
    return Three()


@pytest.fixture
def five() -> Three:
    return Three(5)


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


# ---- votes that are collected ----------------------------------------------------------------------


def vote_all(swarm: Three, lane: int = 1, *, but: tuple[int, ...] = ()) -> list[Operation]:
    operations = [machine.begin(D, swarm.now, lane) for machine in swarm.machines]
    for index, machine in enumerate(swarm.machines):
        if index not in but:
            machine.result(ROOT, swarm.now, lane)
    return operations


def all_certified(operations: list[Operation]) -> bool:
    return all(operation.state is OperationState.CERTIFIED for operation in operations)


def test_votes_go_to_one_member_each_time_another_and_the_certificate_comes_from_it(five) -> None:
    for number in range(6):
        sent: list[tuple[bytes, bytes, type]] = []

        def note(source, target, message, sent=sent) -> bool:
            sent.append((source, target, type(message)))
            return True

        operations = vote_all(five)
        five.deliver(keep=note)
        assert all_certified(operations)
        assert len({operation.certificate for operation in operations}) == 1
        assert operations[0].certificate.verify(five.world.order)
        collector = five.world.order[number % 5]
        others = [id_ for id_ in five.world.order if id_ != collector]
        assert sorted(sent) == sorted(
            [(other, collector, Vote) for other in others]
            + [(collector, other, Certified) for other in others]
        ), number


@pytest.mark.parametrize("keeps", ["certificates", "votes"])
def test_a_collector_that_brings_nothing_is_not_waited_for(five, keeps) -> None:
    """What it keeps back for itself is its own vote, as any member could."""
    collector = five.world.order[0]

    def keep(source, target, message) -> bool:
        if keeps == "certificates":
            return not isinstance(message, Certified)
        return not (target == collector and isinstance(message, Vote))

    operations = vote_all(five)
    five.deliver(keep=keep)
    assert not all_certified(operations[1:])
    deadlines = {machine.next_deadline() for machine in five.machines[1:]}
    assert max(deadlines) <= five.now + 0.011
    five.now += 0.011
    for machine in five.machines:
        machine.tick(five.now)
    five.deliver(keep=keep)
    if keeps == "votes":
        assert all_certified(operations[1:])
        assert len({operation.certificate for operation in operations[1:]}) == 1
        return
    for machine, operation in zip(five.machines[1:], operations[1:], strict=True):
        waiting = [member for member in five.world.order if not operation.voted(member)]
        assert waiting == [collector]
        assert machine.waits_for(1) == f"{collector.short} has not signed it"


def test_what_a_collector_tells_is_the_same_as_what_the_votes_would(five) -> None:
    operations = vote_all(five)
    five.deliver(keep=lambda _s, _t, message: not isinstance(message, Certified))
    certificate = operations[0].certificate
    assert certificate is not None
    (spread,) = [m for t, m in five.machines[0].outgoing() if t == five.world.order[1]] or [None]
    assert spread is None, "it was told already"
    five.now += 0.011
    for machine in five.machines[1:]:
        machine.tick(five.now)
    # The collector's own vote is in the certificate alone: it has ended the operation and says no more.
    five.deliver()
    assert not any(operation.state is OperationState.ABORTED for operation in operations)
    five.machines[1].receive(five.world.order[0], Certified(certificate), five.now)
    assert operations[1].certificate == certificate
    five.machines[1].receive(five.world.order[0], Certified(certificate), five.now)  # again


@pytest.mark.parametrize(
    "change",
    [
        {"root": b"x" * 32},
        {"descriptor": b"x" * 32},
        {"signatures": ()},
        "another signature",
        "another key",
        "another order",
    ],
    ids=str,
)
def test_a_wrong_certificate_ends_the_operation_and_who_made_it_is_accused(five, change) -> None:
    operations = vote_all(five)
    five.deliver(keep=lambda _s, _t, message: not isinstance(message, Certified))
    good = operations[0].certificate
    signatures = list(good.signatures)
    if change == "another signature":
        last = signatures[4]
        signatures[4] = msgspec.structs.replace(last, signature=signatures[3].signature)
    elif change == "another key":
        signatures[4] = msgspec.structs.replace(signatures[4], public_key=signatures[3].public_key)
    elif change == "another order":
        signatures.reverse()
    fields = change if isinstance(change, dict) else {"signatures": tuple(signatures)}
    wrong = msgspec.structs.replace(good, **fields)
    five.events(1)
    five.machines[1].receive(five.world.order[2], Certified(wrong), five.now)
    assert operations[1].state is OperationState.ABORTED
    accused = [event.node for event in five.events(1) if isinstance(event, MemberAccused)]
    assert accused == [five.world.order[2]]


def test_a_certificate_from_outside_of_the_epoch_or_of_another_one_is_not_looked_at(five) -> None:
    operations = vote_all(five)
    five.deliver(keep=lambda _s, _t, message: not isinstance(message, Certified))
    good = operations[0].certificate
    five.events(1)
    for sender, certificate in (
        (b"z" * 32, good),
        (five.world.order[0], msgspec.structs.replace(good, epoch=b"e" * 32)),
        (five.world.order[0], msgspec.structs.replace(good, sequence=7)),
    ):
        five.machines[1].receive(sender, Certified(certificate), five.now)
    assert operations[1].state is OperationState.VOTED
    assert not five.events(1)


def test_a_member_that_disagrees_is_found_by_who_collects(five) -> None:
    operations = vote_all(five, but=(3,))
    five.machines[3].result(b"x" * 32, five.now, 1)
    five.deliver()
    assert all(operation.state is OperationState.ABORTED for operation in operations)
