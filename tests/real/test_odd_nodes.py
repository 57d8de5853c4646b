"""A node that is alone, and one that says two things at once: what daemons tell about them."""

import os
import signal
import time

import pytest
import trio

from crdt.clock import HybridClock
from crdt.entry import START, Author, write
from crdt.exchange import VERSION
from crdt.rules import LEASE_S
from gossip.replication import protocol_of
from node import keys
from node.cli.client import Client
from node.errors import NodedError
from tests.real.cluster import PATIENCE_S
from tests.real.swarm import Swarm, complete, report, slow, state_of
from transport.address import Address
from transport.codec import pack
from transport.endpoint import open_endpoint
from transport.identity import Identity
from transport.tcp import TcpNetwork
from transport.trust.chain import certify_by_root
from transport.trust.trust import Trust

pytestmark = pytest.mark.real

NOBODY_S = 1.0


def seconds_to_find_nobody(node) -> float:
    """How long a daemon takes to say that it cannot find a node that does not exist."""
    nobody = Identity.from_seed(b"n" * 32).node_id
    begun = time.monotonic()
    with pytest.raises(NodedError, match="nobody in the swarm says"):
        Client(node.paths.control_socket, timeout_s=30).post("/v1/ping", {"peer": str(nobody)})
    return time.monotonic() - begun


@slow
def test_a_lookup_that_finds_nobody_ends_within_a_second(tmp_path):
    """Alone from the start; among others; and with contacts that have all fallen silent at once."""
    with Swarm(tmp_path) as swarm:
        seed = swarm.plain("seed").start()
        alone = seconds_to_find_nobody(seed.ready())
        others = [swarm.plain(f"n{n}", seed.address()).start() for n in range(4)]
        swarm.until_each(swarm.nodes, complete(4), "the swarm")
        among = seconds_to_find_nobody(seed)
        for node in others:
            node.send(signal.SIGSTOP)
        silent = seconds_to_find_nobody(seed)
        figures = {"alone_s": alone, "among_others_s": among, "all_silent_s": silent}
        report(test="nobody", **{name: round(took, 3) for name, took in figures.items()})
        assert max(figures.values()) <= NOBODY_S


async def test_two_stories_under_one_signature_are_told_by_everybody(tmp_path):
    """What a copied key may come to: somebody else signs with it, too."""
    with Swarm(tmp_path) as swarm:
        hub = swarm.observer("hub", run__create=True).start()
        one = swarm.observer("one", hub.address()).start()
        swarm.until_each(swarm.nodes, complete(1), "the run")
        copied = keys.load_identity(one.paths.node_key)
        await tell(hub, swarm, two_stories(copied, bytes.fromhex(state_of(hub)["document"])))
        for node, code in ((hub, "member-convicted"), (one, "identity-twice")):
            node.until(
                lambda status, code=code: code in [each["code"] for each in status["health"]],
                code,
            )


def two_stories(identity: Identity, document: bytes) -> dict:
    """A delta with two entries that have one number and say different things."""
    clock = HybridClock(identity.node_id, lambda: time.time_ns() // 1_000_000)
    stamp = clock.now()
    entries = [
        write(
            Author(identity.public_key, identity.sign),
            document,
            sequence=stamp.physical_ms,
            previous=START,
            stamp=stamp,
            lease_s=LEASE_S,
            key="metrics",
            value=[["told", number]],
        ).raw
        for number in (1.0, 2.0)
    ]
    return {"t": "delta", "v": VERSION, "entries": entries, "evidence": []}


async def tell(node, cluster: Swarm, message: dict) -> None:
    """Connect as one more peer, and say this about the run's document."""
    document = state_of(node)["document"]
    identity = Identity.generate(os.urandom)
    chain = certify_by_root(
        cluster.root,
        subject=identity.public_key,
        role="trainer",
        serial=os.urandom(16),
        now_ms=time.time_ns() // 1_000_000,
    )
    trust = Trust(cluster.swarm.id, chain.raw)
    async with open_endpoint(identity, cluster.swarm, TcpNetwork(), [], trust=trust) as endpoint:
        peer = await endpoint.connect([Address.parse(node.address())])
        stream = await peer.open_stream(protocol_of(document[:32]))
        await stream.send_message(pack(message))
        with trio.fail_after(PATIENCE_S):
            while not state_of(node)["convicted"]:
                await trio.sleep(0.05)
