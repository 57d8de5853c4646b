"""Operations of several lanes at one machine, by direct calls and messages of members that need not be honest."""

from __future__ import annotations

import random

import msgspec
import pytest

from gossip.collective.agreement.certificate import LANES, Ballot
from gossip.collective.agreement.epoch_events import (
    EpochSettings,
    MemberAccused,
    OperationAborted,
    OperationCertified,
)
from gossip.collective.agreement.messages import (
    Abort,
    Begin,
    Certified,
    Prepare,
    Vote,
    decode_message_untrusted,
    encode,
)
from gossip.collective.agreement.operation import Operation, OperationState
from gossip.errors import CollectiveAborted
from tests.gossip.epoch_world import START, World
from transport.errors import MalformedMessage

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


# ---- members that wait for each other in different lanes ---------------------------------------------


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
