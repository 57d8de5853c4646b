"""How the members of an epoch are arranged for its operations, as its proposer saw their links (sans-IO).

Everybody has to arrange the members alike, and nobody sees the same measurements at the same moment. So one node decides: the
proposer puts a layout into the epoch it proposes, and all sign it with the rest. A bad one, of a proposer that knows little
or lies, costs speed and nothing else; the next epoch has another proposer.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from gossip.collective.call import Path

Ranks = Annotated[bytes, msgspec.Meta(max_length=256)]


ASSUMED_BYTES_PER_S: Final = 1.25e8
"""Of a path whose rate nobody has measured yet: 1 Gbit/s."""


class Layout(msgspec.Struct, frozen=True, array_like=True):
    """See the module; members are named by their index, one byte each."""

    order: Ranks = b""
    """In which order they stand in a ring; ascending when empty."""
    sites: Ranks = b""
    """At which site each is, counted from 0; empty when that is not known, or all are at one."""
    rtt_us: Annotated[int, msgspec.Meta(ge=0, le=10**8)] = 0
    """Round trip of the slowest path between members; 0 when not known."""
    kib_per_s: Annotated[int, msgspec.Meta(ge=0, le=2**40)] = 0
    """What the slowest link of that ring carries; 0 when not known."""
    probe: bool = False
    """Measure the links that no operation has used, at the epoch's beginning."""

    def fits(self, world: int) -> bool:
        """True when it is a layout of so many members."""
        ordered = not self.order or sorted(self.order) == list(range(world))
        return ordered and (not self.sites or len(self.sites) == world)

    @property
    def packed(self) -> bytes:
        """For the epoch's id: two layouts have the same bytes only if they are equal."""
        return msgspec.msgpack.encode(self)

    @property
    def path(self) -> Path | None:
        """For the choice of an algorithm; None when all are on one machine, or nothing is known."""
        if not self.rtt_us:
            return None
        return Path(self.rtt_us / 1e6, self.kib_per_s * 1024.0 or ASSUMED_BYTES_PER_S)


PLAIN = Layout()
"""Nothing is known: members stand as their ids do."""
