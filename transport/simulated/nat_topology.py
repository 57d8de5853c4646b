"""Which way a packet takes from one host to another, through the boxes before both.

Problem: behind NATs an address means something only where it is used: two homes have the same 192.168.1.2, a public address leads to
a box and not to a host, and from inside of that box it may lead nowhere. Idea: *realms*. The internet is one, and behind every NAT lies
another. A SYN climbs from its realm through one box after the other until the target is known where it is (`depart`), and descends from
there through the boxes before the target (`arrive`). The two halves are separate since time passes between them.

Whoever meets in a realm is known there by its *face*: itself, or the outermost box before it. Links of the simulated network join faces,
so hosts behind one NAT share its line to the internet, and not the one between them.

Invariants: nothing here moves by itself; the boxes hold all state (`transport.simulated.nat_model`).
"""

from __future__ import annotations

from typing import Protocol

import attrs

from transport.address import Address
from transport.errors import UsageError
from transport.simulated.nat_model import Nat, Refusal, Session


class Place(Protocol):
    """What may stand in a realm at an address: a host, in the end."""

    @property
    def name(self) -> str:
        """Unique in the world."""
        ...


@attrs.define(eq=False)
class Gate:
    """A box between two realms."""

    box: Nat
    outer: Realm
    inner: Realm

    @property
    def name(self) -> str:
        """Unique in the world."""
        return self.outer.name_of(self.box.public_ip)


class Realm:
    """A part of the world in which addresses are unique.

    Attributes:
        label: "" for the internet; for another, the name of its gate.
        gate: the way out; None for the internet.
    """

    def __init__(self, label: str = "", gate: Gate | None = None) -> None:
        self.label = label
        self.gate = gate
        self._places: dict[str, Place | Gate] = {}

    def name_of(self, host: str) -> str:
        """What a place at `host` is called in links, partitions and kills: its address on the internet, elsewhere with its NATs."""
        return f"{self.label}/{host}" if self.label else host

    def put(self, host: str, place: Place | Gate) -> None:
        """Let `place` have the address `host` here, and outside of a firewall as well.

        Raises:
            UsageError: the address is taken.
        """
        if self._places.get(host, place) is not place:
            raise UsageError(f"the address {self.name_of(host)} is taken")
        self._places[host] = place
        gate = self.gate
        if gate is not None and not gate.box.translates:
            gate.outer.put(host, gate)

    def move(self, gate: Gate, public_ip: str) -> None:
        """Let a gate have another address here."""
        del self._places[gate.box.public_ip]
        gate.box.public_ip = public_ip
        self.put(public_ip, gate)

    def at(self, host: str) -> Place | Gate | None:
        """Who has the address `host` here."""
        return self._places.get(host)

    def behind(self, box: Nat) -> Gate:
        """Put a box here and return the gate to the new realm behind it."""
        gate = Gate(box, self, Realm(self.name_of(box.public_ip)))
        gate.inner.gate = gate
        self.put(box.public_ip, gate)
        return gate


Trail = tuple[tuple[Nat, Session], ...]
"""Boxes that a SYN has passed, each with the session it passed by."""


@attrs.frozen(eq=False)
class Way:
    """The boxes of a connection, as one end sees them."""

    near: Trail
    """On this side: a packet from here leaves by them."""
    far: Trail
    """On the other side: a packet from here goes in by them."""

    def back(self) -> Way:
        """The same as the other end sees it."""
        return Way(self.far, self.near)

    def carry(self, now: float) -> Refusal | None:
        """Send a packet of the open connection; what it met, or None if it came through."""
        for box, session in self.near:
            if not box.carry(session, now):
                return Refusal.DROP
        for box, session in self.far:
            if not box.carry(session, now):
                return box.refusal
        return None

    def close(self, now: float) -> None:
        """Tell the boxes that the connection has ended."""
        for box, session in (*self.near, *self.far):
            box.close(session, now)


@attrs.frozen(eq=False)
class Departure:
    """A SYN on its way in the realm where it will meet its target's face."""

    realm: Realm
    source: Address
    """The dialer's address there."""
    face: str
    """Name of the dialer's face there."""
    trail: Trail
    hairpin: Gate | None = None
    """The gate that turns it round."""


@attrs.frozen(eq=False)
class Arrival:
    """A SYN at a host."""

    place: Place
    source: Address
    """Where it comes from, as the host sees it."""
    target: Address
    """The host's own address."""
    way: Way
    """As the dialer sees it."""


def depart(realm: Realm, source: Address, target: Address, now: float) -> Departure | Refusal:
    """Send a SYN from `source` in `realm` to `target`; a refusal comes from a box on this side."""
    trail: Trail = ()
    face = realm.name_of(source.host)
    while True:
        gate = realm.gate
        if realm.at(target.host) is not None or gate is None:
            return Departure(realm, source, face, trail)
        turn = gate.box.translates and target.host == gate.box.public_ip
        if turn and not gate.box.hairpin:
            return gate.box.refusal
        session = gate.box.outbound(source, target, now)
        if session is None:
            return Refusal.DROP
        trail = (*trail, (gate.box, session))
        source = session.outside
        if turn:
            return Departure(realm, source, face, trail, gate)
        realm = gate.outer
        face = realm.name_of(source.host)


def arrive(departure: Departure, target: Address, now: float) -> Arrival | Refusal | None:
    """Let a SYN in through the boxes before its target; None if nobody has that address."""
    place = departure.hairpin or departure.realm.at(target.host)
    far: Trail = ()
    while isinstance(place, Gate):
        verdict = place.box.inbound(departure.source, target, now)
        if isinstance(verdict, Refusal):
            return verdict
        far = (*far, (place.box, verdict))
        target = verdict.inside
        place = place.inner.at(target.host)
    if place is None:
        # In a world of boxes, packets to nowhere vanish; a world without them answers for every address, as it always did.
        return Refusal.DROP if departure.trail or far else None
    return Arrival(place, departure.source, target, Way(departure.trail, far))


def reset(trail: Trail) -> None:
    """Bring the RST that answered a SYN back to the dialer."""
    for box, session in trail:
        box.reset(session)
