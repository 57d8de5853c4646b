"""What others see us at: which of our outside addresses to believe, and how our NAT maps ports (sans-IO).

Problem: behind a NAT only the others know our address, and any one of them may be wrong, may lie, or may sit in our own network. And
whether a hole can be punched depends on whether the NAT lends one port for all destinations (endpoint-independent mapping, RFC 4787
section 4.1) or another one for each. Idea: every peer we dialed *from the port we listen on* reports where it sees us. A report counts
once per network it comes from (`transport.budget.admission.source_of`: an IPv4 address, or an IPv6 /56), so that many identities in one
place are one voice. An address is believed once `observers_needed` networks agree.

    mapping    independent   enough networks see one and the same address, and they are at least two thirds of all
               dependent     enough networks have reported, and no address has more than half of them
               unknown       otherwise

Our own addresses (no NAT between) are no news: they are not listed, but they prove independent mapping all the same.

Invariants: at most `max_observers` reports of each family; a report is forgotten after `expiry_s`; what is believed has
`observers_needed` distinct networks behind it, or all there are in a swarm smaller than that.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable
from enum import StrEnum
from typing import Final

import attrs

from transport.address import Address
from transport.address_kinds import AddressKind, kind_of
from transport.budget.admission import source_of
from transport.errors import UsageError

OBSERVERS_NEEDED: Final = 3
"""So that one liar, or two, prove nothing; go-libp2p asks for four, in a network of strangers."""
EXPIRY_S: Final = 2400.0
"""A NAT's lease changes rarely; peers come back more often than that (go-libp2p: 40 min)."""
MAX_EXTERNAL: Final = 3
"""Addresses believed per family: a machine with more outside addresses than that has an operator who lists them."""

_USELESS: Final = frozenset({AddressKind.LOOPBACK, AddressKind.LINK_LOCAL})


class MappingBehaviour(StrEnum):
    """Whether our NAT lends one outside port for all destinations."""

    INDEPENDENT = "independent"
    """One: what a peer sees leads to our listener, filters aside. Also without any NAT."""
    DEPENDENT = "dependent"
    """Another one for each destination: only those we dial can answer."""
    UNKNOWN = "unknown"


@attrs.frozen
class _Report:
    seen: Address
    at: float


class ObservedAddresses:
    """The tally.

    Args:
        observers_needed: distinct networks that must agree (count).
        expiry_s: life of a report (seconds).
        max_observers: reports kept of each family; the oldest goes first.
    """

    def __init__(
        self,
        *,
        observers_needed: int = OBSERVERS_NEEDED,
        expiry_s: float = EXPIRY_S,
        max_observers: int = 256,
    ) -> None:
        if observers_needed < 1 or max_observers < observers_needed or not expiry_s > 0:
            raise UsageError(
                "a tally of observed addresses needs at least one observer and some time"
            )
        self.observers_needed = observers_needed
        self.expiry_s = expiry_s
        self.max_observers = max_observers
        self.networks_in_swarm: int | None = None
        """Networks we have peers in, if that is known: where there are fewer than `observers_needed`, all of them must agree."""
        self._own: frozenset[str] = frozenset()
        self._reports: dict[bool, OrderedDict[str, _Report]] = {
            False: OrderedDict(),  # IPv4, by the observer's network, least recently renewed first
            True: OrderedDict(),
        }

    def set_own(self, hosts: Iterable[str]) -> None:
        """Tell which addresses this machine itself has."""
        self._own = frozenset(hosts)

    def report(self, observer_host: str, seen_untrusted: Address, now: float) -> None:
        """A peer at `observer_host`, dialed from our listening port, says that it sees us at `seen_untrusted`.

        What cannot be a way to us from there is ignored: names, relayed addresses, port 0, loopback, another family.
        """
        seen = seen_untrusted
        if not seen.is_ip or seen.relay or seen.port == 0 or kind_of(seen.host) in _USELESS:
            return
        six = ":" in seen.host
        if six != (":" in observer_host) or seen.is_wildcard:
            return
        reports = self._reports[six]
        network = source_of(observer_host)
        reports[network] = _Report(seen, now)
        reports.move_to_end(network)
        while len(reports) > self.max_observers:
            reports.popitem(last=False)

    def clear(self) -> None:
        """Forget everything: this machine has moved to another network."""
        for reports in self._reports.values():
            reports.clear()

    def believed(self, now: float) -> tuple[Address, ...]:
        """Our outside addresses, the best attested first; not those this machine has itself."""
        return tuple(
            address
            for six in (False, True)
            for address, count in self._ranked(six, now)
            if count >= self._needed and address.host not in self._own
        )

    def hosts(self, now: float) -> tuple[str, ...]:
        """Our outside IP addresses, also where the ports differ from peer to peer."""
        believed = []
        for six in (False, True):
            votes = Counter(report.seen.host for report in self._fresh(six, now))
            ranked = sorted(votes.items(), key=lambda item: (-item[1], item[0]))[:MAX_EXTERNAL]
            believed += [
                host for host, count in ranked if count >= self._needed and host not in self._own
            ]
        return tuple(believed)

    def mapping(self, now: float, *, six: bool = False) -> MappingBehaviour:
        """How ports are mapped for one family; needs two networks at least, for one cannot show a difference."""
        ranked, total = self._ranked(six, now), len(self._fresh(six, now))
        needed = max(2, self._needed)
        if total < needed:
            return MappingBehaviour.UNKNOWN
        most = ranked[0][1]
        if most >= needed and 3 * most >= 2 * total:
            return MappingBehaviour.INDEPENDENT
        if 2 * most <= total:
            return MappingBehaviour.DEPENDENT
        return MappingBehaviour.UNKNOWN

    def observers(self, now: float, *, six: bool = False) -> int:
        """Networks with a report that counts now."""
        return len(self._fresh(six, now))

    def next_deadline(self) -> float | None:
        """When the oldest report expires; None without any."""
        oldest = [next(iter(reports.values())).at for reports in self._reports.values() if reports]
        return min(oldest) + self.expiry_s if oldest else None

    # Internals

    @property
    def _needed(self) -> int:
        if self.networks_in_swarm is None:
            return self.observers_needed
        return max(1, min(self.observers_needed, self.networks_in_swarm))

    def _fresh(self, six: bool, now: float) -> list[_Report]:
        reports = self._reports[six]
        while reports and next(iter(reports.values())).at + self.expiry_s <= now:
            reports.popitem(last=False)
        return list(reports.values())

    def _ranked(self, six: bool, now: float) -> list[tuple[Address, int]]:
        votes = Counter(report.seen for report in self._fresh(six, now))
        return sorted(votes.items(), key=lambda item: (-item[1], item[0]))[:MAX_EXTERNAL]
