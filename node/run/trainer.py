"""Trainers of one run: the socket they attach to, and the process the daemon keeps running.

Problem: training code may crash, hang in a C call, or be somebody's own script, and none of this
may take the node down or stay behind when the node goes.

Idea: one Unix socket takes any trainer, whether the daemon has started it or a user has. It says
`Attach`; this side checks version, run and model, makes the shared vectors, and hands their
descriptor over. If `trainer.auto` is set, a supervisor starts a fresh interpreter for the run's task
and starts it again, with growing pauses, when it dies.

Invariants: one trainer at a time; the socket is the owner's alone; a process the supervisor started
is in a session of its own, and is gone (SIGTERM, then SIGKILL to the group) when the daemon is.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final, Generic, TypeVar

import attrs
import trio

from node import private_socket
from node.errors import ExitCode, NodedError
from node.run.launch import WorkerOptions, worker_command, worker_environment
from node.run.manifest import RunManifest
from node.run.trainer_connection import Note, TrainerConnection
from node.shared_buffer import BufferMismatch, SharedBuffer, fd_ancillary
from node.trainer_messages import (
    VERSION,
    Attach,
    Attached,
    FrameReader,
    Stop,
    TrainerProtocolError,
    decode_trainer_message,
    encode,
)

ATTACH_S: Final = 10.0
"""From connection to a complete `Attach`."""
BACKLOG: Final = 8
MAX_CONNECTIONS: Final = 8
"""One trainer is served; the others are being refused, or say nothing for ATTACH_S."""
STOP_S: Final = 4.0
"""For the trainer to end by itself; then SIGTERM."""
TERMINATE_S: Final = 1.5
"""From SIGTERM to SIGKILL; a trainer in a C call does not hear the first."""
RESTART_S: Final = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Pauses before the first, second, ... restart in a row; the last one repeats."""
STEADY_S: Final = 120.0
"""A trainer that lived this long has its next restart counted from the first pause again."""
RECENT_S: Final = 600.0
MAX_RECENT_RESTARTS: Final = 64
"""More than the pauses allow in `RECENT_S` after the first few; bounds what is remembered."""
EXIT_USELESS: Final = int(ExitCode.BAD_CONFIG)
"""The worker's exit code for a wrong manifest, task or setting: starting it again cannot help."""

_log = logging.getLogger(__name__)

Link = TypeVar("Link", bound=TrainerConnection)


@attrs.define
class TrainerStatus:
    """For status output."""

    state: str = "none"
    """none, starting, running, restarting, attached or exited."""
    pid: int | None = None
    restarts: int = 0
    error: str = ""


class Trainers(Generic[Link]):
    """Accepts trainers of one run; made by `open_trainers`."""

    def __init__(
        self,
        manifest: RunManifest,
        *,
        vectors: tuple[str, ...],
        link: Callable[
            [trio.SocketStream, Attach, RunManifest, SharedBuffer, Callable[[Note], None]], Link
        ],
        node: str,
        checkpoints: Path,
        newest_checkpoint: Callable[[], str | None],
        on_note: Callable[[Note], None],
    ) -> None:
        self.status = TrainerStatus()
        self.current: Link | None = None
        self._manifest = manifest
        self._node = node
        self._checkpoints = checkpoints
        self._newest_checkpoint = newest_checkpoint
        self._on_note = on_note
        self._vectors, self._make_link = vectors, link
        self._attached, self._links = trio.open_memory_channel[Link](0)
        self._stopping = False
        self._attaching = False
        self._slots = trio.Semaphore(MAX_CONNECTIONS)
        self._restarted_at: deque[float] = deque(maxlen=MAX_RECENT_RESTARTS)
        self.process_pid: int | None = None
        """The process this side has started and has to end; never a number that a trainer told."""
        self.useless = trio.Event()
        """Set when the supervised trainer cannot work with this configuration."""

    def recent_restarts(self) -> int:
        """Restarts in the last `RECENT_S` seconds."""
        since = trio.current_time() - RECENT_S
        return sum(at >= since for at in self._restarted_at)

    async def next_link(self) -> Link:
        """Wait for the next trainer to attach."""
        return await self._links.receive()

    async def serve(self, listener: trio.SocketListener) -> None:
        """Accept trainers; one guard per connection."""
        async with trio.open_nursery() as nursery:
            while True:
                await self._slots.acquire()
                try:
                    stream = await listener.accept()
                except OSError as error:
                    self._slots.release()
                    _log.warning("cannot accept a trainer: %s", error.strerror)
                    await trio.sleep(1)
                    continue
                nursery.start_soon(self._guard, stream)

    async def _guard(self, stream: trio.SocketStream) -> None:
        try:
            async with stream:
                await self._attach(stream)
        except (TrainerProtocolError, NodedError, OSError, trio.BrokenResourceError) as error:
            _log.warning("a trainer was turned away: %s", error)
        except Exception:  # noqa: BLE001 - the guard: one trainer must not end the others' socket
            _log.exception("the connection of a trainer failed")
        finally:
            self._slots.release()

    async def _attach(self, stream: trio.SocketStream) -> None:
        if not private_socket.is_owner(stream.socket):
            raise NodedError("another user tried to attach a trainer")
        with trio.move_on_after(ATTACH_S) as patience:
            attach = await _receive_attach(stream)
            refusal = self._refusal(attach)
            if refusal:
                await stream.send_all(encode(Stop(refusal)))
                raise NodedError(refusal)
            try:
                self.current = link = await self._hand_over(stream, attach)
            finally:
                self._attaching = False
        if patience.cancelled_caught:
            raise NodedError(f"no complete Attach within {ATTACH_S:.0f} s")
        self.status.state = "running" if attach.supervised else "attached"
        self.status.pid = attach.pid
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._offer, link)
            await self._live(link)
            nursery.cancel_scope.cancel()

    async def _live(self, link: Link) -> None:
        try:
            await link.run()
        finally:
            if self.current is link:
                self.current = None
            if link.error:
                self.status.error = link.error
            if link.finished or self._stopping:
                self.status.state = "exited"
            elif self.process_pid is None:
                self.status.state = "none"  # a script of the user's: it may come back, or not
                self.status.pid = None
            else:
                self.status.state = "restarting"

    async def _offer(self, link: Link) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self._attached.send(link)

    def _refusal(self, attach: Attach) -> str:
        if attach.version != VERSION:
            return f"trainer speaks version {attach.version}, this daemon {VERSION}: reinstall both"
        if attach.run != self._manifest.name:
            return f"this node takes part in run {self._manifest.name!r}, not {attach.run!r}"
        if attach.protocol not in {None, self._manifest.protocol}:
            return f"the run uses protocol {self._manifest.protocol!r}, not {attach.protocol!r}"
        if self.current is not None or self._attaching:
            return "another trainer is attached"
        self._attaching = True  # until `current` is set: two that come together are not both taken
        return ""

    async def _hand_over(self, stream: trio.SocketStream, attach: Attach) -> Link:
        try:
            buffer = SharedBuffer.create(attach.numel, self._vectors)
        except (BufferMismatch, OSError) as error:
            await stream.send_all(encode(Stop(f"no shared memory: {error}"[:1000])))
            raise
        frame = encode(
            Attached(
                attach.numel,
                self._vectors,
                self._manifest,
                str(self._checkpoints),
                self._newest_checkpoint(),
                self._node,
            )
        )
        # The descriptor rides on the first bytes; a frame of this size fits the socket's buffer.
        sent = await stream.socket.sendmsg([frame], fd_ancillary(buffer.fd))
        if sent < len(frame):
            await stream.send_all(frame[sent:])
        return self._make_link(stream, attach, self._manifest, buffer, self._on_note)

    async def stop(self, reason: str) -> None:
        """Ask the trainer to save and end, and wait for it; at most STOP_S."""
        self._stopping = True
        if self.current is not None:
            self.current.stop(reason, save=True)
            with trio.move_on_after(STOP_S):
                await self.current.gone.wait()

    # ---- supervision -----------------------------------------------------------------------------

    async def supervise(self, options: WorkerOptions, log_file: Path) -> None:
        """Keep a trainer process running until it has finished its work."""
        failures = 0
        while True:
            self.status.state = "starting"
            started = trio.current_time()
            code = await self._run_once(options, log_file)
            if code == 0 or self._stopping:
                self.status.state = "exited"
                return
            if code == EXIT_USELESS:
                self.status.state = "exited"
                self.status.error = _tail(log_file) or "the trainer cannot use this configuration"
                _log.error("the trainer cannot work: %s", self.status.error)
                self.useless.set()
                return
            if trio.current_time() - started > STEADY_S:
                failures = 0
            pause = RESTART_S[min(failures, len(RESTART_S) - 1)]
            failures += 1
            self.status.restarts += 1
            self._restarted_at.append(trio.current_time())
            self.status.state = "restarting"
            self.status.error = f"the trainer ended with {_exit_text(code)}"
            _log.warning("%s; starting it again in %.1f s", self.status.error, pause)
            await trio.sleep(pause)

    async def _run_once(self, options: WorkerOptions, log_file: Path) -> int:
        try:
            with log_file.open("ab") as log:
                process = await trio.lowlevel.open_process(
                    worker_command(options),
                    env=worker_environment(os.environ, options),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        except OSError as error:
            # Out of descriptors or memory, a full disk: these pass, and the daemon need not.
            _log.warning("cannot start the trainer: %s", error.strerror or error)
            return int(ExitCode.FAILED)
        self.status.pid = self.process_pid = process.pid
        try:
            return await process.wait()
        finally:
            self._stopping = self._stopping or process.returncode is None
            with trio.CancelScope(shield=True):
                await self._end(process)
            self.status.pid = self.process_pid = None

    async def _end(self, process: trio.Process) -> None:
        """SIGTERM, and after TERMINATE_S SIGKILL; then the kernel's time to reap."""
        if process.returncode is None:
            for number in (signal.SIGTERM, signal.SIGKILL):
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
                with trio.move_on_after(TERMINATE_S):
                    await process.wait()
                    break
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # whatever it has started and left


async def _receive_attach(stream: trio.SocketStream) -> Attach:
    reader = FrameReader()
    while (body := reader.next_body()) is None:
        data = await stream.receive_some(4096)
        if not data:
            raise TrainerProtocolError("closed before it attached")
        reader.feed(bytes(data))
    message = decode_trainer_message(body)
    if not isinstance(message, Attach) or reader.pending_bytes:
        raise TrainerProtocolError("the first message must be Attach, alone")
    return message


def _exit_text(code: int) -> str:
    if code < 0:
        with suppress(ValueError):
            return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"


def _tail(log_file: Path, lines: int = 3) -> str:
    try:
        with log_file.open("rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - 4096))
            text = log.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return " | ".join(text.strip().splitlines()[-lines:])


@asynccontextmanager
async def open_trainers(
    manifest: RunManifest,
    socket_path: Path,
    *,
    vectors: tuple[str, ...],
    link: Callable[
        [trio.SocketStream, Attach, RunManifest, SharedBuffer, Callable[[Note], None]], Link
    ],
    node: str,
    checkpoints: Path,
    newest_checkpoint: Callable[[], str | None],
    on_note: Callable[[Note], None],
    supervised: WorkerOptions | None,
    log_file: Path,
) -> AsyncIterator[Trainers[Link]]:
    """Take trainers of `manifest`'s run on `socket_path`; start one if `supervised` is given.

    `vectors` are shared with each of them, and `link` makes what its connection is seen as: it depends on the run's protocol.

    Leaving the context ends the supervised process within about three seconds; `Trainers.stop`
    before that lets it save first.

    Raises:
        Refused: another daemon serves this socket.
    """
    trainers = Trainers(
        manifest,
        vectors=vectors,
        link=link,
        node=node,
        checkpoints=checkpoints,
        newest_checkpoint=newest_checkpoint,
        on_note=on_note,
    )
    with private_socket.bound(socket_path, backlog=BACKLOG) as sock:
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        async with trio.open_nursery() as sockets:
            sockets.start_soon(trainers.serve, listener)
            async with trio.open_nursery() as processes:
                if supervised is not None:
                    processes.start_soon(trainers.supervise, supervised, log_file)
                try:
                    yield trainers
                finally:
                    processes.cancel_scope.cancel()
            sockets.cancel_scope.cancel()
