"""What connected peers see us at: the one store of their words, what of it to believe, and how our NAT maps ports (sans-IO).

Problem: behind a NAT only the others know our address, and any one of them may be wrong, may lie, or may sit in our own network. And
whether a hole can be punched depends on whether the NAT lends one port for all destinations (endpoint-independent mapping, RFC 4787
section 4.1) or another one for each. Idea: every peer we dialed *from the port we listen on* reports where it sees us. The reports of one
network (`transport.budget.admission.source_of`: an IPv4 address, or an IPv6 /56) are one voice, so that many identities in one place
are. What is concluded from them:

    believed     `observers_needed` networks agree                     advertised, once a dial-back has reached it
    candidates   `CONFIRMED` networks agree, or, for a family in       told to the other side of a punch
                 which none do, one address more
    mapping      independent   enough networks see one and the same address, and they are at least two thirds of all
                 dependent     enough networks have reported, and no address has more than half of them
                 unknown       otherwise

Our own addresses (no NAT between) are no news: they are not believed in, but they prove independent mapping all the same.

Dialing from the listening port has a price: a call that nobody answers leaves a trace in our NAT, under which a punch with the same
address fails for a minute or two. So `wanted` says for which dials it is worth that: those to public hosts of networks that have not reported, until
`observers_needed` and one more have. Their connections, while they last, also keep the NAT's mapping alive.

Invariants: at most `max_observers` observers, and a word is forgotten when its observer is no peer any more, or after `expiry_s`; what is
believed has `observers_needed` distinct networks behind it, or all there are in a swarm smaller than that; at most one candidate of each
family rests on one word, and none of them does where two networks agree.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable
from enum import StrEnum
from typing import Final

import attrs

from transport.address import Address
from transport.address_kinds import AddressKind, is_public, kind_of
from transport.budget.admission import source_of
from transport.errors import UsageError
from transport.identity import NodeId

OBSERVERS_NEEDED: Final = 3
"""So that one liar, or two, prove nothing; go-libp2p asks for four, in a network of strangers."""
CONFIRMED: Final = 2
"""Networks that make an address worth telling in a punch: what a wrong one costs is a few dials."""
EXPIRY_S: Final = 2400.0
"""A NAT's lease changes rarely; peers come back more often than that (go-libp2p: 40 min)."""
MAX_EXTERNAL: Final = 3
"""Addresses believed per family: a machine with more outside addresses than that has an operator who lists them."""
ANSWER_S: Final = 10.0
"""How long a dial from the listening port counts as one that may still bring a report (seconds): the longest that a dial takes."""

_USELESS: Final = frozenset({AddressKind.LOOPBACK, AddressKind.LINK_LOCAL})


class MappingBehaviour(StrEnum):
    """Whether our NAT lends one outside port for all destinations."""

    INDEPENDENT = "independent"
    """One: what a peer sees leads to our listener, filters aside. Also without any NAT."""
    DEPENDENT = "dependent"
    """Another one for each destination: only those we dial can answer."""
    UNKNOWN = "unknown"


@attrs.frozen
class _Word:
    """What one observer says."""

    network: str
    """The observer's."""
    seen: Address
    at: float
    from_listener: bool
    """Whether it speaks of a connection that left from our listening port."""


class Observations:
    """The store.

    Args:
        observers_needed: distinct networks that must agree (count).
        expiry_s: life of a word (seconds).
        max_observers: observers kept of each family; when there are more, the network with the most loses its oldest.
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
        self._words: dict[bool, OrderedDict[NodeId, _Word]] = {
            False: OrderedDict(),  # IPv4, by observer, least recently renewed first
            True: OrderedDict(),
        }
        self._tried: dict[str, float] = {}  # network -> dialed from our listener; a few at a time

    # What is put in

    def set_own(self, hosts: Iterable[str]) -> None:
        """Tell which addresses this machine itself has."""
        self._own = frozenset(hosts)

    def note(
        self,
        observer: NodeId,
        observer_host: str,
        seen_untrusted: Address,
        now: float,
        *,
        from_listener: bool,
    ) -> bool:
        """A peer says that it sees us at `seen_untrusted`; its latest word of each family counts.

        What cannot be a way to us from there is ignored: names, relayed addresses, port 0, addresses with a zone, loopback,
        another family. Over a relay nobody sees us, so such words must not be put in.

        Args:
            observer: who, authenticated.
            observer_host: where we see it.
            seen_untrusted: what it says.
            now: monotonic seconds.
            from_listener: whether the connection that it speaks of left from the port we listen on.

        Returns:
            Whether it was noted.
        """
        seen = seen_untrusted
        if not seen.is_ip or seen.relay or seen.port == 0 or "%" in seen.host:
            return False
        six = ":" in seen.host
        if six != (":" in observer_host) or seen.is_wildcard or kind_of(seen.host) in _USELESS:
            return False
        words = self._words[six]
        network = source_of(observer_host)
        self._tried.pop(network, None)
        old = words.get(observer)
        if old is not None and old.from_listener and not from_listener:
            return True  # it has dialed us as well, which says nothing new
        words[observer] = _Word(network, seen, now, from_listener)
        words.move_to_end(observer)
        if len(words) > self.max_observers:
            counted = Counter(word.network for word in words.values())
            fullest = max(counted.values())
            del words[next(who for who, w in words.items() if counted[w.network] == fullest)]
        return True

    def forget(self, observer: NodeId) -> None:
        """It is no peer any more: nobody could ask it again."""
        for words in self._words.values():
            words.pop(observer, None)

    def keep(self, observers: Collection[NodeId]) -> None:
        """Forget all others."""
        for words in self._words.values():
            for gone in [observer for observer in words if observer not in observers]:
                del words[gone]

    def clear(self) -> None:
        """Forget everything: this machine has moved to another network."""
        self._tried.clear()
        for words in self._words.values():
            words.clear()

    # What is concluded

    def believed(self, now: float) -> tuple[Address, ...]:
        """Our outside addresses, the best attested first; not those this machine has itself."""
        return tuple(
            address
            for six in (False, True)
            for address, count in self._ranked(six, now)
            if count >= self._needed and address.host not in self._own
        )

    def confirmed(self, now: float) -> tuple[Address, ...]:
        """Where `CONFIRMED` networks or more see us, best attested first of each family."""
        return tuple(
            address
            for six in (False, True)
            for address, count in self._ranked(six, now)
            if count >= CONFIRMED
        )

    def candidates(self, now: float) -> tuple[Address, ...]:
        """Where the other side of a punch may meet us: the best of each family first, then what else is confirmed.

        Where no two networks agree, the newest word at the host that most of them name is taken, and no other.
        """
        best, rest = list[Address](), list[Address]()
        for six in (False, True):
            ranked = self._ranked(six, now)
            confirmed = [address for address, count in ranked if count >= CONFIRMED]
            if not confirmed:
                voices = self._voices(six, now)
                hosts = Counter(word.seen.host for word in voices)
                newest = sorted(voices, key=lambda word: (-hosts[word.seen.host], -word.at))
                confirmed = [word.seen for word in newest[:1]]
            best += confirmed[:1]
            rest += confirmed[1:]
        return (*best, *rest)

    def hosts(self, now: float) -> tuple[str, ...]:
        """Our outside IP addresses, also where the ports differ from peer to peer."""
        believed = []
        for six in (False, True):
            votes = Counter(word.seen.host for word in self._voices(six, now))
            ranked = sorted(votes.items(), key=lambda item: (-item[1], item[0]))[:MAX_EXTERNAL]
            believed += [
                host for host, count in ranked if count >= self._needed and host not in self._own
            ]
        return tuple(believed)

    def mapping(self, now: float, *, six: bool = False) -> MappingBehaviour:
        """How ports are mapped for one family; needs two networks at least, for one cannot show a difference."""
        ranked, total = self._ranked(six, now), self.observers(now, six=six)
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
        """Networks whose word on our listening port counts now."""
        return len(self._voices(six, now))

    def sees_us_at(self, observer: NodeId, *, six: bool) -> str | None:
        """The host at which a peer says it sees us; None if it never said."""
        word = self._words[six].get(observer)
        return None if word is None else word.seen.host

    @property
    def sees_an_own_address(self) -> bool:
        """Whether some peer sees us at an address of this machine itself: no NAT lies between."""
        return any(
            word.seen.host in self._own for words in self._words.values() for word in words.values()
        )

    # Whom to ask

    def lacks(self, now: float, *, six: bool) -> bool:
        """Whether more networks should say where they see us: one more than needed, so that losing one changes nothing."""
        return self.observers(now, six=six) <= self.observers_needed

    def wanted(self, host: str, now: float) -> bool:
        """Whether to dial `host` from the port we listen on, and note that it is being done; see the module."""
        if not is_public(host):
            return False  # no NAT of ours lies on the way, or none that others would meet
        six, network = ":" in host, source_of(host)
        # Dials under way may be answered; or they may lose a race against another address and bring nothing.
        if self.observers(now, six=six) + self._pending(now, six) > self.observers_needed:
            return False
        if network in self._tried or self.has_spoken(host, now):
            return False
        self._tried[network] = now
        return True

    def has_spoken(self, host: str, now: float) -> bool:
        """Whether the network of `host` has said where it sees our listening port."""
        network = source_of(host)
        return any(word.network == network for word in self._voices(":" in host, now))

    def next_deadline(self) -> float | None:
        """When the oldest word expires; None without any."""
        oldest = [next(iter(words.values())).at for words in self._words.values() if words]
        return min(oldest) + self.expiry_s if oldest else None

    # Internals

    @property
    def _needed(self) -> int:
        if self.networks_in_swarm is None:
            return self.observers_needed
        return max(1, min(self.observers_needed, self.networks_in_swarm))

    def _pending(self, now: float, six: bool) -> int:
        """Networks that were dialed from our listening port a moment ago, and have not answered."""
        self._tried = {net: at for net, at in self._tried.items() if at + ANSWER_S > now}
        return sum((":" in network) == six for network in self._tried)

    def _voices(self, six: bool, now: float) -> list[_Word]:
        """The latest word of each network that speaks of our listening port, the oldest first."""
        words = self._words[six]
        while words and next(iter(words.values())).at + self.expiry_s <= now:
            words.popitem(last=False)
        latest = {word.network: word for word in words.values() if word.from_listener}
        return list(latest.values())

    def _ranked(self, six: bool, now: float) -> list[tuple[Address, int]]:
        votes = Counter(word.seen for word in self._voices(six, now))
        return sorted(votes.items(), key=lambda item: (-item[1], item[0]))[:MAX_EXTERNAL]
