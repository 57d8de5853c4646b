"""MoDeST's view: who is there, as far as one node knows, and in which order a round asks them (sans-IO).

Problem: every node has to find the same sample for a round without talking about it. Idea (de Vos et al. 2023, "Decentralized
Learning Made Easy with MoDeST", section 3.2): each node keeps, for every node it heard of, the last round in which that one
was seen and its newest word on being there. Views travel with the models and are joined, so that they differ only by what is
still on its way. The order of a round follows from the view by hashing alone.

An entry is a pair of two maxima, hence a join semilattice: merging is commutative, associative and idempotent::

    last_round   the larger one
    standing     the larger (counter, left); a node raises its own counter, and under one counter LEAVE wins

Invariants: entries only grow; equal views give equal orders on every node; a view holds at most `MAX_ENTRIES`.

On the wire an entry takes 40 bytes, big endian::

    0       32            36                      40
    | node  | last_round  | counter << 1 | left   |

A message has room for `MAX_WIRE_ENTRIES` of them. A larger view is sent in part: the nodes that were seen in the latest
rounds, by id where that is equal. What is left out are the nodes that stop being candidates first.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Final

import attrs

from transport.errors import MalformedMessage
from transport.identity import NodeId

ENTRY: Final = struct.Struct(">32sII")
MAX_WIRE_ENTRIES: Final = 1600
"""64,000 bytes: what a message of 64 KiB has room for beside its other fields."""
MAX_ENTRIES: Final = 16_384
"""Some 4 MiB. Beyond it the nodes seen longest ago are forgotten, whoever made them up."""
MOST_UNREACHABLE: Final = 64
"""Candidates that are not near; with more of them, whoever made them up, they are none."""
MAX_ROUND: Final = 2**32 - 1
MAX_COUNTER: Final = 2**31 - 1
ORDER_DOMAIN: Final = b"modest/v1"


@attrs.frozen
class Entry:
    """What is known of one node."""

    last_round: int
    """Newest round in which it was seen to take part, or said that it was there."""
    counter: int
    """How often it has changed its standing, by its own count."""
    left: bool = False
    """It said that it leaves."""

    def join(self, other: Entry) -> Entry:
        """The least entry that is not below either."""
        counter, left = max((self.counter, self.left), (other.counter, other.left))
        last_round = max(self.last_round, other.last_round)
        if (last_round, counter, left) == (self.last_round, self.counter, self.left):
            return self
        return Entry(last_round, counter, left)


@lru_cache(maxsize=8192)
def _draw(node: NodeId, suffix: bytes) -> bytes:
    """What a round orders a node by; remembered, since all nodes of a simulation ask for the same."""
    return hashlib.sha256(ORDER_DOMAIN + node + suffix).digest()


class View:
    """All that one node knows of who is there."""

    def __init__(self, entries: Iterable[tuple[NodeId, Entry]] = ()) -> None:
        self._entries: dict[NodeId, Entry] = {}
        self.near: frozenset[NodeId] = frozenset()
        """Nodes that are known to be there: the last to be forgotten, and the first to be sent."""
        for node, entry in entries:
            self.merge(node, entry)

    def merge(self, node: NodeId, entry: Entry) -> None:
        """Join one entry."""
        known = self._entries.get(node)
        self._entries[node] = entry if known is None else known.join(entry)
        if len(self._entries) > MAX_ENTRIES:
            self._forget()

    def merge_wire(self, data_untrusted: bytes, *, far: int = MAX_COUNTER) -> None:
        """Join a view as another node has sent it; of known nodes without what is more than `far` ahead of their counters.

        Raises:
            MalformedMessage: no whole number of entries, or too many; nothing is changed then.
        """
        if len(data_untrusted) % ENTRY.size or len(data_untrusted) > MAX_WIRE_ENTRIES * ENTRY.size:
            raise MalformedMessage(f"a view of {len(data_untrusted)} bytes")
        for node, last_round, standing in ENTRY.iter_unpack(data_untrusted):
            known = self._entries.get(node)
            if known is not None and (
                known.last_round >= last_round and known.counter << 1 | known.left >= standing
            ):
                continue  # nearly all, nearly always
            if known is not None and standing >> 1 > known.counter + far:
                continue
            entry = Entry(last_round, standing >> 1, bool(standing & 1))
            if known is None:
                self._entries[NodeId(node)] = entry
            else:
                self._entries[node] = known.join(entry)  # an equal key stays the object that it is
        if len(self._entries) > MAX_ENTRIES:
            self._forget()

    def wire(self) -> bytes:
        """As it travels: sorted by id, at most `MAX_WIRE_ENTRIES`."""
        chosen = sorted(self._entries)
        if len(chosen) > MAX_WIRE_ENTRIES:
            chosen = sorted(self._latest()[:MAX_WIRE_ENTRIES])
        entries = self._entries
        return b"".join(
            ENTRY.pack(node, e.last_round, e.counter << 1 | e.left)
            for node in chosen
            for e in (entries[node],)
        )

    def candidates(self, round_: int, window: int) -> list[NodeId]:
        """Those that have not left and were seen in one of the last `window` rounds, unordered.

        A node's own entry is treated like all others: to count oneself in always would make every sample
        depend on who computes it.
        """
        oldest = round_ - window
        found = [
            node
            for node, entry in self._entries.items()
            if not entry.left and entry.last_round >= oldest
        ]
        if self.near and len(found) > len(self.near) + MOST_UNREACHABLE:
            found = [node for node in found if node in self.near]
        return found

    def order(self, round_: int, window: int) -> list[NodeId]:
        """The candidates in the order in which this round asks them: by hash, then by id."""
        suffix = round_.to_bytes(8, "big")
        return sorted(
            self.candidates(round_, window),
            key=lambda node: (_draw(node, suffix), node),
        )

    def _latest(self) -> list[NodeId]:
        return sorted(
            self._entries,
            key=lambda node: (node not in self.near, -self._entries[node].last_round, node),
        )

    def _forget(self) -> None:
        for node in self._latest()[MAX_ENTRIES:]:
            del self._entries[node]

    def __getitem__(self, node: NodeId) -> Entry:
        return self._entries[node]

    def get(self, node: NodeId) -> Entry | None:
        """What is known of a node; None if nothing."""
        return self._entries.get(node)

    def __contains__(self, node: object) -> bool:
        return node in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[NodeId]:
        return iter(sorted(self._entries))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, View) and self._entries == other._entries

    __hash__ = None  # type: ignore[assignment]
