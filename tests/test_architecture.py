"""The architecture, as a test: which room may know which, and which file may touch the world.

Every rule here is read from the source with `ast`; nothing is imported. An import counts wherever it stands (top of the file,
inside a function, under TYPE_CHECKING): what a file names, it knows. The lists below are the page to look at when asking
"where does this belong?". A new name in one of them is a decision that a review should see, never a way to turn a test green.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# room -> the rooms it may import. Nobody imports node.
ARROWS = {
    "crdt": set(),
    "transport": set(),
    "dht": {"transport"},
    "gossip": {"crdt", "transport"},
    "node": {"crdt", "transport", "dht", "gossip"},
}

# room -> the foreign packages it may import (node: whatever pyproject.toml declares).
THIRD_PARTY = {
    "crdt": {"attrs", "msgspec"},
    "transport": {
        "aeg",
        "attrs",
        "msgspec",
        "msgpack",
        "cryptography",
        "nacl",
        "trio",
        "miniupnpc",
    },
    "dht": {"attrs", "msgspec", "trio"},
    "gossip": {"attrs", "msgspec", "numpy", "blake3", "trio", "zstandard", "ml_dtypes"},
}

# Drivers: the files that meet the event loop. Every other file of these rooms is a core (see CORE_BANS).
DRIVERS = {
    "transport/connect/announce.py",
    "transport/bulk/link.py",
    "transport/bulk/door.py",
    "transport/bulk/pool.py",
    "transport/bulk/in_stream.py",
    "transport/connect/connection.py",
    "transport/connect/context.py",
    "transport/simulated/deterministic.py",
    "transport/reach/dial_back.py",
    "transport/connect/dialer.py",
    "transport/endpoint.py",
    "transport/connect/inbound.py",
    "transport/reach/interfaces.py",
    "transport/secure/link.py",
    "transport/connect/listener.py",
    "transport/simulated/memory.py",
    "transport/simulated/host.py",
    "transport/simulated/stream.py",
    "transport/connect/migration.py",
    "transport/nat/gateway.py",
    "transport/nat/gateway_socket.py",
    "transport/nat/methods.py",
    "transport/nat/portmap.py",
    "transport/nat/upnp.py",
    "transport/connect/door.py",
    "transport/connect/outbound.py",
    "transport/connect/outlet.py",
    "transport/reach/outside.py",
    "transport/budget/pacing.py",
    "transport/peer.py",
    "transport/punch/attempt.py",
    "transport/punch/puncher.py",
    "transport/connect/registry.py",
    "transport/relay/bridge.py",
    "transport/relay/client.py",
    "transport/relay/reservations.py",
    "transport/relay/service.py",
    "transport/relay/trial.py",
    "transport/reach/reach.py",
    "transport/bulk/rendezvous.py",
    "transport/bulk/shared.py",
    "transport/bulk/striped.py",
    "transport/streams/stream.py",
    "transport/streams/raw.py",
    "transport/stretch.py",
    "transport/tcp.py",
    "transport/punch/upgrader.py",
    "transport/wakeup.py",
    "transport/watch.py",
    "dht/bootstrap.py",
    "dht/seam.py",
    "dht/service.py",
    "dht/table_file.py",
    "dht/warm.py",
    "gossip/blocks/fetch.py",
    "gossip/blocks/serve.py",
    "gossip/collective/calls.py",
    "gossip/collective/group.py",
    "gossip/collective/state/handover.py",
    "gossip/collective/outgoing.py",
    "gossip/collective/state/state_sync.py",
    "gossip/collective/talk.py",
    "gossip/decentralized/network/delivery.py",
    "gossip/decentralized/network/driver.py",
    "gossip/decentralized/network/neighbours.py",
    "gossip/membership/service.py",
    "gossip/replication.py",
    "gossip/swarm/service.py",
    "gossip/collective/algorithms/butterfly.py",
    "gossip/collective/algorithms/chain.py",
    "gossip/collective/algorithms/doubling.py",
    "gossip/collective/algorithms/hierarchical.py",
    "gossip/collective/dataplane.py",
    "gossip/collective/links/exchange.py",
    "gossip/collective/links/mesh.py",
    "gossip/collective/placing/probing.py",
    "gossip/collective/links/outbox.py",
    "gossip/collective/algorithms/ring.py",
    "gossip/rounds.py",
}

# Files that meet the disk and no event loop; no cores either.
DISK = {
    "transport/durable.py",
    "transport/secure/processor.py",  # asks Linux for the processor's flags
}

# node/ is mostly glue; these of its files are cores all the same.
NODE_CORES = {
    "node/collective_messages.py",
    "node/errors.py",
    "node/health.py",
    "node/joining/answer.py",
    "node/joining/beacon.py",
    "node/joining/book.py",
    "node/joining/code.py",
    "node/joining/forwarder.py",
    "node/joining/issuer.py",
    "node/joining/ledger.py",
    "node/joining/places.py",
    "node/joining/reasons.py",
    "node/joining/redeemer.py",
    "node/joining/request.py",
    "node/joining/source_budget.py",
    "node/run/layout.py",
    "node/run/manifest.py",
    "node/simulation/chance.py",
    "node/simulation/contacts.py",
    "node/simulation/heap.py",
    "node/simulation/trace.py",
    "node/trainer_messages.py",
}

# The daemon's side of node/. The command line, the session in a user's script and the worker run without an event loop.
NODE_TRIO = {
    "node/blocks/gate.py",
    "node/blocks/jobs.py",
    "node/blocks/routes.py",
    "node/blocks/service.py",
    "node/control.py",
    "node/daemon.py",
    "node/joining/asking.py",
    "node/joining/belonging.py",
    "node/joining/enter.py",
    "node/joining/lan.py",
    "node/joining/service.py",
    "node/netcheck.py",
    "node/pinging.py",
    "node/private_socket.py",
    "node/probe.py",
    "node/punch_trial.py",
    "node/reach_report.py",
    "node/relay_budget.py",
    "node/run/collectives.py",
    "node/run/run.py",
    "node/run/finder.py",
    "node/run/decentralized.py",
    "node/run/journal.py",
    "node/run/leg_link.py",
    "node/run/participation.py",
    "node/run/saves.py",
    "node/run/stragglers.py",
    "node/run/taking_part.py",
    "node/status.py",
    "node/systemd.py",
    "node/traffic.py",
    "node/trust/membership.py",
    "node/run/trainer.py",
    "node/run/trainer_connection.py",
    "node/run/trainer_link.py",
}

# Who may hold a raw socket: the network itself, and the ends of the local Unix sockets.
SOCKET = {
    "transport/reach/interfaces.py",  # asks the kernel for its addresses (netlink)
    "transport/nat/gateway_socket.py",  # datagrams to the router
    "transport/tcp.py",
    "node/cli/client.py",  # the command line's HTTP over the control socket
    "node/control.py",
    "node/joining/lan.py",  # beacons: multicast datagrams on this machine's networks
    "node/training/collective_link.py",  # the process's end of the socket for collectives
    "node/training/daemon_link.py",  # the trainer's end of the trainer socket
    "node/private_socket.py",  # makes both: owner only
    "node/shared_buffer.py",  # passes the memory's file descriptor
    "node/systemd.py",  # one datagram to the notify socket
}

# The trainer's side: code that never runs in the daemon's process.
TORCH = {
    "node/simulation/engine_torch.py",  # simulated nodes with the real task
    "node/training/attachment.py",
    "node/training/binding.py",
    "node/training/collectives.py",
    "node/training/leg.py",
    "node/training/legs.py",
    "node/training/meter.py",
    "node/training/session.py",
    "node/training/snapshot.py",
    "node/training/solo.py",  # a process of its own: training without a swarm, to compare with
    "node/task.py",  # the interface of a task: torch in its signatures only, see test_import_without_torch.py
    "node/training/task_loop.py",
    "node/tasks/*",
    "node/training/worker.py",
}
TORCH_PACKAGES = {"torch", "safetensors"}

# A core gets time, chance and bytes as arguments, so it has no use for these.
CORE_BANS = {
    *{"trio", "asyncio", "socket", "ssl", "select", "selectors", "signal", "subprocess"},
    *{"threading", "multiprocessing", "concurrent", "os", "pathlib", "shutil", "tempfile", "mmap"},
    *{"time", "secrets", "uuid", "torch"},
}
CORE_CALL_BANS = {"open", "print", "input", "io.open", "random.SystemRandom"}
CLOCKS = {"now", "utcnow", "today"}  # of datetime and date

# Ways to run code that came as data, or to start a process that cannot be trusted to be ours.
EVERYWHERE_BANS = {
    "pickle",
    "_pickle",
    "marshal",
    "shelve",
    "dill",
    "cloudpickle",
    "joblib",
    "multiprocessing",
}
CALL_BANS = {
    *{"eval", "exec", "compile", "__import__", "builtins.eval", "builtins.exec"},
    *{"torch.load", "torch.jit.load", "torch.hub.load", "numpy.load", "os.fork", "os.system"},
}
KEYWORD_BANS = {"allow_pickle", "shell", "trust_remote_code"}

MAX_LINES = 600


@dataclass
class Source:
    """One file: what it imports and what it calls, by full dotted name."""

    path: str
    text: str
    imports: set[str] = field(default_factory=set)
    calls: set[str] = field(default_factory=set)
    true_keywords: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        tree = ast.parse(self.text, self.path)
        names: dict[str, str] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    self.imports.add(alias.name)
                    bound = alias.asname or alias.name.partition(".")[0]
                    names[bound] = alias.name if alias.asname else bound
            elif isinstance(node, ast.ImportFrom):
                base = self._absolute(node)
                for alias in node.names:
                    self.imports.add(f"{base}.{alias.name}")
                    names[alias.asname or alias.name] = f"{base}.{alias.name}"
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                self.calls.add(_dotted(node.func, names))
                self.true_keywords |= {
                    keyword.arg
                    for keyword in node.keywords
                    if keyword.arg and not _is_false(keyword.value)
                }

    def _absolute(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        package = self.path.split("/")[: -node.level]
        return ".".join([*package, *([node.module] if node.module else [])])

    @property
    def room(self) -> str:
        return self.path.partition("/")[0]

    @property
    def packages(self) -> set[str]:
        return {name.partition(".")[0] for name in self.imports}

    @property
    def is_core(self) -> bool:
        return self.path in NODE_CORES if self.room == "node" else self.path not in DRIVERS | DISK

    def imported_files(self, files: set[str]) -> set[str]:
        """Which of `files` this one imports: `from a import b` is a/b.py where that exists, else a's own file."""
        found = set()
        for name in self.imports:
            parts = name.split(".")
            for end in range(len(parts), 0, -1):
                stem = "/".join(parts[:end])
                hit = next((p for p in (f"{stem}.py", f"{stem}/__init__.py") if p in files), None)
                if hit:
                    found.add(hit)
                    break
        return found


def _dotted(node: ast.expr, names: dict[str, str]) -> str:
    """`np.load` as "numpy.load"; a call on anything but a name is "?.method", so model.eval() is not eval()."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value, names)}.{node.attr}"
    return "?"


def _is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and not node.value


def _matches(path: str, patterns: set[str]) -> bool:
    return any(fnmatch(path, pattern) for pattern in patterns)


# --- the rules: each yields what is wrong with one file ---


def arrows(source: Source) -> Iterator[str]:
    for other in sorted(source.packages & ({*ARROWS, "tests", "benchmarks"} - {source.room})):
        if other not in ARROWS[source.room]:
            yield f"{source.room} may not import {other}"
        elif source.room == "dht" and source.path not in DRIVERS:
            yield f"only the drivers of the dht see {other}"


def third_party(source: Source) -> Iterator[str]:
    foreign = (
        source.packages - {*ARROWS, "tests", "benchmarks", "__future__"} - sys.stdlib_module_names
    )
    allowed = THIRD_PARTY.get(source.room, declared_packages())
    for package in sorted({"attrs" if name == "attr" else name for name in foreign} - allowed):
        yield f"{source.room} does not depend on {package}"


def world(source: Source) -> Iterator[str]:
    if source.packages & {"trio"} and not _matches(source.path, DRIVERS | NODE_TRIO):
        yield "imports trio: not among the drivers"
    if source.packages & {"socket", "ssl"} and source.path not in SOCKET:
        yield "imports socket: not on the list"
    if source.packages & TORCH_PACKAGES and not _matches(source.path, TORCH):
        yield "imports torch or safetensors: not on the trainer's side"


def cores(source: Source) -> Iterator[str]:
    if not source.is_core:
        return
    for name in sorted(source.packages & CORE_BANS):
        yield f"a core may not import {name}"
    for call in sorted(source.calls):
        owner, _, method = call.rpartition(".")
        if call in CORE_CALL_BANS:
            yield f"a core may not call {call}"
        elif owner == "random" and method != "Random":
            yield f"a core may not draw from the global generator: {call}"
        elif method in CLOCKS and owner.rpartition(".")[2] in {"datetime", "date"}:
            yield f"a core may not read a clock: {call}"


def cores_import_cores(source: Source, files: dict[str, Source]) -> Iterator[str]:
    if source.is_core:
        for path in sorted(source.imported_files(set(files))):
            if not files[path].is_core:
                yield f"a core may not import the driver {path}"


def code_from_data(source: Source) -> Iterator[str]:
    for name in sorted(source.packages & EVERYWHERE_BANS):
        yield f"imports {name}"
    for call in sorted(source.calls & CALL_BANS):
        yield f"calls {call}"
    for keyword in sorted(source.true_keywords & KEYWORD_BANS):
        yield f"passes {keyword}"


def length(source: Source) -> Iterator[str]:
    lines = source.text.count("\n")
    if lines >= MAX_LINES:
        yield f"{lines} lines: holds more than one concept"


# --- the house ---


def declared_packages() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = [*project["dependencies"], *extras["train"], *extras["demo"]]
    return {requirement.partition(">")[0].partition("[")[0] for requirement in needed} - {"noded"}


def read(*folders: str) -> dict[str, Source]:
    paths = (path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")))
    return {
        name: Source(name, path.read_text())
        for path in paths
        for name in [path.relative_to(ROOT).as_posix()]
    }


HOUSE = read(*ARROWS)


def broken(found: dict[str, list[str]]) -> str:
    return "\n".join(f"{path}: {text}" for path, texts in sorted(found.items()) for text in texts)


@pytest.mark.parametrize("rule", [arrows, third_party, world, cores, code_from_data, length])
def test_every_file_keeps(rule):
    assert not (report := broken({path: [*rule(source)] for path, source in HOUSE.items()})), report


def test_cores_reach_no_driver():
    found = {path: [*cores_import_cores(source, HOUSE)] for path, source in HOUSE.items()}
    assert not (report := broken(found)), report


@pytest.mark.parametrize("rule", [code_from_data, length])
def test_examples_and_benchmarks_keep(rule):
    rest = read("examples", "benchmarks")
    assert not (report := broken({path: [*rule(source)] for path, source in rest.items()})), report


def test_every_room_says_what_it_is_for():
    for room in ARROWS:
        docstring = ast.get_docstring(ast.parse((ROOT / room / "__init__.py").read_text())) or ""
        assert len(docstring.splitlines()) >= 4, f"{room}/__init__.py does not introduce its room"


@pytest.mark.parametrize(
    ("listed", "packages"),
    [
        (DRIVERS | NODE_TRIO, {"trio"}),
        (DISK, {"os", "pathlib"}),
        (SOCKET, {"socket", "ssl"}),
        (TORCH, TORCH_PACKAGES),
    ],
)
def test_a_list_names_only_who_needs_it(listed, packages):
    users = [path for path, source in HOUSE.items() if source.packages & packages]
    assert {pattern for pattern in listed if not any(fnmatch(p, pattern) for p in users)} == set()


def test_the_cores_of_node_exist():
    assert NODE_CORES - set(HOUSE) == set()


# --- the rules themselves: each planted fault is found ---


@pytest.mark.parametrize(
    ("rule", "path", "text"),
    [
        (arrows, "crdt/x.py", "import transport.codec"),
        (arrows, "transport/x.py", "from dht import key"),
        (arrows, "gossip/x.py", "def f():\n    from node import config"),
        (arrows, "dht/x.py", "from transport.identity import verify"),
        (arrows, "node/x.py", "import tests.fakes"),
        (third_party, "crdt/x.py", "import msgpack"),
        (third_party, "transport/x.py", "import numpy as np"),
        (third_party, "node/x.py", "import requests"),
        (world, "transport/streams/mux.py", "import trio"),
        (world, "node/config.py", "from trio import sleep"),
        (world, "dht/service.py", "import socket"),
        (world, "node/daemon.py", "def f():\n    import torch"),
        (world, "gossip/x.py", "from torch.nn import Module"),
        (cores, "crdt/x.py", "from time import monotonic"),
        (cores, "dht/x.py", "import random\nrandom.shuffle([])"),
        (cores, "dht/x.py", "from random import choice as c\nc([1])"),
        (cores, "gossip/x.py", "import os"),
        (cores, "gossip/x.py", "open('f')"),
        (cores, "crdt/x.py", "from datetime import datetime\ndatetime.now()"),
        (cores, "crdt/x.py", "import datetime as d\nd.datetime.utcnow()"),
        (code_from_data, "node/x.py", "from pickle import loads"),
        (code_from_data, "node/x.py", "import torch as t\nt.load('f')"),
        (code_from_data, "node/x.py", "from torch import load\nload('f')"),
        (code_from_data, "node/x.py", "import numpy as np\nnp.load('f')"),
        (code_from_data, "node/x.py", "eval('1')"),
        (code_from_data, "node/x.py", "f(shell=True)"),
        (length, "node/x.py", "\n" * MAX_LINES),
    ],
)
def test_a_planted_fault_is_found(rule, path, text):
    assert list(rule(Source(path, text)))


@pytest.mark.parametrize(
    ("rule", "path", "text"),
    [
        (arrows, "dht/service.py", "from transport.endpoint import open_endpoint"),
        (cores, "dht/x.py", "from random import Random\nRandom(7).random()"),
        (cores, "dht/x.py", "import random\nrandom.Random(7)"),
        (code_from_data, "node/x.py", "import re\nmodel.eval()\nre.compile('x')\nf(shell=False)"),
        (world, "node/tasks/byte_gpt.py", "import torch"),
        (third_party, "transport/x.py", "import attr\nimport hashlib"),
    ],
)
def test_what_is_allowed_passes(rule, path, text):
    assert not list(rule(Source(path, text)))


def test_a_core_that_imports_a_driver_is_found_through_every_spelling():
    files = {name: Source(name, "") for name in ("dht/__init__.py", "dht/service.py", "dht/key.py")}
    for text in (
        "import dht.service",
        "from dht import service",
        "from .service import f",
        "from dht.service import f",
    ):
        assert list(cores_import_cores(Source("dht/key.py", text), files)), text
    assert not list(
        cores_import_cores(Source("dht/lookup.py", "from dht.key import distance"), files)
    )
