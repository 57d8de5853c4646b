"""Large regions in chunks over several links: what to send where, and what may be written where; sans-IO.

Problem: one TCP connection over a long path is bound by its window and halved by every loss, so a
tensor travels over several, and they finish in any order, stall, and die. Idea: a region is cut on
a fixed grid, and every chunk says its offset, so order does not matter. `SendQueue` gives the next
chunk to whichever link is free, and keeps what a link carries until it is acknowledged; a lost
link's share goes back to the front. `Region` is the other side: it lets each chunk of the grid be
written once, in one place, by one link at a time.

Acknowledgements are counts: chunks arrive in order on each link, so "n chunks of this link have
been taken" says it all, and a peer can neither acknowledge what was not sent nor twice.

Fairness: of all transfers with something to send, the one that has been given the fewest bytes is
next; a newcomer starts level with the least served (start-time fair queueing, Goyal et al. 1996).

Invariants: every chunk of a transfer is waiting, carried by exactly one link, or acknowledged; a
link carries at most `window_bytes` (one chunk always fits); bookkeeping is one byte per chunk and
a chunk is at least 256 KiB (the last one excepted).
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import Final

import attrs

from transport.errors import TransportError, UsageError

MIN_CHUNK_BYTES: Final = 256 << 10
MAX_CHUNK_BYTES: Final = 1 << 20
CHUNKS_WANTED: Final = 32
"""Chunks a region should have, so that eight links end at about the same time."""

MAX_REGION_BYTES: Final = 1 << 40
"""Larger is refused: the bookkeeping of a region is one byte per chunk."""

WINDOW_BYTES: Final = 64 << 20
"""Not acknowledged per link: over five times a path of 1 Gbit/s and 100 ms. It costs no memory,
since the bytes lie in the sender's region; it bounds what a lost link makes us send again."""


class ChunkRefused(TransportError):
    """The peer broke the rules of chunked transfers: the pool is closed."""


def chunk_size(total: int) -> int:
    """Bytes per chunk for a region of `total` bytes: a power of two in [256 KiB, 1 MiB]."""
    size = MAX_CHUNK_BYTES
    while size > MIN_CHUNK_BYTES and size * CHUNKS_WANTED > total:
        size >>= 1
    return size


@attrs.frozen
class Chunk:
    """A piece of a transfer."""

    transfer: int
    offset: int
    size: int


@attrs.define(eq=False)
class _Transfer:
    total: int
    chunk: int
    served: int  # bytes given to links, on the queue's common scale
    fresh: int = 0  # everything below this offset was given to a link at least once
    again: deque[int] = attrs.field(factory=deque)  # offsets whose link was lost
    started: bool = False
    acknowledged: int = 0  # chunks

    @property
    def waiting(self) -> bool:
        return bool(self.again) or self.fresh < self.total or not self.started

    @property
    def chunks(self) -> int:
        return max(1, -(-self.total // self.chunk))


@attrs.define(eq=False)
class _Link:
    carried: deque[Chunk] = attrs.field(factory=deque)
    carried_bytes: int = 0
    counted: int = 0  # chunks acknowledged on this link, ever
    progress_at: float = 0.0


@attrs.frozen
class Acknowledged:
    """What an acknowledgement brought."""

    payload_bytes: int
    """Bytes of transfers that are still wanted."""
    finished: tuple[int, ...]
    """Transfers of which every chunk has now been acknowledged; the queue has forgotten them."""


class SendQueue:
    """Which chunk goes over which link.

    Links and transfers are numbers that the caller chooses and never uses twice.

    Args:
        window_bytes: most bytes not acknowledged per link.
    """

    def __init__(self, *, window_bytes: int = WINDOW_BYTES) -> None:
        self._window_bytes = window_bytes
        self._transfers: dict[int, _Transfer] = {}
        self._links: dict[int, _Link] = {}

    # Transfers

    def add(self, transfer: int, total: int, chunk: int) -> None:
        """Begin a transfer of `total` bytes in chunks of `chunk`.

        Raises:
            UsageError: the number is in use, or the sizes are out of range.
        """
        if transfer in self._transfers:
            raise UsageError(f"transfer {transfer} is under way")
        if not 0 <= total <= MAX_REGION_BYTES or not is_chunk_size(chunk):
            raise UsageError(f"a region of {total} bytes in chunks of {chunk}")
        least = min((other.served for other in self._transfers.values()), default=0)
        self._transfers[transfer] = _Transfer(total, chunk, least)

    def remove(self, transfer: int) -> None:
        """Drop a transfer; what links carry of it is still counted, then forgotten."""
        self._transfers.pop(transfer, None)

    @property
    def transfers(self) -> int:
        """Transfers with something not acknowledged."""
        return len(self._transfers)

    @property
    def waiting(self) -> bool:
        """Whether a free link would get a chunk."""
        return any(transfer.waiting for transfer in self._transfers.values())

    # Links

    def open_link(self, link: int, now: float) -> None:
        """A link may carry chunks from now on."""
        self._links[link] = _Link(progress_at=now)

    def close_link(self, link: int) -> int:
        """A link is lost: put back what it carried; return how many chunks that were."""
        lost = self._links.pop(link, None)
        if lost is None:
            return 0
        back = 0
        for chunk in reversed(lost.carried):
            transfer = self._transfers.get(chunk.transfer)
            if transfer is not None:
                transfer.again.appendleft(chunk.offset)
                transfer.served -= chunk.size
                back += 1
        return back

    def carried(self, link: int) -> int:
        """Chunks that the link carries now."""
        state = self._links.get(link)
        return len(state.carried) if state is not None else 0

    def stalled_since(self, link: int) -> float | None:
        """When a link that carries something last got on; None when it carries nothing."""
        state = self._links.get(link)
        return state.progress_at if state is not None and state.carried else None

    def next(self, link: int, now: float) -> Chunk | None:
        """Give the free link `link` its next chunk; None if there is none, or its window is full."""
        state = self._links[link]
        if state.carried_bytes >= self._window_bytes:
            return None
        best: tuple[int, int] | None = None
        for number, transfer in self._transfers.items():
            if transfer.waiting and (best is None or transfer.served < best[0]):
                best = (transfer.served, number)
        if best is None:
            return None
        number = best[1]
        transfer = self._transfers[number]
        if transfer.again:
            offset = transfer.again.popleft()
        else:
            offset = transfer.fresh
            transfer.fresh = min(transfer.total, offset + transfer.chunk)
            transfer.started = True
        chunk = Chunk(number, offset, min(transfer.chunk, transfer.total - offset))
        transfer.served += chunk.size
        if not state.carried:
            state.progress_at = now
        state.carried.append(chunk)
        state.carried_bytes += chunk.size
        return chunk

    def acknowledge(self, link: int, count: int, now: float) -> Acknowledged:
        """The peer has taken `count` chunks of this link, in all.

        Raises:
            ChunkRefused: fewer than it said before, or more than the link has carried.
        """
        state = self._links[link]
        new = count - state.counted
        if not 0 <= new <= len(state.carried):
            raise ChunkRefused(
                f"{count} chunks acknowledged, {state.counted + len(state.carried)} sent"
            )
        state.counted = count
        if new:
            state.progress_at = now
        payload, finished = 0, []
        for _ in range(new):
            chunk = state.carried.popleft()
            state.carried_bytes -= chunk.size
            transfer = self._transfers.get(chunk.transfer)
            if transfer is None:
                continue
            payload += chunk.size
            transfer.acknowledged += 1
            if transfer.acknowledged == transfer.chunks:
                del self._transfers[chunk.transfer]
                finished.append(chunk.transfer)
        return Acknowledged(payload, tuple(finished))


class Place(Enum):
    """Where an arriving chunk goes."""

    NEW = "its place in the region"
    TAKEN_OVER = "its place, which another link was about to fill and must leave alone from now on"
    DOUBLE = "elsewhere: it is there already, and must be equal"


_MISSING, _ARRIVING, _DONE = 0, 1, 2


class Region:
    """What has arrived of one region.

    Args:
        total: bytes of the region.
        chunk: bytes of each chunk, the last one excepted.
    """

    def __init__(self, total: int, chunk: int) -> None:
        if not 0 <= total <= MAX_REGION_BYTES or not is_chunk_size(chunk):
            raise UsageError(f"a region of {total} bytes in chunks of {chunk}")
        self.total = total
        self.chunk = chunk
        self._states = bytearray(max(1, -(-total // chunk)))
        self._missing = len(self._states)
        self._arriving: dict[int, int] = {}  # link -> chunk number
        self._owners: dict[int, int] = {}  # chunk number -> link

    @property
    def complete(self) -> bool:
        """Whether every chunk is in its place."""
        return self._missing == 0

    def claim(self, link: int, offset: int, size: int) -> tuple[Place, int | None]:
        """A link is about to receive a chunk; say where it goes.

        Returns:
            The place, and for TAKEN_OVER the link that must stop writing there.

        Raises:
            ChunkRefused: not a chunk of this region's grid (out of range, overlapping, cut short).
            UsageError: the link has not ended its last chunk.
        """
        if link in self._arriving:
            raise UsageError("one chunk at a time per link")
        number, rest = divmod(offset, self.chunk)
        if rest or not 0 <= number < len(self._states):
            raise ChunkRefused(f"no chunk begins at {offset} of {self.total}")
        if size != min(self.chunk, self.total - offset):
            raise ChunkRefused(f"a chunk of {size} bytes at {offset} overlaps, or falls short")
        if self._states[number] == _DONE:
            return Place.DOUBLE, None
        before = self._owners.get(number)
        if before is not None:
            del self._arriving[before]
        self._states[number] = _ARRIVING
        self._arriving[link] = number
        self._owners[number] = link
        return (Place.NEW, None) if before is None else (Place.TAKEN_OVER, before)

    def arrived(self, link: int) -> None:
        """The link's chunk is in its place; nothing happens if another link took it over."""
        number = self._release(link)
        if number is not None:
            self._states[number] = _DONE
            self._missing -= 1

    def lost(self, link: int) -> None:
        """The link's chunk will not be completed."""
        number = self._release(link)
        if number is not None:
            self._states[number] = _MISSING

    def writers(self) -> tuple[int, ...]:
        """Links that are writing into the region now."""
        return tuple(self._arriving)

    def _release(self, link: int) -> int | None:
        number = self._arriving.pop(link, None)
        if number is not None:
            del self._owners[number]
        return number


def is_chunk_size(size: int) -> bool:
    """Whether chunks may have this size."""
    return MIN_CHUNK_BYTES <= size <= MAX_CHUNK_BYTES
