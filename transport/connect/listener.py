"""Accept connections from anybody, and survive all of them.

Problem: trio's `serve_listeners` has no cap, dies with the first handler error, and logs a
traceback ten times a second when descriptors run out. Idea: our own loop. Each connection passes
`Admission` before it costs anything, then runs in a task of its own inside a guard that keeps
ordinary exceptions (also inside groups) from the other connections, and passes cancellation on.

Invariants: the loop ends only by cancellation or when its listener is closed; each failure is
counted under its reason and logged at most once a second; each admitted connection is released
from admission exactly once, by whoever handles it; one that has to make room for another is closed.
"""

from collections.abc import Awaitable, Callable
from typing import Final

import trio

from transport.budget.admission import PUSHED_OUT, Admission, Pending, Refusal
from transport.errors import TransportError
from transport.network import AcceptOverloaded, RawListener, RawStream
from transport.reporter import Reporter

OVERLOAD_PAUSE_S: Final = 0.1
"""Pause when accepting fails: descriptors come back when other connections end."""

SHED_PAUSE_S: Final = 0.01
"""Pause when a waiting client could at least be turned away; drains a queue of 100 in a second."""

Handle = Callable[[RawStream, Pending], Awaitable[None]]


async def serve_listener(
    listener: RawListener,
    *,
    nursery: trio.Nursery,
    admission: Admission,
    handle: Handle,
    reporter: Reporter,
) -> None:
    """Accept until the listener is closed; run `handle(stream, pending)` for each admitted one.

    `handle` owns the stream and owes `pending` one `release`.

    Cancelling stops accepting; the handlers belong to `nursery`.
    """
    while True:
        try:
            raw = await listener.accept()
        except AcceptOverloaded as error:
            kind = f"accept-{error.reason.lower()}"
            reporter.report(kind, trio.current_time(), f"{error}; {error.hint}")
            await trio.sleep(SHED_PAUSE_S if error.shed else OVERLOAD_PAUSE_S)
            continue
        except trio.ClosedResourceError:
            return
        except TransportError as error:
            reporter.report("accept-failed", trio.current_time(), str(error))
            await trio.sleep(OVERLOAD_PAUSE_S)
            continue
        pending = admit(raw, admission, reporter)
        if pending is not None:
            nursery.start_soon(_guarded, raw, pending, handle, reporter)
        # Accepting may succeed without ever waiting: a flood must not hold the loop.
        await trio.lowlevel.checkpoint()


def admit(raw: RawStream, admission: Admission, reporter: Reporter) -> Pending | None:
    """Let a new connection into its handshake, or close it and count why not."""

    def hang_up() -> None:
        reporter.count(PUSHED_OUT)
        raw.abort()

    pending = admission.enter(raw.remote.host, trio.current_time(), hang_up)
    if isinstance(pending, Refusal):
        reporter.count(pending.value)
        raw.abort()
        return None
    return pending


async def _guarded(raw: RawStream, pending: Pending, handle: Handle, reporter: Reporter) -> None:
    """Run one connection's handler; only cancellation gets out."""
    try:
        await handle(raw, pending)
    except BaseException as error:
        raw.abort()
        rest = reporter.report_errors(
            "connection-crashed", trio.current_time(), f"connection from {raw.remote} failed", error
        )
        if rest is error:
            raise
        if rest is not None:
            raise rest from None
