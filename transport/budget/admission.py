"""Who may start a handshake: decided before a byte of a new connection is read; sans-IO.

Problem: connections from strangers must be bounded before they cost anything, yet an honest node must get in while somebody floods
us. Idea: a count of handshakes under way, fair shares among sources when it is full, and a token bucket per source that only
strangers and failures use up.

A source is an IPv4 address or an IPv6 /56 (what one household or customer usually gets); sources with the same /24 or /48 form a
network.

* Tokens. Each admitted handshake takes a token of its source; one that ends with a member of the swarm gives it back. Members, also
  many behind one address, never run out: that is how they bypass the source limits without being known beforehand.
* Fair shares. When there is no room, the network with the most handshakes under way loses the oldest one of its largest source (the
  rule "longest queue drops" of fair queueing, McKenney, INFOCOM 1990), unless the newcomer would be the largest itself: then it is
  refused. A flood of silent connections from few places thus pushes out itself, and a newcomer from elsewhere finds room at once.
* Members' sources. Where a member came from within the last hour, empty buckets do not refuse: the newcomer replaces the oldest of
  `PROBATION` such handshakes. So a member whose neighbour behind the same address attacks us comes back all the same.
* Proof. A handshake whose first flight proved the swarm's key is not pushed out any more.

Only handshakes admitted with `hang_up` can be pushed out; without any, a full gate refuses.

Invariants: at most `limits.pending_handshakes` are under way; at most `max_sources` entries are held; a refusal costs no token and
leaves no trace; each handshake is released once, whether it was pushed out or not.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from transport.errors import UsageError

if TYPE_CHECKING:
    from transport.limits import Limits

PROBATION: Final = 8
"""Handshakes under way at once from a members' source whose tokens are gone; what public networks give any source."""
MEMBER_MEMORY_S: Final = 3600.0
"""How long a source counts as a members' source after the last handshake of a member (seconds)."""


class Refusal(StrEnum):
    """Why a connection was refused before its handshake; also the names of counters."""

    PENDING_TOTAL = "refused-handshakes-total"
    PENDING_SOURCE = "refused-handshakes-source"
    RATE = "refused-rate"


PUSHED_OUT: Final = "handshake-pushed-out"
"""The name of the counter of handshakes that made room for others."""


def source_of(host_untrusted: str) -> str:
    """The network that shares one budget: IPv4 address, IPv6 /56, or the text itself for anything else."""
    return _source_and_network(host_untrusted)[0]


def network_of(host_untrusted: str) -> str:
    """The wider network of an address, which often has one owner: IPv4 /24, IPv6 /48, or the text itself for anything else."""
    return _source_and_network(host_untrusted)[1]


def _source_and_network(host_untrusted: str) -> tuple[str, str]:
    try:
        ip = ipaddress.ip_address(host_untrusted.partition("%")[0])
    except ValueError:
        return host_untrusted[:64], host_untrusted[:64]
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is None:
            return (
                f"{ipaddress.IPv6Address(int(ip) >> 72 << 72)}/56",
                f"{ipaddress.IPv6Address(int(ip) >> 80 << 80)}/48",
            )
        ip = ip.ipv4_mapped
    return str(ip), f"{ipaddress.IPv4Address(int(ip) >> 8 << 8)}/24"


class _Source:
    __slots__ = ("key", "member_until", "network", "pending", "tokens", "updated")

    def __init__(self, key: str, network: str, tokens: float, now: float) -> None:
        self.key = key
        self.network = network
        self.tokens = tokens
        self.updated = now
        self.pending: OrderedDict[Pending, None] = OrderedDict()  # oldest first
        self.member_until = float("-inf")

    def oldest(self) -> Pending | None:
        """The handshake that would go first, if any may."""
        return next((pending for pending in self.pending if pending.can_go), None)


class Pending:
    """One admitted handshake; `release` it exactly once, when it has ended in whatever way."""

    __slots__ = ("_admission", "_hang_up", "_source", "pushed_out", "released")

    def __init__(
        self, admission: Admission, source: _Source, hang_up: Callable[[], object] | None
    ) -> None:
        self._admission = admission
        self._source = source
        self._hang_up = hang_up
        self.pushed_out = False
        self.released = False

    @property
    def can_go(self) -> bool:
        """Whether it may be pushed out for somebody else."""
        return self._hang_up is not None

    def proved(self) -> None:
        """The other side holds the swarm's key: it keeps its place from now on."""
        self._hang_up = None

    def release(self, now: float, *, member: bool = False) -> None:
        """The handshake ended; `member`: with an authenticated member, whose token returns.

        Raises:
            UsageError: it was released before.
        """
        if self.released:
            raise UsageError("released a handshake that was not admitted")
        self.released = True
        self._admission.on_release(self, self._source, now, member=member)

    def push_out(self) -> None:
        """Make room: it counts no more, and its connection is hung up on (called by the gate)."""
        hang_up, self._hang_up = self._hang_up, None
        self.pushed_out = True
        if hang_up is not None:
            hang_up()


class Admission:
    """The gate.

    Args:
        limits: the budgets.
        max_sources: entries kept (about 400 bytes each); the least recently used idle one goes first.

    Attributes:
        pushed_out: handshakes that had to make room, so far.
    """

    def __init__(self, limits: Limits, *, max_sources: int = 4096) -> None:
        if max_sources <= limits.pending_handshakes:
            raise UsageError("max_sources must exceed limits.pending_handshakes")
        self._limits = limits
        self._max_sources = max_sources
        self._sources: OrderedDict[str, _Source] = OrderedDict()  # least recently used first
        self._busy: dict[str, dict[str, _Source]] = {}  # network -> its sources with pending ones
        self._pending = 0
        self.pushed_out = 0

    @property
    def pending(self) -> int:
        """Handshakes under way: admitted, neither released nor pushed out."""
        return self._pending

    @property
    def known_sources(self) -> int:
        """Entries held now; never above max_sources."""
        return len(self._sources)

    def enter(
        self, source_untrusted: str, now: float, hang_up: Callable[[], object] | None = None
    ) -> Pending | Refusal:
        """A handshake to `release`, or the reason to hang up at once.

        Args:
            source_untrusted: remote host as text.
            now: monotonic seconds.
            hang_up: closes this connection, called when it has to make room; None: it keeps its place.
        """
        limits = self._limits
        key, network = _source_and_network(source_untrusted)
        source = self._sources.get(key)
        if source is None:
            source = _Source(key, network, float(limits.new_connections_per_source_burst), now)
        self._refill(source, now)
        most = limits.pending_handshakes_per_source
        if source.tokens < 1.0:
            if source.member_until < now or hang_up is None:
                return Refusal.RATE
            most = min(most, PROBATION)
        leaver: Pending | None = None
        if len(source.pending) >= most:
            leaver = source.oldest() if hang_up is not None else None
            if leaver is None:
                return Refusal.PENDING_SOURCE
        elif self._pending >= limits.pending_handshakes:
            leaver = self._largest(source)
            if leaver is None:
                return Refusal.PENDING_TOTAL
        if leaver is not None:
            self._push_out(leaver)
        if key not in self._sources:
            self._make_room()
            self._sources[key] = source
        self._sources.move_to_end(key)
        source.tokens = max(0.0, source.tokens - 1.0)
        pending = Pending(self, source, hang_up)
        source.pending[pending] = None
        self._busy.setdefault(network, {})[key] = source
        self._pending += 1
        return pending

    def on_release(self, pending: Pending, source: _Source, now: float, *, member: bool) -> None:
        """Count a handshake out (called by it)."""
        if not pending.pushed_out:
            self._leave(source, pending)
        self._refill(source, now)
        if member:
            source.member_until = now + MEMBER_MEMORY_S
            source.tokens = min(
                source.tokens + 1.0, float(self._limits.new_connections_per_source_burst)
            )

    def _largest(self, newcomer: _Source) -> Pending | None:
        """The handshake to push out for `newcomer`: from the largest network, there of the largest source."""
        sizes = {
            network: sum(len(source.pending) for source in sources.values())
            for network, sources in self._busy.items()
        }  # at most limits.pending_handshakes sources in all
        own = (sizes.get(newcomer.network, 0) + 1, len(newcomer.pending) + 1)
        largest: _Source | None = None
        rank = own
        for network, sources in self._busy.items():
            for source in sources.values():
                if network == newcomer.network:  # the newcomer makes its own network larger
                    size = (own[0], len(source.pending))
                else:
                    size = (sizes[network], len(source.pending))
                if size > rank and source.oldest() is not None:
                    largest, rank = source, size
        return largest.oldest() if largest is not None else None

    def _push_out(self, pending: Pending) -> None:
        self._leave(pending._source, pending)  # noqa: SLF001  (the two classes are one machine)
        self.pushed_out += 1
        pending.push_out()

    def _leave(self, source: _Source, pending: Pending) -> None:
        del source.pending[pending]
        self._pending -= 1
        if not source.pending:
            busy = self._busy[source.network]
            del busy[source.key]
            if not busy:
                del self._busy[source.network]

    def _refill(self, source: _Source, now: float) -> None:
        limits = self._limits
        elapsed = max(0.0, now - source.updated)
        source.updated = max(now, source.updated)
        source.tokens = min(
            source.tokens + elapsed * limits.new_connections_per_source_per_s,
            float(limits.new_connections_per_source_burst),
        )

    def _make_room(self) -> None:
        # At most limits.pending_handshakes entries are pinned, so this looks at that many + 1 at the worst.
        if len(self._sources) >= self._max_sources:
            idle = next(key for key, source in self._sources.items() if not source.pending)
            del self._sources[idle]
