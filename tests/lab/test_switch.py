"""The segment as a core: what becomes of frames, without a kernel."""

import pytest

from tests.lab.switch import MAX_FLYING, LinkProfile, Switch

A, B, C = (bytes([2, 0, 0, 0, 0, number]) for number in (1, 2, 3))
ALL = b"\xff" * 6


def frame(source: bytes, destination: bytes, body: bytes = b"") -> bytes:
    return destination + source + b"\x08\x00" + body


def switch(seed: int = 0, **profile: float) -> Switch:
    made = Switch(LinkProfile(**profile), seed)
    for port in (1, 2, 3):
        made.add_port(port)
    return made


def test_it_floods_what_it_does_not_know_and_learns():
    hub = switch()
    hub.receive(1, frame(A, B), 0.0)
    assert hub.outgoing(0.0) == [(2, frame(A, B)), (3, frame(A, B))]
    hub.receive(2, frame(B, A), 0.0)
    assert hub.outgoing(0.0) == [(1, frame(B, A))]
    hub.receive(1, frame(A, ALL), 0.0)
    assert [port for port, _ in hub.outgoing(0.0)] == [2, 3]
    hub.receive(2, frame(A, B), 0.0)  # A has moved to port 2
    hub.receive(3, frame(C, A), 0.0)
    assert hub.outgoing(0.0)[-1] == (2, frame(C, A))
    assert hub.next_deadline() is None


def test_a_removed_port_gets_nothing_any_more():
    hub = switch(delay_ms=10)
    hub.receive(2, frame(B, ALL), 0.0)
    hub.receive(1, frame(A, B), 0.0)
    hub.remove_port(2)
    hub.receive(2, frame(B, A), 0.0)
    hub.receive(1, frame(A, B), 0.0)
    assert {port for port, _ in hub.outgoing(1.0)} == {1, 3}
    hub.receive(1, b"runt", 1.0)
    assert hub.next_deadline() is None


def test_delay_and_jitter_keep_the_order_and_reordering_breaks_it():
    def arrivals(**profile: float) -> list[tuple[float, int]]:
        hub = switch(7, **profile)
        hub.receive(2, frame(B, ALL), 0.0)
        hub.outgoing(9.0)
        for number in range(100):
            hub.receive(1, frame(A, B, bytes([number])), 10 + number / 1000)
        found = []
        while (due := hub.next_deadline()) is not None:
            found += [(due, data[-1]) for _, data in hub.outgoing(due)]
        return found

    assert arrivals(delay_ms=40) == [
        (pytest.approx(10.04 + number / 1000), number) for number in range(100)
    ]
    jittered = arrivals(delay_ms=40, jitter_ms=30)
    assert [number for _, number in jittered] == list(range(100))
    late = [due - 10 - number / 1000 for due, number in jittered]
    assert 0.04 <= min(late) < 0.06 < max(late) <= 0.0701
    assert len({round(lateness, 5) for lateness in late}) > 10
    numbers = [number for _, number in arrivals(delay_ms=40, reorder=0.1)]
    assert numbers != sorted(numbers) == list(range(100))


def test_loss_is_drawn_from_the_seed():
    def survivors(seed: int) -> list[int]:
        hub = switch(seed, loss=0.2)
        hub.receive(2, frame(B, ALL), 0.0)
        hub.outgoing(0.0)
        for number in range(200):
            hub.receive(1, frame(A, B, bytes([number])), 0.0)
        hub.receive(1, frame(A, B), 0.0)
        return [data[-1] for port, data in hub.outgoing(0.0) if port == 2]

    assert survivors(1) == survivors(1) != survivors(2)
    assert 130 < len(survivors(1)) < 190


def test_an_uplink_takes_its_time_and_its_queue_ends():
    hub = switch(rate_mbit=8, queue_kib=10)
    hub.receive(2, frame(B, ALL), 0.0)
    hub.outgoing(1.0)
    big = frame(A, B, bytes(1000 - 14))
    for _ in range(20):
        hub.receive(1, big, 10.0)
    assert hub.counters.overflowed == 9  # 10 KiB wait behind the first one
    assert hub.next_deadline() == pytest.approx(10.001)
    assert len(hub.outgoing(10.0055)) == 5
    assert len(hub.outgoing(11.0)) == 6


def test_what_is_in_flight_is_bounded():
    hub = switch(delay_ms=1000)
    for _ in range(MAX_FLYING):
        hub.receive(1, frame(A, ALL), 0.0)
    assert hub.counters.overflowed == MAX_FLYING
    assert len(hub.outgoing(2.0)) == MAX_FLYING
