"""The beacon: members believe members, once, and never more often than they can dial."""

import random
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from node.joining.beacon import (
    BEACON_BYTES,
    MAX_NODES,
    PER_MINUTE,
    QUIET_S,
    WINDOW_MS,
    Beacon,
    Hint,
)
from tests.node.joining.people import ALICE, BOB, NOW_MS, newcomer
from tests.trusted import FOREIGN, SWARM
from transport.address import Address


def beacon(who, swarm=SWARM) -> Beacon:
    return Beacon(who, swarm, random.Random(1), 0.0)


def test_a_member_learns_where_another_one_listens():
    told = beacon(ALICE).make(7447, NOW_MS)
    assert len(told) == BEACON_BYTES
    bob = beacon(BOB)
    hint = bob.receive(told, "192.168.1.5", 0.0, NOW_MS)
    assert hint == Hint(ALICE.node_id, Address("192.168.1.5", 7447))
    link_local = beacon(BOB).receive(told, "fe80::1%eth0", 0.0, NOW_MS)
    assert link_local.address == Address("fe80::1%eth0", 7447)


def test_strangers_copies_and_old_ones_are_dropped_and_counted():
    alice, bob = beacon(ALICE), beacon(BOB)
    told = alice.make(7447, NOW_MS)
    assert bob.receive(told, "192.168.1.5", 0.0, NOW_MS)
    assert bob.receive(told, "192.168.1.6", 100.0, NOW_MS) is None
    assert bob.receive(alice.make(7447, NOW_MS - 1), "192.168.1.5", 100.0, NOW_MS) is None
    assert bob.receive(alice.make(7447, NOW_MS + WINDOW_MS + 1), "h", 100.0, NOW_MS) is None
    assert bob.receive(beacon(ALICE, FOREIGN).make(1, NOW_MS + 1), "h", 100.0, NOW_MS) is None
    assert bob.receive(beacon(BOB).make(1, NOW_MS + 1), "h", 100.0, NOW_MS) is None
    assert bob.counters == {"hint": 1, "stale": 3, "foreign": 1, "own": 1}


def test_a_member_cannot_speak_for_another_one():
    bob = beacon(BOB)
    forged = bytearray(beacon(ALICE).make(7447, NOW_MS))
    forged[57] ^= 1  # the port, with a MAC that any member can make
    forged[-16:] = bob._mac(bytes(forged[:-16]))
    assert bob.receive(bytes(forged), "192.168.1.5", 0.0, NOW_MS) is None
    assert bob.counters == {"forged": 1}
    assert bob.receive(beacon(ALICE).make(7447, NOW_MS), "192.168.1.5", 0.0, NOW_MS)


@given(st.integers(0, BEACON_BYTES - 1), st.integers(1, 255))
def test_a_changed_one_is_dropped(place, flip):
    told = bytearray(beacon(ALICE).make(7447, NOW_MS))
    told[place] ^= flip
    assert beacon(BOB).receive(bytes(told), "192.168.1.5", 0.0, NOW_MS) is None


@given(st.binary(max_size=200), st.text(max_size=20))
def test_any_datagram_from_anywhere_is_dropped(data, host):
    bob = beacon(BOB)
    assert bob.receive(data, host, 0.0, NOW_MS) is None
    assert bob.receive(beacon(ALICE).make(7447, NOW_MS), host, 0.0, NOW_MS) is None or host


def test_port_zero_and_a_strange_host_give_no_hint():
    bob = beacon(BOB)
    assert bob.receive(beacon(ALICE).make(0, NOW_MS), "192.168.1.5", 0.0, NOW_MS) is None
    assert bob.receive(beacon(newcomer(9)).make(7, NOW_MS), "not a host!", 0.0, NOW_MS) is None
    assert bob.counters == {"malformed": 2}


def test_one_node_is_dialed_now_and_then_and_all_together_not_too_often():
    bob = beacon(BOB)
    alice = beacon(ALICE)
    hints = [
        now
        for now in range(120)
        if bob.receive(alice.make(7447, NOW_MS + now), "192.168.1.5", float(now), NOW_MS)
    ]
    assert hints == [0, 30, 60, 90]
    assert QUIET_S == 30.0
    crowd = [
        bob.receive(beacon(newcomer(n)).make(7, NOW_MS), "192.168.1.6", 200.0, NOW_MS)
        for n in range(100, 150)
    ]
    assert sum(hint is not None for hint in crowd) == PER_MINUTE
    assert bob.counters["flood"] == 50 - PER_MINUTE


def test_the_table_of_nodes_is_bounded():
    bob = beacon(BOB)
    for number in range(MAX_NODES + 5):
        data = beacon(newcomer(number + 1000)).make(7, NOW_MS)
        assert bob.receive(data, "192.168.1.6", number * 3.0, NOW_MS)
    assert len(bob._seen) == MAX_NODES


def test_it_speaks_up_at_once_then_each_minute():
    alice = beacon(ALICE)
    sent = []
    for now in range(200):
        while alice.tick(float(now)):
            sent.append(now)
    assert sent[:3] == [0, 1, 4]
    assert all(48 <= later - earlier <= 73 for earlier, later in pairwise(sent[2:]))
    assert len(sent) >= 5
    assert alice.next_deadline() > 199
