"""What a proposer makes of the measurements: the ring's order, the sites, and whether links must be measured first (sans-IO).

A ring is as fast as its slowest link (`algorithms.ring_order`), so an order is worth a new epoch only if that link becomes faster by
GAIN: forming one takes tens of milliseconds and measurements are noisy. It is looked for at most once in
REARRANGE_S. Links that no operation has used are not known to anybody, and a ring uses N of N(N-1): while some are
unknown, one epoch in PROBE_S begins with measuring them (`gossip.collective.placing.probing`).

A link whose rate is unknown counts like the median of the known ones: neither shunned nor preferred before it is measured.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from gossip.collective.agreement.certificate import Epoch
from gossip.collective.agreement.layout import PLAIN, Layout
from gossip.collective.placing.ring_order import ring_order, slowest_link
from transport.identity import NodeId

GAIN: Final = 1.15
REARRANGE_S: Final = 60.0
PROBE_S: Final = 600.0
MAX_PROBED: Final = 32
"""Members of an epoch that measure each other: each takes N - 1 turns of half a second."""

Link = tuple[NodeId, NodeId]
"""From a member to another one."""


class Arranger:
    """Arranges members for one node.

    Args:
        rates: bytes per second by link, as known now.
        rtt_s: round trip to a member, None where it is not known.
        near: whether a member is on this machine; where all are, there is nothing to arrange or measure.
        site: the name of a member's site, "" where it has none.
        probing: whether an epoch may begin with measuring links.
    """

    def __init__(
        self,
        rates: Callable[[], Mapping[Link, float]],
        rtt_s: Callable[[NodeId], float | None] = lambda _member: None,
        near: Callable[[NodeId], bool] = lambda _member: False,
        site: Callable[[NodeId], str] = lambda _member: "",
        probing: bool = True,
    ) -> None:
        self._rates = rates
        self._rtt_s = rtt_s
        self._near = near
        self._site = site
        self.probing = probing
        self._probed_at = -math.inf
        self._rearranged_at = -math.inf
        self._followed: deque[float] = deque()

    def layout(self, members: tuple[NodeId, ...], now: float) -> Layout:
        """The layout of an epoch that this node proposes."""
        if all(self._near(member) for member in members):
            return PLAIN
        rates = self._among(members)
        order, slowest = self._ordered(members, rates)
        probe = self._wants_probe(members, rates) and now >= self._probed_at + PROBE_S
        if probe:
            self._probed_at = now
        rtts = [rtt for member in members if (rtt := self._rtt_s(member)) is not None]
        return Layout(
            order,
            self._sites(members),
            round(min(max(rtts), 100.0) * 1e6) if rtts else 0,
            round(slowest / 1024) if math.isfinite(slowest) else 0,
            probe,
        )

    def follows_probe(self, members: Sequence[NodeId], now: float) -> bool:
        """Whether to measure at the beginning of an epoch whose proposer asks for it: as often as all members together may."""
        if len(members) > MAX_PROBED:
            return False
        while self._followed and self._followed[0] <= now - PROBE_S:
            self._followed.popleft()
        if len(self._followed) >= len(members):
            return False
        self._followed.append(now)
        return True

    def improves(self, epoch: Epoch, now: float) -> bool:
        """True when the members would do better in a new epoch; seldom, and not twice in a minute."""
        members = epoch.members
        rates = self._among(members)
        if len(members) < 3 or not rates or now < self._rearranged_at + REARRANGE_S:
            return False
        if self._wants_probe(members, rates):
            return False  # what is not known yet may be better still
        present = _named(members, epoch.layout.order)
        order, _ = self._ordered(members, rates)
        best = _named(members, order)
        rate = _rate_of(rates)
        if slowest_link(best, rate) < GAIN * slowest_link(present, rate):
            return False
        self._rearranged_at = now
        return True

    def _among(self, members: Sequence[NodeId]) -> dict[Link, float]:
        here = set(members)
        return {
            link: rate
            for link, rate in self._rates().items()
            if link[0] in here and link[1] in here
        }

    def _ordered(
        self, members: tuple[NodeId, ...], rates: Mapping[Link, float]
    ) -> tuple[bytes, float]:
        """The best order known, by index, and the rate of its slowest link; infinite when nothing is known."""
        if len(members) < 3 or not rates:
            slowest = min(rates.values()) if rates else math.inf
            return b"", slowest
        rate = _rate_of(rates)
        order = ring_order(members, rate)
        if slowest_link(order, rate) < GAIN * slowest_link(members, rate):
            return b"", slowest_link(members, rate)
        return bytes(members.index(member) for member in order), slowest_link(order, rate)

    def _wants_probe(self, members: Sequence[NodeId], rates: Mapping[Link, float]) -> bool:
        links = len(members) * (len(members) - 1)
        return self.probing and 2 < len(members) <= MAX_PROBED and len(rates) < links

    def _sites(self, members: Sequence[NodeId]) -> bytes:
        names = [self._site(member) for member in members]
        if not all(names) or len(set(names)) < 2 or len(set(names)) == len(names):
            return b""
        known = sorted(set(names))
        return bytes(known.index(name) for name in names)


def _rate_of(rates: Mapping[Link, float]) -> Callable[[NodeId, NodeId], float]:
    usual = statistics.median(rates.values())

    def rate(source: NodeId, destination: NodeId) -> float:
        return rates.get((source, destination), usual)

    return rate


def _named(members: Sequence[NodeId], order: bytes) -> tuple[NodeId, ...]:
    return tuple(members[rank] for rank in order) if order else tuple(members)
