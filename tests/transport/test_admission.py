"""The gate under a flood: fair shares among sources, members' sources, places that are kept, and its invariants in any order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport.budget.admission import MEMBER_MEMORY_S, PROBATION, Admission, Pending, Refusal
from transport.errors import UsageError
from transport.limits import Limits

LIMITS = Limits(
    pending_handshakes=8, pending_handshakes_per_source=6, new_connections_per_source_burst=20
)


class Caller:
    """Enters the gate and remembers what was hung up on."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.gate = Admission(limits)
        self.hung_up: list[str] = []

    def enter(self, host: str, now: float = 0.0, name: str = "") -> Pending | Refusal:
        return self.gate.enter(host, now, lambda: self.hung_up.append(name or host))

    def admitted(self, host: str, now: float = 0.0, name: str = "") -> Pending:
        pending = self.enter(host, now, name)
        assert isinstance(pending, Pending), pending
        return pending


def test_a_newcomer_finds_room_at_the_expense_of_the_largest_source():
    caller = Caller()
    flood = [caller.admitted("10.0.0.1", name=f"a{number}") for number in range(5)]
    for _ in range(3):
        caller.admitted("10.0.1.1", name="b")
    honest = caller.admitted("192.0.2.1")
    assert caller.hung_up == ["a0"]
    assert flood[0].pushed_out
    assert caller.gate.pending == 8
    flood[0].release(0.0)
    assert caller.gate.pending == 8
    honest.release(0.0, member=True)
    assert caller.gate.pending == 7
    with pytest.raises(UsageError):
        honest.release(0.0)


def test_the_largest_network_counts_not_the_largest_address():
    caller = Caller()
    for number in range(6):
        caller.admitted(f"10.0.0.{number}", name="one of many")
    caller.admitted("192.0.2.1", name="b")
    caller.admitted("192.0.2.1", name="b")
    caller.admitted("198.51.100.1")
    assert caller.hung_up == ["one of many"]


def test_nobody_is_pushed_out_by_a_source_that_would_be_the_largest():
    caller = Caller()
    for number in range(8):
        caller.admitted(f"10.0.{number}.1")
    assert caller.enter("10.0.0.1") is Refusal.PENDING_TOTAL
    assert caller.enter("10.0.99.1") is Refusal.PENDING_TOTAL
    assert caller.hung_up == []


def test_inside_one_network_the_largest_address_gives_way():
    caller = Caller()
    for number in range(6):
        caller.admitted("10.0.0.1", name=f"a{number}")
    caller.admitted("10.0.0.2")
    caller.admitted("10.0.0.3")
    caller.admitted("10.0.0.4")
    assert caller.hung_up == ["a0"]


def test_a_source_over_its_share_replaces_its_own_oldest():
    caller = Caller()
    for number in range(7):
        caller.admitted("10.0.0.1", name=f"a{number}")
    assert caller.hung_up == ["a0"]
    assert caller.gate.pushed_out == 1


def test_who_proved_the_swarm_key_keeps_its_place():
    caller = Caller()
    for number in range(6):
        caller.admitted("10.0.0.1", name=f"a{number}").proved()
    assert caller.enter("10.0.0.1") is Refusal.PENDING_SOURCE
    for _ in range(2):
        caller.admitted("10.0.1.1", name="b").proved()
    assert caller.enter("192.0.2.1") is Refusal.PENDING_TOTAL
    assert caller.hung_up == []


def test_who_came_without_a_way_to_hang_up_keeps_its_place():
    gate = Admission(LIMITS)
    for number in range(8):
        assert isinstance(gate.enter(f"10.0.{number % 2}.1", 0.0), Pending)
    assert isinstance(gate.enter("192.0.2.1", 0.0, lambda: None), Refusal)


def test_a_member_comes_back_from_behind_an_address_that_floods():
    caller = Caller()
    caller.admitted("10.0.0.1").release(0.0, member=True)
    while isinstance(pending := caller.enter("10.0.0.1", 1.0), Pending) and pending._source.tokens:
        pending.release(1.0)
    for _ in range(100):  # the attacker's, silent; then the member
        caller.admitted("10.0.0.1", 1.0)
        assert caller.gate.pending <= min(PROBATION, LIMITS.pending_handshakes_per_source)
    caller.admitted("10.0.0.1", 1.0, "member").release(1.0, member=True)
    assert "member" not in caller.hung_up


def test_that_privilege_ends():
    caller = Caller()
    caller.admitted("10.0.0.1").release(0.0, member=True)
    later = MEMBER_MEMORY_S + 1
    for _ in range(LIMITS.new_connections_per_source_burst):
        caller.admitted("10.0.0.1", later).release(later)
    assert caller.enter("10.0.0.1", later) is Refusal.RATE


@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                ["10.0.0.1", "10.0.0.2", "10.0.1.1", "2001:db8::1", "2001:db8:0:100::1"]
            ),
            st.floats(0, 3),
            st.sampled_from(["enter", "enter", "stay", "fail", "member", "proved"]),
            st.integers(0, 100),
        ),
        max_size=120,
    )
)
def test_in_any_order_the_counts_are_true(steps):
    gate = Admission(LIMITS, max_sources=9)
    live: list[Pending] = []
    now = 0.0
    for host, pause, action, choice in steps:
        now += pause
        if action in ("enter", "stay"):
            before = gate.pending, gate.pushed_out
            answer = gate.enter(host, now, (lambda: None) if action == "enter" else None)
            if isinstance(answer, Pending):
                live.append(answer)
            else:
                assert (gate.pending, gate.pushed_out) == before
        elif live:
            pending = live[choice % len(live)]
            if action == "proved":
                pending.proved()
            else:
                live.remove(pending)
                pending.release(now, member=action == "member")
        assert gate.pending == sum(not pending.pushed_out for pending in live)
        assert gate.pending <= LIMITS.pending_handshakes
        assert gate.known_sources <= 9
        assert sum(len(sources) for sources in gate._busy.values()) <= gate.pending
    for pending in live:
        pending.release(now)
    assert gate.pending == 0
    assert gate._busy == {}
