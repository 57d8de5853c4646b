"""The accept loop survives what comes: no descriptors, floods, failing handlers."""

import logging
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from transport.address import Address
from transport.budget.admission import Admission, Pending
from transport.connect.listener import serve_listener
from transport.errors import ConnectionBroken
from transport.limits import Limits
from transport.network import AcceptOverloaded, RawListener, RawStream
from transport.reporter import Reporter
from transport.simulated.memory import MemoryNetwork

HERE = Address("10.0.0.2", 7)


class ScriptedListener(RawListener):
    """Gives what it is told to give, then waits for ever."""

    def __init__(self, script: list[RawStream | Exception]) -> None:
        self.address = HERE
        self.script = deque(script)

    async def accept(self) -> RawStream:
        if not self.script:
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint_if_cancelled()
        step = self.script.popleft()
        if isinstance(step, Exception):
            raise step
        return step

    async def aclose(self) -> None:
        raise NotImplementedError


@asynccontextmanager
async def serving(
    listener: RawListener,
    handle: Callable[[RawStream, Pending], Awaitable[None]],
    limits: Limits | None = None,
) -> AsyncIterator[Counter[str]]:
    counters: Counter[str] = Counter()
    reporter = Reporter(logging.getLogger("test-listener"), counters)
    admission = Admission(Limits() if limits is None else limits)

    async def serve() -> None:
        await serve_listener(
            listener, nursery=nursery, admission=admission, handle=handle, reporter=reporter
        )

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        yield counters
        nursery.cancel_scope.cancel()


async def streams(world: MemoryNetwork, count: int) -> list[RawStream]:
    listener = await world.host("10.0.0.2").listen(HERE)
    found = []
    for _ in range(count):
        await world.host("10.0.0.1").connect(HERE)
        found.append(await listener.accept())
    await listener.aclose()
    return found


async def test_running_out_of_descriptors_is_survived_and_logged_once_a_second(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    (survivor,) = await streams(MemoryNetwork(1), 1)
    failures: list[RawStream | Exception] = [
        AcceptOverloaded("EMFILE", shed=number % 2 == 0) for number in range(100)
    ]
    handled = trio.Event()

    async def handle(raw: RawStream, _pending: Pending) -> None:
        assert raw is survivor
        handled.set()

    start = trio.current_time()
    async with serving(ScriptedListener([*failures, survivor]), handle) as counters:
        await handled.wait()
        took_s = trio.current_time() - start
    assert counters["accept-emfile"] == 100
    assert 5 < took_s < 6.5
    assert 1 <= len(caplog.records) <= took_s + 1
    assert "ulimit" in caplog.records[0].getMessage()
    assert "more since the last line" in caplog.records[-1].getMessage()


async def test_other_accept_failures_are_survived_too(autojump_clock: object) -> None:
    (survivor,) = await streams(MemoryNetwork(1), 1)
    handled = trio.Event()

    async def handle(_raw: RawStream, _pending: Pending) -> None:
        handled.set()

    script: list[RawStream | Exception] = [ConnectionBroken("odd"), survivor]
    async with serving(ScriptedListener(script), handle) as counters:
        await handled.wait()
    assert counters["accept-failed"] == 1


async def test_closing_the_listener_ends_the_loop(autojump_clock: object) -> None:
    listener = await MemoryNetwork(1).host("10.0.0.2").listen(HERE)

    async def handle(_raw: RawStream, _pending: Pending) -> None:
        raise AssertionError

    async with serving(listener, handle):
        before = trio.lowlevel.current_statistics().tasks_living
        await trio.sleep(1)
        await listener.aclose()
        await trio.sleep(1)
        assert trio.lowlevel.current_statistics().tasks_living == before - 1


async def test_a_flood_of_refusals_lets_other_tasks_run(autojump_clock: object) -> None:
    flood = await streams(MemoryNetwork(1), 100)
    turns = 0

    async def handle(_raw: RawStream, _pending: Pending) -> None:
        await trio.sleep_forever()

    limits = Limits(pending_handshakes_per_source=2)
    async with serving(ScriptedListener(list(flood)), handle, limits) as counters:
        with trio.fail_after(10):
            while counters["refused-rate"] < 36:
                turns += 1
                await trio.lowlevel.checkpoint()
        assert counters["handshake-pushed-out"] == 62  # two of the 64 that had tokens are left
    assert turns > 90
    with pytest.raises(trio.ClosedResourceError):
        await flood[-1].send_all(b"x")


async def test_a_failing_handler_ends_its_connection_only(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    found = await streams(MemoryNetwork(1), 3)
    done: list[RawStream] = []

    async def handle(raw: RawStream, _pending: Pending) -> None:
        if raw is found[0]:
            raise KeyError("plain")
        if raw is found[1]:
            raise ExceptionGroup("outer", [ExceptionGroup("inner", [KeyError("grouped")])])
        await trio.sleep(1)
        done.append(raw)

    async with serving(ScriptedListener(list(found)), handle) as counters:
        await trio.sleep(2)
        for raw in found[:2]:
            with pytest.raises(trio.ClosedResourceError):
                await raw.send_all(b"x")
    assert done == [found[2]]
    assert counters["connection-crashed"] == 2
    assert len(caplog.records) == 1


async def test_cancellation_is_never_kept(autojump_clock: object) -> None:
    found = await streams(MemoryNetwork(1), 1)
    counters: Counter[str]

    async def handle(_raw: RawStream, _pending: Pending) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            try:
                await trio.sleep_forever()
            finally:
                raise KeyError("while being cancelled")

    async with serving(ScriptedListener(list(found)), handle) as counters:
        await trio.sleep(1)
    assert counters["connection-crashed"] == 1
