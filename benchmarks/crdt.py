"""Swarm-state edits through this project's document and through Yjs (pycrdt), on one trace.

    python benchmarks/crdt.py [--nodes 64] [--edits 40]

Every node edits its own fields (member once, progress often, a checkpoint now and then). Three ways of
keeping replicas equal take the same trace, one process each:

* `noded`: signed and chained entries, verified by every receiver (Ed25519);
* `noded-unsigned`: the same with a hash in the place of signatures, to see what those cost;
* `pycrdt`: one map for each node in a Y.Doc, values as JSON text; nothing is signed or checked, so anybody
  may write anything.

Measured: bytes of all updates as they are made ("push"), CPU time of one replica that makes its own edits
and of one that takes everybody's, bytes and time for a replica that joins late ("join"), the bytes that two
replicas exchange that differ in one field ("repair"), and the memory that the replica takes. JSON lines
first, then a table. Needs the package `pycrdt` (its rows are left out without it).
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from crdt.clock import HybridClock
from crdt.entry import Author
from crdt.record import CheckpointInfo, MemberInfo, Progress
from crdt.state import RunState
from transport.codec import pack, unpack_untrusted
from transport.identity import Identity, verify

START_MS = 1_700_000_000_000
DOCUMENT = bytes(range(32))
KINDS = ("noded", "noded-unsigned", "pycrdt")
COLUMNS = ("push_bytes", "make_ms", "take_ms", "join_bytes", "join_ms", "repair_bytes", "rss_kib")

Edit = tuple[int, str, Any]


def trace(nodes: int, edits: int) -> Iterator[Edit]:
    """Who sets which field to what."""
    rng = random.Random(4)
    for node in range(nodes):
        address = f"10.0.{node // 250}.{node % 250 + 1}:7447"
        yield node, "member", [f"node-{node}", [address], "trainer", "active", DOCUMENT, ""]
    for step in range(1, edits + 1):
        for node in rng.sample(range(nodes), nodes):
            state = hashlib.sha256(b"%d" % (step // 4)).digest()
            loss = 4.0 / step + rng.random() / 10
            yield node, "progress", [step // 4, 10 * step, loss, 4096 * step, 51200.0, state]
            if step % 10 == 0 and node % 8 == 0:
                yield node, "checkpoint", [10 * step, step // 4, state]


def resident_kib() -> int:
    """Resident memory of this process."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4


class Noded:
    """Replicas of this project's document."""

    def __init__(self, *, signed: bool) -> None:
        self.signed = signed
        self.now_ms = START_MS

    def replica(self, node: int) -> RunState:
        """A node's replica."""
        seed = hashlib.sha256(b"%d" % node).digest()
        if self.signed:
            identity = Identity.from_seed(seed)
            author, check = Author(identity.public_key, identity.sign), verify
        else:
            author = Author(seed, partial(quick_sign, seed))
            check = quick_verify
        self.now_ms += 1
        clock = HybridClock(author.writer, lambda: self.now_ms)
        return RunState(author, clock, DOCUMENT, check)

    def edit(self, state: RunState, field: str, value: Any) -> bytes:
        """Make one edit; the update to send."""
        self.now_ms += 50
        before = state.sequence
        if field == "member":
            state.set_member(MemberInfo.from_wire(value))
        elif field == "progress":
            state.set_progress(Progress.from_wire(value))
        else:
            state.set_checkpoint(CheckpointInfo(*value, state.node))
        return pack({"t": "delta", **state.delta(state.own_names(above=before))[0]})

    def take(self, state: RunState, update: bytes) -> None:
        """Merge an update."""
        state.merge(unpack_untrusted(update))

    def lacking(self, state: RunState, other: RunState) -> tuple[int, list[bytes]]:
        """Bytes of the question, and the updates that answer it; in pages, as the anti-entropy does."""
        asked, told = 32, []
        for start, end in other.ledger.ranges(32):
            if other.ledger.range_digest(start, end) == state.ledger.range_digest(start, end):
                asked += 48
                continue
            context = state.context(start, end)
            asked += 48 + len(pack(context))
            names = other.they_lack(context)
            while names:
                delta, done = other.delta(names[:512], max_bytes=48 << 10)
                told.append(pack(delta))
                names = names[done:]
        return asked, told

    def digest(self, state: RunState) -> bytes:
        """Equal for equal content."""
        return state.digest()


class Yjs:
    """Replicas of a Y.Doc."""

    def __init__(self) -> None:
        import pycrdt

        self.pycrdt = pycrdt

    def replica(self, node: int) -> Any:
        """A node's replica."""
        doc = self.pycrdt.Doc(client_id=node + 1)
        doc["state"] = self.pycrdt.Map()
        doc.node = node
        return doc

    def edit(self, doc: Any, field: str, value: Any) -> bytes:
        """Make one edit; the update to send."""
        before = doc.get_state()
        text = json.dumps([part.hex() if isinstance(part, bytes) else part for part in value])
        doc["state"][f"{doc.node:064x}/{field}"] = text
        return bytes(doc.get_update(before))

    def take(self, doc: Any, update: bytes) -> None:
        """Merge an update."""
        doc.apply_update(update)

    def lacking(self, doc: Any, other: Any) -> tuple[int, list[bytes]]:
        """Bytes of the question, and the updates that answer it."""
        known = doc.get_state()
        return len(known), [bytes(other.get_update(known))]

    def digest(self, doc: Any) -> bytes:
        """Equal for equal content."""
        content = json.dumps(doc["state"].to_py(), sort_keys=True)
        return hashlib.sha256(content.encode()).digest()


def quick_sign(public_key: bytes, data: bytes) -> bytes:
    """No signature at all, of the same length."""
    return hashlib.sha512(public_key + data).digest()


def quick_verify(public_key: bytes, signature: bytes, data: bytes) -> bool:
    """Whether `quick_sign` made it."""
    return signature == quick_sign(public_key, data)


def measure(kind: str, nodes: int, edits: int) -> dict[str, Any]:
    """Run the trace through one kind of replicas."""
    side: Any = Yjs() if kind == "pycrdt" else Noded(signed=kind == "noded")
    replicas = [side.replica(node) for node in range(nodes)]
    steps = list(trace(nodes, edits))
    updates = []
    began = time.process_time()
    for node, field, value in steps:
        updates.append(side.edit(replicas[node], field, value))
    make_s = time.process_time() - began
    before_kib = resident_kib()
    whole = side.replica(nodes)
    began = time.process_time()
    for update in updates:
        side.take(whole, update)
    take_s = time.process_time() - began
    rss_kib = resident_kib() - before_kib
    late = side.replica(nodes + 1)
    began = time.process_time()
    asked, told = side.lacking(late, whole)
    for update in told:
        side.take(late, update)
    join_s = time.process_time() - began
    assert side.digest(late) == side.digest(whole)
    side.take(whole, side.edit(replicas[0], "progress", steps[-1][2]))
    repair_asked, repair_told = side.lacking(late, whole)
    for update in repair_told:
        side.take(late, update)
    assert side.digest(late) == side.digest(whole)
    return {
        "kind": kind,
        "nodes": nodes,
        "edits": len(steps),
        "push_bytes": sum(map(len, updates)),
        "make_ms": round(make_s * 1000, 1),
        "take_ms": round(take_s * 1000, 1),
        "join_bytes": asked + sum(map(len, told)),
        "join_ms": round(join_s * 1000, 1),
        "repair_bytes": repair_asked + sum(map(len, repair_told)),
        "rss_kib": rss_kib,
    }


def main() -> None:
    """Measure each kind in a process of its own, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=64)
    parser.add_argument("--edits", type=int, default=40, help="progress updates of each node")
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.kind:
        print(json.dumps(measure(options.kind, options.nodes, options.edits)))
        return
    rows = []
    for kind in KINDS:
        command = [sys.executable, __file__, "--kind", kind]
        command += ["--nodes", str(options.nodes), "--edits", str(options.edits)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{kind}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            continue
        print(done.stdout, end="", flush=True)
        rows.append(json.loads(done.stdout))
    print(f"\n| kind | {' | '.join(COLUMNS)} |\n|---|{'---:|' * len(COLUMNS)}")
    for row in rows:
        print(f"| {row['kind']} | {' | '.join(str(row[name]) for name in COLUMNS)} |")


if __name__ == "__main__":
    main()
