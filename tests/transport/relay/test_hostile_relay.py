"""A relay that wants to harm: whatever it does to the bytes, the ends notice and nothing wrong is delivered."""

import random

import pytest
import trio

from tests.transport.relay.worlds import HostileRelay, Mangle, World, via, world
from transport.errors import PeerLost, PeerUnreachable, RemoteCallFailed, TransportError
from transport.peer import Peer

CANARY = b"nobody but the other end may read this: " + bytes(range(200))


def honest(_direction: str, _number: int, data: bytes) -> bytes:
    return data


async def talk(w: World, relay: HostileRelay, rounds: int = 30) -> tuple[int, str]:
    """Call over the circuit until it breaks; return how many calls went well, and the reason of the break.

    Every answer and every request that arrives is compared with what was sent.
    """
    asked: list[bytes] = []

    async def reverse(_peer: Peer, request: bytes) -> bytes:
        assert request == asked[-1]
        return request[::-1]

    w.endpoints[1].serve_calls("reverse", reverse)
    await w.reserved(1)
    done = 0
    try:
        with trio.fail_after(60):
            peer = await w.endpoints[0].connect(
                w.clients[1].addresses, expected=w.endpoints[1].node_id
            )
            for number in range(rounds):
                asked.append(CANARY + number.to_bytes(4, "big") * 500)
                assert await peer.call("reverse", asked[-1]) == asked[-1][::-1]
                done += 1
                await trio.sleep(0.2)
    except (PeerLost, PeerUnreachable, RemoteCallFailed) as error:
        return done, str(error)
    finally:
        assert relay.seen
        assert CANARY[:24] not in b"".join(data for _, data in relay.seen)
    return done, ""


async def hostile(mangle: Mangle, delay_s: float = 0.0) -> tuple[int, str]:
    async with world(serve=False) as w:
        return await talk(w, HostileRelay(w.relays[0], mangle, delay_s))


async def test_an_unchanged_relay_passes_everything(autojump_clock: object) -> None:
    assert await hostile(honest) == (30, "")


@pytest.mark.parametrize("direction", ["out", "back"])
@pytest.mark.parametrize("chunk", [0, 1, 2, 7, 20])
async def test_flipped_bits_break_the_circuit(
    autojump_clock: object, direction: str, chunk: int
) -> None:
    rng = random.Random(f"{direction}{chunk}")

    def flip(way: str, number: int, data: bytes) -> bytes:
        if way != direction or number != chunk:
            return data
        place = rng.randrange(len(data))
        return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]

    done, reason = await hostile(flip)
    assert done < 30
    assert reason


@pytest.mark.parametrize("direction", ["out", "back"])
@pytest.mark.parametrize("what", ["drop", "repeat", "swap", "cut short", "inject", "reflect"])
async def test_chunks_that_go_astray_break_the_circuit(
    autojump_clock: object, direction: str, what: str
) -> None:
    kept: list[bytes] = []

    def astray(way: str, number: int, data: bytes) -> bytes:
        if way != direction:
            kept.append(data)
            return data
        if number < 6:
            return data
        match what:
            case "drop":
                return b"" if number == 6 else data
            case "repeat":
                return data + data if number == 6 else data
            case "swap":
                if number == 6:
                    kept.append(data)
                    return b""
                return data + kept.pop() if number == 7 else data
            case "cut short":
                return data[:-1] if number == 6 else data
            case "inject":
                return b"\x00\x00\x00\x05\x00" + bytes(21) + data if number == 6 else data
            case _:  # what the other side itself sent, back to it
                return kept[-1] if number == 6 else data

    done, reason = await hostile(astray)
    assert done < 30
    assert reason


async def test_an_old_circuit_replayed_is_no_connection(autojump_clock: object) -> None:
    """The recorded bytes of a whole earlier circuit, sent to the target again, get nobody in."""
    async with world(serve=False, clients=3) as w:
        relay = HostileRelay(w.relays[0], honest)
        await talk(w, relay, rounds=3)
        recorded = [data for way, data in relay.seen if way == "out"]
        w.endpoints[0].peers[w.endpoints[1].node_id].close("")
        await trio.sleep(2)

        def replay(way: str, number: int, data: bytes) -> bytes:
            if way == "back":
                return b""
            return b"".join(recorded) if number == 0 else b""

        relay._mangle = replay
        with pytest.raises(PeerUnreachable):
            await w.endpoints[2].connect(w.clients[1].addresses, expected=w.endpoints[1].node_id)
        assert set(w.endpoints[1].peers) == {w.relays[0].node_id}
        assert w.endpoints[1].counters["handshake-replayed"] >= 1


async def test_a_slow_relay_is_only_slow(autojump_clock: object) -> None:
    assert await hostile(honest, delay_s=0.05) == (30, "")


async def test_a_relay_that_goes_silent_is_noticed(autojump_clock: object) -> None:
    begun = 0.0

    def silence(_way: str, number: int, data: bytes) -> bytes:
        nonlocal begun
        begun = begun or trio.current_time()
        return data if number < 10 else b""

    _, reason = await hostile(silence)
    assert reason
    assert trio.current_time() - begun < 15


async def test_a_relay_that_cuts_is_noticed_at_once(autojump_clock: object) -> None:
    done, reason = await hostile(lambda _way, number, data: data if number < 12 else None)
    assert 0 < done < 30
    assert "reset" in reason


async def test_a_relay_cannot_lead_to_somebody_else(autojump_clock: object) -> None:
    async with world(serve=False, clients=3) as w:
        relay = HostileRelay(w.relays[0], honest)
        await w.reserved(1)
        await w.reserved(2)
        relay.divert = lambda _request: w.endpoints[2].node_id
        with pytest.raises(PeerUnreachable, match=r"expected nd-\S+, found nd-"):
            await w.endpoints[0].connect([via(w.relays[0])], expected=w.endpoints[1].node_id)
        assert not set(w.endpoints[0].peers) & {e.node_id for e in w.endpoints}


async def test_a_relay_that_stuffs_rubbish_into_its_messages(autojump_clock: object) -> None:
    """Answers that do not parse, or that never come, are typed refusals, not hangs or crashes."""
    for rubbish in (b"", b"\xc1", b"\x81\xa4type\xa7granted", bytes(1025), None):
        async with world(serve=False) as w:

            async def answer(_peer: Peer, _request: bytes, say: bytes | None = rubbish) -> bytes:
                if say is None:
                    await trio.sleep_forever()
                    raise AssertionError
                return say

            async def connect(stream: object, say: bytes | None = rubbish) -> None:
                if say is not None:
                    await stream.send_message(say)  # type: ignore[attr-defined]
                await trio.sleep(100)

            w.relays[0].serve_calls("relay/reserve", answer)
            w.relays[0].serve("relay/connect", connect)
            client = w.clients[0]
            client.candidates.add(via(w.relays[0]))
            with trio.move_on_after(12):
                await client.run()
            entry = client.candidates.get(w.relays[0].node_id)
            assert entry is not None
            assert entry.failures >= 1
            assert client.addresses == ()
            begun = trio.current_time()
            with pytest.raises(TransportError, match=r"makes no sense|no answer"):
                await client.circuit(via(w.relays[0]), w.endpoints[1].node_id)
            assert trio.current_time() - begun < 6
            assert not w.endpoints[0].counters["handler-failed"]
