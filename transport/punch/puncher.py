"""Punching as a service of an endpoint.

Problem: a relayed connection is slow and costs a third party; most pairs of nodes can do better if
both dial at the same moment. Idea: one of them opens a stream "reach/punch" over the relayed
connection and coordinates; first it tries a plain dial (the other side may be reachable from
here), then both dial from their listening ports to all addresses of the other at once. What is said
is in `transport.punch.agreement`, one run of it in `transport.punch.attempt`; here is who may, with whom, and
with which addresses.

A coordinator decides whom we send SYNs to, so we follow only peers that are connected over a relay, each one and all together not too often, and
only to what `transport.punch.targets` lets through.

Invariants: at most one session that we coordinate and one that we follow per peer, at most
`MAX_FOLLOWED` of the latter in all; of two crossing ones, that of the lower node id counts; a punch
never harms the relayed connection.
"""

import ipaddress
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

import trio

from transport.address import Address
from transport.budget.accounts import Accounts
from transport.budget.rates import TokenBucket
from transport.endpoint import Endpoint
from transport.identity import NodeId
from transport.network import Path
from transport.peer import Peer
from transport.punch.agreement import PunchSession
from transport.punch.attempt import SETTLE_S, PunchRun
from transport.punch.messages import PROTOCOL, EndReason
from transport.punch.report import PunchReport
from transport.punch.targets import IPInterface, Screen, tellable
from transport.reach.interfaces import local_addresses
from transport.reach.observed import Observations
from transport.streams.stream import Stream

MAX_FOLLOWED: Final = 16
"""Sessions that peers coordinate at a time."""
FOLLOW_AGAIN_S: Final = 5.0
"""Per session of one peer, in the long run: it decides whom we send SYNs to."""
FOLLOW_BURST: Final = 3
"""Sessions of one peer that may come one after another: a punch that was given up may begin anew."""
FOLLOW_ALL_AGAIN_S: Final = 1.0
"""The same for all peers together, whatever they call themselves."""
FOLLOW_ALL_BURST: Final = 32
"""Twice what may be under way: when our network has changed, every relayed peer begins."""
KNOWN_PER_PEER: Final = 4
"""Peers whose sessions are remembered, for each place of a peer (count): whoever comes back under the same id finds its budget as it left it."""
BEFORE_S: Final = 0.2
"""How long the next session of a peer waits for the end of the one before."""

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
        observations: what peers see us at.
        interfaces: our interfaces and their networks, asked before each round.

    Raises:
        UsageError: the endpoint punches already.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        observations: Observations,
        *,
        interfaces: Interfaces = machine_interfaces,
    ) -> None:
        self.endpoint = endpoint
        self._observations = observations
        self._interfaces = interfaces
        self._coordinating: dict[NodeId, PunchRun] = {}  # at most one per peer
        self._following: dict[NodeId, PunchRun] = {}  # bounded by MAX_FOLLOWED
        self._followed: Accounts[NodeId] = Accounts(
            1 / FOLLOW_AGAIN_S, FOLLOW_BURST, most=KNOWN_PER_PEER * endpoint.limits.max_peers
        )
        self._followed_all = TokenBucket(
            1 / FOLLOW_ALL_AGAIN_S, FOLLOW_ALL_BURST, trio.current_time()
        )
        self._changed = trio.lowlevel.ParkingLot()
        endpoint.serve(PROTOCOL, self._serve)

    def tell(self) -> tuple[Address, ...]:
        """Where to be met, for the other side."""
        seen = self._observations.candidates(trio.current_time())
        return tellable(self.endpoint.advertised, seen)

    def choose(
        self, peer: Peer, screen: Screen, theirs: Iterable[Address]
    ) -> tuple[list[Address], list[tuple[Address, str]]]:
        """Which of the addresses that `peer` names to dial; which not, and why."""
        listening = self.endpoint.addresses
        interfaces = list(self._interfaces())
        for address in listening:  # a node that listens on loopback alone has peers there
            if address.is_ip and not ipaddress.ip_address(address.host).is_unspecified:
                width = "128" if ":" in address.host else "32"
                width = "8" if address.is_loopback and width == "32" else width
                host = address.host.partition("%")[0]
                interfaces.append(ipaddress.ip_interface(f"{host}/{width}"))
        # Not where one peer alone says that we are: it could keep any address from being dialed.
        seen = self._observations.confirmed(trio.current_time())
        return screen.split(
            theirs,
            own=[*listening, *self.endpoint.advertised, *seen],
            interfaces=interfaces,
            advertised=peer.listen,
        )

    @property
    def following(self) -> int:
        """Sessions under way that peers coordinate."""
        return len(self._following)

    def _new_run(self, peer: Peer, *, coordinates: bool) -> PunchRun:
        session = PunchSession(coordinates=coordinates, addresses=self.tell())
        return PunchRun(self.endpoint, peer, session, partial(self.choose, peer, Screen()))

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
        refusal = self._refusal(peer, trio.current_time())
        if refusal is not None:
            await stream.send_message(PunchSession(coordinates=False, addresses=()).end(refusal))
            return
        run = self._following[node_id] = self._new_run(peer, coordinates=False)
        self._changed.unpark_all()
        try:
            await run.follow(stream)
        finally:
            del self._following[node_id]
            run.done.set()

    def _refusal(self, peer: Peer, now: float) -> EndReason | None:
        """Why not to follow a session of `peer`; None if we do, and then it is paid for."""
        node_id = peer.node_id
        if peer.path is not Path.RELAYED:
            return EndReason.DIRECT
        if node_id in self._coordinating and self.endpoint.node_id < node_id:
            return EndReason.CROSSED
        if node_id in self._following or len(self._following) >= MAX_FOLLOWED:
            return EndReason.BUSY
        if not self._followed.take(node_id, now) or not self._followed_all.take(1, now):
            return EndReason.BUSY
        return None
