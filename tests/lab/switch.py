"""A network segment as a core: frames come in at ports and leave late, or never.

It learns which Ethernet address lives at which port, like any switch. Between two ports a frame
suffers what a path through the internet does: the sender's uplink serialises it (and drops it when
too much is queued), it may be lost, it is delayed. Jitter does not reorder, as queues do not;
reordering is asked for separately, and lets a frame overtake by skipping its delay.

Invariants: with equal seeds and inputs the fate of every frame is equal; at most `MAX_FLYING`
frames are held, the rest is dropped and counted.
"""

import heapq
import random

import attrs

BROADCAST_BIT = 0x01
HEADER_BYTES = 14
MAX_FLYING = 50_000


@attrs.frozen
class LinkProfile:
    """What happens to a frame between any two ports.

    Attributes:
        delay_ms: one way.
        jitter_ms: added to it, evenly distributed between 0 and this.
        loss: probability of being lost, each way.
        reorder: probability of travelling without delay, past others.
        rate_mbit: of each port's uplink; 0 is without limit.
        queue_kib: what may wait for that uplink before frames are dropped.
    """

    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    loss: float = 0.0
    reorder: float = 0.0
    rate_mbit: float = 0.0
    queue_kib: float = 512.0


@attrs.define
class Counters:
    """What became of the frames."""

    forwarded: int = 0
    lost: int = 0
    overflowed: int = 0


class Switch:
    """The segment; ports are any integers (the driver uses descriptors)."""

    def __init__(self, profile: LinkProfile, seed: int = 0) -> None:
        self.profile = profile
        self.counters = Counters()
        self._rng = random.Random(seed)
        self._ports: dict[int, float] = {}
        """Port -> when its uplink is free again."""
        self._last: dict[tuple[int, int], float] = {}
        """When the last frame between two ports arrives: the next one arrives no sooner."""
        self._homes: dict[bytes, int] = {}
        self._flying: list[tuple[float, int, int, bytes]] = []
        self._sequence = 0

    def add_port(self, port: int) -> None:
        self._ports[port] = 0.0

    def remove_port(self, port: int) -> None:
        """Forget a port; what was on its way to it is lost."""
        self._ports.pop(port, None)
        self._homes = {mac: home for mac, home in self._homes.items() if home != port}
        self._last = {pair: due for pair, due in self._last.items() if port not in pair}
        self._flying = [frame for frame in self._flying if frame[2] != port]
        heapq.heapify(self._flying)

    def receive(self, port: int, frame: bytes, now: float) -> None:
        """A port sends a frame; times are in seconds of any steady clock."""
        if len(frame) < HEADER_BYTES or port not in self._ports:
            return
        destination, source = frame[:6], frame[6:12]
        if not source[0] & BROADCAST_BIT:
            self._homes[source] = port
        home = None if destination[0] & BROADCAST_BIT else self._homes.get(destination)
        if home == port:
            return
        leaves = self._serialise(port, len(frame), now)
        if leaves is None:
            return
        for target in [home] if home is not None else [p for p in self._ports if p != port]:
            self._send(port, target, frame, leaves)

    def _serialise(self, port: int, size_bytes: int, now: float) -> float | None:
        rate = self.profile.rate_mbit * 1e6 / 8
        if not rate:
            return now
        start = max(now, self._ports[port])
        if (start - now) * rate > self.profile.queue_kib * 1024:
            self.counters.overflowed += 1
            return None
        self._ports[port] = start + size_bytes / rate
        return self._ports[port]

    def _send(self, port: int, target: int, frame: bytes, leaves: float) -> None:
        profile = self.profile
        if profile.loss and self._rng.random() < profile.loss:
            self.counters.lost += 1
            return
        if len(self._flying) >= MAX_FLYING:
            self.counters.overflowed += 1
            return
        due = leaves
        if not (profile.reorder and self._rng.random() < profile.reorder):
            due += (profile.delay_ms + self._rng.random() * profile.jitter_ms) / 1000
            due = max(due, self._last.get((port, target), 0.0))
            self._last[port, target] = due
        self._sequence += 1
        heapq.heappush(self._flying, (due, self._sequence, target, frame))

    def next_deadline(self) -> float | None:
        """When the next frame arrives."""
        return self._flying[0][0] if self._flying else None

    def outgoing(self, now: float) -> list[tuple[int, bytes]]:
        """The frames that have arrived by now, with their ports."""
        arrived = []
        while self._flying and self._flying[0][0] <= now:
            _, _, target, frame = heapq.heappop(self._flying)
            arrived.append((target, frame))
        self.counters.forwarded += len(arrived)
        return arrived
