"""The verdict of `noded netcheck`: each cause has its own word and its own advice."""

import pytest

from transport.address import Address
from transport.reach.diagnosis import Facts, Relay, Standing, diagnose

PUBLIC, LAN = Address("11.1.1.7", 7447), Address("192.168.1.7", 7447)
SOME = {"peers": 3, "far_peers": 2}
RELAY = [Relay(node="nd-x", rtt_s=0.03)]


@pytest.mark.parametrize(
    ("facts", "standing", "advice"),
    [
        (Facts(), Standing.ISOLATED, "bootstrap"),
        (Facts(peers=3), Standing.LOCAL, ""),
        (Facts(**SOME), Standing.UNKNOWN, "wait"),
        (Facts(**SOME, reached={PUBLIC: True}, open=[PUBLIC]), Standing.DIRECT, ""),
        (Facts(reached={PUBLIC: True}, open=[PUBLIC]), Standing.DIRECT, ""),
        (Facts(**SOME, reached={LAN: True, PUBLIC: False}), Standing.PUNCHABLE, "will serve"),
        (
            Facts(**SOME, reached={PUBLIC: False}, interfaces=[PUBLIC.host], relays=RELAY),
            Standing.PUNCHABLE,
            "allow incoming",
        ),
        (
            Facts(**SOME, reached={PUBLIC: False}, interfaces=[LAN.host], relays=RELAY),
            Standing.UNKNOWN,
            "forward",
        ),
        (Facts(**SOME, reached={PUBLIC: False}, interfaces=[LAN.host]), Standing.UNKNOWN, "relay"),
        (Facts(**SOME, reached={PUBLIC: True}, mapping="independent"), Standing.PUNCHABLE, "relay"),
        (Facts(**SOME, mapping="independent", relays=RELAY), Standing.PUNCHABLE, ""),
        (Facts(**SOME, mapping="independent"), Standing.PUNCHABLE, "will serve as a relay"),
        (Facts(**SOME, mapping="dependent", relays=RELAY), Standing.RELAYED, "forward"),
        (Facts(**SOME, mapping="dependent"), Standing.RELAYED, "will serve as a relay"),
    ],
)
def test_each_cause_has_its_verdict(facts, standing, advice):
    diagnosis = diagnose(facts)
    assert diagnosis.standing is standing
    assert advice in diagnosis.advice
    assert bool(advice) == bool(diagnosis.advice)
    assert diagnosis.sentence
