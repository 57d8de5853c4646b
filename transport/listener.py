"""Accept connections from anybody, and survive all of them.

Problem: trio's `serve_listeners` has no cap, dies with the first handler error, and logs a
traceback ten times a second when descriptors run out. Idea: our own loop. Each connection passes
`Admission` before it costs anything, then runs in a task of its own inside a guard that keeps
ordinary exceptions (also inside groups) from the other connections, and passes cancellation on.

Invariants: the loop ends only by cancellation or when its listener is closed; each failure is
counted under its reason and logged at most once a second; each admitted connection is released
from admission exactly once, by whoever handles it.
"""

from collections.abc import Awaitable, Callable
from typing import Final

import trio

from transport.errors import TransportError
from transport.limits import Admission
from transport.network import AcceptOverloaded, RawListener, RawStream
from transport.reporter import Reporter

OVERLOAD_PAUSE_S: Final = 0.1
"""Pause when accepting fails: descriptors come back when other connections end."""

SHED_PAUSE_S: Final = 0.01
"""Pause when a waiting client could at least be turned away; drains a queue of 100 in a second."""

Handle = Callable[[RawStream], Awaitable[None]]


async def serve_listener(
    listener: RawListener,
    *,
    nursery: trio.Nursery,
    admission: Admission,
    handle: Handle,
    reporter: Reporter,
) -> None:
    """Accept until the listener is closed; run `handle(stream)` for each admitted connection.

    `handle` owns the stream and owes `admission` one `release`.

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
        refusal = admission.admit(raw.remote.host, trio.current_time())
        if refusal is not None:
            reporter.count(refusal.value)
            raw.abort()
            # Accepting may succeed without ever waiting: a flood must not hold the loop.
            await trio.lowlevel.checkpoint()
            continue
        nursery.start_soon(_guarded, raw, handle, reporter)


async def _guarded(raw: RawStream, handle: Handle, reporter: Reporter) -> None:
    """Run one connection's handler; only cancellation gets out."""
    try:
        await handle(raw)
    except BaseException as error:
        raw.abort()
        rest = reporter.report_errors(
            "connection-crashed", trio.current_time(), f"connection from {raw.remote} failed", error
        )
        if rest is error:
            raise
        if rest is not None:
            raise rest from None
