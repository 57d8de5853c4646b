"""The collective group of one run: epochs, operations, and the links that carry them (trio driver).

Owns the only `EpochMachine` of the run, feeds it what peers say (`talk`), and carries out what it decides: callers' operations
(`calls`) begin, end and are done again; the bulk links of an epoch (`mesh`) are opened when it is entered and thrown
away with it, so that bytes of an aborted operation can never be taken for another's.

An operation returns only with a certificate. It retries by itself in the next epoch from the
untouched source; the caller's cancel scope, or `deadline`, ends that.
"""

from __future__ import annotations

import logging
import math
import random
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Final

import numpy as np
import trio

from gossip.collective.agreement.certificate import Epoch
from gossip.collective.agreement.epoch import DEFAULTS, EpochMachine
from gossip.collective.agreement.epoch_events import (
    EpochEntered,
    EpochLeft,
    EpochSettings,
    MemberAccused,
    MembersWaiting,
    OperationAborted,
    OperationCertified,
)
from gossip.collective.agreement.lanes import ROUND_LANE
from gossip.collective.agreement.lineage import Memory
from gossip.collective.agreement.messages import AnyMessage, Begin, Vote
from gossip.collective.agreement.operation import Operation
from gossip.collective.agreement.standing import NO_MODEL
from gossip.collective.call import AUTO, EXACT, Array, Call, Kind, Reduce
from gossip.collective.calls import Behind, Calls, Handle, Job, Reduced
from gossip.collective.links.mesh import Lane, Mesh
from gossip.collective.placing.arranging import Arranger
from gossip.collective.placing.probing import PROBE_LANE, probe
from gossip.collective.placing.rhythm import Measure, Rhythm
from gossip.collective.talk import Talk
from gossip.errors import Indeterminate
from transport.codec import decode_untrusted, pack
from transport.endpoint import Endpoint
from transport.errors import MalformedMessage
from transport.identity import NodeId

__all__ = ["Behind", "Group", "Handle", "Job", "Reduced", "open_group"]

_log = logging.getLogger(__name__)

MAX_NOTES: Final = 64
BEAT_S: Final = 0.1
"""Between two operations that are measured."""
BEAT_MARGIN_S: Final = 0.01
"""Others began the one before so much earlier or later, and measure another one than this node would."""

_NOTHING: Final = np.empty(0, np.float32)


class Group:
    """This node's membership in the collective group of a run; made by `open_group`."""

    def __init__(
        self,
        endpoint: Endpoint,
        run: bytes,
        machine: EpochMachine,
        nursery: trio.Nursery,
        remember: Callable[[bytes], None] = lambda _memory: None,
        *,
        site: Callable[[NodeId], str] = lambda _member: "",
        probing: bool = False,
    ) -> None:
        self.run = run
        self.machine = machine
        self.notes: deque[str] = deque(maxlen=MAX_NOTES)
        """Recent epoch changes and aborts, in words, for people."""
        self.aborted_operations = 0
        self.accusations: Counter[NodeId] = Counter()
        """How often each member was caught breaking the rules; `notes` say how."""
        self.on_waiting: Callable[[int, int], None] = lambda _count, _of: None
        """Told when `count` of `of` members wait in an operation of lane 0 that this node has not begun."""
        self._endpoint = endpoint
        self._me = endpoint.node_id
        self.rhythm = Rhythm(self._me)
        """Who has become slow, told from the operations of lane 0."""
        self._arranger = Arranger(
            self.rhythm.rates, rtt_s=self._rtt_s, near=self._is_near, site=site, probing=probing
        )
        machine.arrange = lambda members: self._arranger.layout(members, trio.current_time())
        self.on_measured: Callable[[Measure], None] = lambda _measure: None
        """Told what a link from this node carried."""
        self._nursery = nursery
        self._remember = remember
        self._remembered: tuple[object, ...] | None = None
        self._alarm = trio.CancelScope()  # around the timer's sleep
        self._beat_due = -math.inf
        self._changed: trio.Event | None = None  # of whoever waits for a change
        self._behind: tuple[Epoch, tuple[NodeId, ...]] | None = None
        self._mesh = Mesh(endpoint, nursery, on_change=self._notify, on_failure=self._break_epoch)
        self._talk = Talk(
            endpoint,
            f"run/{run.hex()[:32]}",
            nursery,
            on_up=self._peer_up,
            on_down=self._peer_down,
            on_message=self._receive,
            on_note=self.notes.append,
        )
        self._calls = Calls(
            machine,
            self._mesh,
            flush=self._flush,
            notify=self._notify,
            changed=self._next_change,
            behind=self._is_behind,
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
        """Wait until this node is in an epoch at its start state, and nothing of lane 0 is under way.

        Raises:
            Behind: it is in an epoch, but has to fetch the state first.
        """
        while not self.machine.can_begin:
            behind = self._is_behind()
            if behind is not None:
                raise behind
            await self._next_change().wait()

    def rearrange(self) -> None:
        """Form a new epoch of the same members when that makes operations faster, unless one is under way."""
        epoch = self.machine.epoch
        if epoch is None or self.machine.busy or not self.machine.can_begin:
            return
        if self._arranger.improves(epoch, trio.current_time()):
            self.machine.break_epoch("another order of the ring is faster", trio.current_time())
            self._flush()

    async def wait_changed(self) -> None:
        """Wait until anything has happened: an epoch has come or gone, an operation has ended."""
        await self._next_change().wait()

    async def leave(self) -> None:
        """Tell the members that this node leaves in good order, and wait until it is written.

        Cancellation leaves some of them untold: they will find it lost instead.
        """
        self.machine.leave(trio.current_time())
        self._flush()
        await self._talk.finish()

    # ---- operations ------------------------------------------------------------------------

    async def run_job(self, job: Job) -> Reduced:
        """Carry out an operation with the epoch's members; returns with the certificate, retrying until then.

        Of one tag, jobs are carried out in the order of the calls, which has to be the same at all members; those of
        different tags run at once. A job of tag 0 moves the run's position by one round, whatever its kind:
        nothing more begins there before the next `set_position`.

        Cancellation aborts the operation, and with it the epoch, for all members.

        Raises:
            Behind: fetch the state first (tag 0; jobs of other tags wait for that).
            DescriptorMismatch: a member called a different operation; no retry can help.
            CollectiveAborted: no certificate by the deadline, and nothing signed here; or the root of a
                broadcast is not among the members.
            Indeterminate: no certificate by the deadline, but this node has signed a result that
                the others may hold one for.
            EpochChanged: the job was for an epoch that has ended.
            InvalidOperation: the arguments cannot be carried out; nothing was started.
        """
        return await self._calls.carry_out(job, self._calls.enqueue(job))

    def start(self, job: Job) -> Handle:
        """As `run_job`, in the background: the handle is waited for later, or never.

        The vectors belong to the operation until it has ended. Its place in the order of its tag is taken now.

        Raises:
            InvalidOperation: as for `run_job`.
        """
        place = self._calls.enqueue(job)
        handle = Handle(lambda: self._calls.release(place))
        self._nursery.start_soon(handle.run, lambda: self._calls.carry_out(job, place))
        return handle

    async def all_reduce(
        self,
        descriptor: bytes,
        source: Array,
        out: Array,
        *,
        reduce: Reduce = Reduce.SUM,
        mean: bool = False,
        weight: float = 1.0,
        wire: str = EXACT,
        algorithm: str = AUTO,
        tag: int = ROUND_LANE,
        deadline: float = math.inf,
    ) -> Reduced:
        """Reduce over the epoch's members, as `run_job`.

        Args:
            descriptor: what all members must agree on (state, round...), any bytes; with kind, type,
                length, format and algorithm it becomes the operation's.
            source: values of this node, 1-D; only read.
            out: same length and type; undefined until this returns.
            reduce: how values become one.
            mean: short for `reduce=Reduce.MEAN`: the sum over the sum of the weights.
            weight: factor of this node's values.
            wire: how values travel: `exact`, or a format (`gossip.collective.formats`).
            algorithm: `auto`, or the name of one.
            tag: the lane.
            deadline: trio time by which this ends, one way or another.
        """
        call = Call(Kind.ALL_REDUCE, Reduce.MEAN if mean else reduce, weight, None, wire, algorithm)
        return await self.run_job(
            Job(call.bind(descriptor, source), source, out, tag=tag, deadline=deadline)
        )

    async def reduce_scatter(
        self,
        descriptor: bytes,
        source: Array,
        out: Array,
        *,
        reduce: Reduce = Reduce.SUM,
        weight: float = 1.0,
        wire: str = EXACT,
        tag: int = ROUND_LANE,
        deadline: float = math.inf,
    ) -> Reduced:
        """This member's part of the reduction, at the start of `out`, which has room for any part."""
        call = Call(Kind.REDUCE_SCATTER, reduce, weight, wire=wire).bind(descriptor, source)
        return await self.run_job(Job(call, source, out, tag=tag, deadline=deadline))

    async def all_gather(
        self,
        descriptor: bytes,
        source: Array,
        out: Array,
        *,
        wire: str = EXACT,
        tag: int = ROUND_LANE,
        deadline: float = math.inf,
        sole: bool = False,
    ) -> Reduced:
        """Everybody's values in member order, at the start of `out`, which has room for all members."""
        call = Call(Kind.ALL_GATHER, wire=wire).bind(descriptor, source)
        return await self.run_job(Job(call, source, out, tag=tag, deadline=deadline, sole=sole))

    async def broadcast(
        self,
        descriptor: bytes,
        source: Array,
        out: Array,
        root: NodeId,
        *,
        wire: str = EXACT,
        tag: int = ROUND_LANE,
        deadline: float = math.inf,
    ) -> Reduced:
        """The root's values in everybody's `out`; `source` of the others is of the same length and not looked at."""
        call = Call(Kind.BROADCAST, root=root, wire=wire).bind(descriptor, source)
        return await self.run_job(Job(call, source, out, tag=tag, deadline=deadline))

    async def barrier(
        self,
        descriptor: bytes,
        *,
        tag: int = ROUND_LANE,
        deadline: float = math.inf,
        within: bytes | None = None,
        sole: bool = False,
    ) -> Reduced:
        """Return when all members have come, and agree on the descriptor; `within` and `sole` as in `Job`."""
        call = Call(Kind.BARRIER).bind(descriptor, _NOTHING)
        return await self.run_job(Job(call, _NOTHING, _NOTHING, tag, deadline, within, sole))

    def release_sole(self) -> None:
        """The sole call under way here is being given up: the next one need not wait until it has come to its end."""
        self._calls.release()

    def outcome_unknown(self, tag: int = ROUND_LANE) -> Indeterminate | None:
        """After a call that was given up: an error if this node had signed a result."""
        return self._calls.outcome_unknown(tag)

    def _rtt_s(self, member: NodeId) -> float | None:
        peer = self._endpoint.peers.get(member)
        return None if peer is None else peer.rtt_s

    def _is_near(self, member: NodeId) -> bool:
        """On this machine, as far as its address tells."""
        peer = self._endpoint.peers.get(member)
        return member == self._me or (peer is not None and peer.local)

    def _is_behind(self) -> Behind | None:
        if self._behind is not None and self.machine.epoch is not None:
            return Behind(*self._behind)
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
                    self._mesh.drop(reason)
                    self.rhythm.given_up()
                case OperationCertified(operation, certificate):
                    began = self._calls.certified(operation, certificate)
                    if operation.lane == ROUND_LANE and began is not None:
                        self._measure(operation, began)
                case OperationAborted(operation, reason, mismatch):
                    self.aborted_operations += 1
                    where = f" of tag {operation.lane}" if operation.lane else ""
                    self.notes.append(f"operation {operation.sequence}{where} aborted: {reason}")
                    self._calls.aborted(operation, reason, mismatch=mismatch)
                case MembersWaiting(count, of):
                    self.on_waiting(count, of)
                case MemberAccused(node, reason):
                    self.accusations[node] += 1
                    self.notes.append(f"{node.short} {reason}")
                    _log.warning("%s %s: left out for a while", node.short, reason)
        self._remember_epoch()
        for node, message in self.machine.outgoing():
            self._talk.send(node, message)
        self._set_alarm()
        self._notify()

    def _measure(self, operation: Operation, began: float) -> None:
        """What a certified operation says about its members and links.

        Of operations that follow each other closely one in `BEAT_S` is enough: looking at one costs as much as a small one itself.
        """
        if began < self._beat_due:
            self.rhythm.passed(operation.sequence)
            return
        self._beat_due = began + BEAT_S
        self.rhythm.began(operation.sequence, self._me, began)
        now = trio.current_time()
        for member in operation.epoch.members:  # by now at the latest: votes need not come here
            self.rhythm.began(operation.sequence, member, now)
        links = self._mesh.lane(operation.epoch, operation.lane)
        measures = [] if links is None else list(_measures(links))
        self.rhythm.ended(operation.sequence, operation.epoch.members, measures)
        for measure in measures:
            self.on_measured(measure)

    def _set_alarm(self) -> None:
        """Let the timer's sleep end when the machine wants: it is moved, and not woken to find that nothing is due any more."""
        due = self.machine.next_deadline()
        if due != self._alarm.deadline:
            self._alarm.deadline = due

    def _remember_epoch(self) -> None:
        """Before the first vote in an epoch leaves this node, it is where a restart finds it."""
        lasting = self.machine.lasting
        if lasting == self._remembered:
            return
        self._remembered, memory = lasting, self.machine.memory
        if memory is not None:
            self._remember(pack(memory))

    def _notify(self) -> None:
        changed, self._changed = self._changed, None
        if changed is not None:
            changed.set()

    def _next_change(self) -> trio.Event:
        if self._changed is None:
            self._changed = trio.Event()
        return self._changed

    def _entered(self, epoch: Epoch, behind: bool, holders: tuple[NodeId, ...]) -> None:
        names = ", ".join(member.short for member in epoch.members)
        self.notes.append(f"entered epoch {epoch.number} with {len(epoch.members)} members")
        _log.info("epoch %d: %d members: %s", epoch.number, len(epoch.members), names)
        self._behind = (epoch, holders) if behind else None
        self._mesh.enter(epoch)
        if epoch.layout.probe and self._arranger.follows_probe(epoch.members, trio.current_time()):
            self._nursery.start_soon(self._probe, epoch)

    async def _probe(self, epoch: Epoch) -> None:
        lane = self._mesh.lane(epoch, PROBE_LANE)
        if lane is not None:
            await probe(lane, self._measured)

    def _measured(self, measure: Measure) -> None:
        self.rhythm.measured(measure)
        self.on_measured(measure)

    def _break_epoch(self, reason: str, suspects: tuple[NodeId, ...]) -> None:
        self.machine.break_epoch(reason, trio.current_time(), suspects=suspects)
        self._flush()

    # ---- what peers do -----------------------------------------------------------------------

    def _peer_up(self, node: NodeId, public_key: bytes) -> None:
        self.machine.peer_up(node, public_key, trio.current_time())
        self._flush()

    def _peer_down(self, node: NodeId, reason: str) -> None:
        self.machine.peer_down(node, reason, trio.current_time())
        self.rhythm.forget(node)
        self._flush()

    def _receive(self, node: NodeId, message: AnyMessage) -> None:
        now = trio.current_time()
        if isinstance(message, Begin | Vote) and message.lane == ROUND_LANE:
            self.rhythm.began(message.sequence, node, now)
        self.machine.receive(node, message, now)
        self._flush()

    # ---- life --------------------------------------------------------------------------------

    async def _run_timer(self) -> None:
        """Tick the machine when it asks for it."""
        while True:
            self._alarm = trio.CancelScope()
            self._set_alarm()
            with self._alarm:
                await trio.sleep_forever()
            now = trio.current_time()
            if now >= self.machine.next_deadline():
                self._calls.tell_what_moves(now, self._beat_due - BEAT_MARGIN_S)
                self.machine.tick(now)
                self._flush()

    @asynccontextmanager
    async def _open(self, endpoint: Endpoint) -> AsyncIterator[None]:
        protocol = f"run/{self.run.hex()[:32]}"
        # Only a trainer votes: what others say about epochs is not even read.
        endpoint.serve(protocol, self._talk.listen, permitted=lambda m: m.may_train)
        self._nursery.start_soon(self._talk.watch_peers)
        self._nursery.start_soon(self._run_timer)
        try:
            yield
        finally:
            endpoint.unserve(protocol)
            self._mesh.drop("the group is closed")
            self._talk.close()


def _measures(links: Lane) -> Iterator[Measure]:
    """What has gone over the links of a lane since they were asked last."""
    members = links.epoch.members
    for rank, member in enumerate(members):
        link = links.opened(rank)
        if link is not None:
            seconds, size = link.take_measure()
            if size:
                yield Measure(members[links.rank], member, seconds, size)


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
    site: Callable[[NodeId], str] = lambda _member: "",
    probing: bool = False,
) -> AsyncIterator[Group]:
    """Take part in the collectives of `run` with every connected peer that does so too.

    `remember` is given what has to survive a restart (at most 64 KiB) whenever it changes: with the first
    vote in an epoch, before that is sent; it returns once it is on the disk. `memory` is what it was given
    last. A node that starts without it counts for a majority only when nobody of the epoch is missing.

    `site` names a member's site ("" for none): where there are several, values cross between them once. With `probing`
    an epoch that this node proposes may begin with measuring links that nobody has used.

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
        group = Group(endpoint, run, machine, nursery, remember, site=site, probing=probing)
        async with group._open(endpoint):  # noqa: SLF001 - one unit
            yield group
        nursery.cancel_scope.cancel()
