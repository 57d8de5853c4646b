"""Telling the service manager how the daemon is: sd_notify(3) in one datagram.

Problem: systemd should count the service as started only when peers can reach it, restart it when
its event loop hangs, and not wait for a timeout when it stops.

Idea: the protocol *is* the interface: newline-separated `KEY=value` in one datagram to the Unix socket
that `NOTIFY_SOCKET` names (a path, or with a leading "@" a name in the abstract namespace). Forty lines
of it beat a binding to libsystemd.

Invariants:
- Without the variable every call is a no-op, so the daemon calls them unconditionally.
- Notifying never fails the daemon: a vanished socket is ignored, and so is a full one, except that
  readiness and stopping, which come once, wait a quarter of a second for room.
- The variables are removed from the environment when they are read: a trainer that inherited them
  could declare the daemon ready, or keep a hung one alive.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, MutableMapping
from typing import Final

__all__ = ["Notifier", "run_watchdog"]

_STATUS_CHARS: Final = 200
PATIENCE_S: Final = 0.25
"""For the two messages that come once: the manager's queue holds about ten, and may be full."""


class Notifier:
    """The line to the service manager; does nothing where there is none.

    Attributes:
        watchdog_s: how often systemd wants to hear from us, in seconds; None if it does not care.
    """

    def __init__(self, address: str | None = None, *, watchdog_s: float | None = None) -> None:
        self._address = address
        self.watchdog_s = watchdog_s if address else None

    @classmethod
    def from_environ(cls, environ: MutableMapping[str, str] | None = None) -> Notifier:
        """Read and remove `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`."""
        environ = os.environ if environ is None else environ
        address = environ.pop("NOTIFY_SOCKET", None)
        interval = environ.pop("WATCHDOG_USEC", "")
        pid = environ.pop("WATCHDOG_PID", "")
        watchdog_s = int(interval) / 1e6 if interval.isdecimal() and int(interval) > 0 else None
        if pid and pid != str(os.getpid()):
            watchdog_s = None  # meant for another process of the unit
        if address is None or address[:1] not in {"/", "@"}:
            address = None
        return cls(address, watchdog_s=watchdog_s)

    @property
    def enabled(self) -> bool:
        """Whether anybody listens."""
        return self._address is not None

    def ready(self, status: str = "") -> None:
        """Everything is up: peers and the command line can reach this node."""
        self._send("READY=1", _status(status), patience_s=PATIENCE_S)

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send(_status(text))

    def reloading(self) -> None:
        """A reload begins; `ready` ends it (Type=notify-reload wants the monotonic clock)."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str = "") -> None:
        """An orderly stop begins."""
        self._send("STOPPING=1", _status(status), patience_s=PATIENCE_S)

    def watchdog(self) -> None:
        """We are alive; see `run_watchdog`."""
        self._send("WATCHDOG=1")

    def extend_timeout(self, seconds: float) -> None:
        """Ask for `seconds` more to start or to stop."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def _send(self, *fields: str, patience_s: float = 0.0) -> None:
        if self._address is None:
            return
        message = "\n".join(field for field in fields if field).encode("utf-8", "replace")
        address: str | bytes = self._address
        if self._address.startswith("@"):
            address = b"\0" + os.fsencode(self._address[1:])
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.settimeout(patience_s)
                sock.sendto(message, address)
        except OSError:
            # Nothing to be done about it here: if it was the watchdog, systemd will act by itself.
            return


async def run_watchdog(notifier: Notifier, healthy: Callable[[], bool] = lambda: True) -> None:
    """Tell systemd that the event loop turns, twice in each interval; ends only by cancellation.

    The task runs on the loop it vouches for, so a loop that hangs goes silent and is restarted.
    `healthy` may veto (say: the writer task of the disk is stuck); returns at once where systemd
    asked for no watchdog.
    """
    import trio

    if notifier.watchdog_s is None:
        return
    while True:
        if healthy():
            notifier.watchdog()
        await trio.sleep(notifier.watchdog_s / 2)


def _status(text: str) -> str:
    line = " ".join(text.split())[:_STATUS_CHARS]
    return f"STATUS={line}" if line else ""
