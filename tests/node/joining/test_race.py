"""Many redeem one invite through many members at once, while the issuer dies and comes back."""

import pytest
import trio

from node.joining.ledger_file import LedgerFile
from node.joining.reasons import Reason
from node.joining.redeemer import Joined
from tests.node.joining.world import World

NEWCOMERS = 100


async def race(world: World, *, uses: int, kills: int) -> None:
    async with trio.open_nursery() as nursery:
        for member in world.members:
            await nursery.start(member.live)
        issuer = world.members[0]
        code, _ = await issuer.joining.invite(life_ms=3_600_000, uses=uses)

        async def trouble() -> None:
            for _ in range(kills):
                await trio.sleep(world.rng.uniform(0.05, 0.6))
                issuer.kill()
                await trio.sleep(world.rng.uniform(0.1, 2))
                await nursery.start(issuer.live)

        async with trio.open_nursery() as crowd:
            crowd.start_soon(trouble)
            for number in range(NEWCOMERS):
                crowd.start_soon(world.newcomer, code, number)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("seed", range(6))
async def test_one_of_hundred_wins_over_restarts_of_the_issuer(seed, tmp_path, autojump_clock):
    world = World(seed, members=8, folder=tmp_path)
    await race(world, uses=1, kills=6)
    assert world.members[0].lives == 7
    winners = [each for each in world.outcomes if isinstance(each, Joined)]
    losers = [each.reason for each in world.outcomes if not isinstance(each, Joined)]
    assert (len(winners), len(losers)) == (1, NEWCOMERS - 1)
    assert set(losers) == {Reason.USED_UP}
    (invite,) = LedgerFile(tmp_path / "member-0").load()[0]
    assert [use.chain for use in invite.used] == [winners[0].chain.raw]
    # What the swarm hears of it is that one certificate, told again by every life.
    assert {chain.raw for chain in world.members[0].known} == {winners[0].chain.raw}


async def test_ten_uses_are_ten_members(tmp_path, autojump_clock):
    world = World(11, members=6, folder=tmp_path)
    await race(world, uses=10, kills=4)
    winners = [each for each in world.outcomes if isinstance(each, Joined)]
    assert len(winners) == len({each.chain.node_id for each in winners}) == 10
    assert len(world.outcomes) == NEWCOMERS
