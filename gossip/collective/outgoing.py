"""The messages for one peer, in order, on one stream (trio driver).

Problem: a vote that goes through a queue to a writer task leaves two turns of the scheduler after it was made, and an
operation of a few kilobytes takes hardly longer than its votes. Idea: who has a message sends it in one synchronous step if
nothing is in the way; only what would have to wait goes to the task.

Invariants: messages leave in the order of `send`, since none goes past one that waits; at most QUEUE_MESSAGES wait.
"""

from __future__ import annotations

from typing import Final

import trio

from transport.streams.stream import Stream

QUEUE_MESSAGES: Final = 256
"""Per peer; a peer that lets this many small messages pile up is treated as lost to the run."""


class Outgoing:
    """What this node says to one peer; `stream` is used by nobody else for sending."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._sender, self._queue = trio.open_memory_channel[bytes](QUEUE_MESSAGES)
        self._waiting = 0  # handed to `run`, and not all sent

    def send(self, message: bytes) -> None:
        """Send a message, or queue it; never blocks.

        Raises:
            trio.WouldBlock: QUEUE_MESSAGES are waiting.
            trio.BrokenResourceError, trio.ClosedResourceError: `run` has ended, or `close` was called.
        """
        if self._waiting or not self._stream.try_send_message(message):
            self._sender.send_nowait(message)
            self._waiting += 1

    def close(self) -> None:
        """Let `run` end after what is queued."""
        self._sender.close()

    async def run(self) -> None:
        """Send what has to wait, until `close`.

        Cancellation leaves some of it unsent: close the stream then.

        Raises:
            PeerLost, StreamReset, StreamClosed: as for `Stream.send_message`.
        """
        with self._queue:
            async for message in self._queue:
                await self._stream.send_message(message)
                self._waiting -= 1
