"""Membership on a live endpoint (trio driver of `gossip.membership.swim`).

The connections' own heartbeats are the signs of life: before each tick the core is told when each peer was last heard. Messages are
calls without an answer; like datagrams they may get lost, and are dropped rather than queued when a peer does not take them.

    one pump       tells the core who was heard, ticks it on time, carries out what it wants
    one watcher    compares who is connected with what the core knows; a missed event costs nothing
    short tasks    one for each message (at most `MAX_IN_FLIGHT` for each peer) and each dial (at most `MAX_DIALS`)

Invariants: one deadline over each message and each dial; leaving the block says goodbye, signed, to every connected peer, within
`GOODBYE_S` even when cancelled; no failure of a message ends anything else.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Any, Final, Protocol

import attrs
import trio

from gossip.membership.messages import PROTOCOL, decode, encode
from gossip.membership.settings import WAN, SwimSettings
from gossip.membership.swim import Dial, MemberEvent, Send, Swim
from gossip.membership.table import MemberView, SwimKeys
from transport.address import Address
from transport.errors import MalformedMessage, RemoteCallFailed, TransportError
from transport.identity import Identity, NodeId, verify
from transport.streams.frames import CloseCode
from transport.swarm import Swarm
from transport.watch import Watchers

GOODBYE_S: Final = 0.5
"""For the last words; peers that do not take them in time find out by themselves."""
MAX_IN_FLIGHT: Final = 8
"""Messages to one peer whose call has not ended; more are dropped."""
MAX_DIALS: Final = 8
"""Dials at once. They are for members that are about to be given up."""
KEEP_CONNECTIONS: Final = 128
"""Above so many peers, a connection that was made only to see whether a member lives is closed again."""

_log = logging.getLogger(__name__)

Find = Callable[[NodeId], Awaitable[Sequence[Address]]]


@attrs.frozen
class Missed:
    """Events were left out: look at `members()`."""


class MembershipPeer(Protocol):
    """What this driver needs of a connected peer (`transport.peer.Peer`)."""

    @property
    def node_id(self) -> NodeId: ...  # noqa: D102
    @property
    def last_seen(self) -> float: ...  # noqa: D102
    @property
    def close_reason(self) -> str: ...  # noqa: D102
    @property
    def goodbye(self) -> CloseCode | None: ...  # noqa: D102
    @property
    def listen(self) -> Sequence[Address]: ...  # noqa: D102
    async def call(self, protocol: str, request: bytes) -> bytes: ...  # noqa: D102
    def close(self, reason: str, code: CloseCode) -> None: ...  # noqa: D102


class MembershipEndpoint(Protocol):
    """What this driver needs of an endpoint (`transport.endpoint.Endpoint`)."""

    @property
    def identity(self) -> Identity: ...  # noqa: D102
    @property
    def swarm(self) -> Swarm: ...  # noqa: D102
    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def peers(self) -> Mapping[NodeId, MembershipPeer]: ...  # noqa: D102
    async def connect(  # noqa: D102
        self, addresses: Sequence[Address], *, expected: NodeId | None = None
    ) -> MembershipPeer: ...
    def serve_calls(  # noqa: D102
        self, protocol: str, handler: Callable[[Any, bytes], Awaitable[bytes]]
    ) -> None: ...
    def unserve(self, protocol: str) -> None: ...  # noqa: D102
    def watch(self) -> AbstractContextManager[trio.abc.ReceiveChannel[Any]]: ...  # noqa: D102


class Membership:
    """Who takes part in the swarm; made by `open_membership`.

    Attributes:
        counters: what happened, by name.
    """

    def __init__(
        self,
        endpoint: MembershipEndpoint,
        nursery: trio.Nursery,
        swim: Swim,
        *,
        find: Find | None,
    ) -> None:
        self.counters: Counter[str] = swim.counters
        self._endpoint = endpoint
        self._nursery = nursery
        self._swim = swim
        self._find = find
        self._wake = trio.Event()
        self._told: dict[NodeId, MembershipPeer] = {}  # peers that the core knows as connected
        self._in_flight: Counter[NodeId] = Counter()
        self._addresses: dict[NodeId, tuple[Address, ...]] = {}  # bounded by the core's table
        self._dialing: set[NodeId] = set()
        self._watchers: Watchers[MemberEvent | Missed] = Watchers(Missed())
        self._sent = trio.Event()  # set whenever a message has ended

    # For the daemon

    @property
    def score(self) -> int:
        """How much we doubt ourselves: 0, all is well, to 8."""
        return self._swim.health.score

    def members(self) -> list[MemberView]:
        """Return all others that are known, those that left or were lost lately included, by id."""
        return self._swim.members()

    def member(self, node_id: bytes) -> MemberView | None:
        """Return what is known of one; None if it never said that it takes part."""
        return self._swim.member(node_id)

    def watch(self) -> AbstractContextManager[trio.MemoryReceiveChannel[MemberEvent | Missed]]:
        """Receive what happens to members from now on; whoever falls 256 events behind gets `Missed`."""
        return self._watchers.watch()

    async def leave(self, reason: str = "shutting down") -> None:
        """Tell all connected peers that we go, and wait until they have taken it.

        Bound it with a deadline; cancelling leaves the rest untold. Once is enough.
        """
        self._swim.leave(reason, trio.current_time())
        self._flush()
        while self._in_flight:
            await self._sent.wait()
        await trio.lowlevel.checkpoint()

    # Tasks

    async def _pump(self) -> None:
        """Wake the core on time; the only task that ticks it."""
        swim = self._swim
        while True:
            self._flush()
            self._wake = trio.Event()
            with trio.move_on_at(max(swim.next_deadline(), trio.current_time())):
                await self._wake.wait()
            now = trio.current_time()
            for node_id, peer in self._told.items():
                swim.heard(node_id, peer.last_seen, now)
            if now >= swim.next_deadline():
                swim.tick(now)

    async def _watch(self) -> None:
        with self._endpoint.watch() as events:
            self._reconcile()
            async for _ in events:
                self._reconcile()

    def _reconcile(self) -> None:
        """Tell the core who is connected."""
        now, connected = trio.current_time(), self._endpoint.peers
        for node_id, peer in list(self._told.items()):
            if connected.get(node_id) is not peer:
                del self._told[node_id]
                self._remember(peer)
                reason = peer.close_reason
                orderly = peer.goodbye is CloseCode.IDLE  # which says nothing about the node
                self._swim.disconnected(node_id, reason, now, orderly=orderly)
        for node_id in sorted(connected):
            if node_id not in self._told:
                self._told[node_id] = connected[node_id]
                self._swim.connected(node_id, now)
        self._wake.set()

    def _remember(self, peer: MembershipPeer) -> None:
        self._addresses.pop(peer.node_id, None)
        if peer.listen:
            self._addresses[peer.node_id] = tuple(peer.listen)
        while len(self._addresses) > self._swim.settings.max_members:
            del self._addresses[next(iter(self._addresses))]

    async def _answer(self, peer: MembershipPeer, request: bytes) -> bytes:
        """Take one message; the endpoint's guard is around it."""
        try:
            message = decode(request)
        except MalformedMessage:
            self.counters["malformed_in"] += 1
            raise RemoteCallFailed("malformed") from None
        if peer.node_id not in self._told:
            self._reconcile()  # the message was faster than the news of the connection
        self._swim.receive(peer.node_id, message, trio.current_time())
        self._wake.set()
        return b""

    # Inside

    def _flush(self) -> None:
        for item in self._swim.outgoing():
            if isinstance(item, Dial):
                if item.to not in self._dialing and len(self._dialing) < MAX_DIALS:
                    self._dialing.add(item.to)
                    self._nursery.start_soon(self._dial, item.to)
            elif (peer := self._told.get(item.to)) is not None:
                self._send(peer, item)
        while (event := self._swim.next_event()) is not None:
            self._tell(event)

    def _send(self, peer: MembershipPeer, item: Send) -> None:
        if self._in_flight[peer.node_id] >= MAX_IN_FLIGHT:
            self.counters["dropped-peer-slow"] += 1
            return
        self._in_flight[peer.node_id] += 1
        self._nursery.start_soon(self._carry, peer, encode(item.message))

    async def _carry(self, peer: MembershipPeer, data: bytes) -> None:
        try:
            with trio.move_on_after(2 * self._swim.settings.probe_s):
                await peer.call(PROTOCOL, data)
        except TransportError:
            self.counters["undelivered"] += 1  # lost, or it does not take part
        except Exception:  # noqa: BLE001 (one message must not end the membership)
            self._failed_within("a message")
        finally:
            self._in_flight[peer.node_id] -= 1
            if not self._in_flight[peer.node_id]:
                del self._in_flight[peer.node_id]
            sent, self._sent = self._sent, trio.Event()
            sent.set()

    async def _dial(self, node_id: NodeId) -> None:
        """Try to reach a member by ourselves; that it is connected is all the answer there is."""
        try:
            with trio.move_on_after(2 * self._swim.settings.probe_s):
                peer = await self._reach(node_id)
                if peer is not None:
                    self._reconcile()
                    if len(self._endpoint.peers) > KEEP_CONNECTIONS:
                        peer.close("idle", CloseCode.IDLE)
        except TransportError:
            pass  # not reached: the core concludes it from the silence
        except Exception:  # noqa: BLE001 (nor must one dial)
            self._failed_within("a dial")
        finally:
            self._dialing.discard(node_id)

    async def _reach(self, node_id: NodeId) -> MembershipPeer | None:
        """Connect where it was last; if it is not there any more, where others say it is. None if nobody knows."""
        known = self._addresses.get(node_id, ())
        if known:
            with trio.move_on_after(self._swim.settings.probe_s):
                try:
                    return await self._endpoint.connect(known, expected=node_id)
                except TransportError:
                    pass  # it may have moved
        found = () if self._find is None else await self._find(node_id)
        fresh = [address for address in found if address not in known]
        return await self._endpoint.connect(fresh, expected=node_id) if fresh else None

    def _tell(self, event: MemberEvent) -> None:
        member = event.member
        if event.before is not None and member.state != "suspect":
            why = f": {member.reason}" if member.reason else ""
            _log.info(
                "member %s (%s) is %s%s", member.node_id.short, member.name, member.state, why
            )
        self._watchers.tell(event)

    def _failed_within(self, what: str) -> None:
        self.counters["internal_errors"] += 1
        _log.exception("%s failed in a way that is a defect of this program", what)

    async def _goodbye(self) -> None:
        with trio.move_on_after(GOODBYE_S, shield=True):
            await self.leave()
        self._watchers.close()


@asynccontextmanager
async def open_membership(
    endpoint: MembershipEndpoint,
    *,
    rng: random.Random,
    wall_clock: Callable[[], float],
    settings: SwimSettings = WAN,
    find: Find | None = None,
) -> AsyncIterator[Membership]:
    """Take part in the swarm's membership for as long as the block is open.

    Args:
        endpoint: an open `transport.endpoint.Endpoint`; its protocol "membership" is served from here on.
        rng: chance; seeded in simulations.
        wall_clock: seconds since 1970; where our incarnation begins, so that a restarted node outbids its former life.
        settings: `LAN`, `WAN` or others.
        find: addresses of a node that is not (or no longer) where we know it, for the last look at it; none without.

    Leaving the block, also by cancellation, announces that we left (at most half a second) and ends every task.
    """
    identity = endpoint.identity
    swim = Swim(
        SwimKeys(identity.node_id, identity.public_key, endpoint.swarm.id, identity.sign, verify),
        name=endpoint.name,
        incarnation=max(0, int(wall_clock() * 1000)),
        settings=settings,
        rng=rng,
        now=trio.current_time(),
    )
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        membership = Membership(endpoint, nursery, swim, find=find)
        endpoint.serve_calls(PROTOCOL, membership._answer)  # noqa: SLF001 (its own handler)
        nursery.start_soon(membership._watch)  # noqa: SLF001
        nursery.start_soon(membership._pump)  # noqa: SLF001
        try:
            yield membership
        except Exception as error:  # noqa: BLE001 (raised again below, outside of the nursery's group)
            failure = error
        finally:
            await membership._goodbye()  # noqa: SLF001
            endpoint.unserve(PROTOCOL)
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
