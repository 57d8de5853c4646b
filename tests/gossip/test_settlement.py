"""What is asked and told of operations that an epoch's end cut off, by direct calls."""

from __future__ import annotations

import msgspec

from gossip.collective.agreement.certificate import GENESIS, LANES, Ballot, Certificate, Epoch
from gossip.collective.agreement.epoch_events import MemberAccused, OperationCertified
from gossip.collective.agreement.messages import Answer, Ask
from gossip.collective.agreement.operation import Operation
from gossip.collective.agreement.settlement import KEPT_EPOCHS, Settlement
from gossip.collective.agreement.standing import NO_MODEL, Candidate, Standing
from tests.gossip.epoch_world import make_identities

IDENTITIES = sorted(make_identities(4), key=lambda identity: identity.node_id)
A, B, C, D = (identity.node_id for identity in IDENTITIES)
KEYS = {identity.node_id: identity.public_key for identity in IDENTITIES}
ROOT = b"r" * 32


def epoch(number: int, *members: bytes) -> Epoch:
    return Epoch(b"R" * 32, Ballot(number, 0, A), members or (A, B, C), GENESIS, 4, b"s" * 32)


def settlement(me: int = 0) -> tuple[Standing, Settlement]:
    standing = Standing(b"R" * 32, IDENTITIES[me], NO_MODEL)
    for node, key in KEYS.items():
        if node != standing.me:
            standing.peers[node] = Candidate(key)
    return standing, Settlement(standing)


def operations(of: Epoch, lane: int = 3, sequence: int = 0) -> list[Operation]:
    return [
        Operation(of, sequence, b"d" * 32, identity, lane)
        for identity in IDENTITIES
        if identity.node_id in of.members
    ]


def certificate(of: Epoch, lane: int = 3, sequence: int = 0, root: bytes = ROOT) -> Certificate:
    ops = operations(of, lane, sequence)
    votes = [operation.vote(root) for operation in ops]
    for member, vote in zip(of.members[1:], votes[1:], strict=True):
        assert ops[0].add_vote(member, KEYS[member], vote) is None
    assert ops[0].certify(KEYS) is None
    assert ops[0].certificate is not None
    return ops[0].certificate


def signed(of: Epoch, lane: int = 3) -> Operation:
    operation = operations(of, lane)[0]
    operation.vote(ROOT)
    operation.abort()
    return operation


def asked(standing: Standing) -> set[bytes]:
    return {node for node, message in standing.outbox if isinstance(message, Ask)}


def test_those_of_both_epochs_are_asked_and_a_certificate_settles() -> None:
    old, new = epoch(1, A, B, C), epoch(2, A, B, D)
    standing, settles = settlement()
    operation = signed(old)
    settles.doubt(operation)
    settles.entered(new)
    assert asked(standing) == {B}, "C is not there, D was not"
    assert settles.blocked(3)
    assert not settles.blocked(4)
    proof = certificate(old)
    settles.on_answer(B, Answer(old.id, 3, 0, proof), 1.0)
    assert list(standing.events) == [OperationCertified(operation, proof)]
    assert not settles.blocked(3)
    assert settles.certificate(old.id, 3, 0) == proof, "and it can be passed on"


def test_when_nobody_knows_it_is_done_again() -> None:
    old = epoch(1)
    standing, settles = settlement()
    settles.doubt(signed(old))
    settles.entered(epoch(2))
    settles.on_answer(B, Answer(old.id, 3, 0, None), 1.0)
    assert settles.blocked(3), "C may know"
    settles.on_answer(B, Answer(old.id, 3, 0, None), 1.0)
    assert settles.blocked(3), "and is not outvoted"
    settles.on_answer(C, Answer(old.id, 3, 0, None), 1.0)
    assert not settles.blocked(3)
    assert settles.open(3) is None
    assert not standing.events


def test_without_anybody_to_ask_nothing_is_waited_for() -> None:
    _, settles = settlement()
    settles.doubt(signed(epoch(1, A, B, C)))
    settles.entered(epoch(2, A, D))
    assert not settles.blocked(3)


def test_what_was_not_answered_is_asked_again_in_the_epoch_after() -> None:
    old = epoch(1)
    standing, settles = settlement()
    settles.doubt(signed(old))
    settles.entered(epoch(2))
    settles.left()
    assert not settles.blocked(3)
    standing.outbox.clear()
    settles.entered(epoch(3))
    assert asked(standing) == {B, C}


def test_only_what_was_asked_is_believed_and_only_with_all_signatures() -> None:
    old = epoch(1)
    standing, settles = settlement()
    settles.doubt(signed(old))
    settles.entered(epoch(2))
    proof = certificate(old)
    other = certificate(old, root=b"o" * 32)
    forged = msgspec.structs.replace(proof, root=b"f" * 32)
    settles.on_answer(D, Answer(old.id, 3, 0, proof), 1.0)  # was not asked
    settles.on_answer(B, Answer(epoch(9).id, 3, 0, proof), 1.0)  # of another epoch
    settles.on_answer(B, Answer(old.id, 4, 0, proof), 1.0)  # of another lane
    settles.on_answer(B, Answer(old.id, 3, 1, proof), 1.0)  # another number
    assert settles.blocked(3)
    assert not standing.events
    settles.on_answer(B, Answer(old.id, 3, 0, forged), 1.0)
    assert [event.node for event in standing.events if isinstance(event, MemberAccused)] == [B]
    settles.on_answer(C, Answer(old.id, 3, 0, other), 1.0)  # of something that was not signed here
    assert not any(isinstance(event, OperationCertified) for event in standing.events)
    assert not settles.blocked(3)


def test_the_last_of_each_lane_is_kept_for_two_epochs() -> None:
    standing, settles = settlement()
    epochs = [epoch(number) for number in range(1, KEPT_EPOCHS + 2)]
    for of in epochs:
        for lane in range(1, LANES):
            for sequence in (0, 1):
                settles.keep(certificate(of, lane, sequence))
    for of in epochs[1:]:
        for lane in range(1, LANES):
            assert settles.certificate(of.id, lane, 1) is not None
            assert settles.certificate(of.id, lane, 0) is None, "who is at 1 has had 0"
    assert settles.certificate(epochs[0].id, 1, 1) is None
    settles.on_ask(B, Ask(epochs[-1].id, 5, 1))
    settles.on_ask(B, Ask(epochs[0].id, 5, 1))
    answers = [message for _, message in standing.outbox if isinstance(message, Answer)]
    assert [answer.certificate is not None for answer in answers] == [True, False]


def test_who_gives_up_asks_no_more() -> None:
    old = epoch(1)
    standing, settles = settlement()
    settles.doubt(signed(old))
    settles.entered(epoch(2))
    settles.forget(3)
    settles.on_answer(B, Answer(old.id, 3, 0, certificate(old)), 1.0)
    assert not standing.events
    assert not settles.blocked(3)
