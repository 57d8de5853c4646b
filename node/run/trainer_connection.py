"""The daemon's end of the socket to one attached trainer (trio driver of `node.trainer_messages`).

One reader task decodes frames: reports go to the owner's callback at once, answers to whoever waits for them (`trainer_link`,
`leg_link`). One writer task owns the sending side, so that a cancelled caller cannot tear a frame.

A trainer that sends garbage, or answers something else than it was asked, is detached with the reason; the daemon goes on.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Final

import trio

from gossip.protocol import Vector
from gossip.rounds import Position, TrainerGone
from node.run.manifest import RunManifest
from node.shared_buffer import SharedBuffer
from node.trainer_messages import (
    Attach,
    DaemonMessage,
    Evaluated,
    Failed,
    Finished,
    FrameReader,
    Ready,
    Report,
    Sample,
    Saved,
    SaveFailed,
    SaveNow,
    Stop,
    TrainerMessage,
    TrainerProtocolError,
    decode_trainer_message,
    encode,
)

__all__ = ["Note", "TrainerConnection"]

QUEUE_FRAMES: Final = 64
READ_BYTES: Final = 65536

Note = Ready | Report | Evaluated | Sample | Saved | SaveFailed | Failed
_log = logging.getLogger(__name__)


class TrainerConnection(ABC):
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
        """Where its state stands; None while it changes, or is of no use to others."""
        self.finished = False
        self.error = ""
        self.gone = trio.Event()
        self._life = trio.CancelScope()
        self._stream = stream
        self._manifest = manifest
        self._buffer = buffer
        self._on_note = on_note
        self._outbox, self._to_write = trio.open_memory_channel[bytes](QUEUE_FRAMES)

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
            self.on_end()
            self._outbox.close()
            self.gone.set()
            await trio.aclose_forcefully(self._stream)
            self._buffer.close()  # the views stay valid: a finished state is still handed over

    @abstractmethod
    def on_end(self) -> None:
        """Wake whoever waits for an answer: none will come."""

    @abstractmethod
    def on_answer(self, message: TrainerMessage) -> None:
        """Take a message that is no note; raises `TrainerProtocolError` for one that was not asked for."""

    async def _write(self) -> None:
        async for frame in self._to_write:
            try:
                await self._stream.send_all(frame)
            except trio.BrokenResourceError:
                return  # it closed; what it said before that is still to be read

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
            case Attach():
                raise TrainerProtocolError("attached twice")
            case _:
                self.finished = self.finished or isinstance(message, Finished)
                if isinstance(message, Ready):
                    self._on_note(message)
                self.on_answer(message)

    def send(self, message: DaemonMessage) -> None:
        """Tell the trainer something; raises `TrainerGone`."""
        try:
            self._outbox.send_nowait(encode(message))
        except trio.WouldBlock:
            self.detach("the trainer does not read its messages")
            raise TrainerGone(self.error) from None
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise TrainerGone(self.error or "the trainer is gone") from None

    def detach(self, reason: str) -> None:
        """End the connection from this side; `run` returns."""
        self.error = self.error or reason
        self._life.cancel()

    def stop(self, reason: str, *, save: bool) -> None:
        """Ask the trainer to end, after a last checkpoint if `save`."""
        if self.gone.is_set():
            return
        if save:
            self.send(SaveNow())
        self.send(Stop(reason))
