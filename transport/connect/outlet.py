"""From the queues of the mux to the link: one record at a time, by one writer at a time.

Problem: only one task may write to a link, or a cancelled application would leave half a record behind; but waking that task for
each call and each answer costs more than sealing and sending a small record. Idea: while the writer task rests, whoever has queued
something may do its work in one synchronous step: take frames, seal them, hand the bytes to the kernel. Nothing can come between,
and nothing can be cancelled. What the kernel does not take stays with the link, and the writer, woken for it, sends that first.

Invariant: records leave in the order in which they were sealed, because only the task that runs seals, and it seals only when the
writer rests (it has nothing in its hands) and the link has nothing unsent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import trio

from transport.secure.record import RecordKind
from transport.secure.record_size import RecordSize
from transport.wakeup import Waiter

if TYPE_CHECKING:
    from transport.secure.link import SecureLink
    from transport.streams.mux import Mux

PUSH_BYTES: Final = 16384
"""The most that is sent without the writer on a path that may be slow: above, waking it is a small part of the work."""

PUSH_RECORDS: Final = 4
"""Records sent without the writer in one step: less than a millisecond of work."""


class Outlet:
    """The writer's half of a connection.

    Args:
        mux: whose frames leave.
        dispatch: called when the mux may have events (Writable).
    """

    def __init__(self, mux: Mux, dispatch: Callable[[], None]) -> None:
        self._mux = mux
        self._dispatch = dispatch
        self._size = RecordSize()
        self._writer = Waiter()
        self._resting = False

    def wake(self) -> None:
        """Have the writer look at the mux."""
        self._writer.wake()

    async def rest(self) -> None:
        """Writer: sleep until woken. Cancellable."""
        self._resting = True
        try:
            await self._writer.wait()
        finally:
            self._resting = False

    async def write(self, link: SecureLink) -> bool:
        """Writer: send one record, or what is left of one; False if there was nothing to send.

        Raises:
            ConnectionBroken: as for `SecureLink.send`.
        """
        if link.unsent:
            rest, began = len(link.unsent), trio.current_time()
            await link.flush()
            self._size.written(rest, trio.current_time() - began)
            return True
        parts = self._mux.outgoing_parts(self._size.bytes)
        self._dispatch()
        if not parts:
            return False
        before, began = link.bytes_sent, trio.current_time()
        await link.send(RecordKind.DATA, *parts)
        self._size.written(link.bytes_sent - before, trio.current_time() - began)
        return True

    def push(self, link: SecureLink, leave: int = 0) -> None:
        """Send what is queued at once if the writer rests, else wake it. Never blocks.

        Args:
            link: where to.
            leave: this much may stay queued without the writer being woken: the caller has more to add to it.
        """
        mux, size = self._mux, self._size
        if self._resting and link.can_send_now:
            for _ in range(PUSH_RECORDS):
                if link.unsent or (mux.queued_bytes > PUSH_BYTES and not size.fast):
                    break
                parts = mux.outgoing_parts(size.bytes)
                self._dispatch()
                if not parts:
                    return
                before, began = link.bytes_sent, trio.current_time()
                link.send_now(RecordKind.DATA, *parts)
                size.written(link.bytes_sent - before, trio.current_time() - began)
                if mux.queued_bytes < leave and not link.unsent:
                    return
        if link.unsent or mux.wants_write:
            self.wake()
