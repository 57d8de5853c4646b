"""The control socket: only its owner, bounded, and one broken client never disturbs another."""

import json
import os
import socket
import stat
from pathlib import Path

import pytest
import trio

from node import control, private_socket
from node.cli.client import Client
from node.control import MAX_CONNECTIONS, MAX_HEADER_BYTES, open_control
from node.errors import (
    DaemonNotRunning,
    ExitCode,
    NodedError,
    NotReady,
    Refused,
    TimedOut,
    exit_code_of,
)
from transport.errors import PeerUnreachable


async def ok(body):
    return 200, {"echo": body}


HANDLERS = {("GET", "/v1/status"): ok, ("POST", "/v1/echo"): ok}


async def call(path: Path, method: str, route: str, body=None, *, timeout_s: float = 10.0):
    client = Client(path, timeout_s=timeout_s)
    return await trio.to_thread.run_sync(lambda: client.call(method, route, body))


async def raw(path: Path, data: bytes, *, eof: bool = False) -> bytes:
    """What the server answers to these bytes."""
    async with await trio.open_unix_socket(str(path)) as stream:
        try:
            await stream.send_all(data)
            if eof:
                await stream.send_eof()
            return b"".join([chunk async for chunk in stream])
        except trio.BrokenResourceError:
            return b""


async def test_requests_are_answered_with_json(tmp_path):
    async with open_control(tmp_path / "c.sock", HANDLERS) as server:
        assert await call(server.path, "GET", "/v1/status") == {"echo": None}
        assert await call(server.path, "GET", "/v1/status?x=1") == {"echo": None}
        assert await call(server.path, "POST", "/v1/echo", {"a": [1, "ä"]}) == {
            "echo": {"a": [1, "ä"]}
        }
        assert server.counters == {"ok": 3}
    assert not (tmp_path / "c.sock").exists()


@pytest.mark.parametrize("umask", [0, 0o777])
async def test_the_socket_is_0600_in_a_0700_directory_whatever_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        async with open_control(tmp_path / "d" / "c.sock", HANDLERS) as server:
            assert stat.S_IMODE(server.path.stat().st_mode) == 0o600
            assert stat.S_IMODE(server.path.parent.stat().st_mode) == 0o700
    finally:
        os.umask(before)


async def test_another_user_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(private_socket, "is_owner", lambda _: False)
    async with open_control(tmp_path / "c.sock", HANDLERS) as server:
        assert await raw(server.path, b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n") == b""
        assert server.counters["refused-uid"] == 1


async def test_the_callers_user_is_the_kernels_word(tmp_path, monkeypatch):
    async with open_control(tmp_path / "c.sock", HANDLERS) as server:
        me = os.geteuid()
        assert await call(server.path, "GET", "/v1/status") == {"echo": None}
        # If the daemon were somebody else's, this user (unless it is root) would not get in.
        monkeypatch.setattr(private_socket.os, "geteuid", lambda: me + 1)
        monkeypatch.setattr(private_socket, "_PEERCRED", FakeCredentials(me or 4242))
        with pytest.raises(NodedError):
            await call(server.path, "GET", "/v1/status")
        monkeypatch.setattr(private_socket, "_PEERCRED", FakeCredentials(0))
        assert await call(server.path, "GET", "/v1/status") == {"echo": None}


class FakeCredentials:
    """Stands in for the struct of SO_PEERCRED, with another user in it."""

    size = 12

    def __init__(self, uid: int) -> None:
        self.uid = uid

    def unpack(self, data: bytes) -> tuple[int, int, int]:
        assert len(data) == 12
        return 1, self.uid, 0


async def test_a_stale_socket_is_replaced_and_a_living_one_is_not(tmp_path):
    path = tmp_path / "c.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with open_control(path, HANDLERS):
        with pytest.raises(Refused, match="another daemon") as caught:
            async with open_control(path, HANDLERS):
                pass
        assert "noded stop" in caught.value.hint
        assert await call(path, "GET", "/v1/status") == {"echo": None}


async def test_a_file_in_the_way_is_not_removed(tmp_path):
    path = tmp_path / "c.sock"
    path.write_text("precious")
    with pytest.raises(Refused, match="not a socket"):
        async with open_control(path, HANDLERS):
            pass
    assert path.read_text() == "precious"


async def test_a_successors_socket_is_not_removed(tmp_path):
    path = tmp_path / "c.sock"
    async with open_control(path, HANDLERS):
        path.unlink()
        path.write_text("somebody else's")
    assert path.read_text() == "somebody else's"


async def test_a_path_that_is_too_long_is_one_clear_error(tmp_path):
    with pytest.raises(NodedError, match="too long"):
        async with open_control(tmp_path / ("d" * 120) / "c.sock", HANDLERS):
            pass


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (NodedError("told", hint="do this"), 500, 1),
        (NotReady("told"), 503, 4),
        (PeerUnreachable("told"), 404, 6),
        (TimedOut("told"), 504, 5),
        (Refused("told"), 403, 8),
        (ExceptionGroup("g", [PeerUnreachable("told")]), 404, 6),
    ],
)
async def test_errors_travel_with_hint_and_exit_code(tmp_path, error, status, code):
    async def fail(_body):
        raise error

    async with open_control(tmp_path / "c.sock", {("GET", "/x"): fail}) as server:
        with pytest.raises(NodedError, match="told") as caught:
            await call(server.path, "GET", "/x")
        assert caught.value.exit_code == code == exit_code_of(caught.value)
        answer = await raw(server.path, b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 %d " % status)


async def test_a_bug_in_a_handler_is_answered_logged_and_survived(tmp_path, caplog):
    async def bug(_body):
        raise ZeroDivisionError("secret detail")

    async with open_control(tmp_path / "c.sock", {**HANDLERS, ("GET", "/bug"): bug}) as server:
        with pytest.raises(NodedError, match="internal error") as caught:
            await call(server.path, "GET", "/bug")
        assert caught.value.exit_code is ExitCode.FAILED
        assert "secret detail" not in str(caught.value)
        assert await call(server.path, "GET", "/v1/status") == {"echo": None}
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"DELETE /v1/status HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        (b"GET /v1/status HTTP/1.1\r\nHost: x\r\nOrigin: http://evil\r\n\r\n", 403),
        (b"POST /v1/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", 400),
        (b"POST /v1/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n[]", 400),
        (b"POST /v1/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\n\r\n" + b"x" * 99999, 413),
        (b"\x00\xff garbage\r\n\r\n", 400),
        (b"GET /v1/status HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * (MAX_HEADER_BYTES + 10), 431),
    ],
)
async def test_bad_requests_get_their_status_and_nothing_else(tmp_path, request_, status):
    async with open_control(tmp_path / "c.sock", HANDLERS) as server:
        answer = await raw(server.path, request_)
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        body = json.loads(answer.partition(b"\r\n\r\n")[2])
        assert body["schema"] == "noded.error/1"
        assert body["exit_code"] == 2
        assert await call(server.path, "GET", "/v1/status") == {"echo": None}


async def test_clients_that_leave_or_reset_are_survived(tmp_path):
    async with open_control(tmp_path / "c.sock", HANDLERS) as server:
        for data in (
            b"",
            b"GET /v1/st",
            b"POST /v1/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n",
        ):
            await raw(server.path, data, eof=True)
            stream = await trio.open_unix_socket(str(server.path))
            await stream.send_all(data or b"G")
            await stream.aclose()
        assert await call(server.path, "GET", "/v1/status") == {"echo": None}


async def test_a_slow_client_is_told_so_and_its_place_is_given_back(tmp_path, monkeypatch):
    monkeypatch.setattr(control, "REQUEST_TIMEOUT_S", 0.05)
    async with open_control(tmp_path / "c.sock", HANDLERS) as server:
        answer = await raw(server.path, b"GET /v1/status HTTP/1.1\r\n")
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert server.counters["timeout"] == 1
        await server._drain()
        assert server.active == 0


async def test_idle_connections_cannot_lock_the_owner_out(tmp_path, monkeypatch):
    monkeypatch.setattr(control, "REQUEST_TIMEOUT_S", 0.1)
    async with open_control(tmp_path / "c.sock", HANDLERS) as server:
        streams = [
            await trio.open_unix_socket(str(server.path)) for _ in range(MAX_CONNECTIONS + 8)
        ]
        assert await call(server.path, "GET", "/v1/status") == {"echo": None}
        assert server.active <= MAX_CONNECTIONS
        for stream in streams:
            await stream.aclose()


async def test_numbers_that_json_lacks_become_null(tmp_path):
    async def nan(_body):
        return 200, {"loss": float("nan"), "list": [float("inf"), 1.5]}

    async with open_control(tmp_path / "c.sock", {("GET", "/x"): nan}) as server:
        assert await call(server.path, "GET", "/x") == {"loss": None, "list": [None, 1.5]}


async def test_the_answer_to_stop_arrives_although_the_daemon_ends(tmp_path):
    stopping = trio.Event()

    async def stop(_body):
        stopping.set()
        return 200, {"stopping": True}

    async with trio.open_nursery() as nursery:
        answers = []

        async def ask():
            await opened.wait()
            answers.append(await call(tmp_path / "c.sock", "POST", "/v1/stop", {}))

        opened = trio.Event()
        nursery.start_soon(ask)
        async with open_control(tmp_path / "c.sock", {("POST", "/v1/stop"): stop}):
            opened.set()
            await stopping.wait()
    assert answers == [{"stopping": True}]


async def test_leaving_the_block_ends_a_request_under_way(tmp_path):
    begun = trio.Event()

    async def forever(_body):
        begun.set()
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        with trio.fail_after(5):
            async with open_control(tmp_path / "c.sock", {("GET", "/x"): forever}) as server:
                nursery.start_soon(raw, server.path, b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n")
                await begun.wait()


async def test_the_client_tells_off_from_slow_from_nonsense(tmp_path):
    path = tmp_path / "c.sock"
    with pytest.raises(DaemonNotRunning, match="no socket at"):
        await call(path, "GET", "/x")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        with pytest.raises(DaemonNotRunning, match="nobody answers"):
            await call(path, "GET", "/x")
        listener.listen()
        with pytest.raises(TimedOut):
            await call(path, "GET", "/x", timeout_s=0.05)

    async def nonsense(stream):
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc")

    path.unlink()
    listener = trio.socket.socket(trio.socket.AF_UNIX)
    await listener.bind(str(path))
    listener.listen()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, nonsense, [trio.SocketListener(listener)])
        with pytest.raises(NodedError, match="makes no sense"):
            await call(path, "GET", "/x")
        nursery.cancel_scope.cancel()
