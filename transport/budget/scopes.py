"""What is held for whom: nested budgets of memory, streams, connections and descriptors; sans-IO.

Problem: a limit that is checked after the buffer was made is no limit, and a limit of the whole node alone lets one peer take all of
it. Idea (go-libp2p's resource manager, package rcmgr): scopes in a tree, each with its own limits. Reserving in a scope reserves in all
scopes above it or in none, before anything is allocated; a reservation is given back once, and a scope that closes gives back
whatever is left in it.

    system                      everything held for remote parties
      unauthenticated           of that: handshakes that others begin, and our dials
      peer 3f9a...              of that: one peer

    with scopes.unauthenticated.reserve(bytes=HANDSHAKE_BYTES, connections=1, descriptors=1):
        ...                                  ScopeExceeded says which scope and which limit
        peer_scope.reserve(...)              the handshake was theirs: the peer holds the connection

A connection reserves the windows of all its streams at once when it begins (`Limits.connection_bytes`), and the multiplexer shares them out and bounds their
number; so a stream costs nothing here.

Punches, dial-back tests and probes are few at a time by rules of their own and are not counted here.

Invariants: in no scope any amount is negative or above its limit; a scope's amount is the sum over its own reservations and its
children; a refused call has changed nothing; when everything is released or closed, every amount is 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from typing import TYPE_CHECKING, Final, Self

import attrs

from transport.errors import TransportError, UsageError

if TYPE_CHECKING:
    from types import TracebackType

    from transport.limits import Limits


class Resource(IntEnum):
    """What is counted; the numbers are places in an amount."""

    BYTES = 0
    """Memory that a remote party can make us hold."""
    STREAMS = 1
    """Streams of multiplexed connections."""
    CONNECTIONS = 2
    """Connections and handshakes, in both directions."""
    DESCRIPTORS = 3
    """Files and sockets of this process; a relayed connection has none."""


UNLIMITED: Final = 1 << 62
Amount = tuple[int, int, int, int]


class ScopeExceeded(TransportError):
    """A reservation would exceed the limit of a scope.

    Attributes:
        scope: whose limit, for example "peer 3f9a2c".
        resource: of what.
        limit: the most that may be held.
        used: what was held when it was refused.
        asked: what was asked for.
    """

    def __init__(
        self, scope: str, resource: Resource, *, limit: int, used: int, asked: int
    ) -> None:
        name = resource.name.lower()
        super().__init__(
            f"{asked} {name} more than {used} would exceed the limit of {limit} for {scope}",
            hint=_HINTS.get(scope.partition(" ")[0], {}).get(resource),
        )
        self.scope = scope
        self.resource = resource
        self.limit = limit
        self.used = used
        self.asked = asked


_HINTS: Final = {
    "system": {
        Resource.BYTES: "raise limits.memory_bytes, or lower limits.max_peers",
        Resource.DESCRIPTORS: "raise limits.descriptors and the limit of open files (ulimit -n)",
    },
    "unauthenticated": {
        Resource.BYTES: "raise limits.unauthenticated_memory_bytes",
        Resource.CONNECTIONS: "raise limits.pending_handshakes",
    },
    "peer": {
        Resource.BYTES: "raise limits.peer_memory_bytes",
        Resource.STREAMS: "close streams that are done, or raise limits.streams_per_peer",
        Resource.CONNECTIONS: "raise limits.bulk_links_per_peer",
    },
}


@attrs.frozen
class ScopeLimits:
    """The most that one scope may hold at once."""

    bytes: int = UNLIMITED
    streams: int = UNLIMITED
    connections: int = UNLIMITED
    descriptors: int = UNLIMITED

    @property
    def amount(self) -> Amount:
        """In the order of `Resource`."""
        return (self.bytes, self.streams, self.connections, self.descriptors)


class Reservation:
    """What somebody holds in a scope; give it back with `release`, or use it as a context manager."""

    __slots__ = ("_amount", "_scope")

    def __init__(self, scope: Scope, amount: Amount) -> None:
        self._scope: Scope | None = scope
        self._amount = amount

    @property
    def held(self) -> Amount:
        """What is held, in the order of `Resource`; zeros once it was released."""
        return (0, 0, 0, 0) if self._scope is None else self._amount

    def grow(self, *, bytes: int = 0, streams: int = 0) -> None:  # noqa: A002  (the unit is the name)
        """Hold more.

        Raises:
            ScopeExceeded: some limit forbids it; what was held is still held.
            UsageError: it was released, or its scope is closed.
        """
        scope = self._owner()
        more = (bytes, streams, 0, 0)
        scope._take(more)  # noqa: SLF001  (the two classes are one machine)
        self._amount = _sum(self._amount, more)

    def shrink(self, *, bytes: int = 0, streams: int = 0) -> None:  # noqa: A002
        """Hold less.

        Raises:
            UsageError: that much is not held.
        """
        scope = self._owner()
        less = (bytes, streams, 0, 0)
        if any(part < 0 or part > held for part, held in zip(less, self._amount, strict=True)):
            raise UsageError("gave back more than was reserved")
        scope._give(less)  # noqa: SLF001
        self._amount = _difference(self._amount, less)

    def move(self, scope: Scope) -> None:
        """Hold the same in another scope of the same tree, with no moment between.

        Raises:
            ScopeExceeded: the other scope has no room; nothing has changed.
            UsageError: it was released, or one of the scopes is closed.
        """
        old = self._owner()
        if scope.root is not old.root:
            raise UsageError("the scopes belong to different trees")
        # What both share is not taken twice: a full system must not keep a handshake from becoming a peer.
        shared = set(old.lineage())
        scope._take(self._amount, skip=shared)  # noqa: SLF001
        old._give(self._amount, skip=shared.intersection(scope.lineage()))  # noqa: SLF001
        del old._held[self]  # noqa: SLF001
        scope._held[self] = None  # noqa: SLF001
        self._scope = scope

    def release(self) -> None:
        """Give everything back; doing it again does nothing."""
        scope, self._scope = self._scope, None
        if scope is not None:
            del scope._held[self]  # noqa: SLF001
            scope._give(self._amount)  # noqa: SLF001

    def lose(self) -> None:
        """Its scope was closed, which gave everything back (called by the scope)."""
        self._scope = None

    def _owner(self) -> Scope:
        if self._scope is None:
            raise UsageError("the reservation was released")
        return self._scope

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


class Scope:
    """A budget, inside the budget of its parent.

    Args:
        name: for errors; its first word says of which kind it is.
        limits: the most it may hold.
        parent: in whose budget it lies; None for the root.
    """

    __slots__ = ("_children", "_closed", "_held", "_limits", "_used", "name", "parent", "root")

    def __init__(self, name: str, limits: ScopeLimits, parent: Scope | None = None) -> None:
        self.name = name
        self.parent = parent
        self.root: Scope = self if parent is None else parent.root
        self._limits = limits.amount
        self._used: Amount = (0, 0, 0, 0)
        self._held: dict[Reservation, None] = {}  # bounded by the limits
        self._children: dict[Scope, None] = {}
        self._closed = False

    def __repr__(self) -> str:
        return f"<Scope {self.name} {self._used} of {self._limits}>"

    @property
    def used(self) -> Amount:
        """What is held in it and below it, in the order of `Resource`."""
        return self._used

    @property
    def limits(self) -> Amount:
        """The most it may hold, in the order of `Resource`."""
        return self._limits

    @property
    def closed(self) -> bool:
        """Whether it was closed; a closed scope holds nothing."""
        return self._closed

    def lineage(self) -> Iterator[Scope]:
        """The scope itself and those around it, the root last."""
        scope: Scope | None = self
        while scope is not None:
            yield scope
            scope = scope.parent

    def child(self, name: str, limits: ScopeLimits) -> Scope:
        """A scope inside this one; `close` it when its owner is gone.

        Raises:
            UsageError: this one is closed.
        """
        if self._closed:
            raise UsageError(f"scope {self.name} is closed")
        scope = Scope(name, limits, self)
        self._children[scope] = None
        return scope

    def reserve(
        self,
        *,
        bytes: int = 0,  # noqa: A002  (the unit is the name)
        streams: int = 0,
        connections: int = 0,
        descriptors: int = 0,
    ) -> Reservation:
        """Hold the given amounts, here and in every scope around; call it before allocating anything.

        Raises:
            ScopeExceeded: some limit forbids it; nothing was reserved.
            UsageError: a negative amount, or the scope is closed.
        """
        amount = (bytes, streams, connections, descriptors)
        self._take(amount)
        reservation = Reservation(self, amount)
        self._held[reservation] = None
        return reservation

    def close(self) -> None:
        """Give back whatever is held in it and below it; nothing can be reserved in it any more."""
        if self._closed:
            return
        for child in list(self._children):
            child.close()
        self._closed = True
        for reservation in self._held:
            reservation.lose()
        self._held.clear()
        left = self._used
        for scope in self.lineage():
            scope._used = _difference(scope._used, left)  # noqa: SLF001
        if self.parent is not None:
            del self.parent._children[self]  # noqa: SLF001

    def _take(self, amount: Amount, skip: set[Scope] | frozenset[Scope] = frozenset()) -> None:
        if min(amount) < 0:
            raise UsageError("a negative amount cannot be reserved")
        if self._closed:
            raise UsageError(f"scope {self.name} is closed")
        touched = [scope for scope in self.lineage() if scope not in skip]
        for scope in touched:
            for resource in Resource:
                used, limit = scope._used[resource], scope._limits[resource]  # noqa: SLF001
                if amount[resource] > limit - used:
                    raise ScopeExceeded(
                        scope.name, resource, limit=limit, used=used, asked=amount[resource]
                    )
        for scope in touched:
            scope._used = _sum(scope._used, amount)  # noqa: SLF001

    def _give(self, amount: Amount, skip: set[Scope] | frozenset[Scope] = frozenset()) -> None:
        for scope in self.lineage():
            if scope not in skip:
                scope._used = _difference(scope._used, amount)  # noqa: SLF001


def _sum(a: Amount, b: Amount) -> Amount:
    return (a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3])


def _difference(a: Amount, b: Amount) -> Amount:
    return (a[0] - b[0], a[1] - b[1], a[2] - b[2], a[3] - b[3])


class ResourceScopes:
    """The tree of one node.

    Args:
        limits: the figures.
        descriptors: the most this process may really have open for connections, if that is less than `limits.descriptors`.

    Attributes:
        system: the root.
        unauthenticated: for handshakes that others begin, and for our dials.
        strangers: for peers that nobody answers for, in an open swarm; a quarter of everything.
    """

    def __init__(self, limits: Limits, *, descriptors: int | None = None) -> None:
        self._limits = limits
        most = limits.descriptors if descriptors is None else min(descriptors, limits.descriptors)
        self.system = Scope("system", ScopeLimits(bytes=limits.memory_bytes, descriptors=most))
        # A flood may not take the descriptors that members' connections need: half, at most.
        self.unauthenticated = self.system.child(
            "unauthenticated",
            ScopeLimits(
                bytes=limits.unauthenticated_memory_bytes, descriptors=max(1, most // 2), streams=0
            ),
        )

        self.strangers = self.system.child(
            "strangers",
            ScopeLimits(bytes=limits.memory_bytes // 4, descriptors=max(1, most // 4)),
        )

    def peer(self, name: str, *, stranger: bool = False) -> Scope:
        """The scope of one peer; `close` it when the peer is lost.

        Args:
            name: the short form of its node id, for errors.
            stranger: nobody answers for it.
        """
        limits = self._limits
        return (self.strangers if stranger else self.system).child(
            f"peer {name}",
            ScopeLimits(
                bytes=limits.peer_memory_bytes,
                streams=2 * 2 * limits.streams_per_peer,  # both directions; a duplicate connection
                connections=limits.connections_per_peer,
            ),
        )
