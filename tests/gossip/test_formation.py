"""The rules of formation as tables, and their laws."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.collective.agreement.certificate import GENESIS, Ballot, Epoch
from gossip.collective.agreement.formation import (
    WAIT_EXTENSION_S,
    Collecting,
    Start,
    choose_start,
    connected_members,
    has_quorum,
    proposer_of,
)
from gossip.collective.agreement.lineage import History
from gossip.collective.agreement.messages import Promise, Wait
from transport.identity import NodeId

A, B, C, D, E = NODES = tuple(NodeId(bytes([letter]) * 32) for letter in b"ABCDE")
BALLOT = Ballot(3, 0, A)
X, Y = b"x" * 32, b"y" * 32


def promise(round_: int = 0, state: bytes = X, *, reaches: tuple[NodeId, ...] = NODES) -> Promise:
    return Promise(BALLOT, round_, state, (), None, (), reaches)


def epoch(
    members: tuple[NodeId, ...],
    number: int = 1,
    *,
    previous: bytes = GENESIS,
    round_: int = 0,
    state: bytes = X,
) -> Epoch:
    return Epoch(b"R" * 32, Ballot(number, 0, members[0]), members, previous, round_, state)


def past(*epochs: Epoch, limit: int = 0) -> History:
    limit = max([limit, *(one.round for one in epochs[-1:])])
    return History(epochs, limit, (frozenset(),) * len(epochs))


def majority(later: Epoch, earlier: Epoch, left: frozenset[NodeId]) -> bool:
    return has_quorum(later.members, earlier.members, left, rule="majority", min_members=1)


def start_of(
    promises: dict[NodeId, Promise], histories: dict[NodeId, History] | None = None
) -> Start:
    """The same for every order of the promises."""
    histories = {node: (histories or {}).get(node, History()) for node in promises}
    found = [
        choose_start({node: promises[node] for node in order}, histories, majority)
        for order in itertools.islice(itertools.permutations(promises), 24)
    ]
    assert all(start == found[0] for start in found)
    return found[0]


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
def test_where_a_run_without_a_past_starts(
    promises: dict[NodeId, Promise], round_: int, state: bytes, holders: tuple[NodeId, ...]
) -> None:
    start = start_of(promises)
    assert (start.round, start.state, start.holders) == (round_, state, holders)
    assert start.head is None
    assert start.fresh == tuple(sorted(promises))


def test_a_claim_with_nothing_to_show_counts_for_nothing_beside_a_proven_one() -> None:
    one = epoch((A, B, C), round_=4)
    histories = {A: past(one, limit=5), B: past(one, limit=5), D: History()}
    start = start_of({A: promise(5, Y), B: promise(4), D: promise(900)}, histories)
    assert (start.round, start.state, start.holders) == (5, Y, (A,))
    assert (start.head, start.fresh) == (one, (D,))
    beyond = start_of({A: promise(5, Y), B: promise(6)}, histories | {A: past(one, limit=5)})
    assert beyond.round == 5, "and one beyond what its history proves is no better"


def test_what_most_members_of_the_head_hold_needs_no_proof() -> None:
    """They were started again, and their disks know more than they can show."""
    one = epoch((A, B, C), round_=4)
    histories = dict.fromkeys((A, B, C), past(one))
    start = start_of({A: promise(4), B: promise(7, Y), C: promise(7, Y)}, histories)
    assert (start.round, start.state, start.holders) == (7, Y, (B, C))
    split = start_of({A: promise(4), B: promise(7, Y), C: promise(8, Y)}, histories)
    assert split.round == 4, "no two of them agree"
    nobody = start_of({A: promise(6), B: promise(7, Y), C: promise(8, Y)}, histories)
    assert nobody.round == 8, "where nobody can prove anything, the highest counts"


def test_the_head_is_what_nobody_has_left_behind() -> None:
    one = epoch((A, B, C))
    two = epoch((B, C), 2, previous=one.id)
    histories = {A: past(one, limit=1), C: past(one, two)}
    start = start_of({A: promise(1, Y), C: promise(0)}, histories)
    assert start.head == two, "A alone does not know that the others went on"
    assert (start.round, start.holders) == (1, (A,)), "and yet its result is certified"


def test_of_two_pasts_with_nothing_in_common_that_of_more_members_counts() -> None:
    true, made_up = epoch((A, B, C)), epoch((D,), 900, round_=10**6)
    histories = {A: past(true), B: past(true), D: past(made_up)}
    start = start_of({A: promise(0), B: promise(0), D: promise(10**6, Y)}, histories)
    assert (start.round, start.head) == (0, true)
    by_progress = choose_start(
        {A: promise(0), B: promise(0), D: promise(10**6, Y)},
        histories,
        majority,
        by_progress=True,
    )
    assert by_progress.round == 10**6


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
        ((E,), (A, B), (A, B), False),  # everybody left: who comes later cannot go on for them
        ((B, E), (A, B), (A, B), False),
        ((A, E), (A, B), (A, B), True),  # half, with the first
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


@pytest.mark.parametrize(
    ("members", "previous", "fresh", "expected"),
    [
        ((A, B), (A, B, C), (B,), False),  # C may be going on with whom B was before
        ((A, B, C), (A, B, C), (B,), True),  # nobody is missing
        ((A, B, C), (A, B, C), (A, B, C), True),
        ((A, B), (A, B, C, D), (B,), False),
        ((A, B, C), (A, B, C, D), (C,), True),  # half, with the first
        ((B, C, D), (A, B, C, D), (D,), False),
        ((A, B, E), (A, B, C), (E,), True),  # a newcomer is nobody's majority anyway
    ],
)
def test_who_does_not_remember_counts_when_nobody_is_missing(
    members: tuple[NodeId, ...],
    previous: tuple[NodeId, ...],
    fresh: tuple[NodeId, ...],
    expected: bool,
) -> None:
    verdict = has_quorum(members, previous, (), rule="majority", min_members=1, fresh=fresh)
    assert verdict is expected


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
        ("AB BC AC A>D B>D C>D", None, (A, B, C)),
        ("AB BC AC D>A D>B D>C", None, (A, B, C)),  # what it says of itself does not count
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


def test_progress_counts_only_when_it_is_proven() -> None:
    promises = reach("AB BC", {C: 5})
    assert connected_members(promises, proven=[A, B]) == (A, B)
    assert connected_members(promises, proven=[A, B, C]) == (B, C)


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
    other = Promise(Ballot(4, 0, A), 0, X, (), None, (), ())
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
    collecting.give_up_on_silent(0.5, enough=False)
    assert not collecting.complete
    assert collecting.due == 0.1 + WAIT_EXTENSION_S
    collecting.wait(B, Wait(BALLOT), now=20.0)
    collecting.give_up_on_silent(0.1 + WAIT_EXTENSION_S, enough=False)
    assert collecting.complete, "asking again does not give more time"


def test_nobody_is_waited_for_when_the_others_are_enough() -> None:
    collecting = Collecting(BALLOT, [B, C, D], now=0.0, patience_s=0.5)
    collecting.wait(B, Wait(BALLOT), now=0.1)
    collecting.give_up_on_silent(0.5, enough=True)
    assert collecting.complete


def test_nobody_to_wait_for() -> None:
    assert Collecting(BALLOT, [], now=0.0, patience_s=0.5).complete
