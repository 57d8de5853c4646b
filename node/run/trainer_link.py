"""A trainer of a collective protocol, as `gossip.rounds` sees it (trio driver).

Answers that the run waits for (`Ready`, `Contribute`, `Applied`, `Finished`) go through a short queue.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from gossip.protocol import Apply, Contribution
from gossip.rounds import Offer, Position, TrainerGone, TrainerPort
from node.run.manifest import RunManifest
from node.run.trainer_connection import QUEUE_FRAMES, Note, TrainerConnection
from node.shared_buffer import SharedBuffer
from node.trainer_messages import (
    Applied,
    Attach,
    Contribute,
    Finished,
    Hurry,
    Outcome,
    Ready,
    Resync,
    Start,
    TrainerMessage,
    TrainerProtocolError,
)

__all__ = ["Note", "TrainerLink"]


class TrainerLink(TrainerConnection, TrainerPort):
    """One attached trainer; `run` must be running for anything to happen."""

    def __init__(
        self,
        stream: trio.SocketStream,
        attach: Attach,
        manifest: RunManifest,
        buffer: SharedBuffer,
        on_note: Callable[[Note], None],
    ) -> None:
        super().__init__(stream, attach, manifest, buffer, on_note)
        self._arrived, self._answers = trio.open_memory_channel[TrainerMessage](QUEUE_FRAMES)

    def on_end(self) -> None:
        """See `TrainerConnection.on_end`."""
        self._arrived.close()

    def on_answer(self, message: TrainerMessage) -> None:
        """See `TrainerConnection.on_answer`."""
        if not isinstance(message, Ready | Contribute | Applied | Finished):
            raise TrainerProtocolError(f"{type(message).__name__} in a run of rounds")
        try:
            self._arrived.send_nowait(message)
        except trio.WouldBlock:
            raise TrainerProtocolError("more answers than questions") from None

    async def _next_answer(self) -> TrainerMessage:
        try:
            return await self._answers.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError):
            raise TrainerGone(self.error or "the trainer is gone") from None

    # ---- TrainerPort ---------------------------------------------------------------------------

    async def ready(self) -> Position:
        """See `TrainerPort.ready`."""
        message = await self._next_answer()
        if not isinstance(message, Ready):
            raise TrainerGone(f"expected Ready, got {type(message).__name__}")
        self.position = Position(message.round, message.state_sha256)
        return self.position

    async def start(self, round_: int, *, synced: bool) -> None:
        """See `TrainerPort.start`."""
        source = "synced" if synced else "own"
        self.send(Start(round_, self._manifest.step_after(round_), source))

    async def next_offer(self) -> Offer | None:
        """See `TrainerPort.next_offer`."""
        while True:
            message = await self._next_answer()
            match message:
                case Contribute():
                    return Offer(
                        Contribution(message.round, message.steps, message.weight),
                        message.state_sha256,
                    )
                case Finished():
                    return None
                case _:
                    continue  # the echo of an earlier resync

    async def apply(self, result: Apply) -> Position:
        """See `TrainerPort.apply`."""
        self.position = None
        self.send(Outcome(result.round, result.members, result.weight, result.alone))
        while True:
            message = await self._next_answer()
            if isinstance(message, Applied) and message.round == result.round + 1:
                self.position = Position(message.round, message.state_sha256)
                return self.position
            if isinstance(message, Finished | Contribute):
                raise TrainerGone(f"expected Applied, got {type(message).__name__}")

    async def resync(self, round_: int) -> None:
        """See `TrainerPort.resync`."""
        self.send(Resync(round_, self._manifest.step_after(round_)))

    def stand(self, position: Position | None) -> None:
        """See `TrainerPort.stand`."""
        self.position = position

    def hurry(self, round_: int) -> None:
        """See `TrainerPort.hurry`."""
        if not self.gone.is_set():
            self.send(Hurry(round_))
