"""Swarms of many real daemons without trainers, and what is measured on them.

The slow ones are skipped unless asked for, and print one JSON line for each measurement:

    NODED_SLOW=1 python -m pytest -s tests/real/test_swarm.py

`NODED_REPORT=FILE` appends the lines to a file as well. All daemons listen on 127.0.0.1, or in network
namespaces made for the test.
"""

from __future__ import annotations

import json
import os
import random
import socket
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from node.cli.client import Client
from node.errors import NodedError
from tests.real.cluster import PATIENCE_S, Cluster, Node, Place, Status

slow = pytest.mark.skipif(
    os.environ.get("NODED_SLOW") != "1", reason="takes minutes; NODED_SLOW=1 runs it"
)


class Swarm(Cluster):
    """Daemons that take part in the run "demo" and train nothing, unless told otherwise."""

    def observer(self, name: str, *bootstrap: str, **values: Any) -> Node:
        """A member that knows the run's name and waits for a script that never comes."""
        return self.plain(name, *bootstrap, run__name="demo", trainer__auto=False, **values)

    def plain(self, name: str, *bootstrap: str, **values: Any) -> Node:
        """A node without a run."""
        return self.node(
            name,
            **{"network__bootstrap": list(bootstrap), "network__port_mapping": False, **values},
        )

    def until_each(
        self,
        nodes: Iterable[Place],
        wanted: Callable[[Status], object],
        what: str,
        *,
        patience_s: float = PATIENCE_S,
        poll_s: float = 0.2,
    ) -> float:
        """Wait until every node's status was one that `wanted` likes; returns the seconds it took."""
        begun, waiting = time.monotonic(), list(nodes)
        last: dict[str, Any] = {}
        while waiting:
            for node in list(waiting):
                if (code := node.process and node.process.poll()) is not None:
                    self.fail(f"{node.name} ended with {code}: no {what}")
                status = status_of(node)
                if status is not None and wanted(status):
                    waiting.remove(node)
                else:
                    last[node.name] = None if status is None else summary(status)
            if waiting:
                if time.monotonic() - begun > patience_s:
                    seen = {node.name: last[node.name] for node in waiting}
                    self.fail(f"waited {patience_s:.0f} s in vain for {what}: {seen}")
                time.sleep(poll_s)
        return time.monotonic() - begun


def status_of(node: Place) -> Status | None:
    """A node's status, None while it gives none."""
    try:
        return node.status()
    except NodedError:
        return None


def state_of(node: Place) -> dict[str, Any] | None:
    """What `noded state --json` says, None while there is none."""
    try:
        return Client(node.paths.control_socket, timeout_s=5).get("/v1/state")
    except NodedError:
        return None


def summary(status: Status) -> str:
    """The few things that tell why a swarm is not complete."""
    run, membership = status["run"], status["membership"]
    connected = sum(row["path"] is not None for row in status["peers"])
    alive = {key: membership[key] for key in ("alive", "suspect", "left", "lost")}
    return f"{connected} connected, {alive}, run {run and run['id'] and run['id'][:8]}"


def complete(others: int) -> Callable[[Status], bool]:
    """Whether a node is connected to `others` nodes, lists them as alive, and has found its run."""

    def wanted(status: Status) -> bool:
        connected = sum(row["path"] is not None for row in status["peers"])
        alive = status["membership"]["alive"]
        found = status["run"] is None or status["run"]["id"] is not None
        return connected == others and alive == others and found

    return wanted


def row_of(status: Status, name: str) -> dict[str, Any] | None:
    """The row of `noded peers` about the node of that name."""
    return next((row for row in status["peers"] if row["name"] == name), None)


def free_port() -> int:
    """A port below the ephemeral ones, so that no connection takes it before its daemon does."""
    while True:
        port = random.randrange(20_000, 30_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def report(**figures: Any) -> None:
    """One JSON line: shown with `pytest -s`, and kept in the file that NODED_REPORT names."""
    line = json.dumps({**figures, "load": round(os.getloadavg()[0], 1)})
    print(line, flush=True)
    if path := os.environ.get("NODED_REPORT"):
        with Path(path).open("a") as file:
            file.write(line + "\n")
