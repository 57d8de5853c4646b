"""The rules of formation as tables, and their laws."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.collective.certificate import GENESIS, Ballot, Certificate
from gossip.collective.formation import (
    WAIT_EXTENSION_S,
    Collecting,
    choose_start,
    connected_members,
    has_quorum,
    proposer_of,
)
from gossip.collective.messages import Promise, Wait
from transport.identity import NodeId

A, B, C, D, E = NODES = tuple(NodeId(bytes([letter]) * 32) for letter in b"ABCDE")
BALLOT = Ballot(3, 0, A)
X, Y = b"x" * 32, b"y" * 32


def promise(
    round_: int = 0,
    state: bytes = X,
    *,
    epoch: bytes = GENESIS,
    members: tuple[NodeId, ...] = (),
    reaches: tuple[NodeId, ...] = NODES,
    certificate: Certificate | None = None,
) -> Promise:
    return Promise(BALLOT, round_, state, epoch, members, reaches, certificate)


# ---- where to start ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("promises", "round_", "state", "holders"),
    [
        ({A: promise(4)}, 4, X, (A,)),
        ({A: promise(4), B: promise(5, Y)}, 5, Y, (B,)),
        ({A: promise(5), B: promise(5), C: promise(5, Y)}, 5, X, (A, B)),
        ({A: promise(5, Y), B: promise(5, Y), C: promise(5, X)}, 5, Y, (A, B)),
        ({A: promise(5, Y), B: promise(5, X)}, 5, X, (B,)),
        ({A: promise(9), B: promise(9), C: promise(10, Y)}, 10, Y, (C,)),
        ({C: promise(1), B: promise(1), A: promise(1)}, 1, X, (A, B, C)),
    ],
    ids=["alone", "most rounds", "most holders", "more than digest", "digest", "rounds", "sorted"],
)
def test_where_the_next_epoch_starts(
    promises: dict[NodeId, Promise], round_: int, state: bytes, holders: tuple[NodeId, ...]
) -> None:
    for order in itertools.permutations(promises):
        start = choose_start({node: promises[node] for node in order})
        assert (start.round, start.state, start.holders) == (round_, state, holders)


def test_the_start_brings_the_strictest_of_its_holders_epochs() -> None:
    start = choose_start(
        {
            A: promise(5, epoch=b"1" * 32, members=(A, B)),
            B: promise(5, epoch=b"2" * 32, members=(A, B, C)),
            C: promise(5, epoch=GENESIS),
            D: promise(4, epoch=b"9" * 32, members=NODES),
        }
    )
    assert start.previous == b"2" * 32
    assert start.previous_members == (A, B, C), "of the holders: those behind do not count"
    assert choose_start({A: promise()}).previous_members is None


def test_the_start_brings_a_holders_certificate() -> None:
    proof = Certificate(b"e" * 32, 1, b"d" * 32, b"r" * 32, ())
    behind = Certificate(b"f" * 32, 1, b"d" * 32, b"r" * 32, ())
    promises = {A: promise(5), B: promise(5, certificate=proof), C: promise(4, certificate=behind)}
    assert choose_start(promises).certificate == proof
    assert choose_start({A: promises[A], C: promises[C]}).certificate is None


# ---- quorum ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "previous", "left", "expected"),
    [
        ((A, B, C), (A, B, C), (), True),
        ((A, B), (A, B, C), (), True),
        ((B, C), (A, B, C), (), True),
        ((A,), (A, B, C), (), False),
        ((A, B), (A, B, C, D), (), True),  # half, with the first
        ((C, D), (A, B, C, D), (), False),  # half, without
        ((B, C, D), (A, B, C, D), (), True),
        ((A,), (A, B), (), True),
        ((B,), (A, B), (), False),
        ((B,), (A, B), (A,), True),  # the other left in good order
        ((C, D), (A, B, C, D), (A,), True),  # two of three
        ((D,), (A, B, C, D), (A, B), False),  # half of two; the first of those that count is C
        ((C,), (A, B, C, D), (A, B), True),
        ((D,), (A, B, C, D), (A, B, C), True),
        ((E,), (A, B), (A, B), True),  # everybody left: whoever comes may go on
        ((D, E), (A, B, C), (), False),  # strangers do not count
        ((A, B, D, E), (A, B, C), (), True),
        ((), (A,), (), False),
        ((), (A,), (A,), False),
    ],
)
def test_majority(
    members: tuple[NodeId, ...],
    previous: tuple[NodeId, ...],
    left: tuple[NodeId, ...],
    expected: bool,
) -> None:
    assert has_quorum(members, previous, set(left), rule="majority", min_members=1) is expected


@pytest.mark.parametrize(("present", "expected"), [(0, False), (1, False), (2, True), (3, True)])
@pytest.mark.parametrize("rule", ["majority", "any"])
def test_the_first_epoch_needs_min_members(rule: str, present: int, expected: bool) -> None:
    assert has_quorum(NODES[:present], None, set(), rule=rule, min_members=2) is expected


def test_any_goes_on_with_whoever_is_there() -> None:
    assert has_quorum((E,), (A, B, C), set(), rule="any", min_members=9)
    assert not has_quorum((), (A, B, C), set(), rule="any", min_members=0)


@given(
    size=st.integers(1, 5),
    sides=st.lists(st.sampled_from([None, 0, 1]), min_size=5, max_size=5),
    leavers=st.lists(st.booleans(), min_size=5, max_size=5),
    knows=st.tuples(*[st.lists(st.booleans(), min_size=5, max_size=5)] * 2),
)
def test_two_disjoint_sides_never_both_have_a_quorum(
    size: int, sides: list[int | None], leavers: list[bool], knows: tuple[list[bool], list[bool]]
) -> None:
    """Even when each side has heard of other nodes' leaving; those that left take no part."""
    previous = NODES[:size]
    verdicts = []
    for side in (0, 1):
        present = [
            n for n, at, gone in zip(NODES, sides, leavers, strict=True) if at == side and not gone
        ]
        left = {
            n for n, gone, known in zip(NODES, leavers, knows[side], strict=True) if gone and known
        }
        counted = [n for n in previous if n not in left]
        if counted:  # when all of them left in good order, anybody may go on: then no state is lost
            verdicts.append(has_quorum(present, previous, left, rule="majority", min_members=1))
    assert sum(verdicts) <= 1


# ---- who is in -------------------------------------------------------------------------------------


def reach(links: str, rounds: dict[NodeId, int] | None = None) -> dict[NodeId, Promise]:
    """Promises of nodes linked as in "AB BC": both ways, or one way as in "A>B"."""
    names = dict(zip("ABCDE", NODES, strict=True))
    seen: dict[NodeId, set[NodeId]] = {}
    for link in links.split():
        one, other = names[link[0]], names[link[-1]]
        seen.setdefault(one, set()).add(other)
        seen.setdefault(other, set())
        if ">" not in link:
            seen[other].add(one)
    return {
        node: promise((rounds or {}).get(node, 0), reaches=tuple(sorted(found)))
        for node, found in seen.items()
    }


@pytest.mark.parametrize(
    ("links", "rounds", "expected"),
    [
        ("AB BC AC", None, (A, B, C)),
        ("AA", None, (A,)),
        ("AB BC", None, (A, B)),  # B reaches most, then A before C
        ("AB BC", {C: 5}, (B, C)),  # whoever has the progress is in
        ("AB BC", {A: 1, C: 1}, (A, B)),
        ("AB AC AD BC", None, (A, B, C)),
        ("A>B", None, (A,)),  # one way is no way
        ("AB CD DE CE", None, (C, D, E)),
        ("AB CD DE CE", {A: 3, B: 3}, (A, B)),
    ],
)
def test_members_all_reach_each_other(
    links: str, rounds: dict[NodeId, int] | None, expected: tuple[NodeId, ...]
) -> None:
    promises = reach(links, rounds)
    for order in itertools.islice(itertools.permutations(promises), 24):
        assert connected_members({node: promises[node] for node in order}) == expected


@given(
    st.sets(st.tuples(st.integers(0, 4), st.integers(0, 4))),
    st.lists(st.integers(0, 2), min_size=5, max_size=5),
)
def test_members_are_a_clique_with_the_most_progress(
    links: set[tuple[int, int]], rounds: list[int]
) -> None:
    promises = {
        node: promise(
            rounds[index], reaches=tuple(NODES[to] for at, to in sorted(links) if at == index)
        )
        for index, node in enumerate(NODES)
    }
    members = connected_members(promises)
    assert members == tuple(sorted(set(members)))
    for one, other in itertools.combinations(members, 2):
        assert other in promises[one].reaches
        assert one in promises[other].reaches
    assert max(promises[node].round for node in members) == max(rounds)


# ---- whose turn --------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 1, 7, 2**53])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_candidate_has_its_turn_within_as_many_attempts(number: int, count: int) -> None:
    candidates = NODES[:count]
    turns = [proposer_of(candidates, number, attempt) for attempt in range(2 * count)]
    assert sorted(turns[:count]) == sorted(candidates)
    assert turns[count:] == turns[:count]
    assert turns == [proposer_of(candidates[::-1], number, attempt) for attempt in range(2 * count)]


def test_the_first_turn_is_spread_over_the_candidates() -> None:
    firsts = Counter(proposer_of(NODES, number, 0) for number in range(500))
    assert len(firsts) == 5
    assert min(firsts.values()) > 60


def test_golden_turns() -> None:
    turns = [proposer_of(NODES, 1, attempt) for attempt in range(5)]
    assert b"".join(node[:1] for node in turns).decode() == "DECAB"


# ---- collecting ----------------------------------------------------------------------------------


def test_collecting_is_complete_with_the_last_answer() -> None:
    collecting = Collecting(BALLOT, [B, C], now=10.0, patience_s=0.5)
    assert collecting.due == 10.5
    assert not collecting.complete
    assert collecting.promise(B, promise())
    assert not collecting.promise(B, promise(9)), "the first one counts"
    assert not collecting.promise(D, promise()), "nobody asked it"
    other = Promise(Ballot(4, 0, A), 0, X, GENESIS, (), (), None)
    assert not collecting.promise(C, other), "another ballot"
    assert not collecting.complete
    assert collecting.promise(C, promise(2))
    assert collecting.complete
    assert {node: one.round for node, one in collecting.promises.items()} == {B: 0, C: 2}


def test_collecting_drops_the_lost() -> None:
    collecting = Collecting(BALLOT, [B, C], now=0.0, patience_s=0.5)
    collecting.drop(B)
    collecting.drop(D)
    assert not collecting.complete
    collecting.drop(C)
    assert collecting.complete


def test_only_those_that_asked_for_time_are_waited_for() -> None:
    collecting = Collecting(BALLOT, [B, C, D], now=0.0, patience_s=0.5)
    collecting.wait(B, Wait(BALLOT), now=0.1)
    collecting.wait(C, Wait(Ballot(9, 0, A)), now=0.1)
    collecting.wait(E, Wait(BALLOT), now=0.1)
    collecting.give_up_on_silent(0.5)
    assert not collecting.complete
    assert collecting.due == 0.1 + WAIT_EXTENSION_S
    collecting.wait(B, Wait(BALLOT), now=20.0)
    collecting.give_up_on_silent(0.1 + WAIT_EXTENSION_S)
    assert collecting.complete, "asking again does not give more time"


def test_nobody_to_wait_for() -> None:
    assert Collecting(BALLOT, [], now=0.0, patience_s=0.5).complete
