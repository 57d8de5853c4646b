"""Punching as a service of an endpoint.

Problem: a relayed connection is slow and costs a third party; most pairs of nodes can do better if
both dial at the same moment. Idea: one of them opens a stream "reach/punch" over the relayed
connection and coordinates; first it tries a plain dial (the other side may be reachable from
here), then both dial from their listening ports to all addresses of the other at once. What is said
is in `transport.punch.agreement`, one run of it in `transport.punch.attempt`; here is who may, with whom, and
with which addresses.

Invariants: at most one session that we coordinate and one that we follow per peer, at most
`MAX_FOLLOWED` of the latter in all; of two crossing ones, that of the lower node id counts; a punch
never harms the relayed connection.
"""

import ipaddress
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from typing import Final
from weakref import ReferenceType, WeakKeyDictionary, ref

import trio

from transport.address import Address
from transport.budget.rates import TokenBucket
from transport.endpoint import Endpoint
from transport.errors import UsageError
from transport.identity import NodeId
from transport.network import Path
from transport.peer import Peer
from transport.punch.agreement import (
    BUSY,
    CROSSED,
    PROTOCOL,
    IPInterface,
    PunchReport,
    PunchSession,
    screen,
    tellable,
)
from transport.punch.attempt import SETTLE_S, PunchRun
from transport.reach.interfaces import local_addresses
from transport.reach.outside import ask_outside, askable
from transport.streams.stream import Stream

MAX_FOLLOWED: Final = 16
"""Sessions that peers coordinate at a time."""
FOLLOW_AGAIN_S: Final = 5.0
"""Per session of one peer, in the long run: it decides whom we send SYNs to."""
FOLLOW_BURST: Final = 3
"""Sessions of one peer that may come one after another: a punch that was given up may begin anew."""
BEFORE_S: Final = 0.2
"""How long the next session of a peer waits for the end of the one before."""
LOOK_AGAIN_S: Final = 30.0
"""Pause between two searches for somebody who tells us where we are seen."""
MAX_OBSERVED: Final = 32
"""Peers whose view of us is kept."""

Interfaces = Callable[[], Iterable[IPInterface]]


def machine_interfaces() -> list[IPInterface]:
    """The machine's interfaces with their networks, without loopback."""
    return [
        ipaddress.ip_interface(f"{found.host.partition('%')[0]}/{found.prefix_length}")
        for found in local_addresses()
    ]


class Puncher:
    """Punches with the peers of one endpoint, as coordinator and as follower.

    Args:
        endpoint: whose connections to improve; "reach/punch" is served from now on.
        interfaces: our interfaces and their networks, asked before each round.
        observed: where we are believed to be seen, best first; besides what peers told us.

    Raises:
        UsageError: the endpoint punches already.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        interfaces: Interfaces = machine_interfaces,
        observed: Callable[[], Iterable[Address]] = tuple,
    ) -> None:
        self.endpoint = endpoint
        self._interfaces = interfaces
        self._believed = observed
        self._seen: OrderedDict[NodeId, Address] = OrderedDict()  # bounded by MAX_OBSERVED
        self._coordinating: dict[NodeId, PunchRun] = {}  # at most one per peer
        self._following: dict[NodeId, PunchRun] = {}  # bounded by MAX_FOLLOWED
        self._followed: OrderedDict[NodeId, TokenBucket] = OrderedDict()  # bounded by MAX_OBSERVED
        self._asked: dict[bool, Address] = {}  # what we asked for, by "is it IPv6"
        self._look_after = float("-inf")
        self._looking = False
        self._changed = trio.lowlevel.ParkingLot()
        endpoint.serve(PROTOCOL, self._serve)
        endpoint.on_observed.append(self._note)

    def _note(self, peer: Peer, address: Address) -> None:
        """Remember where a peer sees us; its latest word counts."""
        self._seen[peer.node_id] = address
        self._seen.move_to_end(peer.node_id)
        while len(self._seen) > MAX_OBSERVED:
            self._seen.popitem(last=False)

    def observed(self) -> list[Address]:
        """Where we are seen: what is believed first, then what most peers say, the newest first.

        The best of each family come before all others.
        """
        counted = Counter(reversed(self._seen.values()))
        found = [*self._believed(), *(address for address, _ in counted.most_common())]
        found += self._asked.values()
        best = {":" in address.host: address for address in reversed(found)}
        return list(dict.fromkeys([*(a for a in found if a in best.values()), *found]))

    def forget(self) -> None:
        """Our network has changed: nobody has seen us here yet."""
        self._seen.clear()
        self._asked.clear()
        self._look_after = float("-inf")

    @property
    def should_look(self) -> bool:
        """Whether `look_outside` may bring something new."""
        return (
            not self._looking
            and trio.current_time() >= self._look_after
            and bool(self._unseen_families())
        )

    def _unseen_families(self) -> list[bool]:
        """In which we listen, nobody sees us, and somebody could be asked."""
        listening = {":" in address.host for address in self.endpoint.addresses if address.is_ip}
        unseen = listening - {":" in address.host for address in self.observed()}
        return sorted(six for six in unseen if askable(self.endpoint, six=six))

    async def look_outside(self) -> None:
        """Ask where we are seen in a family that no peer uses with us; a few seconds at most."""
        self._looking = True
        try:
            for six in self._unseen_families():
                seen = await ask_outside(self.endpoint, six=six)
                if seen is not None:
                    self._asked[six] = seen
        finally:
            self._looking = False
            self._look_after = trio.current_time() + LOOK_AGAIN_S

    def tell(self) -> tuple[Address, ...]:
        """Where to be met, for the other side."""
        return tellable(self.endpoint.advertised, self.observed())

    def choose(self, theirs: Iterable[Address]) -> tuple[list[Address], list[tuple[Address, str]]]:
        """Which of the other side's addresses to dial; which not, and why."""
        listening = self.endpoint.addresses
        interfaces = list(self._interfaces())
        for address in listening:  # a node that listens on loopback alone has peers there
            if address.is_ip and not ipaddress.ip_address(address.host).is_unspecified:
                width = "128" if ":" in address.host else "32"
                width = "8" if address.is_loopback and width == "32" else width
                host = address.host.partition("%")[0]
                interfaces.append(ipaddress.ip_interface(f"{host}/{width}"))
        own = [*listening, *self.endpoint.advertised, *self.observed()]
        return screen(theirs, own=own, interfaces=interfaces)

    @property
    def following(self) -> int:
        """Sessions under way that peers coordinate."""
        return len(self._following)

    def _new_run(self, peer: Peer, *, coordinates: bool) -> PunchRun:
        session = PunchSession(coordinates=coordinates, addresses=self.tell())
        return PunchRun(self.endpoint, peer, session, self.choose)

    # Coordinating

    async def punch(self, peer: Peer) -> PunchReport:
        """Try to get a connection with `peer` that needs no relay; at most about half a minute.

        Several callers share one punch; one that the peer coordinates is joined. Cancelling ends a
        punch of our own. Never raises for what the peer or the network does.
        """
        await trio.lowlevel.checkpoint()
        node_id = peer.node_id
        if peer.path is not Path.RELAYED:
            return self._new_run(peer, coordinates=True).report()
        while running := self._coordinating.get(node_id) or self._following.get(node_id):
            await running.done.wait()
            if running.finished:  # otherwise its caller was cancelled
                return running.report()
        ours = self._coordinating[node_id] = self._new_run(peer, coordinates=True)
        try:
            await ours.coordinate()
        finally:
            del self._coordinating[node_id]
            ours.done.set()
        if ours.crossed:
            return await self._joined(ours, node_id)
        return ours.report()

    async def _joined(self, ours: PunchRun, node_id: NodeId) -> PunchReport:
        """Our session crossed one of the peer's, which counts: wait for that instead."""
        with trio.move_on_after(SETTLE_S) as patience:
            while (theirs := self._following.get(node_id)) is None:
                if ours.direct:
                    return ours.report()
                await self._changed.park()
            patience.deadline = float("inf")  # it has its own bounds
            await theirs.done.wait()
            return theirs.report()
        return ours.report()

    # Following

    async def _serve(self, stream: Stream) -> None:
        peer, node_id = stream.peer, stream.peer.node_id
        if (before := self._following.get(node_id)) is not None:
            with trio.move_on_after(BEFORE_S):  # given up, and about to end here
                await before.done.wait()
        now, refusal = trio.current_time(), ""
        if node_id in self._coordinating and self.endpoint.node_id < node_id:
            refusal = CROSSED
        elif (
            node_id in self._following
            or len(self._following) >= MAX_FOLLOWED
            or not self._budget(node_id, now).take(1, now)
        ):
            refusal = BUSY
        if refusal:
            await stream.send_message(PunchSession(coordinates=False, addresses=()).end(refusal))
            return
        run = self._following[node_id] = self._new_run(peer, coordinates=False)
        self._changed.unpark_all()
        try:
            await run.follow(stream)
        finally:
            del self._following[node_id]
            run.done.set()

    def _budget(self, node_id: NodeId, now: float) -> TokenBucket:
        """The sessions that a peer may have us follow."""
        budget = self._followed.get(node_id)
        if budget is None:
            budget = self._followed[node_id] = TokenBucket(1 / FOLLOW_AGAIN_S, FOLLOW_BURST, now)
        self._followed.move_to_end(node_id)
        while len(self._followed) > MAX_OBSERVED:
            self._followed.popitem(last=False)
        return budget


# The endpoint holds its puncher (as a handler), the puncher its endpoint; here is neither held.
_punchers: WeakKeyDictionary[Endpoint, ReferenceType[Puncher]] = WeakKeyDictionary()


def serve_punch(
    endpoint: Endpoint,
    *,
    interfaces: Interfaces = machine_interfaces,
    observed: Callable[[], Iterable[Address]] = tuple,
) -> Puncher:
    """Take part in punches that peers coordinate, and be able to coordinate; see `Puncher`.

    Raises:
        UsageError: the endpoint punches already.
    """
    puncher = Puncher(endpoint, interfaces=interfaces, observed=observed)
    _punchers[endpoint] = ref(puncher)
    return puncher


async def punch(endpoint: Endpoint, peer: Peer) -> PunchReport:
    """See `Puncher.punch`.

    Raises:
        UsageError: `serve_punch` was not called for the endpoint.
    """
    known = _punchers.get(endpoint)
    puncher = None if known is None else known()
    if puncher is None:
        raise UsageError("serve_punch first")
    return await puncher.punch(peer)
