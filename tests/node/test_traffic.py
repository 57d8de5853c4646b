"""Every byte on the line counts once: bytes that a relay carries count with the relay's connection."""

import trio

from node.traffic import TrafficMeter
from transport.network import Path
from transport.watch import PeerDown, PeerPathChanged


class FakePeer:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes_sent = self.bytes_received = 0

    def exchange(self, sent: int, received: int) -> None:
        self.bytes_sent += sent
        self.bytes_received += received


class FakeEndpoint:
    """Peers and their events, as far as the meter asks for them."""

    def __init__(self, *peers: FakePeer) -> None:
        self.peers = dict(enumerate(peers))
        self._tell, self._told = trio.open_memory_channel[object](100)

    def watch(self):
        return self._told

    def move(self, peer: FakePeer, new: Path) -> None:
        old, peer.path = peer.path, new
        self._tell.send_nowait(PeerPathChanged(peer, old, new))

    def lose(self, peer: FakePeer) -> None:
        self.peers = {key: other for key, other in self.peers.items() if other is not peer}
        self._tell.send_nowait(PeerDown(peer, "gone"))


async def test_each_byte_counts_once_through_all_changes(autojump_clock):
    relay, other = FakePeer(Path.DIRECT), FakePeer(Path.RELAYED)
    endpoint = FakeEndpoint(relay, other)
    meter = TrafficMeter(endpoint)

    async def total():
        await trio.testing.wait_all_tasks_blocked()
        return meter.bytes_sent, meter.bytes_received

    async with trio.open_nursery() as nursery:
        await nursery.start(meter.run)
        other.exchange(100, 10)
        relay.exchange(105, 15)  # it carries the other's
        assert await total() == (105, 15)
        endpoint.move(other, Path.PUNCHED)
        assert await total() == (105, 15)
        other.exchange(1000, 500)
        assert await total() == (1105, 515)
        endpoint.move(other, Path.RELAYED)
        assert await total() == (1105, 515)
        other.exchange(7, 7)
        relay.exchange(8, 8)
        assert await total() == (1113, 523)
        endpoint.move(other, Path.DIRECT)
        await total()
        other.exchange(1, 1)
        assert await total() == (1114, 524)
        endpoint.lose(other)
        assert await total() == (1114, 524)
        endpoint.lose(relay)
        assert await total() == (1114, 524)
        nursery.cancel_scope.cancel()


async def test_a_peer_lost_while_relayed_keeps_what_it_exchanged_directly(autojump_clock):
    peer = FakePeer(Path.DIRECT)
    endpoint = FakeEndpoint(peer)
    meter = TrafficMeter(endpoint)
    async with trio.open_nursery() as nursery:
        await nursery.start(meter.run)
        peer.exchange(50, 5)
        endpoint.move(peer, Path.RELAYED)
        await trio.testing.wait_all_tasks_blocked()
        peer.exchange(1000, 1000)
        endpoint.lose(peer)
        await trio.testing.wait_all_tasks_blocked()
        assert (meter.bytes_sent, meter.bytes_received) == (50, 5)
        nursery.cancel_scope.cancel()
