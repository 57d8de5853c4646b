"""A relayed connection between two endpoints: a third place that copies bytes, without a relay's rules."""

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

import trio

from transport.address import Address
from transport.endpoint import Endpoint
from transport.network import Network, Path, RawStream
from transport.punch.puncher import Puncher
from transport.punch.targets import IPInterface
from transport.reach.observed import Observations


@asynccontextmanager
async def relayed(
    a: Endpoint,
    b: Endpoint,
    third: Network,
    place: Address,
    *,
    interfaces: Callable[[], Iterable[IPInterface]] = tuple,
) -> AsyncIterator[tuple[Puncher, Puncher]]:
    """Connect `a` to `b` through `place`; each learns there at which address it is seen."""
    listener = await third.listen(place)
    raws: list[RawStream] = []
    ends: list[RawStream] = []
    punchers: list[Puncher] = []
    for endpoint in (a, b):
        raw = await endpoint.network.connect(listener.address, source=endpoint.addresses[0])
        raw.path = Path.RELAYED
        raws.append(raw)
        ends.append(await listener.accept())
        observations = Observations()
        observations.note(
            *(endpoint.node_id, place.host, ends[-1].remote, trio.current_time()),
            from_listener=True,
        )
        punchers.append(Puncher(endpoint, observations, interfaces=interfaces))

    async def dial(_address: Address, _expected: object) -> RawStream:
        return raws[0]

    a.relay_dialer = dial
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_copy, ends[0], ends[1])
        nursery.start_soon(_copy, ends[1], ends[0])
        nursery.start_soon(b.take_inbound, raws[1])
        via = Address(listener.address.host, listener.address.port, str(a.node_id))
        with b.watch() as events:
            await a.connect([via], expected=b.node_id)
            if a.node_id not in b.peers:
                await events.receive()
        yield punchers[0], punchers[1]
        nursery.cancel_scope.cancel()
    await listener.aclose()


async def _copy(source: RawStream, sink: RawStream) -> None:
    buffer = memoryview(bytearray(1 << 16))
    try:
        while count := await source.receive_into(buffer):
            await sink.send_all(buffer[:count])
        await sink.aclose()  # in order: the last bytes are still under way
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        sink.abort()
    except BaseException:
        source.abort()
        sink.abort()
        raise
