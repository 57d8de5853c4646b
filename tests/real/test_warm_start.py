"""A node that was away finds the swarm from its saved routing table alone: no bootstrap address, the seed gone for good."""

import os
import time

import pytest

from dht.saved import Saved, decode, encode
from node import keys
from tests.real.swarm import Swarm, complete, report, row_of, slow

pytestmark = pytest.mark.real

HOUR_S, DAY_S = 3600.0, 86400.0


class Away:
    """Five nodes: the seed, three that stay, and one that has stopped in good order after it met them all."""

    def __init__(self, swarm: Swarm) -> None:
        self.swarm = swarm
        # A node without a run at first: a run's folder must not help it to find the run.
        self.seed = swarm.observer("seed", run__create=True).start()
        address = self.seed.address()
        self.others = [swarm.observer(f"stays-{n}", address).start() for n in range(3)]
        self.node = swarm.plain("away", address).start()
        swarm.until_each(swarm.nodes, complete(4), "the swarm")
        self.node.stop()
        self.table = self.node.home / "dht-contacts"
        self.seed.kill()

    def age(self, by_s: float) -> None:
        """Have its table say that everybody was heard from that much earlier."""
        identity = keys.load_identity(self.node.paths.node_key)
        known = {"swarm_id": self.swarm.swarm.id, "node_id": bytes(identity.node_id)}
        saved = decode(self.table.read_bytes(), wall=time.time(), **known)
        assert len(saved) == 4
        old = [Saved(each.node_id, each.addresses, each.seen_at - by_s) for each in saved]
        self.table.write_bytes(encode(old, **known))
        self.table.chmod(0o600)

    def comes_back(self, what: str) -> None:
        """With a run to find and nobody to ask first; one more of those it knew is gone by now."""
        self.others.pop().kill()
        del self.node.values["network.bootstrap"]
        self.node.values |= {"run.name": "demo", "trainer.auto": False}
        self.node.write_config()
        begun = time.monotonic()
        self.node.start()
        self.swarm.until_each([self.node], complete(2), "swarm and run from the table alone")
        took_s = time.monotonic() - begun
        self.swarm.until_each(
            self.others,
            lambda status: (row_of(status, "away") or {"path": None})["path"] is not None,
            "the node that was away",
        )
        report(test="warm start", away=what, seconds=round(took_s, 2))


@pytest.mark.parametrize("age_s", [pytest.param(HOUR_S, marks=slow), DAY_S], ids=["hour", "day"])
def test_from_a_table_whose_stamps_are_old(tmp_path, age_s):
    with Swarm(tmp_path) as swarm:
        away = Away(swarm)
        away.age(age_s)
        away.comes_back(f"stamps aged by {age_s:.0f} s")


@slow
def test_after_being_away_in_earnest(tmp_path):
    """An hour; NODED_AWAY_S gives another time in seconds."""
    away_s = float(os.environ.get("NODED_AWAY_S", HOUR_S))
    with Swarm(tmp_path) as swarm:
        away = Away(swarm)
        time.sleep(away_s)
        away.comes_back(f"{away_s:.0f} s in earnest")
