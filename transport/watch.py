"""Tell whoever watches which peers come and go, without ever waiting for a watcher.

Problem: membership, replication and status want to hear of peers; a slow listener must neither
block the connection that reports nor make us remember without bound. Idea: a bounded channel per
watcher. When it is nearly full the last place gets `Lagged`, and nothing more is put in until the
watcher has caught up; it then looks at `endpoint.peers` instead of at what it missed.

Invariant: after `Lagged`, no event is delivered that happened before the watcher made room.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import attrs
import trio

from transport.address import Address
from transport.network import Path
from transport.streams.frames import CloseCode

if TYPE_CHECKING:
    from transport.peer import Peer

BUFFER: Final = 256
"""Events a watcher may fall behind: the arrival of every peer of a full node."""


@attrs.frozen
class PeerUp:
    """A peer is connected."""

    peer: "Peer"


@attrs.frozen
class PeerDown:
    """A peer is not connected any more."""

    peer: "Peer"
    reason: str


@attrs.frozen
class PeerPathChanged:
    """The bytes of a peer travel another way now; its streams go on."""

    peer: "Peer"
    old: Path
    new: Path


@attrs.frozen
class Lagged:
    """Events were left out: look at `endpoint.peers`."""


@attrs.frozen
class LostPeer:
    """A peer that was connected once and is not now."""

    reason: str
    """Why the last connection ended."""

    at: float
    """Trio time of its end."""

    name: str
    """What it called itself."""

    address: Address
    """Where it was."""

    goodbye: CloseCode | None = None
    """The code with which either side ended that connection; None when it broke."""


PeerEvent = PeerUp | PeerDown | PeerPathChanged | Lagged


T = TypeVar("T")


class Watchers(Generic[T]):
    """All watchers of one source of events.

    Args:
        missed: what a watcher gets in place of the events that it has no room for.
    """

    def __init__(self, missed: T) -> None:
        self._missed = missed
        self._channels: list[trio.MemorySendChannel[T]] = []

    def tell(self, event: T) -> None:
        """Give the event to all watchers that have room; never blocks."""
        for channel in self._channels:
            free = BUFFER - channel.statistics().current_buffer_used
            try:
                if free > 1:
                    channel.send_nowait(event)
                elif free == 1:
                    channel.send_nowait(self._missed)
            except trio.BrokenResourceError:  # closed by the watcher inside its block
                continue

    @contextmanager
    def watch(self) -> Iterator[trio.MemoryReceiveChannel[T]]:
        """Receive the events from now on; the channel ends with the block or the source."""
        send, receive = trio.open_memory_channel[T](BUFFER)
        self._channels.append(send)
        try:
            yield receive
        finally:
            if send in self._channels:
                self._channels.remove(send)
            send.close()
            receive.close()

    def close(self) -> None:
        """End all channels: their readers see the end."""
        for channel in self._channels:
            channel.close()
        self._channels.clear()
