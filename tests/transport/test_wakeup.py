"""Sleeping until woken, and one clock for many sleepers."""

import pytest
import trio
import trio.testing
from trio.testing import wait_all_tasks_blocked

from transport.wakeup import AlarmClock, Waiter


async def test_a_waiter_wakes_its_task_and_forgets_a_cancelled_one() -> None:
    waiter = Waiter()
    waiter.wake()  # nobody there: nothing is remembered
    with trio.move_on_after(0) as scope:
        await waiter.wait()
    assert scope.cancelled_caught
    waiter.wake()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(waiter.wait)
        await wait_all_tasks_blocked()
        with pytest.raises(AssertionError):
            await waiter.wait()
        waiter.wake()


async def test_alarms_ring_in_order_and_the_task_goes_when_none_is_left(
    autojump_clock: object,
) -> None:
    clock = AlarmClock()
    rung: list[tuple[float, str]] = []
    start = trio.current_time()

    def ring(name: str) -> None:
        rung.append((trio.current_time() - start, name))

    before = trio.lowlevel.current_statistics().tasks_living
    clock.set(start + 2, lambda: ring("late"))
    clock.set(start + 1, lambda: ring("first of two"))
    clock.set(start + 1, lambda: ring("second of two"))
    clock.set(start + 1, lambda: clock.set(start + 1.5, lambda: ring("set by an alarm")))
    assert trio.lowlevel.current_statistics().tasks_living == before + 1
    await trio.sleep(3)
    assert [name for _, name in rung] == [
        "first of two",
        "second of two",
        "set by an alarm",
        "late",
    ]
    assert [when for when, _ in rung] == [1, 1, 1.5, 2]
    assert trio.lowlevel.current_statistics().tasks_living == before
    clock.set(start + 1, lambda: ring("overdue"))
    await trio.sleep(0.001)
    assert rung[-1][1] == "overdue"


def test_alarms_do_not_outlive_their_run() -> None:
    clock = AlarmClock()

    async def leave_one() -> None:
        clock.set(trio.current_time() + 1000, lambda: None)
        await trio.sleep(1)

    for _ in range(2):
        trio.run(leave_one, clock=trio.testing.MockClock(autojump_threshold=0))
        assert clock._alarms == []
