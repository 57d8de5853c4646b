"""The same over real sockets: three nodes on the loopback interface, two of which listen nowhere."""

import os

import pytest
import trio

from tests.transport.nodes import SWARM, identity
from tests.trusted import trust_of
from transport.address import Address
from transport.endpoint import open_endpoint
from transport.network import Path
from transport.peer import Peer
from transport.relay.client import RelayClient
from transport.relay.service import RelayService
from transport.tcp import TcpNetwork

pytestmark = pytest.mark.real


async def test_a_circuit_over_tcp() -> None:
    network = TcpNetwork()
    payload = os.urandom(1 << 20)

    async def reverse(_peer: Peer, request: bytes) -> bytes:
        return request[::-1]

    with trio.fail_after(30):
        async with (
            open_endpoint(
                identity(1), SWARM, network, [Address("127.0.0.1", 0)], trust=trust_of(identity(1))
            ) as relay,
            open_endpoint(identity(2), SWARM, network, [], trust=trust_of(identity(2))) as hidden,
            open_endpoint(identity(3), SWARM, network, [], trust=trust_of(identity(3))) as asker,
            trio.open_nursery() as nursery,
        ):
            service = RelayService(relay)
            await nursery.start(service.run)
            published = trio.Event()
            client = RelayClient(hidden, on_change=lambda _: published.set())
            RelayClient(asker)
            client.candidates.add(Address("127.0.0.1", relay.addresses[0].port, str(relay.node_id)))
            await nursery.start(client.run)
            await published.wait()
            hidden.serve_calls("reverse", reverse)
            peer = await asker.connect(client.addresses, expected=hidden.node_id)
            assert peer.path is Path.RELAYED
            assert await peer.call("reverse", payload[:60000]) == payload[:60000][::-1]
            received = bytearray(len(payload))

            async def take() -> None:
                link = await hidden.accept_bulk(asker.node_id, b"x")
                for _ in range(8):
                    await link.receive(lambda _header, size: memoryview(received)[:size])
                await link.aclose()

            async with trio.open_nursery() as transfer:
                transfer.start_soon(take)
                link = await peer.open_bulk(b"x")
                for _ in range(8):
                    await link.send(b"", payload)
            assert received == payload
            assert service.statistics().ledger.carried_bytes > 8 * len(payload)
            nursery.cancel_scope.cancel()
