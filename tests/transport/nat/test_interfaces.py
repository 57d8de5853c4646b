"""Addresses of this machine: netlink bytes by hand, and the real kernel in a namespace."""

import json
import socket
import struct
import subprocess
import sys
from contextlib import aclosing
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tests.transport.nat.namespaces import missing, namespaces
from transport.address_kinds import AddressKind
from transport.errors import MalformedMessage
from transport.reach import interfaces, netlink
from transport.reach.interfaces import changes, local_addresses

ROOT = Path(__file__).parents[3]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="netlink is of Linux")
REASON = missing() if sys.platform == "linux" else "needs Linux"
NAMESPACES = pytest.mark.skipif(bool(REASON), reason=REASON)


def attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def test_a_dump_request_is_header_and_empty_body():
    assert netlink.dump_request(netlink.RTM_GETADDR, 7) == struct.pack(
        "=IHHIIBBBBI", 24, 22, 0x301, 7, 0, 0, 0, 0, 0, 0
    )
    assert len(netlink.dump_request(netlink.RTM_GETLINK, 7)) == 32


def test_messages_are_cut_at_their_lengths():
    one = struct.pack("=IHHII", 19, 20, 2, 7, 0) + b"abc" + b"\0"  # padded to four
    two = struct.pack("=IHHII", 16, 3, 2, 7, 0)
    assert list(netlink.messages(one + two)) == [(20, 7, b"abc"), (3, 7, b"")]


@pytest.mark.parametrize("length", [0, 15, 21, 2**32 - 1])
def test_a_message_of_impossible_length_is_refused(length):
    data = struct.pack("=IHHII", length, 20, 2, 7, 0) + bytes(4)
    with pytest.raises(MalformedMessage):
        list(netlink.messages(data))


def test_a_link_is_read():
    body = struct.pack("=BxHiII", 0, 1, 3, 0x1003, 0) + attribute(3, b"eth0\0")
    assert netlink.parse_link(body) == netlink.Link(3, "eth0", up=True)


def test_an_address_is_read_with_its_wide_flags():
    body = struct.pack("=BBBBI", socket.AF_INET6, 64, 0x80, 0, 3)
    body += attribute(1, socket.inet_pton(socket.AF_INET6, "2a00::1"))
    body += attribute(8, struct.pack("=I", 0x101))
    assert netlink.parse_address(body) == netlink.InterfaceAddress(3, "2a00::1", 64, 0x101)


def test_on_a_point_to_point_link_ours_is_the_local_end():
    body = struct.pack("=BBBBI", socket.AF_INET, 32, 0x80, 0, 3)
    body += attribute(1, bytes([10, 8, 0, 1])) + attribute(2, bytes([10, 8, 0, 6]))
    assert netlink.parse_address(body) == netlink.InterfaceAddress(3, "10.8.0.6", 32, 0x80)


def test_other_families_are_skipped_and_wrong_sizes_refused():
    assert netlink.parse_address(struct.pack("=BBBBI", 28, 0, 0, 0, 3)) is None
    for body in (b"", struct.pack("=BBBBI", 2, 32, 0, 0, 3) + attribute(2, b"abc")):
        with pytest.raises(MalformedMessage):
            netlink.parse_address(body)


@given(st.binary(max_size=120))
def test_garbage_raises_what_is_promised_and_nothing_else(data):
    for parse in (
        lambda d: list(netlink.messages(d)),
        netlink.parse_link,
        netlink.parse_address,
        lambda d: netlink.parse_address(b"\x02\x20\0\0\1\0\0\0" + d),
    ):
        try:
            parse(data)
        except MalformedMessage:
            pass


@LINUX
def test_this_machine_has_a_loopback_address_only_when_asked():
    everything = local_addresses(loopback=True, link_local=True)
    assert any(one.host == "127.0.0.1" and one.interface == "lo" for one in everything)
    kinds = {one.kind for one in local_addresses()}
    assert not kinds & {AddressKind.LOOPBACK, AddressKind.LINK_LOCAL}


@LINUX
async def test_the_first_look_comes_at_once():
    with trio.fail_after(1):
        async with aclosing(changes()) as news:
            async for _ in news:
                break


async def test_without_netlink_the_word_comes_by_the_clock(monkeypatch, autojump_clock):
    monkeypatch.setattr(interfaces, "_subscribe", lambda: None)
    begin, times = trio.current_time(), []
    async with aclosing(changes()) as news:
        async for _ in news:
            times.append(trio.current_time() - begin)
            if len(times) == 3:
                break
    assert times == [0, interfaces.POLL_S, 2 * interfaces.POLL_S]


def test_without_netlink_there_are_no_addresses(monkeypatch):
    def refuse():
        raise OSError("not allowed")

    monkeypatch.setattr(interfaces, "_dump", refuse)
    assert local_addresses() == []


SHOW = """
import json
from transport.reach.interfaces import local_addresses
print(json.dumps([[a.host, a.interface, a.kind, a.deprecated] for a in local_addresses(link_local=True)]))
"""

WATCH = """
import trio
from transport.reach.interfaces import changes, local_addresses
async def main():
    async for _ in changes(debounce_s=0.2):
        print(" ".join(a.host for a in local_addresses()) or "none", flush=True)
trio.run(main)
"""


@NAMESPACES
@pytest.mark.real
def test_kinds_states_and_order_as_the_kernel_has_them():
    with namespaces("kinds") as (space,):
        space.ip("link add eth0 type veth peer name eth1")
        space.ip("link add down0 type veth peer name down1")
        space.ip("addr add 10.77.0.1/24 dev down0")
        for end in ("eth0", "eth1"):
            space.ip(f"link set {end} addrgenmode none")
            space.ip(f"link set {end} up")
        for one in ("100.64.0.9/10", "192.168.7.1/24", "11.1.1.5/24", "169.254.3.3/16"):
            space.ip(f"addr add {one} dev eth0")
        space.ip("addr add 2a00::5/64 dev eth0 nodad preferred_lft 0")
        space.ip("addr add 2a00::6/64 dev eth0 nodad")
        space.ip("addr add fd00::7/64 dev eth0 nodad")
        space.ip("addr add fe80::8/64 dev eth0 nodad")
        out = subprocess.run(
            space.command(sys.executable, "-c", SHOW),
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert json.loads(out) == [
            ["11.1.1.5", "eth0", "global", False],
            ["2a00::6", "eth0", "global", False],
            ["2a00::5", "eth0", "global", True],
            ["192.168.7.1", "eth0", "private", False],
            ["100.64.0.9", "eth0", "cgnat", False],
            ["fd00::7", "eth0", "ula", False],
            ["169.254.3.3", "eth0", "link-local", False],
            ["fe80::8%eth0", "eth0", "link-local", False],
        ]


@NAMESPACES
@pytest.mark.real
def test_a_new_interface_wakes_who_waits_for_changes():
    with (
        namespaces("watch") as (space,),
        subprocess.Popen(
            space.command(sys.executable, "-c", WATCH), cwd=ROOT, stdout=subprocess.PIPE, text=True
        ) as watcher,
    ):
        try:
            assert watcher.stdout is not None
            assert watcher.stdout.readline() == "none\n"
            space.ip("link add eth0 type veth peer name eth1")
            space.ip("addr add 10.77.0.1/24 dev eth0")
            space.ip("link set eth0 up")
            while (line := watcher.stdout.readline()) != "10.77.0.1\n":
                assert line == "none\n"
            space.ip("link del eth0")
            while (line := watcher.stdout.readline()) != "none\n":
                assert line == "10.77.0.1\n"
        finally:
            watcher.kill()
