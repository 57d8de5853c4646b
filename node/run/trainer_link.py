"""The daemon's end of one attached trainer (trio driver of `node.trainer_messages`).

One reader task decodes frames: reports go to the owner's callbacks at once, answers that the run
waits for (`Ready`, `Contribute`, `Applied`, `Finished`) go through a short queue. One writer task
owns the sending side, so that a cancelled caller cannot tear a frame.

A trainer that sends garbage, or answers something else than it was asked, is detached with the
reason; the daemon goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Final

import trio

from gossip.protocol import Apply, Contribution, Vector
from gossip.rounds import Offer, Position, TrainerGone, TrainerPort
from node.run.manifest import RunManifest
from node.shared_buffer import SharedBuffer
from node.trainer_messages import (
    Applied,
    Attach,
    Contribute,
    DaemonMessage,
    Evaluated,
    Failed,
    Finished,
    FrameReader,
    Hurry,
    Outcome,
    Ready,
    Report,
    Resync,
    Sample,
    Saved,
    SaveFailed,
    SaveNow,
    Start,
    Stop,
    TrainerMessage,
    TrainerProtocolError,
    decode_trainer_message,
    encode,
)

QUEUE_FRAMES: Final = 64
READ_BYTES: Final = 65536

Note = Ready | Report | Evaluated | Sample | Saved | SaveFailed | Failed
_log = logging.getLogger(__name__)


class TrainerLink(TrainerPort):
    """One attached trainer; `run` must be running for anything to happen."""

    def __init__(
        self,
        stream: trio.SocketStream,
        attach: Attach,
        manifest: RunManifest,
        buffer: SharedBuffer,
        on_note: Callable[[Note], None],
    ) -> None:
        self.attach = attach
        self.views: Mapping[str, Vector] = buffer.views
        self.position: Position | None = None
        """Where its consensus vectors stand; None while they change."""
        self.finished = False
        self.error = ""
        self.gone = trio.Event()
        self._life = trio.CancelScope()
        self._stream = stream
        self._manifest = manifest
        self._buffer = buffer
        self._on_note = on_note
        self._outbox, self._to_write = trio.open_memory_channel[bytes](QUEUE_FRAMES)
        self._arrived, self._answers = trio.open_memory_channel[TrainerMessage](QUEUE_FRAMES)

    # ---- driver --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve the connection until it ends; then every waiting call raises `TrainerGone`."""
        try:
            with self._life:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write)
                    await self._read()
                    nursery.cancel_scope.cancel()
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            self.error = self.error or "the connection to the trainer broke"
        except* TrainerProtocolError as group:
            self.error = f"the trainer spoke nonsense: {group.exceptions[0]}"
            _log.warning("%s", self.error)
        finally:
            if not self.finished:
                self.position = None
            self._arrived.close()
            self._outbox.close()
            self.gone.set()
            await trio.aclose_forcefully(self._stream)
            self._buffer.close()  # the views stay valid: a finished state is still handed over

    async def _write(self) -> None:
        async for frame in self._to_write:
            await self._stream.send_all(frame)

    async def _read(self) -> None:
        reader = FrameReader()
        while data := await self._stream.receive_some(READ_BYTES):
            reader.feed(bytes(data))
            while (body := reader.next_body()) is not None:
                self._dispatch(decode_trainer_message(body))

    def _dispatch(self, message: TrainerMessage) -> None:
        match message:
            case Report() | Evaluated() | Sample() | Saved() | SaveFailed():
                self._on_note(message)
            case Failed(error=error):
                self.error = error
                self._on_note(message)
            case Ready() | Contribute() | Applied() | Finished():
                self.finished = self.finished or isinstance(message, Finished)
                if isinstance(message, Ready):
                    self._on_note(message)
                try:
                    self._arrived.send_nowait(message)
                except trio.WouldBlock:
                    raise TrainerProtocolError("more answers than questions") from None
            case Attach():
                raise TrainerProtocolError("attached twice")

    def _send(self, message: DaemonMessage) -> None:
        try:
            self._outbox.send_nowait(encode(message))
        except trio.WouldBlock:
            self.detach("the trainer does not read its messages")
            raise TrainerGone(self.error) from None
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise TrainerGone(self.error or "the trainer is gone") from None

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
        self._send(Start(round_, self._manifest.step_after(round_), source))

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
        self._send(Outcome(result.round, result.members, result.weight, result.alone))
        while True:
            message = await self._next_answer()
            if isinstance(message, Applied) and message.round == result.round + 1:
                self.position = Position(message.round, message.state_sha256)
                return self.position
            if isinstance(message, Finished | Contribute):
                raise TrainerGone(f"expected Applied, got {type(message).__name__}")

    async def resync(self, round_: int) -> None:
        """See `TrainerPort.resync`."""
        self._send(Resync(round_, self._manifest.step_after(round_)))

    def stand(self, position: Position | None) -> None:
        """See `TrainerPort.stand`."""
        self.position = position

    def detach(self, reason: str) -> None:
        """End the connection from this side; `run` returns."""
        self.error = self.error or reason
        self._life.cancel()

    def hurry(self, round_: int) -> None:
        """See `TrainerPort.hurry`."""
        if not self.gone.is_set():
            self._send(Hurry(round_))

    def stop(self, reason: str, *, save: bool) -> None:
        """Ask the trainer to end, after a last checkpoint if `save`."""
        if self.gone.is_set():
            return
        if save:
            self._send(SaveNow())
        self._send(Stop(reason))
