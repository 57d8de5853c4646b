"""Votes that one member collects: who is sent what, and what a collector that fails or lies can do."""

from __future__ import annotations

import msgspec
import pytest

from gossip.collective.agreement.certificate import Ballot
from gossip.collective.agreement.epoch_events import (
    MemberAccused,
)
from gossip.collective.agreement.messages import (
    Certified,
    Prepare,
    Vote,
)
from gossip.collective.agreement.operation import Operation, OperationState
from tests.gossip.by_hand import ROOT, D, Three


@pytest.fixture
def five() -> Three:
    return Three(5)


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


def test_a_collector_that_tells_some_and_not_others_is_alone_to_blame(five) -> None:
    """Those it has told say what the others lack: it is waited for by itself, and nobody else is left out."""
    collector, told = five.world.order[:2]

    def keep(source, target, message) -> bool:
        return source != collector or target == told or not isinstance(message, Certified | Vote)

    operations = vote_all(five)
    five.deliver(keep=keep)
    assert operations[1].state is OperationState.CERTIFIED
    five.now += 0.011
    for machine in five.machines:
        machine.tick(five.now)
    five.deliver(keep=keep)
    for machine, operation in zip(five.machines[2:], operations[2:], strict=True):
        waiting = [member for member in five.world.order if not operation.voted(member)]
        assert waiting == [collector]
        assert machine.waits_for(1) == f"{collector.short} has not signed it"


def test_who_has_the_certificate_and_moves_on_does_not_end_what_the_others_wait_to_hear_of(
    five,
) -> None:
    """Its request comes on another connection than the certificate, and may be quicker."""
    operations = vote_all(five)
    five.deliver(keep=lambda _s, target, _m: target != five.world.order[3])
    late = five.machines[3]
    late.receive(five.world.order[1], Prepare(Ballot(99, 0, five.world.order[1])), five.now)
    assert operations[3].state is OperationState.VOTED
    late.receive(five.world.order[0], Certified(operations[0].certificate), five.now)
    assert operations[3].state is OperationState.CERTIFIED


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
