"""The bulk links between the members of one epoch, and the lanes into which they are parted (trio driver).

Problem: algorithms differ in who sends to whom, several operations may run at once, and bytes of an
operation that was given up must never be taken for another's. Idea: a *lane* belongs to one epoch and has links
of its own, one for each direction between two members, opened by the sender when it first sends there; an
operation runs in one lane and a lane runs one operation at a time. The links of a ring in lane 0 are opened as
soon as the epoch is entered, so that the first operation waits for nothing, and so that a member that cannot
reach its neighbour is found before it matters.

Every member takes links from every other one, of any lane, for as long as the epoch lasts: the sender need not
wait until the receiver has begun the same operation. All links of an epoch have one label; the first
transfer on each says which lane it is for::

    header  uint8 lane, uint8 number of the link, uint8 links in all; no payload
    then    the offer of shared memory, see `transport.bulk.shared`

Over a long path lane 0 has several links in each direction, used as one (`transport.bulk.striped`), as many as a line
of 1 Gbit/s needs for its bandwidth-delay product; the sender decides.

Invariants: links are thrown away with their epoch; at most `MAX_LANES` lanes, the same links each way per lane and
member (further ones are refused); a link that cannot be had within `CONNECT_S` is told once, by the member that
dials, and in the ring of lane 0 by the one that waits as well.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from gossip.collective.agreement.certificate import LANES, Epoch
from gossip.collective.links.buffers import Workspace
from gossip.errors import CollectiveAborted, GossipError, InvalidOperation
from transport.budget.scopes import ScopeExceeded
from transport.bulk.link import BulkLink
from transport.bulk.parallel import links_for
from transport.bulk.pool import MAX_LINKS
from transport.bulk.striped import AnyLink, StripedLink
from transport.endpoint import Endpoint
from transport.errors import StreamLimitReached, TransportError
from transport.identity import NodeId
from transport.peer import Peer

CONNECT_S: Final = 5.0
LABEL: Final = b"mesh/"
MAX_LANES: Final = LANES + 1
"""Those of operations, and one for measuring; a lane that is used between two members costs them a connection each way."""
RETRY_S: Final = 1.0
"""Before links of a member are taken again when other users had all places with it."""

_GREETING = struct.Struct(">BBB")

Failure = Callable[[str, tuple[NodeId, ...]], None]


class Lane:
    """Links of one lane of an epoch; made by `Mesh.lane`.

    Attributes:
        epoch: to whose members the links lead.
        number: of the lane.
        rank: this node's index in `epoch.members`.
        world: how many members there are.
        workspace: for its operations, of which there is one at a time.
    """

    def __init__(
        self,
        epoch: Epoch,
        number: int,
        rank: int,
        dial: Callable[[Lane, int], None],
        start: Callable[..., object],
    ) -> None:
        self.epoch = epoch
        self.number = number
        self.rank = rank
        self.world = len(epoch.members)
        self.workspace = Workspace()
        self._dial, self._start = dial, start
        self._out: dict[int, AnyLink] = {}
        self._into: dict[int, AnyLink] = {}
        self._parts: dict[int, dict[int, BulkLink]] = {}  # taken, and not all there yet
        self._dialing: set[int] = set()
        self._changed = trio.Event()
        self._dropped = ""

    async def to(self, rank: int) -> AnyLink:
        """The link on which this member sends to another one, opened if need be.

        Cancelling does not give the link up.

        Raises:
            CollectiveAborted: the epoch has ended, or the link cannot be had.
        """
        self.prepare(rank)
        while (link := self._out.get(rank)) is None or self._dropped:
            await self._wait()
        return link

    def prepare(self, rank: int) -> None:
        """Begin to open what `to` will be asked for, so that several are opened at once."""
        if rank not in self._dialing and not self._dropped:
            self._dialing.add(rank)
            self._dial(self, rank)

    async def from_(self, rank: int) -> AnyLink:
        """The link on which another member sends to this one, once that one has opened it.

        Raises:
            CollectiveAborted: the epoch has ended.
        """
        while (link := self._into.get(rank)) is None or self._dropped:
            await self._wait()
        return link

    def opened(self, rank: int) -> AnyLink | None:
        """What `to` would return without waiting."""
        return self._out.get(rank)

    def accepted(self, rank: int) -> AnyLink | None:
        """What `from_` would return without waiting."""
        return self._into.get(rank)

    @property
    def received_at(self) -> float:
        """Trio time at which values came last; minus infinity when none did."""
        return max((link.received_at for link in self._into.values()), default=-math.inf)

    def local(self, rank: int) -> bool:
        """True when that member is known to be on this machine: a link to or from it says so."""
        links = (self._out.get(rank), self._into.get(rank))
        return any(link is not None and link.local for link in links)

    async def _wait(self) -> None:
        if self._dropped:
            raise CollectiveAborted(f"no links: {self._dropped}")
        await self._changed.wait()

    # ---- of the mesh -------------------------------------------------------------------------

    def add(self, rank: int, link: AnyLink, *, outgoing: bool) -> bool:
        """A link is there; False when there is one already, or the lane has ended."""
        links = self._out if outgoing else self._into
        if self._dropped or rank in links:
            return False
        links[rank] = link
        self._notify()
        return True

    def add_part(self, rank: int, number: int, of: int, link: BulkLink) -> bool:
        """One of several links on which a member sends to this one; False when it does not fit."""
        parts = self._parts.setdefault(rank, {})
        if rank in self._into or number in parts or not number < of <= MAX_LINKS:
            return False
        parts[number] = link
        if len(parts) < of:
            return True
        complete = [parts.get(each) for each in range(of)]
        found = [part for part in complete if part is not None]
        return len(found) == of and self.add(
            rank, _together(found, self._start, receiving=True), outgoing=False
        )

    def drop(self, reason: str) -> None:
        """The epoch has ended: close every link hard; whoever uses or awaits one fails at once."""
        self._dropped = self._dropped or reason
        for parts in self._parts.values():
            for part in parts.values():
                part.abort(reason)
        for link in (*self._out.values(), *self._into.values()):
            link.abort(reason)
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


class Mesh:
    """Lanes of the present epoch.

    Args:
        endpoint: whose peers the members are.
        nursery: where connecting and taking links run.
        on_change: called when the links of lane 0's ring are there.
        on_failure: called when links cannot be had, with the reason and whose links those are.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        nursery: trio.Nursery,
        *,
        on_change: Callable[[], None],
        on_failure: Failure,
    ) -> None:
        self._endpoint = endpoint
        self._nursery = nursery
        self._on_change = on_change
        self._on_failure = on_failure
        self._epoch: Epoch | None = None
        self._rank = 0
        self._lanes: dict[int, Lane] = {}
        self._tasks: set[trio.CancelScope] = set()  # of the present epoch

    def lane(self, epoch: Epoch, number: int = 0) -> Lane | None:
        """A lane of `epoch`; None when that is not the present one.

        Raises:
            InvalidOperation: there is no lane of that number.
        """
        if not 0 <= number < MAX_LANES:
            raise InvalidOperation(f"lanes have the numbers 0 to {MAX_LANES - 1}, not {number}")
        if self._epoch is not epoch:
            return None
        lane = self._lanes.get(number)
        if lane is None:
            lane = self._lanes[number] = Lane(
                epoch, number, self._rank, self._start_dial, self._start
            )
        return lane

    def enter(self, epoch: Epoch) -> None:
        """Drop the links of the epoch before, and begin with those of `epoch`."""
        self.drop("a new epoch")
        self._epoch = epoch
        self._rank = epoch.members.index(self._endpoint.node_id)
        if len(epoch.members) == 1:
            return
        for rank in range(len(epoch.members)):
            if rank != self._rank:
                self._start(self._accept, epoch, rank)
        self._start(self._link_ring, epoch)

    def drop(self, reason: str) -> None:
        """Close what there is; whoever uses it fails at once."""
        for task in self._tasks:
            task.cancel()
        lanes, self._lanes = self._lanes, {}
        self._tasks, self._epoch = set(), None
        for lane in lanes.values():
            lane.drop(reason)

    # ---- connecting ----------------------------------------------------------------------------

    def _start(self, work: Callable[..., Awaitable[None]], *args: object) -> None:
        """Run a task that ends with the epoch."""
        scope = trio.CancelScope()
        tasks = self._tasks
        tasks.add(scope)

        async def run() -> None:
            with scope:
                await work(*args)
            tasks.discard(scope)

        self._nursery.start_soon(run, name=work)

    async def _link_ring(self, epoch: Epoch) -> None:
        """See that the ring of lane 0 is there, or who is missing."""
        lane = self.lane(epoch)
        if lane is None:
            return
        following, previous = (self._rank + 1) % lane.world, (self._rank - 1) % lane.world
        with trio.move_on_after(CONNECT_S):
            try:
                await lane.to(following)
                await lane.from_(previous)
            except CollectiveAborted:
                return  # the epoch has ended between waking and asking again: no cancellation came first
            self._on_change()
            return
        missing = []
        if lane.opened(following) is None:
            missing.append(epoch.members[following])
        if lane.accepted(previous) is None:
            missing.append(epoch.members[previous])
        self._failed(epoch, f"no ring connection within {CONNECT_S:.0f} s", *dict.fromkeys(missing))

    def _start_dial(self, lane: Lane, rank: int) -> None:
        self._start(self._open, lane, rank)

    async def _open(self, lane: Lane, rank: int) -> None:
        """Open the link of a lane to one member."""
        member = lane.epoch.members[rank]
        failure = f"no link to {member.short} within {CONNECT_S:.0f} s"
        links: dict[int, BulkLink] = {}
        kept = False
        try:
            with trio.move_on_after(CONNECT_S):
                peer = self._endpoint.peers.get(member)
                if peer is None:
                    raise CollectiveAborted(f"{member.short} is not connected")
                alone = lane.number > 0 or peer.local
                count = 1 if alone else links_for(peer.rtt_s, MAX_LINKS)
                async with trio.open_nursery() as nursery:
                    for number in range(count):
                        nursery.start_soon(self._open_one, lane, peer, number, count, links)
                together = _together(
                    [links[number] for number in range(count)], self._start, receiving=False
                )
                kept = lane.add(rank, together, outgoing=True)
                return
        except* (TransportError, GossipError) as group:
            failure = f"no link to {member.short}: {group.exceptions[0]}"
        finally:
            if not kept:
                for link in links.values():
                    link.abort("the epoch has ended")
        self._failed(lane.epoch, failure, member)

    @staticmethod
    async def _open_one(
        lane: Lane, peer: Peer, number: int, count: int, links: dict[int, BulkLink]
    ) -> None:
        links[number] = link = await peer.open_bulk(_label(lane.epoch))
        await link.send(_GREETING.pack(lane.number, number, count), b"")
        await link.offer_memory()

    async def _accept(self, epoch: Epoch, rank: int) -> None:
        """Take the links that one member opens, of whatever lane."""
        while True:
            try:
                link = await self._endpoint.accept_bulk(epoch.members[rank], _label(epoch))
            except (StreamLimitReached, ScopeExceeded):
                await trio.sleep(RETRY_S)
                continue
            except TransportError:
                return  # it was lost, which whoever watches the members knows, too
            kept = False
            try:
                with trio.move_on_after(CONNECT_S):
                    kept = await self._take(epoch, rank, link)
            except (TransportError, GossipError):
                pass  # what came was no link of this epoch; its sender finds it closed
            finally:
                if not kept:
                    link.abort("not a link of this epoch")

    async def _take(self, epoch: Epoch, rank: int, link: BulkLink) -> bool:
        greeting, _ = await link.receive_head(0)
        if len(greeting) < _GREETING.size:
            return False
        number, part, of = _GREETING.unpack_from(greeting)
        lane = self.lane(epoch, number)
        if lane is None or lane.accepted(rank) is not None:
            return False
        await link.accept_memory()
        return lane.add_part(rank, part, of, link)

    def _failed(self, epoch: Epoch, reason: str, *suspects: NodeId) -> None:
        if self._epoch is epoch:
            self._on_failure(reason, suspects)


def _together(links: list[BulkLink], start: Callable[..., object], *, receiving: bool) -> AnyLink:
    return links[0] if len(links) == 1 else StripedLink(links, start, receiving=receiving)


def _label(epoch: Epoch) -> bytes:
    return LABEL + epoch.id[:24]
