"""Connections by the thousand: an honest node joins within five seconds meanwhile, and memory hardly grows."""

import socket

import pytest
import trio

from tests.attacks.rig import (
    GROWTH_BYTES,
    JOIN_S,
    PATIENCE_S,
    Victim,
    flood,
    friend,
    handshake,
    many_files,
    victim,
)
from transport.secure.handshake import HELLO_BYTES

pytestmark = pytest.mark.real

CONNECTIONS = 2000
TURNED_AWAY = 1800
"""At least so many of them do not even wait for the deadline of the handshake."""


def half_open(part: str) -> bytes:
    """What the flood says on each connection."""
    first = (
        handshake().outgoing()
    )  # of a member even: it proves the swarm's key and stays silent then
    return {"silent": b"", "hello": first[:HELLO_BYTES], "almost": first[:-1], "proved": first}[
        part
    ]


async def attack(target: Victim, sources: list[str], say: bytes) -> None:
    held: list[socket.socket] = []
    try:
        with many_files(), trio.fail_after(PATIENCE_S):
            async with friend(target):
                before = await target.about()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(flood, target.address, sources, CONNECTIONS, say, held)
                    while len(held) < CONNECTIONS // 2:
                        await trio.sleep(0.01)
                    with trio.fail_after(JOIN_S):
                        await target.join()
                with trio.fail_after(JOIN_S):  # all are open now, and as many as may are kept
                    await target.join(3)
                after = await target.about()
                assert after["rss"] - before["rss"] <= GROWTH_BYTES
                assert after["descriptors"] - before["descriptors"] <= 80
                # A SYN that found the backlog full is sent again a second later, and so on.
                while turned_away((await target.about())["counters"]) < TURNED_AWAY:
                    await trio.sleep(0.05)
    finally:
        for sock in held:
            sock.close()


def turned_away(counters: dict[str, int]) -> int:
    return sum(
        count
        for name, count in counters.items()
        if name.startswith("refused-") or name == "handshake-pushed-out"
    )


@pytest.mark.parametrize("part", ["silent", "hello", "almost", "proved"])
async def test_two_thousand_connections_from_one_address(part: str) -> None:
    async with victim() as target:
        await attack(target, ["127.0.0.2"], half_open(part))


@pytest.mark.parametrize("part", ["silent", "almost"])
async def test_two_thousand_connections_from_forty_addresses(part: str) -> None:
    """Each has tokens to spare, and together they fill the gate over and over."""
    async with victim() as target:
        await attack(target, [f"127.0.0.{number}" for number in range(2, 42)], half_open(part))
        assert (await target.about())["counters"]["handshake-pushed-out"] > 0


async def test_members_join_from_the_address_that_floods() -> None:
    async with victim() as target:  # where the friends of the attack come from as well
        await attack(target, ["127.0.0.1"], b"")
