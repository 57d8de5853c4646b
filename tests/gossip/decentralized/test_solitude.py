"""Learning alone is told where it is a fault, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest

from gossip.decentralized.kit.rehearsal import Quadratic, World
from gossip.decentralized.protocol import ALONE_AFTER, Completed, DecentralizedProtocol
from gossip.protocol import installed_protocols, load_plugin
from gossip.protocols.adpsgd import ADPSGD

WITHOUT_AGREEMENT = [
    protocol
    for protocol in map(load_plugin, sorted(installed_protocols()))
    if issubclass(protocol, DecentralizedProtocol)
]


def alone_in(made, rounds):
    """The most rounds in a row that any node was told to have learnt alone."""
    worst = [0]

    def look(node, event, _now):
        if isinstance(event, Completed) and (told := made.nodes[node].core.solitude()) is not None:
            worst[0] = max(worst[0], told.rounds)

    made.on_event = look
    made.start()
    made.run_rounds(rounds)
    return worst[0]


def centres(count):
    return np.random.default_rng(0).standard_normal((count, 8)).astype(np.float32)


@pytest.mark.parametrize("protocol", WITHOUT_AGREEMENT, ids=lambda protocol: protocol.name)
@pytest.mark.parametrize("count", [1, 2, 7])
def test_no_protocol_with_its_defaults_is_told_to_be_alone(protocol, count):
    """Neither one node, which has nobody, nor two, nor some."""
    made = World(protocol, count, Quadratic(centres(count)), rounds=60)
    assert alone_in(made, 60) == 0


def test_who_meets_nobody_for_long_is_told_so():
    made = World(ADPSGD, 4, Quadratic(centres(4)), rounds=60, settings={"exchanges": 1e-9})
    assert alone_in(made, 60) >= ALONE_AFTER
