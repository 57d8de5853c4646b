"""The relay's book: what it allows, what it books, and that no order of events breaks its limits."""

from collections import Counter

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from transport.errors import UsageError
from transport.identity import NodeId
from transport.limits import source_of
from transport.relay.budget import MAX_SOURCES, SMALL_BYTES, Budget
from transport.relay.ledger import Circuit, Ledger, Refusal, Reserved, Tab
from transport.relay.messages import CircuitEnd, Reason
from transport.relay.settings import CHUNK_BYTES, RelaySettings

MIB = 1 << 20


def who(number: int) -> NodeId:
    return NodeId(number.to_bytes(32, "big"))


def ledger(**settings: object) -> Ledger:
    return Ledger(RelaySettings(**settings), 0.0)  # type: ignore[arg-type]


def opened(
    book: Ledger, source: int, target: int, now: float = 0.0, host: str = "9.9.9.9"
) -> Circuit:
    circuit = book.open(who(source), host, who(target), now)
    assert isinstance(circuit, Circuit), circuit
    return circuit


def reason(answer: object) -> Reason:
    assert isinstance(answer, Refusal), answer
    return answer.reason


def test_a_reservation_lasts_its_time_and_is_renewed() -> None:
    book = ledger(reservation_s=100.0)
    given = book.reserve(who(1), "1.1.1.1", 0.0)
    assert isinstance(given, Reserved)
    assert given.reservation.expires_at == 100.0
    assert reason(book.open(who(2), "2.2.2.2", who(1), 100.0)) is Reason.NO_RESERVATION
    book.reserve(who(1), "1.1.1.1", 100.0)
    book.reserve(who(1), "1.1.1.1", 150.0)
    assert book.statistics(249.0).reservations == 1
    opened(book, 2, 1, 249.0)
    assert book.statistics(250.0).reservations == 0
    assert not book.release(who(1))


def test_a_source_has_its_share_and_renewing_is_free_of_it() -> None:
    book = ledger(reservations_per_source=2)
    for number in (1, 2):
        assert isinstance(book.reserve(who(number), "1.1.1.1", 0.0), Reserved)
    assert reason(book.reserve(who(3), "1.1.1.1", 0.0)) is Reason.SOURCE
    assert isinstance(book.reserve(who(1), "1.1.1.1", 0.0), Reserved)
    assert isinstance(book.reserve(who(3), "2.2.2.2", 0.0), Reserved)
    assert isinstance(book.reserve(who(4), "2001:db8:0:100::1", 0.0), Reserved)
    assert isinstance(book.reserve(who(5), "2001:db8:0:1ff::1", 0.0), Reserved)
    assert reason(book.reserve(who(6), "2001:db8:0:1aa::1", 0.0)) is Reason.SOURCE  # one /56
    assert book.release(who(1))
    # A node that moves takes its place with it.
    assert isinstance(book.reserve(who(3), "1.1.1.1", 0.0), Reserved)
    assert isinstance(book.reserve(who(7), "2.2.2.2", 0.0), Reserved)


def test_a_full_relay_makes_room_for_other_networks_only() -> None:
    book = ledger(reservations=4, reservations_per_source=4)
    for number in range(4):
        book.reserve(who(number), "6.6.6.6", float(number))
    assert reason(book.reserve(who(9), "6.6.6.6", 5.0)) is Reason.SOURCE
    opened(book, 50, 3, 5.0)
    given = book.reserve(who(10), "1.1.1.1", 5.0)
    assert isinstance(given, Reserved)
    assert given.evicted == who(2)  # the newest that nobody uses
    given = book.reserve(who(11), "2.2.2.2", 5.0)
    assert isinstance(given, Reserved)
    assert given.evicted == who(1)
    # Two for one network, one for each of two: taking another would only turn it round.
    assert reason(book.reserve(who(12), "1.1.1.1", 5.0)) is Reason.FULL
    assert set(book.reservations) == {who(0), who(3), who(10), who(11)}


def test_circuits_are_limited_in_every_way() -> None:
    book = ledger(circuits=5, circuits_per_peer=2, circuits_per_source=3)
    for number in range(1, 6):
        book.reserve(who(number), f"1.1.1.{number}", 0.0)
    book.close(book.open(who(1), "9.9.9.9", who(1), 0.0))  # to see whether it works
    first = opened(book, 11, 1)
    opened(book, 11, 2)
    assert reason(book.open(who(11), "9.9.9.9", who(3), 0.0)) is Reason.PEER_CIRCUITS
    assert reason(book.open(who(12), "9.9.9.9", who(1), 0.0)) is Reason.PEER_CIRCUITS
    opened(book, 12, 1, host="8.8.8.8")
    assert reason(book.open(who(13), "7.7.7.7", who(1), 0.0)) is Reason.PEER_CIRCUITS
    opened(book, 13, 3)
    assert reason(book.open(who(14), "9.9.9.9", who(4), 0.0)) is Reason.SOURCE_CIRCUITS
    opened(book, 14, 4, host="7.7.7.7")
    assert reason(book.open(who(15), "5.5.5.5", who(5), 0.0)) is Reason.CIRCUITS
    book.close(first)
    book.close(first)
    assert book.statistics(0.0).circuits == 4
    for _ in range(5):  # what is closed is given back, to every account
        book.close(opened(book, 15, 5))


def test_one_network_leaves_a_node_circuits_for_the_others() -> None:
    book = ledger()
    book.reserve(who(1), "1.1.1.1", 0.0)
    held: list[tuple[float, Circuit]] = []
    for second in range(
        60
    ):  # as many as it gets, each for the five seconds that a silent one lasts
        now = float(second)
        for ends_at, circuit in list(held):
            if ends_at <= now:
                book.close(circuit)
                held.remove((ends_at, circuit))
        for _ in range(3):
            answer = book.open(who(50), "6.6.6.6", who(1), now)
            if isinstance(answer, Circuit):
                held.append((now + 5.0, answer))
        book.close(opened(book, 7, 1, now))
    assert len(held) == 4
    # Not even by turning round: many of its nodes are one network, and every node has its own share.
    assert reason(book.open(who(51), "6.6.6.6", who(1), 59.0)) is Reason.PEER_CIRCUITS
    book.reserve(who(2), "1.1.1.1", 59.0)
    opened(book, 51, 2, 59.0, host="6.6.6.6")


def test_bytes_are_metered_and_share_the_rate() -> None:
    book = ledger(
        circuit_bytes_per_s=100_000.0,
        circuit_burst_bytes=100_000,
        bytes_per_s=150_000.0,
        burst_bytes=100_000,
    )
    for number in (1, 2):
        book.reserve(who(number), "1.1.1.1", 0.0)
    circuits = [opened(book, 11, 1), opened(book, 12, 2)]
    at = [0.0, 0.0]
    carried = [0, 0]
    while min(at) < 100.0:
        turn = at.index(min(at))
        wait_s = book.carry(circuits[turn], 10_000, at[turn])
        assert isinstance(wait_s, float)
        carried[turn] += 10_000
        at[turn] += wait_s
    assert sum(carried) == pytest.approx(150_000 * 100 + 100_000, rel=0.01)
    assert carried[0] == pytest.approx(carried[1], rel=0.02)
    alone = opened(book, 11, 1, 200.0)
    now = 200.0
    for _ in range(100):
        wait_s = book.carry(alone, 10_000, now)
        assert isinstance(wait_s, float)
        now += wait_s
    assert now - 200.0 == pytest.approx((100 * 10_000 - 100_000) / 100_000)


def test_a_circuit_ends_by_bytes_by_time_and_by_the_budget() -> None:
    book = ledger(circuit_bytes=40_000, circuit_s=50.0)
    book.reserve(who(1), "1.1.1.1", 0.0)
    circuit = opened(book, 2, 1)
    assert book.carry(circuit, 30_000, 0.0) == 0.0
    assert book.carry(circuit, 10_001, 0.0) is CircuitEnd.TOO_MUCH
    assert book.carry(circuit, 10_000, 0.0) == 0.0
    assert book.carry(opened(book, 2, 1), 1, 50.0) is CircuitEnd.TOO_LONG
    assert Ledger(book.settings, 0.0, spent_bytes=1 << 50).statistics(0.0).budget_left_bytes == 0


def spend(book: Ledger, circuit: Circuit, now: float = 0.0, *, back: bool = False) -> int:
    """Carry until the budget ends it; return the bytes."""
    before = circuit.carried
    while (answer := book.carry(circuit, CHUNK_BYTES, now, back=back)) is not CircuitEnd.BUDGET:
        assert isinstance(answer, float)
    return circuit.carried - before


def test_one_network_sends_a_quarter_of_the_budget() -> None:
    book = ledger(budget_bytes=64 * MIB, budget_s=6400.0)
    for number in (1, 2):
        book.reserve(who(number), "6.6.6.6", 0.0)
    circuits = [opened(book, 10 + number, 1 + number % 2, host="6.6.6.6") for number in range(8)]
    assert sum(spend(book, circuit) for circuit in circuits) == 16 * MIB
    assert spend(book, circuits[0], back=True) == 0  # its other end pays from the same account
    refused = book.open(who(30), "6.6.6.6", who(1), 0.0)
    assert isinstance(refused, Refusal)
    assert refused.reason is Reason.BUDGET
    assert refused.retry_s == pytest.approx(6400.0 / (16 * MIB) * SMALL_BYTES, rel=0.01)
    # Others are not affected; and whoever is sent to does not pay.
    assert isinstance(book.reserve(who(3), "3.3.3.3", 0.0), Reserved)
    circuit = opened(book, 4, 3, host="4.4.4.4")
    assert spend(book, circuit) == 16 * MIB
    assert spend(book, circuit, back=True) == 16 * MIB
    assert isinstance(book.carry(circuits[0], 1024, 1.0), float)  # it comes back with time


def test_the_last_tenth_is_for_meeting() -> None:
    book = ledger(budget_bytes=100 * MIB, budget_s=1e6)
    for number in range(1, 5):
        book.reserve(who(number), f"1.1.1.{number}", 0.0)
        spend(book, opened(book, 10 + number, number, host=f"9.9.9.{number}"))
    left = book.statistics(0.0).budget_left_bytes
    assert 10 * MIB - CHUNK_BYTES <= left <= 10 * MIB
    # Who has sent much is refused, who has not gets small circuits, and a quarter of the reserve.
    assert reason(book.open(who(20), "9.9.9.1", who(2), 0.0)) is Reason.BUDGET
    assert isinstance(book.reserve(who(5), "1.1.1.5", 0.0), Reserved)
    sizes = []
    while isinstance(circuit := book.open(who(21), "7.7.7.7", who(5), 0.0), Circuit):
        sizes.append(spend(book, circuit))
        book.close(circuit)
    assert circuit.reason is Reason.BUDGET
    assert set(sizes) == {SMALL_BYTES}
    assert sum(sizes) == 2.5 * MIB
    opened(book, 22, 5, host="8.8.8.8")
    for number in range(30, 40):  # it can be used up all the same, and then nothing is given
        while isinstance(circuit := book.open(who(22), f"8.8.8.{number}", who(5), 0.0), Circuit):
            spend(book, circuit)
            book.close(circuit)
    assert reason(book.reserve(who(1), "1.1.1.1", 0.0)) is Reason.BUDGET
    assert book.statistics(0.0).carried_bytes <= 100 * MIB


def test_accounts_are_bounded() -> None:
    budget = Budget(RelaySettings(), 0.0)
    for number in range(MAX_SOURCES + 10):
        assert budget.take(f"network {number}", 1, 0, 0.0)
    assert budget.known_networks == MAX_SOURCES


def test_requests_are_limited_per_source_and_sources_are_forgotten() -> None:
    book = ledger(requests_per_source_burst=3, requests_per_source_per_s=1.0)
    for _ in range(3):
        assert reason(book.open(who(1), "6.6.6.6", who(2), 0.0)) is Reason.NO_RESERVATION
    refused = book.open(who(1), "6.6.6.6", who(2), 0.0)
    assert isinstance(refused, Refusal)
    assert refused.reason is Reason.RATE
    assert refused.retry_s == pytest.approx(1.0)
    assert reason(book.reserve(who(1), "6.6.6.6", 0.5)) is Reason.RATE
    assert isinstance(book.reserve(who(1), "6.6.6.6", 1.0), Reserved)
    for number in range(MAX_SOURCES + 100):
        book.open(who(1), f"7.{number >> 16}.{number >> 8 & 255}.{number & 255}", who(3), 2.0)
    assert book.known_sources == MAX_SOURCES


def test_misuse_is_told() -> None:
    book = ledger()
    book.reserve(who(1), "1.1.1.1", 0.0)
    circuit = opened(book, 2, 1)
    for count in (0, CHUNK_BYTES + 1):
        with pytest.raises(UsageError):
            book.carry(circuit, count, 0.0)
    book.close(circuit)
    with pytest.raises(UsageError):
        book.carry(circuit, 1, 0.0)


def test_a_clock_that_goes_back_pays_nothing() -> None:
    tab = Tab(10.0, 100.0, 50.0)
    assert tab.book(100, 50.0) == 0.0
    assert tab.book(10, 0.0) == pytest.approx(1.0)
    assert tab.book(0, 50.0) == pytest.approx(1.0)
    assert tab.book(0, 51.0) == 0.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"circuits": 0},
        {"circuit_s": -1.0},
        {"bytes_per_s": float("inf")},
        {"wanted": 5},
        {"idle_s": 1.0},
        {"circuit_bytes_per_s": 1000.0},
        {"budget_bytes": 1000},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="relay"):
        RelaySettings(**wrong)  # type: ignore[arg-type]


def test_no_relay_may_be_wanted() -> None:
    assert RelaySettings(wanted=0).wanted == 0
    assert RelaySettings().serve == "auto"


NODES = st.integers(1, 12).map(who)
HOSTS = st.sampled_from(["1.1.1.1", "2.2.2.2", "3.3.3.3", "2001:db8::1", "2001:db8:0:1::1"])


class LedgerLaws(RuleBasedStateMachine):
    """Any order of requests, bytes, ends and pauses keeps every limit; a plain model agrees on who has what."""

    circuits = Bundle("circuits")

    @initialize(
        reservations=st.integers(1, 5),
        per_source=st.integers(1, 3),
        circuits=st.integers(1, 6),
        per_peer=st.integers(1, 9),
        from_source=st.integers(1, 4),
    )
    def start(
        self, reservations: int, per_source: int, circuits: int, per_peer: int, from_source: int
    ) -> None:
        self.settings = RelaySettings(
            reservations=reservations,
            reservations_per_source=per_source,
            reservation_s=100.0,
            circuits=circuits,
            circuits_per_peer=per_peer,
            circuits_per_source=from_source,
            circuit_bytes=3_000_000,
            circuit_s=500.0,
            circuit_bytes_per_s=65536.0,
            circuit_burst_bytes=100_000,
            bytes_per_s=100_000.0,
            burst_bytes=150_000,
            budget_bytes=2_000_000,
            budget_s=2000.0,
            requests_per_source_burst=20,
            requests_per_source_per_s=1.0,
        )
        self.now = 1000.0
        self.ledger = Ledger(self.settings, self.now)
        self.reserved: dict[NodeId, tuple[str, float]] = {}
        self.open: dict[int, tuple[Circuit, str]] = {}
        self.paid: Counter[str] = Counter()
        self.sent: list[tuple[float, float, int]] = []  # (booked at, may leave at, bytes)

    def expire(self) -> None:
        self.reserved = {n: r for n, r in self.reserved.items() if r[1] > self.now}

    @rule(node=NODES, host=HOSTS)
    def reserve(self, node: NodeId, host: str) -> None:
        self.expire()
        answer = self.ledger.reserve(node, host, self.now)
        if isinstance(answer, Reserved):
            if answer.evicted is not None:
                assert node not in self.reserved
                assert len(self.reserved) == self.settings.reservations
                source, _ = self.reserved.pop(answer.evicted)
                assert source != source_of(host)
                assert not any(
                    answer.evicted in (c.source, c.target) for c, _ in self.open.values()
                )
            self.reserved[node] = (source_of(host), self.now + 100.0)
            assert answer.reservation.expires_at == self.now + 100.0
        elif answer.reason is Reason.SOURCE:
            others = [s for n, (s, _) in self.reserved.items() if n != node]
            assert others.count(source_of(host)) == self.settings.reservations_per_source
        elif answer.reason is Reason.FULL:
            assert node not in self.reserved
            assert len(self.reserved) == self.settings.reservations
        else:
            assert answer.reason in (Reason.RATE, Reason.BUDGET)
            assert answer.retry_s > 0

    @rule(node=NODES)
    def release(self, node: NodeId) -> None:
        self.expire()
        had = self.ledger.release(node)
        assert had or node not in self.reserved
        self.reserved.pop(node, None)

    @rule(target=circuits, source=NODES, host=HOSTS, to=NODES)
    def connect(self, source: NodeId, host: str, to: NodeId) -> object:
        self.expire()
        answer = self.ledger.open(source, host, to, self.now)
        if isinstance(answer, Circuit):
            assert to in self.reserved
            self.open[answer.number] = (answer, source_of(host))
            return answer
        settings, circuits = self.settings, [circuit for circuit, _ in self.open.values()]
        ends = [node for circuit in circuits for node in (circuit.source, circuit.target)]
        asked = [network for _, network in self.open.values()]
        match answer.reason:  # no refusal without its cause
            case Reason.NO_RESERVATION:
                assert to not in self.reserved
            case Reason.CIRCUITS:
                assert len(circuits) == settings.circuits
            case Reason.PEER_CIRCUITS:
                between = [
                    c
                    for c, network in self.open.values()
                    if (network, c.target) == (source_of(host), to)
                ]
                more = 2 if source == to else 1  # a circuit to oneself has two ends there
                full = max(ends.count(source), ends.count(to)) + more > settings.circuits_per_peer
                assert full or len(between) == max(1, settings.circuits_per_peer // 4)
            case Reason.SOURCE_CIRCUITS:
                assert asked.count(source_of(host)) == settings.circuits_per_source
            case _:
                assert answer.reason in (Reason.RATE, Reason.BUDGET)
                assert answer.retry_s > 0
        return multiple()

    @rule(
        circuit=circuits,
        count=st.integers(1, CHUNK_BYTES),
        times=st.integers(1, 30),
        back=st.booleans(),
    )
    def carry(self, circuit: Circuit, count: int, times: int, back: bool) -> None:
        if circuit.number not in self.open:
            with pytest.raises(UsageError):
                self.ledger.carry(circuit, count, self.now)
            return
        for _ in range(times):
            before = circuit.carried
            wait_s = self.ledger.carry(circuit, count, self.now, back=back)
            if isinstance(wait_s, CircuitEnd):
                assert circuit.carried == before
                break
            self.sent.append((self.now, self.now + wait_s, count))
            self.paid[circuit.target_network if back else circuit.network] += count

    @rule(circuit=consumes(circuits))
    def close(self, circuit: Circuit) -> None:
        self.ledger.close(circuit)
        self.open.pop(circuit.number, None)

    @rule(seconds=st.sampled_from([0.0, 0.1, 1.0, 30.0, 101.0, -5.0]))
    def wait(self, seconds: float) -> None:
        self.now = max(1000.0, self.now + seconds)
        if seconds < 0:  # what a clock that went back makes of expiry is nobody's promise
            self.now -= seconds

    @invariant()
    def keeps_its_limits(self) -> None:
        if not hasattr(self, "ledger"):
            return
        self.expire()
        settings = self.settings
        now = self.ledger.statistics(self.now)
        assert set(self.ledger.reservations) == set(self.reserved)
        assert now.reservations == len(self.reserved) <= settings.reservations
        assert now.circuits == len(self.open) <= settings.circuits
        sources = [source for source, _ in self.reserved.values()]
        assert all(sources.count(s) <= settings.reservations_per_source for s in sources)
        ends = [n for c, _ in self.open.values() for n in (c.source, c.target)]
        assert all(ends.count(n) <= settings.circuits_per_peer for n in ends)
        asked = [source for _, source in self.open.values()]
        assert all(asked.count(s) <= settings.circuits_per_source for s in asked)
        pairs = [(source, c.target) for c, source in self.open.values()]
        assert all(pairs.count(p) <= max(1, settings.circuits_per_peer // 4) for p in pairs)

    @invariant()
    def keeps_its_rates(self) -> None:
        if not hasattr(self, "ledger") or not self.sent:
            return
        settings = self.settings
        leaving = sorted((leave, count) for _, leave, count in self.sent)
        total = 0
        for leave, count in leaving:  # what has left by any moment since the start
            total += count
            bound = settings.burst_bytes + settings.bytes_per_s * (leave - 1000.0)
            assert total <= bound + 1.0
        booked = sum(count for _, _, count in self.sent)
        elapsed = self.now - 1000.0
        budget = settings.budget_bytes * (1 + elapsed / settings.budget_s)
        assert booked <= budget + 1.0
        assert max(self.paid.values()) <= 0.25 * budget + 1.0
        assert self.ledger.statistics(self.now).carried_bytes == booked


TestLedgerLaws = LedgerLaws.TestCase
