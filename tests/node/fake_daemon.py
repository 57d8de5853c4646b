"""A daemon's end of the trainer socket, in a thread: answers what a test tells it to.

By default it is a node that is alone: `Start("own")` after `Ready`, and an `Outcome` with
`alone=True` for every contribution.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self

from gossip.decentralized.protocol import DecentralizedProtocol
from gossip.protocol import Protocol, load_plugin
from node.run.leg_link import VECTORS as LEG_VECTORS
from node.run.manifest import RunManifest
from node.shared_buffer import SharedBuffer, send_with_fd
from node.trainer_messages import (
    Attach,
    Attached,
    Contribute,
    DaemonMessage,
    FrameReader,
    Outcome,
    Ready,
    Start,
    decode_trainer_message,
    encode,
)

PATIENCE_S = 60.0  # a bound for a broken test, never a measure of time

Answer = Callable[["FakeDaemon", Contribute], None]


class FakeDaemon:
    def __init__(
        self,
        path: Path,
        manifest: RunManifest,
        *,
        checkpoint: str | None = None,
        on_attach: Callable[[FakeDaemon], DaemonMessage | None] = lambda _: None,
        on_ready: Callable[[FakeDaemon, Ready], None] | None = None,
        on_contribute: Answer | None = None,
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.data_dir = path.parent / "checkpoints"
        self.data_dir.mkdir(exist_ok=True)
        self.checkpoint = checkpoint
        self.messages: list[object] = []
        self.buffer: SharedBuffer | None = None
        self._on_attach = on_attach
        self._on_ready = on_ready or FakeDaemon.start_own
        self._on_contribute = on_contribute or FakeDaemon.alone
        self._changed = threading.Condition()
        self._ended = False
        self._connection: socket.socket | None = None
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.hang_up()
        self._listener.close()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        if self.buffer is not None:
            self.buffer.close()

    # ---- what a test does ----

    def post(self, message: DaemonMessage) -> None:
        assert self._connection is not None
        self._connection.sendall(encode(message))

    def hang_up(self) -> None:
        for sock in (self._connection, self._listener):
            if sock is not None:
                try:
                    sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue

    def wait_for(self, kind: type, count: int = 1) -> list:
        """The messages of a type once there are `count`; fails when the trainer ends before."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._ended or len(self.of(kind)) >= count, timeout=PATIENCE_S
            )
        found = self.of(kind)
        assert len(found) >= count, f"{len(found)} {kind.__name__} in {self.messages}"
        return found

    def wait_end(self) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self._ended, timeout=PATIENCE_S)

    def of(self, kind: type) -> list:
        return [message for message in self.messages if isinstance(message, kind)]

    # ---- answers ----

    def vectors(self) -> tuple[str, ...]:
        protocol, settings = load_plugin(self.manifest.protocol), self.manifest.protocol_settings
        if issubclass(protocol, DecentralizedProtocol):
            return LEG_VECTORS
        assert issubclass(protocol, Protocol)
        return protocol.averager(settings).vectors

    def start_own(self, ready: Ready) -> None:
        self.post(Start(ready.round, ready.step, "own"))

    def alone(self, contribute: Contribute) -> None:
        self.post(Outcome(contribute.round, 1, contribute.weight, alone=True))

    # ---- thread ----

    def _serve(self) -> None:
        try:
            self._connection, _ = self._listener.accept()
            self._talk(self._connection)
        except OSError:
            pass
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()
            if self._connection is not None:
                self._connection.close()

    def _talk(self, connection: socket.socket) -> None:
        reader = FrameReader()
        while data := connection.recv(65536):
            reader.feed(data)
            while (body := reader.next_body()) is not None:
                message = decode_trainer_message(body)
                with self._changed:
                    self.messages.append(message)
                self._react(connection, message)
                with self._changed:
                    self._changed.notify_all()

    def _react(self, connection: socket.socket, message: object) -> None:
        if isinstance(message, Attach):
            refusal = self._on_attach(self)
            if refusal is not None:
                connection.sendall(encode(refusal))
                return
            vectors = self.vectors()
            self.buffer = SharedBuffer.create(message.numel, vectors)
            attached = Attached(
                message.numel,
                vectors,
                self.manifest,
                str(self.data_dir),
                self.checkpoint,
                "nd-test",
            )
            send_with_fd(connection, encode(attached), self.buffer.fd)
        elif isinstance(message, Ready):
            self._on_ready(self, message)
        elif isinstance(message, Contribute):
            self._on_contribute(self, message)
