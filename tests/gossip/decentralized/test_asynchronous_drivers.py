"""Protocols without rounds under the real driver, over encrypted connections in memory: they end, met each other, and settle what they began."""

from __future__ import annotations

import numpy as np
import pytest
import trio

from gossip.decentralized.asynchronous.pairs import Pairwise
from gossip.decentralized.protocol import LocalWork, Train
from gossip.protocol import load_plugin
from gossip.protocols.push_sum import PushSum
from tests.gossip.decentralized.gossips import Gossips
from tests.gossip.decentralized.test_driver import together
from tests.gossip.decentralized.toy import Quadratic
from transport.simulated.deterministic import run_deterministically

LEGS = 12
NODES = 4


class Either(Quadratic):
    """Also says the gradient of (x - target)^2 / 2 where a leg asks for no more."""

    async def train(self, leg: Train) -> LocalWork:
        if leg.rule.kind != "gradient":
            return await super().train(leg)
        await self._sleep(self.seconds)
        return LocalWork(leg.params.copy(), 1, 1.0, 0.0, leg.params - self.target)


def quadratic(index):
    return Either(float(index), 0.1 + 0.01 * index, trio.sleep)


@pytest.mark.parametrize("name", ["ad-psgd", "a2cid2", "dadao", "push-sum", "partitioned"])
def test_four_nodes_train_meet_and_end(name):
    protocol = load_plugin(name)

    def make(context):
        return protocol(protocol.parse_settings({}), context)

    async def run(seed):
        gossips = Gossips(seed, make, quadratic, rounds=LEGS)
        await together(gossips, NODES)
        return gossips

    lives = list(run_deterministically(5, run, 5).lives.values())
    assert [life.progress[-1].round for life in lives] == [LEGS] * NODES
    assert sum(step.members > 1 for life in lives for step in life.progress) > NODES
    cores = [life.core for life in lives]
    assert all(np.isfinite(core.model).all() for core in cores)
    assert all(core.describe()["unusable"] == 0 for core in cores)
    if protocol is PushSum:
        assert sum(core.weight for core in cores) == pytest.approx(NODES, abs=1e-12)
    if issubclass(protocol, Pairwise):
        counts = [core.exchanges.counts for core in cores]
        assert sum(c.settled for c in counts) == sum(c.answered for c in counts) > 0
        assert sum(c.unsettled for c in counts) == 0
