"""When a task lets others run."""

from __future__ import annotations

from typing import Any

from transport.stretch import YIELD_AFTER_S, YIELD_AFTER_STEPS, Stretch


async def test_after_so_much_time_and_not_with_the_first_step(mock_clock: Any) -> None:
    stretch = Stretch()
    for _ in range(2):
        assert not stretch.hogs()
        mock_clock.jump(10 * YIELD_AFTER_S)
        assert not stretch.hogs(), "the time counts from here"
        mock_clock.jump(0.9 * YIELD_AFTER_S)
        assert not stretch.hogs()
        mock_clock.jump(0.2 * YIELD_AFTER_S)
        assert stretch.hogs()
        stretch.rested()


async def test_after_so_many_steps_where_the_clock_stands_still(mock_clock: Any) -> None:
    stretch = Stretch()
    assert not any(stretch.hogs() for _ in range(YIELD_AFTER_STEPS - 1))
    assert stretch.hogs()


async def test_long_steps_are_timed_from_the_first_on(mock_clock: Any) -> None:
    stretch = Stretch()
    stretch.begin()
    mock_clock.jump(YIELD_AFTER_S / 2)
    assert not stretch.hogs()
    mock_clock.jump(YIELD_AFTER_S)
    assert stretch.hogs()
    stretch.begin()
    assert not stretch.hogs()
