"""The transfers of a bulk pool: who expects what, who sends what, what each message means; sans-IO.

Problem: two sides agree on transfers over links that die, so any message may be lost, doubled, or
overtaken by one on another link. Idea: the receiver leads. It gives each transfer a number and asks
for it (WANT), again whenever a link is lost; the sender answers with chunks or with GONE; a chunk
for something given up is answered with STOP. Each message may come twice and in any order.

The driver (`transport.bulk.pool`) moves bytes between this and the links, which are numbers here.

Invariants: memory is written only for a transfer expected here, inside its region, and never again
once it has ended; `ended` of a transfer is called exactly once; at most `MAX_TRANSFERS` are expected
in each direction, at most `MAX_CONTROL` short messages wait, `REMEMBERED` ended ones are known.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final, TypeVar

import attrs

from transport.bulk.chunks import (
    MAX_CHUNK_BYTES,
    MAX_REGION_BYTES,
    ChunkRefused,
    Place,
    Region,
    SendQueue,
    chunk_size,
)
from transport.bulk.messages import (
    MAX_TAG_BYTES,
    Ack,
    ChunkHead,
    Gone,
    Message,
    Reason,
    Stop,
    Want,
    encode,
)
from transport.errors import TransportError, UsageError

T = TypeVar("T")

MAX_TRANSFERS: Final = 256
"""Tags expected at once, in each direction."""

MAX_CONTROL: Final = 4 * MAX_TRANSFERS
"""Short messages waiting to be sent; honest use needs a few per expected tag."""

REMEMBERED: Final = 1024
"""Ended transfers whose late messages are still understood."""


class TransferCancelled(TransportError):
    """The other side gave this transfer up; others are not affected."""


class TransferMismatch(TransferCancelled):
    """The two sides do not agree on the size of a transfer."""


@attrs.define(eq=False)
class Transfer:
    """One region on its way.

    Attributes:
        over: it has ended, with `error` or well.
    """

    tag: bytes
    view: memoryview
    ended: Callable[[], None]
    id: int = 0  # 0: a send that the receiver has not asked for
    over: bool = False
    error: TransportError | None = None

    def end(self, error: TransportError | None = None) -> None:
        """End it, if it has not ended."""
        if not self.over:
            self.over, self.error = True, error
            self.ended()


@attrs.define(eq=False)
class _Receive(Transfer):
    region: Region = attrs.field(kw_only=True)


@attrs.define(eq=False)
class _Link:
    taken: int = 0  # chunks received
    told: int = 0  # of those, acknowledged
    receive: _Receive | None = None  # whose chunk comes into its place
    double: tuple[_Receive, int, bytearray] | None = None  # a chunk that is there already


class Transfers:
    """Both directions of one end.

    Args:
        redirect: called with (link, memory): what is still to come of the chunk that this link
            receives must go there.
        wake: called when there may be something to send.
        wanted: called with (tag, size) when the other side expects a tag that is not being sent here;
            `send` it, `refuse` it, or leave it open.
    """

    def __init__(
        self,
        redirect: Callable[[int, memoryview], None],
        wake: Callable[[], None],
        wanted: Callable[[bytes, int], None] = lambda _tag, _size: None,
    ) -> None:
        self.acknowledged = 0
        """Payload bytes the other side has confirmed."""
        self._redirect, self._wake, self._on_wanted = redirect, wake, wanted
        self._queue = SendQueue()
        self._links: dict[int, _Link] = {}
        self._next_id = 1
        self._sends: dict[bytes, Transfer] = {}
        self._sending: dict[int, Transfer] = {}  # by the peer's number
        self._wants: dict[bytes, Want] = {}  # no send yet
        self._settled: OrderedDict[int, Reason | None] = OrderedDict()  # sends; None: finished
        self._receives: dict[int, _Receive] = {}
        self._receive_tags: set[bytes] = set()
        self._stopped: OrderedDict[int, None] = OrderedDict()  # receives given up here
        self._control: OrderedDict[bytes, None] = OrderedDict()
        self._scratch = memoryview(bytearray(MAX_CHUNK_BYTES))  # for what nobody wants

    # What the application does

    @property
    def sending(self) -> bool:
        """Whether something is to be sent."""
        return bool(self._sends)

    @property
    def receiving(self) -> bool:
        """Whether something is expected."""
        return bool(self._receives)

    @property
    def chunks_waiting(self) -> bool:
        """Whether a free link would get a chunk."""
        return self._queue.waiting

    def wants(self, tag: bytes) -> bool:
        """Whether the other side expects `tag` and it is not being sent."""
        return tag in self._wants

    def refuse(self, tag: bytes) -> None:
        """End the other side's receive of `tag`; nothing happens if it does not expect it (any more)."""
        want = self._wants.pop(tag, None)
        if want is not None:
            _remember(self._settled, want.id, Reason.CANCELLED)
            self._tell(Gone(want.id, Reason.CANCELLED))

    def send(self, tag: bytes, view: memoryview, ended: Callable[[], None]) -> Transfer:
        """Begin to send `view`, which stays as it is until the transfer has ended.

        Raises:
            UsageError: the tag is being sent, or tag or region are too large.
        """
        _check(tag, view)
        if tag in self._sends:
            raise UsageError("this tag is being sent already")
        transfer = self._sends[tag] = Transfer(tag, view, ended)
        self._match(tag)
        return transfer

    def receive(self, tag: bytes, view: memoryview, ended: Callable[[], None]) -> Transfer:
        """Begin to expect `tag` in the memory of `view`.

        Raises:
            UsageError: the tag is expected, tag or region are too large, or 256 are expected.
        """
        _check(tag, view)
        if view.readonly:
            raise UsageError("the memory to receive into is read-only")
        if tag in self._receive_tags:
            raise UsageError("this tag is expected already")
        if len(self._receives) >= MAX_TRANSFERS:
            raise UsageError(f"{MAX_TRANSFERS} transfers are expected already")
        id_, self._next_id = self._next_id, self._next_id + 1
        region = Region(len(view), chunk_size(len(view)))
        receive = self._receives[id_] = _Receive(tag, view, ended, id_, region=region)
        self._receive_tags.add(tag)
        self._ask(receive)
        return receive

    def give_up(self, transfer: Transfer) -> None:
        """The application does not want it any more; its memory is not used from now on."""
        if transfer.over:
            return
        transfer.over = True
        if isinstance(transfer, _Receive):
            self._drop_receive(transfer)
            _remember(self._stopped, transfer.id, None)
            self._tell(Stop(transfer.id))
        else:
            del self._sends[transfer.tag]
            if transfer.id:
                self._drop_send(transfer, Reason.CANCELLED)
                self._tell(Gone(transfer.id, Reason.CANCELLED))

    def fail(self, error: Callable[[], TransportError]) -> None:
        """End everything, each with an error of its own."""
        for receive in list(self._receives.values()):
            self._drop_receive(receive)
            receive.end(error())
        for send in list(self._sends.values()):
            self._queue.remove(send.id)  # a link's writer may still ask before it hears of the end
            send.end(error())
        self._sends.clear()
        self._sending.clear()
        self._wants.clear()
        self._control.clear()

    # Links

    def open_link(self, link: int, now: float) -> None:
        """A link is there."""
        self._links[link] = _Link()
        self._queue.open_link(link, now)

    def close_link(self, link: int) -> None:
        """A link is gone, with whatever was on it."""
        state = self._links.pop(link)
        if state.receive is not None:
            state.receive.region.lost(link)
        self._queue.close_link(link)
        for receive in self._receives.values():  # who knows it already, ignores it
            self._ask(receive)

    def carried(self, link: int) -> int:
        """Chunks sent on the link and not acknowledged."""
        return self._queue.carried(link)

    def stalled_since(self, link: int) -> float | None:
        """When a link that carries chunks last got on; None if it carries none."""
        return self._queue.stalled_since(link)

    def next_message(self, link: int) -> bytes | None:
        """The next short message for a free link."""
        state = self._links[link]
        if state.told != state.taken:
            state.told = state.taken
            return encode(Ack(state.told))
        return self._control.popitem(last=False)[0] if self._control else None

    def next_chunk(self, link: int, now: float) -> tuple[bytes, memoryview] | None:
        """The next chunk for a free link: header and payload."""
        chunk = self._queue.next(link, now)
        if chunk is None:
            return None
        view = self._sending[chunk.transfer].view
        head = ChunkHead(chunk.transfer, chunk.offset, len(view))
        return encode(head), view[chunk.offset : chunk.offset + chunk.size]

    # What comes in; all of these raise ChunkRefused when the peer breaks the rules

    def place(self, link: int, head: ChunkHead, size: int) -> memoryview:
        """A chunk begins on a link: where it goes."""
        receive = self._receives.get(head.id)
        if receive is None:
            if not 0 < head.id < self._next_id:
                raise ChunkRefused("a chunk for a transfer that was never expected")
            if head.id in self._stopped:
                self._tell(Stop(head.id))
            return self._scratch[:size]
        if head.size != len(receive.view):
            raise ChunkRefused(f"{head.size} bytes announced, {len(receive.view)} expected")
        place, other = receive.region.claim(link, head.offset, size)
        state = self._links[link]
        if place is Place.DOUBLE:
            copy = bytearray(size)
            state.double = (receive, head.offset, copy)
            return memoryview(copy)
        if other is not None:
            self._away(other)
        state.receive = receive
        return receive.view[head.offset : head.offset + size]

    def arrived(self, link: int) -> None:
        """The chunk is complete."""
        state = self._links[link]
        state.taken += 1
        receive, state.receive = state.receive, None
        double, state.double = state.double, None
        if double is not None and not double[0].over:
            known, offset, copy = double
            if known.view[offset : offset + len(copy)] != copy:
                raise ChunkRefused(f"the chunk at {offset} came twice, and differs")
        if receive is not None:
            receive.region.arrived(link)
            if receive.region.complete:
                self._drop_receive(receive)
                receive.end()

    def handle(self, link: int, message: Message, now: float) -> None:
        """A short message has come on a link."""
        match message:
            case Want():
                self._wanted(message)
            case Ack(count):
                got = self._queue.acknowledge(link, count, now)
                self.acknowledged += got.payload_bytes
                for id_ in got.finished:
                    send = self._sending[id_]
                    del self._sends[send.tag]
                    self._drop_send(send, None)
                    send.end()
            case Stop(id_):
                for tag in [tag for tag, want in self._wants.items() if want.id == id_]:
                    del self._wants[tag]
                stopped = self._sending.get(id_)
                if stopped is not None:
                    del self._sends[stopped.tag]
                    self._drop_send(stopped, Reason.CANCELLED)
                    stopped.end(TransferCancelled("the receiver gave the transfer up"))
            case Gone(id_, reason):
                receive = self._receives.get(id_)
                if receive is not None:
                    self._drop_receive(receive)
                    if reason == Reason.OTHER_SIZE:
                        receive.end(TransferMismatch("the sender has another number of bytes"))
                    else:
                        receive.end(TransferCancelled("the sender gave the transfer up"))
            case _:
                pass

    def _wanted(self, want: Want) -> None:
        under_way = self._sending.get(want.id)
        if under_way is not None:
            if under_way.tag != want.tag:
                raise ChunkRefused("one number for two transfers")
            return
        if want.id in self._settled:
            reason = self._settled[want.id]
            if reason is not None:
                self._tell(Gone(want.id, reason))
            return
        before = self._wants.get(want.tag)
        if before is not None and before.id >= want.id:
            return
        if before is None and len(self._wants) + len(self._sending) >= 2 * MAX_TRANSFERS:
            raise ChunkRefused("too many transfers are expected")
        if any(other.id == want.id and other.tag != want.tag for other in self._wants.values()):
            raise ChunkRefused("one number for two transfers")
        self._wants[want.tag] = want
        self._match(want.tag)
        if want.tag in self._wants:
            self._on_wanted(want.tag, want.size)

    # Inside

    def _match(self, tag: bytes) -> None:
        """Start the send of `tag` if both sides are ready for it."""
        send, want = self._sends.get(tag), self._wants.get(tag)
        if send is None or want is None or send.id:
            return
        del self._wants[tag]
        if want.size != len(send.view):
            del self._sends[tag]
            _remember(self._settled, want.id, Reason.OTHER_SIZE)
            self._tell(Gone(want.id, Reason.OTHER_SIZE))
            text = f"the receiver expects {want.size} bytes, not {len(send.view)}"
            send.end(TransferMismatch(text))
            return
        send.id = want.id
        self._sending[want.id] = send
        self._queue.add(want.id, want.size, want.chunk)
        self._wake()

    def _ask(self, receive: _Receive) -> None:
        self._tell(Want(receive.id, len(receive.view), receive.region.chunk, receive.tag))

    def _tell(self, message: Message) -> None:
        self._control[encode(message)] = None
        if len(self._control) > MAX_CONTROL:
            raise ChunkRefused("the peer asks for more answers than it takes")
        self._wake()

    def _drop_send(self, send: Transfer, reason: Reason | None) -> None:
        self._sending.pop(send.id, None)
        self._queue.remove(send.id)
        _remember(self._settled, send.id, reason)

    def _drop_receive(self, receive: _Receive) -> None:
        """Forget it, and write nothing into its memory from now on."""
        del self._receives[receive.id]
        self._receive_tags.discard(receive.tag)
        for link in receive.region.writers():
            self._away(link)

    def _away(self, link: int) -> None:
        self._links[link].receive = None
        self._redirect(link, self._scratch)


def _check(tag: bytes, view: memoryview) -> None:
    if len(tag) > MAX_TAG_BYTES:
        raise UsageError(f"a tag has at most {MAX_TAG_BYTES} bytes")
    if len(view) > MAX_REGION_BYTES:
        raise UsageError(f"a transfer has at most {MAX_REGION_BYTES} bytes")


def _remember(table: OrderedDict[int, T], key: int, value: T) -> None:
    table[key] = value
    while len(table) > REMEMBERED:
        table.popitem(last=False)
