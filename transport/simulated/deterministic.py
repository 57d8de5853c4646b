"""Run a trio program so that the same seed always gives the same execution.

Problem: trio shuffles each batch of runnable tasks on purpose, and time runs with the machine.
Idea: trio carries a private switch (its Hypothesis plugin uses it) that sorts each batch by task
number before shuffling it with a module-level random generator. We set the switch, seed the
generator, and put the program on a `MockClock` that jumps to the next deadline whenever every
task is waiting. An hour of heartbeats then takes seconds, and a failing seed is a repro.

The switch is private API, so every use of it lives in `_deterministic_scheduler`, which refuses
loudly when trio no longer has it; a test compares the task order of two runs.

What the caller must still provide: no threads, no sockets, no subprocesses (the virtual clock
would run away from them), random numbers and keys from seeded generators, and no iteration over
hash-ordered sets of bytes or strings. `transport.simulated.memory` plays by these rules.
"""

import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar, TypeVarTuple

import trio
import trio.testing
from trio._core import _run as _trio_run

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_FLAG = "_ALLOW_DETERMINISTIC_SCHEDULING"
_GENERATOR = "_r"


@contextmanager
def _deterministic_scheduler(seed: int) -> Iterator[None]:
    """Make every `trio.run` inside the block order its tasks by `seed`; restore afterwards.

    Raises:
        RuntimeError: this version of trio has no such switch.
    """
    internals = vars(_trio_run)
    generator = internals.get(_GENERATOR)
    if _FLAG not in internals or not isinstance(generator, random.Random):
        raise RuntimeError(
            f"trio {trio.__version__} has no deterministic scheduling switch; "
            "simulation needs a trio version that the tests cover"
        )
    flag_before, state_before = internals[_FLAG], generator.getstate()
    internals[_FLAG] = True
    generator.seed(seed)
    try:
        yield
    finally:
        internals[_FLAG] = flag_before
        generator.setstate(state_before)


def run_deterministically(seed: int, async_fn: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T:
    """Run `async_fn(*args)` under trio with a seeded scheduler and a self-advancing clock.

    Virtual time starts at 0.0 and never waits for anything real.

    Args:
        seed: chooses the order of simultaneously runnable tasks.
        async_fn: the program; it must use neither sockets nor threads.
        *args: its arguments.

    Returns:
        What `async_fn` returns; its exceptions pass through.

    Raises:
        RuntimeError: this version of trio cannot be made deterministic.
    """
    with _deterministic_scheduler(seed):
        return trio.run(async_fn, *args, clock=trio.testing.MockClock(autojump_threshold=0))
