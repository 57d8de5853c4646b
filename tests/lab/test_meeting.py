"""The lab shows what a prototype with plain sockets has shown: which pairs meet by simultaneous open.

Measured then, with rendezvous and random 20 to 300 ms retries: port-restricted meets
port-restricted always, with 5 % loss too; NATs that answer strangers with RST meet once there is a
round trip for the SYNs to cross in (at none they met 5 of 24 times); the side behind a symmetric
NAT dials in where the other's NAT does not mind the port; port-restricted against symmetric, and
symmetric against symmetric, never meet (0 of 20).
"""

import random

import pytest
import trio

from tests.lab.meeting import PORT, Outcome, PlacedNetwork, meet
from tests.lab.nat_types import NatType
from tests.lab.switch import LinkProfile
from tests.lab.topology import Lab
from transport.address import Address

pytestmark = pytest.mark.real

PATIENCE_S = 30.0
HOPELESS_S = 2.5
"""How long those try that cannot meet: the kernel's first repeated SYN comes after a second."""

HALF = LinkProfile(delay_ms=20)
LOSSY = LinkProfile(delay_ms=20, jitter_ms=5, loss=0.05)
SKEWED = LinkProfile(delay_ms=25)


async def trial(
    lab: Lab, a: NatType, b: NatType, *, seed: int, patience_s: float, skew_s: float = 0.0
) -> Outcome:
    """One pair in homes of its own."""
    point, homes = lab.public(), [lab.home(kind) for kind in (a, b)]
    return await meet(
        [PlacedNetwork(home.host.namespace) for home in homes],
        [(PlacedNetwork(point.namespace), Address(point.ip, PORT))],
        rng=random.Random(seed),
        patience_s=patience_s,
        skew_s=skew_s,
    )


@pytest.mark.parametrize(
    ("profile", "a", "b", "tries"),
    [
        (None, NatType.PORT, NatType.PORT, 2),
        (HALF, NatType.PORT, NatType.PORT, 2),
        (LOSSY, NatType.PORT, NatType.PORT, 2),
        (HALF, NatType.PORT, NatType.PORT_RST, 2),
        (HALF, NatType.PORT_RST, NatType.PORT_RST, 2),
        (HALF, NatType.PORT, NatType.DOUBLE, 1),
        (HALF, NatType.FULL, NatType.SYMMETRIC, 1),
        (None, NatType.ADDRESS, NatType.SYMMETRIC, 1),
    ],
)
async def test_pairs_that_meet(profile, a, b, tries):
    with Lab(profile, seed=1) as lab:
        for seed in range(tries):
            outcome = await trial(lab, a, b, seed=seed, patience_s=PATIENCE_S)
            assert outcome.met, (seed, outcome)
            if NatType.SYMMETRIC in (a, b):
                assert outcome.how == ("accept", "connect")  # reversal: that side dialed in


async def test_the_hole_of_a_dropping_nat_stays_open_for_the_latecomer():
    with Lab(SKEWED) as lab:
        outcome = await trial(
            lab, NatType.PORT, NatType.PORT, seed=0, patience_s=PATIENCE_S, skew_s=0.3
        )
        assert outcome.met
        assert outcome.how == ("connect", "connect")  # a true simultaneous open
        assert outcome.took_s >= 0.3


async def test_pairs_that_never_meet():
    outcomes: list[Outcome] = []
    with Lab(HALF) as lab:

        async def run(a: NatType, b: NatType, seed: int) -> None:
            outcomes.append(await trial(lab, a, b, seed=seed, patience_s=HOPELESS_S))

        async with trio.open_nursery() as nursery:
            for seed in range(2):
                nursery.start_soon(run, NatType.PORT, NatType.SYMMETRIC, seed)
                nursery.start_soon(run, NatType.SYMMETRIC, NatType.SYMMETRIC, seed)
                nursery.start_soon(run, NatType.PORT_RST, NatType.SYMMETRIC, seed)
    assert [outcome.met for outcome in outcomes] == [False] * 6


async def test_ipv6_hosts_behind_firewalls_meet():
    with Lab(HALF) as lab:
        point, homes = lab.public(), [lab.home(NatType.IPV6) for _ in range(2)]
        outcome = await meet(
            [PlacedNetwork(home.host.namespace) for home in homes],
            [(PlacedNetwork(point.namespace), Address(point.ip6, PORT))],
            rng=random.Random(0),
            patience_s=PATIENCE_S,
            wildcard="::",
        )
        assert outcome.met
        assert [seen[0].host for seen in outcome.seen] == [home.host.ip6 for home in homes]
