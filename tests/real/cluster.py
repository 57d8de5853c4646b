"""Real daemons for tests: processes with data directories of their own, found by their sockets.

Everything is waited for with a deadline that is far longer than a busy machine needs, and a wait
that fails shows the ends of all logs. Whatever a test does, nothing that mentions the cluster's
folder on its command line outlives it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import psutil

from node import keys
from node.cli.client import Client
from node.config_text import render_config
from node.errors import NodedError
from node.local.layout import clean_environ
from node.paths import ensure_private_dir, node_paths
from transport.identity import Identity
from transport.swarm import Swarm

PATIENCE_S = 60.0
"""No promise of the product: what a test bears before it calls a wait failed."""
POLL_S = 0.05
HERE = Path(__file__).parent

TINY = {
    "layers": 1,
    "width": 8,
    "heads": 1,
    "context": 8,
    "batch": 1,
    "warmup": 1,
    "evaluation_windows": 4,
    "sample_bytes": 8,
}
"""The least that byte-gpt can be."""

Status = dict[str, Any]


class Place:
    """A daemon's folder, and what can be seen of it from outside."""

    def __init__(self, cluster: Cluster, name: str, home: Path) -> None:
        self.cluster = cluster
        self.name = name
        self.home = home
        self.paths = node_paths(home, {"XDG_RUNTIME_DIR": str(cluster.home)})
        self.log = home / "noded.log"
        self.process: subprocess.Popen[bytes] | None = None

    def status(self) -> Status:
        return Client(self.paths.control_socket, timeout_s=5).get("/v1/status")

    def until(
        self,
        wanted: Callable[[Status], object],
        what: str,
        *,
        patience_s: float = PATIENCE_S,
    ) -> Status:
        """Wait for a status that `wanted` likes."""
        last: Status | str = "no status yet"

        def look() -> Status | None:
            nonlocal last
            if self.process is not None and self.process.poll() is not None:
                self.cluster.fail(f"{self.name} ended with {self.process.returncode}: no {what}")
            try:
                last = self.status()
            except NodedError as error:
                last = str(error)
                return None
            return last if wanted(last) else None

        return self.cluster.wait(
            look, f"{self.name}: {what}", patience_s=patience_s, last=lambda: last
        )

    def ready(self) -> Self:
        self.until(lambda _status: True, "answer")
        return self

    def address(self) -> str:
        """Where it listens."""
        return str(self.ready().status()["node"]["addresses"][0])

    def file(self, *parts: str) -> Path:
        return self.home.joinpath("runs", "demo", *parts)

    def log_text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def processes(self) -> list[psutil.Process]:
        """Daemon, trainers and whatever else has this node's folder on its command line."""
        return _processes_of(self.home)


class Node(Place):
    """One daemon over all its lives."""

    def __init__(self, cluster: Cluster, name: str, values: Mapping[str, Any]) -> None:
        super().__init__(cluster, name, cluster.home / name)
        self.values = dict(values)
        ensure_private_dir(self.home)
        keys.create_identity(self.paths.node_key)
        keys.create_swarm(self.paths.swarm_key, cluster.swarm)
        keys.certify_directly(self.paths, cluster.root)
        self.write_config()

    def write_config(self, text: str | None = None) -> None:
        """What a person would have written."""
        self.paths.config_file.write_text(text or render_config(self.values))

    def command(self, *arguments: str) -> list[str]:
        config = ["--config", str(self.paths.config_file)]
        return [sys.executable, "-P", "-m", "node", *arguments, *config]

    def start(self, *, environ: Mapping[str, str] | None = None, umask: int = -1) -> Self:
        """A new life; returns at once."""
        assert self.process is None
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.command("run"), "--parent-pid", str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**self.cluster.environ, **(environ or {})},
                process_group=0,
                umask=umask,
            )
        return self

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def cli(
        self, *arguments: str, timeout_s: float = PATIENCE_S
    ) -> subprocess.CompletedProcess[str]:
        """One `noded` command about this node, to its end."""
        return subprocess.run(
            self.command(*arguments),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env=self.cluster.environ,
            check=False,
        )

    def keep_port(self) -> None:
        """Have the next lives listen where this one does."""
        self.values["network.listen"] = [self.address()]
        self.write_config()

    # ---- ending ----

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, patience_s: float = PATIENCE_S) -> int:
        """Its exit code, once it has ended by itself."""
        assert self.process is not None
        try:
            code = self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self.cluster.fail(f"{self.name} is still there after {patience_s:.0f} s")
        self.process = None
        return code

    def kill(self) -> None:
        """SIGKILL to the daemon alone; its trainer has to notice."""
        self.send(signal.SIGKILL)
        assert self.wait() == -signal.SIGKILL

    def stop(self, patience_s: float = PATIENCE_S) -> float:
        """SIGTERM to a clean end; returns the seconds it took."""
        begun = time.monotonic()
        self.send(signal.SIGTERM)
        code = self.wait(patience_s)
        took = time.monotonic() - begun
        if code != 0:
            self.cluster.fail(f"{self.name} ended with {code} on SIGTERM")
        return took


class Cluster:
    """Nodes of one swarm below one folder; a context manager that leaves nothing running."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.nodes: list[Node] = []
        self.root = Identity.generate(os.urandom)
        self.swarm = Swarm.generate(os.urandom, self.root.public_key)
        self.environ = clean_environ(os.environ)
        # Sockets of folders with long names go here, on both sides.
        self.environ["XDG_RUNTIME_DIR"] = str(home)
        self.environ["HOME"] = str(home)
        self.environ["OMP_NUM_THREADS"] = "1"
        self.corpus = home / "corpus.txt"
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.corpus.write_text("".join(f"def f{i}(x):\n    return x + {i}\n" for i in range(600)))
        self.gate = home / "gate"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            if node.process is not None:
                node.process.kill()
                node.process.wait()
                node.process = None
        for process in _processes_of(self.home):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    # ---- making nodes ----

    def node(self, name: str, *, bootstrap: Node | None = None, **values: Any) -> Node:
        """A node with keys and configuration, not started; `a__b` in a name of a value is `a.b`."""
        settings: dict[str, Any] = {"node.name": name, "network.listen": ["127.0.0.1:0"]}
        if bootstrap is not None:
            settings["network.bootstrap"] = [bootstrap.address()]
        settings.update((key.replace("__", "."), value) for key, value in values.items())
        node = Node(self, name, settings)
        self.nodes.append(node)
        return node

    def creates(self, **more: Any) -> dict[str, Any]:
        """Values of the node that creates the run "demo": tiny, quick, and of the real task."""
        return {
            "run__name": "demo",
            "run__create": True,
            "run__data": str(self.corpus),
            "run__every": 4,
            "run__steps": 40,
            "run__task_settings": TINY,
            "trainer__evaluate_every": 0,
            "trainer__checkpoint_every": 2,
            **more,
        }

    def joins(self, **more: Any) -> dict[str, Any]:
        """Values of a node that knows the run's name and nothing else."""
        return {
            "run__name": "demo",
            "run__data": str(self.corpus),
            "trainer__evaluate_every": 0,
            "trainer__checkpoint_every": 2,
            **more,
        }

    def gated(self, values: dict[str, Any], first_step: int) -> dict[str, Any]:
        """The same run, in which nobody trains beyond the step that the gate's file names."""
        self.open_gate(first_step)
        values = {**values, "run__task": "gated_task:Gated", "trainer__user_path": str(HERE)}
        if values.get("run__create"):
            values["run__task_settings"] = {**TINY, "gate": str(self.gate)}
        return values

    def open_gate(self, step: int) -> None:
        new = self.gate.with_suffix(".new")
        new.write_text(str(step))
        new.replace(self.gate)

    # ---- waiting ----

    def wait(
        self,
        look: Callable[[], Any],
        what: str,
        *,
        patience_s: float = PATIENCE_S,
        last: Callable[[], object] = lambda: "",
    ) -> Any:
        """Poll `look` until it gives something true."""
        deadline = time.monotonic() + patience_s
        while not (found := look()):
            if time.monotonic() > deadline:
                self.fail(f"waited {patience_s:.0f} s in vain for {what}\nlast seen: {last()}")
            time.sleep(POLL_S)
        return found

    def fail(self, message: str) -> Any:
        """End the test with the ends of all logs."""
        parts = [message]
        for node in self.nodes:
            for log in (node.log, node.file("trainer.log")):
                if log.exists():
                    lines = log.read_text(errors="replace").splitlines()[-25:]
                    parts.append(f"--- {node.name} {log.name}\n" + "\n".join(lines))
        raise AssertionError("\n".join(parts))

    def until_all(
        self, wanted: Callable[[Status], object], what: str, *, patience_s: float = PATIENCE_S
    ) -> list[Status]:
        return [
            node.until(wanted, what, patience_s=patience_s)
            for node in self.nodes
            if node.process is not None
        ]


def finished(status: Status) -> bool:
    return status["state"] == "finished"


def training(status: Status) -> bool:
    return status["state"] == "training"


def at_round(number: int) -> Callable[[Status], bool]:
    return lambda status: bool(status["run"] and status["run"]["round"] >= number)


def _processes_of(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            mentions = any(str(folder) in word for word in process.cmdline())
            if mentions and process.status() != psutil.STATUS_ZOMBIE and process.pid != os.getpid():
                found.append(process)
    return found
