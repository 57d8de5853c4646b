"""The daemons of a local swarm as processes: start, notice a death, start again, end all.

Problem: a daemon may be killed at any moment (people try that, and should), and at the end none may be
left, not even one that ignores SIGTERM.

Idea: each daemon leads a process group of its own, so a Ctrl-C in the terminal reaches only this process,
which then ends them in order: SIGTERM to all at once, SIGKILL to the groups of those that are still there
after the grace time, and at last whatever descendant was inherited (see `parent`).

Invariants: all methods are called from the main thread (the parent-death signal is tied to the thread
that starts a process); every process started here is reaped here; `end` returns within its grace time
plus two seconds.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Self

from node.local.layout import PeerFiles
from node.local.parent import become_subreaper, end_children

__all__ = ["RESTART_AFTER_S", "Daemon", "Fleet", "daemon_command"]

RESTART_AFTER_S: Final = 2.0
"""Long enough to be seen in the view, and for the others to notice."""
MAX_RESTARTS_PER_MINUTE: Final = 5
GRACE_S: Final = 7.0
"""For an orderly end; with the killing after it Ctrl-C is over within 10 s."""


def daemon_command(peer: PeerFiles) -> list[str]:
    """What starts a peer's daemon."""
    # -P: a `node.py` in the working folder must not shadow this package.
    command = [sys.executable, "-P", "-m", "node", "run", "--config", str(peer.config)]
    return [*command, "--parent-pid", str(os.getpid())]


class Daemon:
    """One peer's process, over all its lives.

    Attributes:
        peer: its files.
        lives: how often it was started.
        exit_code: how its last life ended (negative: by that signal); None while it runs.
        given_up: whether it will not be started again, and why.
    """

    def __init__(self, peer: PeerFiles, command: Sequence[str], environ: Mapping[str, str]) -> None:
        self.peer = peer
        self.lives = 0
        self.exit_code: int | None = None
        self.given_up = ""
        self.restart_at: float | None = None
        self._command = list(command)
        self._environ = dict(environ)
        self._process: subprocess.Popen[bytes] | None = None
        self._starts: list[float] = []

    @property
    def running(self) -> bool:
        """Whether its process exists, as far as `poll` has looked."""
        return self._process is not None

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        return self._process.pid if self._process is not None else None

    def start(self, now: float) -> None:
        """Start a life; `now` in monotonic seconds."""
        assert self._process is None
        with self.peer.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 (our own interpreter and module)
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environ,
                process_group=0,
            )
        self.lives += 1
        self.exit_code = None
        self.restart_at = None
        self._starts = [*(at for at in self._starts if now - at < 60), now]

    def poll(self, now: float) -> bool:
        """Notice the end of a life; True once for each."""
        if self._process is None or (code := self._process.poll()) is None:
            return False
        self.exit_code = code
        self._process = None
        if code == 0:
            self.given_up = "stopped"
        elif len(self._starts) > MAX_RESTARTS_PER_MINUTE:
            self.given_up = f"ended {len(self._starts)} times in a minute"
        else:
            self.restart_at = now + RESTART_AFTER_S
        return True

    def send(self, signal_number: int, *, group: bool = False) -> None:
        """Signal the process, or its whole group, if it runs."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if group:
                os.killpg(self._process.pid, signal_number)
            else:
                self._process.send_signal(signal_number)


class Fleet:
    """All daemons; a context manager that leaves none behind.

    Args:
        command: gives the argument vector that starts a peer.
        environ: the daemons' environment.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        environ: Mapping[str, str],
        *,
        command: Callable[[PeerFiles], Sequence[str]] = daemon_command,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.daemons: list[Daemon] = []
        self._environ = environ
        self._command = command
        self._clock = clock

    def __enter__(self) -> Self:
        become_subreaper()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def start(self, peer: PeerFiles) -> Daemon:
        """Start a peer's first life."""
        daemon = Daemon(peer, self._command(peer), self._environ)
        daemon.start(self._clock())
        self.daemons.append(daemon)
        return daemon

    def poll(self, before_restart: Callable[[Daemon], None]) -> list[Daemon]:
        """Reap the dead and start again those whose time has come.

        Args:
            before_restart: called before each new life.

        Returns:
            Those whose life ended since the last call.
        """
        now = self._clock()
        ended = [daemon for daemon in self.daemons if daemon.poll(now)]
        for daemon in self.daemons:
            if daemon.restart_at is not None and now >= daemon.restart_at:
                before_restart(daemon)
                daemon.start(now)
        return ended

    def end(
        self, grace_s: float = GRACE_S, hurry: Callable[[], bool] = lambda: False
    ) -> list[Daemon]:
        """End every daemon; returns those that had to be killed.

        Args:
            grace_s: seconds for an orderly end.
            hurry: asked meanwhile; True cuts the grace short.
        """
        for daemon in self.daemons:
            daemon.send(signal.SIGTERM)
        deadline = self._clock() + grace_s
        while self._any_running() and self._clock() < deadline and not hurry():
            time.sleep(0.02)
        killed = [daemon for daemon in self.daemons if daemon.running]
        for daemon in killed:
            daemon.send(signal.SIGKILL, group=True)
        deadline = self._clock() + 1.0
        while self._any_running() and self._clock() < deadline:
            time.sleep(0.02)
        end_children()
        return killed

    def _any_running(self) -> bool:
        now = self._clock()
        for daemon in self.daemons:
            daemon.poll(now)
            daemon.restart_at = None  # nobody starts again while all are being ended
        return any(daemon.running for daemon in self.daemons)
