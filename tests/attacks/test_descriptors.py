"""128 descriptors and 500 dials: those connected stay, the rest are turned away, and afterwards everything is as before."""

import socket

import pytest
import trio

from tests.attacks.rig import JOIN_S, OPEN_TO_ALL, PATIENCE_S, friend, victim

pytestmark = pytest.mark.real

DIALS = 500
LIMITS = {
    **OPEN_TO_ALL,
    "pending_handshakes": 4000,
    "pending_handshakes_per_source": 4000,
    "unauthenticated_memory_bytes": 1 << 27,
}
"""The gate wide open, so that the descriptors run out first."""


async def test_five_hundred_dials_with_128_descriptors() -> None:
    async with victim(nofile=128, limits=LIMITS) as target:
        clients: list[socket.socket] = []
        try:
            with trio.fail_after(PATIENCE_S):
                async with friend(target) as peer:
                    before = await target.about()
                    for _ in range(DIALS):
                        sock = socket.socket()
                        clients.append(sock)
                        sock.setblocking(False)
                        sock.connect_ex((target.address.host, target.address.port))
                    await target.until(accept_emfile=100)
                    for _ in range(20):
                        assert await peer.call("echo", b"alive") == b"alive"
                    for sock in clients:
                        sock.close()
                    while (await target.about())["descriptors"] > before["descriptors"]:
                        await trio.sleep(0.02)
                    with trio.fail_after(JOIN_S):
                        await target.join()
        finally:
            for sock in clients:
                sock.close()
