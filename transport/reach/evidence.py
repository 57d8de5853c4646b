"""What a node has learnt of its place on the network: the evidence, and what each address of ours is worth by it (sans-IO).

Problem: dial-backs, observers, strangers, routers and interfaces each prove something else, and each is wrong in its own way. Idea: they are
held in one place, and each question about an address is answered from all of them by one method.

    tested      public addresses that may lead here: what dial-backs are asked for
    is_open     strangers can dial it for certain: no relay is needed, and we may serve as one
    plausible   which of the mappings that routers claim to be believed

Invariant: an answer depends on what was put in and on the time alone.
"""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Iterable, Sequence

from transport.address import Address
from transport.address_kinds import is_public
from transport.nat.mapping_core import Mapping
from transport.punch.targets import IPInterface
from transport.reach.advertising import bound_addresses
from transport.reach.observed import Observations
from transport.reach.openness import Openness
from transport.reach.reachability import Reachability, ReachabilitySettings


class Evidence:
    """All of it.

    Args:
        configured: addresses that the operator vouches for.
        settings: how sure to be that others can dial us.
        rng: of pauses and choices.

    Attributes:
        observations: what peers see us at.
        reachability: what came of dial-backs.
        strangers: where hosts came in that we had never dialed.
        hosts: usable IP addresses of this machine.
    """

    def __init__(
        self, configured: Sequence[Address], settings: ReachabilitySettings, rng: random.Random
    ) -> None:
        self.observations = Observations()
        self.reachability = Reachability(settings, rng)
        self.strangers = Openness()
        self.hosts: tuple[str, ...] = ()
        self._configured = tuple(configured)
        self._networks: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = ()

    # What is put in

    def set_interfaces(self, interfaces: Iterable[IPInterface]) -> None:
        """These are this machine's interfaces now, without loopback."""
        found = list(interfaces)
        self.hosts = tuple(dict.fromkeys(str(interface.ip) for interface in found))
        self._networks = tuple(interface.network for interface in found)
        self.observations.set_own(self.hosts)

    def set_networks_in_swarm(self, count: int) -> None:
        """So many networks have peers of ours: where there are few, all of them must agree."""
        self.observations.networks_in_swarm = self.reachability.networks_in_swarm = count

    def move(self, now: float) -> None:
        """This machine has moved to another network: what was learnt in the old one means nothing."""
        self.observations.clear()
        self.strangers.clear()
        self.reachability.restart(now)

    # What is concluded

    def is_near(self, host: str) -> bool:
        """Whether `host`, an IP address, is in a network that we are in."""
        address = ipaddress.ip_address(host.partition("%")[0])
        return any(address in network for network in self._networks)

    def plausible(self, mappings: Iterable[Mapping], now: float) -> list[Mapping]:
        """What routers forward; not what peers do not see us at, since anybody in the network may pose as the router."""
        seen = self.observations.hosts(now)
        families = {":" in host for host in seen}
        return [
            mapping
            for mapping in mappings
            if mapping.external.host in seen or (":" in mapping.external.host) not in families
        ]

    def tested(
        self, bound: Iterable[Address], mappings: Iterable[Mapping], now: float
    ) -> list[Address]:
        """Public addresses that may lead here.

        Args:
            bound: what the listeners are bound to.
            mappings: what routers forward, plausible or not.
            now: monotonic seconds.
        """
        candidates = [
            *self._configured,
            *bound_addresses(bound, self.hosts),
            *(held.external for held in self.plausible(mappings, now)),
            *self.observations.believed(now),
        ]
        return [address for address in dict.fromkeys(candidates) if is_public(address.host)]

    def is_open(self, address: Address, mappings: Iterable[Mapping], now: float) -> bool:
        """Whether strangers can dial `address`.

        A dial-back comes from a host that we talk with, which a NAT that filters by address lets in. So it is proof where
        no such NAT can be: at an address of this machine, one that the router forwards or the operator vouches for;
        elsewhere only a stranger's connection is.
        """
        reached = self.reachability.reached(address, now)
        if reached is False:
            return False
        if self.strangers.is_open(address, now):
            return True
        known = address.host in self.hosts or address in self._configured
        forwarded = any(held.external == address for held in self.plausible(mappings, now))
        return (known or forwarded) and reached is True

    def mapping(self, now: float) -> str:
        """Mapping behaviour for IPv4; "none" when peers see an address of this machine itself."""
        seen = self.observations
        if not seen.hosts(now) and seen.sees_an_own_address:
            return "none"
        return str(seen.mapping(now))
