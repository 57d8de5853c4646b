"""Sixteen daemons and one seed address: one swarm, which neither the loss of the seed nor a partition undoes.

    NODED_SLOW=1 python -m pytest -s tests/real/test_sixteen.py       NODED_REPEAT=1 instead of ten times and three times

The partition needs root: its two halves are network namespaces joined by a cable, on which everything is dropped.
"""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Self

import pytest
from psutil import Process

from tests.lab.namespaces import Namespace, tool, why_not
from tests.real.cluster import PATIENCE_S, Node
from tests.real.swarm import (
    Swarm,
    complete,
    free_port,
    report,
    row_of,
    slow,
    state_of,
    summary,
)

pytestmark = [pytest.mark.real, slow]

COUNT = 16
TOGETHER_S = 20.0
HEALED_S = 15.0
CUT_S = 60.0
SEED_PORT = 7447


def repeats(times: int) -> range:
    return range(int(os.environ.get("NODED_REPEAT", times)))


# One seed, then none


@pytest.mark.parametrize("number", repeats(10))
def test_they_form_one_swarm_and_need_the_seed_no_more(tmp_path, number):
    with Swarm(tmp_path) as swarm:
        address = f"127.0.0.1:{free_port()}"
        seed = swarm.observer("n0", run__create=True, network__listen=[address])
        others = [swarm.observer(f"n{n}", address) for n in range(1, COUNT)]
        begun = time.monotonic()
        for node in swarm.nodes:
            node.start()
        swarm.until_each(swarm.nodes, complete(COUNT - 1), "one swarm")
        together_s = time.monotonic() - begun
        cpu_s = sum(sum(Process(node.pid).cpu_times()[:2]) for node in swarm.nodes)

        seed.kill()
        others[4].keep_port()
        late = swarm.observer("late", others[4].address())
        begun = time.monotonic()
        late.start()
        swarm.until_each([late, *others], complete(COUNT - 1), "the newcomer")
        late_s = time.monotonic() - begun
        row = row_of(late.status(), "n0")
        assert row is None or row["state"] == "lost"

        # What is published from now on is found as well: by a node that knows one of the others only.
        maker = swarm.plain("maker", others[9].address(), run__name="second", run__create=True)
        finder = swarm.plain("finder", others[2].address(), run__name="second")
        for node in (maker, finder):
            node.values |= {"trainer.auto": False}
            node.write_config()
        begun = time.monotonic()
        maker.start()
        finder.start()
        swarm.until_each([finder], lambda status: status["run"]["id"], "a run made after that")
        second_s = time.monotonic() - begun
        # Nor is anybody out of reach: a node asks for one that it has never met by its id alone.
        wanted = maker.status()["node"]["id"]
        assert finder.cli("ping", wanted).returncode == 0
        report(
            test="sixteen",
            number=number,
            together_s=round(together_s, 2),
            together_cpu_s=round(cpu_s, 1),
            seed_gone_newcomer_joined_s=round(late_s, 2),
            seed_gone_new_run_found_s=round(second_s, 2),
        )
        assert together_s <= TOGETHER_S


# Two halves


class Inside(Node):
    """A daemon in a network namespace."""

    namespace: Namespace

    def start(self, *, environ: Mapping[str, str] | None = None, umask: int = -1) -> Self:
        assert (self.process, environ, umask) == (None, None, -1)
        with self.log.open("ab") as log:
            command = [*self.command("run"), "--parent-pid", str(os.getpid())]
            self.process = self.namespace.popen(*command, stderr=log, env=self.cluster.environ)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        return self


class Halves:
    """Two namespaces with a cable between them, and eight daemons in each."""

    def __init__(self, swarm: Swarm, spaces: list[Namespace]) -> None:
        self.swarm = swarm
        self.spaces = spaces
        spaces[0].link("cable", spaces[1], "cable")
        for number, space in enumerate(spaces, 1):
            space.ip(f"address add 10.77.0.{number}/24 dev cable", "link set cable up")
        self.halves: list[list[Inside]] = [[], []]
        for number in range(COUNT):
            self.add(number % 2, f"n{number}", run__create=number == 0)

    @property
    def nodes(self) -> list[Inside]:
        return [node for half in self.halves for node in half]

    def add(self, half: int, name: str, **values) -> Inside:
        """One more daemon, started; only the first one's address is known to it."""
        values = {
            "node.name": name,
            "network.listen": [f"10.77.0.{half + 1}:{SEED_PORT + len(self.halves[half])}"],
            "network.bootstrap": [] if name == "n0" else [f"10.77.0.1:{SEED_PORT}"],
            "network.port_mapping": False,
            "run.name": "demo",
            "trainer.auto": False,
            **{key.replace("__", "."): value for key, value in values.items()},
        }
        node = Inside(self.swarm, name, values)
        node.namespace = self.spaces[half]
        self.halves[half].append(node)
        self.swarm.nodes.append(node)
        return node.start()

    def cut(self) -> None:
        """From now on the cable loses everything, without a word."""
        for space in self.spaces:
            rule = "type filter hook input priority 0;\niifname cable drop\n"
            space.run(tool("nft"), "-f", "-", text=f"table inet cut {{\nchain c {{\n{rule}}}\n}}\n")

    def heal(self) -> None:
        for space in self.spaces:
            space.run(tool("nft"), "delete table inet cut")


def digests(nodes: list[Inside]) -> set[str | None]:
    """What the nodes' replicas of the run's document come to; one value if they are the same."""
    return {None if (said := state_of(node)) is None else said["digest"] for node in nodes}


@contextmanager
def two_halves(folder) -> Iterator[Halves]:
    with Namespace("left") as left, Namespace("right") as right, Swarm(folder) as swarm:
        yield Halves(swarm, [left, right])


@pytest.mark.skipif(bool(why_not()), reason=why_not() or "a lab can be had")
@pytest.mark.parametrize("number", repeats(3))
def test_a_partition_heals_to_the_same_bytes(tmp_path, number):
    with two_halves(tmp_path) as halves:
        swarm, nodes = halves.swarm, halves.nodes
        swarm.until_each(nodes, complete(COUNT - 1), "one swarm")
        halves.cut()
        begun = time.monotonic()
        swarm.until_each(nodes, complete(COUNT // 2 - 1), "two swarms")
        parted_s = time.monotonic() - begun
        # On each side something changes: a node begins a new life, and says so in the shared state.
        for half in halves.halves:
            half[5].stop()
            half[5].start()
        time.sleep(max(0.0, begun + CUT_S - time.monotonic()))
        left, right = map(digests, halves.halves)
        assert (len(left), len(right)) == (1, 1), "each side agrees with itself"
        assert left != right, "there is something to heal"

        halves.heal()
        begun = time.monotonic()
        while len(digests(nodes)) > 1:
            assert time.monotonic() - begun < PATIENCE_S, [summary(n.status()) for n in nodes]
            time.sleep(0.1)
        healed_s = time.monotonic() - begun
        swarm.until_each(nodes, complete(COUNT - 1), "everybody")
        whole_s = time.monotonic() - begun
        document = state_of(nodes[0])
        assert document is not None
        report(
            test="partition",
            number=number,
            cut_s=CUT_S,
            parted_s=round(parted_s, 2),
            same_bytes_s=round(healed_s, 2),
            everybody_connected_s=round(whole_s, 2),
            writers=document["writers"],
        )
        assert healed_s <= HEALED_S
