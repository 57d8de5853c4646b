"""How much anybody may cost us: the `[limits]` section, and who may start a handshake.

Problem: everything a remote party can make us hold or compute needs a number, in one place, with its reason; and connections from
strangers must be refused before they cost a handshake (about 0.4 ms of CPU). Idea: one frozen struct, used as the configuration
section directly; and `Admission`, a sans-IO gate with a count of handshakes under way and a token bucket per source network.

A source is an IPv4 address or an IPv6 /56 (what one household or customer usually gets). A handshake that ends with a member of
the swarm gives its token back, so members, also many behind one address, never run out: the bucket only measures strangers and
failures. That is how members bypass the source limits without being known beforehand.

Invariants: `Admission` holds at most `max_sources` entries; a refusal costs no token and leaves no trace; admitted handshakes are
released exactly once.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from enum import StrEnum

import msgspec

from transport.errors import UsageError
from transport.frames import CLASS_WINDOW_BYTES


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Budgets of one node; the fields are the keys of `[limits]`."""

    pending_handshakes: int = 64
    """Handshakes under way at once, all sources (count). Each holds a task, a socket and at most 4 KiB: under 1 MiB in all."""
    pending_handshakes_per_source: int = 32
    """Handshakes under way at once from one source (count). Half of the total, so that one address cannot take all of it; public
    networks use 8, but a swarm started on one machine dials a node from 31 neighbours at the same moment."""
    new_connections_per_source_per_s: float = 0.2
    """Refill of a source's tokens (tokens per second); the rate public peer-to-peer networks use against floods."""
    new_connections_per_source_burst: int = 64
    """Tokens of a source at rest (count). Only handshakes that do not end with a member use them up; 64 lets a 32-node swarm
    on one address start while some of its dials fail, public networks use 16."""
    handshake_timeout_s: float = 5.0
    """From the first byte to an authenticated peer (seconds); a handshake needs two round trips, so this bears RTTs over 1 s."""
    heartbeat_s: float = 1.0
    """Between two pings on a control connection (seconds)."""
    silence_s: float = 4.0
    """Without any byte from a peer before it counts as lost (seconds): three lost heartbeats and some slack, so that a silent peer
    leaves a collective within 5 s."""
    max_peers: int = 256
    """Authenticated peers at once (count); more than the nodes of any run measured so far, and under the usual 1,024 file limit."""
    streams_per_peer: int = 256
    """Streams a peer may have open on us at once, and we on it (count)."""
    accept_backlog: int = 64
    """Streams a peer opened that this side has not looked at yet (count); more are refused with a reset."""
    bulk_links_per_peer: int = 8
    """Bulk connections with one peer (count); throughput over one WAN path stops growing at about that number."""
    send_buffer_bytes: int = 4194304
    """Bytes accepted from the application and not yet sent, per peer and priority class; one stream holds at most 256 KiB of it."""

    @property
    def memory_per_peer_bytes(self) -> int:
        """Upper bound of stream data held for one peer, both directions (bytes); bulk links come with their own buffers."""
        return sum(CLASS_WINDOW_BYTES) + 2 * self.send_buffer_bytes

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if not value > 0 or value == float("inf"):
                raise ValueError(f"limits.{name} must be positive and finite, not {value}")
        if self.silence_s <= self.heartbeat_s:
            raise ValueError("limits.silence_s must be longer than limits.heartbeat_s")
        if self.send_buffer_bytes < 65536:
            raise ValueError("limits.send_buffer_bytes must hold one message of 64 KiB")


class Refusal(StrEnum):
    """Why a connection was refused before its handshake; also the names of counters."""

    PENDING_TOTAL = "refused-handshakes-total"
    PENDING_SOURCE = "refused-handshakes-source"
    RATE = "refused-rate"


def source_of(host_untrusted: str) -> str:
    """The network that shares one budget: IPv4 address, IPv6 /56, or the text itself for anything else."""
    try:
        ip = ipaddress.ip_address(host_untrusted.partition("%")[0])
    except ValueError:
        return host_untrusted[:64]
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return str(ip.ipv4_mapped)
        return f"{ipaddress.IPv6Address(int(ip) >> 72 << 72)}/56"
    return str(ip)


class _Source:
    __slots__ = ("pending", "tokens", "updated")

    def __init__(self, tokens: float, now: float) -> None:
        self.tokens = tokens
        self.updated = now
        self.pending = 0


class Admission:
    """Decides, before any byte is read, whether a new inbound connection may start its handshake.

    Args:
        limits: the budgets.
        max_sources: entries kept (about 300 bytes each); the least recently used idle one goes first.
    """

    def __init__(self, limits: Limits, *, max_sources: int = 4096) -> None:
        if max_sources <= limits.pending_handshakes:
            raise UsageError("max_sources must exceed limits.pending_handshakes")
        self._limits = limits
        self._max_sources = max_sources
        self._sources: OrderedDict[str, _Source] = OrderedDict()  # least recently used first
        self._pending = 0

    @property
    def pending(self) -> int:
        """Admitted handshakes not released yet."""
        return self._pending

    @property
    def known_sources(self) -> int:
        """Entries held now; never above max_sources."""
        return len(self._sources)

    def admit(self, source_untrusted: str, now: float) -> Refusal | None:
        """None, and one `release` is owed; or the reason to hang up at once.

        Args:
            source_untrusted: remote host as text.
            now: monotonic seconds.
        """
        limits = self._limits
        if self._pending >= limits.pending_handshakes:
            return Refusal.PENDING_TOTAL
        key = source_of(source_untrusted)
        source = self._sources.get(key)
        if source is None:
            self._make_room()
            source = self._sources[key] = _Source(
                float(limits.new_connections_per_source_burst), now
            )
        self._sources.move_to_end(key)
        self._refill(source, now)
        if source.pending >= limits.pending_handshakes_per_source:
            return Refusal.PENDING_SOURCE
        if source.tokens < 1.0:
            return Refusal.RATE
        source.tokens -= 1.0
        source.pending += 1
        self._pending += 1
        return None

    def release(self, source_untrusted: str, now: float, *, member: bool = False) -> None:
        """The handshake ended; `member` says that it ended with an authenticated member, whose token returns.

        Raises:
            UsageError: nothing was admitted from this source.
        """
        source = self._sources.get(source_of(source_untrusted))
        if source is None or source.pending == 0:
            raise UsageError("released a handshake that was not admitted")
        source.pending -= 1
        self._pending -= 1
        self._refill(source, now)
        if member:
            source.tokens = min(
                source.tokens + 1.0, float(self._limits.new_connections_per_source_burst)
            )

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
            idle = next(key for key, source in self._sources.items() if source.pending == 0)
            del self._sources[idle]
