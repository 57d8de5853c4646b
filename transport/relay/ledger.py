"""Who may be reached through this relay, who has a circuit, and what it has carried.

Problem: reservations, circuits and bytes are taken by others, some of them hostile, and every one of them must have been allowed
before a byte of memory or of traffic goes to it. Idea: one book, without clock or network. The service asks it first and tells it
when something has ended; time is an argument, and whatever has expired is gone by the next question.

Rates are *tabs*: token buckets that may be overdrawn. A chunk that was read is booked at once and the answer says how long its
sender must wait. Bookings are in order, so circuits that share a tab get fair turns, and none can starve.

A node has few circuits, and one network a quarter of them at most: a member that keeps circuits open to a node, for nothing but to
keep others out, leaves three quarters to them. What may be carried in a month is in `transport.relay.budget`.

When the reservations are full, a newcomer's network may take one from the network that holds the most, if that has at least two
more than the newcomer's would have: a flood from one place cannot keep another place out.

Invariants (laws of the tests): never more reservations, circuits, or either per peer, per source and from one source to one peer, than the settings say; the
bytes carried in any span of t seconds are at most burst + rate * t + one chunk per direction and circuit; nothing is held for a
node that is gone; sources remembered for their request rate are at most MAX_SOURCES.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import attrs

from transport.budget.accounts import Accounts
from transport.errors import UsageError
from transport.identity import NodeId
from transport.limits import source_of
from transport.relay.budget import MAX_SOURCES, Budget
from transport.relay.messages import CircuitEnd, Reason
from transport.relay.settings import CHUNK_BYTES, RelaySettings

FULL_RETRY_S = 300.0
"""When to ask a full relay again: reservations end and nodes leave, within minutes rather than seconds."""


class Tab:
    """What may be carried at a rate, booked when it has been read already; never refuses, only delays.

    Args:
        rate: bytes per second.
        burst: bytes at rest, and at the start.
        now: monotonic seconds.
    """

    __slots__ = ("_burst", "_level", "_rate", "_updated")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._level = burst
        self._updated = now

    def book(self, count: float, now: float) -> float:
        """Take `count` bytes, there or not; return the seconds until they are paid for.

        A clock that went back pays nothing.
        """
        if now > self._updated:
            self._level = min(self._burst, self._level + (now - self._updated) * self._rate)
            self._updated = now
        self._level -= count
        return max(0.0, -self._level / self._rate)


@attrs.frozen
class Refusal:
    """No, why, and when it is worth asking again."""

    reason: Reason
    retry_s: float = 0.0


@attrs.frozen
class Reservation:
    """A node that may be reached through us."""

    node_id: NodeId
    source: str
    """Its network, as `source_of` names it."""
    expires_at: float


@attrs.frozen
class Reserved:
    """Yes."""

    reservation: Reservation
    evicted: NodeId | None
    """Whose reservation ended to make room."""


class Circuit:
    """One circuit in the book; made by `Ledger.open`.

    Attributes:
        number: unlike that of any other circuit of this ledger.
        source: who asked for it.
        target: to whom it leads.
        network: of the source, as `source_of` names it.
        target_network: of the target, likewise.
        opened_at: seconds, of the ledger's clock.
        carried: bytes so far, both directions.
    """

    __slots__ = (
        "carried",
        "network",
        "number",
        "opened_at",
        "source",
        "tab",
        "target",
        "target_network",
    )

    def __init__(
        self,
        number: int,
        source: NodeId,
        target: NodeId,
        *,
        network: str,
        target_network: str,
        tab: Tab,
        now: float,
    ) -> None:
        self.number = number
        self.source = source
        self.target = target
        self.network = network
        self.target_network = target_network
        self.tab = tab
        self.opened_at = now
        self.carried = 0

    def __repr__(self) -> str:
        return f"<Circuit {self.number} {self.source.short} -> {self.target.short}, {self.carried} bytes>"


@attrs.frozen
class LedgerStatistics:
    """What a relay gives away now, and has given."""

    reservations: int
    circuits: int
    carried_bytes: int
    """Since the start, both directions."""
    budget_left_bytes: int


class Ledger:
    """The relay's book.

    Args:
        settings: the limits.
        now: monotonic seconds.
        spent_bytes: of the budget, before this start.
    """

    def __init__(self, settings: RelaySettings, now: float, *, spent_bytes: int = 0) -> None:
        self.settings = settings
        self._reservations: dict[NodeId, Reservation] = {}  # bounded by settings.reservations
        self._held: Counter[str] = Counter()  # source -> reservations
        self._circuits: dict[int, Circuit] = {}  # bounded by settings.circuits
        self._circuits_of: Counter[NodeId] = Counter()  # ends at a node
        self._circuits_from: Counter[str] = Counter()  # source -> circuits asked for
        self._circuits_between: Counter[tuple[str, NodeId]] = Counter()  # from a source to a node
        self._requests: Accounts[str] = Accounts(
            settings.requests_per_source_per_s,
            settings.requests_per_source_burst,
            most=MAX_SOURCES,
        )
        self._all = Tab(settings.bytes_per_s, settings.burst_bytes, now)
        self._budget = Budget(settings, now, spent_bytes=spent_bytes)
        self._carried = 0
        self._opened = 0

    @property
    def reservations(self) -> dict[NodeId, Reservation]:
        """A copy: who has one, also those that have expired and were not asked for since."""
        return dict(self._reservations)

    @property
    def known_sources(self) -> int:
        """Sources whose request rate is remembered."""
        return len(self._requests)

    def statistics(self, now: float) -> LedgerStatistics:
        """Counts at `now`."""
        self._expire(now)
        return LedgerStatistics(
            reservations=len(self._reservations),
            circuits=len(self._circuits),
            carried_bytes=self._carried,
            budget_left_bytes=int(self._budget.left(now)),
        )

    # Reservations

    def reserve(self, node_id: NodeId, host: str, now: float) -> Reserved | Refusal:
        """Give or renew a reservation.

        Args:
            node_id: who asks, authenticated.
            host: where its connection comes from.
            now: monotonic seconds.
        """
        source = source_of(host)
        if (refusal := self._ask(source, now)) is not None:
            return refusal
        if (refusal := self._check_budget((), now)) is not None:
            return refusal
        self._expire(now)
        settings = self.settings
        old = self._reservations.get(node_id)
        others = self._held[source] - (1 if old is not None and old.source == source else 0)
        if others >= settings.reservations_per_source:
            return Refusal(Reason.SOURCE, FULL_RETRY_S)
        evicted: NodeId | None = None
        if old is None and len(self._reservations) >= settings.reservations:
            evicted = self._to_evict(source)
            if evicted is None:
                return Refusal(Reason.FULL, FULL_RETRY_S)
            self.release(evicted)
        self.release(node_id)
        reservation = Reservation(node_id, source, now + settings.reservation_s)
        self._reservations[node_id] = reservation
        self._held[source] += 1
        return Reserved(reservation, evicted)

    def release(self, node_id: NodeId) -> bool:
        """Forget the reservation of a node that gave it up or is gone; return whether it had one.

        Its circuits go on until `close`.
        """
        reservation = self._reservations.pop(node_id, None)
        if reservation is None:
            return False
        _less(self._held, reservation.source)
        return True

    def _to_evict(self, source: str) -> NodeId | None:
        """The reservation that a newcomer from `source` may take: the newest without a circuit of the greediest network."""
        greediest = max(self._held.values(), default=0)
        if greediest < self._held[source] + 2:
            return None
        for reservation in reversed(self._reservations.values()):  # renewed last, first
            if (
                self._held[reservation.source] == greediest
                and not self._circuits_of[reservation.node_id]
            ):
                return reservation.node_id
        return None

    def _expire(self, now: float) -> None:
        # Renewing moves an entry to the end, so the first to expire are at the front.
        while self._reservations:
            first = next(iter(self._reservations.values()))
            if first.expires_at > now:
                return
            self.release(first.node_id)

    # Circuits

    def open(self, source: NodeId, host: str, target: NodeId, now: float) -> Circuit | Refusal:
        """Allow a circuit and book its memory; `close` is owed for it.

        A node may have one to itself: so it sees whether its reservation is worth anything.

        Args:
            source: who asks, authenticated.
            host: where its connection comes from.
            target: whom it wants.
            now: monotonic seconds.
        """
        settings, network = self.settings, source_of(host)
        if (refusal := self._ask(network, now)) is not None:
            return refusal
        self._expire(now)
        reservation = self._reservations.get(target)
        if reservation is None:
            return Refusal(Reason.NO_RESERVATION)
        if (refusal := self._check_budget((network, reservation.source), now)) is not None:
            return refusal
        if len(self._circuits) >= settings.circuits:
            return Refusal(Reason.CIRCUITS, settings.idle_s)
        most = settings.circuits_per_peer
        ends = 2 if source == target else 1  # of this circuit, at one node
        if max(self._circuits_of[source], self._circuits_of[target]) + ends > most:
            return Refusal(Reason.PEER_CIRCUITS, settings.idle_s)
        if self._circuits_between[network, target] >= max(1, most // 4):
            return Refusal(Reason.PEER_CIRCUITS, settings.idle_s)
        if self._circuits_from[network] >= settings.circuits_per_source:
            return Refusal(Reason.SOURCE_CIRCUITS, settings.idle_s)
        self._opened += 1
        tab = Tab(settings.circuit_bytes_per_s, settings.circuit_burst_bytes, now)
        circuit = Circuit(
            self._opened,
            source,
            target,
            network=network,
            target_network=reservation.source,
            tab=tab,
            now=now,
        )
        self._circuits[circuit.number] = circuit
        self._circuits_of[source] += 1
        self._circuits_of[target] += 1
        self._circuits_from[network] += 1
        self._circuits_between[network, target] += 1
        return circuit

    def carry(
        self, circuit: Circuit, count: int, now: float, *, back: bool = False
    ) -> float | CircuitEnd:
        """Book bytes that a circuit is about to pass on.

        Args:
            circuit: open.
            count: bytes.
            now: monotonic seconds.
            back: whether the target sent them; the source by default.

        Returns:
            Seconds to wait before passing them on, or why the circuit must end instead (nothing was booked then).

        Raises:
            UsageError: a closed circuit, or a chunk over CHUNK_BYTES.
        """
        if circuit.number not in self._circuits:
            raise UsageError("a closed circuit carries nothing")
        if not 0 < count <= CHUNK_BYTES:
            raise UsageError(f"a chunk of {count} bytes")
        if now - circuit.opened_at >= self.settings.circuit_s:
            return CircuitEnd.TOO_LONG
        if circuit.carried + count > self.settings.circuit_bytes:
            return CircuitEnd.TOO_MUCH
        network = circuit.target_network if back else circuit.network
        if not self._budget.take(network, count, circuit.carried, now):
            return CircuitEnd.BUDGET
        self._carried += count
        circuit.carried += count
        return max(circuit.tab.book(count, now), self._all.book(count, now))

    def close(self, circuit: Circuit) -> None:
        """Give back what a circuit held. Closing it again does nothing."""
        if self._circuits.pop(circuit.number, None) is not None:
            _less(self._circuits_of, circuit.source)
            _less(self._circuits_of, circuit.target)
            _less(self._circuits_from, circuit.network)
            _less(self._circuits_between, (circuit.network, circuit.target))

    # Requests and budget

    def _ask(self, source: str, now: float) -> Refusal | None:
        bucket = self._requests.of(source, now)
        if not bucket.take(1.0, now):
            return Refusal(Reason.RATE, bucket.ready_at(1.0, now) - now)
        return None

    def _check_budget(self, networks: tuple[str, ...], now: float) -> Refusal | None:
        wait_s = self._budget.wait_s(networks, now)
        return Refusal(Reason.BUDGET, wait_s) if wait_s > 0 else None


def _less(counter: Counter[Any], key: object) -> None:
    """Count one less, and forget the key at zero: the counters must not grow with strangers seen."""
    counter[key] -= 1
    if counter[key] <= 0:
        del counter[key]
