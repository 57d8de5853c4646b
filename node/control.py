"""The local control API: HTTP/1.1 over a Unix socket that only this node's owner can use.

Problem: the command line, health checks and scripts ask the daemon things and tell it to stop. Nobody
else may, and no asker, slow, broken or malicious, may disturb training.

Idea: h11 speaks HTTP and does no I/O; this module is its trio driver plus the guards. The handlers are
given by the daemon as a table, `(method, path) -> async function`, and deal in JSON values only. One
request for each connection: local connections cost nothing, and it keeps the state machine trivial.

Only the owner (or root) gets that far: see `node.private_socket`. A request that carries
an `Origin` comes from a web page by way of some proxy, and is refused.

Invariants:
- Bounded: connections, header bytes, body bytes, and time for each request; the slot is taken before
  accepting, so a flood waits in the kernel's queue.
- One guard for each connection: nothing a client does ends the server.
- A socket file left by a killed daemon is replaced; one that somebody answers on is not.
"""

from __future__ import annotations

import errno
import json
import logging
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, TypeAlias

import h11
import trio

from node import private_socket
from node.errors import ExitCode, exit_code_of, first_error, hint_of

__all__ = ["ControlServer", "Handler", "Handlers", "open_control"]

Handler: TypeAlias = Callable[[dict[str, Any] | None], Awaitable[tuple[int, dict[str, Any]]]]
"""Gets the request's JSON object (None without a body), gives the HTTP status and the answer."""
Handlers: TypeAlias = Mapping[tuple[str, str], Handler]

MAX_CONNECTIONS: Final = 32
"""Requests at once; the command line makes one at a time, a health check one every few seconds."""
MAX_HEADER_BYTES: Final = 16 * 1024
MAX_BODY_BYTES: Final = 64 * 1024
REQUEST_TIMEOUT_S: Final = 10.0
"""From accept to the whole request, and again for writing the answer."""
HANDLER_TIMEOUT_S: Final = 300.0
"""The longest a handler may take: `noded ping -c 100` against a peer that is slow to answer."""

_HTTP_STATUS: Final[Mapping[ExitCode, int]] = {
    ExitCode.USAGE: 400,
    ExitCode.NOT_READY: 503,
    ExitCode.TIMED_OUT: 504,
    ExitCode.PEER_UNREACHABLE: 404,
    ExitCode.BAD_CONFIG: 400,
    ExitCode.REFUSED: 403,
}

_log = logging.getLogger(__name__)


class ControlServer:
    """The running server.

    Attributes:
        path: the socket's path.
        counters: requests by outcome: "ok", "client-error", "server-error", "refused-uid",
            "bad-request", "timeout", "broken".
        active: connections being served now.
    """

    def __init__(self, path: Path, handlers: Handlers) -> None:
        self.path = path
        self.counters: Counter[str] = Counter()
        self._handlers = dict(handlers)
        self.active = 0
        self._slots = trio.Semaphore(MAX_CONNECTIONS)
        self._idle = trio.Event()
        self._idle.set()

    async def _accept(self, listener: trio.socket.SocketType, nursery: trio.Nursery) -> None:
        while True:
            await self._slots.acquire()
            try:
                connection, _ = await listener.accept()
            except OSError as error:
                self._slots.release()
                if error.errno == errno.EBADF:
                    raise  # the listener itself is gone: a bug, not a client
                # Out of file descriptors or memory: wait for some to come back, and say so once.
                _log.warning("cannot accept on the control socket: %s", error.strerror)
                await trio.sleep(1)
                continue
            except BaseException:
                self._slots.release()
                raise
            if self.active == 0:
                self._idle = trio.Event()
            self.active += 1
            nursery.start_soon(self._guard, connection)

    async def _drain(self) -> None:
        """Wait until nobody is being served."""
        await self._idle.wait()

    async def _guard(self, connection: trio.socket.SocketType) -> None:
        """Serve one connection; whatever goes wrong stays in here."""
        try:
            with connection:
                if not private_socket.is_owner(connection):
                    self.counters["refused-uid"] += 1
                    _log.warning("refused a control connection of another user")
                    return
                await self._serve(connection)
        except Exception as error:  # noqa: BLE001 (the guard: a client must not end the server)
            self.counters["broken"] += 1
            if not isinstance(error, OSError):
                _log.error("a control connection failed", exc_info=error)
        finally:
            self._slots.release()
            self.active -= 1
            if self.active == 0:
                self._idle.set()

    async def _serve(self, connection: trio.socket.SocketType) -> None:
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEADER_BYTES)
        status, answer = 408, _error_body("the request did not come in time", ExitCode.TIMED_OUT)
        handler: Handler | None = None
        body: dict[str, Any] | None = None
        seen: list[h11.Request] = []
        try:
            with trio.move_on_after(REQUEST_TIMEOUT_S):
                request, data = await _read_request(http, connection, seen)
                handler = self._route(request)
                body = _parse_body(data)
        except (h11.RemoteProtocolError, _BadRequest) as error:
            status = error.status if isinstance(error, _BadRequest) else error.error_status_hint
            hint = error.hint if isinstance(error, _BadRequest) else ""
            answer = _error_body(str(error), ExitCode.USAGE, hint)
            self.counters["bad-request"] += 1
            handler = None
        except _Disconnected:
            return
        else:
            if handler is None:
                self.counters["timeout"] += 1
        if handler is not None:
            status, answer = await _call(handler, body)
            outcome = "ok" if status < 400 else "client-error" if status < 500 else "server-error"
            self.counters[outcome] += 1
        with trio.move_on_after(REQUEST_TIMEOUT_S):
            head_only = bool(seen) and seen[0].method == b"HEAD"
            await _respond(http, connection, status, answer, head_only=head_only)
            if http.their_state is not h11.DONE:
                await _discard(connection)

    def _route(self, request: h11.Request) -> Handler:
        if any(name == b"origin" for name, _ in request.headers):
            raise _BadRequest(403, "requests from web pages are refused")
        method = request.method.decode("ascii", "replace")
        path = request.target.decode("ascii", "replace").partition("?")[0]
        handler = self._handlers.get((method, path))
        if handler is not None:
            return handler
        others = sorted(known for known, route in self._handlers if route == path)
        if others:
            raise _BadRequest(405, f"{path} answers to {', '.join(others)}")
        raise _BadRequest(
            404, f"there is no {path[:80]!r}", "the daemon may be older than this command"
        )


@asynccontextmanager
async def open_control(path: Path, handlers: Handlers) -> AsyncIterator[ControlServer]:
    """Serve the control API on the Unix socket `path` while the block runs.

    Requests can be made as soon as the block begins. Leaving it stops accepting, cancels the requests
    under way, and removes the socket file.

    Args:
        path: where the socket goes; its directory is made 0700 if need be.
        handlers: what answers which method and path. A handler that raises `NodedError` (or another
            room's error) is answered with that error's text, hint and exit code.

    Raises:
        Refused: another daemon answers on this socket, or the directory is not ours.
        NodedError: the socket cannot be made.
    """
    server = ControlServer(path, handlers)
    with (
        private_socket.bound(path, backlog=MAX_CONNECTIONS) as listener,
        trio.socket.from_stdlib_socket(listener) as sock,
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server._accept, sock, nursery)  # noqa: SLF001 (same module)
            try:
                yield server
            finally:
                # The reply to `noded stop` is still on its way when the daemon winds down.
                with trio.move_on_after(0.5, shield=True):
                    await server._drain()  # noqa: SLF001
                nursery.cancel_scope.cancel()


class _BadRequest(Exception):
    def __init__(self, status: int, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.hint = hint


class _Disconnected(Exception):
    """The client went away before it had asked anything."""


async def _read_request(
    http: h11.Connection, connection: trio.socket.SocketType, seen: list[h11.Request]
) -> tuple[h11.Request, bytes]:
    """Read one request; its head is added to `seen` as soon as it is there, for what is answered if the rest fails."""
    request: h11.Request | None = None
    body = bytearray()
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            if http.they_are_waiting_for_100_continue:
                continue_ = h11.InformationalResponse(status_code=100, headers=[])
                await _send_all(connection, http.send(continue_))
            data = await connection.recv(16 * 1024)
            if not data and request is None:
                raise _Disconnected
            http.receive_data(data)
        elif isinstance(event, h11.Request):
            request = event
            seen.append(event)
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > MAX_BODY_BYTES:
                raise _BadRequest(413, f"a request holds at most {MAX_BODY_BYTES} bytes")
        elif isinstance(event, h11.EndOfMessage):
            assert request is not None
            return request, bytes(body)
        else:
            raise _Disconnected


def _parse_body(data: bytes) -> dict[str, Any] | None:
    if not data:
        return None
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise _BadRequest(400, "the request's body is not JSON") from None
    if not isinstance(value, dict):
        raise _BadRequest(400, "the request's body is not a JSON object")
    return value


async def _call(handler: Handler, body: dict[str, Any] | None) -> tuple[int, dict[str, Any]]:
    try:
        with trio.fail_after(HANDLER_TIMEOUT_S):
            return await handler(body)
    except Exception as error:  # noqa: BLE001 (one place turns errors into answers)
        leaf = first_error(error)
        code = exit_code_of(error)
        if code is ExitCode.FAILED and not hasattr(leaf, "hint"):
            _log.error("a control request failed", exc_info=error)
            return 500, _error_body("internal error in the daemon", code, "see the daemon's log")
        text = str(leaf) or type(leaf).__name__
        return _HTTP_STATUS.get(code, 500), _error_body(text, code, hint_of(error))


async def _respond(
    http: h11.Connection,
    connection: trio.socket.SocketType,
    status: int,
    answer: dict[str, Any],
    *,
    head_only: bool,
) -> None:
    try:
        data = json.dumps(answer, allow_nan=False).encode("ascii")
    except ValueError:  # a loss of NaN or infinity: null is what JSON has for "no number"
        data = json.dumps(_without_nan(answer), allow_nan=False).encode("ascii")
    head = h11.Response(
        status_code=status,
        headers=[
            (b"content-type", b"application/json"),
            (b"content-length", str(len(data)).encode("ascii")),
            (b"cache-control", b"no-store"),
            (b"connection", b"close"),
        ],
    )
    if http.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
        return  # the client broke the protocol beyond an answer
    message = http.send(head)
    if not head_only:  # h11 refuses any body in the answer to HEAD
        message += http.send(h11.Data(data=data))
    await _send_all(connection, message + http.send(h11.EndOfMessage()))


async def _discard(connection: trio.socket.SocketType) -> None:
    """Read what a refused client is still sending: closing over it would destroy the answer."""
    connection.shutdown(socket.SHUT_WR)
    left = 16 * MAX_BODY_BYTES
    with trio.move_on_after(1.0):
        while left > 0 and (data := await connection.recv(MAX_BODY_BYTES)):
            left -= len(data)


async def _send_all(connection: trio.socket.SocketType, data: bytes) -> None:
    # This task is the connection's only writer, and it closes the connection if it is cancelled.
    with memoryview(data) as view:
        sent = 0
        while sent < len(view):
            sent += await connection.send(view[sent:])


def _error_body(message: str, code: ExitCode, hint: str = "") -> dict[str, Any]:
    return {"schema": "noded.error/1", "error": message, "hint": hint, "exit_code": int(code)}


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value
