"""Which members wait for each other for ever: circles of arrows, and programs that are played to their end."""

from __future__ import annotations

import random
from collections import Counter

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.collective.agreement.deadlock import Wait, circle_through, dead_operations, in_words
from tests.gossip.epoch_world import World

A, B, C, D = World(4, seed=5).order


def waits(*lanes: tuple[int, dict[int, int]]) -> dict[object, Wait]:
    """Of the members in order: the lane of what each waits for, and how many it has called by lane."""
    found = {}
    for member, (lane, called) in zip((A, B, C, D), lanes, strict=False):
        counts = tuple(called.get(number, 0) for number in range(16))
        found[member] = Wait(lane, called.get(lane, 1) - 1, counts)
    return found


def test_two_that_wait_in_different_lanes_are_a_circle() -> None:
    both = waits((4, {4: 1}), (9, {9: 1}))
    assert circle_through(A, both) == [A, B]
    assert circle_through(B, both) == [B, A]
    assert dead_operations([A, B], both) == {(4, 0), (9, 0)}
    assert in_words([A, B], both) == (
        f"members call different tags: {A.short} waits in tag 4 for {B.short}, "
        f"{B.short} waits in tag 9 for {A.short}"
    )


@pytest.mark.parametrize(
    "right",
    [
        waits((4, {4: 1}), (4, {4: 1})),
        waits((4, {4: 1, 9: 1}), (9, {9: 1})),  # A has called what B waits for
        waits((4, {4: 1}), (9, {4: 1, 9: 1})),
        waits((4, {4: 3}), (4, {4: 3})),
        waits((4, {4: 1}), (4, {4: 2})),  # B is ahead: it has seen the end of what A waits for
        waits((4, {4: 1})),
        {},
    ],
)
def test_who_has_called_what_another_waits_for_ends_the_circle(right: dict[object, Wait]) -> None:
    assert circle_through(A, right) == []
    assert circle_through(B, right) == []


def test_one_lane_may_be_a_circle_if_an_earlier_operation_of_it_is_waited_for_elsewhere() -> None:
    """A waits in lane 1 for B's first call of it, B in lane 2 for A's second."""
    late = waits((1, {1: 1, 2: 1}), (2, {2: 2}))
    assert circle_through(A, late) == [A, B]


def test_a_circle_of_three_with_none_of_two() -> None:
    three = waits((1, {1: 1, 2: 1}), (2, {2: 1, 3: 1}), (3, {3: 1, 1: 1}))
    assert circle_through(A, three) == [A, B, C]
    assert circle_through(C, three) == [C, A, B]
    assert dead_operations([A, B, C], three) == {(1, 0), (2, 0), (3, 0)}


def test_who_waits_for_those_on_a_circle_waits_for_ever_and_is_not_on_it() -> None:
    four = waits((4, {4: 1}), (9, {9: 1}), (5, {4: 1, 9: 1, 5: 1}), (6, {4: 1, 9: 1, 5: 1, 6: 1}))
    assert circle_through(C, four) == []
    assert circle_through(A, four) == [A, B]
    assert dead_operations([A, B], four) == {(4, 0), (9, 0), (5, 0), (6, 0)}


# ---- programs that are played to their end -----------------------------------------------------------

Program = list[tuple[int, bool]]
"""Calls in order: the lane, and whether the caller waits there and calls nothing more before it has ended."""


@attrs.define
class Member:
    program: Program
    at: int = 0
    called: Counter[int] = attrs.field(factory=Counter)
    wait: Wait | None = None


class Play:
    """Members that carry out their programs; an operation ends when all have called it and those before it in its lane."""

    def __init__(self, programs: list[Program], rng: random.Random) -> None:
        self.members = {
            id_: Member(list(p)) for id_, p in zip((A, B, C, D), programs, strict=False)
        }
        self.ended: Counter[int] = Counter()
        self.rng = rng
        self.under_way: list[tuple[object, Wait]] = []
        """What was said and has not arrived, of each member in order."""
        self.heard: dict[object, Wait] = {}
        self.circle: list[object] = []

    def can_go_on(self, member: Member) -> bool:
        wait = member.wait
        waiting = wait is not None and self.ended[wait.lane] <= wait.sequence
        return member.at < len(member.program) and not waiting

    def play(self) -> None:
        """One step of anybody, or the arrival of anything, until nothing can happen any more."""
        while True:
            ready = [id_ for id_, member in self.members.items() if self.can_go_on(member)]
            if not ready and not self.under_way:
                return
            if self.under_way and (not ready or self.rng.random() < 0.3):
                self.arrives()
            else:
                self.calls(self.rng.choice(ready))

    def calls(self, id_: object) -> None:
        member = self.members[id_]
        lane, waits_there = member.program[member.at]
        member.at += 1
        member.called[lane] += 1
        if waits_there:
            counts = tuple(member.called[number] for number in range(16))
            member.wait = Wait(lane, member.called[lane] - 1, counts)
            self.under_way.append((id_, member.wait))
        self.ended[lane] = min(one.called[lane] for one in self.members.values())

    def arrives(self) -> None:
        sender = self.rng.choice([sender for sender, _ in self.under_way])
        place = next(n for n, (other, _) in enumerate(self.under_way) if other == sender)
        _, self.heard[sender] = self.under_way.pop(place)
        self.circle = self.circle or circle_through(sender, self.heard)


calls = st.tuples(st.integers(1, 4), st.booleans())


@given(
    st.lists(st.lists(calls, max_size=8), min_size=2, max_size=4), st.randoms(use_true_random=False)
)
def test_a_circle_is_found_if_and_only_if_nobody_on_it_ever_goes_on(
    programs: list[Program], rng: random.Random
) -> None:
    """Whatever the programs, the order of steps, and how late words arrive."""
    play = Play(programs, rng)
    play.play()
    for id_ in play.circle:
        wait = play.heard[id_]
        assert play.ended[wait.lane] <= wait.sequence, "a false alarm"
    stuck = {
        id_
        for id_, member in play.members.items()
        if member.wait is not None and play.ended[member.wait.lane] <= member.wait.sequence
    }
    if stuck == set(play.members):
        assert play.circle, "all wait for ever, and nobody was told"


@given(
    st.permutations([lane for lane in range(1, 16) for _ in range(2)]),
    st.integers(2, 4),
    st.randoms(use_true_random=False),
)
def test_programs_that_call_the_same_in_one_order_are_right_wherever_they_wait(
    order: list[int], members: int, rng: random.Random
) -> None:
    programs = [[(lane, rng.random() < 0.5) for lane in order] for _ in range(members)]
    play = Play(programs, rng)
    play.play()
    assert not play.circle
    assert all(member.at == len(order) for member in play.members.values())


@given(
    st.lists(st.permutations(range(1, 16)), min_size=2, max_size=4),
    st.randoms(use_true_random=False),
)
def test_programs_that_wait_after_the_last_of_their_calls_may_call_in_any_order(
    orders: list[list[int]], rng: random.Random
) -> None:
    programs = [[(lane, False) for lane in order] + [(1, True)] for order in orders]
    play = Play(programs, rng)
    play.play()
    assert not play.circle
    assert all(play.ended[lane] == (2 if lane == 1 else 1) for lane in range(1, 16))
