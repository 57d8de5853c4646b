"""The machine that decides about mappings, stepped by hand with its own clock."""

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport.address import Address
from transport.nat.mapping_core import (
    CHECK_AGAIN_S,
    CHECK_EVERY_S,
    MIN_RENEW_S,
    PAUSE_FIRST_S,
    PAUSE_MAX_S,
    REMAP_SPREAD_S,
    Ask,
    Check,
    Grant,
    Idle,
    MapMethod,
    MappingCore,
)

PCP, NATPMP, UPNP = MapMethod.PCP, MapMethod.NATPMP, MapMethod.UPNP
GATEWAY = "10.1.0.1"
GOOD = Grant("11.1.1.2", 7448, 3600)


def machine(*methods: MapMethod, gateway: str | None = GATEWAY) -> MappingCore:
    core = MappingCore(
        port=7447, lifetime_s=3600, methods=methods or tuple(MapMethod), rng=random.Random(1)
    )
    core.gateway_changed(gateway, 0)
    return core


def held(method: MapMethod = NATPMP) -> MappingCore:
    core = machine(method)
    assert core.mapped(method, GOOD, 0)
    return core


def test_without_a_gateway_there_is_nothing_to_do_and_a_reason():
    core = machine(gateway=None)
    assert core.next_step(0) == Idle(math.inf)
    assert core.failures == dict.fromkeys(MapMethod, "there is no default gateway")


def test_methods_are_asked_in_turn_and_the_first_mapping_ends_the_round():
    core = machine()
    assert core.next_step(0) == Ask(PCP, GATEWAY, 7447)
    core.failed(PCP, "no answer", 4)
    assert core.next_step(4) == Ask(NATPMP, GATEWAY, 7447)
    assert core.mapped(NATPMP, GOOD, 5)
    assert core.mapping is not None
    assert core.mapping.external == Address("11.1.1.2", 7448)
    assert core.mapping.expires_at == 3605
    assert core.failures == {PCP: "no answer"}
    assert core.next_step(5) == Idle(5 + CHECK_EVERY_S)


def test_it_is_renewed_at_half_life_with_the_port_that_it_has():
    core = held()
    core.checked(1799)
    assert core.next_step(1799) == Idle(1800)
    assert core.next_step(1800) == Ask(NATPMP, GATEWAY, 7448)


def test_a_failed_renewal_is_tried_at_half_of_what_is_left_until_it_runs_out():
    core = held()
    now, times = 1800.0, []
    while core.mapping is not None:
        step = core.next_step(now)
        if isinstance(step, Check):
            core.checked(now)
        elif isinstance(step, Ask):
            if core.mapping is not None:
                times.append(now)
                core.failed(NATPMP, "no answer", now)
        else:
            now = step.until
    assert times[:4] == [1800, 2700, 3150, 3375]
    assert all(b - a >= MIN_RENEW_S for a, b in itertools.pairwise(times))
    assert 3600 <= now < 3600 + MIN_RENEW_S
    assert core.failures == {NATPMP: "the mapping ran out before the gateway renewed it"}


def test_rounds_that_bring_nothing_grow_rarer():
    core = machine(PCP)
    now, starts = 0.0, []
    for _ in range(12):
        assert isinstance(core.next_step(now), Ask)
        starts.append(now)
        core.failed(PCP, "no answer", now)
        step = core.next_step(now)
        assert isinstance(step, Idle)
        now = step.until
    gaps = [b - a for a, b in itertools.pairwise(starts)]
    assert PAUSE_FIRST_S * 0.9 <= gaps[0] <= PAUSE_FIRST_S * 1.1
    assert PAUSE_MAX_S * 0.9 <= gaps[-1] <= PAUSE_MAX_S * 1.1


def test_a_gateway_that_says_how_long_it_refuses_is_believed_up_to_half_an_hour():
    for said, most in ((600, 660), (2**32 - 1, PAUSE_MAX_S * 1.1)):
        core = machine(PCP)
        core.failed(PCP, "not authorized", 0, retry_after_s=said)
        step = core.next_step(0)
        assert isinstance(step, Idle)
        assert most * 0.8 <= step.until <= most


@pytest.mark.parametrize(
    ("grant", "why"),
    [
        (Grant("11.1.1.2", 0, 3600), "no usable port"),
        (Grant("11.1.1.2", 7448, 0), "only 0 s"),
        (Grant("11.1.1.2", 7448, 5), "only 5 s"),
        (Grant("192.168.1.5", 7448, 3600), "another NAT"),
        (Grant("100.64.9.9", 7448, 3600), "another NAT"),
        (Grant("0.0.0.0", 7448, 3600), "no usable external address"),
        (Grant("127.0.0.1", 7448, 3600), "no usable external address"),
        (Grant("224.0.0.1", 7448, 3600), "no usable external address"),
        (Grant("2600::1%eth0", 7448, 3600), "no usable external address"),
        (Grant("evil\nname", 7448, 3600), "no usable external address"),
    ],
)
def test_a_grant_of_no_use_is_a_failure_and_the_next_method_is_asked(grant, why):
    core = machine()
    assert not core.mapped(PCP, grant, 0)
    assert core.mapping is None
    assert why in core.failures[PCP]
    assert core.next_step(0) == Ask(NATPMP, GATEWAY, 7447)


def test_a_renewal_of_no_use_ends_the_mapping():
    core = held()
    assert not core.mapped(NATPMP, Grant("11.1.1.2", 7448, 0), 1800)
    assert core.mapping is None
    assert core.next_step(1800) == Ask(NATPMP, GATEWAY, 7447)


def test_a_giant_lifetime_is_renewed_on_our_own_schedule():
    core = machine(PCP)
    assert core.mapped(PCP, Grant("11.1.1.2", 1, 2**32 - 1), 0)
    assert core.mapping is not None
    assert core.mapping.expires_at == 3600


def test_a_restart_maps_again_after_a_random_moment():
    core = held()
    assert core.next_step(CHECK_EVERY_S) == Check(NATPMP, GATEWAY)
    core.checked(CHECK_EVERY_S)
    core.epoch_lost(CHECK_EVERY_S)
    step = core.next_step(CHECK_EVERY_S)
    assert isinstance(step, Idle)
    assert CHECK_EVERY_S <= step.until <= CHECK_EVERY_S + REMAP_SPREAD_S
    assert core.next_step(step.until) == Ask(NATPMP, GATEWAY, 7448)


def test_another_external_address_maps_again():
    core = held()
    core.checked(100, external_host="11.1.1.2")
    assert isinstance(core.next_step(100), Idle)
    core.checked(101, external_host="11.1.1.9")
    assert core.next_step(101) == Ask(NATPMP, GATEWAY, 7448)


def test_news_only_hasten_a_check_and_a_shouting_neighbour_hastens_few():
    core = held()
    checks, now = 0, 10.0
    while now < 110:
        core.announced(now)
        step = core.next_step(now)
        assert not isinstance(step, Ask)
        if isinstance(step, Check):
            checks += 1
            core.checked(now)
        now += 0.1
    assert 2 <= checks <= 100 / MIN_RENEW_S + 1


def test_news_shorten_the_pause_of_who_has_no_mapping():
    core, now = machine(PCP), 0.0
    for _ in range(8):
        core.failed(PCP, "no answer", now)
        step = core.next_step(now)
        assert isinstance(step, Idle)
        last, now = now, step.until
    assert now - last > PAUSE_FIRST_S * 2
    core.announced(last + 1)
    assert core.next_step(last + 1) == Idle(last + PAUSE_FIRST_S)


def test_a_silent_gateway_is_not_believed_for_ever():
    core = held()
    now = CHECK_EVERY_S
    for _ in range(3):
        assert core.next_step(now) == Check(NATPMP, GATEWAY)
        core.check_failed(now)
        now += CHECK_AGAIN_S
    assert core.mapping is None
    assert "does not answer" in core.failures[NATPMP]
    assert core.next_step(now) == Ask(NATPMP, GATEWAY, 7447)


def test_a_new_gateway_starts_anew():
    core = held()
    core.gateway_changed("10.9.0.1", 50)
    assert core.mapping is None
    assert core.next_step(50) == Ask(NATPMP, "10.9.0.1", 7447)
    core.gateway_changed(None, 51)
    assert core.next_step(51) == Idle(math.inf)
    assert not core.mapped(NATPMP, GOOD, 52)  # an answer that came too late
    assert core.mapping is None


class World:
    """Does what the machine says, with outcomes drawn by Hypothesis."""

    def outcome(self, core: MappingCore, step: Ask | Check, now: float, what: int) -> None:
        if isinstance(step, Check):
            if what % 2:
                core.checked(now, external_host="11.1.1.2" if what % 4 == 1 else "11.1.1.3")
            else:
                core.check_failed(now)
        elif what % 3 == 0:
            core.failed(step.method, "no", now, retry_after_s=float(what))
        else:
            core.mapped(step.method, Grant("11.1.1.2", what % 65536, what), now)


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 2**32 - 1)), max_size=60))
def test_whatever_happens_it_never_asks_without_rest_and_never_keeps_what_ran_out(events):
    core, world, now = machine(), World(), 0.0
    asked = 0
    for kind, what in events:
        if kind == 0:
            core.gateway_changed([None, GATEWAY, "10.2.0.1"][what % 3], now)
        elif kind == 1:
            core.announced(now)
        elif kind == 2:
            core.epoch_lost(now)
        elif kind == 3:
            now += what % 5000
        for _ in range(5):
            step = core.next_step(now)
            assert core.mapping is None or now < core.mapping.expires_at <= now + 3600
            if isinstance(step, Idle):
                assert step.until > now
                break
            assert step.gateway == core.gateway
            asked += 1
            world.outcome(core, step, now, what)
        else:
            pytest.fail("asks without rest")
