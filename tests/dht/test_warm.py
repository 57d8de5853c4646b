"""Warm starts: the file by direct calls and on a real disk, the driver over a fake endpoint under virtual time."""

import hashlib
import logging
import os
import random
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from dht import table_file, warm
from dht.bucket import Entry
from dht.contact import Contact
from dht.key import record_key
from dht.saved import (
    MAX_AGE_S,
    MAX_SAVED,
    MAX_SAVED_BYTES,
    InvalidSaved,
    Saved,
    decode,
    encode,
    to_save,
)
from dht.service import Dht, open_dht
from dht.settings import DhtSettings
from tests.dht.fake_endpoint import SWARM, FakeEndpoint, FakeNet
from tests.dht.test_service import until, wall
from transport.durable import replace_file

WALL = 1_800_000_000.0
ME = bytes(31) + b"\1"
KEY = record_key(SWARM.id, "run", "tiny")


def saved(number: int, age_s: float = 0.0) -> Saved:
    return Saved(number.to_bytes(32, "big"), (f"10.0.0.{number % 250 + 1}:7447",), WALL - age_s)


def load(data: bytes) -> list[Saved]:
    return decode(data, swarm_id=SWARM.id, node_id=ME, wall=WALL)


def dump(contacts: list[Saved]) -> bytes:
    return encode(contacts, swarm_id=SWARM.id, node_id=ME)


# the file's contents


def test_round_trip_newest_first() -> None:
    contacts = [saved(2, 50.0), saved(3, 10.0), saved(4, 30.0)]
    assert load(dump(contacts)) == [contacts[1], contacts[2], contacts[0]]
    assert load(dump([])) == []


def test_what_is_old_senseless_or_ourselves_is_left_out() -> None:
    odd = [
        saved(2, MAX_AGE_S + 1),
        saved(3, -7200.0),
        Saved(ME, ("10.0.0.9:1",), WALL),
        Saved(bytes([5] * 32), ("0.0.0.0:1", "host.example:2"), WALL),
        Saved(bytes([6] * 32), ("10.0.0.1:1",), float("nan")),
        Saved(bytes([7] * 32), ("0.0.0.0:1", "10.0.0.7:1"), WALL),
        Saved(bytes([7] * 32), ("10.0.0.8:1",), WALL),
    ]
    assert load(dump(odd)) == [Saved(bytes([7] * 32), ("10.0.0.7:1",), WALL)]


def remade(body: bytes) -> bytes:
    return dump([])[:21] + hashlib.sha256(body).digest() + body


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not a saved"),
        (b"noded dht contacts 2\n" + bytes(99), "not a saved"),
        (dump([saved(2)])[:-1], "checksum"),
        (dump([saved(2)])[:-1] + b"\1", "checksum"),
        (dump([saved(2)])[:30], "checksum"),
        (remade(b"\xc1"), "does not hold"),
        (remade(b"\x91" * 5000), "does not hold"),
        (remade(b"\x81\xa1x" + b"\x91" * 5000), "does not hold"),
        (remade(msgspec.msgpack.encode({"swarm_id": bytes(31)})), "does not hold"),
        (dump([saved(n) for n in range(2, MAX_SAVED + 3)]), "does not hold"),
        (bytes(MAX_SAVED_BYTES + 1), "larger"),
        (encode([], swarm_id=bytes(32), node_id=ME), "another node or swarm"),
        (encode([], swarm_id=SWARM.id, node_id=bytes(32)), "another node or swarm"),
    ],
)
def test_anything_wrong_and_nothing_is_believed(data: bytes, why: str) -> None:
    with pytest.raises(InvalidSaved, match=why):
        load(data)


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_with_one_error(body: bytes) -> None:
    for data in (body, remade(body)):
        try:
            load(data)
        except InvalidSaved:
            continue


def test_earlier_contacts_stay_until_they_are_old_and_all_is_bounded() -> None:
    entries = [
        Entry(Contact(saved(n).node_id, saved(n).addresses), last_seen=100.0 - n) for n in (2, 3)
    ]
    kept = to_save(
        entries, [saved(3, 99.0), saved(4, 5.0), saved(5, MAX_AGE_S + 1)], now=100.0, wall=WALL
    )
    assert kept == [saved(2, 2.0), saved(3, 3.0), saved(4, 5.0)]
    many = to_save([], [saved(n, n) for n in range(2, 2000)], now=0.0, wall=WALL)
    assert len(many) == MAX_SAVED
    assert len(dump(many)) < MAX_SAVED_BYTES


# the file on disk


def names(folder: Path) -> list[str]:
    return [each.name for each in folder.iterdir()]


async def test_file_is_whole_and_the_owner_s_alone(tmp_path: Path) -> None:
    path = tmp_path / "contacts"
    assert await table_file.read_table(path) is None
    await table_file.write_table(path, b"first")
    (tmp_path / "contacts.new").write_bytes(b"left by a crash")
    await table_file.write_table(path, b"second")
    assert await table_file.read_table(path) == b"second"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert names(tmp_path) == ["contacts"]


async def test_file_that_cannot_be_trusted_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "contacts"
    path.write_bytes(b"x")
    path.chmod(0o620)
    with pytest.raises(InvalidSaved, match="others can write"):
        await table_file.read_table(path)
    link = tmp_path / "link"
    link.symlink_to(path)
    with pytest.raises(InvalidSaved, match="symbolic link"):
        await table_file.read_table(link)
    with pytest.raises(InvalidSaved, match="not a plain file"):
        await table_file.read_table(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidSaved, match="not a plain file"):
        await table_file.read_table(tmp_path / "pipe")
    with pytest.raises(OSError, match="No such"):
        await table_file.write_table(tmp_path / "nowhere" / "contacts", b"")


# the driver


@pytest.fixture(autouse=True)
def disk_without_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The virtual clock would run away while a thread works."""

    async def read(path: Path) -> bytes | None:
        await trio.lowlevel.checkpoint()
        return table_file._read(path)

    async def write(path: Path, data: bytes) -> None:
        replace_file(path, data)
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(warm, "read_table", read)
    monkeypatch.setattr(warm, "write_table", write)


@asynccontextmanager
async def dht_on(
    endpoint: FakeEndpoint, path: Path | None = None, **more: object
) -> AsyncIterator[Dht]:
    async with open_dht(
        endpoint,
        rng=random.Random(int(endpoint.addresses[0].host.rpartition(".")[2])),
        wall_clock=wall,
        table_path=path,
        settings=DhtSettings(bootstrap_most_s=1e6),
        **more,  # type: ignore[arg-type]
    ) as dht:
        yield dht
        assert dht.stats()["internal_errors"] == 0


async def serve(
    endpoint: FakeEndpoint, seed: FakeEndpoint, task_status: trio.TaskStatus[Dht]
) -> None:
    async with dht_on(endpoint) as dht:
        await dht.bootstrap(seed.addresses)
        task_status.started(dht)
        await trio.sleep_forever()


async def test_back_after_an_hour_without_any_seed(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """The seed is dead, and half of the others: the saved table alone leads back, and the node is found again."""
    net = FakeNet()
    points = [net.add(n) for n in range(1, 8)]
    me = net.add(50)
    path = tmp_path / "contacts"
    async with trio.open_nursery() as nursery:
        first = await nursery.start(serve, points[0], points[1])
        for point in points[1:]:
            await nursery.start(serve, point, points[0])
        await first.put(KEY, b"here")
        async with dht_on(me, path) as dht:
            await dht.bootstrap(points[0].addresses)
            assert len(dht.contacts()) == 7
        net.kill(me)
        await trio.sleep(3600.0)
        for point in points[:4]:
            net.kill(point)
        net.endpoints[me.addresses[0]] = me
        back = trio.current_time()
        async with dht_on(me, path) as dht:
            await until(lambda: len(dht.contacts()) == 3, 10.0)
            assert trio.current_time() - back < 5.0
            assert [record.value for record in await dht.get(KEY)] == [b"here"]
            assert dht.stats()["bootstrap_addresses"] == 0
            assert len(await dht.find_node(KEY)) == 3
        nursery.cancel_scope.cancel()


async def test_corrupt_file_is_ignored_with_one_line(
    tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "contacts"
    path.write_bytes(dump([saved(2)])[:-3])
    path.chmod(0o600)
    net = FakeNet()
    with caplog.at_level(logging.INFO):
        async with dht_on(net.add(1), path) as dht:
            await trio.sleep(400.0)
            assert dht.contacts() == []
    (line,) = [entry for entry in caplog.records if entry.name == "dht.warm"]
    assert line.getMessage() == (
        f"the saved routing table {path} is ignored: its checksum is wrong: it was cut off or altered"
    )


async def test_offline_node_forgets_nobody(tmp_path: Path, autojump_clock: MockClock) -> None:
    net = FakeNet()
    me = net.add(1)
    path = tmp_path / "contacts"
    before = encode([saved(2), saved(3)], swarm_id=SWARM.id, node_id=bytes(me.node_id))
    path.write_bytes(before)
    path.chmod(0o600)
    async with dht_on(me, path):
        await trio.sleep(1000.0)
    assert path.read_bytes() == before
    async with trio.open_nursery() as nursery:
        other = net.add(9)
        await nursery.start(serve, other, me)
        async with dht_on(me, path) as dht:
            await dht.bootstrap(other.addresses)
        nursery.cancel_scope.cancel()
    after = decode(path.read_bytes(), swarm_id=SWARM.id, node_id=bytes(me.node_id), wall=wall())
    assert {each.node_id for each in after} == {
        saved(2).node_id,
        saved(3).node_id,
        bytes(other.node_id),
    }


async def test_disk_that_refuses_is_said_and_survived(
    tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    net = FakeNet()
    me, other = net.add(1), net.add(2)
    async with trio.open_nursery() as nursery:
        await nursery.start(serve, other, me)
        async with dht_on(me, tmp_path / "nowhere" / "contacts") as dht:
            await dht.bootstrap(other.addresses)
            await trio.sleep(1000.0)
            assert len(dht.contacts()) == 1
        nursery.cancel_scope.cancel()
    assert "cannot be saved" in caplog.text


# reachability


async def test_node_that_cannot_be_dialled_is_a_client_and_says_where_it_is(
    autojump_clock: MockClock,
) -> None:
    net = FakeNet()
    points = [net.add(n) for n in range(1, 6)]
    me = net.add(50)
    can_be_dialled = [True]
    async with trio.open_nursery() as nursery:
        others = [await nursery.start(serve, point, points[0]) for point in points]
        async with dht_on(me, reachable=lambda: can_be_dialled[0]) as dht:
            await dht.bootstrap(points[0].addresses)

            def known() -> int:
                ids = [[c.node_id for c in other.contacts()] for other in others]
                return sum(bytes(me.node_id) in each for each in ids)

            await until(lambda: known() == 5)
            can_be_dialled[0] = False
            await until(lambda: known() == 0)
            assert dht.stats()["serving"] == 0
            (found, *_) = await others[3].find_node(bytes(me.node_id))
            assert found == Contact(bytes(me.node_id), ("10.0.0.50:7447",))
            assert await others[2].locate(bytes(me.node_id)) == ("10.0.0.50:7447",)
            can_be_dialled[0] = True
            await until(lambda: known() == 5)
            assert dht.stats()["records_own"] == 0
        nursery.cancel_scope.cancel()


async def test_providers_of_a_run_and_a_block(autojump_clock: MockClock) -> None:
    from dht.provider import Kind

    net = FakeNet()
    points = [net.add(n) for n in range(1, 5)]
    async with trio.open_nursery() as nursery:
        dhts: list[Dht] = [await nursery.start(serve, point, points[0]) for point in points]
        for dht in dhts[1:]:
            await dht.provide(Kind.RUN, b"r" * 32, ["10.0.0.9:1"])
        await dhts[0].provide(Kind.BLOCK, b"b" * 32, ["10.0.0.8:1"])
        found = await dhts[0].providers(Kind.RUN, b"r" * 32)
        assert {each.node_id for each in found} == {bytes(p.node_id) for p in points[1:]}
        assert all(each.addresses == ("10.0.0.9:1",) for each in found)
        (holder,) = await dhts[2].providers(Kind.BLOCK, b"b" * 32)
        assert holder.node_id == bytes(points[0].node_id)
        assert await dhts[2].providers(Kind.BLOCK, b"r" * 32) == []
        assert dhts[1].withdraw_provided(Kind.RUN, b"r" * 32) is True
        assert await dhts[1].locate(bytes(32)) == ()
        nursery.cancel_scope.cancel()
