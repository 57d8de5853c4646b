"""The handshake over a stream: one deadline, clean failures, no descriptor left; sealed records."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.transport.nodes import SWARM, identity, seeded_bytes
from tests.trusted import FOREIGN, shaking
from transport.address import Address
from transport.errors import (
    ConnectionBroken,
    HandshakeFailed,
    HandshakeTimeout,
    NotNoded,
    RecordError,
    WrongPeer,
    WrongSwarm,
)
from transport.identity import NodeId
from transport.network import RawStream
from transport.secure.handshake import Handshake, HandshakeResult, Intro
from transport.secure.link import (
    RECEIVE_BYTES,
    REST_AFTER_S,
    SEND_BYTES,
    SecureLink,
    shake_hands,
)
from transport.secure.record import MAX_RECORD_BYTES, REKEY_AGE_S, RecordKind
from transport.simulated.memory import LinkSettings, MemoryNetwork
from transport.swarm import Swarm


async def raw_pair(world: MemoryNetwork) -> tuple[RawStream, RawStream]:
    listener = await world.host("10.0.0.2").listen(Address("10.0.0.2", 7))
    client = await world.host("10.0.0.1").connect(listener.address)
    server = await listener.accept()
    await listener.aclose()
    return client, server


def side(
    role: str, number: int, *, swarm: Swarm = SWARM, expected: NodeId | None = None
) -> Handshake:
    return Handshake(
        role="initiator" if role == "initiator" else "responder",
        **shaking(identity(number), swarm),
        intro=Intro(name=f"node-{number}"),
        random_bytes=seeded_bytes(role, number),
        expected=expected,
    )


async def links(world: MemoryNetwork) -> tuple[SecureLink, SecureLink]:
    client, server = await raw_pair(world)
    results: dict[str, HandshakeResult] = {}

    async def run(name: str, raw: RawStream, handshake: Handshake) -> None:
        results[name] = await shake_hands(raw, handshake, deadline=trio.current_time() + 60)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, "client", client, side("initiator", 1))
        nursery.start_soon(run, "server", server, side("responder", 2))
    assert results["client"].node_id == identity(2).node_id
    assert results["server"].node_id == identity(1).node_id
    return SecureLink(client, results["client"]), SecureLink(server, results["server"])


@pytest.mark.parametrize("split", [0.0, 1.0])
async def test_records_of_all_sizes_arrive(split: float, autojump_clock: object) -> None:
    a, b = await links(MemoryNetwork(1, default=LinkSettings(split=split)))
    sizes = [0, 1, 5, 1000, RECEIVE_BYTES, 3 * RECEIVE_BYTES, 7]
    if not split:
        sizes.append(MAX_RECORD_BYTES)

    async def send() -> None:
        for number, size in enumerate(sizes):
            await a.send(RecordKind.DATA, bytes([number]) * size)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        for number, size in enumerate(sizes):
            kind, plaintext = await b.receive()
            assert kind == RecordKind.DATA
            assert plaintext == bytes([number]) * size
    assert b.bytes_received == a.bytes_sent
    assert len(b._buffer) > RECEIVE_BYTES
    for _ in range(2):  # a burst leaves no large buffers behind, a second later
        await trio.sleep(REST_AFTER_S + 0.1)
        await a.send(RecordKind.DATA, b"heartbeat")
        assert (await b.receive())[1] == b"heartbeat"
    assert len(b._buffer) == RECEIVE_BYTES
    assert len(a._out) == SEND_BYTES


async def test_what_a_network_does_not_take_at_once_leaves_before_the_next_record(
    autojump_clock: object,
) -> None:
    a, b = await links(MemoryNetwork(1))
    assert not a.can_send_now
    a.send_now(RecordKind.DATA, b"one", b"-", b"two")
    assert a.unsent
    assert a.bytes_sent == 0
    await a.send(RecordKind.DATA, b"next")
    assert not a.unsent
    assert (await b.receive())[1] == b"one-two"
    assert (await b.receive())[1] == b"next"
    a.send_now(RecordKind.DATA, b"last")
    await a.flush()
    assert (await b.receive())[1] == b"last"
    assert b.bytes_received == a.bytes_sent


async def test_a_cut_differs_from_a_goodbye_and_damage_from_both(autojump_clock: object) -> None:
    a, b = await links(MemoryNetwork(1))
    await a.send(RecordKind.CLOSE, b"")
    assert (await b.receive())[0] == RecordKind.CLOSE
    await a.raw.aclose()
    with pytest.raises(ConnectionBroken, match="cut"):
        await b.receive()
    a, b = await links(MemoryNetwork(1))
    await a.raw.send_all(b"\0\0\0\1\0" + bytes(17))
    with pytest.raises(RecordError):
        await b.receive()
    a, b = await links(MemoryNetwork(1))
    b.abort()
    with pytest.raises(ConnectionBroken, match="closed here"):
        await b.receive()
    with pytest.raises(ConnectionBroken):
        await b.send(RecordKind.DATA, b"x")


async def test_a_cancelled_receive_loses_nothing_a_cancelled_send_kills(
    autojump_clock: object,
) -> None:
    a, b = await links(MemoryNetwork(1, window_bytes=10_000))
    with trio.move_on_after(1) as scope:
        await b.receive()
    assert scope.cancelled_caught
    with trio.move_on_after(1) as scope:
        await a.send(RecordKind.DATA, bytes(20_000))
    assert scope.cancelled_caught
    with pytest.raises(ConnectionBroken):
        await a.send(RecordKind.DATA, b"x")
    with pytest.raises(ConnectionBroken):
        await b.receive()


async def refused(
    initiator: Handshake, responder: Handshake
) -> tuple[HandshakeFailed | ConnectionBroken, HandshakeFailed | ConnectionBroken]:
    world = MemoryNetwork(1)
    client, server = await raw_pair(world)
    errors: dict[str, HandshakeFailed | ConnectionBroken] = {}

    async def run(name: str, raw: RawStream, handshake: Handshake) -> None:
        with pytest.raises((HandshakeFailed, ConnectionBroken)) as caught:
            await shake_hands(raw, handshake, deadline=trio.current_time() + 60)
        errors[name] = caught.value

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, "client", client, initiator)
        nursery.start_soon(run, "server", server, responder)
    assert world.open_connections == 0
    return errors["client"], errors["server"]


async def test_both_sides_learn_that_the_swarms_differ(autojump_clock: object) -> None:
    ours, theirs = await refused(side("initiator", 1), side("responder", 2, swarm=FOREIGN))
    assert isinstance(ours, WrongSwarm)
    assert isinstance(theirs, WrongSwarm)


async def test_the_wrong_node_is_told_nothing(autojump_clock: object) -> None:
    ours, theirs = await refused(
        side("initiator", 1, expected=identity(3).node_id), side("responder", 2)
    )
    assert isinstance(ours, WrongPeer)
    assert "during the handshake" in str(theirs)


async def test_garbage_silence_and_hanging_up(autojump_clock: object) -> None:
    for behaviour in ("garbage", "silence", "drip", "hang up", "reset"):
        world = MemoryNetwork(1)
        client, server = await raw_pair(world)

        async def misbehave(raw: RawStream = client, behaviour: str = behaviour) -> None:
            if behaviour == "garbage":
                await raw.send_all(b"SSH-2.0-OpenSSH\r\n")
            elif behaviour == "drip":
                for byte in side("initiator", 1).outgoing():
                    await raw.send_all(bytes([byte]))
                    await trio.sleep(1)
            elif behaviour == "hang up":
                await raw.aclose()
            elif behaviour == "reset":
                raw.abort()

        expected: dict[str, type[Exception]] = {
            "garbage": NotNoded,
            "silence": HandshakeTimeout,
            "drip": HandshakeTimeout,
            "hang up": HandshakeFailed,
            "reset": ConnectionBroken,
        }
        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(misbehave)
            with pytest.raises(expected[behaviour]):
                await shake_hands(server, side("responder", 2), deadline=start + 5)
            nursery.cancel_scope.cancel()
        assert trio.current_time() - start <= 5.001
        client.abort()
        assert world.open_connections == 0


async def test_the_last_message_waits_for_consent(autojump_clock: object) -> None:
    world = MemoryNetwork(1)
    client, server = await raw_pair(world)

    async def responder() -> None:
        with pytest.raises((HandshakeFailed, ConnectionBroken)):
            await shake_hands(server, side("responder", 2), deadline=trio.current_time() + 5)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(responder)
        handshake = side("initiator", 1)
        with pytest.raises(HandshakeFailed, match="faster"):
            await shake_hands(
                client, handshake, deadline=trio.current_time() + 5, commit=lambda: False
            )
    assert handshake.result is not None
    assert world.open_connections == 0


async def test_cancelling_closes_the_stream(autojump_clock: object) -> None:
    world = MemoryNetwork(1)
    client, server = await raw_pair(world)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            lambda: shake_hands(server, side("responder", 2), deadline=trio.current_time() + 5)
        )
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    with pytest.raises(trio.BrokenResourceError):
        await client.receive_into(memoryview(bytearray(1)))
    assert world.open_connections == 0


async def test_a_key_is_replaced_after_an_hour_in_each_direction(autojump_clock: object) -> None:
    a, b = await links(MemoryNetwork(1))
    keys = {a._sealer._key, b._sealer._key}
    for sender, receiver in ((a, b), (b, a), (a, b)):
        await sender.send(RecordKind.DATA, b"x")
        assert await receiver.receive() == (RecordKind.DATA, b"x")
        await trio.sleep(REKEY_AGE_S + 1)
        await sender.send(RecordKind.DATA, b"y")
        await sender.send(RecordKind.DATA, b"z")
        for expected in (b"y", b"z"):
            assert await receiver.receive() == (RecordKind.DATA, expected)
        assert sender._sealer._key == receiver._opener._key
        keys.add(sender._sealer._key)
    assert len(keys) == 5
    assert b.bytes_received == a.bytes_sent


async def test_what_was_peeked_is_received_next(autojump_clock: object) -> None:
    a, b = await links(MemoryNetwork(1))
    with trio.move_on_after(1) as scope:
        await b.peek()
    assert scope.cancelled_caught
    await a.send(RecordKind.SWITCH, b"one")
    await a.send(RecordKind.DATA, b"two")
    assert await b.peek() == (RecordKind.SWITCH, b"one")
    assert await b.receive() == (RecordKind.SWITCH, b"one")
    assert await b.receive() == (RecordKind.DATA, b"two")
    assert b.buffered == 0
