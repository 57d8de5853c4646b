"""Chains of signed epochs: what they prove, and every way in which they can be wrong."""

from __future__ import annotations

import msgspec
import pytest

from gossip.collective.agreement.certificate import (
    GENESIS,
    Ballot,
    Certificate,
    Epoch,
    SignedBy,
    accept_statement,
    leave_statement,
    vote_statement,
)
from gossip.collective.agreement.formation import has_quorum
from gossip.collective.agreement.lineage import (
    LINKS_BYTES,
    MAX_LINKS,
    Doubt,
    Link,
    Memory,
    Verifier,
    farewells,
    trimmed,
)
from tests.gossip.epoch_world import make_identities
from transport.codec import decode_untrusted, pack
from transport.identity import Identity, NodeId

RUN = b"R" * 32
S, T = b"s" * 32, b"t" * 32
A, B, C, D = IDENTITIES = sorted(make_identities(4), key=lambda identity: identity.node_id)


def quorum(later: Epoch, earlier: Epoch, left: frozenset[NodeId]) -> bool:
    return has_quorum(later.members, earlier.members, left, rule="majority", min_members=1)


def link(
    members: list[Identity],
    number: int,
    *,
    previous: Link | None = None,
    round_: int = 0,
    state: bytes = S,
    left: tuple[SignedBy, ...] = (),
) -> Link:
    before = GENESIS if previous is None else epoch_of(previous).id
    ids = tuple(member.node_id for member in members)
    epoch = Epoch(RUN, Ballot(number, 0, ids[0]), ids, before, round_, state)
    keys = tuple(member.public_key for member in members)
    accepts = tuple(member.sign(accept_statement(epoch.id)) for member in members)
    return Link(epoch.ballot, before, round_, state, epoch.salt, keys, accepts, left)


def epoch_of(one: Link) -> Epoch:
    epoch = one.epoch(RUN)
    assert epoch is not None
    return epoch


def certificate(one: Link, members: list[Identity], sequence: int) -> Certificate:
    epoch = epoch_of(one).id
    statement = vote_statement(epoch, sequence, b"d" * 32, b"r" * 32)
    signed = tuple(SignedBy(member.public_key, member.sign(statement)) for member in members)
    return Certificate(epoch, sequence, b"d" * 32, b"r" * 32, signed)


def farewell(member: Identity, to: Link) -> SignedBy:
    return SignedBy(member.public_key, member.sign(leave_statement(epoch_of(to).id)))


def verifier() -> Verifier:
    return Verifier(RUN, quorum)


def test_a_chain_proves_where_it_started_and_one_round_for_each_operation() -> None:
    first = link([A, B, C], 1, round_=3)
    second = link([A, B], 2, previous=first, round_=5)
    history = verifier().history((first, second), certificate(second, [A, B], 1))
    assert history is not None
    assert [epoch.number for epoch in history.epochs] == [1, 2]
    assert history.limit == 7
    assert history.proves(7, T)
    assert not history.proves(8, T)
    assert history.proves(5, S)
    assert not history.proves(5, T), "the epoch started on another state"
    without = verifier().history((first, second), None)
    assert without is not None
    assert without.limit == 5


def test_a_certificate_of_an_earlier_link_counts() -> None:
    first = link([A, B, C], 1)
    second = link([B, C], 2, previous=first)
    history = verifier().history((first, second), certificate(first, [A, B, C], 0))
    assert history is not None
    assert history.proves(1, T)
    unknown = verifier().history((second,), certificate(first, [A, B, C], 0))
    assert unknown is not None
    assert unknown.limit == 0, "of an epoch that is not in the chain it proves nothing"


def test_no_links_prove_nothing() -> None:
    history = verifier().history((), None)
    assert history is not None
    assert history.last is None
    assert not history.proves(0, S)


def test_every_wrong_signature_is_a_lie() -> None:
    first = link([A, B, C], 1)
    forged = [
        msgspec.structs.replace(first, round=9),
        msgspec.structs.replace(first, state=T),
        msgspec.structs.replace(first, previous=b"p" * 32),
        msgspec.structs.replace(first, salt=b"p" * 16),
        msgspec.structs.replace(first, ballot=Ballot(2, 0, A.node_id)),
        msgspec.structs.replace(first, keys=first.keys[:2]),
        msgspec.structs.replace(first, keys=first.keys[::-1], accepts=first.accepts[::-1]),
        msgspec.structs.replace(first, keys=(*first.keys[:2], D.public_key)),
        msgspec.structs.replace(first, keys=(*first.keys[:2], bytes(32))),
        msgspec.structs.replace(first, accepts=(*first.accepts[:2], bytes(64))),
        msgspec.structs.replace(first, accepts=first.accepts[:2]),
        msgspec.structs.replace(first, left=(SignedBy(A.public_key, bytes(64)),)),
    ]
    for one in forged:
        assert verifier().history((one,), None) is None
    real = certificate(first, [A, B, C], 0)
    for proof in (
        certificate(first, [A, B], 0),
        msgspec.structs.replace(real, sequence=5),
        msgspec.structs.replace(real, root=T),
    ):
        assert verifier().history((first,), proof) is None


@pytest.mark.parametrize("members", [[C], [C, D], [D]])
def test_a_link_without_a_quorum_of_the_one_before_begins_the_chain_anew(
    members: list[Identity],
) -> None:
    first = link([A, B, C], 1)
    second = link(members, 2, previous=first, round_=900)
    history = verifier().history((first, second), None)
    assert history is not None
    assert [epoch.number for epoch in history.epochs] == [2]
    assert not history.supersedes(epoch_of(first), quorum)


def test_those_that_signed_their_leaving_are_not_counted() -> None:
    first = link([A, B, C], 1)
    gone = (farewell(A, first), farewell(B, first))
    second = link([C], 2, previous=first, left=gone)
    history = verifier().history((first, second), None)
    assert history is not None
    assert len(history.epochs) == 2
    alone = verifier().history((second,), None)
    assert alone is not None
    assert alone.supersedes(epoch_of(first), quorum), "also for one that knows the first itself"
    elsewhere = link([A, B, C], 7)
    stolen = msgspec.structs.replace(second, left=(farewell(A, elsewhere),))
    assert verifier().history((stolen,), None) is None, "of another epoch"


def test_what_a_history_leaves_behind() -> None:
    first = link([A, B, C], 1)
    second = link([A, B], 2, previous=first)
    third = link([A, B, D], 3, previous=second)
    history = verifier().history((first, second, third), None)
    assert history is not None
    for one in (first, second):
        assert history.supersedes(epoch_of(one), quorum)
        assert history.names(epoch_of(one).id)
    assert not history.supersedes(epoch_of(third), quorum), "it is the last itself"
    short = verifier().history((third,), None)
    assert short is not None
    assert short.supersedes(epoch_of(first), quorum), "two of the three of it signed a later one"
    lonely = epoch_of(link([C], 9))
    assert not history.supersedes(lonely, quorum)


def test_who_left_in_good_order_long_ago_does_not_hold_up_those_who_went_on() -> None:
    """The proof reaches back no further than the newest epochs, and its farewell is in none of them."""
    low, high = sorted([A, B], key=lambda identity: identity.node_id)
    left_long_ago = epoch_of(link([low, high], 1))
    unseen = link([high, C], 69, previous=link([high, C], 68))
    between = link([high, C], 70, previous=unseen)
    history = verifier().history((between, link([high, C], 71, previous=between)), None)
    assert history is not None
    assert not history.supersedes(left_long_ago, quorum), "half of it, without its first member"
    assert history.supersedes(left_long_ago, quorum, frozenset({low.node_id}))
    assert not history.supersedes(left_long_ago, quorum, frozenset({high.node_id}))


def test_those_who_founded_the_run_anew_have_not_gone_on_from_what_a_leaver_left() -> None:
    """All that they have is shown, and it did not come from there."""
    low, high = sorted([A, B], key=lambda identity: identity.node_id)
    left = epoch_of(link([low, high], 1))
    anew = verifier().history((link([high, C], 70),), None)
    assert anew is not None
    assert not anew.supersedes(left, quorum, frozenset({low.node_id}))


def test_farewells() -> None:
    first = link([A, B, C], 1)
    identity = epoch_of(first).id
    signed = (farewell(A, first), farewell(C, first))
    assert farewells(signed, identity) == {A.node_id, C.node_id}
    assert farewells((), identity) == frozenset()
    assert farewells(signed, b"x" * 32) is None


def test_as_many_links_as_there_is_room_for_the_newest_first() -> None:
    small = link([A], 1)
    assert trimmed([]) == ()
    assert trimmed([small] * 200) == (small,) * min(MAX_LINKS, LINKS_BYTES // small.size_bytes)
    large = msgspec.structs.replace(small, keys=small.keys * 256, accepts=small.accepts * 256)
    assert trimmed([small, large]) == (large,)
    assert trimmed([large, small]) == (small,)
    assert abs(len(pack({"links": [small]})) - small.size_bytes) < 60


def test_a_doubt_is_settled_when_the_run_went_on_from_where_it_would_have() -> None:
    first = link([A, B, C], 1)
    doubt = epoch_of(link([A, B], 2, previous=first))
    without = link([B, C], 3, previous=first)
    history = verifier().history((first, without), None)
    before = verifier().history((first,), None)
    other = verifier().history((link([C, D], 9),), None)
    assert history is not None
    assert before is not None
    assert other is not None
    assert history.settles(doubt, quorum), "whatever became of it, the others have a later result"
    assert not before.settles(doubt, quorum)
    assert not other.settles(doubt, quorum), "of that nothing is known"


def test_memory_survives_the_disk() -> None:
    first = link([A, B], 1)
    doubt = Doubt.of(epoch_of(link([A, B, C], 2, previous=first)))
    assert doubt.epoch(RUN) == epoch_of(link([A, B, C], 2, previous=first))
    for memory in (
        Memory((first,)),
        Memory((), doubts=(doubt,)),
        Memory((first,), certificate(first, [A, B], 3), (doubt,), left=True),
    ):
        assert decode_untrusted(pack(memory), Memory) == memory
