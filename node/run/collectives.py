"""Collectives for a training process: what it asks for over its own socket, carried out by the run's group (trio driver).

One process at a time is served. Its requests run at once, each with its deadline; when it goes, what it had under way is given up.
Lane 0 is the rounds' and not to be had here. A process that says that it is *alone* (no trainer attached) makes the node
ready for the run's epochs at a position that never moves; otherwise readiness is the rounds' affair.

The memory is made here and sealed, so a process can neither shrink it under the daemon's feet nor name one that it
has not been lent; what lies in it is looked at only between a request and its answer.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import attrs
import numpy as np
import numpy.typing as npt
import trio

from gossip.collective.call import Call, Kind, Reduce
from gossip.collective.elements import BFLOAT16, FLOATS, INTEGERS
from gossip.collective.group import Group, Handle, Job
from gossip.collective.state.state_sync import StateSync, open_state_sync
from gossip.errors import CollectiveAborted, GossipError, InvalidOperation
from node import private_socket
from node.collective_messages import (
    MAX_ARENAS,
    MAX_REQUESTS,
    SOCKET_NAME,
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
    Tensor,
    Vectors,
    Welcome,
    decode_request,
    encode,
)
from node.shared_buffer import BufferMismatch, SharedBuffer, fd_ancillary
from node.trainer_messages import FrameReader, TrainerProtocolError
from transport.endpoint import Endpoint
from transport.identity import NodeId

__all__ = ["open_collectives"]

BACKLOG: Final = 4
HELLO_S: Final = 10.0
"""From connection to a complete `Hello`."""
READ_BYTES: Final = 65536
QUEUE_ANSWERS: Final = MAX_REQUESTS + MAX_ARENAS + 2
WORD_BYTES: Final = 4
OTHER_TYPES: Final = frozenset({"bool", "uint8", "int16"})
"""Of declared state, which is compared and not added."""

_log = logging.getLogger(__name__)

Array = npt.NDArray[Any]


@attrs.define
class _Arena:
    buffer: SharedBuffer
    busy: bool = False

    def view(self, name: str, dtype: str, count: int, at: int = 0) -> Array:
        """`count` values from byte `at` of one of the vectors; raises InvalidOperation."""
        if dtype not in FLOATS | INTEGERS | OTHER_TYPES:
            raise InvalidOperation(f"values of type {dtype} cannot be taken")
        type_ = BFLOAT16 if dtype == "bfloat16" else np.dtype(dtype)
        raw = self.buffer.view(name).view(np.uint8)
        end = at + count * type_.itemsize
        if end > raw.nbytes or at % type_.itemsize:
            raise InvalidOperation(f"{count} values of type {dtype} do not fit into the arena")
        return raw[at:end].view(type_)

    def tensor(self, tensor: Tensor) -> Array:
        """One of the declared state, in the source; raises InvalidOperation."""
        flat = self.view("source", tensor.dtype, math.prod(tensor.shape), tensor.at)
        try:
            return flat.reshape(tensor.shape)
        except ValueError as error:  # an empty one of more values a side than there can be
            raise InvalidOperation(f"tensor {tensor.name!r}: {error}") from None


class _Client:
    """One connected process."""

    def __init__(
        self, stream: trio.SocketStream, group: Group, sync: StateSync, nursery: trio.Nursery
    ) -> None:
        self._stream = stream
        self._group = group
        self._sync = sync
        self._nursery = nursery
        self._arenas: dict[int, _Arena] = {}
        self._requests: dict[int, Callable[[], None]] = {}  # how each is given up
        self._answers, self._to_send = trio.open_memory_channel[tuple[bytes, int | None]](
            QUEUE_ANSWERS
        )

    async def write(self) -> None:
        """Send what is answered, until cancelled."""
        async for frame, fd in self._to_send:
            sent = 0
            if fd is not None:
                sent = await self._stream.socket.sendmsg([frame], fd_ancillary(fd))
            if sent < len(frame):
                await self._stream.send_all(frame[sent:])

    def answer(self, message: CollectiveAnswer, fd: int | None = None) -> None:
        """Queue an answer; there is room for one to everything that may be under way."""
        try:
            self._answers.send_nowait((encode(message), fd))
        except trio.WouldBlock:
            raise TrainerProtocolError("does not read its answers") from None

    def take(self, request: CollectiveRequest) -> None:
        """Begin with a request; raises `TrainerProtocolError` for one that breaks the rules."""
        match request:
            case Borrow(number, words):
                self._lend(number, words)
            case Return(number):
                held = self._arenas.get(number)
                if held is None or held.busy:
                    raise TrainerProtocolError("returned an arena that it does not hold, or uses")
                del self._arenas[number]
                held.buffer.close()
            case Cancel(number):
                if number in self._requests:
                    self._requests[number]()
            case Operate() | Synchronise():
                arena = self._arenas.get(request.arena)
                if arena is None or arena.busy or request.id in self._requests:
                    raise TrainerProtocolError("asks with an arena or a number that is in use")
                if len(self._requests) >= MAX_REQUESTS:
                    raise TrainerProtocolError(f"asks for more than {MAX_REQUESTS} at once")
                arena.busy = True
                self._begin(request, arena)
            case _:
                raise TrainerProtocolError("said hello twice")

    def _lend(self, number: int, words: int) -> None:
        if number in self._arenas or len(self._arenas) >= MAX_ARENAS:
            raise TrainerProtocolError(f"borrows more than {MAX_ARENAS} arenas, or one twice")
        try:
            buffer = SharedBuffer.create(words, Vectors)
        except (BufferMismatch, OSError) as error:
            self.answer(Failed(number, "InvalidOperation", f"no shared memory: {error}"[:2048]))
            return
        self._arenas[number] = _Arena(buffer)
        self.answer(Lent(number, words), buffer.fd)

    def _begin(self, request: Operate | Synchronise, arena: _Arena) -> None:
        """Start a request.

        An operation takes its place in the line of its tag here and not in a task of its own: tasks that start together
        run in any order, and the order of requests is what members have in common.
        """
        if isinstance(request, Operate):
            try:
                handle = self._group.start(self._job(request, arena))
            except GossipError as error:
                arena.busy = False
                self.answer(_failed(request.id, error))
                return
            self._requests[request.id] = handle.cancel
            self._nursery.start_soon(
                self._carry_out, request.id, arena, self._reduce, request.id, handle
            )
        else:
            scope = trio.CancelScope()

            def give_up() -> None:
                if request.sole:
                    self._group.release_sole()
                scope.cancel()

            self._requests[request.id] = give_up
            self._nursery.start_soon(
                self._carry_out, request.id, arena, self._synchronise, request, arena, scope
            )

    async def _carry_out(
        self, number: int, arena: _Arena, work: Callable[..., Awaitable[Done]], *args: Any
    ) -> None:
        try:
            answer: CollectiveAnswer = await work(*args)
        except GossipError as error:
            answer = _failed(number, error)
        arena.busy = False
        del self._requests[number]
        self.answer(answer)

    def _job(self, request: Operate, arena: _Arena) -> Job:
        """What is asked for; raises InvalidOperation."""
        try:
            kind, reduce = Kind(request.kind), Reduce(request.reduce)
        except ValueError as error:
            raise InvalidOperation(str(error)) from None
        source = arena.view("source", request.dtype, request.count)
        out = arena.buffer.view("out").view(np.uint8)
        out = out[: out.nbytes - out.nbytes % source.itemsize].view(source.dtype)
        if kind in {Kind.ALL_REDUCE, Kind.BROADCAST, Kind.BARRIER}:
            out = out[: request.count]
        root = None if request.root is None else NodeId(request.root)
        call = Call(kind, reduce, request.weight, root, request.wire, request.algorithm)
        return Job(
            call.bind(b"noded process\0" + request.label.encode(), source),
            source,
            out,
            request.tag,
            _deadline(request.timeout_s),
            request.within,
            request.sole,
        )

    @staticmethod
    async def _reduce(number: int, handle: Handle) -> Done:
        try:
            reduced = await handle.wait()
        finally:
            handle.cancel()  # the process has gone: nobody wants it any more
        return Done(
            number,
            reduced.epoch.id,
            tuple(map(bytes, reduced.epoch.members)),
            reduced.weight,
            reduced.length,
            reduced.algorithm,
            reduced.seconds,
        )

    async def _synchronise(
        self, request: Synchronise, arena: _Arena, scope: trio.CancelScope
    ) -> Done:
        began = trio.current_time()
        tensors = {tensor.name: arena.tensor(tensor) for tensor in request.tensors}
        with scope:
            synced = await self._sync.sync(
                tensors,
                revision=request.revision,
                label=request.label,
                deadline=_deadline(request.timeout_s),
                sole=request.sole,
            )
        if scope.cancelled_caught:
            raise CollectiveAborted("given up")
        return Done(
            request.id,
            synced.epoch.id,
            tuple(map(bytes, synced.epoch.members)),
            float(len(synced.holders)),
            0,
            "blocks",
            trio.current_time() - began,
            synced.fetched_blocks,
        )

    def close(self) -> None:
        """Unmap what was lent; the process keeps its own mapping."""
        for arena in self._arenas.values():
            arena.buffer.close()
        self._arenas.clear()


def _failed(number: int, error: GossipError) -> Failed:
    return Failed(number, type(error).__name__, str(error)[:2048], error.hint[:1024])


def _deadline(timeout_s: float | None) -> float:
    return math.inf if timeout_s is None else trio.current_time() + timeout_s


@attrs.define
class _Door:
    """Lets one process in at a time."""

    node: NodeId
    run: str
    group: Group
    sync: StateSync
    trainer_attached: Callable[[], bool]
    taken: bool = False

    async def serve(self, stream: trio.SocketStream) -> None:
        """One connection, from its hello to its end."""
        try:
            async with stream:
                await self._serve(stream)
        except* (TrainerProtocolError, trio.BrokenResourceError, OSError) as group:
            _log.warning(
                "a process that asked for collectives was cut off: %s", group.exceptions[0]
            )

    async def _serve(self, stream: trio.SocketStream) -> None:
        if not private_socket.is_owner(stream.socket):
            return
        reader, hello = FrameReader(), None
        with trio.move_on_after(HELLO_S):
            hello = await _next_request(stream, reader)
        refusal = self._refusal(hello)
        if refusal:
            await stream.send_all(encode(Refused(refusal)))
            return
        assert isinstance(hello, Hello)
        self.taken = True
        try:
            if hello.alone:
                self._stand(hello.model)
            await self._attend(stream, reader)
        finally:
            self.taken = False
            if hello.alone and not self.trainer_attached():
                self.group.set_not_ready("the process that it took part for has ended")

    def _refusal(self, hello: CollectiveRequest | None) -> str:
        if not isinstance(hello, Hello):
            return "the first message must be Hello"
        if hello.version != VERSION:
            return f"process speaks version {hello.version}, this daemon {VERSION}: reinstall both"
        if hello.run != self.run:
            return f"this node takes part in run {self.run!r}, not {hello.run!r}"
        if self.taken:
            return "another process is served"
        if hello.alone and self.trainer_attached():
            return "a trainer is attached: collectives beside it are asked for with alone=False"
        return ""

    def _stand(self, model: bytes) -> None:
        """Ready for epochs, at a position that no operation of these moves."""
        self.group.machine.model = model
        self.group.set_position(0, hashlib.sha256(b"noded collectives v1\0" + model).digest())

    async def _attend(self, stream: trio.SocketStream, reader: FrameReader) -> None:
        async with trio.open_nursery() as nursery:
            client = _Client(stream, self.group, self.sync, nursery)
            try:
                nursery.start_soon(client.write)
                client.answer(Welcome(bytes(self.node)))
                while (request := await _next_request(stream, reader)) is not None:
                    client.take(request)
                nursery.cancel_scope.cancel()
            finally:
                client.close()


async def _next_request(stream: trio.SocketStream, reader: FrameReader) -> CollectiveRequest | None:
    """The next message; None at the end of the stream."""
    while (body := reader.next_body()) is None:
        data = await stream.receive_some(READ_BYTES)
        if not data:
            return None
        reader.feed(bytes(data))
    return decode_request(body)


@asynccontextmanager
async def open_collectives(
    endpoint: Endpoint,
    group: Group,
    *,
    run: str,
    trainer_socket: Path,
    random_bytes: Callable[[int], bytes],
    trainer_attached: Callable[[], bool],
) -> AsyncIterator[None]:
    """Serve a process of this machine's owner at the socket beside `trainer_socket`.

    Leaving the context cuts it off.

    Raises:
        Refused: another daemon serves this socket.
    """
    async with open_state_sync(endpoint, group, random_bytes) as sync:
        door = _Door(endpoint.node_id, run, group, sync, trainer_attached)
        with private_socket.bound(trainer_socket.with_name(SOCKET_NAME), backlog=BACKLOG) as sock:
            listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.serve_listeners, door.serve, [listener])
                yield
                nursery.cancel_scope.cancel()
