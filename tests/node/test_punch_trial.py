"""The hole punch that `noded netcheck` makes by itself."""

import random
from contextlib import AsyncExitStack

import trio

from dht.key import record_key
from dht.provider import Kind
from dht.service import Dht, open_dht
from dht.settings import DhtSettings
from node.punch_trial import TRIAL_S, try_punch
from tests.transport.nodes import SWARM
from tests.transport.reach_world import World, open_world
from transport.network import Path

RUN_ID = bytes(range(32))


async def dhts(stack: AsyncExitStack, world: World) -> dict[str, Dht]:
    return {
        name: await stack.enter_async_context(
            open_dht(
                endpoint,
                rng=random.Random(name),
                wall_clock=lambda: 1_700_000_000.0 + trio.current_time(),
                settings=DhtSettings(server=name in ("relay", "far-1", "far-2")),
            )
        )
        for name, endpoint in world.endpoints.items()
    }


async def tried(kind: str, *, listed: bool = True, run: str | None = "demo") -> dict[str, object]:
    """A member behind a port-restricted NAT is in the run; who looks is behind a NAT of `kind`."""
    async with open_world() as world, AsyncExitStack() as stack:
        nat = world.network.nat
        member = await world.join("member", "10.1.0.2", behind=nat("11.2.0.1", "port-restricted"))
        looking = await world.join("looking", "10.1.0.2", behind=nat("11.3.0.1", kind))
        await world.until(lambda: any(address.relay for address in member.advertised))
        await world.until(lambda: looking.advertised)
        found = await dhts(stack, world)
        await trio.sleep(5)  # they get to know each other
        if listed:
            await found["member"].put(record_key(SWARM.id, "run", "demo"), RUN_ID)
            addresses = [str(address) for address in member.advertised]
            await found["member"].provide(Kind.RUN, RUN_ID, addresses)
        puncher = world.reaches["looking"].puncher
        assert puncher is not None
        result = await try_punch(looking, puncher, found["looking"], run)
        if result["ok"]:
            assert looking.peers[member.node_id].path is Path.PUNCHED
        return result


async def test_a_punch_with_a_member_behind_another_nat(autojump_clock: object) -> None:
    result = await tried("port-restricted")
    assert (result["ok"], result["path"], result["reason"]) == (True, "punched", "")


async def test_why_it_did_not_work(autojump_clock: object) -> None:
    result = await tried("symmetric")
    assert (result["ok"], result["path"]) == (False, None)
    assert "no dial of either side got through" in str(result["reason"])
    assert result["took_s"] < TRIAL_S  # type: ignore[operator]
    assert result["attempts"]


async def test_why_there_was_none(autojump_clock: object) -> None:
    result = await tried("port-restricted", listed=False)
    assert result["ok"] is None
    assert "no member of the run 'demo'" in str(result["reason"])
    result = await tried("port-restricted", run=None)
    assert "names no run" in str(result["reason"])
