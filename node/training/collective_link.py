"""The process's end of the collectives socket: requests out, answers in as they come.

Training is a loop in one thread, and an operation goes on while it computes, so one more thread reads answers and
wakes whoever waits for them; it holds no lock while it waits, and ends with the connection. Every method may be called from any
thread. After any failure the link is dead, and every request under way has failed with `DaemonLost`.

Shared memory is borrowed from the daemon and kept for the next request of its size: a training loop asks for the
same few sizes again and again.
"""

from __future__ import annotations

import itertools
import logging
import os
import queue
import socket
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Self

import attrs
import numpy as np
import numpy.typing as npt

import gossip.errors
from gossip.errors import CollectiveAborted, GossipError, InvalidOperation
from node.collective_messages import (
    MAX_ARENAS,
    MAX_REQUESTS,
    VERSION,
    Borrow,
    Cancel,
    CollectiveAnswer,
    CollectiveRequest,
    Done,
    Failed,
    Hello,
    Lent,
    Operate,
    Refused,
    Return,
    Synchronise,
    Vectors,
    Welcome,
    decode_answer,
    decode_request,
    encode,
)
from node.errors import DaemonNotRunning
from node.shared_buffer import BufferMismatch, SharedBuffer, recv_with_fd
from node.trainer_messages import HEADER_BYTES, FrameReader, TrainerProtocolError
from node.training.daemon_link import DaemonLost

__all__ = ["Arena", "CollectiveLink", "Pending"]

CONNECT_S: Final = 30.0
"""For a daemon to answer `Hello` and `Borrow`, which it does at once."""
GRAIN_WORDS: Final = 1 << 14
"""Arenas come in multiples of 64 KiB, so that nearly equal sizes share them."""
MAX_IDLE: Final = 8
"""Arenas kept for later; what is beyond goes back, the least recently used first."""

_log = logging.getLogger(__name__)

Bytes = npt.NDArray[np.uint8]


@attrs.define(eq=False)
class Arena:
    """Shared memory for one request at a time."""

    number: int
    words: int
    buffer: SharedBuffer

    @property
    def source(self) -> Bytes:
        """What the daemon reads."""
        return self.buffer.view("source").view(np.uint8)

    @property
    def out(self) -> Bytes:
        """What it writes."""
        return self.buffer.view("out").view(np.uint8)


class Pending:
    """A request under way."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._answer: Done | None = None
        self._error: Exception | None = None
        self._told: list[Callable[[], None]] = []
        self._lock = threading.Lock()

    @property
    def ended(self) -> bool:
        """Whether `result` returns or raises at once."""
        return self._ended.is_set()

    @property
    def failed(self) -> bool:
        """Whether it has ended without success."""
        return self._error is not None

    def result(self, timeout_s: float | None = None) -> Done:
        """Wait for the end.

        Raises:
            GossipError: how it ended otherwise (`gossip.errors`).
            DaemonLost: the connection ended first.
            TimeoutError: it did not end in time; the request goes on.
        """
        if not self._ended.wait(timeout_s):
            raise TimeoutError("the collective is still under way")
        if self._error is not None:
            raise self._error
        assert self._answer is not None
        return self._answer

    def when_ended(self, tell: Callable[[], None]) -> None:
        """Call `tell` once it has ended, in the reading thread, or here if it has already."""
        with self._lock:
            if not self._ended.is_set():
                self._told.append(tell)
                return
        tell()

    def end(self, answer: Done | Exception) -> None:
        """Of the link: this is how it ended."""
        with self._lock:
            if isinstance(answer, Done):
                self._answer = answer
            else:
                self._error = answer
            self._ended.set()
        for tell in self._told:
            try:
                tell()
            except Exception:  # noqa: BLE001 - it is the caller's, and must not end the thread that reads for all
                _log.exception("what was to be told of a collective's end failed")


class CollectiveLink:
    """A connection to the daemon's collectives; also a context manager that closes it."""

    def __init__(self, sock: socket.socket, *, run: str, alone: bool, model: bytes) -> None:
        """Take over a connected Unix stream socket and introduce this process; raises as `connect`."""
        self._socket = sock
        self._reader = FrameReader()
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._pending: dict[int, Pending] = {}
        self._lending: dict[int, tuple[threading.Event, list[Arena | Exception]]] = {}
        self._idle: deque[Arena] = deque()
        self._abandoned: queue.SimpleQueue[tuple[Pending, Arena]] = queue.SimpleQueue()
        self._lent = 0
        self._fds: deque[int] = deque()
        self._lost: DaemonLost | None = None
        sock.settimeout(CONNECT_S)
        self._send(Hello(VERSION, run, alone, model, os.getpid()))
        answer = self._next_answer()
        if isinstance(answer, Refused):
            raise DaemonLost(f"the daemon does not serve this process: {answer.reason}")
        if not isinstance(answer, Welcome):
            raise DaemonLost("the daemon did not answer the hello")
        self.node = answer.node
        """This node's id."""
        sock.settimeout(None)
        self._thread = threading.Thread(target=self._read, name="noded-collectives", daemon=True)
        self._thread.start()

    @classmethod
    def connect(cls, path: Path, *, run: str, alone: bool, model: bytes) -> CollectiveLink:
        """Connect to the socket at `path`.

        Raises:
            DaemonNotRunning: nothing answers there.
            DaemonLost: the daemon does not serve this process; the message says why.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        sock.settimeout(CONNECT_S)
        try:
            sock.connect(str(path))
        except OSError as error:
            sock.close()
            raise DaemonNotRunning(
                f"no daemon answers at {path}: {error.strerror or error}",
                hint="start it with `noded run`; it has this socket once it has found its run",
            ) from None
        try:
            return cls(sock, run=run, alone=alone, model=model)
        except BaseException:
            sock.close()
            raise

    # ---- requests ------------------------------------------------------------------------------

    def request(self, message: Operate | Synchronise) -> Pending:
        """Ask for something; raises InvalidOperation beyond MAX_REQUESTS, DaemonLost."""
        pending = Pending()
        with self._lock:
            if self._lost is not None:
                raise self._lost
            if len(self._pending) >= MAX_REQUESTS:
                raise InvalidOperation(
                    f"{MAX_REQUESTS} collectives are under way", hint="wait for one of them first"
                )
            self._pending[message.id] = pending
        try:
            self._send(message)
        except InvalidOperation:  # it does not fit into a frame, and was not sent
            with self._lock:
                del self._pending[message.id]
            raise
        return pending

    def number(self) -> int:
        """A new number for a request."""
        return next(self._numbers)

    def cancel(self, number: int) -> None:
        """Give a request up; it ends with CollectiveAborted, and so does the epoch that it ran in."""
        with self._lock:
            known = number in self._pending
        if known:
            self._send(Cancel(number))

    def borrow(self, size_bytes: int) -> Arena:
        """Shared memory with at least that many bytes in each vector; `give_back` it after the request.

        Raises:
            InvalidOperation: there is none.
            DaemonLost: the connection ended.
        """
        words = max(1, -(-size_bytes // (4 * GRAIN_WORDS))) * GRAIN_WORDS
        self._reclaim()
        with self._lock:
            if self._lost is not None:
                raise self._lost
            for arena in self._idle:
                if arena.words == words:
                    self._idle.remove(arena)
                    return arena
            if self._lent >= MAX_ARENAS and not self._idle:
                raise InvalidOperation("too many collectives hold shared memory")
            self._lent += 1
            number = next(self._numbers)
            event: threading.Event = threading.Event()
            box: list[Arena | Exception] = []
            self._lending[number] = (event, box)
        self._trim(MAX_IDLE)
        try:
            self._send(Borrow(number, words))
        except InvalidOperation:  # nobody can have so much
            with self._lock:
                del self._lending[number]
                self._lent -= 1
            raise
        if not event.wait(CONNECT_S):
            raise self._lose("it lends no memory")
        if isinstance(box[0], Exception):
            with self._lock:
                self._lent -= 1
            raise box[0]
        return box[0]

    def give_back(self, arena: Arena) -> None:
        """No request uses it any more; kept for the next one of its size."""
        with self._lock:
            if self._lost is not None:
                arena.buffer.close()
                return
            self._idle.append(arena)
        self._trim(MAX_IDLE)

    def abandon(self, pending: Pending, arena: Arena) -> None:
        """Nobody will ask how `pending` ended: its memory comes back once it has, unless it fails (who made the request sees to that).

        May be called while anything else here is: also from a destructor.
        """
        self._abandoned.put((pending, arena))

    def _reclaim(self) -> None:
        """Take back what was abandoned and is not used any more."""
        for _ in range(self._abandoned.qsize()):
            try:
                pending, arena = self._abandoned.get_nowait()
            except queue.Empty:
                return  # another thread was quicker
            if not pending.ended:
                self._abandoned.put((pending, arena))
            elif not pending.failed:
                self.give_back(arena)

    def _trim(self, most: int) -> None:
        while True:
            with self._lock:
                if len(self._idle) <= most or self._lost is not None:
                    return
                arena = self._idle.popleft()
                self._lent -= 1
            self._send(Return(arena.number))
            arena.buffer.close()

    def close(self) -> None:
        """End the connection; what is under way fails. Idempotent."""
        self._lose("this process has closed it")
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    # ---- the socket ----------------------------------------------------------------------------

    def _send(self, message: CollectiveRequest) -> None:
        try:
            frame = encode(message)
        except TrainerProtocolError as error:
            raise InvalidOperation(
                str(error), hint="declare fewer tensors with shorter names, or one flat one"
            ) from None
        except (TypeError, ValueError, OverflowError) as error:
            raise InvalidOperation(f"wrong argument: {error}") from None
        try:
            decode_request(frame[HEADER_BYTES:])  # the daemon would end the connection over it
        except TrainerProtocolError as error:
            what = str(error).removeprefix("not a message: ")
            raise InvalidOperation(f"wrong argument: {what}") from None
        try:
            with self._sending:
                self._socket.sendall(frame)
        except OSError as error:
            raise self._lose(error.strerror or str(error)) from None

    def _next_answer(self) -> CollectiveAnswer:
        """Wait for the next answer; raises DaemonLost."""
        try:
            while (body := self._reader.next_body()) is None:
                data, fds = recv_with_fd(self._socket, 65536)
                self._fds.extend(fds)
                if not data:
                    raise self._lose("it closed the connection")
                self._reader.feed(data)
            return decode_answer(body)
        except (OSError, TrainerProtocolError) as error:
            raise self._lose(str(error)) from None

    def _read(self) -> None:
        try:
            while True:
                self._take(self._next_answer())
        except DaemonLost:
            return
        except Exception as error:  # noqa: BLE001 - whoever waits must not wait for a dead thread
            self._lose(f"its answer cannot be taken: {error}")

    def _take(self, answer: CollectiveAnswer) -> None:
        match answer:
            case Lent(number, words):
                self._lent_out(number, self._attach(number, words))
            case Failed(number, name, message, hint):
                error = _error(name, message, hint)
                if not self._lent_out(number, error):
                    self._end(number, error)
            case Done(id=number):
                self._end(number, answer)
            case _:
                raise self._lose("it said something that was not asked for")

    def _attach(self, number: int, words: int) -> Arena | Exception:
        try:
            if not self._fds:
                raise OSError("no descriptor came with it: this process may have no more")
            return Arena(number, words, SharedBuffer.attach(self._fds.popleft(), words, Vectors))
        except (BufferMismatch, OSError) as error:
            self._send(Return(number))
            return InvalidOperation(f"no shared memory: {error}")

    def _lent_out(self, number: int, what: Arena | Exception) -> bool:
        with self._lock:
            waiting = self._lending.pop(number, None)
        if waiting is None:
            return False
        event, box = waiting
        box.append(what)
        event.set()
        return True

    def _end(self, number: int, answer: Done | Exception) -> None:
        with self._lock:
            pending = self._pending.pop(number, None)
        if pending is not None:
            pending.end(answer)

    def _lose(self, reason: str) -> DaemonLost:
        """The link is dead: tell everybody who waits; returns the error."""
        with self._lock:
            if self._lost is None:
                self._lost = DaemonLost(
                    f"the daemon is gone: {reason}",
                    hint="`noded status` says whether it is running",
                )
            lost = self._lost
            pending, self._pending = self._pending, {}
            lending, self._lending = self._lending, {}
            idle, self._idle = self._idle, deque()
            fds, self._fds = self._fds, deque()
        try:
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the reading thread
        except OSError:
            pass  # it was not connected any more
        self._socket.close()
        for one in pending.values():
            one.end(lost)
        for event, box in lending.values():
            box.append(lost)
            event.set()
        for arena in idle:
            arena.buffer.close()
        for fd in fds:
            os.close(fd)
        return lost


def _error(name: str, message: str, hint: str) -> GossipError:
    """The error of that name in `gossip.errors`; one that this version does not know is its nearest relative."""
    kind: Any = getattr(gossip.errors, name, None)
    if not (isinstance(kind, type) and issubclass(kind, GossipError)):
        kind = CollectiveAborted
    error: GossipError = kind(message, hint=hint)
    if error.hint:
        error.add_note(error.hint)  # a script shows it below its traceback
    return error
