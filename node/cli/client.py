"""Asking the daemon: the standard library's HTTP client over its control socket.

Problem: health checks run `noded status` every few seconds on every node, so it must not import trio
(80 ms). And when the daemon is off, the answer must say how to start it.

Idea: `http.client` with its `connect` replaced. Errors come back as the daemon's own sentences, with
their hint and exit code; what the socket itself says is mapped here.

Invariants: the standard library only; every call ends by its deadline; an answer is bounded.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from node.errors import DaemonNotRunning, ExitCode, NodedError, Refused, TimedOut
from node.paths import CONFIG_NAME, SYSTEM_SOCKET, default_data_dir, node_paths

__all__ = ["Client", "data_dir_of", "find_socket", "how_to_start", "own_host"]

MAX_ANSWER_BYTES: Final = 16 * 1024 * 1024
_UNIT: Final = "noded.service"


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket; each wait gets what is left of one deadline."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("noded", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Client:
    """Calls to the daemon behind one control socket; one connection for each call.

    Args:
        socket_path: the control socket.
        timeout_s: how long a call may take, in seconds.
        off_hint: what to do when nobody listens there.
    """

    def __init__(self, socket_path: Path, *, timeout_s: float = 10.0, off_hint: str = "") -> None:
        self.socket_path = socket_path
        self.timeout_s = timeout_s
        self.off_hint = off_hint

    def get(self, path: str) -> dict[str, Any]:
        """GET `path`; raises as `call` does."""
        return self.call("GET", path)

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """POST `body` to `path`; raises as `call` does."""
        return self.call("POST", path, body if body is not None else {})

    def call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        accept: frozenset[int] = frozenset(),
    ) -> dict[str, Any]:
        """The daemon's answer, a JSON object.

        Args:
            method: "GET" or "POST".
            path: the route.
            body: sent as JSON.
            accept: HTTP statuses of 400 and above whose answer is returned and not raised.

        Raises:
            DaemonNotRunning: nobody listens.
            Refused: this user may not ask.
            TimedOut: no answer in time.
            NodedError: what the daemon itself refused, with its hint and exit code.
        """
        connection = _UnixConnection(self.socket_path, self.timeout_s)
        deadline = time.monotonic() + self.timeout_s
        try:
            data = None if body is None else json.dumps(body).encode()
            headers = {"Content-Type": "application/json"} if data is not None else {}
            connection.request(method, path, body=data, headers=headers)
            connection.sock.settimeout(max(0.001, deadline - time.monotonic()))
            response = connection.getresponse()
            raw = response.read(MAX_ANSWER_BYTES + 1)
        except (FileNotFoundError, ConnectionRefusedError):
            raise self._not_running() from None
        except PermissionError:
            raise Refused(
                f"this user may not use the daemon's socket ({self.socket_path})",
                hint="run as the user the daemon runs as, or with sudo",
            ) from None
        except TimeoutError:
            raise TimedOut(
                f"the daemon did not answer within {self.timeout_s:g} s",
                hint="it may be overloaded: try again, give it longer with --timeout, "
                "or look at its log",
            ) from None
        except (http.client.HTTPException, ConnectionError) as error:
            raise NodedError(
                f"the daemon broke off its answer ({type(error).__name__})",
                hint="it may be stopping, or refuse this user; look at its log",
            ) from None
        except OSError as error:
            raise NodedError(
                f"cannot reach the daemon on {self.socket_path}: {error.strerror or error}"
            ) from None
        finally:
            connection.close()
        answer = _parse(raw)
        if response.status >= 400 and response.status not in accept:
            raise _remote_error(answer, response.status)
        return answer

    def _not_running(self) -> DaemonNotRunning:
        reason = "no socket at" if not os.path.lexists(self.socket_path) else "nobody answers on"
        return DaemonNotRunning(
            f"the daemon is not running ({reason} {self.socket_path})",
            hint=self.off_hint,
        )


def find_socket(
    socket_flag: Path | None, config_flag: Path | None, environ: Mapping[str, str] | None = None
) -> Path:
    """The control socket to ask, found without validating a configuration.

    The flag or `NODED_SOCKET` names it; else it belongs to the data directory of the named or the
    default configuration; else, if that one is not there, it is the system service's.
    """
    environ = os.environ if environ is None else environ
    if socket_flag is not None:
        return socket_flag
    if environ.get("NODED_SOCKET"):
        return Path(environ["NODED_SOCKET"])
    path = node_paths(data_dir_of(config_flag, environ), environ).control_socket
    named = config_flag or environ.get("NODED_CONFIG") or environ.get("NODED_NODE_DATA_DIR")
    if not named and not os.path.lexists(path) and os.path.lexists(SYSTEM_SOCKET):
        return SYSTEM_SOCKET
    return path


def how_to_start(
    socket_flag: Path | None, config_flag: Path | None, environ: Mapping[str, str] | None = None
) -> str:
    """What to do when the daemon does not run: set the node up, or start it, by the way it is installed."""
    environ = os.environ if environ is None else environ
    if socket_flag is not None or environ.get("NODED_SOCKET"):
        return "start the daemon that this socket belongs to, or name another one with --socket or --config"
    named = environ.get("NODED_CONFIG")
    data_dir = data_dir_of(config_flag, environ)
    config = config_flag or (Path(named) if named else data_dir / CONFIG_NAME)
    if not os.path.lexists(config):
        return "this node is not set up yet:  noded init      and then:  noded run"
    if data_dir.is_dir() and not os.path.lexists(data_dir / "swarm.key"):
        return "this node is in no swarm:  noded join CODE      and then:  noded run"
    start = "start it:  noded run"
    if config_flag is None and not named:
        home = Path(environ.get("HOME") or "/")
        if (home / ".config/systemd/user" / _UNIT).exists():
            start = "start it:  systemctl --user start noded      or in the foreground:  noded run"
        elif (Path("/etc/systemd/system") / _UNIT).exists():
            start = "start it:  sudo systemctl start noded      or in the foreground:  noded run"
    return start


def data_dir_of(config_flag: Path | None, environ: Mapping[str, str] | None = None) -> Path:
    """The data directory that `node.config.load_config` would arrive at, without its imports.

    A broken file counts as one that names no directory: it is `noded config check` that complains.
    """
    environ = os.environ if environ is None else environ
    if data_dir := environ.get("NODED_NODE_DATA_DIR"):
        return Path(data_dir).expanduser().absolute()
    named = environ.get("NODED_CONFIG")
    config = config_flag or (Path(named) if named else default_data_dir(environ) / CONFIG_NAME)
    base = config.absolute().parent
    try:
        with config.open("rb") as file:
            data_dir = tomllib.load(file).get("node", {}).get("data_dir", "")
        return base / Path(data_dir).expanduser() if data_dir else base
    except (OSError, ValueError, AttributeError, TypeError):
        return base


def own_host() -> str:
    """This machine's address on the way to the rest of the world, "" if it has none.

    Connecting a datagram socket sends nothing: the kernel only picks a route and with it a source.
    """
    for family, target in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as sock:
                sock.connect((target, 9))  # documentation addresses (RFC 5737, RFC 3849)
                host = str(sock.getsockname()[0])
        except OSError:
            continue
        if not host.startswith("127.") and host not in {"::1", "0.0.0.0", "::"}:  # noqa: S104
            return host
    return ""


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(raw)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict) or len(raw) > MAX_ANSWER_BYTES:
        raise NodedError(
            "the daemon's answer makes no sense",
            hint="is the daemon of another version, or something else on that socket?",
        )
    return answer


def _remote_error(answer: Mapping[str, Any], status: int) -> NodedError:
    try:
        code = ExitCode(int(answer.get("exit_code", ExitCode.FAILED)))
    except (ValueError, TypeError):
        code = ExitCode.FAILED
    message = str(answer.get("error") or f"the daemon answered with HTTP status {status}")
    return NodedError(message, hint=str(answer.get("hint") or ""), exit_code=code)
