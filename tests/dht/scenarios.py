"""What is measured in simulated swarms: one function per situation, for the test suite (1,000 nodes) and `benchmarks/dht.py` (10,000).

"Success" is a search for a record that comes back with its true value. The same seed gives the same figures.
"""

from __future__ import annotations

import statistics

import attrs

from dht.key import record_key
from dht.lookup import LookupSettings
from dht.operation import Found
from dht.settings import DhtSettings
from tests.dht.world import Collusion, SimNode, World


@attrs.frozen
class Figures:
    """One row of the table."""

    searches: int
    successes: int
    hops: float
    """Median; nodes asked in a row, each named by the one before."""
    queries: float
    """Median, of the search itself."""
    seconds: float
    """Median, of virtual time."""
    seconds_99: float
    """99th percentile."""
    forged_offered: int
    forged_accepted: int
    upkeep: float = 0.0
    """Queries of each node in a second that belong to no search: refreshing the table. 0 where that is switched off."""

    @property
    def success(self) -> float:
        return self.successes / self.searches


class Tally:
    def __init__(self, world: World) -> None:
        self._world = world
        self._hops: list[int] = []
        self._queries: list[int] = []
        self._seconds: list[float] = []
        self._successes = 0
        self._forged = 0

    def get(self, me: SimNode, key: bytes, value: bytes) -> None:
        world = self._world
        started = world.now
        event = world.wait(me, me.node.get(key, world.now, world.wall))
        assert isinstance(event, Found)
        values = [record.value for record in event.records]
        self._successes += value in values
        self._forged += len([each for each in values if each != value])
        self._hops.append(event.hops)
        self._queries.append(event.queries)
        self._seconds.append(world.now - started)

    @property
    def queries(self) -> int:
        """Of all searches together."""
        return sum(self._queries)

    def figures(self) -> Figures:
        return Figures(
            len(self._hops),
            self._successes,
            statistics.median(self._hops),
            statistics.median(self._queries),
            statistics.median(self._seconds),
            sorted(self._seconds)[int(len(self._seconds) * 0.99)],
            self._world.counters["forged"],
            self._forged,
        )


def settings(paths: int, **more: float) -> DhtSettings:
    return DhtSettings(lookup=LookupSettings(paths=paths), **more)  # type: ignore[arg-type]


def filled(seed: int, count: int, paths: int, **more: float) -> tuple[World, list[SimNode]]:
    """A swarm whose tables are as a long, quiet life leaves them; `refresh_s=1e9` leaves their upkeep out of what is measured."""
    world = World(seed, settings=settings(paths, **more))
    nodes = [world.add() for _ in range(count)]
    world.prefill()
    return world, nodes


def publish(world: World, writers: list[SimNode], count: int) -> list[tuple[bytes, bytes]]:
    records = []
    for number in range(count):
        at = world.counters["published"] = world.counters["published"] + 1
        key, value = record_key(world.swarm_id, "run", str(at)), b"value %d" % number
        world.put(world.rng.choice(writers), key, value)
        records.append((key, value))
    return records


def take_paths(world: World, paths: int) -> None:
    """Have every node search on so many paths from now on; a filled swarm serves several measurements."""
    world.settings = attrs.evolve(
        world.settings, lookup=attrs.evolve(world.settings.lookup, paths=paths)
    )
    for sim in world.nodes.values():
        sim.node._settings = world.settings


def search(world: World, nodes: list[SimNode], searches: int, records: int) -> Figures:
    """`records` are written by, and searched for by, any of `nodes`."""
    world.counters["forged"] = 0
    written = publish(world, nodes, records)
    tally = Tally(world)
    for _ in range(searches):
        tally.get(world.rng.choice(nodes), *world.rng.choice(written))
    return tally.figures()


def at_rest(seed: int, count: int, searches: int, *, paths: int = 4) -> Figures:
    """Nothing fails."""
    world, nodes = filled(seed, count, paths, refresh_s=1e9)
    return search(world, nodes, searches, max(10, searches // 20))


def with_upkeep(
    seed: int, count: int, searches: int, *, paths: int = 4, window_s: float = 60.0
) -> Figures:
    """Nothing fails, and everybody refreshes its table: the searches are made in the first minute of that.

    The nodes began together, so their first refreshes crowd into 240 s instead of the 600 s of a swarm that grew up: 2.5 times the
    load that upkeep comes to in the long run.
    """
    world, nodes = filled(seed, count, paths)
    records = publish(world, nodes, max(10, searches // 20))
    begin = 0.8 * world.settings.refresh_s
    assert world.now < begin
    world.run_for(begin - world.now)
    before = world.counters["calls"]
    tally = Tally(world)
    for number in range(1, searches + 1):
        world.run_for(max(0.0, begin + window_s * number / searches - world.now))
        tally.get(world.rng.choice(nodes), *world.rng.choice(records))
    calls = world.counters["calls"] - before - tally.queries
    return attrs.evolve(tally.figures(), upkeep=calls / count / (world.now - begin))


def infiltrated(seed: int, count: int, share: float) -> tuple[World, list[SimNode]]:
    """A swarm in which a share of all nodes collude from the start, and its honest nodes."""
    world, nodes = filled(seed, count, 4, refresh_s=1e9)
    Collusion(world, world.rng.sample(nodes, round(count * share)))
    return world, [sim for sim in nodes if sim.contact.node_id not in world.liars]


def with_liars(seed: int, count: int, searches: int, *, share: float, paths: int) -> Figures:
    """Colluders answer searches and writes alike."""
    world, honest = infiltrated(seed, count, share)
    take_paths(world, paths)
    return search(world, honest, searches, max(10, searches // 10))


def under_churn(seed: int, count: int, searches: int, *, paths: int = 4) -> Figures:
    """An hour in which half of the nodes die without a word and as many are born, at even intervals.

    Joins are modelled (see `World.adopt`), and the upkeep of tables is switched off but for what searches teach: about half of the
    contacts in old tables are dead at the end. Writers live, and republish as always.
    """
    world, nodes = filled(seed, count, paths, refresh_s=1e9)
    writers = nodes[: max(10, searches // 20)]
    records = [
        (record_key(world.swarm_id, "run", str(number)), b"value %d" % number)
        for number in range(len(writers))
    ]
    for sim, (key, value) in zip(writers, records, strict=True):
        world.put(sim, key, value)
    mortal, births = nodes[len(writers) :], count // 2
    world.rng.shuffle(mortal)
    tally = Tally(world)
    asked = 0
    for born in range(1, births + 1):
        world.run_for(max(0.0, born * 3600.0 / births - world.now))
        world.kill(mortal.pop())
        newcomer = world.add()
        world.adopt(newcomer)
        while asked < searches * born // births:
            tally.get(world.rng.choice(mortal[: count // 4] + writers), *world.rng.choice(records))
            asked += 1
    return tally.figures()


def with_ground_ids(
    seed: int, count: int, searches: int, *, ids: int, networks: int, paths: int = 4
) -> Figures:
    """Before each record is written, `ids` colluders whose ids are nearer to its key than anybody's have joined.

    Honest nodes live in networks of their own, the attacker's in `networks` /16s.
    """
    world = World(seed, settings=settings(paths, refresh_s=1e9))
    honest = [world.add(host=f"{20 + n % 80}.{n // 80}.7.1") for n in range(count)]
    world.prefill()
    tally = Tally(world)
    for number in range(5):
        key, value = record_key(world.swarm_id, "run", str(number)), b"value %d" % number
        ground = []
        for place in range(ids):
            node_id = key[:8] + world.rng.randbytes(24)
            host = f"{120 + number}.{place % networks}.{place // networks}.1"
            ground.append(world.add(node_id=node_id, host=host))
        Collusion(world, ground)
        for sim in ground:
            world.adopt(sim)
        world.put(world.rng.choice(honest), key, value)
        for _ in range(searches // 5):
            tally.get(world.rng.choice(honest), key, value)
    return tally.figures()
