"""Address groups: how many of a set may come from one corner of the internet.

Problem: identities are free, so one machine can run thousands of nodes and fill tables and searches with them. Addresses are not
free: whoever holds one has its neighbours, a second provider's costs again. Idea (BEP 42, py-libp2p's and go-libp2p's diversity
filters): count contacts by prefix, /24 and /16 for IPv4, /56 and /48 for IPv6 (what one customer and one site usually get), and
keep each count small.

Which address counts: the one a connection showed (`Contact.host`), since a node can claim any other; for hearsay, all that are
claimed. Loopback, private and shared (RFC 6598) addresses are in no group: a swarm on one local network is one site by nature,
and who can reach us there is inside already.

Limits are for choosing among many. Who knows few nodes takes any (see `bucket` and `lookup`): ten nodes behind one prefix are a
swarm of their own. In a simulation of 2,000 nodes, 20 ids ground next to a key deny it to every reader; with at most two per group
in placing and asking, to none (`docs/dht.md`).
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterable

import attrs

from dht.contact import Contact, split_address

Group = tuple[int, int, int]
"""(IP version, bits of the prefix, the prefix as a number)."""

_PREFIXES = {4: (24, 16), 6: (56, 48)}


@attrs.frozen
class Quota:
    """How many of one set may share a prefix."""

    narrow: int
    """Of one IPv4 /24 or IPv6 /56."""
    wide: int
    """Of one IPv4 /16 or IPv6 /48."""


# One prefix may not hold a bucket, nor the table, nor the answer to a search.
BUCKET_QUOTA = Quota(2, 4)
TABLE_QUOTA = Quota(10, 20)
SEARCH_QUOTA = Quota(2, 4)


@functools.lru_cache(maxsize=16384)
def host_groups(host: str) -> tuple[Group, ...]:
    """Return the groups of a literal IP address; none when it is not global, or no address."""
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return ()
    if isinstance(ip, ipaddress.IPv6Address):
        ip = ip.ipv4_mapped or ip.sixtofour or ip
    if not ip.is_global:
        return ()
    size = ip.max_prefixlen
    return tuple((ip.version, bits, int(ip) >> (size - bits)) for bits in _PREFIXES[ip.version])


def groups_of(contact: Contact) -> tuple[Group, ...]:
    """Return the groups that `contact` belongs to."""
    if contact.host:
        return host_groups(contact.host)
    return _claimed(contact.addresses)


@functools.lru_cache(maxsize=16384)
def _claimed(addresses: tuple[str, ...]) -> tuple[Group, ...]:
    parts = (split_address(text) for text in addresses)
    hosts = (part[0] for part in parts if part is not None)
    return tuple(dict.fromkeys(group for host in hosts for group in host_groups(host)))


class GroupCounter:
    """How often each group occurs in one set."""

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts: dict[Group, int] = {}

    def add(self, groups: Iterable[Group]) -> None:
        """Count one more member."""
        for group in groups:
            self._counts[group] = self._counts.get(group, 0) + 1

    def remove(self, groups: Iterable[Group]) -> None:
        """Count one member less."""
        for group in groups:
            left = self._counts[group] - 1
            if left:
                self._counts[group] = left
            else:
                del self._counts[group]

    def room(self, groups: Iterable[Group], quota: Quota) -> bool:
        """Return whether one more member of `groups` stays within `quota`."""
        for group in groups:
            narrow = group[1] == _PREFIXES[group[0]][0]
            if self._counts.get(group, 0) >= (quota.narrow if narrow else quota.wide):
                return False
        return True

    def most(self) -> int:
        """Return the count of the most frequent group."""
        return max(self._counts.values(), default=0)
