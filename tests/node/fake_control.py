"""A daemon's control socket that answers from a table, and the command run against it."""

import contextlib
import threading
from pathlib import Path

import trio

from node.cli.main import main
from node.control import open_control

STATUS = {
    "schema": "noded.status/1",
    "version": "0.1.0",
    "state": "training",
    "verdict": "ok",
    "node": {"id": "nd-7kq2-m4xf-aaaa", "name": "attic", "addresses": [], "uptime_s": 1},
    "peers": [],
    "health": [],
}
PEER = {"id": "nd-b2cd-91aa-x", "name": "barn", "state": "active", "path": "direct", "rtt_s": 0.02}


class FakeDaemon:
    """A control socket in a thread, answering from a table."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked: list[tuple[str, object]] = []
        self.answers: dict[tuple[str, str], object] = {
            ("GET", "/v1/status"): STATUS,
            ("GET", "/v1/peers"): {"schema": "noded.peers/1", "peers": [PEER]},
            ("GET", "/readyz"): {"ready": True},
            ("GET", "/healthz"): {"alive": True},
            ("POST", "/v1/ping"): {
                "schema": "noded.ping/1",
                "peer": PEER["id"],
                "name": "barn",
                "replies": [{"rtt_s": 0.021, "path": "direct"}],
            },
            ("POST", "/v1/stop"): {"schema": "noded.stop/1", "stopping": True},
        }
        self.stops = True
        self._end = lambda: None

    def _handler(self, route):
        async def handle(body):
            self.asked.append((route[1], body))
            answer = self.answers[route]
            if isinstance(answer, Exception):
                raise answer
            if route[1] == "/v1/stop" and self.stops:
                self._end()
            status = 503 if route[1] == "/readyz" and not answer["ready"] else 200
            return status, answer

        return handle

    @contextlib.contextmanager
    def serve(self):
        started = threading.Event()
        token: list[trio.lowlevel.TrioToken] = []

        async def serve():
            handlers = {route: self._handler(route) for route in self.answers}
            stop = trio.Event()
            self._end = stop.set
            async with open_control(self.path, handlers):
                token.append(trio.lowlevel.current_trio_token())
                started.set()
                await stop.wait()

        thread = threading.Thread(target=trio.run, args=(serve,))
        thread.start()
        assert started.wait(10)
        try:
            yield self
        finally:
            with contextlib.suppress(trio.RunFinishedError):
                token[0].run_sync_soon(self._end)
            thread.join(10)


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    out, err = capsys.readouterr()
    return code, out, err
