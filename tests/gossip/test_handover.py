"""Handing over state between endpoints: honest holders, and every kind of bad one."""

from __future__ import annotations

import hashlib
import itertools
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgpack
import numpy as np
import pytest
import trio
import trio.testing

from gossip.collective import handover as module
from gossip.collective.handover import (
    MAX_TRANSFERS,
    MIN_BYTES_PER_S,
    STALL_S,
    Handover,
    HeldState,
    open_handover,
)
from gossip.errors import StateUnavailable
from tests.gossip.swarm import RUN, Node, open_swarm
from transport.bulk.link import MAX_PAYLOAD_BYTES, BulkLink
from transport.endpoint import Endpoint
from transport.errors import RemoteCallFailed
from transport.identity import NodeId
from transport.peer import Peer
from transport.simulated.link_model import LinkSettings
from transport.simulated.memory import MemoryNetwork

PROTOCOL = f"handover/{RUN.hex()[:32]}"
ROUND = 12
VECTORS = [
    np.arange(700_000, dtype=np.float32),  # several pieces
    np.full(3, 0.5, np.float32),
    np.empty(0, np.float32),
]
SIZES = [vector.nbytes for vector in VECTORS]


def digest_of(vectors: list[np.ndarray]) -> bytes:
    return hashlib.sha256(b"".join(vector.tobytes() for vector in vectors)).digest()


STATE = digest_of(VECTORS)
HELD = HeldState(ROUND, STATE, VECTORS)


def nothing_held() -> HeldState | None:
    return None


async def fetch(handover: Handover, holders: list[NodeId]) -> list[np.ndarray]:
    await trio.testing.wait_all_tasks_blocked()  # both ends know of every connection
    into = [np.full_like(vector, -1) for vector in VECTORS]
    nonces = itertools.count()
    await handover.fetch(
        ROUND,
        STATE,
        holders,
        into,
        lambda: digest_of(into),
        nonce=lambda: next(nonces).to_bytes(16, "big"),
    )
    return into


def assert_fetched(into: list[np.ndarray]) -> None:
    for arrived, vector in zip(into, VECTORS, strict=True):
        assert np.array_equal(arrived, vector)


# ---- holders -------------------------------------------------------------------------------------

Script = Callable[[BulkLink], Awaitable[None]]


def header(index: int, start: int) -> bytes:
    return struct.pack(">BQ", index, start)


async def send_all(link: BulkLink, vectors: list[np.ndarray]) -> None:
    for index, vector in enumerate(vectors):
        data = vector.tobytes()
        for start in range(0, len(data), MAX_PAYLOAD_BYTES):
            await link.send(header(index, start), data[start : start + MAX_PAYLOAD_BYTES])


async def other_bytes(link: BulkLink) -> None:
    lie = VECTORS[1].copy()
    lie.view(np.uint32)[2] ^= 1  # one bit in 22 million
    await send_all(link, [VECTORS[0], lie, VECTORS[2]])


async def out_of_order(link: BulkLink) -> None:
    await link.send(header(0, MAX_PAYLOAD_BYTES), bytes(100))


async def other_vector_first(link: BulkLink) -> None:
    await send_all(link, VECTORS[::-1])


async def too_long(link: BulkLink) -> None:
    await send_all(link, VECTORS[:1])
    await link.send(header(1, 0), bytes(SIZES[1] + 1))


async def same_piece_again(link: BulkLink) -> None:
    for _ in range(2):
        await link.send(header(0, 0), bytes(1000))


async def empty_pieces(link: BulkLink) -> None:
    while True:
        await link.send(header(0, 0), b"")


async def bad_header(link: BulkLink) -> None:
    await link.send(b"", bytes(100))


async def ends_early(link: BulkLink) -> None:
    await link.send(header(0, 0), bytes(1000))
    await link.aclose()


async def breaks_off(link: BulkLink) -> None:
    await link.send(header(0, 0), bytes(1000))
    link.abort()


async def falls_silent(link: BulkLink) -> None:
    await link.send(header(0, 0), bytes(1000))
    await trio.sleep_forever()


async def trickle(link: BulkLink) -> None:
    for at in itertools.count():
        await link.send(header(0, at), bytes(1))
        await trio.sleep(STALL_S / 2)


async def never_sends(_link: BulkLink) -> None:
    await trio.sleep_forever()


OK = {"ok": True, "sizes": SIZES, "reason": ""}

# name -> (answer to the call, what is sent then, what the fetcher says about it)
BAD: dict[str, tuple[bytes, Script | None, str]] = {
    "holds something else": (
        msgpack.packb({"ok": False, "reason": "this node does not hold that state"}),
        None,
        "this node does not hold that state",
    ),
    "garbage for an answer": (b"\xc1\xff", None, "malformed answer"),
    "an answer of other types": (msgpack.packb({"ok": 1}), None, "malformed answer"),
    "no answer": (b"", None, "malformed answer"),
    "sizes too small": (
        msgpack.packb({**OK, "sizes": [SIZES[0] - 4, *SIZES[1:]]}),
        None,
        "its vectors have other sizes than ours",
    ),
    "a vector less": (
        msgpack.packb({**OK, "sizes": SIZES[:2]}),
        None,
        "its vectors have other sizes than ours",
    ),
    "sizes beyond all bounds": (
        msgpack.packb({**OK, "sizes": [2**62] * 3}),
        None,
        "its vectors have other sizes than ours",
    ),
    "wrong bytes": (msgpack.packb(OK), other_bytes, "sent another state than it announced"),
    "pieces out of order": (msgpack.packb(OK), out_of_order, "came out of place"),
    "vectors out of order": (msgpack.packb(OK), other_vector_first, "came out of place"),
    "a piece too long": (msgpack.packb(OK), too_long, "came out of place"),
    "a piece twice": (msgpack.packb(OK), same_piece_again, "came out of place"),
    "pieces of nothing, for ever": (msgpack.packb(OK), empty_pieces, "came out of place"),
    "a piece without a place": (msgpack.packb(OK), bad_header, "came out of place"),
    "ends early": (msgpack.packb(OK), ends_early, "closed by the peer"),
    "breaks off": (msgpack.packb(OK), breaks_off, ""),
    "a trickle": (
        msgpack.packb(OK),
        trickle,
        f"its transfer is too slow (given up after {STALL_S + sum(SIZES) / MIN_BYTES_PER_S:.0f} s)",
    ),
    "does not answer": (b"never", None, "it does not answer (given up after 10 s)"),
    "falls silent": (
        msgpack.packb(OK),
        falls_silent,
        f"it sends nothing (given up after {STALL_S:.0f} s)",
    ),
    "sends nothing": (
        msgpack.packb(OK),
        never_sends,
        f"it sends nothing (given up after {STALL_S:.0f} s)",
    ),
}


def serve_badly(
    endpoint: Endpoint, answer: bytes, script: Script | None, nursery: trio.Nursery
) -> None:
    async def send(peer: Peer, nonce: bytes) -> None:
        assert script is not None
        link = await endpoint.accept_bulk(peer.node_id, b"handover/" + nonce)
        try:
            await script(link)
        except Exception:  # noqa: BLE001 - the fetcher has hung up; this one is only a prop
            link.abort()

    async def serve(peer: Peer, request: bytes) -> bytes:
        if answer == b"never":
            await trio.sleep_forever()
        if script is not None:
            nursery.start_soon(send, peer, msgpack.unpackb(request)["nonce"])
        return answer

    endpoint.serve_calls(PROTOCOL, serve)


@asynccontextmanager
async def three() -> AsyncIterator[tuple[MemoryNetwork, list[Node], Handover, Handover]]:
    """A fetcher, a place for a bad holder, and an honest one: nodes 0, 1 and 2."""
    async with (
        open_swarm(3) as (network, nodes),
        open_handover(nodes[0].endpoint, RUN, nothing_held) as fetcher,
        open_handover(nodes[2].endpoint, RUN, lambda: HELD) as honest,
    ):
        yield network, nodes, fetcher, honest


@pytest.mark.parametrize("name", BAD)
async def test_after_a_bad_holder_the_next_one_is_asked(name: str, autojump_clock: Any) -> None:
    answer, script, reason = BAD[name]
    async with three() as (_, nodes, fetcher, _), trio.open_nursery() as nursery:
        bad, good = nodes[1].endpoint, nodes[2].endpoint
        serve_badly(bad, answer, script, nursery)
        with trio.fail_after(300):
            assert_fetched(await fetch(fetcher, [bad.node_id, good.node_id]))
            assert fetcher.fetched == 1
            with pytest.raises(StateUnavailable) as raised:
                await fetch(fetcher, [bad.node_id])
        assert str(raised.value).startswith(f"{bad.node_id.short}: ")
        assert reason in str(raised.value)
        assert fetcher.fetched == 1
        nursery.cancel_scope.cancel()


async def test_the_first_honest_holder_is_enough(autojump_clock: Any) -> None:
    async with three() as (_, nodes, fetcher, honest):
        with trio.fail_after(20):
            assert_fetched(
                await fetch(fetcher, [nodes[2].endpoint.node_id, nodes[1].endpoint.node_id])
            )
            await trio.testing.wait_all_tasks_blocked()
        assert (fetcher.fetched, len(honest._serving)) == (1, 0)


async def test_every_holders_reason_is_named(autojump_clock: Any) -> None:
    async with three() as (_, nodes, fetcher, _), trio.open_nursery() as nursery:
        liar, silent = nodes[1].endpoint, nodes[2].endpoint
        serve_badly(liar, *BAD["wrong bytes"][:2], nursery)
        silent.unserve(PROTOCOL)
        stranger = NodeId(b"s" * 32)
        with trio.fail_after(30), pytest.raises(StateUnavailable) as raised:
            await fetch(fetcher, [stranger, liar.node_id, silent.node_id])
        first, second, third = str(raised.value).split("; ")
        assert first == f"{stranger.short}: not connected"
        assert second == f"{liar.node_id.short}: sent another state than it announced"
        assert third.startswith(f"{silent.node_id.short}: ")
        nursery.cancel_scope.cancel()


async def test_no_holders(autojump_clock: Any) -> None:
    async with three() as (_, _, fetcher, _):
        with pytest.raises(StateUnavailable, match="nobody holds the state"):
            await fetch(fetcher, [])


@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("after_s", [0.05, 0.2, 0.5])
async def test_a_holder_that_dies_halfway(
    after_s: float, silent: bool, autojump_clock: Any
) -> None:
    async with three() as (network, nodes, fetcher, _):
        dying, good = nodes[1], nodes[2]
        slow = LinkSettings(latency_s=0.01, bandwidth_bytes_per_s=3_000_000)
        network.set_link("10.0.0.1", "10.0.0.2", slow)
        async with (
            open_handover(dying.endpoint, RUN, lambda: HELD),
            trio.open_nursery() as nursery,
        ):

            async def kill() -> None:
                await trio.sleep(after_s)
                network.kill_host("10.0.0.2", silent=silent)

            nursery.start_soon(kill)
            with trio.fail_after(30):
                assert_fetched(
                    await fetch(fetcher, [dying.endpoint.node_id, good.endpoint.node_id])
                )
            assert trio.current_time() > after_s, "it was alive when it was asked"


async def test_a_busy_holder_says_so_and_is_free_again(autojump_clock: Any) -> None:
    async with three() as (_, nodes, fetcher, honest):
        peer = nodes[0].endpoint.peers[nodes[2].endpoint.node_id]
        request = {"round": ROUND, "state": STATE, "nonce": bytes([200]) * 16}
        assert msgpack.unpackb(await peer.call(PROTOCOL, msgpack.packb(request)))["ok"]
        # Asked for, and never fetched: one place for each asker, so that nobody takes them all.
        with pytest.raises(StateUnavailable, match="busy with other transfers"):
            await fetch(fetcher, [peer.node_id])
        await trio.sleep(module.ACCEPT_S + 1)
        assert not honest._serving
        assert_fetched(await fetch(fetcher, [peer.node_id]))


async def test_a_fetcher_that_gives_up_frees_its_place(autojump_clock: Any) -> None:
    async with three() as (network, nodes, fetcher, honest):
        slow = LinkSettings(latency_s=0.01, bandwidth_bytes_per_s=1_000_000)
        network.set_link("10.0.0.1", "10.0.0.3", slow)
        for _ in range(2 * MAX_TRANSFERS):
            with trio.move_on_after(0.5) as scope:
                await fetch(fetcher, [nodes[2].endpoint.node_id])
            assert scope.cancelled_caught
            await trio.sleep(0.5)
            assert not honest._serving
        assert honest.served == fetcher.fetched == 0


@pytest.mark.parametrize(
    "request_",
    [
        b"",
        b"\xc1",
        msgpack.packb({"round": -1, "state": STATE, "nonce": bytes(16)}),
        msgpack.packb({"round": ROUND, "state": STATE[:31], "nonce": bytes(16)}),
        msgpack.packb({"round": ROUND, "state": STATE, "nonce": bytes(15)}),
        msgpack.packb([ROUND, STATE, bytes(16)]),
    ],
)
async def test_a_malformed_request_costs_nothing(request_: bytes, autojump_clock: Any) -> None:
    async with three() as (_, nodes, fetcher, honest):
        peer = nodes[0].endpoint.peers[nodes[2].endpoint.node_id]
        with pytest.raises(RemoteCallFailed):
            await peer.call(PROTOCOL, request_)
        assert not honest._serving
        assert_fetched(await fetch(fetcher, [peer.node_id]))


@pytest.mark.parametrize(
    "held",
    [
        None,
        HeldState(ROUND - 1, STATE, VECTORS),
        HeldState(ROUND + 1, STATE, VECTORS),
        HeldState(ROUND, b"x" * 32, VECTORS),
    ],
    ids=["nothing", "an earlier round", "a later round", "another state"],
)
async def test_only_exactly_what_is_asked_for(held: HeldState | None, autojump_clock: Any) -> None:
    async with (
        open_swarm(2) as (_, nodes),
        open_handover(nodes[0].endpoint, RUN, nothing_held) as fetcher,
        open_handover(nodes[1].endpoint, RUN, lambda: held) as holder,
    ):
        with pytest.raises(StateUnavailable, match="does not hold that state"):
            await fetch(fetcher, [nodes[1].endpoint.node_id])
        assert not holder._serving


async def test_a_holder_that_moves_on_while_it_sends(autojump_clock: Any) -> None:
    vectors = [vector.copy() for vector in VECTORS]
    async with three() as (network, nodes, fetcher, _):
        slow = LinkSettings(latency_s=0.01, bandwidth_bytes_per_s=2_000_000)
        network.set_link("10.0.0.1", "10.0.0.2", slow)
        moving = nodes[1].endpoint
        async with (
            open_handover(moving, RUN, lambda: HeldState(ROUND, STATE, vectors)),
            trio.open_nursery() as nursery,
        ):

            async def next_round() -> None:
                await trio.sleep(0.5)
                vectors[0][:] = 7

            nursery.start_soon(next_round)
            with trio.fail_after(30), pytest.raises(StateUnavailable, match="another state"):
                await fetch(fetcher, [moving.node_id])


async def test_a_slow_line_takes_its_time(autojump_clock: Any) -> None:
    """Longer than any single time-out: what counts is that pieces keep coming."""
    async with three() as (network, nodes, fetcher, _):
        slow = LinkSettings(latency_s=0.3, bandwidth_bytes_per_s=90_000)
        network.set_link("10.0.0.1", "10.0.0.3", slow)
        before = trio.current_time()
        assert_fetched(await fetch(fetcher, [nodes[2].endpoint.node_id]))
        assert trio.current_time() - before > STALL_S + module.ANSWER_S


async def test_after_the_end_nobody_is_served(autojump_clock: Any) -> None:
    async with (
        open_swarm(2) as (_, nodes),
        open_handover(nodes[0].endpoint, RUN, nothing_held) as fetcher,
    ):
        async with open_handover(nodes[1].endpoint, RUN, lambda: HELD):
            assert_fetched(await fetch(fetcher, [nodes[1].endpoint.node_id]))
        with pytest.raises(StateUnavailable):
            await fetch(fetcher, [nodes[1].endpoint.node_id])
