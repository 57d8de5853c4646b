"""How long a message is under way: access links with queues, latency, jitter and loss.

Every node hangs from the middle of the network by a link of its own, with an upward and a downward direction. A
message waits until what the node sent before it has left (first in, first out), crosses the middle, and waits at the
receiver's end for what came before it. It is a stream of bytes, not a parcel: the receiver takes it in while it is
still being sent, so two equal links cost its length once and not twice. The arithmetic of one direction is that of
`transport.simulated.link_model`, which the simulated network for whole daemons uses too.

What is not modelled: streams of one node share its link one after the other and not side by side (the mean is the
same, a small message waits behind a large one), and the middle has no limit.
"""

from __future__ import annotations

import math

import attrs

from node.simulation.chance import lognormal, stream
from node.simulation.scenario import LinkClass, Links
from transport.simulated.link_model import LinkModel, LinkSettings

__all__ = ["Access", "Flight", "Network"]


@attrs.frozen
class Access:
    """A node's link as it was drawn."""

    latency_s: float
    up: float
    """Bytes per second; infinite for no limit."""
    down: float


@attrs.frozen
class Flight:
    """A message that has entered the sender's link."""

    first_s: float
    """When its first byte reaches the receiver's link."""
    last_s: float
    """When its last byte does, at the earliest."""
    lost: bool
    noticed: bool
    """A loss that the sender will hear of."""


class Network:
    """All links of a swarm."""

    def __init__(self, settings: Links, nodes: int, seed: int) -> None:
        self._settings = settings
        rng = stream(seed, "links")
        everywhere = LinkClass(latency_s=settings.latency_s, up=settings.up, down=settings.down)
        classes = settings.classes or (everywhere,)
        shares = [one.share for one in classes]
        self.access: list[Access] = []
        for _ in range(nodes):
            chosen = rng.choices(classes, shares)[0]
            factor = lognormal(rng, settings.bandwidth_sigma)
            self.access.append(
                Access(chosen.latency_s, _rate(chosen.up, factor), _rate(chosen.down, factor))
            )
        self._up = [
            LinkModel(LinkSettings(one.latency_s, settings.jitter_s, one.up)) for one in self.access
        ]
        self._down = [LinkModel(LinkSettings(one.latency_s, 0.0, one.down)) for one in self.access]
        self._chance = [stream(seed, "messages", node) for node in range(nodes)]

    def send(self, sender: int, size: int, now: float) -> Flight:
        """Put a message of `size` bytes into the sender's link."""
        rng = self._chance[sender]
        settings = self._settings
        last, _ = self._up[sender].arrival(now, size, rng)
        lost = settings.loss > 0 and rng.random() < settings.loss
        noticed = lost and settings.loss_noticed > 0 and rng.random() < settings.loss_noticed
        return Flight(last - size / self.access[sender].up, last, lost, noticed)

    def arrive(self, receiver: int, size: int, flight: Flight, now: float) -> float:
        """When a message is there as a whole whose first byte reaches the receiver's link now.

        Called at `flight.first_s`, in the order of those times: that is the order of the queue.
        """
        whole, _ = self._down[receiver].arrival(now, size, self._chance[receiver])
        return max(whole, flight.last_s + self.access[receiver].latency_s)

    def one_way_s(self, sender: int, receiver: int) -> float:
        """Latency between two nodes, without queues."""
        return self.access[sender].latency_s + self.access[receiver].latency_s

    def limits(self, receiver: int) -> bool:
        """Whether messages can queue at this node's downward link."""
        return math.isfinite(self.access[receiver].down)

    def reset(self, node: int) -> None:
        """Whatever was queued at this node's link is gone: the node died."""
        one, settings = self.access[node], self._settings
        self._up[node] = LinkModel(LinkSettings(one.latency_s, settings.jitter_s, one.up))
        self._down[node] = LinkModel(LinkSettings(one.latency_s, 0.0, one.down))


def _rate(bytes_per_s: float, factor: float) -> float:
    return bytes_per_s * factor if bytes_per_s else math.inf
