"""One operation's book-keeping, by direct calls."""

from __future__ import annotations

import msgspec
import pytest

from gossip.collective.agreement.certificate import GENESIS, Ballot, Epoch
from gossip.collective.agreement.operation import Operation, OperationState
from tests.gossip.epoch_world import make_identities

IDENTITIES = sorted(make_identities(3), key=lambda identity: identity.node_id)
IDS = tuple(identity.node_id for identity in IDENTITIES)
KEYS = {identity.node_id: identity.public_key for identity in IDENTITIES}
EPOCH = Epoch(b"R" * 32, Ballot(1, 0, IDS[0]), IDS, GENESIS, 4, b"s" * 32)
DESCRIPTOR, ROOT, OTHER = b"d" * 32, b"r" * 32, b"o" * 32


def operations(descriptor: bytes = DESCRIPTOR, sequence: int = 3) -> list[Operation]:
    return [Operation(EPOCH, sequence, descriptor, identity) for identity in IDENTITIES]


def test_equal_votes_of_all_members_certify() -> None:
    ops = operations()
    votes = [operation.vote(ROOT) for operation in ops]
    for me, operation in enumerate(ops):
        assert operation.state is OperationState.VOTED
        for other in range(3):
            if other == me:
                continue
            assert operation.certify(KEYS) is None
            assert operation.state is OperationState.VOTED, "nobody's vote may be missing"
            assert operation.add_vote(IDS[other], KEYS[IDS[other]], votes[other]) is None
        assert operation.certify(KEYS) is None
        assert operation.state is OperationState.CERTIFIED
        assert operation.certificate is not None
        assert operation.certificate.verify(IDS)
    assert len({operation.certificate for operation in ops}) == 1, "one certificate for all"


def test_votes_may_come_before_the_own_result() -> None:
    ops = operations()
    first = ops[0]
    for other in (1, 2):
        assert first.add_vote(IDS[other], KEYS[IDS[other]], ops[other].vote(ROOT)) is None
        assert first.voted(IDS[other])
    assert first.certify(KEYS) is None
    assert first.state is OperationState.RUNNING
    first.vote(ROOT)
    assert first.certify(KEYS) is None
    assert first.state is OperationState.CERTIFIED


def test_a_second_vote_is_refused() -> None:
    for root in (ROOT, OTHER):
        operation = operations()[0]
        operation.vote(ROOT)
        with pytest.raises(RuntimeError, match="voted"):
            operation.vote(root)
        assert operation.root == ROOT


@pytest.mark.parametrize("voted", [False, True])
def test_no_vote_after_the_end(voted: bool) -> None:
    operation = operations()[0]
    if voted:
        operation.vote(ROOT)
    operation.abort()
    assert operation.state is OperationState.ABORTED
    with pytest.raises(RuntimeError, match="aborted"):
        operation.vote(ROOT)
    assert operation.certify(KEYS) is None
    assert operation.certificate is None


def test_a_certified_operation_cannot_be_aborted() -> None:
    ops = operations()
    for operation in ops[1:]:
        ops[0].add_vote(
            operation._identity.node_id, operation._identity.public_key, operation.vote(ROOT)
        )
    ops[0].vote(ROOT)
    ops[0].certify(KEYS)
    ops[0].abort()
    assert ops[0].state is OperationState.CERTIFIED


@pytest.mark.parametrize("own_first", [False, True])
def test_disagreement_names_who(own_first: bool) -> None:
    first, second, third = operations()
    if own_first:
        first.vote(ROOT)
    reasons = [
        first.add_vote(IDS[1], KEYS[IDS[1]], second.vote(ROOT)),
        first.add_vote(IDS[2], KEYS[IDS[2]], third.vote(OTHER)),
    ]
    if not own_first:
        assert reasons == [None, None], "without an own result there is nothing to compare"
        first.vote(ROOT)
        reasons.append(first.certify(KEYS))
    assert reasons[-1] == f"{IDS[2].short} holds another result than this node"
    assert first.certify(KEYS) == reasons[-1], "and it stays so"
    assert first.certificate is None


def test_another_descriptor_names_who() -> None:
    first = operations()[0]
    vote = operations(b"x" * 32)[1].vote(ROOT)
    reason = first.add_vote(IDS[1], KEYS[IDS[1]], vote)
    assert reason == f"{IDS[1].short} runs another operation than this node"
    assert not first.voted(IDS[1])


@pytest.mark.parametrize("field", ["epoch", "sequence", "descriptor", "root", "signature"])
def test_a_changed_vote_has_a_wrong_signature(field: str) -> None:
    first, second, _ = operations()
    vote = second.vote(ROOT)
    changed = {"sequence": 4, "signature": bytes(64)}.get(field, b"z" * 32)
    bad = msgspec.structs.replace(vote, **{field: changed})
    assert first.add_vote(IDS[1], KEYS[IDS[1]], bad) == (
        f"{IDS[1].short} sent a vote with a wrong signature"
    )
    assert not first.voted(IDS[1])
    assert "wrong signature" in str(first.add_vote(IDS[2], KEYS[IDS[2]], vote)), "another's vote"


def test_the_first_vote_of_a_member_counts() -> None:
    first, second, _ = operations()
    twin = operations()[1]
    first.add_vote(IDS[1], KEYS[IDS[1]], second.vote(ROOT))
    first.add_vote(IDS[1], KEYS[IDS[1]], twin.vote(OTHER))
    first.vote(ROOT)
    assert first.certify(KEYS) is None, "what was said first is not taken back"


def certified() -> Operation:
    ops = operations()
    votes = [operation.vote(ROOT) for operation in ops]
    for other in (1, 2):
        ops[0].add_vote(IDS[other], KEYS[IDS[other]], votes[other])
    ops[0].certify(KEYS)
    return ops[0]


def test_somebody_elses_certificate_settles_what_was_signed() -> None:
    proof = certified().certificate
    assert proof is not None
    voted = operations()[1]
    assert not voted.settled_by(proof), "before it has signed, it holds no result"
    voted.vote(ROOT)
    voted.abort()
    assert voted.settled_by(proof)


@pytest.mark.parametrize(
    "changes",
    [
        {"epoch": b"z" * 32},
        {"sequence": 4},
        {"descriptor": b"z" * 32},
        {"root": OTHER},
        {"signatures": ()},
    ],
)
def test_another_certificate_settles_nothing(changes: dict[str, object]) -> None:
    proof = certified().certificate
    assert proof is not None
    voted = operations()[1]
    voted.vote(ROOT)
    assert not voted.settled_by(msgspec.structs.replace(proof, **changes))
    assert not voted.settled_by(msgspec.structs.replace(proof, signatures=proof.signatures[:2])), (
        "one member is missing"
    )


def test_a_certificate_of_the_next_operation_settles_nothing() -> None:
    proof = certified().certificate
    assert proof is not None
    later = operations(sequence=4)[1]
    later.vote(ROOT)
    assert not later.settled_by(proof)
