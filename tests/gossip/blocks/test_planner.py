"""The planner alone, then against a world of honest, slow, refusing, dying and lying holders."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossip.blocks import bitmap as bits
from gossip.blocks.planner import Planner, PlannerSettings, Request


def planner(blocks: int, **more: object) -> Planner[str]:
    return Planner(
        bits.none(blocks),
        rng=random.Random(1),
        settings=PlannerSettings(**more),  # type: ignore[arg-type]
    )


def some(blocks: int, *which: int) -> bits.Bitmap:
    bitmap = bits.none(blocks)
    bitmap[list(which)] = True
    return bitmap


def test_what_is_rare_is_asked_first() -> None:
    plan = planner(8, first_window=1)
    plan.add("all", bits.full(8), 16)
    plan.add("most", some(8, 0, 1, 2, 3, 4, 5, 6), 16)
    assert Request("all", 7) in plan.requests(0.0)


def test_the_window_grows_to_the_holders_limit_and_no_further() -> None:
    plan = planner(100)
    plan.add("a", bits.full(100), 6)
    for now in range(10):
        for request in plan.requests(float(now)):
            plan.arrived("a", request.block, now + 0.5, good=True)
    assert len(plan.requests(20.0)) == 6


def test_a_lie_bans_and_is_counted() -> None:
    plan = planner(4)
    plan.add("liar", bits.full(4), 4)
    plan.add("good", bits.full(4), 4)
    asked = {request.block for request in plan.requests(0.0) if request.holder == "liar"}
    pointless = plan.arrived("liar", min(asked), 1.0, good=False)
    assert {request.block for request in pointless} == asked - {min(asked)}
    assert plan.banned("liar")
    assert plan.reports["liar"].bad == 1
    assert not plan.add("liar", bits.full(4), 4)
    assert {request.holder for request in plan.requests(1.0)} == {"good"}


def test_a_lie_that_comes_late_bans_as_well() -> None:
    plan = planner(1, patience_s=1.0)
    plan.add("liar", bits.full(1), 4)
    plan.requests(0.0)
    assert plan.tick(1.0) == [Request("liar", 0)]
    plan.arrived("liar", 0, 2.0, good=False)
    assert plan.banned("liar")
    assert plan.stuck


def test_a_good_block_that_comes_late_counts() -> None:
    plan = planner(1, patience_s=1.0)
    plan.add("slow", bits.full(1), 4)
    plan.requests(0.0)
    plan.tick(1.0)
    plan.arrived("slow", 0, 2.0, good=True)
    assert plan.finished


def test_a_late_request_is_made_elsewhere_and_patience_doubles() -> None:
    plan = planner(1, patience_s=1.0)
    plan.add("slow", bits.full(1), 4)
    assert plan.requests(0.0) == [Request("slow", 0)]
    assert plan.next_deadline() == 1.0
    assert plan.tick(0.9) == []
    assert plan.tick(1.0) == [Request("slow", 0)]
    assert plan.requests(1.0) == [Request("slow", 0)]  # nobody else has it
    assert plan.next_deadline() == 3.0
    plan.add("other", bits.full(1), 4)
    assert plan.tick(3.0) == [Request("slow", 0)]
    assert plan.reports["slow"].late == 2


def test_the_end_game_doubles_what_is_late_and_gives_up_the_slower_one() -> None:
    plan = planner(2, first_window=1)
    plan.add("quick", bits.full(2), 1)
    plan.add("slow", bits.full(2), 1)
    first = {request.holder: request.block for request in plan.requests(0.0)}
    plan.arrived("quick", first["quick"], 1.0, good=True)
    assert plan.requests(1.0) == []  # the slow one is not late yet: twice what the quick one took
    assert plan.next_deadline() == 2.0
    again = plan.requests(2.0)
    assert again == [Request("quick", first["slow"])]
    assert plan.arrived("quick", first["slow"], 3.0, good=True) == [Request("slow", first["slow"])]
    assert plan.finished


def test_a_refused_block_is_asked_again_only_when_it_is_claimed_again() -> None:
    plan = planner(1)
    plan.add("a", bits.full(1), 4)
    plan.requests(0.0)
    plan.refused("a", 0)
    assert plan.requests(1.0) == []
    assert plan.stuck
    plan.update("a", bits.full(1))
    assert plan.requests(2.0) == [Request("a", 0)]


def test_never_more_under_way_than_there_is_memory_for() -> None:
    plan = planner(100, first_window=16, most_under_way=20)
    for name in "abc":
        plan.add(name, bits.full(100), 16)
    assert len(plan.requests(0.0)) == 20
    assert plan.requests(0.0) == []


def test_what_is_here_is_not_asked() -> None:
    plan = Planner(some(3, 0, 2), rng=random.Random(0))
    plan.add("a", bits.full(3), 4)
    assert plan.requests(0.0) == [Request("a", 1)]
    assert plan.missing == 1


# ---- a world ------------------------------------------------------------------------------------


@attrs.define
class Holder:
    bitmap: list[bool]
    kind: str
    limit: int
    takes_s: float
    dies_at: float
    asked: Counter[int] = attrs.field(factory=Counter)


@st.composite
def worlds(draw: st.DrawFn) -> tuple[int, list[Holder], int]:
    blocks = draw(st.integers(1, 12))
    holders = [
        Holder(
            draw(st.lists(st.booleans(), min_size=blocks, max_size=blocks)),
            draw(st.sampled_from(["honest", "honest", "liar", "silent", "refuses", "flaky"])),
            draw(st.integers(1, 6)),
            draw(st.sampled_from([0.01, 0.1, 1.0, 30.0])),
            draw(st.sampled_from([float("inf"), float("inf"), 0.5, 5.0])),
        )
        for _ in range(draw(st.integers(1, 6)))
    ]
    return blocks, holders, draw(st.integers(0, 2**32))


class World:
    """Holders on one event heap; every answer of theirs is checked against what they were asked."""

    def __init__(self, blocks: int, holders: list[Holder], seed: int) -> None:
        self.holders, self.rng = holders, random.Random(seed)
        self.plan: Planner[int] = Planner(
            bits.none(blocks),
            rng=random.Random(seed),
            settings=PlannerSettings(patience_s=4.0, most_patience_s=320.0),
        )
        self.now = 0.0
        self.heap: list[tuple[float, int, str, int, int]] = []
        self.number = itertools.count()
        self.accepted: set[int] = set()
        self.given_up: set[tuple[int, int]] = set()
        for index, holder in enumerate(holders):
            self.plan.add(index, np.array(holder.bitmap, np.bool_), holder.limit)
            if holder.dies_at < float("inf"):
                self.at(holder.dies_at, "dies", index, 0)

    def at(self, when: float, what: str, holder: int, block: int) -> None:
        heapq.heappush(self.heap, (when, next(self.number), what, holder, block))

    def drop(self, requests: list[Request[int]]) -> None:
        for request in requests:
            self.holders[request.holder].asked[request.block] -= 1
            self.given_up.add((request.holder, request.block))

    def ask(self) -> None:
        for request in self.plan.requests(self.now):
            holder = self.holders[request.holder]
            assert holder.bitmap[request.block], "asked of one that does not claim it"
            assert self.now <= holder.dies_at, "asked of a dead one"
            assert not self.plan.banned(request.holder)
            assert request.block not in self.accepted, "asked again for what is here"
            holder.asked[request.block] += 1
            assert holder.asked[request.block] == 1
            assert sum(holder.asked.values()) <= holder.limit, "beyond its limit"
            self.given_up.discard((request.holder, request.block))
            what = {"silent": "", "liar": "bad", "refuses": "refused"}.get(holder.kind, "good")
            if holder.kind == "flaky" and self.rng.random() < 0.5:
                what = ""
            if what:
                self.at(self.now + holder.takes_s, what, request.holder, request.block)

    def step(self) -> bool:
        self.ask()
        deadline = self.plan.next_deadline()
        if not self.heap and deadline is None:
            return False
        if deadline is not None and (not self.heap or deadline <= self.heap[0][0]):
            self.now = max(self.now, deadline)
            self.drop(self.plan.tick(self.now))
            return True
        self.now, _, what, index, block = heapq.heappop(self.heap)
        holder = self.holders[index]
        if what == "dies":
            holder.asked.clear()
            self.plan.remove(index)
        elif self.now < holder.dies_at and (index, block) not in self.given_up:
            holder.asked[block] -= 1
            if what == "refused":
                self.plan.refused(index, block)
            else:
                was_here = block in self.accepted
                self.drop(self.plan.arrived(index, block, self.now, good=what == "good"))
                if what == "good":
                    self.accepted.add(block)
                else:
                    assert self.plan.banned(index)
                    assert bool(self.plan.have[block]) == was_here, "a wrong block was accepted"
                    holder.asked.clear()
        return True


@given(worlds())
@settings(max_examples=100)
def test_it_finishes_whenever_live_honest_holders_have_everything(
    world: tuple[int, list[Holder], int],
) -> None:
    blocks, holders, seed = world
    run = World(blocks, holders, seed)
    lasting = [h for h in holders if h.kind in {"honest", "flaky"} and h.dies_at == float("inf")]
    possible = np.logical_or.reduce([bits.none(blocks), *(h.bitmap for h in lasting)]).all()
    while not run.plan.finished and run.now < 10_000.0:
        if not run.step():
            assert run.plan.stuck, "nothing is waited for, and something could be asked"
            break
    assert set(np.flatnonzero(run.plan.have)) == run.accepted
    if possible:
        assert run.plan.finished
    for index, holder in enumerate(holders):
        report = run.plan.reports[index]
        assert report.banned == (report.bad > 0)
        assert not (report.bad and holder.kind != "liar"), "an honest holder was blamed"


@pytest.mark.parametrize("blocks", [0, 1])
def test_nothing_to_do(blocks: int) -> None:
    plan = Planner(bits.full(blocks), rng=random.Random(0))
    assert plan.finished
    assert plan.requests(0.0) == []
    assert plan.next_deadline() is None
