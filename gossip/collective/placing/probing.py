"""Measuring the links that no operation has used, at the beginning of an epoch (trio driver).

Member r sends to r+1 in the first turn, to r+2 in the second, and so on: in each turn every member sends to one and receives
from one, so that what is measured is a link and not the sharing of one. Turns are told apart by the clock alone, which
all start when they enter the epoch, a few milliseconds apart. A turn ends after TURN_BYTES or SENDING_S, whichever is first;
a slow line is so measured with what it carries in that time.

This is no operation: nothing is agreed on, nothing can fail, and a member that does not take part is measured by nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Final

import trio

from gossip.collective.links.mesh import MAX_LANES, Lane
from gossip.collective.placing.rhythm import Measure
from gossip.errors import GossipError
from transport.errors import TransportError

PROBE_LANE: Final = MAX_LANES - 1
"""No operation runs in it."""
TURN_S: Final = 0.5
SENDING_S: Final = 0.3
TURN_BYTES: Final = 8 << 20
BLOCK_BYTES: Final = 1 << 16
LEAST_BYTES: Final = 3 * BLOCK_BYTES
"""Of a measurement; less was cut off, and says little."""
SETTLE_S: Final = 0.1
_MORE, _LAST = b"probe more", b"probe last"


async def probe(lane: Lane, on_measure: Callable[[Measure], None]) -> None:
    """Measure every link to and from this member once, in N - 1 turns.

    `on_measure` hears what each link from it carried. Cancellation ends it at once; the lane is not used again.
    """
    with trio.move_on_after(lane.world * TURN_S + TURN_S):
        async with trio.open_nursery() as nursery:
            for rank in range(lane.world):
                if rank != lane.rank:
                    nursery.start_soon(_receive, lane, rank)
            begun = trio.current_time()
            for turn in range(1, lane.world):
                await trio.sleep_until(begun + (turn - 1) * TURN_S)
                nursery.start_soon(_send, lane, (lane.rank + turn) % lane.world, on_measure)


async def _send(lane: Lane, rank: int, on_measure: Callable[[Measure], None]) -> None:
    """One turn: as much as goes, and not more than TURN_BYTES."""
    block = bytes(BLOCK_BYTES)
    try:
        link = await lane.to(rank)
        until = trio.current_time() + SENDING_S
        for _ in range(TURN_BYTES // BLOCK_BYTES - 1):
            if trio.current_time() >= until:
                break
            await link.send(_MORE, block)
        await link.send(_LAST, block)
        await trio.sleep(SETTLE_S)  # what is left in the kernel's buffers arrives
        seconds, size = link.take_measure()
    except (TransportError, GossipError):
        return  # whoever watches the members hears of it, too
    if size >= LEAST_BYTES:
        members = lane.epoch.members
        on_measure(Measure(members[lane.rank], members[rank], seconds, size))


async def _receive(lane: Lane, rank: int) -> None:
    scratch = memoryview(bytearray(BLOCK_BYTES))
    with suppress(TransportError, GossipError):
        link = await lane.from_(rank)
        header = b""
        while header != _LAST:
            header, size = await link.receive_head(BLOCK_BYTES)
            await link.receive_data(scratch[:size])
