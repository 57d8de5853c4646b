"""Four daemons, one of which is revoked with a command: out at once, everywhere, and still out when all of them have been restarted."""

import json
import os
import time

import pytest

from node import keys
from tests.real.cluster import Cluster, Node
from transport.trust.chain import certify, certify_by_root

pytestmark = pytest.mark.real


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def invited_by(founder: Node, guest: Node) -> None:
    """The guest's certificate is the founder's, not the root's."""
    identity = keys.load_identity(founder.paths.node_key)
    public_key = keys.load_identity(guest.paths.node_key).public_key
    chain = certify(
        identity,
        keys.load_chain(founder.paths.certificate),
        subject=public_key,
        role="trainer",
        serial=os.urandom(16),
        now_ms=now_ms(),
    )
    keys.store_chain(guest.paths.certificate, chain)


def peers_of(node: Node) -> set[str]:
    return {row["name"] for row in node.status()["peers"] if row["state"] == "connected"}


def test_a_revoked_node_is_out_within_seconds_and_stays_out(tmp_path) -> None:
    with Cluster(tmp_path) as cluster:
        founder = cluster.node("one")
        identity = keys.load_identity(founder.paths.node_key)
        chain = certify_by_root(
            cluster.root,
            subject=identity.public_key,
            role="trainer",
            serial=os.urandom(16),
            now_ms=now_ms(),
            may_invite=True,
        )
        keys.store_chain(founder.paths.certificate, chain)
        founder.start().ready()
        founder.keep_port()
        others = [cluster.node(name, bootstrap=founder) for name in ("two", "three", "four")]
        for other in others:
            invited_by(founder, other)
            other.start()
        nodes = [founder, *others]
        for node in nodes:
            cluster.wait(lambda node=node: len(peers_of(node)) == 3, f"{node.name}'s three peers")
            node.keep_port()
        honest, gone = nodes[:3], nodes[3]
        gone_id = gone.status()["node"]["id"]

        begun = time.monotonic()
        done = founder.cli("revoke", gone_id, "--reason", "lost laptop", "--json")
        assert done.returncode == 0, done.stderr
        for node in honest:
            cluster.wait(
                lambda node=node: (
                    "four" not in peers_of(node) and node.status()["swarm"]["revoked"] == 1
                ),
                f"{node.name} to put it out",
            )
        print(f"out of three daemons after {time.monotonic() - begun:.2f} s")
        cluster.wait(
            lambda: "certificate-refused" in [each["code"] for each in gone.status()["health"]],
            "the revoked node to know why",
        )

        for node in nodes:
            node.kill()
        for node in nodes:
            node.start()
        for node in nodes:
            node.ready()
        for node in honest:
            cluster.wait(lambda node=node: len(peers_of(node)) == 2, f"{node.name}'s two peers")
            assert node.status()["swarm"]["revoked"] == 1
        cluster.wait(
            lambda: founder.status()["swarm"]["refused"].get("revoked", 0) > 0, "it to be refused"
        )
        (refused,) = founder.status()["swarm"]["refused_keys"]
        assert (refused["id"], refused["reason"]) == (gone_id, "revoked")
        assert not peers_of(gone)
        history = json.loads(founder.cli("members", "--history", "--json").stdout)
        assert "lost laptop" in json.dumps(history)
