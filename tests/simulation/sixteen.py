"""Sixteen nodes with faults; prints one JSON line. Run as `python -m tests.simulation.sixteen SEED`."""

from __future__ import annotations

import json
import random
import sys

import trio

from tests.simulation.world import World
from transport.simulated.deterministic import run_deterministically

COUNT = 16
LIMIT_S = 600.0


async def scenario(seed: int, count: int = COUNT, rounds: int = 8) -> World:
    """Cold start with one bootstrap address; then kills, restarts, resets and a partition."""
    world = World(count, seed, rounds=rounds, min_members=count)
    rng = random.Random(f"faults/{seed}")
    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            for index in range(count):
                nursery.start_soon(world.node, index)

            async def reborn(index: int, after_s: float) -> None:
                await trio.sleep(after_s)
                world.network.revive_host(world.ip(index))
                await world.node(index)

            while not world.states:
                await trio.sleep(0.1)
            # The bootstrap node is among the victims: nobody is special.
            for index in (0, *rng.sample(range(1, count), 2)):
                await trio.sleep(rng.uniform(0.3, 1.5))
                if index in world.final:
                    continue
                world.kill(index)
                nursery.start_soon(reborn, index, rng.uniform(0.5, 3.0))
            await trio.sleep(rng.uniform(1.0, 2.0))
            a, b = rng.sample(range(count), 2)
            world.network.reset_connections(world.ip(a), world.ip(b))
            await trio.sleep(rng.uniform(0.5, 1.0))
            part = rng.sample(range(count), count // 4)
            world.network.partition(
                [world.ip(index) for index in part],
                [world.ip(index) for index in range(count) if index not in part],
            )
            await trio.sleep(8.0)
            world.network.heal()
    return world


def summary(world: World) -> dict[str, object]:
    return {
        "trace": world.digest(),
        "rounds": sorted({position.round for position in world.final.values()}),
        "states": len({position.state for position in world.final.values()}),
        "documents": len(set(world.documents.values())),
        "finished": len(world.final),
        "aborted": world.aborted,
        "fetched": world.fetched,
        "fewest_members": min(world.members),
        "most_members": max(world.members),
        "lives": sum(world.lives.values()),
    }


def main() -> None:
    world = run_deterministically(int(sys.argv[1]), scenario, int(sys.argv[1]))
    print(json.dumps(summary(world), sort_keys=True))


if __name__ == "__main__":
    main()
