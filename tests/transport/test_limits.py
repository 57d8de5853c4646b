"""Limits and admission: validation, token buckets that cannot be cheated, and bounded memory of sources."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transport.errors import UsageError
from transport.limits import Admission, Limits, Refusal, source_of


def test_the_defaults_are_the_documented_ones():
    limits = Limits()
    assert limits.pending_handshakes == 64
    assert limits.handshake_timeout_s == 5.0
    assert limits.silence_s > 3 * limits.heartbeat_s
    assert limits.memory_per_peer_bytes == (1 << 20) + (8 << 20) + 2 * (4 << 20)


def test_a_rate_cap_may_be_zero_and_nothing_else():
    assert Limits().upload_bytes_per_s == 0
    assert Limits(download_bytes_per_s=8192).download_bytes_per_s == 8192
    assert Limits(bulk_links_per_peer=2).connections_per_peer == 8


def test_limits_read_from_plain_configuration():
    assert msgspec.convert({"max_peers": 3}, Limits).max_peers == 3
    with pytest.raises(msgspec.ValidationError, match="max_pears"):
        msgspec.convert({"max_pears": 3}, Limits)


@pytest.mark.parametrize(
    "change",
    [
        {"max_peers": 0},
        {"handshake_timeout_s": -1.0},
        {"new_connections_per_source_per_s": float("inf")},
        {"heartbeat_s": float("nan")},
        {"silence_s": 1.0},
        {"send_buffer_bytes": 1000},
        {"upload_bytes_per_s": -1},
        {"per_peer_download_bytes_per_s": 100},
        {"unauthenticated_memory_bytes": 65536},
        {"peer_memory_bytes": 1 << 20},
        {"memory_bytes": 1 << 25},
    ],
)
def test_senseless_limits_are_refused(change):
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(change, Limits)
    with pytest.raises(ValueError):
        Limits(**change)


@pytest.mark.parametrize(
    ("host", "source"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2ff:1::1", "2001:db8:1:200::/56"),
        ("2001:db8:1:200::2", "2001:db8:1:200::/56"),
        ("fe80::1%eth0", "fe80::/56"),
        ("node-7", "node-7"),
        ("x" * 300, "x" * 64),
    ],
)
def test_sources(host, source):
    assert source_of(host) == source


class Gate(Admission):
    """Nobody is pushed out of it, and the oldest handshake of a source is the first to be released."""

    def __init__(self, limits, **options):
        super().__init__(limits, **options)
        self.admitted = {}

    def admit(self, host, now):
        pending = self.enter(host, now)
        if isinstance(pending, Refusal):
            return pending
        self.admitted.setdefault(host, []).append(pending)
        return None

    def release(self, host, now, *, member=False):
        self.admitted[host].pop(0).release(now, member=member)


def test_a_32_node_swarm_on_one_address_starts_at_once():
    admission = Gate(Limits())
    for _ in range(20):  # and restarts, over and over
        assert [admission.admit("127.0.0.1", 0.0) for _ in range(31)] == [None] * 31
        for _ in range(31):
            admission.release("127.0.0.1", 0.0, member=True)


def test_failures_use_up_the_tokens_and_time_refills_them():
    limits = Limits()
    admission = Gate(limits)
    for _ in range(limits.new_connections_per_source_burst):
        assert admission.admit("198.51.100.1", 0.0) is None
        admission.release("198.51.100.1", 0.0)
    assert admission.admit("198.51.100.1", 4.9) is Refusal.RATE
    assert admission.admit("198.51.100.2", 0.0) is None  # others are not affected
    assert admission.admit("198.51.100.1", 5.1) is None
    assert admission.admit("198.51.100.1", 5.2) is Refusal.RATE


def test_pending_limits_per_source_and_in_total():
    limits = Limits(pending_handshakes=10, pending_handshakes_per_source=4)
    admission = Gate(limits)
    assert [admission.admit("2001:db8::1", 0.0) for _ in range(4)] == [None] * 4
    assert admission.admit("2001:db8::2", 0.0) is Refusal.PENDING_SOURCE  # same /56
    assert [admission.admit(f"10.0.0.{n}", 0.0) for n in range(6)] == [None] * 6
    assert admission.admit("10.1.0.1", 0.0) is Refusal.PENDING_TOTAL
    admission.release("2001:db8::1", 0.0)
    assert admission.pending == 9
    assert admission.admit("10.1.0.1", 0.0) is None


def test_a_clock_that_goes_back_gives_no_tokens():
    limits = Limits(new_connections_per_source_burst=1)
    admission = Gate(limits)
    assert admission.admit("a", 100.0) is None
    admission.release("a", 100.0)
    assert admission.admit("a", 0.0) is Refusal.RATE
    assert admission.admit("a", 104.0) is Refusal.RATE
    assert admission.admit("a", 105.5) is None


def test_sources_are_bounded_and_pinned_while_pending():
    admission = Gate(Limits(), max_sources=100)
    for number in range(50):
        assert admission.admit(f"10.0.0.{number}", 0.0) is None
    for number in range(2000):
        assert admission.admit(f"10.1.{number // 250}.{number % 250}", 0.0) is None
        admission.release(f"10.1.{number // 250}.{number % 250}", 0.0)
        assert admission.known_sources <= 100
    for number in range(50):
        admission.release(f"10.0.0.{number}", 0.0)
    with pytest.raises(UsageError):
        Gate(Limits(), max_sources=64)


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from("abc"), st.floats(0, 20), st.sampled_from(["admit", "fail", "member"])
        ),
        max_size=120,
    ),
    st.integers(1, 6),
)
def test_the_budget_is_never_exceeded(steps, burst):
    limits = Limits(
        new_connections_per_source_burst=burst,
        pending_handshakes=8,
        pending_handshakes_per_source=4,
    )
    admission = Gate(limits)
    pending = dict.fromkeys("abc", 0)
    spent = dict.fromkeys("abc", 0)  # admissions not given back by a member
    now = 0.0
    for source, pause, action in steps:
        now += pause
        if action == "admit":
            if admission.admit(source, now) is None:
                pending[source] += 1
                spent[source] += 1
        elif pending[source]:
            admission.release(source, now, member=action == "member")
            pending[source] -= 1
            spent[source] -= action == "member"
        assert admission.pending == sum(pending.values()) <= 8
        assert max(pending.values()) <= 4
        for key in "abc":
            assert spent[key] <= burst + now * limits.new_connections_per_source_per_s + 1e-6
