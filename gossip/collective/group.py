"""The collective group of one run: epochs, ring all-reduce and state hand-over (trio driver).

Owns the only `EpochMachine` of the run, feeds it what peers send, and carries out what it says:

* one outgoing URGENT stream per peer (`Outgoing`); incoming streams are read by the endpoint's handlers;
* two bulk links per epoch (next and previous member), opened when the epoch is entered and thrown
  away with it, so that bytes of an aborted operation can never be taken for another's;
* the data plane (`gossip.collective.ring`), run in the caller's task and cancelled when the operation is
  aborted.

`all_reduce` returns only with a certificate. It retries by itself in the next epoch from the
untouched source; the caller's cancel scope is its deadline.
"""

from __future__ import annotations

import logging
import math
import random
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import attrs
import numpy.typing as npt
import trio

from gossip.collective.certificate import Certificate, Epoch
from gossip.collective.epoch import DEFAULTS, EpochMachine
from gossip.collective.epoch_events import (
    EpochEntered,
    EpochLeft,
    EpochSettings,
    MemberAccused,
    MembersWaiting,
    OperationAborted,
    OperationCertified,
)
from gossip.collective.lineage import Memory
from gossip.collective.messages import AnyMessage, Message, decode_message_untrusted, encode
from gossip.collective.operands import bind_descriptor, check_operands, first_error
from gossip.collective.operation import Operation, OperationState
from gossip.collective.outgoing import Outgoing
from gossip.collective.ring import Reduction, RingPlace, RingResult, ring_all_reduce
from gossip.collective.ring_links import RingLinks
from gossip.collective.standing import NO_MODEL
from gossip.errors import (
    CollectiveAborted,
    DescriptorMismatch,
    GossipError,
    Indeterminate,
)
from transport.codec import decode_untrusted, pack
from transport.endpoint import Endpoint, PeerDown, PeerUp
from transport.errors import MalformedMessage, TransportError
from transport.identity import NodeId
from transport.peer import Peer
from transport.streams.frames import Priority
from transport.streams.stream import Stream
from transport.watch import Lagged

_log = logging.getLogger(__name__)

MAX_NOTES: Final = 64
MAX_EARLY: Final = 16
"""Messages of a peer kept until both directions are there; its status, and little more."""
RETRY_S: Final = 0.2
"""Before a refused stream is tried again while the peer talks to us."""

Array = npt.NDArray[Any]


@attrs.frozen
class Reduced:
    """A certified all-reduce."""

    epoch: Epoch
    certificate: Certificate
    weight: float
    """Sum of the members' weights."""
    seconds: float
    """From begin to certificate."""


class Behind(GossipError):
    """This node's state is not the epoch's start state: fetch it from `holders` first."""

    def __init__(self, epoch: Epoch, holders: Sequence[NodeId]) -> None:
        super().__init__(f"behind: epoch {epoch.number} starts at round {epoch.round}")
        self.epoch = epoch
        self.holders = tuple(holders)


@attrs.define
class _Running:
    """The operation whose data plane runs, or has run, in the caller's task."""

    operation: Operation
    started: float
    scope: trio.CancelScope
    done: trio.Event = attrs.field(factory=trio.Event)
    result: RingResult | None = None
    certificate: Certificate | None = None
    reason: str = ""
    mismatch: bool = False


class Group:
    """This node's membership in the collective group of a run; made by `open_group`."""

    def __init__(
        self,
        endpoint: Endpoint,
        run: bytes,
        machine: EpochMachine,
        nursery: trio.Nursery,
        remember: Callable[[bytes], None] = lambda _memory: None,
    ) -> None:
        self.run = run
        self.machine = machine
        self.notes: deque[str] = deque(maxlen=MAX_NOTES)
        """Recent epoch changes and aborts, in words, for people."""
        self.aborted_operations = 0
        self.accusations: Counter[NodeId] = Counter()
        """How often each member was caught breaking the rules; `notes` say how."""
        self.on_waiting: Callable[[int, int], None] = lambda _count, _of: None
        """Told when `count` of `of` members wait in an operation that this node has not begun."""
        self._endpoint = endpoint
        self._nursery = nursery
        self._remember = remember
        self._remembered: tuple[object, ...] | None = None
        self._early: dict[NodeId, deque[AnyMessage]] = {}
        self._protocol = f"run/{run.hex()[:32]}"
        self._senders: dict[NodeId, Outgoing] = {}
        self._inbound: Counter[NodeId] = Counter()
        self._talking: set[NodeId] = set()
        self._listening: set[trio.CancelScope] = set()
        self._closed = False
        self._linked: set[NodeId] = set()
        self._alarm = trio.CancelScope()  # around the timer's sleep
        self._changed = trio.Event()
        self._running: _Running | None = None
        self._behind: tuple[Epoch, tuple[NodeId, ...]] | None = None
        self._leaving = False
        self._ring = RingLinks(
            endpoint, nursery, on_change=self._notify, on_failure=self._break_epoch
        )

    # ---- what the owner calls --------------------------------------------------------------

    @property
    def epoch(self) -> Epoch | None:
        """The epoch this node is a member of now."""
        return self.machine.epoch

    def set_position(self, round_: int, state: bytes) -> None:
        """This node holds `state` after `round_` rounds and is ready for the next operation."""
        self.machine.set_ready(round_, state, trio.current_time())
        if self.machine.in_step:
            self._behind = None
        self._flush()

    def set_not_ready(self, reason: str) -> None:
        """This node cannot take part until the next `set_position`."""
        self.machine.set_not_ready(reason, trio.current_time())
        self._behind = None
        self._flush()

    async def wait_entered(self) -> None:
        """Wait until this node is in an epoch at its start state.

        Raises:
            Behind: it is in an epoch, but has to fetch the state first.
        """
        while not self.machine.can_begin:
            self._raise_if_behind()
            await self._changed.wait()

    async def all_reduce(
        self,
        descriptor: bytes,
        source: Array,
        out: Array,
        *,
        mean: bool = False,
        weight: float = 1.0,
        deadline: float = math.inf,
    ) -> Reduced:
        """Reduce over the epoch's members; returns with the certificate, retrying until then.

        Args:
            descriptor: what all members must agree on (tag, state, round...), any bytes.
            source: 1-D contiguous values of this node; only read.
            out: 1-D contiguous, same length and type; undefined until this returns.
            mean: divide by the sum of the weights.
            weight: factor of this node's values.
            deadline: trio time by which this ends, one way or another.

        Cancellation aborts the operation for all members.

        Raises:
            Behind: fetch the state first.
            DescriptorMismatch: a member called a different operation; no retry can help.
            CollectiveAborted: no certificate by the deadline, and nothing signed here.
            Indeterminate: no certificate by the deadline, but this node has signed a result that
                the others may hold one for.
            InvalidOperation: the arguments cannot be reduced; nothing was started.
        """
        check_operands(source, out, mean=mean, weight=weight)
        bound = bind_descriptor(descriptor, source, mean=mean)
        self._forget_other(bound)
        with trio.CancelScope(deadline=deadline):
            while True:
                reduced = await self._attempt(bound, source, out, mean=mean, weight=weight)
                if reduced is not None:
                    return reduced
        raise self.outcome_unknown() or CollectiveAborted("no certificate by the deadline")

    def _forget_other(self, descriptor: bytes) -> None:
        """Drop what a cancelled call left behind, unless this call asks for the same."""
        running = self._running
        if running is not None and running.operation.descriptor == descriptor:
            running.mismatch = False
            return
        self._running = None
        self.machine.forget_unsettled()

    async def _attempt(
        self, descriptor: bytes, source: Array, out: Array, *, mean: bool, weight: float
    ) -> Reduced | None:
        await self._wait_turn()
        settled = self._take_certified()
        if settled is not None:
            return settled
        operation = self.machine.begin(descriptor, trio.current_time())
        running = self._running = _Running(operation, trio.current_time(), trio.CancelScope())
        self._flush()
        try:
            with running.scope:
                place = await self._place(operation.epoch)
                reduction = Reduction(operation.sequence, descriptor, mean=mean, weight=weight)
                running.result = await ring_all_reduce(place, reduction, source, out)
                self.machine.result(running.result.root, trio.current_time())
                self._flush()
                await running.done.wait()
        except* (TransportError, GossipError) as group:
            self._data_plane_failed(running, group)
        except* BaseException:
            # Cancelled by the caller, or a mistake of its own: the others must not wait for it.
            self.machine.fail("given up by its caller", trio.current_time())
            self._flush()
            raise
        if running.certificate is None and running.mismatch:
            raise DescriptorMismatch(running.reason)
        return self._take_certified()

    async def _wait_turn(self) -> None:
        while not self.machine.can_begin:
            self._raise_if_behind()
            running = self._running
            if running is not None and running.certificate is not None:
                return
            if running is not None and running.mismatch:
                raise DescriptorMismatch(running.reason)
            await self._changed.wait()

    def _take_certified(self) -> Reduced | None:
        """The result of the last data plane run, if a certificate (perhaps a late one) is here."""
        running = self._running
        if running is None or running.certificate is None or running.result is None:
            return None
        self._running = None
        return Reduced(
            running.operation.epoch,
            running.certificate,
            running.result.weight,
            trio.current_time() - running.started,
        )

    def _data_plane_failed(self, running: _Running, group: BaseExceptionGroup[Exception]) -> None:
        error = first_error(group)
        running.mismatch = running.mismatch or isinstance(error, DescriptorMismatch)
        if not running.reason:
            running.reason = str(error)
        if running.operation.state is OperationState.RUNNING:
            self.machine.fail(str(error), trio.current_time(), mismatch=running.mismatch)
            self._flush()

    def _raise_if_behind(self) -> None:
        if self._behind is not None and self.machine.epoch is not None:
            raise Behind(*self._behind)

    def outcome_unknown(self) -> Indeterminate | None:
        """After an `all_reduce` that was given up: an error if this node had signed a result."""
        running = self._running
        if running is not None and running.operation.root is not None and not running.certificate:
            return Indeterminate(
                f"operation {running.operation.sequence} of epoch {running.operation.epoch.number}"
            )
        return None

    # ---- events of the machine -------------------------------------------------------------

    def _flush(self) -> None:
        """Carry out everything the machine has decided; never blocks."""
        while (event := self.machine.next_event()) is not None:
            match event:
                case EpochEntered(epoch, behind, holders):
                    self._entered(epoch, behind, holders)
                case EpochLeft(reason):
                    self.notes.append(f"left the epoch: {reason}")
                    _log.info("left the epoch: %s", reason)
                    self._behind = None
                    self._ring.drop(reason)
                case OperationCertified(operation, certificate):
                    if self._running is not None and self._running.operation is operation:
                        self._running.certificate = certificate
                        self._running.done.set()
                case OperationAborted(operation, reason, mismatch):
                    self.aborted_operations += 1
                    self.notes.append(f"operation {operation.sequence} aborted: {reason}")
                    running = self._running
                    if running is not None and running.operation is operation:
                        running.reason, running.mismatch = reason, mismatch
                        running.scope.cancel()
                case MembersWaiting(count, of):
                    self.on_waiting(count, of)
                case MemberAccused(node, reason):
                    self.accusations[node] += 1
                    self.notes.append(f"{node.short} {reason}")
                    _log.warning("%s %s: left out for a while", node.short, reason)
        self._remember_epoch()
        for node, message in self.machine.outgoing():
            self._enqueue(node, message)
        self._set_alarm()
        self._notify()

    def _set_alarm(self) -> None:
        """Let the timer's sleep end no later than the machine wants.

        A later deadline is left for the timer to find: waking it costs more than an operation should pay.
        """
        deadline = self.machine.next_deadline()
        if deadline is not None and deadline < self._alarm.deadline:
            self._alarm.deadline = deadline

    def _remember_epoch(self) -> None:
        """Before the first vote in an epoch leaves this node, it is where a restart finds it."""
        memory = self.machine.memory
        if memory is not None and memory.lasting != self._remembered:
            self._remembered = memory.lasting
            self._remember(pack(memory))

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def _entered(self, epoch: Epoch, behind: bool, holders: tuple[NodeId, ...]) -> None:
        names = ", ".join(member.short for member in epoch.members)
        self.notes.append(f"entered epoch {epoch.number} with {len(epoch.members)} members")
        _log.info("epoch %d: %d members: %s", epoch.number, len(epoch.members), names)
        self._behind = (epoch, holders) if behind else None
        self._ring.enter(epoch)

    def _enqueue(self, node: NodeId, message: Message) -> None:
        sender = self._senders.get(node)
        if sender is None:
            return
        try:
            sender.send(encode(message))
        except trio.WouldBlock:
            self.notes.append(f"{node.short} does not read its messages")
            self._nursery.start_soon(self._drop_deaf, node)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._senders.pop(node, None)

    async def _drop_deaf(self, node: NodeId) -> None:
        peer = self._endpoint.peers.get(node)
        if peer is not None:
            peer.close("does not read its messages")
        self._forget(node, "does not read its messages")

    # ---- leaving ------------------------------------------------------------------------------

    def _break_epoch(self, reason: str, suspects: tuple[NodeId, ...]) -> None:
        self.machine.break_epoch(reason, trio.current_time(), suspects=suspects)
        self._flush()

    async def _place(self, epoch: Epoch) -> RingPlace:
        while (place := self._ring.place(epoch)) is None:
            await self._changed.wait()
        return place

    async def leave(self) -> None:
        """Tell the members that this node leaves in good order, and wait until it is written.

        Cancellation leaves some of them untold: they will find it lost instead.
        """
        self._leaving = True
        self.machine.leave(trio.current_time())
        self._flush()
        for sender in list(self._senders.values()):
            sender.close()
        while self._senders:
            await self._changed.wait()

    def _close(self) -> None:
        """Handlers of incoming streams belong to the endpoint and outlive this group's tasks."""
        self._closed = True
        self._ring.drop("the group is closed")
        for listening in self._listening:
            listening.cancel()

    # ---- streams -----------------------------------------------------------------------------

    async def _run_timer(self) -> None:
        """Tick the machine when it asks for it."""
        while True:
            self._alarm = trio.CancelScope()
            self._set_alarm()
            with self._alarm:
                await trio.sleep_forever()
            deadline = self.machine.next_deadline()
            if deadline is not None and trio.current_time() >= deadline:
                self.machine.tick(trio.current_time())
                self._flush()

    async def _watch_peers(self) -> None:
        with self._endpoint.watch() as events:
            for peer in list(self._endpoint.peers.values()):
                self._talk(peer)
            async for event in events:
                match event:
                    case PeerUp(peer=peer):
                        self._talk(peer)
                    case PeerDown(peer=peer, reason=reason):
                        self._forget(peer.node_id, reason)
                    case Lagged():
                        self._reconcile_peers()

    def _reconcile_peers(self) -> None:
        """Events were lost: compare with who is connected now."""
        peers = self._endpoint.peers
        for node in [node for node in self._senders if node not in peers]:
            self._forget(node, "lost")
        for node in sorted(peers):
            self._talk(peers[node])

    def _talk(self, peer: Peer) -> None:
        if peer.node_id not in self._talking:
            self._talking.add(peer.node_id)
            self._nursery.start_soon(self._talk_to, peer)

    def _forget(self, node: NodeId, reason: str) -> None:
        """The outgoing stream to `node` is of no use any more."""
        sender = self._senders.pop(node, None)
        if sender is not None:
            sender.close()
        self._update(node, reason)

    def _update(self, node: NodeId, reason: str = "") -> None:
        """A peer takes part once both directions are there: then neither side misses a message."""
        linked = node in self._senders and self._inbound[node] > 0
        if linked and node not in self._linked:
            peer = self._endpoint.peers.get(node)
            if peer is not None:
                self._linked.add(node)
                self.machine.peer_up(node, peer.public_key, trio.current_time())
                for message in self._early.pop(node, ()):
                    self.machine.receive(node, message, trio.current_time())
        elif not linked and node in self._linked:
            self._linked.discard(node)
            self.machine.peer_down(node, reason, trio.current_time())
        self._flush()

    async def _talk_to(self, peer: Peer) -> None:
        """Own the outgoing stream to one peer for as long as it is connected and interested.

        A peer that does not serve the run (yet) refuses the stream; it opens one itself when it
        does, and then this side tries again.
        """
        node = peer.node_id
        try:
            while not peer.closed.is_set() and not self._leaving:
                await self._speak(peer)
                if self._inbound[node] == 0:
                    break
                await trio.sleep(RETRY_S)
        finally:
            self._talking.discard(node)
            current = self._endpoint.peers.get(node)
            if current is not None and current is not peer:
                self._talk(current)

    async def _speak(self, peer: Peer) -> None:
        """One outgoing stream, from opening it to its end."""
        node = peer.node_id
        sender: Outgoing | None = None
        reason = "left the run"
        try:
            stream = await peer.open_stream(self._protocol, priority=Priority.URGENT)
            sender = self._senders[node] = Outgoing(stream)
            self._update(node)
            async with stream, trio.open_nursery() as nursery:
                nursery.start_soon(_wait_for_end, stream, nursery.cancel_scope)
                await sender.run()
                nursery.cancel_scope.cancel()
        except* TransportError as group:
            reason = str(first_error(group))
        finally:
            if sender is not None and self._senders.get(node) is sender:
                self._forget(node, reason)

    async def _listen(self, stream: Stream) -> None:
        """Handler of a peer's incoming stream."""
        peer = stream.peer
        node = peer.node_id
        reason = "left the run"
        listening = trio.CancelScope()
        self._listening.add(listening)
        self._inbound[node] += 1
        self._talk(peer)
        self._update(node)
        try:
            with listening:
                while True:
                    message = decode_message_untrusted(await stream.receive_message())
                    if node not in self._linked:
                        # It was quicker than the answer to our own stream; see `_update`.
                        self._early.setdefault(node, deque(maxlen=MAX_EARLY)).append(message)
                        continue
                    self.machine.receive(node, message, trio.current_time())
                    self._flush()
        except MalformedMessage as error:
            peer.close(f"malformed run message: {error}")
        except TransportError as error:
            reason = str(error) or reason
        finally:
            self._listening.discard(listening)
            self._inbound[node] -= 1
            if not self._inbound[node]:
                del self._inbound[node]
                self._early.pop(node, None)
            if not self._closed:
                self._update(node, reason)


async def _wait_for_end(stream: Stream, writer: trio.CancelScope) -> None:
    """Nothing ever comes back on this stream, except its end: a peer that is not in the run."""
    try:
        await stream.receive_some(1)
    finally:
        writer.cancel()


@asynccontextmanager
async def open_group(
    endpoint: Endpoint,
    run: bytes,
    *,
    model: bytes = NO_MODEL,
    settings: EpochSettings = DEFAULTS,
    rng: random.Random,
    memory: bytes | None = None,
    remember: Callable[[bytes], None] = lambda _memory: None,
) -> AsyncIterator[Group]:
    """Take part in the collectives of `run` with every connected peer that does so too.

    `remember` is given what has to survive a restart (at most 64 KiB) whenever it changes: with the first
    vote in an epoch, before that is sent; it returns once it is on the disk. `memory` is what it was given
    last. A node that starts without it counts for a majority only when nobody of the epoch is missing.

    Leaving the context ends every task at once; `Group.leave` before that tells the members.
    """
    recalled = None
    if memory is not None:
        try:
            recalled = decode_untrusted(memory, Memory)
        except MalformedMessage as error:
            _log.warning(
                "what was stored of the run's epochs is damaged, starting without: %s", error
            )
    machine = EpochMachine(
        run, endpoint.identity, model=model, rng=rng, settings=settings, memory=recalled
    )
    async with trio.open_nursery() as nursery:
        group = Group(endpoint, run, machine, nursery, remember)
        # Only a trainer votes: what others say about epochs is not even read.
        endpoint.serve(group._protocol, group._listen, permitted=lambda m: m.may_train)  # noqa: SLF001 - one unit
        nursery.start_soon(group._watch_peers)  # noqa: SLF001
        nursery.start_soon(group._run_timer)  # noqa: SLF001
        try:
            yield group
        finally:
            endpoint.unserve(group._protocol)  # noqa: SLF001
            group._close()  # noqa: SLF001
            nursery.cancel_scope.cancel()
