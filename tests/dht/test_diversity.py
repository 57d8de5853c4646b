"""Address groups, and what they keep out of the table: floods from one network, never a swarm that lives in one."""

import random

from hypothesis import given
from hypothesis import strategies as st

from dht.bucket import Seen
from dht.contact import Contact
from dht.diversity import (
    BUCKET_QUOTA,
    TABLE_QUOTA,
    GroupCounter,
    Quota,
    groups_of,
    host_groups,
)
from dht.table import Table

OWN = bytes(32)


def test_groups_of_addresses() -> None:
    assert host_groups("8.8.4.4") == ((4, 24, 0x080804), (4, 16, 0x0808))
    assert host_groups("2a00:1450:1:2ff::1") == (
        (6, 56, 0x2A001450000102),
        (6, 48, 0x2A0014500001),
    )
    assert host_groups("::ffff:8.8.4.4") == host_groups("8.8.4.4")
    assert host_groups("2002:808:404::1") == host_groups("8.8.4.4")  # 6to4: whoever holds the IPv4


def test_local_addresses_and_names_are_in_no_group() -> None:
    for host in (
        "127.0.0.1",
        "10.1.2.3",
        "192.168.0.1",
        "100.64.0.1",
        "::1",
        "fd00::1",
        "x.org",
        "",
    ):
        assert host_groups(host) == ()


def test_what_the_connection_showed_counts_and_not_what_is_claimed() -> None:
    claimed = ("9.9.9.9:1", "10.0.0.1:1", "[2a00::1]:5", "9.9.9.10:2")
    assert groups_of(Contact(OWN, claimed, "8.8.4.4")) == host_groups("8.8.4.4")
    assert groups_of(Contact(OWN, claimed, "10.0.0.7")) == ()
    assert groups_of(Contact(OWN, claimed)) == host_groups("9.9.9.9") + host_groups("2a00::1")


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=60))
def test_counter_counts(steps: list[tuple[bool, int]]) -> None:
    counter, held = GroupCounter(), [0] * 6
    quota = Quota(2, 4)
    for add, number in steps:
        groups = host_groups(f"8.8.{number}.1")
        if add:
            assert counter.room(groups, quota) == (held[number] < 2 and sum(held) < 4)
            counter.add(groups)
            held[number] += 1
        elif held[number]:
            counter.remove(groups)
            held[number] -= 1
        assert counter.most() == sum(held)


def attacker(number: int, host: str = "8.8.8.8") -> Contact:
    node_id = random.Random(number).randbytes(32)
    return Contact(node_id, (f"{host}:{1024 + number % 60000}",), host)


def honest(number: int) -> Contact:
    host = f"{60 + number % 7}.{number % 251}.{number // 7 % 256}.1"
    return attacker(10**6 + number, host)


def of(table: Table, host: str) -> int:
    return sum(contact.host == host for contact in table.contacts())


def test_one_network_cannot_poison_a_table() -> None:
    """A thousand identities from one /24 get no more than its quota, whenever they come."""
    for attackers_first in (False, True):
        table = Table(OWN, k=20)
        waves = [[honest(n) for n in range(300)], [attacker(n) for n in range(1000)]]
        for contacts in reversed(waves) if attackers_first else waves:
            for now, contact in enumerate(contacts):
                table.seen(contact, float(now))
        assert of(table, "8.8.8.8") <= TABLE_QUOTA.narrow
        assert len(table) - of(table, "8.8.8.8") >= 80
        for bucket in table._buckets.values():
            inside = [c.host for c in [e.contact for e in bucket.entries.values()]]
            assert inside.count("8.8.8.8") <= BUCKET_QUOTA.narrow
            assert [c.host for c in bucket.waiting].count("8.8.8.8") <= BUCKET_QUOTA.narrow


def test_neighbourhood_cannot_be_eclipsed_from_one_network() -> None:
    """Ids ground right next to ours would fill the deep buckets, which honest ids never do."""
    table = Table(OWN, k=20)
    for number in range(60):
        table.seen(honest(number), 0.0)
    for number in range(200):
        near = bytes(4) + random.Random(number).randbytes(28)
        table.seen(Contact(near, ("8.8.8.8:1",), "8.8.8.8"), 1.0)
    assert of(table, "8.8.8.8") <= TABLE_QUOTA.narrow
    nearest = table.closest(OWN, 20)
    assert sum(contact.host == "8.8.8.8" for contact in nearest) <= TABLE_QUOTA.narrow
    assert (
        table.seen(Contact(b"\0" * 31 + b"\1", ("8.8.8.8:1",), "8.8.8.8"), 2.0)[0] is Seen.REFUSED
    )


def test_swarm_of_one_network_works() -> None:
    table = Table(OWN, k=20)
    for number in range(15):
        assert table.seen(attacker(number), 0.0)[0] is Seen.ADDED
    assert len(table) == 15
    private = Table(OWN, k=20)
    for number in range(100):
        private.seen(attacker(number, "192.168.1.7"), 0.0)
    assert len(private) > 60


def test_surplus_gives_way_to_others() -> None:
    table = Table(OWN, k=4)
    far = [
        Contact(bytes([0x80 + n]) + bytes(31), (f"8.8.8.8:{n + 1}",), "8.8.8.8") for n in range(9)
    ]
    for contact in far[:4]:
        assert table.seen(contact, 0.0)[0] is Seen.ADDED
    assert (
        table.seen(far[4], 0.0)[0] is Seen.REFUSED
    )  # full, and beyond the quota: it does not wait
    other = Contact(b"\xff" + bytes(31), ("9.9.9.9:1",), "9.9.9.9")
    assert table.seen(other, 1.0)[0] is Seen.ADDED
    assert far[3].node_id not in table
    assert of(table, "8.8.8.8") == 3


def test_who_moves_into_a_crowded_network_leaves() -> None:
    table = Table(OWN, k=20)
    for number in range(60):
        table.seen(honest(number), 0.0)
    first = [Contact(bytes([0x80, n]) + bytes(30), ("8.8.8.8:1",), "8.8.8.8") for n in range(2)]
    for contact in first:
        table.seen(contact, 0.0)
    mover = Contact(bytes([0x81]) + bytes(31), ("9.9.9.9:1",), "9.9.9.9")
    there = len([c for c in first if c.node_id in table])
    table.seen(mover, 0.0)
    if there == 2:
        moved = Contact(mover.node_id, ("8.8.8.8:2",), "8.8.8.8")
        assert table.seen(moved, 1.0)[0] is Seen.REFUSED
        assert mover.node_id not in table


@given(
    st.lists(
        st.tuples(st.sampled_from("sssfr"), st.integers(0, 40), st.integers(0, 12)), max_size=150
    )
)
def test_counts_follow_the_table(script: list[tuple[str, int, int]]) -> None:
    table = Table(OWN, k=4)
    for now, (verb, number, network) in enumerate(script):
        node_id = bytes([number * 6 + 1]) + bytes(31)
        host = "10.0.0.1" if network == 0 else f"8.{network % 3}.{network}.1"
        if verb == "s":
            table.seen(Contact(node_id, (f"{host}:1",), host), float(now))
        elif verb == "f":
            table.failed(node_id, now * 400.0)
        else:
            table.remove(node_id)
        entries = table.entries()
        census = table._census
        assert census.entries == len(entries) == len(table)
        assert census.surplus == sum(entry.surplus for entry in entries)
        assert not (census.surplus and census.binding)
        held = [entry.contact for entry in entries]
        held += [c for bucket in table._buckets.values() for c in bucket.waiting]
        expected = GroupCounter()
        for contact in held:
            expected.add(groups_of(contact))
        assert census.groups._counts == expected._counts
