"""Asking the daemons of a local swarm how they are, and remembering what a restart would forget.

Problem: a daemon that was killed comes back with counters at zero, and one that hangs must not freeze the
view of the others.

Idea: all daemons are asked at the same time, each by a thread with a short deadline, because the client
blocks; a daemon that does not answer keeps its last known numbers. Traffic is summed over a peer's lives.

Invariants: `update` returns within the deadline of one question; only facts that a daemon gave are shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from node.cli.client import Client
from node.errors import NodedError
from node.local.fleet import Daemon

__all__ = ["PeerView", "Watcher"]

ASK_TIMEOUT_S: Final = 2.0
MAX_THREADS: Final = 16


class PeerView:
    """What is known about one peer.

    Attributes:
        daemon: its process.
        status: its last answer, {} before the first.
        answering: whether it answered the last question.
        seen_this_life: whether it has answered since it was last started.
    """

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.status: Mapping[str, Any] = {}
        self.answering = False
        self.seen_this_life = False
        self._life = daemon.lives
        self._sent_before = 0
        self._received_before = 0

    @property
    def name(self) -> str:
        """`peer-1` and so on."""
        return self.daemon.peer.name

    @property
    def state(self) -> str:
        """Its state in a word: the daemon's own while it answers."""
        if not self.daemon.running:
            if self.daemon.given_up:
                return "stopped" if self.daemon.given_up == "stopped" else "failed"
            return "down"
        if self.seen_this_life:
            return str(self.status.get("state") or "n/a")
        return "starting" if self.daemon.lives == 1 else "coming back"

    @property
    def finished(self) -> bool:
        """Whether its run is over."""
        return self.state == "finished"

    @property
    def ready(self) -> bool:
        """Whether it has told where it listens."""
        return self.seen_this_life and bool(self.addresses)

    @property
    def addresses(self) -> list[str]:
        """Where it listens."""
        node = self.status.get("node")
        addresses = node.get("addresses") if isinstance(node, Mapping) else None
        return [str(address) for address in addresses] if isinstance(addresses, list) else []

    @property
    def run(self) -> Mapping[str, Any]:
        """The `run` part of its status, {} without one."""
        run = self.status.get("run")
        return run if isinstance(run, Mapping) else {}

    @property
    def step(self) -> int:
        """Its local steps in the run."""
        step = self.run.get("step")
        return step if isinstance(step, int) else 0

    @property
    def decentralized(self) -> bool:
        """Whether its run's protocol lets the peers' models differ."""
        return isinstance(self.run.get("gossip"), Mapping)

    @property
    def progress_step(self) -> int:
        """How far it is in the run, in steps: a decentralized protocol counts rounds, and not every peer trains in each."""
        done, total, steps = (self.run.get(k) for k in ("round", "rounds_total", "steps_total"))
        if self.decentralized and isinstance(done, int) and isinstance(steps, int) and total:
            return min(steps, done * steps // int(total))
        return self.step

    @property
    def bytes_sent(self) -> int:
        """Over all its lives."""
        return self._sent_before + self._traffic("bytes_sent")

    @property
    def bytes_received(self) -> int:
        """Over all its lives."""
        return self._received_before + self._traffic("bytes_received")

    @property
    def path(self) -> str:
        """How it reaches the others: `3 direct`."""
        counts: dict[str, int] = {}
        peers = self.status.get("peers")
        for peer in peers if isinstance(peers, list) else ():
            if isinstance(peer, Mapping) and peer.get("state") in {
                "active",
                "joining",
                "connected",
            }:
                path = str(peer.get("path") or "n/a")
                counts[path] = counts.get(path, 0) + 1
        return ", ".join(f"{count} {path}" for path, count in sorted(counts.items())) or "none"

    @property
    def trainer_gone(self) -> str | None:
        """Why its training process ended for good before the run did; None if it did not."""
        trainer = self.status.get("trainer") if self.answering and not self.finished else None
        if not isinstance(trainer, Mapping) or trainer.get("state") != "exited":
            return None
        return str(trainer.get("error") or "it does not say why")

    @property
    def warnings(self) -> list[tuple[str, str]]:
        """(code, text) of what its daemon says is wrong."""
        # When the run is over, what its end looks like from a daemon is nobody's worry here.
        health = self.status.get("health") if self.answering and not self.finished else None
        return [
            (str(entry.get("code")), f"{entry.get('text')}; {entry.get('hint') or ''}".rstrip("; "))
            for entry in (health if isinstance(health, list) else ())
            if isinstance(entry, Mapping) and entry.get("severity") in {"warning", "failing"}
        ]

    def take(self, answer: Mapping[str, Any] | None) -> None:
        """Remember an answer; None if there was none."""
        if self._life != self.daemon.lives:
            self._life = self.daemon.lives
            self._sent_before += self._traffic("bytes_sent")
            self._received_before += self._traffic("bytes_received")
            self.status = {key: value for key, value in self.status.items() if key != "traffic"}
            self.seen_this_life = False
        self.answering = answer is not None
        if answer is not None:
            self.status = answer
            self.seen_this_life = True

    def _traffic(self, key: str) -> int:
        traffic = self.status.get("traffic")
        value = traffic.get(key) if isinstance(traffic, Mapping) else None
        return value if isinstance(value, int) else 0


class Watcher:
    """Asks all daemons; a context manager, because it holds threads."""

    def __init__(self) -> None:
        self.views: list[PeerView] = []
        self._threads = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="noded-watch")

    def close(self) -> None:
        """Let go of the threads; returns when the questions under way are over."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def add(self, daemon: Daemon) -> PeerView:
        """Watch another daemon."""
        view = PeerView(daemon)
        self.views.append(view)
        return view

    def update(self) -> None:
        """Ask every daemon that runs."""
        answers: Sequence[Mapping[str, Any] | None] = list(self._threads.map(_ask, self.views))
        for view, answer in zip(self.views, answers, strict=True):
            view.take(answer)


def _ask(view: PeerView) -> Mapping[str, Any] | None:
    if not view.daemon.running:
        return None
    client = Client(view.daemon.peer.paths.control_socket, timeout_s=ASK_TIMEOUT_S)
    try:
        return client.get("/v1/status")
    except NodedError:
        return None
