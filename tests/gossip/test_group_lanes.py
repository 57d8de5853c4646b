"""Several operations at once: tags, handles, and what becomes of the others when one fails."""

from __future__ import annotations

import hashlib
import random

import attrs
import numpy as np
import pytest
import trio

from gossip.collective.agreement.epoch_events import EpochSettings
from gossip.collective.agreement.messages import Certified, Message, Vote
from gossip.collective.call import Call, Kind
from gossip.collective.calls import MAX_CALLS
from gossip.collective.group import Handle, Job, Reduced
from gossip.errors import (
    CollectiveAborted,
    DescriptorMismatch,
    Indeterminate,
    InvalidOperation,
)
from tests.gossip.swarm import Node, open_swarm

START = hashlib.sha256(b"start").digest()
LENGTH = 5000


def values(index: int, tag: int, step: int = 0) -> np.ndarray:
    rng = np.random.default_rng((index, tag % 99, step))
    return (rng.standard_normal(LENGTH) * 10).astype(np.float32)


def expected(members: list[int], tag: int, step: int = 0) -> np.ndarray:
    return sum(values(index, tag, step).astype(np.float64) for index in members)


def job(node: Node, index: int, tag: int, step: int = 0, deadline: float = np.inf) -> Job:
    source = values(index, tag, step)
    call = Call().bind(b"%d/%d" % (tag, step), source)
    return Job(call, source, np.empty_like(source), tag=tag, deadline=deadline)


async def test_tags_may_be_called_in_any_order(autojump_clock: object) -> None:
    async with open_swarm(3) as (_, nodes):
        outs: dict[tuple[int, int], np.ndarray] = {}
        for node in nodes:
            node.group.set_position(0, START)

        async def member(index: int) -> None:
            tags = list(range(16))
            random.Random(index).shuffle(tags)
            handles: list[tuple[int, Job, Handle]] = []
            for tag in tags:
                work = job(nodes[index], index, tag)
                handles.append((tag, work, nodes[index].group.start(work)))
            for tag, work, handle in handles:
                reduced = await handle.wait()
                assert handle.done
                assert reduced.certificate.lane == tag
                outs[index, tag] = work.out

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for index in range(3):
                    nursery.start_soon(member, index)
        for tag in range(16):
            assert len({outs[index, tag].tobytes() for index in range(3)}) == 1
            np.testing.assert_allclose(outs[0, tag], expected([0, 1, 2], tag), rtol=1e-5, atol=1e-4)
        assert all(node.group.aborted_operations == 0 for node in nodes)
        assert all(node.group.machine.epoch is not None for node in nodes)


async def test_one_step_delayed_results_overlap_with_work(autojump_clock: object) -> None:
    """Start step t, do the work of step t + 1, then apply step t: what DiLoCo with a delay does."""
    steps, work_s = 8, 1.0
    async with open_swarm(2) as (_, nodes):
        for node in nodes:
            node.group.set_position(0, START)
        sums: dict[int, list[np.ndarray]] = {0: [], 1: []}

        async def member(index: int) -> None:
            group, pending = nodes[index].group, None
            for step in range(steps + 1):
                await trio.sleep(work_s)
                if pending is not None:
                    await pending[1].wait()
                    sums[index].append(pending[0].out)
                work = job(nodes[index], index, 1, step)
                pending = (work, group.start(work)) if step < steps else None

        await nodes[0].group.wait_entered()
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for index in range(2):
                nursery.start_soon(member, index)
        assert trio.current_time() - began == pytest.approx((steps + 1) * work_s, abs=0.2)
        for step in range(steps):
            assert np.array_equal(sums[0][step], sums[1][step])
            np.testing.assert_allclose(
                sums[0][step], expected([0, 1], 1, step), rtol=1e-5, atol=1e-4
            )


async def test_of_one_tag_the_order_of_the_calls_counts(autojump_clock: object) -> None:
    async with open_swarm(2) as (_, nodes):
        for node in nodes:
            node.group.set_position(0, START)
        works = [[job(nodes[i], i, 3, step) for step in range(10)] for i in range(2)]
        handles = [[nodes[i].group.start(work) for work in works[i]] for i in range(2)]
        with trio.fail_after(30):
            for handle in (*handles[0], *handles[1]):
                await handle.wait()
        for step in range(10):
            assert np.array_equal(works[0][step].out, works[1][step].out)


async def test_a_lost_member_aborts_all_tags_and_each_is_done_again_exactly(
    autojump_clock: object,
) -> None:
    tags = [0, 2, 5, 9]
    for after_s in (0.0, 0.002, 0.02):
        async with open_swarm(4, settings=EpochSettings(min_members=4)) as (network, nodes):
            ids = {node.endpoint.node_id: index for index, node in enumerate(nodes)}
            for node in nodes:
                node.group.set_position(0, START)
            await nodes[3].group.wait_entered()
            works = [[job(nodes[i], i, tag) for tag in tags] for i in range(4)]
            handles = [[nodes[i].group.start(work) for work in works[i]] for i in range(4)]
            await trio.sleep(after_s)
            network.kill_host("10.0.0.4")
            with trio.fail_after(60):
                for place, tag in enumerate(tags):
                    ended: list[Reduced] = [await handles[i][place].wait() for i in range(3)]
                    for index, reduced in enumerate(ended):
                        members = [ids[member] for member in reduced.epoch.members]
                        np.testing.assert_allclose(
                            works[index][place].out, expected(members, tag), rtol=1e-5, atol=1e-4
                        )
                    assert len({reduced.certificate.root for reduced in ended}) == 1, tag


@pytest.mark.parametrize("collected", [False, True])
async def test_a_result_that_an_epochs_end_cut_off_is_settled_by_those_who_hold_it(
    collected: bool, autojump_clock: object
) -> None:
    """One member's word reaches two of four, and then it is gone: the others ask, and do not do it again."""
    settings = EpochSettings(min_members=4, collect_from=4 if collected else 5)
    async with open_swarm(4, settings=settings) as (network, nodes):
        for node in nodes:
            node.group.set_position(0, START)
        await nodes[3].group.wait_entered()
        if collected:  # the first member collects the votes of a lane's first operation; let it be the last node
            nodes.sort(key=lambda node: node.endpoint.node_id, reverse=True)
        post = nodes[3].group._talk.send
        heard = {nodes[0].endpoint.node_id, nodes[1].endpoint.node_id}

        def some_hear(to: object, message: Message) -> None:
            if not isinstance(message, Vote | Certified) or to in heard:
                post(to, message)

        nodes[3].group._talk.send = some_hear
        works = [job(nodes[i], i, 7) for i in range(4)]
        handles = [nodes[i].group.start(works[i]) for i in range(4)]
        first = [await handles[i].wait() for i in (0, 1)]
        assert not handles[2].done
        network.kill_host(nodes[3].address.host)
        with trio.fail_after(30):
            late = await handles[2].wait()
            assert late.certificate == first[0].certificate == first[1].certificate
            assert late.epoch == first[0].epoch
            assert np.array_equal(works[2].out, works[0].out)
            # And the lane goes on as if nothing had been.
            more = [job(nodes[i], i, 7, step=1) for i in range(3)]
            again = [nodes[i].group.start(more[i]) for i in range(3)]
            ended = [await handle.wait() for handle in again]
        assert len(ended[0].epoch.members) == 3
        np.testing.assert_allclose(more[0].out, expected([0, 1, 2], 7, 1), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "other",
    [
        lambda s: (Call().bind(b"x", s.astype(np.float64)), s.astype(np.float64)),
        lambda s: (Call().bind(b"x", s[1:]), s[1:]),
        lambda s: (Call().bind(b"y", s), s),
    ],
    ids=["type", "length", "descriptor"],
)
async def test_members_that_disagree_are_told_at_once(
    other: object, autojump_clock: object
) -> None:
    async with open_swarm(2) as (_, nodes):
        for node in nodes:
            node.group.set_position(0, START)
        await nodes[0].group.wait_entered()
        source = values(0, 0)
        call, theirs = other(source)
        good = nodes[0].group.start(Job(Call().bind(b"x", source), source, source.copy(), tag=4))
        bad = nodes[1].group.start(Job(call, theirs, theirs.copy(), tag=4))
        began = trio.current_time()
        with pytest.raises(DescriptorMismatch):
            await good.wait()
        with pytest.raises(DescriptorMismatch):
            await bad.wait()
        assert trio.current_time() - began < 1.0


async def test_a_mismatch_in_one_tag_is_no_mismatch_in_another(autojump_clock: object) -> None:
    async with open_swarm(2) as (_, nodes):
        for node in nodes:
            node.group.set_position(0, START)
        fine = [job(nodes[i], i, 1) for i in range(2)]
        wrong = [job(nodes[i], i, 2, step=i) for i in range(2)]
        good = [nodes[0].group.start(fine[0])]
        bad = [nodes[i].group.start(wrong[i]) for i in range(2)]
        with trio.fail_after(30):
            for handle in bad:
                with pytest.raises(DescriptorMismatch):
                    await handle.wait()
            good.append(nodes[1].group.start(fine[1]))
            for handle in good:
                await handle.wait()
        np.testing.assert_allclose(fine[0].out, expected([0, 1], 1), rtol=1e-5, atol=1e-4)


async def test_too_many_calls_and_wrong_tags_are_refused_and_leave_nothing(
    autojump_clock: object,
) -> None:
    async with open_swarm(2) as (_, nodes):
        group = nodes[0].group
        for tag in (-1, 16):
            with pytest.raises(InvalidOperation, match="tag"):
                group.start(job(nodes[0], 0, tag))
        handles = [group.start(job(nodes[0], 0, n % 16)) for n in range(MAX_CALLS)]
        with pytest.raises(InvalidOperation, match="under way"):
            group.start(job(nodes[0], 0, 1))
        for handle in handles:
            handle.cancel()
        for handle in handles:
            with pytest.raises(CollectiveAborted):
                await handle.wait()
        group.start(job(nodes[0], 0, 1)).cancel()


async def test_handles_end_by_their_deadlines_and_the_lane_goes_on(autojump_clock: object) -> None:
    async with open_swarm(2) as (_, nodes):
        for node in nodes:
            node.group.set_position(0, START)
        await nodes[0].group.wait_entered()
        soon = trio.current_time() + 2
        alone = [
            nodes[0].group.start(job(nodes[0], 0, 6, step, deadline=soon)) for step in range(3)
        ]
        for handle in alone:
            with pytest.raises(CollectiveAborted):
                await handle.wait()
        assert trio.current_time() <= soon + 2
        works = [job(nodes[i], i, 6, 9) for i in range(2)]
        with trio.fail_after(30):
            for handle in [nodes[i].group.start(works[i]) for i in range(2)]:
                await handle.wait()
        assert np.array_equal(works[0].out, works[1].out)


async def test_members_that_call_other_tags_are_told_who_waits_where(
    autojump_clock: object,
) -> None:
    """Each may still call the other's tag, so it is no error before the deadline; then the error says what was seen."""
    async with open_swarm(2) as (_, nodes):
        for node in nodes:
            node.group.set_position(0, START)
        await nodes[0].group.wait_entered()
        soon = trio.current_time() + 2
        handles = [
            nodes[0].group.start(job(nodes[0], 0, 4, deadline=soon)),
            nodes[1].group.start(job(nodes[1], 1, 9, deadline=soon + 0.001)),
        ]
        name = nodes[1].endpoint.node_id.short
        with pytest.raises(
            CollectiveAborted, match=rf"{name} has not begun it \(but begun tag 9\)"
        ):
            await handles[0].wait()
        with pytest.raises(CollectiveAborted):
            await handles[1].wait()
        assert trio.current_time() <= soon + 2


def sole(node: Node, index: int, tag: int, step: int = 0, deadline: float = np.inf) -> Job:
    """As `job`; nothing else is called at that node before it has ended."""
    return attrs.evolve(job(node, index, tag, step, deadline), sole=True)


@pytest.mark.parametrize("kind", [Kind.ALL_REDUCE, Kind.BARRIER])
async def test_members_that_call_other_tags_and_wait_there_are_told_at_once(
    kind: Kind, autojump_clock: object
) -> None:
    """The third waits for one of them; what was called before under another tag is done again, and right calls go on."""
    async with open_swarm(3) as (_, nodes):
        for node in nodes:
            node.group.set_position(0, START)
        await nodes[0].group.wait_entered()
        before = [job(nodes[i], i, 2) for i in range(3)]
        others = [nodes[i].group.start(before[i]) for i in range(2)]

        def call(index: int, tag: int) -> Handle:
            if kind is Kind.ALL_REDUCE:
                return nodes[index].group.start(sole(nodes[index], index, tag))
            nothing = np.empty(0, np.float32)
            barrier = Call(Kind.BARRIER).bind(b"x", nothing)
            return nodes[index].group.start(Job(barrier, nothing, nothing, tag, sole=True))

        began = trio.current_time()
        wrong = [call(index, tag) for index, tag in enumerate((4, 9, 4))]
        for handle in wrong:
            with pytest.raises(DescriptorMismatch, match="different tags") as raised:
                await handle.wait()
            assert "under the same tags" in raised.value.hint
        assert trio.current_time() - began < 1.0
        with trio.fail_after(30):
            others.append(nodes[2].group.start(before[2]))
            for handle in others:
                await handle.wait()
            works = [sole(nodes[i], i, 4, 1) for i in range(3)]
            for handle in [nodes[i].group.start(works[i]) for i in range(3)]:
                await handle.wait()
        np.testing.assert_allclose(before[0].out, expected([0, 1, 2], 2), rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(works[0].out, expected([0, 1, 2], 4, 1), rtol=1e-5, atol=1e-4)


async def test_a_circle_of_three_tags_is_told_to_each_of_them(autojump_clock: object) -> None:
    """Each has called what the one before it waits for, so no two are wrong; all three are."""
    async with open_swarm(3) as (_, nodes):
        for node in nodes:
            node.group.set_position(0, START)
        await nodes[0].group.wait_entered()
        soon = trio.current_time() + 1.0
        early = [
            nodes[i].group.start(job(nodes[i], i, tag, deadline=soon))
            for i, tag in enumerate((3, 1, 2))
        ]
        waits = [nodes[i].group.start(sole(nodes[i], i, tag)) for i, tag in enumerate((1, 2, 3))]
        for handle in (*waits, *early):
            with pytest.raises(DescriptorMismatch, match="different tags"):
                await handle.wait()
        assert trio.current_time() < soon


@pytest.mark.parametrize("seed", range(2))
async def test_all_tags_in_random_order_are_no_mismatch_wherever_members_wait(
    seed: int, autojump_clock: object
) -> None:
    """Each calls the tags of a window in an order of its own; the last call of it is one that it waits for."""
    rng = random.Random(seed)
    windows = [rng.sample(range(1, 16), rng.randint(3, 15)) for _ in range(4)]
    async with open_swarm(3) as (_, nodes):
        for node in nodes:
            node.group.set_position(0, START)
        await nodes[0].group.wait_entered()

        async def member(index: int) -> None:
            mine = random.Random(f"{seed}/{index}")
            group = nodes[index].group
            for step, window in enumerate(windows):
                *first, last = mine.sample(window, len(window))
                handles = []
                for tag in first:
                    handles.append(group.start(job(nodes[index], index, tag, step)))
                    await trio.sleep(mine.choice([0.0, 0.0, 0.05]))
                await group.run_job(sole(nodes[index], index, last, step))
                for handle in handles:
                    await handle.wait()

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for index in range(3):
                    nursery.start_soon(member, index)
        assert all(node.group.aborted_operations == 0 for node in nodes)


async def test_beside_a_sole_call_no_other_is_taken(autojump_clock: object) -> None:
    async with open_swarm(2) as (_, nodes):
        for node in nodes:
            node.group.set_position(0, START)
        await nodes[0].group.wait_entered()
        group = nodes[0].group
        early = [group.start(job(nodes[0], 0, tag)) for tag in (1, 2)]
        waited = group.start(sole(nodes[0], 0, 1, 1))
        for more in (job(nodes[0], 0, 5), sole(nodes[0], 0, 1, 2)):
            with pytest.raises(InvalidOperation, match="nothing else is called") as raised:
                group.start(more)
            assert "wait for it first" in raised.value.hint
        with pytest.raises(InvalidOperation, match="tag 0"):
            group.start(sole(nodes[0], 0, 0))
        rounds = [
            nodes[i].group.start(job(nodes[i], i, 0)) for i in range(2)
        ]  # of the run, beside it
        theirs = [nodes[1].group.start(job(nodes[1], 1, *what)) for what in ((2,), (1,), (1, 1))]
        with trio.fail_after(30):
            for handle in (*rounds, *theirs, *early, waited):
                await handle.wait()
        group.start(job(nodes[0], 0, 5)).cancel()  # again


async def test_a_sole_call_that_was_given_up_is_not_in_the_way(autojump_clock: object) -> None:
    async with open_swarm(2) as (_, nodes):
        for node in nodes:
            node.group.set_position(0, START)
        await nodes[0].group.wait_entered()
        soon = trio.current_time() + 1
        late = nodes[0].group.start(sole(nodes[0], 0, 4, deadline=soon))
        with pytest.raises(CollectiveAborted):
            await late.wait()
        works = [sole(nodes[i], i, 9) for i in range(2)]
        with trio.fail_after(30):
            for handle in [nodes[i].group.start(works[i]) for i in range(2)]:
                await handle.wait()


@pytest.mark.parametrize("tag", [0, 5])
async def test_a_result_that_comes_too_late_is_not_that_of_the_next_call(
    tag: int, autojump_clock: object
) -> None:
    """The vote of one member is held back until the other has given up; then both call again, with new values."""
    async with open_swarm(2) as (_, nodes):
        for node in nodes:
            node.group.set_position(0, START)
        await nodes[0].group.wait_entered()
        post = nodes[1].group._talk.send
        nodes[1].group._talk.send = lambda to, message: (
            None if isinstance(message, Vote) else post(to, message)
        )
        call = Call().bind(b"always the same", values(0, tag))

        def start(index: int, step: int, deadline: float = np.inf) -> tuple[np.ndarray, Handle]:
            source = values(index, tag, step)
            out = np.full_like(source, np.nan)
            return out, nodes[index].group.start(Job(call, source, out, tag, deadline))

        _, given_up = start(0, 0, trio.current_time() + 2)
        _, certified = start(1, 0)
        await certified.wait()
        with pytest.raises(Indeterminate):
            await given_up.wait()
        nodes[1].group._talk.send = post
        for node in nodes:
            node.group.set_position(1, hashlib.sha256(b"after").digest())
        with trio.fail_after(30):
            pairs = [start(index, 1) for index in range(2)]
            for out, handle in pairs:
                await handle.wait()
                np.testing.assert_allclose(out, expected([0, 1], tag, 1), rtol=1e-5, atol=1e-4)
