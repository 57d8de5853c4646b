"""What strangers may say: garbage, other protocols, lengths of four gigabytes, one byte at a time. Only their connection ends."""

import os
import struct

import pytest
import trio

from tests.attacks.rig import (
    OPEN_TO_ALL,
    PATIENCE_S,
    Victim,
    client,
    friend,
    handshake,
    until_hung_up,
    victim,
)
from transport.secure.handshake import HELLO_BYTES, MAX_HANDSHAKE_BYTES

pytestmark = pytest.mark.real

GREETINGS = {
    "nothing": b"",
    "random": os.urandom(4096),
    "zeros": bytes(100_000),
    "http": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "http post": b"POST /v1/stop HTTP/1.1\r\nHost: x\r\nOrigin: http://evil.example\r\nContent-Length: 2\r\n\r\n{}",
    "http2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "tls": bytes.fromhex("1603010200010001fc0303") + bytes(508),
    "ssh": b"SSH-2.0-OpenSSH_9.6\r\n",
    "socks": b"\x05\x01\x00",
    "bittorrent": b"\x13BitTorrent protocol" + bytes(48),
    "smb": bytes.fromhex("00000054ff534d4272") + bytes(75),
    "redis": b"*1\r\n$4\r\nINFO\r\n",
    "cr lf translated": handshake().outgoing().replace(b"\r\n", b"\n"),
}


async def say(target: Victim, data: bytes, *, eof: bool = True) -> bytes:
    async with client(target.address) as sock:
        try:
            await sock.send(data)
            if eof:
                sock.shutdown(1)
        except OSError:
            pass
        return await until_hung_up(sock)


async def test_other_protocols_get_no_answer() -> None:
    async with victim(limits=OPEN_TO_ALL) as target, friend(target):
        before = await target.about()
        for name, greeting in GREETINGS.items():
            assert await say(target, greeting) == b"", name
        after = await target.until(handshake_not_noded=1)
        assert after["peers"] == before["peers"]
        assert after["descriptors"] == before["descriptors"]
        await target.join()


async def test_the_victim_hangs_up_at_the_first_wrong_byte_by_itself() -> None:
    async with victim(limits={**OPEN_TO_ALL, "handshake_timeout_s": 20.0}) as target:
        with trio.fail_after(10):
            for greeting in (b"G", b"\x93nodeX", GREETINGS["tls"]):
                assert await say(target, greeting, eof=False) == b""


async def test_a_length_over_the_limit_ends_the_handshake_when_it_is_announced() -> None:
    async with victim(limits={**OPEN_TO_ALL, "handshake_timeout_s": 20.0}) as target:
        for length in (65535, MAX_HANDSHAKE_BYTES - HELLO_BYTES - 32 - 16):
            async with client(target.address) as sock:
                await sock.send(handshake().outgoing())
                assert len(await sock.recv(4096)) > HELLO_BYTES
                await sock.send(struct.pack(">H", length))
                with trio.fail_after(10):  # before the deadline of the handshake
                    assert await until_hung_up(sock) == b""
        await target.join()


async def test_one_byte_at_a_time_does_not_outlast_the_deadline() -> None:
    flight = handshake().outgoing()
    async with victim(limits={**OPEN_TO_ALL, "handshake_timeout_s": 1.0}) as target:
        before = await target.about()

        async def dribble() -> None:
            async with client(target.address) as sock:
                with pytest.raises(OSError):  # noqa: PT012
                    for byte in flight:
                        await sock.send(bytes([byte]))
                        await trio.sleep(0.1)

        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(dribble)
            after = await target.until(handshake_handshake_timeout=20)
            assert after["tasks"] == before["tasks"]
            assert after["descriptors"] == before["descriptors"]


async def test_a_client_that_resets_at_once() -> None:
    async with victim(limits=OPEN_TO_ALL) as target, friend(target):
        before = await target.about()
        for _ in range(200):
            async with client(target.address) as sock:
                sock.setsockopt(1, 13, struct.pack("ii", 1, 0))  # SO_LINGER: close(2) sends RST
        await target.join()
        after = await target.until()
        assert after["tasks"] == before["tasks"]
