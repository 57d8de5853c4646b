"""Keeping places with the nearest relays, so that others can reach a node that nobody can dial.

Problem: relays come and go, are full, or are far away; the node must stay reachable and the addresses it tells must be true.
Idea: hold `wanted` reservations, renewed at half their life, with the candidates of the shortest round trip. Whoever was measured
once needs no second look: when a relay dies, the other one still works, and the next best has taken its place within seconds.

A relay that is near may still carry nothing. So each is tried (`transport.relay.trial`) when it has granted a place and every TRY_AGAIN_S after that; one that has
failed twice in a row loses its place and rests. A relay may carry such trials alone, though. So the places are in different networks where that can be had, and every IMPROVE_S
there is a look at what the relays have brought: one that brought nobody while another did gives its place to the next candidate;
while none has brought anybody, which may be nobody's fault, one of them, chosen at random, does. The last one that is known to work
is not exchanged for a nearer one that is not.

Invariants: at most `wanted` reservations, plus one while a better one replaces the worst; `addresses` names exactly the relays
that hold a reservation now; a relay is always a peer connected without a relay; every wait here has an end.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import attrs
import trio

from transport.address import Address
from transport.budget.admission import network_of
from transport.codec import decode_untrusted, pack
from transport.endpoint import Endpoint
from transport.errors import MalformedMessage, RemoteCallFailed, TransportError
from transport.identity import NodeId
from transport.network import Path
from transport.peer import Peer
from transport.relay.candidates import MAX_ADDRESSES, Candidate, Candidates, in_turn
from transport.relay.messages import (
    ENDED,
    MAX_BYTES,
    RESERVE,
    Ended,
    Granted,
    Reason,
    Refused,
    RelayRefused,
    Reserve,
    as_reason,
    read_reserve_answer,
)
from transport.reporter import Reporter
from transport.watch import Lagged, PeerDown, PeerUp

ANSWER_S: Final = 5.0
"""How long a relay may take to answer; it waits for a target at most three seconds itself."""
PROBE_S: Final = 5.0
"""How long connecting to a candidate and one round trip may take."""
GATHER_S: Final = 0.5
"""How long the others are waited for once enough candidates have answered: farther ones than that are no better."""
PROBES: Final = 6
"""Candidates tried side by side: enough to find a near one, few enough connections to keep."""
IMPROVE_S: Final = 600.0
"""How often a nearer relay is looked for, and one that brings nobody is replaced."""
TRY_AGAIN_S: Final = 300.0
"""How often a relay that holds a place for us is tried."""
TRY_SOON_S: Final = 2.0
"""Pause before the second attempt, when the first has failed."""
FAILED_TRIALS: Final = 2
"""Failures in a row that cost a relay its place: one may be a connection that was lost on the way."""
FAILED_REST_S: Final = 60.0
"""How long such a relay rests at least: what it grants is worth nothing until that is repaired."""
TRIAL_S: Final = IMPROVE_S / 2
"""How long a relay may bring nobody before that counts against it."""
BETTER: Final = 0.7
"""A new relay must have at most this share of the round trip of the one it replaces: moving costs everybody a look-up."""


@attrs.frozen
class RelayStatus:
    """A relay through which this node is reached now."""

    node_id: NodeId
    addresses: tuple[Address, ...]
    """What is published: with `relay`."""
    rtt_s: float | None
    expires_at: float
    """Trio time; renewed long before."""
    terms: Granted


Attempt = Callable[[RelayStatus], Awaitable[str | None]]


@attrs.define
class _Held:
    """A reservation: with whom, on which connection, when to renew it, how long there has been one, and what trials said."""

    status: RelayStatus
    peer: Peer
    renew_at: float
    since: float
    try_at: float
    failed_trials: int = 0


class Reservations:
    """The reservations of one node; kept while `run` runs.

    Args:
        endpoint: ours.
        wanted: how many to keep.
        reporter: for what relays refuse.
        on_change: called with the new `addresses` whenever they change; must not block or raise.

    Attributes:
        candidates: nodes that may serve.
        attempt: tries whether a relay carries something to us: "" if it does, why not, None if that cannot be said.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        wanted: int,
        reporter: Reporter,
        on_change: Callable[[tuple[Address, ...]], None],
    ) -> None:
        self.candidates = Candidates(endpoint.node_id, self._look)
        self.on_change = on_change
        self.attempt: Attempt = _no_verdict
        self._endpoint = endpoint
        self._wanted = wanted
        self._reporter = reporter
        self._held: dict[NodeId, _Held] = {}  # at most wanted + 1
        self._asking: set[NodeId] = set()  # a circuit may come before the answer
        self._published: tuple[Address, ...] = ()
        self._news = trio.Event()
        self._granted = trio.Event()
        endpoint.serve_calls(ENDED, self._hear_end)

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where others reach us through relays."""
        return self._published

    @property
    def relays(self) -> tuple[RelayStatus, ...]:
        """Through whom we are reached, the nearest first."""
        return tuple(sorted((held.status for held in self._held.values()), key=_distance))

    @property
    def wanted(self) -> int:
        """Reservations to keep; may be set at any time."""
        return self._wanted

    @wanted.setter
    def wanted(self, count: int) -> None:
        if count != self._wanted:
            self._wanted = count
            self._look()

    def may_bring(self, node_id: NodeId) -> bool:
        """Whether a circuit from this relay can be meant for us."""
        return node_id in self._held or node_id in self._asking

    async def _hear_end(self, relay: Peer, request: bytes) -> bytes:
        """A relay says that our reservation has ended."""
        try:
            ended = decode_untrusted(request, Ended, limit=MAX_BYTES)
        except MalformedMessage as error:
            raise RemoteCallFailed(str(error)) from None
        if relay.node_id in self._held:
            self._fail(relay.node_id, str(RelayRefused(as_reason(ended.reason))))
            self._drop(relay.node_id)
        return b""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the reservations until the endpoint closes.

        Cancelling gives them up, and tells the relays for at most half a second.
        """
        try:
            async with trio.open_nursery() as nursery:
                with self._endpoint.watch() as events:
                    for peer in self._endpoint.peers.values():
                        self._consider(peer)
                    nursery.start_soon(self._keep)
                    nursery.start_soon(self._keep_trying)
                    task_status.started()
                    async for event in events:
                        match event:
                            case PeerUp(peer):
                                self._consider(peer)
                            case PeerDown(peer, reason):
                                self._lose(peer, reason)
                            case Lagged():
                                for held in list(self._held.values()):
                                    if held.peer.close_reason:
                                        self._lose(held.peer, held.peer.close_reason)
                            case _:
                                pass
                nursery.cancel_scope.cancel()
        finally:
            relays = sorted(self._held)
            for node_id in relays:
                self._drop(node_id)
            with trio.move_on_after(GATHER_S, shield=True):
                async with trio.open_nursery() as nursery:
                    for node_id in relays:
                        nursery.start_soon(self._release, node_id)

    def _lose(self, peer: Peer, reason: str) -> None:
        """A connection ended; the node may be back on another one, with a reservation of its own."""
        held = self._held.get(peer.node_id)
        if held is not None and held.peer is peer:
            self._fail(peer.node_id, reason)
            self._drop(peer.node_id)

    def _consider(self, peer: Peer) -> None:
        """A node that we could dial without help may serve others the same way."""
        if peer.initiated and peer.path is Path.DIRECT and peer.member.may_relay:
            self.candidates.add_node(peer.node_id, [peer.address])

    async def _keep(self) -> None:
        improve_at = trio.current_time() + IMPROVE_S
        while True:
            self._news = trio.Event()
            await self._renew()
            await self._shrink()
            if len(self._held) < self._wanted:
                await self._fill()
            now = trio.current_time()
            if now >= improve_at:
                improve_at = now + IMPROVE_S
                await self._improve()
            wake_at = min([improve_at, *(held.renew_at for held in self._held.values())])
            if len(self._held) < self._wanted:
                ready_at = self.candidates.next_at(self._held)
                wake_at = min(wake_at, math.inf if ready_at is None else ready_at)
            with trio.move_on_at(wake_at):
                await self._news.wait()

    # Trials

    async def _keep_trying(self) -> None:
        """Try each relay when it is due, beside everything else: an attempt may take long."""
        while True:
            self._granted = trio.Event()
            now = trio.current_time()
            due = [node_id for node_id, held in self._held.items() if held.try_at <= now]
            async with trio.open_nursery() as nursery:
                for node_id in due:
                    nursery.start_soon(self._try, node_id)
            next_at = min((held.try_at for held in self._held.values()), default=math.inf)
            with trio.move_on_at(next_at):
                await self._granted.wait()

    async def _try(self, node_id: NodeId) -> None:
        held = self._held[node_id]
        reason = await self.attempt(held.status)
        held_now = self._held.get(node_id)
        if held_now is None or held_now.since != held.since:
            return  # that place is gone
        now, jitter = trio.current_time(), self._endpoint.rng.uniform(0.9, 1.1)
        held_now.try_at = now + TRY_AGAIN_S * jitter
        if reason is None:
            return
        if not reason:
            held_now.failed_trials = 0
            self.candidates.worked(node_id)
            return
        held_now.failed_trials += 1
        self._reporter.count("relay-trial-failed")
        if held_now.failed_trials < FAILED_TRIALS:
            held_now.try_at = now + TRY_SOON_S
            return
        text = f"it holds a place for us and carries nothing: {reason}"
        self._fail(node_id, text, least_s=FAILED_REST_S)
        self._drop(node_id)
        await self._release(node_id)

    async def _renew(self) -> None:
        now = trio.current_time()
        due = [node_id for node_id, held in self._held.items() if held.renew_at <= now]
        async with trio.open_nursery() as nursery:
            for node_id in due:
                nursery.start_soon(self._renew_one, node_id)

    async def _renew_one(self, node_id: NodeId) -> None:
        peer = self._endpoint.peers.get(node_id)
        if peer is None or not await self._reserve(peer):
            self._drop(node_id)

    async def _shrink(self) -> None:
        while len(self._held) > max(0, self._wanted):
            node_id = self.relays[-1].node_id
            self._drop(node_id)
            await self._release(node_id)

    async def _fill(self) -> None:
        """Reserve with the best candidates until there are enough reservations, or nobody is left to ask."""
        while (missing := self._wanted - len(self._held)) > 0:
            taken = {self._network(held.peer.node_id) for held in self._held.values()}
            ready = self._ready(taken)
            if not ready:
                return
            near = [c for c in ready if c.rtt_s is not None and c.node_id in self._endpoint.peers]
            probed: list[Candidate] = []
            if not near:
                probed = ready[:PROBES]
                await self._probe(probed, missing)
            elif taken and all(self._network(c.node_id) in taken for c in near):
                # They can wait: there is a place already, and the next should be somewhere else.
                probed = [c for c in ready if self._network(c.node_id) not in taken][:PROBES]
                await self._probe(probed, 1)
            near += [c for c in probed if c.rtt_s is not None]
            async with trio.open_nursery() as nursery:
                for candidate in self._choose(near, missing, taken):
                    peer = self._endpoint.peers.get(candidate.node_id)
                    if peer is None:
                        self._fail(candidate.node_id, "the connection ended")
                    else:
                        nursery.start_soon(self._reserve, peer)

    def _choose(self, near: list[Candidate], count: int, taken: set[str]) -> list[Candidate]:
        """The nearest, each in a network of its own; one at least if there is any."""
        chosen: list[Candidate] = []
        for candidate in in_turn(sorted(near, key=_rtt), lambda c: self._network(c.node_id), taken):
            network = self._network(candidate.node_id)
            if len(chosen) < count and (not chosen or network not in taken):
                chosen.append(candidate)
                taken = {*taken, network}
        return chosen

    def _ready(self, taken: set[str]) -> list[Candidate]:
        """Whom to try now, those of networks that are not `taken` first."""
        ready = self.candidates.ready(trio.current_time(), self._held)
        return in_turn(ready, lambda c: self._network(c.node_id), taken)

    def _network(self, node_id: NodeId) -> str:
        """Where a node is: as we see it, else as it is said."""
        peer, entry = self._endpoint.peers.get(node_id), self.candidates.get(node_id)
        if peer is not None and not peer.address.relay:
            return network_of(peer.address.host)
        return "" if entry is None else network_of(entry.addresses[0].host)

    async def _improve(self) -> None:
        """Replace a relay that brings nobody, or the farthest if a much nearer one is to be had."""
        if not self._held or len(self._held) < self._wanted:
            return
        ready = self._ready({self._network(node_id) for node_id in self._held})[:PROBES]
        held = [entry for node_id in self._held if (entry := self.candidates.get(node_id))]
        await self._probe([*held, *ready], len(held) + len(ready))
        ready = [entry for entry in ready if entry.rtt_s is not None]
        proved = [relay for relay in self.relays if self._has_brought(relay.node_id)]
        idle = [relay for relay in self.relays if self._is_idle(relay.node_id)]
        if not (proved and idle):
            spare = [relay for relay in self.relays if len(proved) != 1 or relay not in proved]
            worst = max(spare, key=self._measured, default=None)
            limit_s = -math.inf if worst is None else BETTER * self._measured(worst)
            nearer = [c for c in ready if c.idle_at is None and (c.rtt_s or 0.0) <= limit_s]
            if worst is not None and await self._exchange(worst, sorted(nearer, key=_rtt)):
                return
        if idle:
            await self._exchange(self._endpoint.rng.choice(idle), ready)

    async def _exchange(self, relay: RelayStatus, candidates: Sequence[Candidate]) -> bool:
        """Give the place of `relay` to the first of the candidates that takes it; return whether one did."""
        for candidate in candidates:
            peer = self._endpoint.peers.get(candidate.node_id)
            if peer is not None and await self._reserve(peer):
                if self._is_idle(relay.node_id):
                    self.candidates.idle(relay.node_id, trio.current_time())
                self._drop(relay.node_id)
                await self._release(relay.node_id)
                return True
        return False

    def _has_brought(self, node_id: NodeId) -> bool:
        entry = self.candidates.get(node_id)
        return entry is not None and entry.circuits > 0

    def _is_idle(self, node_id: NodeId) -> bool:
        """Whether a relay has brought nobody, and has had the time to."""
        held = self._held.get(node_id)
        return (
            held is not None
            and trio.current_time() - held.since >= TRIAL_S
            and not self._has_brought(node_id)
        )

    def _measured(self, relay: RelayStatus) -> float:
        entry = self.candidates.get(relay.node_id)
        return math.inf if entry is None or entry.rtt_s is None else entry.rtt_s

    async def _probe(self, candidates: Sequence[Candidate], enough: int) -> None:
        """Measure candidates side by side; those that take much longer than enough others stay unmeasured."""
        answered = 0
        async with trio.open_nursery() as nursery:

            async def probe(candidate: Candidate) -> None:
                nonlocal answered
                if await self._measure(candidate):
                    answered += 1
                    if answered == enough:
                        nursery.cancel_scope.deadline = trio.current_time() + GATHER_S

            for candidate in candidates:
                nursery.start_soon(probe, candidate)

    async def _measure(self, candidate: Candidate) -> bool:
        node_id = candidate.node_id
        try:
            with trio.move_on_after(PROBE_S):
                peer = await self._endpoint.connect(candidate.addresses, expected=node_id)
                if peer.path is Path.RELAYED:
                    self._fail(node_id, "it is reached over a relay itself")
                    return False
                self.candidates.measured(node_id, await peer.ping())
                return True
        except TransportError as error:
            self._fail(node_id, str(error))
        else:
            self._fail(node_id, f"no answer within {PROBE_S:g} s")
        return False

    async def _reserve(self, peer: Peer) -> bool:
        """Ask for a reservation, or for more time; note the outcome."""
        node_id = peer.node_id
        if not peer.member.may_relay:
            self._fail(node_id, "its certificate does not let it relay")
            return False
        self._asking.add(node_id)
        try:
            with trio.move_on_after(ANSWER_S):
                answer = read_reserve_answer(await peer.call(RESERVE, pack(Reserve(release=False))))
                if isinstance(answer, Granted):
                    self._hold(peer, answer)
                    return True
                error = answer.as_error() if isinstance(answer, Refused) else None
                self._refused(node_id, error or RelayRefused(Reason.MALFORMED))
                return False
        except RemoteCallFailed:
            self._refused(node_id, RelayRefused(Reason.NOT_SERVING))
        except MalformedMessage:
            self._refused(node_id, RelayRefused(Reason.MALFORMED))
        except TransportError as error:
            self._fail(node_id, str(error))
        else:
            self._fail(node_id, f"no answer within {ANSWER_S:g} s")
        finally:
            self._asking.discard(node_id)
        return False

    async def _release(self, node_id: NodeId) -> None:
        peer = self._endpoint.peers.get(node_id)
        if peer is not None:
            try:
                with trio.move_on_after(GATHER_S):
                    await peer.call(RESERVE, pack(Reserve(release=True)))
            except TransportError:
                pass  # it forgets us when the connection ends

    def _hold(self, peer: Peer, terms: Granted) -> None:
        node_id, now = peer.node_id, trio.current_time()
        entry = self.candidates.get(node_id)
        published = [attrs.evolve(a, relay=str(node_id)) for a in self._proved(peer)]
        status = RelayStatus(
            node_id,
            tuple(published[:MAX_ADDRESSES]),
            peer.rtt_s if entry is None else entry.rtt_s,
            now + terms.expires_s,
            terms,
        )
        # At least a pause: a relay must not make us ask without end.
        renew_at, old = now + max(1.0, terms.expires_s / 2), self._held.get(node_id)
        if old is None:  # that it serves, a trial will show
            self._held[node_id] = _Held(status, peer, renew_at, since=now, try_at=now)
            self._granted.set()
        else:
            self._held[node_id] = attrs.evolve(old, status=status, peer=peer, renew_at=renew_at)
        self._publish()

    def _proved(self, peer: Peer) -> list[Address]:
        """Where a relay listens for certain, or as it says of the very host we see it at.

        What else it says, or others say of it, is not repeated in our name: everybody who looks for us would dial that.
        """
        seen = peer.address.direct
        entry = self.candidates.get(peer.node_id)
        named = [*(() if entry is None else entry.addresses), *peer.listen]
        here = [a for a in named if a.is_ip and a.host == seen.host and a.port and not a.relay]
        return list(dict.fromkeys([*([seen] if peer.initiated else []), *here]))

    def _drop(self, node_id: NodeId) -> None:
        if self._held.pop(node_id, None) is not None:
            self._publish()
            self._look()

    def _refused(self, node_id: NodeId, error: RelayRefused) -> None:
        self._reporter.count(f"reservation-refused-{error.reason.value}")
        self._fail(node_id, str(error), least_s=error.retry_s)

    def _fail(self, node_id: NodeId, reason: str, *, least_s: float = 0.0) -> None:
        now, jitter = trio.current_time(), self._endpoint.rng.random()
        self.candidates.failed(node_id, reason, now, least_s=least_s, jitter=jitter)

    def _look(self) -> None:
        self._news.set()

    def _publish(self) -> None:
        found = tuple(address for relay in self.relays for address in relay.addresses)
        if found != self._published:
            self._published = found
            self.on_change(found)


async def _no_verdict(_status: RelayStatus) -> None:
    """Without anything that can try a relay, nothing can be said of it."""


def _rtt(candidate: Candidate) -> float:
    return math.inf if candidate.rtt_s is None else candidate.rtt_s


def _distance(relay: RelayStatus) -> tuple[float, NodeId]:
    return math.inf if relay.rtt_s is None else relay.rtt_s, relay.node_id
