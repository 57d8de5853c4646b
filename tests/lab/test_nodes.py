"""Two nodes and what went before: connecting, as a node does it, by addresses that lead nowhere at first."""

from collections.abc import Iterator

import pytest
import trio

from tests.lab.marks import slow
from tests.lab.nat_types import NatType
from tests.lab.nodes import PORT, Node, World, open_world
from tests.lab.switch import LinkProfile
from tests.lab.topology import Lab

pytestmark = pytest.mark.real

FAR = LinkProfile(delay_ms=20)
GIVEN_UP_S = 0.6
"""Less than the kernel takes until it repeats a SYN: the hole in the own NAT is there, and the socket is gone."""
PATIENCE_S = 12.0
"""One punch; the next one would come half a minute later."""


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(FAR) as made:
        yield made


async def dial_then_punch(world: World, *, at_once: bool, tries: int) -> None:
    """Both sides dial where the other is seen, and give up; then they connect over a relay and punch."""
    for _ in range(tries):
        homes = [world.lab.home(NatType.PORT) for _ in range(2)]
        async with (
            world.node(homes[0].host, "a") as a,
            world.node(homes[1].host, "b") as b,
        ):
            nodes: list[Node] = [a, b]
            relayed = [
                [
                    address
                    for address in (await node.ask("reachable"))["addresses"]
                    if "/via/" in address
                ]
                for node in nodes
            ]
            seen = [f"{node.host.public_ip}:{PORT}" for node in nodes]

            async def dial(mine: int) -> None:
                # A relay that is not there: the direct address has the time to itself.
                elsewhere = f"11.9.9.9:1/via/{nodes[1 - mine].node_id}"
                answer = await nodes[mine].ask(
                    "try",
                    addresses=[seen[1 - mine], elsewhere],
                    node=str(nodes[1 - mine].node_id),
                    patience_s=GIVEN_UP_S,
                )
                assert answer["path"] is None, answer

            async with trio.open_nursery() as nursery:
                for mine in (0, 1):
                    if at_once:
                        nursery.start_soon(dial, mine)
                    else:
                        await dial(mine)
            node_id = str(b.node_id)
            first = await a.ask("connect", addresses=[seen[1], *relayed[1]], node=node_id)
            assert first["path"] == "relayed"
            last = await a.ask("direct", node=node_id, patience_s=PATIENCE_S)
            report = (await b.ask("report"))["report"]["punches"]
            assert last["path"] == "punched", report
        for home in homes:
            home.close()


@pytest.mark.parametrize(
    ("at_once", "tries"),
    [(False, 1), pytest.param(False, 8, marks=slow), pytest.param(True, 8, marks=slow)],
)
async def test_dials_that_led_nowhere_do_not_spoil_the_punch_that_follows(
    lab, at_once, tries
) -> None:
    """A hole left behind by a dial from the listening port is fatal: the NAT knows that dial's sequence number.

    The other side's SYN comes in through it, our listener answers with a number of its own, and the NAT drops
    that; meanwhile the half-open connection keeps our own dials from leaving.
    """
    async with open_world(lab, public=2) as world:
        await dial_then_punch(world, at_once=at_once, tries=tries)
