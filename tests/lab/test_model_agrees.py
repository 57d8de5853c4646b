"""The NATs of the in-memory network and those of the kernel agree, for every pair of kinds.

The same experiment runs over both (`tests.lab.meeting`): who meets, and whether two servers see
one port or two. Between homes whose packets need a round trip, as the model of resetting NATs is
about crossing SYNs.
"""

import itertools
import random

import pytest
import trio

from tests.lab.meeting import PORT, Outcome, PlacedNetwork, meet
from tests.lab.nat_types import NatType, direct_possible
from tests.lab.switch import LinkProfile
from tests.lab.topology import Lab
from transport.address import Address
from transport.simulated.deterministic import run_deterministically
from transport.simulated.link_model import LinkSettings
from transport.simulated.memory import MemoryNetwork, NatKind

pytestmark = pytest.mark.real

KINDS = [NatType(kind) for kind in NatKind if kind != NatKind.FIREWALL]
PAIRS = list(itertools.combinations_with_replacement(KINDS, 2))
DELAY_S = 0.02
PATIENCE_S = 20.0
HOPELESS_S = 2.5

Pair = tuple[NatType, NatType]
Finding = tuple[bool, tuple[bool, bool]]
"""Whether they met, and whether each one's mapping is the same for all."""


def patience_s(pair: Pair) -> float:
    """Only says how long is worth waiting; what came of it is compared, not this."""
    return PATIENCE_S if direct_possible(*pair) else HOPELESS_S


def finding(outcome: Outcome) -> Finding:
    one, other = (len(set(seen)) == 1 for seen in outcome.seen)
    return outcome.met, (one, other)


async def in_kernel(pairs: list[Pair]) -> dict[Pair, Finding]:
    found: dict[Pair, Finding] = {}
    with Lab(LinkProfile(delay_ms=DELAY_S * 1000)) as lab:

        async def run(pair: Pair) -> None:
            points, homes = [lab.public() for _ in range(2)], [lab.home(kind) for kind in pair]
            outcome = await meet(
                [PlacedNetwork(home.host.namespace) for home in homes],
                [(PlacedNetwork(point.namespace), Address(point.ip, PORT)) for point in points],
                rng=random.Random(1),
                patience_s=patience_s(pair),
            )
            found[pair] = finding(outcome)

        async with trio.open_nursery() as nursery:
            for pair in pairs:
                nursery.start_soon(run, pair)
    return found


def in_memory(pair: Pair) -> Finding:
    async def run() -> Outcome:
        world = MemoryNetwork(1, default=LinkSettings(latency_s=DELAY_S))
        homes = [
            world.host("192.168.1.2", behind=world.nat(f"11.1.0.{number}", NatKind(kind)))
            for number, kind in enumerate(pair, 1)
        ]
        points = [f"11.1.1.{number}" for number in (1, 2)]
        return await meet(
            homes,
            [(world.host(ip), Address(ip, PORT)) for ip in points],
            rng=random.Random(1),
            patience_s=patience_s(pair),
        )

    return finding(run_deterministically(1, run))


async def test_every_pair_fares_alike():
    kernel = await in_kernel(PAIRS)
    model = await trio.to_thread.run_sync(lambda: {pair: in_memory(pair) for pair in PAIRS})
    assert kernel == model
    assert {pair for pair, (met, _) in kernel.items() if met} == {
        pair for pair in PAIRS if direct_possible(*pair)
    }
