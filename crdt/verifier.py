"""What checking signatures may cost: each entry once, and no more than a bounded rate of them.

An Ed25519 verification takes about 0.05 ms, the only expensive thing a stranger can make this room do.
So: an entry is verified only if it would change something, its verdict is kept by id, and two
buckets bound the rest, one for each writer (a writer that floods is slowed down alone) and one for
the node. An entry beyond them is put off, not refused: a later comparison brings it again, or by
then only the newest of its kind.
"""

from collections import Counter, OrderedDict
from typing import Final

from crdt.entry import Entry, Verify

CACHED: Final = 4096
"""Verdicts kept, least recently used out first: 1 MiB. What is held is known without."""
NODE_RATE: Final = 500
"""Verifications per second that a node grants for good; 5 % of a core."""
NODE_BURST: Final = 16_384
"""At once: what a node needs that gets a large swarm's whole state on joining (1.6 s of a core)."""
WRITER_RATE: Final = 20
"""Per second and writer: progress is told a few times a second, by the busiest."""
WRITER_BURST: Final = 256
MAX_WRITERS: Final = 8192
"""Buckets kept; the one that was full longest ago goes first, which costs its owner nothing."""


class _Bucket:
    def __init__(self, rate: float, burst: float, wall_ms: int) -> None:
        self.rate, self.burst, self.level, self.at = rate, burst, burst, wall_ms

    def refill(self, wall_ms: int) -> None:
        elapsed_ms = max(0, wall_ms - self.at)  # a clock set back grants nothing
        self.level = min(self.burst, self.level + elapsed_ms * self.rate / 1000)
        self.at = wall_ms


class Verifier:
    """Verdicts on signatures. May be shared by all documents of a node.

    Attributes:
        counters: "verified", "forged", "cached", "deferred".
    """

    def __init__(self, verify: Verify) -> None:
        self.counters: Counter[str] = Counter()
        self._verify = verify
        self._verdicts: OrderedDict[bytes, bool] = OrderedDict()
        self._writers: OrderedDict[bytes, _Bucket] = OrderedDict()
        self._node: _Bucket | None = None

    def check(self, entry: Entry, document: bytes, wall_ms: int) -> bool | None:
        """Whether the signature is good; None: not looked at now, the budget is spent."""
        # The signature is part of the name: a bad one must not speak for a good one.
        name = entry.id + entry.raw[-64:]
        known = self._verdicts.get(name)
        if known is not None:
            self._verdicts.move_to_end(name)
            self.counters["cached"] += 1
            return known
        if not self._take(entry.writer, wall_ms):
            self.counters["deferred"] += 1
            return None
        good = entry.proved(document, self._verify)
        self.counters["verified" if good else "forged"] += 1
        self._verdicts[name] = good
        if len(self._verdicts) > CACHED:
            self._verdicts.popitem(last=False)
        return good

    def _take(self, writer: bytes, wall_ms: int) -> bool:
        if self._node is None:
            self._node = _Bucket(NODE_RATE, NODE_BURST, wall_ms)
        bucket = self._writers.setdefault(writer, _Bucket(WRITER_RATE, WRITER_BURST, wall_ms))
        self._writers.move_to_end(writer)
        if len(self._writers) > MAX_WRITERS:
            self._writers.popitem(last=False)
        for each in (self._node, bucket):
            each.refill(wall_ms)
        if self._node.level < 1 or bucket.level < 1:
            return False
        self._node.level -= 1
        bucket.level -= 1
        return True
