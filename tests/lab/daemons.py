"""Real daemons in the lab: `noded run` with its trainers, each node in a namespace of its own.

Control sockets are files, so everything is asked from outside the namespaces, as `tests.real` does.
"""

import json
import os
from collections.abc import Mapping
from typing import Any, Self

from node import keys
from tests.lab.topology import Host
from tests.real.cluster import Cluster, Node

PORT = 7447

Json = dict[str, Any]


class LabNode(Node):
    """A daemon on a host of the lab; it listens on the usual port."""

    host: Host

    @property
    def node_id(self) -> str:
        return str(keys.load_identity(self.paths.node_key).node_id)

    @property
    def outside(self) -> str:
        """Where others dial it if nothing keeps them out."""
        return f"{self.host.public_ip}:{PORT}"

    def start(self, *, environ: Mapping[str, str] | None = None, umask: int = -1) -> Self:
        assert (self.process, umask) == (None, -1)
        with self.log.open("ab") as log:
            self.process = self.host.namespace.popen(
                *self.command("run"),
                *("--parent-pid", str(os.getpid())),
                stderr=log,
                env={**self.cluster.environ, **(environ or {})},
            )
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()  # what it has to say is on stderr
        return self

    def asked(self, *arguments: str, timeout_s: float = 60) -> Json:
        """What a command of the command line answers as JSON."""
        done = self.cli(*arguments, "--json", timeout_s=timeout_s)
        if done.returncode:
            self.cluster.fail(f"{self.name}: noded {' '.join(arguments)}: {done.stderr}")
        answer: Json = json.loads(done.stdout)
        return answer

    def peers(self) -> dict[str, Json]:
        """The rows of `noded peers`, by name."""
        return {row["name"]: row for row in self.asked("peers")["peers"]}


class LabCluster(Cluster):
    """Nodes of one swarm on hosts of one lab."""

    def on(self, host: Host, name: str, *bootstrap: LabNode, **values: Any) -> LabNode:
        """A node with keys and configuration, not started; `a__b` in a name of a value is `a.b`."""
        settings: dict[str, Any] = {
            "node.name": name,
            "network.listen": [f"0.0.0.0:{PORT}"],
            "network.bootstrap": [other.outside for other in bootstrap],
            "network.lan_discovery": False,  # who knows whom is what these tests are about
        }
        settings.update((key.replace("__", "."), value) for key, value in values.items())
        node = LabNode(self, name, settings)
        node.host = host
        self.nodes.append(node)
        return node
