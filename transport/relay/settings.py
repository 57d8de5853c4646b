"""How much a relay gives away: the `[relay]` section.

Problem: a relay serves strangers of its own swarm for nothing, on a machine and a line that somebody pays for. Idea: everything it
may hold, carry or be asked has a number here, with its reason. Public relays cap a circuit at 128 KiB and two minutes (libp2p,
circuit relay v2), enough to punch a hole; training must go on where no hole can be punched, so circuits here are metered instead:
a rate per circuit, a rate for all, and a budget for the month.
"""

from __future__ import annotations

from typing import Literal

import msgspec

CHUNK_BYTES = 32768
"""Bytes a circuit copies at once per direction: two frames of a stream, and short enough that circuits take fair turns."""

CIRCUIT_MEMORY_BYTES = 2 * (262144 + 262144 + CHUNK_BYTES)
"""The most a circuit holds at the relay, both directions: unread window, unsent queue and one chunk; 1.06 MiB."""


class RelaySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Budgets of one relay; the fields are the keys of `[relay]`."""

    serve: Literal["auto", "on", "off"] = "auto"
    """Whether this node relays for members of its swarm: "auto" while others can dial it, "on" always, "off" never."""
    use: bool = True
    """Whether this node keeps reservations with relays while it cannot be dialed."""
    wanted: int = 2
    """Reservations to keep (count): one to be reached through, and one for the seconds after that relay has died."""
    reservations: int = 128
    """Nodes that may be reached through this one at the same time (count); the figure of public relays. Each is a connected peer."""
    reservations_per_source: int = 8
    """Reservations for one IPv4 address or IPv6 /56 (count); the figure of public relays, enough for a household."""
    reservation_s: float = 3600.0
    """Life of a reservation (seconds), renewed at half of it; the figure of public relays."""
    circuits: int = 64
    """Circuits at the same time (count). Each holds up to 1.06 MiB when both ends stop reading: 68 MiB at the worst."""
    circuits_per_peer: int = 16
    """Circuits that start or end at one node (count); the figure of public relays. A quarter of them may come from one address."""
    circuits_per_source: int = 32
    """Circuits asked for from one IPv4 address or IPv6 /56 (count): half of all, so that nobody can take all of them."""
    circuit_bytes: int = 17179869184
    """Bytes of one circuit, both directions together (16 GiB): two hours at full rate, then its nodes ask for another."""
    circuit_s: float = 43200.0
    """Life of a circuit (seconds): 12 hours, so that one that was forgotten ends, and a run reconnects twice a day."""
    idle_s: float = 60.0
    """A circuit without a byte for so long ends (seconds): a living connection sends a heartbeat every second."""
    circuit_bytes_per_s: float = 2097152.0
    """Rate of a circuit, both directions together (bytes per second): 2 MiB/s. At most 0.6 MiB wait before the relay, so a heartbeat
    behind bulk data is late by 0.3 s, well below the silence that ends a connection."""
    circuit_burst_bytes: int = 4194304
    """Bytes a circuit may carry at once after a rest: 4 MiB."""
    bytes_per_s: float = 16777216.0
    """Rate of all circuits together (bytes per second): 16 MiB/s, about 134 Mbit/s in and as much out."""
    burst_bytes: int = 16777216
    """Bytes all circuits may carry at once after a rest: 16 MiB, one second's worth."""
    budget_bytes: int = 137438953472
    """Bytes carried in `budget_s` (128 GiB). Each crosses the line twice, in and out: a quarter of the 1 TB that many lines allow.
    One IPv4 address or IPv6 /56 may send a quarter of it, and the last tenth is kept for nodes that only want to meet."""
    budget_s: float = 2592000.0
    """In which time the budget comes back (seconds): 30 days."""
    requests_per_source_per_s: float = 4.0
    """Requests from one source for reservations and circuits, refill (per second): a node asks for a handful per hour."""
    requests_per_source_burst: int = 128
    """The same at rest (count): 32 nodes on one address may start together."""
    accept_s: float = 3.0
    """How long the target of a circuit may take to accept it (seconds): a round trip, and below the silence that ends a connection."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if name in ("serve", "use"):
                continue
            if not 0 < value < float("inf") and not (name == "wanted" and value == 0):
                raise ValueError(f"relay.{name} must be positive and finite, not {value}")
        if self.wanted > 4:
            raise ValueError("relay.wanted must not be more than 4")
        if self.idle_s < 10:
            raise ValueError("relay.idle_s must be at least 10: heartbeats come every second")
        if self.budget_bytes < 1048576:
            raise ValueError(
                'relay.budget_bytes must be at least 1048576: set serve = "off" to carry nothing'
            )
        if self.circuit_bytes_per_s < 65536 or self.bytes_per_s < 65536:
            raise ValueError(
                "relay rates must be at least 65536, or connections through it fall silent"
            )
