"""Machines for the tests of joining: a folder and the command line; keys come from `noded init` and `noded join` alone."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from typing import Any

from node import keys
from node.cli.client import Client
from tests.real.cluster import Cluster, Node, Place

QUIET = (
    "--listen",
    "127.0.0.1:0",
    "--set",
    "network.port_mapping=false",
    "--set",
    "limits.new_connections_per_source_burst=2000",
)
"""For this machine alone; every newcomer of a test has the same address, so that one has room for all."""


class Machine(Node):
    """One daemon's place; made without any file."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        Place.__init__(self, cluster, name, cluster.home / name)
        self.values = {}
        cluster.nodes.append(self)

    def noded(self, *arguments: str, stdin: str = "", code: int = 0) -> str:
        """Run a command about this machine to its end; what it printed to standard output."""
        done = subprocess.run(
            self.command(*arguments),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            env=self.cluster.environ,
            check=False,
        )
        if done.returncode != code:
            self.cluster.fail(
                f"{self.name}: {arguments[0]} ended with {done.returncode}\n{done.stdout}{done.stderr}"
            )
        self.said = done.stderr
        return done.stdout

    def json(self, *arguments: str, stdin: str = "", code: int = 0) -> Any:
        return json.loads(self.noded(*arguments, "--json", stdin=stdin, code=code))

    def found(self, swarm: str) -> Machine:
        """Make a swarm here."""
        self.noded("init", "--name", swarm, "--node-name", self.name, *QUIET)
        return self

    def joined(self, code: Sequence[str] | str, *, stdin: str = "") -> Machine:
        words = [code] if isinstance(code, str) else code
        self.noded("join", *words, "--name", self.name, *QUIET, stdin=stdin)
        return self

    def up(self) -> Machine:
        """Its daemon runs, and has a port that stays."""
        self.start(environ={"PYTHONHASHSEED": "0"})
        self.ready()
        config = self.paths.config_file
        text = config.read_text().replace("127.0.0.1:0", self.address())
        config.write_text(text)
        return self

    def get(self, path: str) -> dict[str, Any]:
        """What the daemon answers, without the cost of a command."""
        return Client(self.paths.control_socket, timeout_s=30).get(path)

    def post(self, path: str, **body: object) -> dict[str, Any]:
        return Client(self.paths.control_socket, timeout_s=30).post(path, body)

    def invite(self, **more: object) -> str:
        """A code for this machine alone."""
        return str(self.post("/v1/invites", **{"local": True, **more})["code"])

    def members(self) -> dict[str, dict[str, Any]]:
        """The rows of `noded members`, by id."""
        return {row["id"]: row for row in self.get("/v1/members")["members"]}

    @property
    def node_id(self) -> str:
        return str(keys.load_identity(self.paths.node_key).node_id)


def everything_written(cluster: Cluster) -> bytes:
    """All that the daemons have written: logs, ledgers, state; without the keys themselves."""
    keys = {"swarm.key", "node.key", "swarm-root.key"}
    paths = (path for path in cluster.home.rglob("*") if path.is_file() and path.name not in keys)
    return b"\n".join(path.read_bytes() for path in paths)
