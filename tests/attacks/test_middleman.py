"""Somebody on the path: edits, cuts, repeats, swaps, returns. What the application sees is a prefix of what was sent, or nothing."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from tests.attacks.rig import LIVELY, OPEN_TO_ALL, PATIENCE_S, Victim, victim
from tests.transport.nodes import identity, node
from tests.trusted import FOREIGN
from transport.address import Address
from transport.errors import PeerUnreachable, TransportError
from transport.secure.handshake import HELLO_BYTES, VERSION
from transport.secure.record import HEADER_BYTES, OVERHEAD_BYTES
from transport.tcp import TcpNetwork

pytestmark = pytest.mark.real

FIRST_FLIGHT = HELLO_BYTES + 32 + 16
CALLS = 20

Edit = Callable[[int, list[bytes]], list[bytes]]
"""(number of the unit, what was seen so far with it as the last) -> what is passed on; unit 0 is the handshake's flight."""


class Middleman:
    """A TCP proxy that understands where flights and records end."""

    def __init__(self, target: Address, forth: Edit, back: Edit) -> None:
        self.target = target
        self.edits = {"forth": forth, "back": back}
        self.writers: dict[str, trio.SocketStream] = {}

    async def serve(self, near: trio.SocketStream) -> None:
        far = await trio.open_tcp_stream(self.target.host, self.target.port)
        self.writers = {"forth": far, "back": near}
        async with near, far, trio.open_nursery() as nursery:
            nursery.start_soon(self.carry, near, "forth", nursery.cancel_scope)
            nursery.start_soon(self.carry, far, "back", nursery.cancel_scope)

    async def carry(self, source: trio.SocketStream, way: str, scope: trio.CancelScope) -> None:
        seen: list[bytes] = []
        try:
            reader = Units(source, way)
            while True:
                seen.append(await reader.next())
                for out in self.edits[way](len(seen) - 1, seen):
                    if out.startswith(b"REFLECT"):
                        await self.writers["back"].send_all(out[len(b"REFLECT") :])
                    else:
                        await self.writers[way].send_all(out)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        scope.cancel()


class Units:
    """The flights of one direction, then its records."""

    def __init__(self, source: trio.SocketStream, way: str) -> None:
        self.source = source
        self.way = way
        self.given = 0
        self.kept = bytearray()

    async def read(self, size: int) -> bytes:
        while len(self.kept) < size:
            data = await self.source.receive_some(65536)
            if not data:
                raise trio.BrokenResourceError
            self.kept += data
        piece = bytes(self.kept[:size])
        del self.kept[:size]
        return piece

    async def next(self) -> bytes:
        self.given += 1
        if self.way == "forth" and self.given == 1:
            return await self.read(FIRST_FLIGHT)
        if self.given == (2 if self.way == "forth" else 1):
            head = await self.read(2 if self.way == "forth" else HELLO_BYTES + 2)
            return head + await self.read(int.from_bytes(head[-2:], "big"))
        header = await self.read(HEADER_BYTES)
        length = int.from_bytes(header[:4], "big")
        return header + await self.read(length + OVERHEAD_BYTES - HEADER_BYTES)


def honest(_number: int, seen: list[bytes]) -> list[bytes]:
    return [seen[-1]]


@asynccontextmanager
async def between(
    target: Victim, forth: Edit = honest, back: Edit = honest
) -> AsyncIterator[Address]:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    middleman = Middleman(target.address, forth, back)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, middleman.serve, listeners)
        try:
            yield Address("127.0.0.1", port)
        finally:
            nursery.cancel_scope.cancel()


def at(number: int, edit: Callable[[list[bytes]], list[bytes]]) -> Edit:
    return lambda n, seen: edit(seen) if n == number else [seen[-1]]


def flipped(place: int) -> Callable[[list[bytes]], list[bytes]]:
    def edit(seen: list[bytes]) -> list[bytes]:
        unit = bytearray(seen[-1])
        unit[place] ^= 1
        return [bytes(unit)]

    return edit


def swapped(number: int) -> Edit:
    def edit(n: int, seen: list[bytes]) -> list[bytes]:
        if n == number:
            return []
        return [seen[-1], seen[-2]] if n == number + 1 else [seen[-1]]

    return edit


# Of the records forth (units 0 and 1 are flights) the fourth and later carry calls.
RECORD_ATTACKS: dict[str, Edit] = {
    "replayed": at(6, lambda seen: [seen[-1], seen[-1]]),
    "an old one replayed": at(8, lambda seen: [seen[-1], seen[3]]),
    "replaced by an old one": at(8, lambda seen: [seen[4]]),
    "reordered": swapped(6),
    "left out": at(6, lambda _: []),
    "cut": at(6, lambda seen: [seen[-1][:-1]]),
    "lengthened": at(6, lambda seen: [seen[-1] + b"\0"]),
    "length edited": at(6, flipped(3)),
    "length of 4 GiB": at(6, lambda seen: [b"\xff\xff\xff\xff" + seen[-1][4:]]),
    "length of 1 MiB": at(6, lambda seen: [b"\0\x10\0\0" + seen[-1][4:]]),
    "kind edited": at(6, lambda seen: [seen[-1][:4] + b"\1" + seen[-1][5:]]),
    "unknown kind": at(6, lambda seen: [seen[-1][:4] + b"\xff" + seen[-1][5:]]),
    "ciphertext edited": at(6, flipped(HEADER_BYTES)),
    "tag edited": at(6, flipped(-1)),
    "reflected": at(6, lambda seen: [b"REFLECT" + seen[-1]]),
    "zeros put in": at(6, lambda seen: [bytes(OVERHEAD_BYTES), seen[-1]]),
}


STALLS = {"length of 1 MiB"}
"""What looks like the beginning of something long; whoever can hold bytes back can do the same by holding them back."""


async def test_only_a_prefix_of_what_was_sent_arrives() -> None:
    async with victim(limits=OPEN_TO_ALL) as target:
        expected: list[int] = []
        for number, (name, forth) in enumerate(RECORD_ATTACKS.items()):
            start, acknowledged = 1000 * (number + 1), 0
            async with (
                between(target, forth) as address,
                node(TcpNetwork(), 7, listen=[], limits=LIVELY, seed=number) as member,
            ):
                peer = await member.connect([address], expected=target.node_id)
                with pytest.raises((TransportError, trio.TooSlowError)):  # noqa: PT012
                    for call in range(CALLS):
                        with trio.fail_after(1.0 if name in STALLS else PATIENCE_S):
                            await peer.call("count", (start + call).to_bytes(4, "big"))
                        acknowledged += 1
                    pytest.fail(f"{name}: nobody noticed")
            counted = (await target.about())["counted"]
            mine = [call for call in counted if call >= start]
            assert mine == list(range(start, start + len(mine))), name
            assert acknowledged <= len(mine) <= acknowledged + 1, name
            expected += mine
            assert counted == expected
        await target.join()


async def test_the_other_direction_is_guarded_alike() -> None:
    async with victim(limits=OPEN_TO_ALL) as target:
        names = ("replayed", "reordered", "left out", "cut", "kind edited", "tag edited")
        for number, name in enumerate(names):
            back = RECORD_ATTACKS[name]
            async with (
                between(target, back=back) as address,
                node(TcpNetwork(), 7, listen=[], limits=LIVELY, seed=number) as member,
            ):
                peer = await member.connect([address], expected=target.node_id)
                with pytest.raises(TransportError), trio.fail_after(PATIENCE_S):  # noqa: PT012
                    for call in range(CALLS):
                        echo = (call).to_bytes(4, "big")
                        assert await peer.call("echo", echo) == echo
                    pytest.fail(f"{name}: nobody noticed")


async def test_no_byte_of_any_flight_can_be_edited_on_the_way() -> None:
    limits = {**OPEN_TO_ALL, "handshake_timeout_s": 1.0}
    async with victim(limits=limits) as target:
        before = await target.about()
        for way, unit, size in (("forth", 0, FIRST_FLIGHT), ("back", 0, 250), ("forth", 1, 200)):
            for place in range(0, size, 5):
                if (way, unit) != ("forth", 0) and place in {HELLO_BYTES, HELLO_BYTES + 1, 0, 1}:
                    continue  # lengths: the rest would be waited for, until the deadline
                edit = at(unit, flipped(place))
                edits = {"forth": honest, "back": honest, way: edit}
                async with (
                    between(target, **edits) as address,
                    node(TcpNetwork(), 7, listen=[], limits=LIVELY) as member,
                ):
                    try:
                        peer = await member.connect([address])
                        await peer.call(
                            "echo", b"x"
                        )  # the initiator is done before the last flight is read
                    except TransportError:
                        pass
                    else:
                        pytest.fail(f"{way} {unit} {place}: nobody noticed")
        after = await target.about()
        assert after["peers"] == before["peers"] == 0
        await target.join()


async def test_a_downgrade_is_named_and_refused() -> None:
    async with (
        victim(limits=OPEN_TO_ALL) as target,
        node(TcpNetwork(), 7, listen=[], limits=LIVELY) as member,
    ):
        for version in (0, VERSION + 1, 255):
            edit = at(0, put_version(version))
            async with between(target, back=edit) as address:
                with pytest.raises(PeerUnreachable, match=f"version {version}"):
                    await member.connect([address])
            async with between(target, edit) as address:
                with pytest.raises(PeerUnreachable):
                    await member.connect([address])
        await target.until(handshake_version_mismatch=3)
        await target.join()


def put_version(version: int) -> Callable[[list[bytes]], list[bytes]]:
    return lambda seen: [seen[-1][:8] + bytes([version]) + seen[-1][9:]]


async def test_the_wrong_node_and_the_wrong_swarm() -> None:
    async with victim(limits=OPEN_TO_ALL) as target:
        async with (
            node(TcpNetwork(), 7, listen=[], limits=LIVELY) as member,
            node(TcpNetwork(), 8, listen=[], swarm=FOREIGN) as stranger,
        ):
            with pytest.raises(PeerUnreachable):
                await member.connect([target.address], expected=identity(12345).node_id)
            with pytest.raises(PeerUnreachable, match="another swarm"):
                await stranger.connect([target.address])
        about = await target.until(handshake_wrong_swarm=1)
        assert about["peers"] == 0
