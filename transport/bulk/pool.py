"""Large regions between two nodes over as many bulk links as pay.

Problem: a tensor on a long path needs several connections, links die one by one, and the bytes
should land in their final place without a copy. Idea: both nodes open a pool with the same label.
`receive(tag, into)` tells the other side that `tag` is expected, of what size, in what chunks;
`send(tag, data)` waits for that and hands out chunks to free links. Every chunk is decrypted
straight into `into` at its offset and acknowledged on the same link's way back. The rules are in
`transport.bulk.transfers`; here are the links and their tasks.

Who sends opens links, as many as `transport.bulk.parallel` finds worth it, and closes them after half a
minute without work; both directions use all of them. A link that dies costs what it carried: those
chunks go out again over others, or over a new link if it was the last.

Invariants: memory is written only for a tag expected here, inside its region, and never after
`receive` has returned or was cancelled; a peer that breaks the rules (`ChunkRefused`) loses the
whole pool; transfers share the links by bytes; no task outlives the pool's block.

An error of `send` leaves open whether the other side has received everything.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import attrs
import trio

from transport.buffer import Buffer
from transport.bulk.chunks import ChunkRefused
from transport.bulk.link import BulkLink, LinkClosed
from transport.bulk.messages import Bye, ChunkHead, Hello, Message, decode, encode
from transport.bulk.parallel import LinkCount
from transport.bulk.transfers import Transfer, TransferCancelled, TransferMismatch, Transfers
from transport.errors import EndpointClosed, PeerLost, TransportError, UsageError
from transport.network import PathState
from transport.wakeup import Waiter

if TYPE_CHECKING:
    from transport.endpoint import Endpoint
    from transport.peer import Peer

__all__ = ["BulkPool", "PoolBroken", "TransferCancelled", "TransferMismatch", "open_bulk_pool"]

MAX_LINKS: Final = 8

TICK_S: Final = 0.1
"""How often the number of links is looked at while there are links or work."""

HELLO_S: Final = 15.0
"""How long a link opened here may stay unanswered: the other side may open its pool 10 s later."""

STALL_S: Final = 60.0
"""Without an acknowledgement on a link that carries chunks: it is closed and they go elsewhere. A
dead path is noticed much earlier (by the kernel, and by the silence of the control connection);
this is for a peer that takes bytes and does not acknowledge. Eight links that share 1.2 Mbit/s
still get a chunk each through in this time."""

LINKLESS_S: Final = 20.0
"""How long a receiver waits for the sender to replace the last link after it was lost."""

BARREN_LINKS: Final = 3
"""Tries in a row that brought nothing before the pool gives up. Links that were opened together are one try, however many:
a path that resets everything once takes all of them along."""

RETRY_S: Final = 0.1
"""Before a link is opened again after the first in vain; twice as long after each further one."""

GOODBYE_S: Final = 0.5
"""How long closing may take to send the last acknowledgements."""


class PoolBroken(TransportError):
    """The bulk pool is of no more use; the message says why."""

    default_hint = "open a new pool once the peer is connected"


@attrs.define(eq=False)
class _Link:
    number: int
    bulk: BulkLink
    opened_here: bool
    opened_at: float
    trial: int
    confirmed: bool
    writer: Waiter = attrs.field(factory=Waiter)
    useful: bool = False
    retiring: bool = False
    said_bye: bool = False
    heard_bye: bool = False


OpenLink = Callable[[], Awaitable[BulkLink]]


class BulkPool:
    """One end of a pool; `open_bulk_pool` makes and runs it.

    Args:
        open_link: opens a link that the other end takes with its `accept_link`.
        accept_link: waits for one that the other end opens.
        max_links: never more (1 to 8).
        rtt_s: the path's round trip in seconds, as far as known.
        stall_s, linkless_s: see `STALL_S`, `LINKLESS_S`.
        links: a fixed number of links instead of a measured one (for comparisons).
        wanted: called with (tag, size) when the other side expects a tag that is not being sent here: for an end that
            serves on demand. It must not block; `send` or `refuse` the tag later.
        asks: the other end serves on demand, so it sends nothing, and opens no link, before it has heard what is wanted:
            keep a link from here.
    """

    def __init__(
        self,
        open_link: OpenLink,
        accept_link: OpenLink,
        *,
        max_links: int = MAX_LINKS,
        rtt_s: Callable[[], float] = lambda: 0.0,
        stall_s: float = STALL_S,
        linkless_s: float = LINKLESS_S,
        links: int | None = None,
        wanted: Callable[[bytes, int], None] = lambda _tag, _size: None,
        asks: bool = False,
    ) -> None:
        if not 1 <= max_links <= MAX_LINKS:
            raise UsageError(f"a pool has 1 to {MAX_LINKS} links")
        self._open_link, self._accept_link = open_link, accept_link
        self._max_links = max_links
        self._asks = asks
        self._fixed = None if links is None else max(1, min(links, max_links))
        self._rtt_s, self._stall_s, self._linkless_s = rtt_s, stall_s, linkless_s
        self._count = LinkCount(most=max_links)
        self._links: dict[int, _Link] = {}
        self._transfers = Transfers(self._redirect, self._wake, wanted)
        self._opening = 0
        self._next_link = 1
        self._barren = 0
        self._trial = 0  # of links opened now; the next begins when one was in vain
        self._retry_at = 0.0
        self._lost_at: float | None = None  # when the last link was lost
        self._closing = self._peer_left = False
        self._broken = ""
        self._over = trio.Event()
        self._keeper = Waiter()
        self._accept_scope: trio.CancelScope | None = None
        self._changed = trio.lowlevel.ParkingLot()  # links come and go
        self._nursery: trio.Nursery | None = None

    # For the application

    @property
    def links(self) -> int:
        """Links open now."""
        return len(self._links)

    @property
    def bytes_acknowledged(self) -> int:
        """Payload the other side has confirmed, over all transfers."""
        return self._transfers.acknowledged

    async def send(self, tag: bytes, data: Buffer) -> None:
        """Send `data` to the other side's `receive(tag)`; return once all of it has arrived.

        `data` must not change meanwhile. Waits for the receiver under the caller's deadline.
        Cancelling tells the receiver, whose `receive` fails; nothing else is disturbed.

        Raises:
            TransferCancelled: the receiver gave up (`TransferMismatch`: it expected another size).
            PoolBroken: every link was lost, or the peer, or the peer broke the rules.
            UsageError: the tag is being sent already, or is longer than 64 bytes.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check_open()
        done = trio.Event()
        transfer = self._transfers.send(tag, memoryview(data).cast("B"), done.set)
        await self._finish(transfer, done)

    async def receive(self, tag: bytes, into: memoryview) -> None:
        """Expect `tag`, of exactly the size of `into`, and return once all of it is there.

        Cancelled, `into` holds some of the chunks and is not touched any more; the sender's `send`
        fails, nothing else is disturbed.

        Raises:
            TransferCancelled: the sender gave up (`TransferMismatch`: it has another size).
            PoolBroken: every link was lost, or the peer, or the peer broke the rules.
            UsageError: the tag is expected already, too long, or 256 tags are expected.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check_open()
        done = trio.Event()
        transfer = self._transfers.receive(tag, into.cast("B"), done.set)
        await self._finish(transfer, done)

    def wants(self, tag: bytes) -> bool:
        """Whether the other side expects `tag` and it is not being sent here."""
        return self._transfers.wants(tag)

    def refuse(self, tag: bytes) -> None:
        """Fail the other side's `receive(tag)` with `TransferCancelled`, if it expects that tag."""
        try:
            self._transfers.refuse(tag)
        except ChunkRefused as error:
            self._break(f"the peer broke the rules of bulk transfers: {error}")

    async def wait_over(self) -> str:
        """Wait until the pool is of no more use (closed here or by the peer, or broken); returns why."""
        await self._over.wait()
        return self._broken

    async def _finish(self, transfer: Transfer, done: trio.Event) -> None:
        self._keeper.wake()
        try:
            await done.wait()
        finally:
            self._guarded(self._transfers.give_up, transfer)
        if transfer.error is not None:
            raise transfer.error

    def _guarded(self, act: Callable[[Transfer], None], transfer: Transfer) -> None:
        try:
            act(transfer)
        except ChunkRefused as error:
            self._break(f"the peer broke the rules of bulk transfers: {error}")

    def _check_open(self) -> None:
        if self._broken:
            raise PoolBroken(self._broken)

    # Life

    async def run(self) -> None:
        """Keep the links until cancelled, closed or broken; leaves none open."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                if self._broken:
                    return
                nursery.start_soon(self._accept)
                nursery.start_soon(self._keep)
        finally:
            self._break("the pool is closed")

    async def close(self) -> None:
        """Say goodbye on all links (within `GOODBYE_S`), then fail what is still under way."""
        self._closing = True
        self._wake()
        with trio.move_on_after(GOODBYE_S, shield=True):
            while self._links and not self._broken:
                await self._changed.park()
        self._break("the pool is closed")

    def _break(self, reason: str) -> None:
        """Fail everything, for good."""
        if not self._broken:
            self._broken = reason
            self._over.set()
            self._transfers.fail(lambda: PoolBroken(reason))
            if self._nursery is not None:
                self._nursery.cancel_scope.cancel()

    def _wake(self) -> None:
        """There may be something to send."""
        for link in self._links.values():
            link.writer.wake()

    def _redirect(self, link: int, memory: memoryview) -> None:
        self._links[link].bulk.redirect(memory)

    # How many links

    async def _accept(self) -> None:
        while True:
            # Each end may fill the last place: who wants to open a link there stops waiting for one.
            while len(self._links) + self._opening >= self._max_links:
                await self._changed.park()
            with trio.CancelScope() as self._accept_scope:
                try:
                    bulk = await self._accept_link()
                except (PeerLost, EndpointClosed) as error:
                    self._break(f"the peer was lost: {error}")
                    return
                except TransportError:  # other users have all the places: look again later
                    await trio.sleep(1.0)
                else:
                    self._start_link(bulk, self._trial, opened_here=False)

    async def _open(self) -> None:
        trial = self._trial
        try:
            bulk = await self._open_link()
        except (PeerLost, EndpointClosed) as error:
            self._break(f"the peer was lost: {error}")
        except TransportError as error:
            if self._links:
                self._count.cannot_open(trio.current_time(), len(self._links))
            else:
                self._in_vain(trial, str(error))
        else:
            self._start_link(bulk, trial, opened_here=True)
        finally:
            self._opening -= 1
            self._changed.unpark_all()
            self._keeper.wake()

    def _in_vain(self, trial: int, reason: str) -> None:
        if trial != self._trial:  # another link of the same try was lost before
            return
        self._trial += 1
        self._barren += 1
        self._retry_at = trio.current_time() + RETRY_S * 2**self._barren
        if self._barren >= BARREN_LINKS and not self._links:
            self._break(f"no link to the peer can be kept: {reason}")

    async def _keep(self) -> None:
        """Have as many links as pay, and watch those there are."""
        while True:
            now = trio.current_time()
            self._watch(now)
            target = self._target(now)
            if len(self._links) + self._opening < target and now >= self._retry_at:
                self._open_more(target)
            elif len(self._links) > target:
                self._retire()
            idle = not (
                self._transfers.sending or self._transfers.receiving or self._links or self._asks
            )
            with trio.move_on_after(float("inf") if idle else TICK_S):
                await self._keeper.wait()

    def _target(self, now: float) -> int:
        links = len(self._links)
        if self._peer_left or self._closing:
            return links
        if self._transfers.chunks_waiting:
            acknowledged = self._transfers.acknowledged
            target = self._count.busy(now, acknowledged, links, self._rtt_s(), self._path())
            return target if self._fixed is None else self._fixed
        if self._transfers.sending:
            # The last chunks are under way, or the receiver is not there yet: open no more for it.
            target = min(self._count.waiting(now), max(links, 1))
        else:
            target = min(self._count.idle(now), links)
            if self._asks:
                target = max(target, 1)
        return max(links, 1) if target and self._fixed is not None else target

    def _path(self) -> PathState | None:
        """What one link meets, on average; None unless all of them say."""
        states = [link.bulk.path_state() for link in self._links.values()]
        known = [state for state in states if state is not None]
        if not known or len(known) < len(states):
            return None
        return PathState(
            sum(state.most for state in known) / len(known),
            sum(state.queueing for state in known) / len(known),
        )

    def _watch(self, now: float) -> None:
        for link in self._links.values():
            since = self._transfers.stalled_since(link.number)
            if since is not None and now - since >= self._stall_s:
                link.bulk.abort("nothing was acknowledged")
            elif not link.confirmed and now - link.opened_at >= HELLO_S:
                link.bulk.abort("the other end did not answer")
        if self._lost_at is not None and now - self._lost_at >= self._linkless_s:
            self._break("all links were lost")

    def _open_more(self, target: int) -> None:
        assert self._nursery is not None
        while len(self._links) + self._opening < target:
            self._opening += 1
            if len(self._links) + self._opening >= self._max_links and self._accept_scope:
                self._accept_scope.cancel()
            self._nursery.start_soon(self._open)

    def _retire(self) -> None:
        """Let one link that we opened go, once it carries nothing."""
        if not any(link.retiring for link in self._links.values()):
            for link in reversed(self._links.values()):
                if link.opened_here and link.confirmed:
                    link.retiring = True
                    link.writer.wake()
                    return

    # One link

    def _start_link(self, bulk: BulkLink, trial: int, *, opened_here: bool) -> None:
        assert self._nursery is not None
        now = trio.current_time()
        link = _Link(self._next_link, bulk, opened_here, now, trial, confirmed=not opened_here)
        self._next_link += 1
        self._links[link.number] = link
        self._transfers.open_link(link.number, now)
        self._lost_at = None
        self._nursery.start_soon(self._serve_link, link)
        self._changed.unpark_all()
        self._keeper.wake()

    async def _serve_link(self, link: _Link) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read, link, nursery.cancel_scope)
                nursery.start_soon(self._write, link, nursery.cancel_scope)
        finally:
            link.bulk.abort("the pool has no use for it")
            self._end_link(link)

    def _end_link(self, link: _Link) -> None:
        del self._links[link.number]
        try:
            self._transfers.close_link(link.number)
        except ChunkRefused as error:
            self._break(str(error))
        self._changed.unpark_all()
        self._keeper.wake()
        self._wake()
        in_order = link.bulk.ended_in_order or link.retiring or link.heard_bye
        if not in_order and not self._closing:
            if not link.useful:
                self._in_vain(link.trial, "links were lost before anything went through")
            if not self._links and self._transfers.receiving:
                self._lost_at = trio.current_time()
        if self._peer_left and not self._links:
            self._break("the peer closed its pool")

    async def _read(self, link: _Link, scope: trio.CancelScope) -> None:
        nothing = memoryview(bytearray(0))
        message: Message = Hello()

        def place(header: bytes, size: int) -> memoryview:
            nonlocal message
            message = decode(header, size)
            if isinstance(message, ChunkHead):
                return transfers.place(link.number, message, size)
            return nothing

        transfers, receive = self._transfers, link.bulk.receive
        try:
            while True:
                await receive(place)
                match message:
                    case ChunkHead():
                        self._proven(link)
                        transfers.arrived(link.number)
                    case Hello():
                        link.confirmed = True
                    case Bye():
                        self._peer_left = link.heard_bye = True
                        if link.said_bye:
                            await link.bulk.aclose()
                            break
                    case _:
                        self._proven(link)
                        transfers.handle(link.number, message, trio.current_time())
                link.writer.wake()
        except LinkClosed:
            pass
        except ChunkRefused as error:
            self._break(f"the peer broke the rules of bulk transfers: {error}")
        scope.cancel()

    def _proven(self, link: _Link) -> None:
        if not link.useful:
            link.useful = True
            self._barren = 0

    async def _write(self, link: _Link, scope: trio.CancelScope) -> None:
        send, transfers, number = link.bulk.send, self._transfers, link.number
        try:
            if not link.opened_here:
                await send(encode(Hello()), b"")
            while True:
                if link.confirmed and (message := transfers.next_message(number)) is not None:
                    await send(message, b"")
                elif self._closing or link.heard_bye:
                    await send(encode(Bye()), b"")
                    link.said_bye = True
                    if not link.heard_bye:
                        return  # the reader goes on, or what the peer has yet to say were lost
                    break
                elif not link.confirmed:
                    await link.writer.wait()
                elif link.retiring:
                    if not transfers.carried(number):
                        break
                    await link.writer.wait()
                elif (chunk := transfers.next_chunk(number, trio.current_time())) is not None:
                    await send(*chunk)
                else:
                    await link.writer.wait()
            await link.bulk.aclose()
        except LinkClosed:
            pass
        scope.cancel()


@asynccontextmanager
async def open_bulk_pool(
    endpoint: Endpoint,
    peer: Peer,
    label: bytes,
    *,
    max_links: int | None = None,
    links: int | None = None,
    wanted: Callable[[bytes, int], None] = lambda _tag, _size: None,
    asks: bool = False,
) -> AsyncIterator[BulkPool]:
    """Run a pool with `peer` for the length of the block; the peer opens one with the same label.

    Leaving the block closes the links; what is still under way fails with `PoolBroken`, here and
    there. An exception from the block comes out as it is.

    Args:
        endpoint: ours.
        peer: connected.
        label: at most 64 bytes, for one pool with this peer at a time.
        max_links: the default is `limits.bulk_links_per_peer`; at most that, and at most 8.
        links: a fixed number instead of a measured one.
        wanted: for an end that serves on demand, see `BulkPool`.
        asks: for the other end of one that does, see `BulkPool`.
    """
    limit = min(MAX_LINKS, endpoint.limits.bulk_links_per_peer)
    pool = BulkPool(
        lambda: peer.open_bulk(label),
        lambda: endpoint.accept_bulk(peer.node_id, label),
        max_links=limit if max_links is None else min(limit, max_links),
        rtt_s=lambda: peer.rtt_s or 0.0,
        links=links,
        wanted=wanted,
        asks=asks,
    )
    async with running(pool):
        yield pool


@asynccontextmanager
async def running(pool: BulkPool) -> AsyncIterator[None]:
    """Run `pool` for the length of the block; see `open_bulk_pool`."""
    from_body: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.run)
            try:
                yield
            except BaseException as error:
                from_body = error
                raise
            finally:
                await pool.close()
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        others = [error for error in group.exceptions if error is not from_body]
        if from_body is not None and all(isinstance(error, trio.Cancelled) for error in others):
            raise from_body from from_body.__cause__
        raise
