"""A thousand nodes on one event heap, against the targets; `benchmarks/dht.py` does the same with ten thousand (docs/dht.md)."""

from pathlib import Path

from dht.key import record_key
from tests.dht import scenarios
from tests.dht.world import World
from tests.hash_seeds import outputs, same_under_two_hash_seeds

ROOT = Path(__file__).parents[2]
NODES = 1000


def test_at_rest() -> None:
    figures = scenarios.at_rest(1, NODES, 150)
    assert figures.success >= 0.999
    assert figures.hops <= 3
    assert figures.queries < 60


def test_at_rest_few_rounds_on_one_path() -> None:
    """Latency in round trips: 5 at most with alpha = 10."""
    world = World(6, settings=scenarios.settings(1), latency_s=(0.1, 0.1))
    nodes = [world.add() for _ in range(NODES)]
    world.prefill()
    key = record_key(world.swarm_id, "run", "tiny")
    assert world.put(nodes[0], key, b"here") >= 20
    for _ in range(40):
        started = world.now
        assert len(world.get(world.rng.choice(nodes), key)) == 1
        assert world.now - started <= 5 * 0.2 + 1e-6


def test_half_of_the_nodes_replaced_in_an_hour() -> None:
    figures = scenarios.under_churn(2, NODES, 100)
    assert figures.success >= 0.99
    assert figures.hops <= 5


def test_a_fifth_of_colluding_liars() -> None:
    for paths in (1, 4):
        figures = scenarios.with_liars(3, NODES, 100, share=0.2, paths=paths)
        assert figures.success >= 0.99
        assert figures.forged_offered > 50
        assert figures.forged_accepted == 0


def test_two_fifths_of_colluding_liars_on_eight_paths() -> None:
    figures = scenarios.with_liars(4, NODES, 60, share=0.4, paths=8)
    assert figures.success >= 0.99
    assert figures.forged_accepted == 0


def test_ids_ground_next_to_a_key_do_not_censor_it() -> None:
    """An attacker with k ids nearer than anybody's, from one network, and with 3 k from as many networks."""
    for ids, networks in ((20, 1), (60, 60)):
        figures = scenarios.with_ground_ids(5, 500, 25, ids=ids, networks=networks)
        assert figures.success >= 0.99
        assert figures.forged_accepted == 0


SCRIPT = """
import sys
from tests.dht import scenarios
from tests.dht.world import Collusion
world, nodes = scenarios.filled(int(sys.argv[1]), 1000, 4)
Collusion(world, world.rng.sample(nodes, 200))
tally = scenarios.Tally(world)
for record in scenarios.publish(world, nodes[:50], 3):
    for _ in range(5):
        tally.get(world.rng.choice(nodes), *record)
print(tally.figures(), world.digest())
"""


def test_same_seed_same_digest_whatever_the_hash_seed() -> None:
    trace = same_under_two_hash_seeds("-c", SCRIPT, "7")
    assert outputs("-c", SCRIPT, "8", hash_seeds=("0",)) != [trace]
