"""Eight real peers under SIGKILL, SIGSTOP, resets and silence at random, and what they hold compared across all of them.

Every certified result of every operation counts: all processes that have one for (epoch, lane, number) must hold the same bytes from
the same members, and the bytes must be the sum of exactly those members' inputs. Every call ends by its deadline + 2 s, and when the
faults have ended everybody goes on together, with no descriptor, task or memory left behind.

The default suite makes 50 faults. 500 of them (four minutes) are made by

    NODED_SLOW=1 python -m pytest -s tests/real/test_chaos.py
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, Self

import pytest

from tests.real.chaos_peer import brings

pytestmark = pytest.mark.real

SLOW = os.environ.get("NODED_SLOW") == "1"
PEERS = 8
EVENTS = 520 if SLOW else 50
SEED = int(os.environ.get("NODED_SEED", "1"))
EVERY_S = 0.3 if SLOW else 0.25
"""Mean time between two faults."""
CROWD = 8
"""After so many faults the next one waits until there have been more operations than faults: how many there are by themselves is a matter of luck."""
PATIENCE_S = 60.0
"""No promise of the product: what the test bears before it calls a wait failed."""
ROOT = Path(__file__).parents[2]


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Process:
    """One peer over all its lives."""

    def __init__(self, index: int, ports: list[int], folder: Path) -> None:
        self.spec = {"index": index, "ports": ports, "memory": str(folder / f"epochs{index}")}
        self.log = (folder / f"peer{index}.log").open("wb")
        self.lines: list[dict[str, Any]] = []
        self.births = 0
        self.process: subprocess.Popen[bytes] | None = None
        self.stopped = False

    def start(self) -> None:
        self.births += 1
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.real.chaos_peer", json.dumps(self.spec)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
        )
        threading.Thread(target=self._read, args=(self.process,), daemon=True).start()

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                if line.endswith(b"\n"):  # one that was killed may leave half a line
                    self.lines.append({"birth": self.births, **json.loads(line)})

    @property
    def alive(self) -> bool:
        return self.process is not None

    def tell(self, command: str) -> None:
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write(command.encode() + b"\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process, self.stopped = None, False

    def stop(self, *, go_on: bool) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT if go_on else signal.SIGSTOP)
        self.stopped = not go_on

    def said(self, key: str) -> list[dict[str, Any]]:
        return [line for line in list(self.lines) if key in line]


class Swarm:
    def __init__(self, folder: Path, rng: random.Random) -> None:
        ports = free_ports(PEERS)
        self.peers = [Process(index, ports, folder) for index in range(PEERS)]
        self.rng = rng
        self.folder = folder
        self.due: list[tuple[float, Any]] = []
        self.events: Counter[str] = Counter()

    def __enter__(self) -> Self:
        for peer in self.peers:
            peer.start()
        return self

    def __exit__(self, *_: object) -> None:
        for peer in self.peers:
            if peer.alive:
                peer.kill()
            peer.log.close()

    def until(self, wanted: Any, what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not wanted():
            assert time.monotonic() < deadline, f"waited in vain for {what}: {self.logs()}"
            self.tend()
            time.sleep(0.02)

    def logs(self) -> str:
        tails = []
        for index, peer in enumerate(self.peers):
            text = (self.folder / f"peer{index}.log").read_text(errors="replace")
            last = peer.lines[-3:]
            tails.append(f"--- {index}: {last}\n{text[-600:]}")
        return "\n".join(tails)

    def tend(self) -> None:
        """Do what is due: starting again, going on."""
        now = time.monotonic()
        ready = [action for at, action in self.due if at <= now]
        self.due = [(at, action) for at, action in self.due if at > now]
        for action in ready:
            action()

    def later(self, seconds: float, action: Any) -> None:
        self.due.append((time.monotonic() + seconds, action))

    def fault(self) -> None:
        """One, at somebody who is not in one already; a majority is left alone."""
        rng = self.rng
        well = [peer for peer in self.peers if peer.alive and not peer.stopped]
        if len(well) <= PEERS - 3:
            return
        peer = rng.choice(well)
        kind = rng.choice(["kill", "stop", "drop", "rst"])
        self.events[kind] += 1
        match kind:
            case "kill":
                peer.kill()
                self.later(rng.uniform(0.0, 1.0), peer.start)
            case "stop":
                peer.stop(go_on=False)
                seconds = rng.choice([0.05, 0.3, 1.0, 6.0])
                self.later(seconds, lambda life=peer.births: self.go_on(peer, life))
            case "drop":
                peer.tell(f"drop {rng.choice([0.05, 0.5, 2.0, 6.0])}")
            case "rst":
                peer.tell("rst")

    def go_on(self, peer: Process, life: int) -> None:
        if peer.stopped and peer.births == life:
            peer.stop(go_on=True)

    def certified(self) -> int:
        return sum(len(peer.said("digest")) for peer in self.peers)

    def operations(self) -> int:
        said = [line for peer in self.peers for line in peer.said("digest")]
        return len({operation_of(line) for line in said})


def operation_of(line: dict[str, Any]) -> tuple[str, int, int]:
    return line["epoch"], line["lane"], line["sequence"]


def check_results(swarm: Swarm) -> Counter[str]:
    """Hash and value of every operation, across all processes."""
    held: dict[tuple[str, int, int], dict[str, Any]] = {}
    found: Counter[str] = Counter()
    for peer in swarm.peers:
        for line in peer.said("digest"):
            known = held.setdefault(operation_of(line), line)
            for word in ("digest", "members", "number", "first"):
                assert line[word] == known[word], f"two results of one operation: {line} {known}"
            found["results"] += 1
    for line in held.values():
        expected = sum(brings(index, line["lane"], line["number"], 4) for index in line["members"])
        assert line["first"] == [float(value) for value in expected], f"an impossible sum: {line}"
        found["operations"] += 1
        found[f"of {len(line['members'])}"] += 1
    return found


def test_chaos(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    with Swarm(tmp_path, rng) as swarm:
        swarm.until(lambda: swarm.certified() > 3 * PEERS, "the first operations")
        while (number := sum(swarm.events.values())) < EVENTS:
            if number % CROWD == 0:
                swarm.until(lambda most=number + CROWD: swarm.operations() > most, "operations")
            swarm.fault()
            pause = time.monotonic() + rng.expovariate(1 / EVERY_S)
            while time.monotonic() < pause:
                swarm.tend()
                time.sleep(0.01)
        swarm.until(
            lambda: not swarm.due and all(p.alive and not p.stopped for p in swarm.peers),
            "the end of the faults",
        )
        marks = [len(peer.said("digest")) for peer in swarm.peers]

        def all_together() -> bool:
            """Everybody has results of all, in every lane, that are newer than the last fault."""
            return all(
                {
                    line["lane"]
                    for line in peer.said("digest")[mark:]
                    if len(line["members"]) == PEERS
                }
                == {0, 1, 2}
                for peer, mark in zip(swarm.peers, marks, strict=True)
            )

        swarm.until(all_together, "everybody in one epoch again")
        for peer in swarm.peers:
            peer.tell("report")
        swarm.until(lambda: all(peer.said("report") for peer in swarm.peers), "reports")
        reports = [peer.said("report")[-1] for peer in swarm.peers]
        found = check_results(swarm)
        print(json.dumps({"events": dict(swarm.events), **found}))
        wrong = [line for peer in swarm.peers for line in peer.said("wrong")]
        assert not wrong
        late = [line for peer in swarm.peers for line in peer.said("late") if line["late"] > 2.0]
        assert not late, "a call outlived its deadline"
        assert sum(swarm.events.values()) == EVENTS
        assert set(swarm.events) == {"kill", "stop", "drop", "rst"}
        assert found["operations"] > EVENTS, "the peers hardly did anything"
        assert len([size for size in found if size.startswith("of ")]) >= 3, (
            "nobody was ever left out"
        )
        for report in reports:
            assert report["links"] == report["of_epoch"], "links of an epoch outlived it"
            report["fds"] -= 2 * report["links"]  # each has a socket and its memory
        for what, more in (("fds", 8), ("tasks", 24), ("memory", 64 << 20)):
            # Those that were killed last have the least history: nobody may hold much more than they do.
            values = [report[what] for report in reports]
            assert max(values) <= min(values) + more, f"{what} were left behind: {reports}"
