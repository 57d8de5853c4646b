"""Rate caps on raw streams: per peer and for the whole node, up and down.

Problem: a cap must hold over all connections of a peer, and of all peers, while each connection belongs to tasks of its own. Idea: a
`Budget` has one meter per direction (`transport.budget.rates`); a `PacedStream` wraps a raw stream and pays every budget it belongs to, one
quantum at a time. Sending pays first. Receiving pays for the last read before it makes the next: what a connection has read beyond
its budget is thus at most one quantum, the rest waits in the kernel, and TCP slows the sender down. An idle connection holds nothing.

There is no task behind it: of those who wait at a meter, the first in line watches the clock, the others sleep until it is their
turn.

Bulk connections (`expect_bulk`) stand behind the others, so that a heartbeat does not wait for tensors.
"""

from __future__ import annotations

import weakref

import trio

from transport.budget.rates import Meter, Ticket
from transport.buffer import Buffer
from transport.limits import Limits
from transport.network import Path, PathState, RawStream


class Line:
    """A meter and the tasks that wait at it."""

    def __init__(self, bytes_per_s: int) -> None:
        self._meter = Meter(bytes_per_s, trio.current_time())
        self._sleepers: dict[Ticket, trio.Event] = {}

    @property
    def quantum(self) -> int:
        """The most to pay for at once (bytes)."""
        return self._meter.quantum

    async def pay(self, amount: int, *, urgent: bool) -> Ticket:
        """Wait until `amount` bytes may pass; the ticket can be given to `refund`.

        Not a checkpoint when nobody waits. Cancelling pays nothing.
        """
        ticket = self._meter.ask(amount, trio.current_time(), urgent=urgent)
        if not ticket.granted:
            try:
                await self._wait(ticket)
            except BaseException:
                self.refund(ticket)
                raise
            finally:
                del self._sleepers[ticket]
                self._wake_first()
        return ticket

    async def _wait(self, ticket: Ticket) -> None:
        meter = self._meter
        while True:
            awake = self._sleepers[ticket] = trio.Event()
            until = meter.ready_at(trio.current_time()) if meter.head is ticket else None
            with trio.CancelScope(deadline=float("inf") if until is None else until):
                await awake.wait()
            self._serve()
            if ticket.granted:
                return

    def refund(self, ticket: Ticket) -> None:
        """Take a payment back: nothing passed."""
        self._meter.withdraw(ticket, trio.current_time())
        self._serve()

    def _serve(self) -> None:
        for ticket in self._meter.serve(trio.current_time()):
            self._wake(ticket)
        self._wake_first()

    def _wake_first(self) -> None:
        head = self._meter.head
        if head is not None:
            self._wake(head)

    def _wake(self, ticket: Ticket) -> None:
        awake = self._sleepers.get(ticket)
        if awake is not None:
            awake.set()


class Budget:
    """The caps of one peer, or of the node; needs a running trio loop.

    Args:
        upload_bytes_per_s: 0 means no cap.
        download_bytes_per_s: likewise.
    """

    def __init__(self, upload_bytes_per_s: int = 0, download_bytes_per_s: int = 0) -> None:
        self.upload = Line(upload_bytes_per_s) if upload_bytes_per_s else None
        self.download = Line(download_bytes_per_s) if download_bytes_per_s else None


class PacedStream(RawStream):
    """A raw stream under one or more budgets; see `RawStream` for the contract it keeps.

    A cancelled `send_all` has paid for what left; a cancelled `receive_into` consumes nothing.
    """

    def __init__(self, raw: RawStream, budgets: tuple[Budget, ...]) -> None:
        self._raw = raw
        self._budgets = budgets  # a peer's budget lives as long as a stream under it
        self.local, self.remote, self.path = raw.local, raw.remote, raw.path
        self._upload = [budget.upload for budget in budgets if budget.upload is not None]
        self._download = [budget.download for budget in budgets if budget.download is not None]
        self._send_quantum = min((line.quantum for line in self._upload), default=0)
        self._receive_quantum = min((line.quantum for line in self._download), default=0)
        self._owed = [0] * len(self._download)  # read, and not paid for yet
        self._urgent = True
        self._sending = self._receiving = self._closed = False
        self._waits: set[trio.CancelScope] = set()  # at most one per direction

    def __repr__(self) -> str:
        return f"<PacedStream over {self._raw!r}>"

    async def send_all(self, data: Buffer) -> None:
        """See `RawStream.send_all`."""
        if not self._upload:
            await self._raw.send_all(data)
            return
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this connection")
        self._sending = True
        try:
            with memoryview(data).cast("B") as view:
                if not view:
                    await self._raw.send_all(view)
                for start in range(0, len(view), self._send_quantum):
                    part = view[start : start + self._send_quantum]
                    for line in self._upload:
                        await self._pay(line, len(part))
                    await self._raw.send_all(part)
        finally:
            self._sending = False

    async def receive_into(self, buffer: memoryview) -> int:
        """See `RawStream.receive_into`."""
        if not self._download:
            return await self._raw.receive_into(buffer)
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving on this connection")
        self._receiving = True
        try:
            for index, line in enumerate(self._download):
                if self._owed[index]:
                    await self._pay(line, self._owed[index])
                    self._owed[index] = 0
            count = await self._raw.receive_into(buffer[: self._receive_quantum])
            self._owed = [count] * len(self._download)
            return count
        finally:
            self._receiving = False

    async def _pay(self, line: Line, amount: int) -> None:
        """Wait for a turn, unless the stream is closed first."""
        if self._closed:
            raise trio.ClosedResourceError
        with trio.CancelScope() as scope:
            self._waits.add(scope)
            try:
                await line.pay(amount, urgent=self._urgent)
            finally:
                self._waits.discard(scope)
        if scope.cancelled_caught or self._closed:
            raise trio.ClosedResourceError

    def sending_measure(self) -> tuple[float, int] | None:
        """See `RawStream.sending_measure`: of the path, not of what the budget lets through."""
        return self._raw.sending_measure()

    def path_state(self) -> PathState | None:
        """See `RawStream.path_state`: of the path, as well."""
        return self._raw.path_state()

    def expect_bulk(self) -> None:
        """See `RawStream.expect_bulk`; this stream also stands behind those without it from now on."""
        self._urgent = False
        self._raw.expect_bulk()

    async def aclose(self) -> None:
        """See `RawStream.aclose`."""
        self._end_waits()
        await self._raw.aclose()

    def abort(self) -> None:
        """See `RawStream.abort`."""
        self._end_waits()
        self._raw.abort()

    def _end_waits(self) -> None:
        self._closed = True
        for scope in self._waits:
            scope.cancel()


def pace(raw: RawStream, *budgets: Budget) -> RawStream:
    """Put `raw` under `budgets`; `raw` itself when none of them has a cap, so that no cap costs nothing."""
    capped = tuple(b for b in budgets if b.upload is not None or b.download is not None)
    return PacedStream(raw, capped) if capped else raw


class Budgets:
    """The budgets of a node: one for all peers together and one for each peer, as long as it has a connection.

    Args:
        limits: the caps.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._total = Budget(limits.upload_bytes_per_s, limits.download_bytes_per_s)
        # Held by the streams under it: with the last connection of a peer its budget goes.
        self._peers: weakref.WeakValueDictionary[bytes, Budget] = weakref.WeakValueDictionary()

    def pace(self, raw: RawStream, peer: bytes) -> RawStream:
        """Put a connection with `peer` (its node id) under the caps there are.

        Bytes pay once: those inside another connection with the peer pay there, and those over a relay pay into the
        node's budget on the connection with the relay.
        """
        if raw.inner:
            return raw
        budget = self._peers.get(peer)
        if budget is None:
            limits = self._limits
            budget = Budget(
                limits.per_peer_upload_bytes_per_s, limits.per_peer_download_bytes_per_s
            )
            if budget.upload is not None or budget.download is not None:
                self._peers[peer] = budget
        return pace(raw, budget) if raw.path is Path.RELAYED else pace(raw, budget, self._total)
