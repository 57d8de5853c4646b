"""The DHT on a live endpoint: carries the node's calls over connections, wakes it on time, serves others.

Everything that decides something is in `node`. One pump task owns the clock; each query is a short task with one
deadline over connecting and calling. `bootstrap` keeps trying addresses, `warm` keeps the table on disk, `seam` says what all
three need of the transport.

Connections: a query uses the live connection to its contact or opens one (with the contact's id expected by the
handshake, so a false address cannot stand in for a node). Connections stay open afterwards: up to
`keep_connections` peers that makes every later query one round-trip, and gossip uses them too. Above it, the ones
this service opened and has not used for a minute are closed, oldest first, but only those that `in_use` says nobody
else needs; without an `in_use` none is ever closed here.
"""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path as FilePath

import attrs
import trio

from dht.bootstrap import Bootstrapper
from dht.contact import Contact, is_loopback
from dht.errors import DhtClosed, DhtError
from dht.messages import PROTOCOL, Answer, Query, Refused
from dht.node import DhtNode
from dht.operation import Call, Credentials, Event, Found, Published
from dht.provider import Kind, Provider, provider_key, provider_value, read_providers
from dht.record import SignedRecord
from dht.seam import DhtEndpoint, DhtPeer, contact_of
from dht.settings import DhtSettings
from dht.warm import Warm
from transport.address import Address
from transport.codec import decode_untrusted, pack
from transport.errors import InvalidAddress, MalformedMessage, TransportError
from transport.identity import NodeId, verify
from transport.streams.frames import CloseCode

_log = logging.getLogger(__name__)

# Operations of callers at once; further callers wait. Below the node's own bound, which background shares.
_CALLER_OPERATIONS = 32
_IDLE_S = 60.0
# How long others remember where a client was.
_WHERE_TTL_S = 1800.0


@attrs.define
class _Waiter:
    done: trio.Event = attrs.field(factory=trio.Event)
    event: Event | None = None


class Dht:
    """The DHT as the rest of the daemon uses it; made by `open_dht`."""

    def __init__(
        self,
        endpoint: DhtEndpoint[DhtPeer],
        nursery: trio.Nursery,
        *,
        rng: random.Random,
        wall_clock: Callable[[], float],
        settings: DhtSettings,
        in_use: Callable[[NodeId], bool] | None,
        table_path: FilePath | None,
        reachable: Callable[[], bool] | None,
    ) -> None:
        self._endpoint = endpoint
        self._nursery = nursery
        self._rng = rng
        self._wall = wall_clock
        self._settings = settings
        self._in_use = in_use
        self._node = DhtNode(
            Credentials(
                node_id=bytes(endpoint.node_id),
                public_key=endpoint.identity.public_key,
                swarm_id=endpoint.swarm.id,
                sign=endpoint.identity.sign,
                verify=verify,
            ),
            rng=rng,
            now=trio.current_time(),
            settings=settings,
        )
        self._wake = trio.Event()
        self._open_calls = 0
        self._callers = trio.Semaphore(_CALLER_OPERATIONS)
        self._waiters: dict[int, _Waiter] = {}
        self._bootstrapper = Bootstrapper(
            endpoint, self._node, nursery, rng=rng, settings=settings, met=self._met
        )
        self._warm = None
        if table_path is not None:
            self._warm = Warm(
                self._node,
                table_path,
                swarm_id=endpoint.swarm.id,
                node_id=bytes(endpoint.node_id),
                wall_clock=wall_clock,
                wake=self._rouse,
            )
        self._reachable = reachable
        self._told: tuple[str, ...] = ()  # where we are, as published
        self._opened: dict[NodeId, float] = {}  # connections made here -> last used
        self._closed = False

    # For callers

    async def bootstrap(self, addresses: Sequence[Address]) -> int:
        """Join the swarm through nodes of which only addresses are known.

        Returns after every address has answered or failed (an answer from one shortens the wait for
        the others to a second), and our neighbourhood has been searched. Addresses stay known: what could
        not be reached, or is lost later, is tried again in the background.

        Args:
            addresses: at most 64 over the service's life; a name stands for all its addresses.

        Returns:
            How many of them have been reached; 0 is not an error.

        Raises:
            DhtClosed, DhtError: closed, or too many addresses. Cancelling leaves the background at work.
        """
        self._check_open()
        mine = await self._bootstrapper.first_try(addresses)
        self._check_open()
        if mine:
            await self._run(self._node.join)
        return sum(entry.reason == "" for entry in mine)

    def bootstrap_status(self) -> dict[str, str]:
        """Return for each bootstrap address "" if it was reached when last tried, else the reason."""
        return self._bootstrapper.status()

    async def put(self, key: bytes, value: bytes, *, ttl_s: float = 7200.0) -> int:
        """Sign `value` and publish it under `key` until `withdraw` or the end of the service.

        Our own copy is served to whoever asks us, and republished in the background.

        Args:
            key: 32 bytes, from `record_key`.
            value: at most 1000 bytes.
            ttl_s: seconds until holders drop it when we fall silent, 1 to 86400.

        Returns:
            How many *other* nodes say they hold it; 0 is not an error.

        Raises:
            InvalidKey, InvalidRecord, TooManyRecords, DhtClosed, DhtError. Cancelling leaves it published.
        """
        event = await self._run(
            lambda now: self._node.put(key, value, ttl_s, now, self._wall()),
        )
        return event.holders if isinstance(event, Published) else 0

    def withdraw(self, key: bytes) -> bool:
        """Stop publishing `key`; holders drop the record when its time is over."""
        return self._node.withdraw(key)

    async def get(self, key: bytes) -> list[SignedRecord]:
        """Return the newest verified record of each signer under `key`, sorted by signer.

        Empty when nobody has any, or nobody answers within a second. Records are hints to act upon,
        not truths: a holder may withhold the newest.

        Raises:
            InvalidKey, DhtClosed. Cancelling forgets the search.
        """
        event = await self._run(lambda now: self._node.get(key, now, self._wall()))
        return list(event.records) if isinstance(event, Found) else []

    async def find_node(self, target: bytes) -> list[Contact]:
        """Return the up to k nodes closest to `target` that answered, closest first.

        A node that cannot be dialled is in no table; should `target` be its id, then where it says it is stands first.

        Raises:
            InvalidKey, DhtClosed. Cancelling forgets the search.
        """
        said: list[Provider] = []
        failure: DhtError | None = None

        async def ask() -> None:
            nonlocal failure
            try:
                said.extend(await self.providers(Kind.NODE, target))
            except DhtError as error:
                failure = error

        event: Event | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                ask
            )  # meanwhile: who finds nobody shall know as soon as with one search
            try:
                event = await self._run(lambda now: self._node.find(target, now))
            except DhtError as error:
                failure = error
        if failure is not None:
            raise failure
        found = list(event.contacts) if isinstance(event, Found) else []
        if not found or found[0].node_id != target:
            itself = [each for each in said if each.node_id == target]
            found = [Contact(target, each.addresses) for each in itself] + found
        return found

    async def provide(
        self, kind: Kind, name: bytes, addresses: Sequence[str], *, ttl_s: float = 7200.0
    ) -> int:
        """Say that this node provides `name` and may be reached at `addresses`, until `withdraw_provided`.

        Returns:
            How many other nodes say they hold the record; 0 is not an error.

        Raises:
            NoUsableAddress, InvalidKey, TooManyRecords, DhtClosed. Cancelling leaves it published.
        """
        key = provider_key(self._endpoint.swarm.id, kind, name)
        return await self.put(key, provider_value(addresses), ttl_s=ttl_s)

    def withdraw_provided(self, kind: Kind, name: bytes) -> bool:
        """Stop saying so; holders drop the record when its time is over."""
        return self.withdraw(provider_key(self._endpoint.swarm.id, kind, name))

    async def providers(self, kind: Kind, name: bytes) -> list[Provider]:
        """Return who says to provide `name`, sorted by public key; a hint, like every record.

        Raises:
            InvalidKey, DhtClosed. Cancelling forgets the search.
        """
        records = await self.get(provider_key(self._endpoint.swarm.id, kind, name))
        loopback = any(is_loopback(address.host) for address in self._endpoint.advertised)
        return read_providers(records, loopback=loopback)

    async def locate(self, node_id: bytes) -> tuple[str, ...]:
        """Return where `node_id` may be reached, () if nobody knows: from tables, or as it says itself.

        Raises:
            InvalidKey, DhtClosed. Cancelling forgets the search.
        """
        for contact in await self.find_node(node_id):
            if contact.node_id == node_id:
                return contact.addresses
        return ()

    def forget(self, node_id: bytes) -> None:
        """Drop a node from the routing table, at once: it is no member any more."""
        self._node.table.remove(node_id)

    def contacts(self) -> list[Contact]:
        """Return all nodes known, nearest to our own id first, silent ones included."""
        return self._node.table.contacts()

    def stats(self) -> dict[str, int]:
        """Return sizes and counters under a fixed set of names."""
        status = self._bootstrapper.status()
        return {
            **self._node.stats(),
            "serving": int(self._node.serving),
            "bootstrap_addresses": len(status),
            "bootstrap_reached": sum(reason == "" for reason in status.values()),
        }

    # Tasks

    async def _pump(self) -> None:
        """Wake the node on time and carry out what it wants; the only task that ticks it."""
        while True:
            self._look_at_reachability()
            self._flush()
            self._wake = trio.Event()
            deadline = self._node.next_deadline()
            with trio.move_on_at(max(deadline, trio.current_time())):
                await self._wake.wait()
            now = trio.current_time()
            if now >= deadline:  # also when woken all the time: timers must not starve
                self._node.tick(now, self._wall())
                self._close_idle(now)

    async def _carry(self, call: Call) -> None:
        """Take one call to its contact; ends in exactly one report to the node."""
        answer: Answer | None = None
        sender = call.contact
        try:
            with trio.move_on_after(self._settings.query_s):
                peer = await self._reach(call.contact)
                sender = contact_of(peer)
                data = await peer.call(PROTOCOL, pack(call.query))
                answer = decode_untrusted(data, Answer)
        except MalformedMessage:
            self._node.counters["malformed_in"] += 1
        except TransportError:
            pass  # unreachable, lost, refused: the node counts it as unanswered
        except Exception:  # noqa: BLE001 (one query must not end the service)
            self._failed_within("a query")
        self._open_calls -= 1
        now = trio.current_time()
        if answer is None:
            self._node.fail(call.number, now, self._wall())
        else:
            self._node.receive(call.number, sender, answer, now, self._wall())
        self._wake.set()

    def _look_at_reachability(self) -> None:
        """Serve while others can dial us; publish where we are while they cannot."""
        if self._reachable is None or not self._settings.server:
            return
        self._node.serve(self._reachable(), trio.current_time())
        at = () if self._node.serving else tuple(str(each) for each in self._endpoint.advertised)
        if at == self._told:
            return
        self._told = at
        key = provider_key(self._endpoint.swarm.id, Kind.NODE, bytes(self._endpoint.node_id))
        try:
            if at:
                self._nursery.start_soon(self._tell_where, key, provider_value(at))
            else:
                self.withdraw(key)
        except DhtError:  # nothing that others could use
            self.withdraw(key)

    async def _tell_where(self, key: bytes, value: bytes) -> None:
        try:
            await self.put(key, value, ttl_s=_WHERE_TTL_S)
        except DhtError as error:
            _log.info("could not publish where this node is: %s", error)

    async def _greet_peers(self) -> None:
        """Ask every peer that connects, for whatever purpose, whether it takes part."""
        with self._endpoint.watch() as changes:
            self._greet_all()
            async for _ in changes:
                self._greet_all()

    # Inside

    async def _answer(self, peer: DhtPeer, request: bytes) -> bytes:
        """Answer one query; the endpoint's guard is around it."""
        try:
            query = decode_untrusted(request, Query)
        except MalformedMessage:
            self._node.counters["malformed_in"] += 1
            return pack(Answer(server=self._node.serving, body=Refused("malformed")))
        now = trio.current_time()
        answer = self._node.answer(query, contact_of(peer), peer.public_key, now, self._wall())
        self._wake.set()
        return pack(answer)

    async def _run(self, start: Callable[[float], int]) -> Event:
        """Start an operation and wait for its event; cancelling abandons it."""
        self._check_open()
        async with self._callers:
            self._check_open()
            operation = start(trio.current_time())
            waiter = self._waiters[operation] = _Waiter()
            self._wake.set()
            try:
                await waiter.done.wait()
            finally:
                del self._waiters[operation]
                if waiter.event is None:
                    self._node.abandon(operation)
            if waiter.event is None:
                raise DhtClosed("the DHT was closed during the operation")
            return waiter.event

    def _flush(self) -> None:
        for call in self._node.outgoing(self._settings.concurrency - self._open_calls):
            self._open_calls += 1
            self._nursery.start_soon(self._carry, call)
        while (event := self._node.next_event()) is not None:
            waiter = self._waiters.get(event.operation)
            if waiter is not None:
                waiter.event = event
                waiter.done.set()

    async def _reach(self, contact: Contact) -> DhtPeer:
        node_id = NodeId(contact.node_id)
        peer = self._endpoint.peers.get(node_id)
        if peer is None:
            addresses = _parsed(contact.addresses)
            peer = await self._endpoint.connect(addresses, expected=node_id)
            self._opened[node_id] = trio.current_time()
        elif node_id in self._opened:
            self._opened[node_id] = trio.current_time()
        return peer

    def _greet_all(self) -> None:
        now = trio.current_time()
        for node_id in sorted(self._endpoint.peers):
            if node_id not in self._node.table:
                self._node.greet(contact_of(self._endpoint.peers[node_id]), now)
        self._wake.set()

    def _close_idle(self, now: float) -> None:
        """Close connections of ours that nobody needs, when there are too many (module docstring)."""
        peers = self._endpoint.peers
        self._opened = {node_id: at for node_id, at in self._opened.items() if node_id in peers}
        surplus = len(peers) - self._settings.keep_connections
        if surplus <= 0 or self._in_use is None:
            return
        idle = sorted(
            (at, node_id)
            for node_id, at in self._opened.items()
            if now - at > _IDLE_S and not self._in_use(node_id)
        )
        for _, node_id in idle[:surplus]:
            peers[node_id].close("idle", CloseCode.IDLE)

    def _rouse(self) -> None:
        self._wake.set()

    def _met(self, node_id: NodeId) -> None:
        """A bootstrap address was reached."""
        self._opened[node_id] = trio.current_time()
        self._wake.set()

    def _failed_within(self, what: str) -> None:
        self._node.counters["internal_errors"] += 1
        _log.exception("%s failed in a way that is a defect of this program", what)

    def _check_open(self) -> None:
        if self._closed:
            raise DhtClosed("the DHT is closed")

    def _close(self) -> None:
        self._closed = True
        self._bootstrapper.close()
        for waiter in list(self._waiters.values()):
            waiter.done.set()


def _parsed(texts: Iterable[str]) -> list[Address]:
    """The addresses that are ones: hearsay may name a relay whose id has a wrong check character."""
    found = []
    for text in texts:
        try:
            found.append(Address.parse(text))
        except InvalidAddress:
            continue
    return found


@asynccontextmanager
async def open_dht(
    endpoint: DhtEndpoint[DhtPeer],
    *,
    rng: random.Random,
    wall_clock: Callable[[], float],
    settings: DhtSettings | None = None,
    in_use: Callable[[NodeId], bool] | None = None,
    table_path: FilePath | None = None,
    reachable: Callable[[], bool] | None = None,
) -> AsyncIterator[Dht]:
    """Take part in the swarm's DHT for as long as the context is open.

    Args:
        endpoint: an open `transport.endpoint.Endpoint`; its protocol "dht" is served from here on.
        rng: chance, for jitter and refresh targets; seeded in simulations.
        wall_clock: seconds since 1970, for the expiry of records only.
        settings: defaults are right for nearly everybody.
        in_use: whether somebody else needs the connection to a peer; see the module docstring.
        table_path: where the routing table is kept between runs, in a folder of the owner's; None keeps none.
        reachable: whether others can dial us, as far as is known; while not, this node is a client: it asks, and is in
            nobody's table. None stands for yes. Looked at whenever there is something to do.

    Leaving the context ends every task; operations under way raise DhtClosed. Nothing is withdrawn from
    holders: records expire.
    """
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        dht = Dht(
            endpoint,
            nursery,
            rng=rng,
            wall_clock=wall_clock,
            settings=settings or DhtSettings(),
            in_use=in_use,
            table_path=table_path,
            reachable=reachable,
        )
        endpoint.serve_calls(PROTOCOL, dht._answer)  # noqa: SLF001 (its own handler)
        nursery.start_soon(dht._pump)  # noqa: SLF001
        nursery.start_soon(dht._greet_peers)  # noqa: SLF001
        if dht._warm is not None:  # noqa: SLF001
            nursery.start_soon(dht._warm.run)  # noqa: SLF001
        try:
            yield dht
        except Exception as error:  # noqa: BLE001 (raised again below, outside of the nursery's group)
            failure = error
        finally:
            endpoint.unserve(PROTOCOL)
            dht._close()  # noqa: SLF001
            if dht._warm is not None:  # noqa: SLF001
                await dht._warm.last_save()  # noqa: SLF001
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
