"""The trainer's end of the trainer socket: messages in and out, blocking or polled.

Training is a plain loop in one thread, so this is plain blocking code: no event loop, no threads.
Between two steps `poll` looks for a message in about a microsecond; at the end of a round
`receive` waits for one. The wait ends with a message, with the daemon's end, or with `interrupt`,
which a signal handler may call.

Invariants: every send has a deadline (a stopped daemon must not hold the training loop for ever);
after any failure the link is dead and says `DaemonLost` again; descriptors that arrive are closed
unless somebody takes them.
"""

from __future__ import annotations

import os
import select
import socket
import time
from pathlib import Path
from typing import Final, Self

from node.errors import DaemonNotRunning, NodedError
from node.shared_buffer import recv_with_fd
from node.trainer_messages import (
    DaemonMessage,
    FrameReader,
    TrainerMessage,
    TrainerProtocolError,
    decode_daemon_message,
    encode,
)

__all__ = ["DaemonLink", "DaemonLost"]

SEND_TIMEOUT_S: Final = 30.0
"""A daemon that reads nothing for so long is as good as gone; its own watchdog is faster."""
_READ_BYTES: Final = 65536
_MAX_WAITING_FDS: Final = 4


class DaemonLost(NodedError):
    """The connection to the daemon ended."""


class DaemonLink:
    """A connection to the daemon; also a context manager that closes it."""

    def __init__(self, sock: socket.socket) -> None:
        """Take over a connected Unix stream socket."""
        sock.settimeout(SEND_TIMEOUT_S)
        self._socket = sock
        self._reader = FrameReader()
        self._fds: list[int] = []
        self._lost: DaemonLost | None = None
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll.register(self._wake_fd, select.POLLIN)

    @classmethod
    def connect(cls, path: Path) -> DaemonLink:
        """Connect to the trainer socket at `path`; raises `DaemonNotRunning`."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        sock.settimeout(SEND_TIMEOUT_S)
        try:
            sock.connect(str(path))
        except OSError as error:
            sock.close()
            raise DaemonNotRunning(
                f"no daemon answers at {path}: {error.strerror or error}",
                hint="start it with `noded run`, or point NODED_TRAINER_SOCKET at its socket; a daemon "
                "that runs has none until it has found its run: does some node say "
                "`create = true` in [run]?",
            ) from None
        return cls(sock)

    def send(self, message: TrainerMessage) -> None:
        """Send one message; raises `DaemonLost`."""
        if self._lost is not None:
            raise self._lost
        try:
            self._socket.sendall(encode(message))
        except OSError as error:
            raise self._lose(error.strerror or str(error)) from None

    def poll(self) -> DaemonMessage | None:
        """A message that has arrived, None if there is none; raises `DaemonLost`."""
        return self.receive(timeout_s=0.0)

    def receive(self, timeout_s: float | None = None) -> DaemonMessage | None:
        """Wait for a message; None after `timeout_s` seconds or `interrupt`.

        Raises:
            DaemonLost: the daemon closed the connection, or sent something that is no message.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            if self._lost is not None:
                raise self._lost
            try:
                body = self._reader.next_body()
                if body is not None:
                    return decode_daemon_message(body)
            except TrainerProtocolError as error:
                raise self._lose(str(error)) from error
            left_ms = None if deadline is None else max(deadline - time.monotonic(), 0.0) * 1000
            ready = {fd for fd, _ in self._poll.poll(left_ms)}
            if self._wake_fd in ready or not ready:
                return None
            self._read()

    def interrupt(self) -> None:
        """Make `receive` return None from now on; safe in a signal handler."""
        os.eventfd_write(self._wake_fd, 1)

    def take_fd(self) -> int | None:
        """The oldest descriptor that arrived; the caller owns it."""
        return self._fds.pop(0) if self._fds else None

    def close(self) -> None:
        """Close the connection; idempotent."""
        if self._lost is None:
            self._lost = DaemonLost("the connection to the daemon is closed")
        self._socket.close()
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
        if self._wake_fd >= 0:
            os.close(self._wake_fd)
            self._wake_fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def _read(self) -> None:
        try:
            data, fds = recv_with_fd(self._socket, _READ_BYTES)
        except OSError as error:
            raise self._lose(error.strerror or str(error)) from None
        self._fds += fds
        while len(self._fds) > _MAX_WAITING_FDS:
            os.close(self._fds.pop())
        if not data:
            raise self._lose("it closed the connection")
        self._reader.feed(data)

    def _lose(self, reason: str) -> DaemonLost:
        self._lost = DaemonLost(
            f"the daemon is gone: {reason}", hint="`noded status` says whether it is running"
        )
        return self._lost
