"""A bulk link changes its key after an hour, between two transfers."""

import trio

from tests.transport.nodes import address, nodes
from transport.simulated.memory import MemoryNetwork


async def test_an_old_key_is_changed_before_the_next_transfer(autojump_clock):
    async with nodes(MemoryNetwork(1), 2) as (a, b):
        peer = await a.connect([address(2)])
        links = []

        async def accept():
            links.append(await b.accept_bulk(a.node_id, b"x"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            sender = await peer.open_bulk(b"x")
        (receiver,) = links
        target = bytearray(600_000)
        keys = [receiver._opener._key]
        for number in range(3):
            data = bytes([number]) * len(target)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(sender.send, b"%d" % number, data)
                assert (
                    await receiver.receive(lambda _h, n: memoryview(target)[:n]) == b"%d" % number
                )
            assert target == data
            keys.append(receiver._opener._key)
            await trio.sleep(1805)
        assert keys[0] == keys[1] == keys[2] != keys[3]
        assert sender._sealer._key == keys[3]
