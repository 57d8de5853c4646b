"""One operation's traffic at one member: what it posts to the others, and what it takes from them in turn (trio driver).

Algorithms are written as one sequence of receptions, with posts between them that never wait; see
`gossip.collective.links.outbox` for why.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import attrs
import trio

from gossip.collective.call import Call
from gossip.collective.links.buffers import Workspace
from gossip.collective.links.outbox import Outbox, Transfer
from gossip.collective.links.segment import Place, read_head, write_head
from gossip.errors import CollectiveAborted
from transport.bulk.striped import AnyLink
from transport.identity import NodeId
from transport.stretch import Stretch

STALL_S: Final = 20.0
"""Longest wait for the next transfer of a member that has begun: half a MiB in that time is 26 KiB/s, no link to
reduce over. One that has not begun is waited for as long as the epoch lasts."""


@attrs.frozen
class Links:
    """Links between one member and those it talks to in an operation.

    Attributes:
        names: all members that take part, in the order in which everybody adds.
        rank: this member's index among them.
        out: links on which it sends, by index of the receiver.
        into: links on which it receives, by index of the sender.
        workspace: of whoever has the links, one operation at a time.
    """

    names: tuple[NodeId, ...]
    rank: int
    out: Mapping[int, AnyLink]
    into: Mapping[int, AnyLink]
    workspace: Workspace = attrs.field(factory=Workspace, eq=False)

    @property
    def world(self) -> int:
        """How many members take part."""
        return len(self.names)

    def among(self, ranks: Sequence[int]) -> Links:
        """The same links as those of a smaller group, which this member is in, in this order."""
        return Links(
            tuple(self.names[rank] for rank in ranks),
            list(ranks).index(self.rank),
            {new: self.out[old] for new, old in enumerate(ranks) if old in self.out},
            {new: self.into[old] for new, old in enumerate(ranks) if old in self.into},
            self.workspace,
        )


class Exchange:
    """Sends and receives transfers of one operation.

    Args:
        links: to whoever it talks to.
        call: which operation it is.
        nursery: for what cannot leave at once; the operation is over when it is empty.
        stage: added to every phase, for an operation that consists of several.
    """

    def __init__(self, links: Links, call: Call, nursery: trio.Nursery, stage: int = 0) -> None:
        self.links = links
        self.call = call
        self._stage = stage
        self._outboxes = {rank: Outbox(link, nursery) for rank, link in links.out.items()}
        self._begun: set[int] = set()
        self._stretch = Stretch()
        self._stretch.begin()

    def head(self, place: Place, weight: float = 0.0, digest: bytes = b"") -> bytes:
        """The head of a transfer."""
        at = place._replace(phase=place.phase + self._stage)
        return write_head(self.call.sequence, self.call.descriptor, at, weight, digest)

    def post(self, rank: int, transfers: Iterator[Transfer]) -> None:
        """Send these to a member, after all that was posted to it before."""
        self._outboxes[rank].post(transfers)

    async def receive_head(self, rank: int, place: Place) -> tuple[float, bytes, int]:
        """Wait for the next transfer of a member, which must be the one of that place.

        Returns:
            Its weight, its digest (perhaps empty) and the size of the payload, which `receive_data` takes.

        Raises:
            DescriptorMismatch, CollectiveAborted: it is another one, or does not come.
            LinkClosed: the link broke.
        """
        link = self.links.into[rank]
        if rank in self._begun:
            with trio.move_on_after(STALL_S) as patience:
                header, size = await link.receive_head()
            if patience.cancelled_caught:
                name = self.links.names[rank].short
                raise CollectiveAborted(f"no data from {name} for {STALL_S:.0f} s")
        else:
            header, size = await link.receive_head()
            self._begun.add(rank)
            self._stretch.begin()  # mostly others ran meanwhile
        found, weight, digest = read_head(self.call.sequence, self.call.descriptor, header)
        if found != place._replace(phase=place.phase + self._stage):
            raise CollectiveAborted("a member is at another place of the operation")
        return weight, digest, size

    async def let_others_run(self) -> None:
        """Between two pieces of work on what is there already: other tasks wait for a millisecond, and not for all of it.

        Cancellable.
        """
        if self._stretch.hogs():
            await trio.lowlevel.checkpoint()
            self._stretch.begin()

    async def receive_data(self, rank: int, memory: memoryview) -> None:
        """Receive the payload of the transfer whose head was received last.

        Raises:
            LinkClosed: the link broke.
        """
        if memory.nbytes:
            await self.links.into[rank].receive_data(memory)
