"""A connection moves to another link in the middle of everything, and nobody notices."""

import random

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.transport.relayed import Pair, Traffic, relayed_pair
from transport.deterministic import run_deterministically
from transport.link_model import LinkSettings
from transport.memory import MemoryNetwork
from transport.network import Path
from transport.peer import Peer
from transport.watch import PeerPathChanged

ROUGH = LinkSettings(latency_s=0.05, jitter_s=0.02, split=0.3, stall=0.02)
FAST = LinkSettings(latency_s=0.01, jitter_s=0.005, split=0.3)


async def echo(_peer: Peer, request: bytes) -> bytes:
    return request


async def test_the_path_changes_and_everything_goes_on(autojump_clock: object) -> None:
    world = MemoryNetwork(1, default=FAST)
    async with relayed_pair(world, circuit=ROUGH) as pair:
        pair.b.serve_calls("echo", echo)
        assert pair.ours.path == pair.theirs.path == Path.RELAYED
        stream = await pair.ours.open_stream("nothing")
        with pair.a.watch() as ours, pair.b.watch() as theirs:
            assert await pair.upgrade(pair.a)
            await trio.sleep(1)
            assert ours.receive_nowait() == PeerPathChanged(pair.ours, Path.RELAYED, Path.REVERSED)
            assert theirs.receive_nowait() == PeerPathChanged(
                pair.theirs, Path.RELAYED, Path.REVERSED
            )
            for events in (ours, theirs):
                with pytest.raises(trio.WouldBlock):
                    events.receive_nowait()
        assert pair.ours.path == pair.theirs.path == Path.REVERSED
        assert pair.ours.address == pair.links[0].remote
        assert pair.a.peers[pair.b.node_id] is pair.ours
        assert await pair.ours.call("echo", b"hello") == b"hello"
        assert world.open_connections == 1  # the circuit is closed
        assert pair.ours.bytes_received == pair.theirs.bytes_sent
        assert pair.theirs.bytes_received == pair.ours.bytes_sent
        await trio.sleep(100)
        assert not pair.ours.closed.is_set()
        assert trio.current_time() - pair.ours.last_seen < 2
        stream.reset()
        assert pair.a.counters["connections-moved"] == 1
        assert not pair.a.counters["protocol-violation"]


async def _story(seed: int, swapped: bool, dialers: str, *, kill: str = "") -> None:
    """Traffic, an upgrade in its middle, and perhaps a link that dies at some moment."""
    rng = random.Random(seed)
    world = MemoryNetwork(
        seed,
        default=LinkSettings(
            latency_s=rng.choice((0.0, 0.01, 0.2)),
            jitter_s=rng.choice((0.0, 0.02)),
            split=rng.choice((0.0, 0.5)),
        ),
        window_bytes=rng.choice((4096, 256 * 1024)),
    )
    circuit = LinkSettings(
        latency_s=rng.choice((0.0, 0.05, 0.3)),
        jitter_s=rng.choice((0.0, 0.05)),
        split=rng.choice((0.0, 0.5)),
        stall=rng.choice((0.0, 0.05)),
        bandwidth_bytes_per_s=rng.choice((1e6, 1e8)),
    )
    async with relayed_pair(world, swapped=swapped, circuit=circuit) as pair:
        traffic = Traffic(rng, streams=6, size=60_000)
        traffic.serve(pair.a)
        traffic.serve(pair.b)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(traffic.run, pair.a, pair.ours)
            nursery.start_soon(traffic.run, pair.b, pair.theirs)
            await trio.sleep(rng.uniform(0, 0.5))
            for who in dialers:
                nursery.start_soon(pair.upgrade, pair.a if who == "a" else pair.b)
            if kill:
                await _kill(pair, rng, kill)
        await trio.sleep(20)  # the answering sides read to their ends, too
        if not kill:
            traffic.check_complete()
            assert pair.ours.path == pair.theirs.path == Path.REVERSED
            assert not pair.ours.closed.is_set()
        traffic.check_prefixes()
        for endpoint in (pair.a, pair.b):
            assert not endpoint.counters["protocol-violation"], endpoint.counters
            assert not endpoint.counters["record-refused"], endpoint.counters
            assert not endpoint.counters["connection-crashed"], endpoint.counters
        if kill:
            _check_agreement(pair)
        else:
            assert world.open_connections == 1
    assert world.open_connections == 0


async def _kill(pair: Pair, rng: random.Random, which: str) -> None:
    await trio.sleep(rng.uniform(0, 1.5))
    for raw in pair.circuits if which == "old" else pair.links:
        raw.abort()


def _check_agreement(pair: Pair) -> None:
    """Both sides are connected, over the same kind of path and with living calls, or both are not."""
    ours = pair.a.peers.get(pair.b.node_id)
    theirs = pair.b.peers.get(pair.a.node_id)
    assert (ours is None) == (theirs is None)
    if ours is not None and theirs is not None:
        assert ours.path == theirs.path
    assert pair.world.open_connections == (0 if ours is None else 1)


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("dialers", ["a", "b", "ab", "aabb"])
def test_no_byte_is_lost_doubled_or_moved(swapped: bool, dialers: str) -> None:
    for seed in range(8):
        run_deterministically(seed, lambda seed=seed: _story(seed, swapped, dialers))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.booleans(), st.sampled_from(["a", "b", "ab", "abab"]))
def test_no_byte_is_lost_in_any_history(seed: int, swapped: bool, dialers: str) -> None:
    run_deterministically(seed, _story, seed, swapped, dialers)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 2**32),
    st.booleans(),
    st.sampled_from(["a", "b", "ab"]),
    st.sampled_from(["old", "new"]),
)
def test_a_link_that_dies_loses_the_peer_at_most(
    seed: int, swapped: bool, dialers: str, kill: str
) -> None:
    run_deterministically(seed, lambda: _story(seed, swapped, dialers, kill=kill))
