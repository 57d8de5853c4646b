"""A NAT or a firewall for TCP, as a value that answers packets: no sockets, no clock of its own.

Problem: whether two nodes can meet depends on the boxes before them, so faults there must be as repeatable as faults of links. Idea:
a box is a table of sessions (inside address, far address, the port it lends) with times; `outbound` and `inbound` say what becomes of
a packet, and the caller (`transport.simulated.nat_topology`, or a test) moves it. The terms are those of RFC 4787 and RFC 5382.

| kind | mapping (which port the far side sees) | filter (who may come in on it) |
|---|---|---|
| full-cone | one per inside address | anybody |
| address-restricted | one per inside address | any port of a host that was sent something |
| port-restricted | one per inside address | exactly the addresses that were sent something; others are dropped |
| port-restricted-rst | the same | the same; others are answered with RST |
| symmetric | a random one per inside address and far address | the far address of that mapping; others are dropped |
| firewall | none: addresses stay as they are (IPv6) | exactly the addresses that were sent something; others are dropped |

As Linux MASQUERADE does, a mapping keeps the inside port where it is free (never on a symmetric NAT); the second host with the same
inside port gets another one. As in conntrack, a session lives for `syn_timeout_s` until it is answered, for `idle_timeout_s` between
two packets of an open connection and for `closed_timeout_s` after its end, and an RST that is the first answer ends it at once
(nf_conntrack_proto_tcp.c): that is why a NAT which answers RST needs both SYNs to cross. Unlike Linux (nf_conntrack_tcp_loose), a packet
in the middle of a connection never makes a new session: what was forgotten stays dead.

Invariants: a port belongs to one inside address (symmetric: to one session) as long as one of its sessions lives; chance comes from the
given generator alone; at most `max_sessions` sessions.
"""

from __future__ import annotations

import random
from enum import StrEnum
from typing import Final

import attrs

from transport.address import Address
from transport.errors import UsageError

FIRST_PORT: Final = 1024
LAST_PORT: Final = 65535


class NatKind(StrEnum):
    """How a box maps and filters; the table is in the module."""

    FULL_CONE = "full-cone"
    ADDRESS_RESTRICTED = "address-restricted"
    PORT_RESTRICTED = "port-restricted"
    PORT_RESTRICTED_RST = "port-restricted-rst"
    SYMMETRIC = "symmetric"
    FIREWALL = "firewall"


class Refusal(StrEnum):
    """What becomes of a packet that is not let through."""

    DROP = "drop"
    RESET = "reset"


@attrs.define(eq=False)
class Session:
    """One conversation through one box, as conntrack keeps it."""

    inside: Address
    """The host's own address."""
    outside: Address
    """What the far side sees instead; the same behind a firewall."""
    far: Address
    """The other end, as the host knows it."""
    expires_at: float
    """Seconds; from then on the session is forgotten."""
    answered: bool = False
    """Something other than an RST has come from the other side."""
    alive: bool = True
    """False once it was forgotten."""


@attrs.define(eq=False)
class _Mapping:
    inside: Address
    sessions: dict[Address, Session] = attrs.field(factory=dict)  # by far address


class Nat:
    """One box.

    Args:
        public_ip: its address outside. A firewall needs one only as a name.
        kind: how it behaves.
        rng: of the ports it chooses.
        hairpin: whether hosts behind it reach each other at its public address.
        syn_timeout_s: life of a session nobody has answered (Linux: 120 s).
        idle_timeout_s: life of an open connection without a packet; RFC 5382 asks for 2 h 4 min at least, cheap boxes give minutes.
        closed_timeout_s: life of a session after the end of its connection (Linux: 120 s).
        max_sessions: of all hosts together; further ones are dropped.
    """

    def __init__(
        self,
        public_ip: str,
        kind: NatKind | str,
        *,
        rng: random.Random,
        hairpin: bool = False,
        syn_timeout_s: float = 120.0,
        idle_timeout_s: float = 7440.0,
        closed_timeout_s: float = 120.0,
        max_sessions: int = 65536,
    ) -> None:
        self.public_ip = Address(public_ip, 0).host
        self.kind = NatKind(kind)
        self.hairpin = hairpin
        self.syn_timeout_s = syn_timeout_s
        self.idle_timeout_s = idle_timeout_s
        self.closed_timeout_s = closed_timeout_s
        self.max_sessions = max_sessions
        self._rng = rng
        self._sessions: dict[tuple[Address, Address], Session] = {}  # by inside and far address
        self._mappings: dict[Address, _Mapping] = {}  # by outside address
        self._outside: dict[
            Address, Address
        ] = {}  # inside -> outside, where mapping is independent
        self._forwards: dict[Address, Address] = {}  # outside -> inside, until removed

    def __repr__(self) -> str:
        return f"<Nat {self.public_ip} {self.kind}>"

    @property
    def translates(self) -> bool:
        """Whether it changes addresses."""
        return self.kind != NatKind.FIREWALL

    @property
    def refusal(self) -> Refusal:
        """What strangers get."""
        return Refusal.RESET if self.kind == NatKind.PORT_RESTRICTED_RST else Refusal.DROP

    # Port mappings, as PCP, NAT-PMP, UPnP or a person makes them

    def forward(self, inside: Address, port: int | None = None) -> Address:
        """Let anybody in to `inside` at the public address, from now on.

        Args:
            inside: the host's address.
            port: at the public address; the inside port when None.

        Returns:
            The address to tell others.

        Raises:
            UsageError: the port is taken.
        """
        outside = inside
        if self.translates:
            outside = Address(self.public_ip, inside.port if port is None else port)
        mapping = self._mappings.get(outside)
        if self._forwards.get(outside, inside) != inside or (mapping and mapping.inside != inside):
            raise UsageError(f"{outside} is mapped to another host already")
        self._forwards[outside] = inside
        return outside

    def unforward(self, outside: Address) -> None:
        """End what `forward` began; sessions go on."""
        self._forwards.pop(outside, None)

    # Packets that open

    def outbound(self, inside: Address, far: Address, now: float) -> Session | None:
        """A host sends a SYN, or the answer to one; None: no room, and the packet is dropped."""
        self._expire(now)
        session = self._sessions.get((inside, far))
        if session is None:
            outside = self._outside_for(inside)
            if outside is None or len(self._sessions) >= self.max_sessions:
                return None
            session = self._open(inside, outside, far, now)
        else:
            session.expires_at = max(session.expires_at, now + self.syn_timeout_s)
        return session

    def inbound(self, far: Address, outside: Address, now: float) -> Session | Refusal:
        """A SYN from `far` has come to `outside`: the session it goes in by, or what it meets."""
        self._expire(now)
        mapping = self._mappings.get(outside)
        inside = mapping.inside if mapping is not None else self._forwards.get(outside)
        if inside is None:
            return self.refusal
        session = mapping.sessions.get(far) if mapping is not None else None
        if session is None:
            if not self._welcome(far, outside, mapping):
                return self.refusal
            if (inside, far) in self._sessions:  # it talks with this host by another way already
                return Refusal.DROP
            if len(self._sessions) >= self.max_sessions:
                return Refusal.DROP
            session = self._open(inside, outside, far, now)
        session.answered = True
        session.expires_at = max(session.expires_at, now + self.syn_timeout_s)
        return session

    # Packets of a session

    def carry(self, session: Session, now: float) -> bool:
        """Let a packet of an open connection through, either way; False if the session is forgotten."""
        if now >= session.expires_at:
            self._forget(session)
        if not session.alive:
            return False
        session.answered = True
        session.expires_at = now + self.idle_timeout_s
        return True

    def reset(self, session: Session) -> None:
        """An RST came as the answer to a SYN; as the first answer it ends the session."""
        if not session.answered:
            self._forget(session)

    def close(self, session: Session, now: float) -> None:
        """The connection has ended, one way or the other."""
        session.expires_at = min(session.expires_at, now + self.closed_timeout_s)

    def reboot(self, public_ip: str | None = None) -> None:
        """Forget every session and every forward; take another public address if one is given."""
        for session in list(self._sessions.values()):
            self._forget(session)
        self._forwards.clear()
        if public_ip is not None:
            self.public_ip = Address(public_ip, 0).host

    # What it holds

    def sessions(self, now: float) -> tuple[Session, ...]:
        """The live sessions, oldest first."""
        self._expire(now)
        return tuple(self._sessions.values())

    def outside_of(self, inside: Address, now: float) -> Address | None:
        """Where others see `inside`, if they all see it alike and it is mapped now."""
        self._expire(now)
        return self._outside.get(inside)

    # Internals

    def _outside_for(self, inside: Address) -> Address | None:
        if not self.translates:
            return inside
        if self.kind == NatKind.SYMMETRIC:
            return self._free_port()
        outside = self._outside.get(inside)
        if outside is not None:
            return outside
        for forwarded, target in self._forwards.items():
            if target == inside:
                return forwarded
        preserved = Address(self.public_ip, inside.port)
        return preserved if self._is_free(preserved) else self._free_port()

    def _is_free(self, outside: Address) -> bool:
        return outside not in self._mappings and outside not in self._forwards

    def _free_port(self) -> Address | None:
        span = LAST_PORT - FIRST_PORT + 1
        start = self._rng.randrange(span)
        for step in range(span):
            outside = Address(self.public_ip, FIRST_PORT + (start + step) % span)
            if self._is_free(outside):
                return outside
        return None

    def _welcome(self, far: Address, outside: Address, mapping: _Mapping | None) -> bool:
        """Whether somebody who was not sent anything may come in."""
        if outside in self._forwards or self.kind == NatKind.FULL_CONE:
            return True
        if self.kind != NatKind.ADDRESS_RESTRICTED or mapping is None:
            return False
        return any(known.host == far.host for known in mapping.sessions)

    def _open(self, inside: Address, outside: Address, far: Address, now: float) -> Session:
        session = Session(inside, outside, far, now + self.syn_timeout_s)
        self._sessions[inside, far] = session
        self._mappings.setdefault(outside, _Mapping(inside)).sessions[far] = session
        if self.kind != NatKind.SYMMETRIC:
            self._outside.setdefault(inside, outside)
        return session

    def _forget(self, session: Session) -> None:
        if not session.alive:
            return
        session.alive = False
        del self._sessions[session.inside, session.far]
        mapping = self._mappings[session.outside]
        del mapping.sessions[session.far]
        if not mapping.sessions:
            del self._mappings[session.outside]
            if self._outside.get(session.inside) == session.outside:
                del self._outside[session.inside]

    def _expire(self, now: float) -> None:
        for session in [old for old in self._sessions.values() if old.expires_at <= now]:
            self._forget(session)
