"""How one direction between two simulated hosts behaves: the arithmetic of delay and loss.

Problem: latency, jitter, bandwidth, retransmissions and outages must give each chunk one arrival
time, reproducibly. Idea: a value for the settings and a small sans-IO model; `transport.simulated.memory`
asks it when a chunk sent now arrives, and moves the bytes.

Invariants: arrivals come only from the arguments and the given generator; a setting of zero draws
nothing, so that switching one fault on does not shift the draws of another.
"""

import math
import random

import attrs


@attrs.frozen
class LinkSettings:
    """How one direction between two hosts behaves."""

    latency_s: float = 0.0
    """One-way delay in seconds."""

    jitter_s: float = 0.0
    """Mean of an exponential extra delay, drawn for each chunk (order is kept)."""

    bandwidth_bytes_per_s: float = math.inf
    """Shared by all connections in this direction between the two hosts."""

    stall: float = 0.0
    """Probability per chunk of a lost segment, seen as a retransmission delay."""

    stall_s: float = 0.25
    """Mean of that delay in seconds (drawn uniformly from half to one and a half times)."""

    reset: float = 0.0
    """Probability per chunk that the connection is reset."""

    split: float = 0.0
    """Probability per read that only a random part (at least one byte) is handed over."""


class LinkModel:
    """One direction between two hosts, shared by all their connections.

    Attributes:
        settings: how it behaves from now on.
        blocked: nothing arrives until it is healed.
        healed_at: when it was last unblocked (seconds).
    """

    __slots__ = ("_free_at", "blocked", "healed_at", "settings")

    def __init__(self, settings: LinkSettings) -> None:
        self.settings = settings
        self.blocked = False
        self.healed_at = -math.inf
        self._free_at = -math.inf  # when the last byte queued so far will have left the sender

    def arrival(self, now: float, size: int, rng: random.Random) -> tuple[float, bool]:
        """Return when `size` bytes sent at `now` arrive, and whether they had to be re-sent.

        A size of zero is a bare signal (the end of a stream), which is never lost.
        """
        settings = self.settings
        self._free_at = max(now, self._free_at) + size / settings.bandwidth_bytes_per_s
        when = self._free_at + settings.latency_s
        if settings.jitter_s > 0:
            when += rng.expovariate(1 / settings.jitter_s)
        stalled = settings.stall > 0 and size > 0 and rng.random() < settings.stall
        if stalled:
            when += settings.stall_s * rng.uniform(0.5, 1.5)
        return when, stalled

    def redelivery(self, arrival: float) -> float:
        """Return when something due at `arrival` really comes, given the last healing."""
        if arrival > self.healed_at:
            return arrival
        return max(arrival, self.healed_at + self.settings.latency_s)
