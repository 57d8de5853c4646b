"""A service manager's view: a notify socket like systemd's, readiness, watchdog, stopping."""

import contextlib
import queue
import socket
import threading
import time

import psutil
import pytest

from tests.real.cluster import Cluster, at_round

pytestmark = pytest.mark.real


class NotifySocket:
    """The manager's end of sd_notify(3)."""

    def __init__(self, address):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(address)
        self.heard = []
        self._arrived = queue.SimpleQueue()
        # The queue of such a socket is short; a manager that does not read loses messages.
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        with contextlib.suppress(OSError):
            while data := self.sock.recv(4096):
                self._arrived.put(data)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.shutdown(socket.SHUT_RDWR)  # wakes the reader
        self.sock.close()

    def until(self, field, patience_s=60.0):
        """Read until a datagram has `field`; returns its fields."""
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            try:
                data = self._arrived.get(timeout=max(0.01, deadline - time.monotonic()))
            except queue.Empty:
                break
            fields = data.decode().split("\n")
            self.heard.append(fields)
            if field in fields:
                return fields
        raise AssertionError(f"no {field} within {patience_s} s; heard: {self.heard}")


@pytest.mark.parametrize("abstract", [False, True], ids=["path", "abstract"])
def test_ready_then_the_watchdog_then_stopping(tmp_path, abstract):
    with Cluster(tmp_path / "unit") as cluster:
        node = cluster.node("one", **(cluster.creates(run__steps=0) if abstract else {}))
        name = f"noded-test-{node.home}" if abstract else str(tmp_path / "notify")
        manager = NotifySocket("\0" + name if abstract else name)
        environ = {
            "NOTIFY_SOCKET": "@" + name if abstract else name,
            "WATCHDOG_USEC": "500000",
        }
        with manager:
            node.start(environ=environ)
            fields = manager.until("READY=1")
            # Ready means: the command line and peers get an answer now, without waiting.
            assert node.status()["node"]["pid"] == node.pid
            host, _, port = node.status()["node"]["addresses"][0].rpartition(":")
            socket.create_connection((host, int(port)), timeout=30).close()
            assert any(field.startswith("STATUS=nd-") for field in fields)
            for _ in range(3):
                manager.until("WATCHDOG=1")
            if abstract:
                # A trainer could declare a hung daemon alive: it does not get to know the socket.
                trainer = node.until(at_round(1), "a round")["trainer"]["pid"]
                inherited = psutil.Process(trainer).environ()
                assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & set(inherited)
            node.stop()
            manager.until("STOPPING=1")
            order = [fields[0] for fields in manager.heard if fields[0] != "WATCHDOG=1"]
            assert order == ["READY=1", "STOPPING=1"]


def test_a_reload_is_announced_and_applied(tmp_path):
    with Cluster(tmp_path / "unit") as cluster:
        node = cluster.node("one", node__name="")
        manager = NotifySocket(str(tmp_path / "notify"))
        with manager:
            node.start(environ={"NOTIFY_SOCKET": str(tmp_path / "notify")})
            manager.until("READY=1")
            node.values["log.level"] = "debug"
            node.values["trainer.threads"] = 2
            node.write_config()
            node.send(1)  # SIGHUP
            manager.until("RELOADING=1")
            manager.until("READY=1")
            assert "log settings applied" in node.log_text()
            assert "changes in [trainer] take effect at the next start" in node.log_text()
            node.write_config("[nonsense]\n")
            node.send(1)
            manager.until("RELOADING=1")
            manager.until("READY=1")
            assert "the configuration is not used" in node.log_text()
            assert node.stop() < 10
