"""Handing over state between endpoints: honest holders, together, and every kind of bad one."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgpack
import numpy as np
import pytest
import trio
import trio.testing

from gossip.blocks.library import Vectors
from gossip.collective.links.buffers import as_bytes
from gossip.collective.state.handover import (
    ANSWER_S,
    Handover,
    HeldState,
    open_handover,
)
from gossip.errors import StateUnavailable
from tests.gossip.swarm import RUN, Node, open_swarm
from transport.errors import RemoteCallFailed
from transport.identity import NodeId
from transport.peer import Peer
from transport.simulated.link_model import LinkSettings
from transport.simulated.memory import MemoryNetwork

PROTOCOL = f"handover/{RUN.hex()[:32]}"
BLOCKS = f"handover-blocks/{RUN.hex()[:32]}"
ROUND = 12
VECTORS = [
    np.arange(1_700_000, dtype=np.float32),  # several blocks
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


def manifest_of(vectors: list[np.ndarray]) -> bytes:
    described = Vectors("state", "state", [as_bytes(vector) for vector in vectors])
    list(described.hashing())
    return described.manifest.raw


def lied() -> list[np.ndarray]:
    vectors = [vector.copy() for vector in VECTORS]
    vectors[1].view(np.uint32)[2] ^= 1  # one bit in 54 million
    return vectors


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


@asynccontextmanager
async def three() -> AsyncIterator[tuple[MemoryNetwork, list[Node], Handover, Handover]]:
    """A fetcher, a place for a bad holder, and an honest one: nodes 0, 1 and 2."""
    async with (
        open_swarm(3) as (network, nodes),
        open_handover(nodes[0].endpoint, RUN, nothing_held) as fetcher,
        open_handover(nodes[2].endpoint, RUN, lambda: HELD) as honest,
    ):
        yield network, nodes, fetcher, honest


# ---- holders that answer wrongly -----------------------------------------------------------------

OK = {"ok": True, "sizes": SIZES, "reason": ""}
Answer = Callable[[], Awaitable[bytes]]

# name -> (answer to the call, what the fetcher says about it)
BAD: dict[str, tuple[bytes | None, str]] = {
    "holds something else": (
        msgpack.packb({"ok": False, "reason": "this node does not hold that state"}),
        "this node does not hold that state",
    ),
    "garbage for an answer": (b"\xc1\xff", "malformed answer"),
    "an answer of other types": (msgpack.packb({"ok": 1}), "malformed answer"),
    "no answer": (b"", "malformed answer"),
    "no manifest": (msgpack.packb(OK), "manifest is malformed"),
    "a manifest of something else": (
        msgpack.packb({**OK, "manifest": manifest_of(VECTORS[1:])}),
        "another size than its vectors",
    ),
    "sizes too small": (
        msgpack.packb({**OK, "sizes": [SIZES[0] - 4, *SIZES[1:]]}),
        "its vectors have other sizes than ours",
    ),
    "a vector less": (
        msgpack.packb({**OK, "sizes": SIZES[:2]}),
        "its vectors have other sizes than ours",
    ),
    "sizes beyond all bounds": (
        msgpack.packb({**OK, "sizes": [2**62] * 3}),
        "its vectors have other sizes than ours",
    ),
    "a description and nothing behind it": (
        msgpack.packb({**OK, "manifest": manifest_of(lied())}),
        "",  # it does not serve blocks at all
    ),
    "does not answer": (None, f"it does not answer (given up after {ANSWER_S:.0f} s)"),
}


@pytest.mark.parametrize("name", BAD)
async def test_a_bad_holder_is_told_and_another_one_is_enough(
    name: str, autojump_clock: Any
) -> None:
    answer, reason = BAD[name]

    async def serve(_peer: Peer, _request: bytes) -> bytes:
        if answer is None:
            await trio.sleep_forever()
        assert answer is not None
        return answer

    async with three() as (_, nodes, fetcher, _):
        bad, good = nodes[1].endpoint, nodes[2].endpoint
        bad.serve_calls(PROTOCOL, serve)
        with trio.fail_after(300):
            assert_fetched(await fetch(fetcher, [bad.node_id, good.node_id]))
            assert fetcher.fetched == 1
            with pytest.raises(StateUnavailable) as raised:
                await fetch(fetcher, [bad.node_id])
        assert str(raised.value).startswith(f"{bad.node_id.short}: ")
        assert reason in str(raised.value)
        assert fetcher.fetched == 1


async def test_another_state_under_the_right_name_is_never_used(autojump_clock: Any) -> None:
    """Even a majority that lies together costs an attempt, and no more."""
    one, other = (HeldState(ROUND, STATE, lied()) for _ in range(2))
    async with (
        open_swarm(4) as (_, nodes),
        open_handover(nodes[0].endpoint, RUN, nothing_held) as fetcher,
        open_handover(nodes[1].endpoint, RUN, lambda: one),
        open_handover(nodes[2].endpoint, RUN, lambda: other),
        open_handover(nodes[3].endpoint, RUN, lambda: HELD),
    ):
        liars, honest = [node.endpoint.node_id for node in nodes[1:3]], nodes[3].endpoint.node_id
        with trio.fail_after(300):
            assert_fetched(await fetch(fetcher, [*liars, honest]))
            with pytest.raises(StateUnavailable, match="another state than it announced"):
                await fetch(fetcher, liars[1:])
        assert fetcher.fetched == 1


async def test_a_block_that_is_wrong_is_attributed(autojump_clock: Any) -> None:
    """A holder that describes the right state and gives wrong bytes."""
    async with three() as (_, nodes, fetcher, _):
        liar = nodes[1].endpoint
        vectors = [vector.copy() for vector in VECTORS]
        held = HeldState(ROUND, STATE, vectors)
        async with open_handover(liar, RUN, lambda: held) as lying:
            await lying._memory.describe(held)
            for vector in vectors:
                vector += 1  # `held` says the same as before
            with trio.fail_after(60):
                assert_fetched(await fetch(fetcher, [liar.node_id, nodes[2].endpoint.node_id]))
                assert set(fetcher.blamed) <= {liar.node_id}
                with pytest.raises(StateUnavailable, match="not the artefact's"):
                    await fetch(fetcher, [liar.node_id])
            assert fetcher.blamed[liar.node_id] >= 1


async def test_all_who_hold_it_give_a_share(autojump_clock: Any) -> None:
    async with (
        open_swarm(4) as (network, nodes),
        open_handover(nodes[0].endpoint, RUN, nothing_held) as fetcher,
        open_handover(nodes[1].endpoint, RUN, lambda: HELD),
        open_handover(nodes[2].endpoint, RUN, lambda: HELD),
        open_handover(nodes[3].endpoint, RUN, lambda: HELD),
    ):
        for number in (2, 3, 4):
            slow = LinkSettings(latency_s=0.01, bandwidth_bytes_per_s=2_000_000)
            network.set_link("10.0.0.1", f"10.0.0.{number}", slow)
        before = trio.current_time()
        with trio.fail_after(60):
            assert_fetched(await fetch(fetcher, [node.endpoint.node_id for node in nodes[1:]]))
        alone_s = sum(SIZES) / 2_000_000
        assert trio.current_time() - before < 0.7 * alone_s


async def test_every_holders_reason_is_named(autojump_clock: Any) -> None:
    async with three() as (_, nodes, fetcher, _):
        liar, silent = nodes[1].endpoint, nodes[2].endpoint
        silent.unserve(PROTOCOL)
        stranger = NodeId(b"s" * 32)
        other = HeldState(ROUND, STATE, lied())
        async with open_handover(liar, RUN, lambda: other):
            with trio.fail_after(30), pytest.raises(StateUnavailable) as raised:
                await fetch(fetcher, [stranger, liar.node_id, silent.node_id])
        first, second, third = str(raised.value).split("; ")
        assert first == f"{stranger.short}: not connected"
        assert second == f"{liar.node_id.short}: sent another state than it announced"
        assert third.startswith(f"{silent.node_id.short}: ")


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
        for address in ("10.0.0.2", "10.0.0.3"):
            slow = LinkSettings(latency_s=0.01, bandwidth_bytes_per_s=3_000_000)
            network.set_link("10.0.0.1", address, slow)
        async with (
            open_handover(dying.endpoint, RUN, lambda: HELD),
            trio.open_nursery() as nursery,
        ):

            async def kill() -> None:
                await trio.sleep(after_s)
                network.kill_host("10.0.0.2", silent=silent)

            nursery.start_soon(kill)
            with trio.fail_after(40):
                assert_fetched(
                    await fetch(fetcher, [dying.endpoint.node_id, good.endpoint.node_id])
                )
            assert trio.current_time() > after_s, "it was alive when it was asked"


@pytest.mark.parametrize(
    "request_",
    [
        b"",
        b"\xc1",
        msgpack.packb({"round": -1, "state": STATE}),
        msgpack.packb({"round": ROUND, "state": STATE[:31]}),
        msgpack.packb([ROUND, STATE]),
    ],
)
async def test_a_malformed_request_costs_nothing(request_: bytes, autojump_clock: Any) -> None:
    async with three() as (_, nodes, fetcher, _):
        peer = nodes[0].endpoint.peers[nodes[2].endpoint.node_id]
        with pytest.raises(RemoteCallFailed):
            await peer.call(PROTOCOL, request_)
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
        open_handover(nodes[1].endpoint, RUN, lambda: held),
    ):
        with pytest.raises(StateUnavailable, match="does not hold that state"):
            await fetch(fetcher, [nodes[1].endpoint.node_id])


async def test_a_holder_that_moves_on_while_it_gives(autojump_clock: Any) -> None:
    """It stops giving, and is not taken for a liar."""
    vectors = [vector.copy() for vector in VECTORS]
    now: list[HeldState] = [HeldState(ROUND, STATE, vectors)]
    async with three() as (network, nodes, fetcher, _):
        slow = LinkSettings(latency_s=0.01, bandwidth_bytes_per_s=1_000_000)
        network.set_link("10.0.0.1", "10.0.0.2", slow)
        moving = nodes[1].endpoint
        async with (
            open_handover(moving, RUN, lambda: now[0]),
            trio.open_nursery() as nursery,
        ):

            async def next_round() -> None:
                await trio.sleep(1.0)
                now[0] = HeldState(ROUND + 1, b"n" * 32, [vector + 1 for vector in vectors])

            nursery.start_soon(next_round)
            with trio.fail_after(90), pytest.raises(StateUnavailable):
                await fetch(fetcher, [moving.node_id])
            assert not fetcher.blamed


async def test_a_state_that_changes_while_it_is_described(autojump_clock: Any) -> None:
    answers = iter([HELD, HELD, HeldState(ROUND + 1, STATE, VECTORS)])
    async with (
        open_swarm(2) as (_, nodes),
        open_handover(nodes[0].endpoint, RUN, nothing_held) as fetcher,
        open_handover(nodes[1].endpoint, RUN, lambda: next(answers)),
    ):
        with pytest.raises(StateUnavailable, match="changed meanwhile"):
            await fetch(fetcher, [nodes[1].endpoint.node_id])


async def test_a_slow_line_takes_its_time(autojump_clock: Any) -> None:
    """Longer than any single time-out: what counts is that blocks keep coming."""
    async with three() as (network, nodes, fetcher, _):
        slow = LinkSettings(latency_s=0.3, bandwidth_bytes_per_s=90_000)
        network.set_link("10.0.0.1", "10.0.0.3", slow)
        before = trio.current_time()
        assert_fetched(await fetch(fetcher, [nodes[2].endpoint.node_id]))
        assert trio.current_time() - before > 60


async def test_after_the_end_nobody_is_served(autojump_clock: Any) -> None:
    async with (
        open_swarm(2) as (_, nodes),
        open_handover(nodes[0].endpoint, RUN, nothing_held) as fetcher,
    ):
        async with open_handover(nodes[1].endpoint, RUN, lambda: HELD):
            assert_fetched(await fetch(fetcher, [nodes[1].endpoint.node_id]))
        with pytest.raises(StateUnavailable):
            await fetch(fetcher, [nodes[1].endpoint.node_id])


async def test_blocks_are_served_under_a_name_of_the_run(autojump_clock: Any) -> None:
    async with three() as (_, nodes, _, _):
        peer = nodes[0].endpoint.peers[nodes[2].endpoint.node_id]
        assert b"malformed" in await peer.call(BLOCKS, b"")
