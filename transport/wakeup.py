"""Two small ways to sleep: until somebody wakes us, and until a time that many others share.

Problem: a call passes several sleeping tasks, and a simulation wakes a hundred thousand of them;
trio's parking lots and cancel scopes are general and cost accordingly. Idea: `Waiter` is a
parking lot for one task. `AlarmClock` lets one task sleep for all: it wakes everybody whose time
has come in one pass, instead of one cancellation per sleeper.

Both may wake a task that has nothing to do; whoever sleeps here looks again in a loop.

Invariant: the alarm clock's task exists only while an alarm is pending.
"""

import heapq
from collections.abc import Callable

import trio


class Waiter:
    """Lets one task sleep until another wakes it."""

    __slots__ = ("_task",)

    def __init__(self) -> None:
        self._task: trio.lowlevel.Task | None = None

    async def wait(self) -> None:
        """Sleep until `wake`. Cancellable."""
        assert self._task is None, "only one task may wait here"
        self._task = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._abort)

    def _abort(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED

    def wake(self) -> None:
        """Wake the sleeper, if there is one."""
        task, self._task = self._task, None
        if task is not None:
            trio.lowlevel.reschedule(task)


class AlarmClock:
    """Calls wake-up functions at their times, from one task of the running trio loop."""

    def __init__(self) -> None:
        self._alarms: list[tuple[float, int, Callable[[], object]]] = []
        self._count = 0  # keeps alarms of the same time in the order in which they were set
        self._scope: trio.CancelScope | None = None  # of the sleeping task

    def set(self, when: float, wake: Callable[[], object]) -> None:
        """Call `wake` at trio time `when`; it must not raise or block."""
        self._count += 1
        heapq.heappush(self._alarms, (when, self._count, wake))
        if self._scope is None:
            self._scope = trio.CancelScope(deadline=when)
            trio.lowlevel.spawn_system_task(self._run)
        elif when < self._scope.deadline:
            self._scope.deadline = when

    async def _run(self) -> None:
        try:
            while self._alarms:
                with trio.CancelScope(deadline=self._alarms[0][0]) as self._scope:
                    await trio.sleep_forever()
                now = trio.current_time()
                while self._alarms and self._alarms[0][0] <= now:
                    heapq.heappop(self._alarms)[2]()
        finally:
            self._scope = None
            self._alarms.clear()  # left over only when the run ends
