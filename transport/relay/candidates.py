"""Which nodes may serve as relays, how far away they are, and when to ask each again.

Problem: relays are named by the swarm's state, by the DHT and by people; most of the names are good, some are stale, some are made
up, and all must be tried without hammering anybody. Idea: one small book, best first, in which a node that failed rests for a time
that doubles. And since a relay may grant a place and carry nothing, the book also says over which of them somebody came, and which
lost their place because nobody did: those wait until all others have had a turn. (A relay can send us somebody of its own; that
costs it an identity in the swarm and an honest place as long as it goes on.)

Invariants: at most MAX_CANDIDATES nodes with MAX_ADDRESSES each; who has failed gives way to a new one, and who was merely met to
one that is named as a relay; who was measured or named, and has not failed, stays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import attrs

from transport.address import Address
from transport.errors import InvalidAddress
from transport.identity import NodeId

MAX_CANDIDATES = 64
"""Nodes remembered (count); two are used, and a swarm with more relays than that is well served by any of them."""
MAX_ADDRESSES = 3
"""Addresses per node (count): both families, and one more."""
FIRST_REST_S = 5.0
MOST_REST_S = 300.0
"""After a failure (seconds), doubling from the first to the second; a restart takes seconds, and a dead name costs one dial each."""


@attrs.define(eq=False)
class Candidate:
    """A node that may serve as a relay."""

    node_id: NodeId
    addresses: tuple[Address, ...]
    """Where it can be dialed directly, best first."""
    rtt_s: float | None = None
    """The last round trip; None before it was measured, and after a failure."""
    failures: int = 0
    """In a row."""
    ready_at: float = 0.0
    """Not to be asked before that."""
    reason: str = ""
    """Why it failed last."""
    circuits: int = 0
    """That came to us over it, and with somebody at their other end."""
    idle_at: float | None = None
    """When it lost its place because none came; None if that was never so."""
    named: bool = False
    """Whether somebody called it a relay; else it is only a node that could be dialed."""


class Candidates:
    """The book of one node.

    Args:
        own_id: never a relay for itself.
        on_news: called when there is one more to try.
    """

    def __init__(self, own_id: NodeId, on_news: Callable[[], None] = lambda: None) -> None:
        self._own_id = own_id
        self._on_news = on_news
        self._known: dict[NodeId, Candidate] = {}

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, node_id: object) -> bool:
        return node_id in self._known

    def get(self, node_id: NodeId) -> Candidate | None:
        """The entry of a node, if there is one."""
        return self._known.get(node_id)

    @property
    def known(self) -> tuple[Candidate, ...]:
        """All of them, the nearest first, those never measured last."""
        return tuple(sorted(self._known.values(), key=_worth))

    def add(self, address: Address) -> bool:
        """Note a relay as others advertise it: where it listens, and `relay` its own node id.

        Returns:
            Whether it is known now; False if it is this node, or the book is full of better ones.

        Raises:
            InvalidAddress: no relay's id.
        """
        relay_id = address.relay_id
        if relay_id is None:
            raise InvalidAddress(
                "not a relay's address", hint="write host:port/via/<node id of the relay>"
            )
        return self.add_node(relay_id, [address.direct], named=True)

    def add_node(
        self, node_id: NodeId, addresses: Iterable[Address], *, named: bool = False
    ) -> bool:
        """Note a node that may serve; the addresses join those known, newest first."""
        if node_id == self._own_id:
            return False
        fresh = tuple(address.direct for address in addresses if address.port)
        entry = self._known.get(node_id)
        if entry is None:
            if not fresh or not self._make_room(named=named):
                return False
            entry = self._known[node_id] = Candidate(node_id, ())
        entry.named = entry.named or named
        if set(fresh) <= set(entry.addresses):
            return True
        entry.addresses = tuple(dict.fromkeys([*fresh, *entry.addresses]))[:MAX_ADDRESSES]
        self._on_news()
        return True

    def remove(self, node_id: NodeId) -> None:
        """Forget a node."""
        self._known.pop(node_id, None)

    def ready(self, now: float, exclude: Iterable[NodeId] = ()) -> list[Candidate]:
        """Whom to ask now, best first: by round trip, then those with the fewest failures."""
        left_out = set(exclude)
        return [
            entry for entry in self.known if entry.ready_at <= now and entry.node_id not in left_out
        ]

    def next_at(self, exclude: Iterable[NodeId] = ()) -> float | None:
        """When the first of the others may be asked again; None if there are none."""
        left_out = set(exclude)
        times = [e.ready_at for e in self._known.values() if e.node_id not in left_out]
        return min(times, default=None)

    def measured(self, node_id: NodeId, rtt_s: float) -> None:
        """It answered after `rtt_s` seconds."""
        entry = self._known.get(node_id)
        if entry is not None:
            entry.rtt_s = rtt_s

    def worked(self, node_id: NodeId) -> None:
        """It serves us: forget its failures."""
        entry = self._known.get(node_id)
        if entry is not None:
            entry.failures, entry.ready_at, entry.reason = 0, 0.0, ""

    def brought(self, node_id: NodeId) -> None:
        """Somebody came to us over it."""
        entry = self._known.get(node_id)
        if entry is not None:
            entry.circuits += 1
            entry.idle_at = None

    def idle(self, node_id: NodeId, now: float) -> None:
        """It loses its place because nobody came over it."""
        entry = self._known.get(node_id)
        if entry is not None:
            entry.idle_at = now

    def failed(
        self, node_id: NodeId, reason: str, now: float, *, least_s: float = 0.0, jitter: float = 0.0
    ) -> None:
        """It did not serve us: let it rest.

        Args:
            node_id: who.
            reason: for people.
            now: monotonic seconds.
            least_s: what it asked for itself.
            jitter: 0.0 to 1.0, random: so that many who lost one relay do not come back together.
        """
        entry = self._known.get(node_id)
        if entry is not None:
            rest_s = min(MOST_REST_S, FIRST_REST_S * 2.0 ** min(entry.failures, 16))
            entry.failures += 1
            entry.rtt_s = None
            entry.reason = reason
            entry.ready_at = now + max(least_s, rest_s) * (1.0 + jitter / 2)

    def _make_room(self, *, named: bool) -> bool:
        if len(self._known) < MAX_CANDIDATES:
            return True
        worst = max(self._known.values(), key=lambda entry: entry.failures)
        if worst.failures == 0:
            met = [e for e in self._known.values() if not e.named and e.rtt_s is None]
            if not (named and met):
                return False
            worst = met[0]
        del self._known[worst.node_id]
        return True


def in_turn(
    ready: Iterable[Candidate], network: Callable[[Candidate], str], taken: Iterable[str] = ()
) -> list[Candidate]:
    """Whom to try first so that no single owner, however near or numerous, gets all our places.

    Those of other networks than `taken` come first; among them those that never lost a place for bringing nobody, one of each network
    after the other, and then the others, the longest ago first. What is left is the order of `ready`.
    """
    groups: dict[str, list[Candidate]] = {}
    for entry in sorted(ready, key=_idle_at):
        groups.setdefault(network(entry), []).append(entry)
    rows = [
        (name in taken, _idle_at(entry), row, entry)
        for name, group in groups.items()
        for row, entry in enumerate(group)
    ]
    return [row[-1] for row in sorted(rows, key=lambda row: row[:-1])]


def _idle_at(entry: Candidate) -> float:
    return -math.inf if entry.idle_at is None else entry.idle_at


def _worth(entry: Candidate) -> tuple[bool, float, int]:
    return entry.rtt_s is None, entry.rtt_s or 0.0, entry.failures
