"""The isolated helper around trio's private scheduling switch really decides the order."""

import random

import pytest
import trio
from trio._core import _run

from transport.simulated.deterministic import run_deterministically


async def task_order() -> tuple[int, ...]:
    order: list[int] = []

    async def step(number: int) -> None:
        for _ in range(3):
            await trio.lowlevel.checkpoint()
            order.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(12):
            nursery.start_soon(step, number)
    return tuple(order)


def test_same_seed_same_order_other_seed_other_order() -> None:
    first = run_deterministically(1, task_order)
    assert run_deterministically(1, task_order) == first
    assert len({run_deterministically(seed, task_order) for seed in range(5)}) > 1


def test_virtual_time_starts_at_zero_and_jumps() -> None:
    async def sleeper() -> tuple[float, float]:
        start = trio.current_time()
        await trio.sleep(3600)
        return start, trio.current_time()

    assert run_deterministically(0, sleeper) == (0.0, 3600.0)


def test_the_switch_is_restored_also_after_an_error() -> None:
    flag, state = _run._ALLOW_DETERMINISTIC_SCHEDULING, _run._r.getstate()

    async def fails() -> None:
        raise ValueError("boom")

    with pytest.raises(ValueError, match="boom"):
        run_deterministically(3, fails)
    assert flag == _run._ALLOW_DETERMINISTIC_SCHEDULING
    assert _run._r.getstate() == state


def test_a_trio_without_the_switch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(_run, "_ALLOW_DETERMINISTIC_SCHEDULING")
    with pytest.raises(RuntimeError, match="deterministic"):
        run_deterministically(0, task_order)
    assert isinstance(_run._r, random.Random)
