"""One experiment, for kernels and for models: can two hosts meet by dialing each other at once?

Each listens, and connects from where it listens to a meeting point, which sees its public address.
Then both dial what the meeting point saw of the other, again from where they listen; a dial that
fails at once is repeated after a random 20 to 300 ms. Whichever connection carries a byte each
way counts, whether it came from a dial or to a listener.

It needs `transport.network.Network`s only, so it runs over the lab (`PlacedNetwork`) and over
`transport.simulated.memory` alike.
"""

import random
from collections.abc import Sequence
from typing import Any

import attrs
import trio

from tests.lab.namespaces import Namespace, placed
from transport.address import Address
from transport.connect.source import SourceBusy
from transport.errors import ConnectFailed
from transport.network import Network, RawListener, RawStream
from transport.tcp import TcpNetwork

PORT = 7447
GAP_S = (0.02, 0.3)
PATIENCE_S = 5.0


class PlacedNetwork(Network):
    """TCP as a host of the lab has it, in this very process."""

    def __init__(self, namespace: Namespace) -> None:
        self.namespace = namespace
        self._tcp = TcpNetwork()

    async def connect(self, address: Address, *, source: Address | None = None) -> RawStream:
        return await placed(self.namespace, self._tcp.connect(address, source=source))

    async def listen(self, address: Address) -> RawListener:
        return await placed(self.namespace, self._tcp.listen(address))


@attrs.frozen
class Outcome:
    """What came of it.

    Attributes:
        met: whether a direct connection was had.
        how: at the two ends of the connection: "connect" or "accept".
        took_s: from the first dial on.
        seen: the public addresses that the meeting points saw, per host.
    """

    met: bool
    how: tuple[str, ...]
    took_s: float
    seen: tuple[tuple[Address, ...], ...]


@attrs.define
class _Ends:
    """What each side has got, by the connection's two addresses."""

    found: dict[int, list[tuple[str, RawStream]]] = attrs.field(factory=lambda: {0: [], 1: []})
    how: tuple[str, ...] = ()


async def _until_byte(stream: RawStream, side: int) -> None:
    """The two ends of one connection say hello to each other."""
    await stream.send_all(bytes([side]))
    buffer = bytearray(1)
    if await stream.receive_into(memoryview(buffer)) != 1 or buffer[0] == side:
        raise trio.BrokenResourceError("not the other side")


async def meet(
    hosts: Sequence[Network],
    points: Sequence[tuple[Network, Address]],
    *,
    rng: random.Random,
    patience_s: float = PATIENCE_S,
    skew_s: float = 0.0,
    wildcard: str = "0.0.0.0",
) -> Outcome:
    """Run it.

    Args:
        hosts: the two of them.
        points: meeting points; the address that the first one sees is what the other side dials.
        rng: of the gaps.
        patience_s: when to give up.
        skew_s: how much later the second side begins.
        wildcard: what to listen on, which chooses the address family.
    """
    here = Address(wildcard, PORT)
    ends = _Ends()
    async with trio.open_nursery() as nursery:
        doors = [await network.listen(address) for network, address in points]
        listeners = [await host.listen(here) for host in hosts]
        held, seen = [], []
        for host in hosts:
            observed = []
            for door in doors:
                held.append(await host.connect(door.address, source=here))
                stream = await door.accept()
                held.append(stream)
                observed.append(stream.remote)
            seen.append(tuple(observed))
        start = trio.current_time()
        both: list[set[str]] = [set(), set()]
        done = trio.Event()

        async def serve(side: int, how: str, stream: RawStream) -> None:
            held.append(stream)
            try:
                await _until_byte(stream, side)
            except trio.BrokenResourceError:
                return
            both[side].add(how)
            ends.how = (*ends.how, how)
            if all(both):
                done.set()

        async def accept(side: int) -> None:
            while True:
                stream = await listeners[side].accept()
                nursery.start_soon(serve, side, "accept", stream)

        async def dial(side: int) -> None:
            await trio.sleep(skew_s * side)
            while True:
                try:
                    stream = await hosts[side].connect(seen[1 - side][0], source=here)
                except SourceBusy:
                    pass  # the other side's dial is in our listener
                except ConnectFailed:
                    await trio.sleep(rng.uniform(*GAP_S))
                    continue
                else:
                    nursery.start_soon(serve, side, "connect", stream)
                return

        for side in (0, 1):
            nursery.start_soon(accept, side)
            nursery.start_soon(dial, side)
        with trio.move_on_after(patience_s):
            await done.wait()
        took_s = trio.current_time() - start
        nursery.cancel_scope.cancel()
    for thing in held:
        thing.abort()
    closing: list[Any] = [*listeners, *doors]
    for listener in closing:
        await listener.aclose()
    return Outcome(done.is_set(), tuple(sorted(ends.how)), took_s, tuple(seen))
