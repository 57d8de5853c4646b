"""Callers' operations: from the call to the certificate, through as many epochs as it takes (trio driver).

Each lane has a queue: calls of one tag are carried out one after another, those of different tags at once. A call that its
epoch's end cut off is done again in the next one from its source, which is never written, unless it turns out that the
others hold a certificate for what this node has signed: then that is the result. The data plane runs in the
task of the call, and is cancelled when its operation is aborted.

A call may be the only one (`Job.sole`): its caller calls from one place, and waits there. Then members that call different tags are told at
once (`deadlock`). That is held to: while such a call is under way, others are refused.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

import attrs
import trio

from gossip.collective.agreement.certificate import LANES, Certificate, Epoch
from gossip.collective.agreement.epoch import EpochMachine
from gossip.collective.agreement.lanes import MOVING_S, ROUND_LANE
from gossip.collective.agreement.operation import Operation, OperationState
from gossip.collective.call import Array, Call, Kind, check_call
from gossip.collective.choice import choose
from gossip.collective.dataplane import Outcome, execute
from gossip.collective.first_error import first_error
from gossip.collective.formats.wire_format import RefusedPayload
from gossip.collective.links.mesh import Mesh
from gossip.errors import (
    CollectiveAborted,
    DescriptorMismatch,
    EpochChanged,
    GossipError,
    Indeterminate,
    InvalidOperation,
)
from transport.errors import TransportError
from transport.identity import NodeId

MAX_CALLS: Final = 64
"""Under way or waiting for their turn at one member; more are refused."""


@attrs.frozen
class Reduced:
    """A certified operation."""

    epoch: Epoch
    certificate: Certificate
    weight: float
    """Sum of the members' weights; of kinds that do not reduce, the number of members."""
    seconds: float
    """From begin to certificate."""
    length: int = 0
    """Values at the start of `out` that are the result."""
    algorithm: str = ""


class Behind(GossipError):
    """This node's state is not the epoch's start state: fetch it from `holders` first."""

    def __init__(self, epoch: Epoch, holders: tuple[NodeId, ...]) -> None:
        super().__init__(f"behind: epoch {epoch.number} starts at round {epoch.round}")
        self.epoch = epoch
        self.holders = holders


@attrs.frozen
class Job:
    """What is to be done: a call, the caller's vectors, and where.

    Attributes:
        call: with the descriptor that all members have to agree on.
        source: 1-D contiguous values of this node; only read.
        out: 1-D contiguous; undefined until the job is done.
        tag: the lane, 0 to 15; 0 is that of the rounds.
        deadline: trio time by which it ends, one way or another.
        within: id of the only epoch it may be done in; None: any.
        sole: nothing else is called at this node, in tags 1 to 15, before this has ended. Others may have been called before. Members that
            wait so for each other in different tags get DescriptorMismatch at once, and not at their deadlines.
    """

    call: Call
    source: Array
    out: Array
    tag: int = ROUND_LANE
    deadline: float = math.inf
    within: bytes | None = None
    sole: bool = False

    def check(self) -> None:
        """Refuse with InvalidOperation what cannot be carried out, before anybody hears of it."""
        if not 0 <= self.tag < LANES:
            raise InvalidOperation(f"a tag is a number from 0 to {LANES - 1}, not {self.tag}")
        if self.sole and self.tag == ROUND_LANE:
            raise InvalidOperation(
                "a round (tag 0) is not the sole call of a node: who calls the other tags is not known to it"
            )
        check_call(self.call, self.source, self.out)
        if self.call.kind is not Kind.BARRIER:
            world = len(self.call.sites) or 2
            choose(self.call, self.source.dtype, self.source.nbytes, world)


@attrs.define
class _Running:
    """The operation whose data plane runs, or has run, in the caller's task."""

    operation: Operation
    out: Array
    started: float
    scope: trio.CancelScope
    done: trio.Event = attrs.field(factory=trio.Event)
    outcome: Outcome | None = None
    certificate: Certificate | None = None
    reason: str = ""
    mismatch: bool = False
    waited_for: str = ""


class Handle:
    """An operation that was started and is waited for later."""

    def __init__(self, on_cancel: Callable[[], None] = lambda: None) -> None:
        self._on_cancel = on_cancel
        self._ended = trio.Event()
        self._reduced: Reduced | None = None
        self._error: GossipError | None = None
        self._scope = trio.CancelScope()

    @property
    def done(self) -> bool:
        """True when `wait` returns or raises at once."""
        return self._ended.is_set()

    async def wait(self) -> Reduced:
        """Wait for the end; raises what the call would have raised. Cancelling the wait does not end the operation."""
        await self._ended.wait()
        if self._error is not None:
            raise self._error
        assert self._reduced is not None
        return self._reduced

    def cancel(self) -> None:
        """Give the operation up, which aborts the epoch of all members if it runs; `wait` raises then."""
        self._on_cancel()
        self._scope.cancel()

    async def run(self, work: Callable[[], Awaitable[Reduced]]) -> None:
        """Of `Calls`: do the work and keep how it ended."""
        self._error = CollectiveAborted("given up")
        try:
            with self._scope:
                self._reduced = await work()
                self._error = None
        except GossipError as error:
            self._error = error
        finally:
            self._ended.set()


def _arranged(call: Call, operation: Operation, *, careful: bool) -> Call:
    """The call as it is carried out in this epoch: numbered, and laid out as its members agreed where it does not say."""
    layout = operation.epoch.layout
    return attrs.evolve(
        call,
        sequence=operation.sequence,
        order=call.order or tuple(layout.order),
        sites=call.sites or tuple(layout.sites),
        path=call.path or layout.path,
        careful=careful,
    )


class Calls:
    """What callers at this node want done; `changed` gives the event of the next change of anything."""

    def __init__(
        self,
        machine: EpochMachine,
        mesh: Mesh,
        *,
        flush: Callable[[], None],
        notify: Callable[[], None],
        changed: Callable[[], trio.Event],
        behind: Callable[[], Behind | None],
    ) -> None:
        self._machine = machine
        self._mesh = mesh
        self._flush = flush
        self._notify = notify
        self._changed = changed
        self._behind = behind
        self._queues: list[deque[object]] = [deque() for _ in range(LANES)]
        self._running: list[_Running | None] = [None] * LANES
        self._sole: object | None = None
        """The place of a job beside which nothing more is called."""

    # ---- what callers call -------------------------------------------------------------------

    def enqueue(self, job: Job) -> object:
        """Take a place in the queue of the job's lane; `carry_out` needs it, or `leave`.

        Raises:
            InvalidOperation: it cannot be carried out, MAX_CALLS are under way, or the sole one is.
        """
        job.check()
        if self._sole is not None and job.tag != ROUND_LANE:
            raise InvalidOperation(
                "a call is under way here that said that nothing else is called before it has ended",
                hint="wait for it first; where several tasks or threads call, none of their calls is sole",
            )
        if sum(map(len, self._queues)) >= MAX_CALLS:
            raise InvalidOperation(
                f"{MAX_CALLS} collectives are under way here", hint="wait for one of them first"
            )
        place = object()
        self._queues[job.tag].append(place)
        if job.sole:
            self._sole = place
        return place

    def release(self, place: object | None = None) -> None:
        """A sole call is given up (that of `place`, or whichever is): others need not wait until its task has come to its end."""
        if place is None or self._sole is place:
            self._sole = None

    async def carry_out(self, job: Job, place: object) -> Reduced:
        """Carry out a job that has a place; see `Group.run`."""
        lane, queue = job.tag, self._queues[job.tag]
        waiting = True
        try:
            with trio.CancelScope(deadline=job.deadline):
                while queue[0] is not place:
                    await self._changed().wait()
                waiting = False
                self._forget_other(job)
                again = False
                while True:
                    reduced = await self._attempt(job, again=again)
                    if reduced is not None:
                        return reduced
                    again = True
            raise (None if waiting else self.outcome_unknown(lane)) or CollectiveAborted(
                "no certificate by the deadline" + self._last_reason(lane),
                hint="nothing was changed: call it again, or give it more time",
            )
        finally:
            queue.remove(place)
            if self._sole is place:
                self._sole = None
            if queue:
                self._notify()

    def outcome_unknown(self, lane: int) -> Indeterminate | None:
        """After a call that was given up: an error if this node had signed a result."""
        running = self._running[lane]
        if running is not None and running.operation.root is not None and not running.certificate:
            operation = running.operation
            where = f" of tag {lane}" if lane else ""
            why = f": {running.waited_for}" if running.waited_for else ""
            return Indeterminate(
                f"operation {operation.sequence}{where} of epoch {operation.epoch.number}{why}"
            )
        return None

    def _last_reason(self, lane: int) -> str:
        running = self._running[lane]
        if running is None:
            return (
                ""
                if self._machine.epoch is not None
                else "; there is no epoch: members are missing"
            )
        if running.waited_for:
            return f": {running.waited_for}"
        return f"; the last attempt ended with: {running.reason}" if running.reason else ""

    def _forget_other(self, job: Job) -> None:
        """Drop what an earlier call left behind, unless this one goes on with it.

        That is so of rounds only: their descriptor names round and state, so the same one in the same memory is the
        same operation. In other lanes descriptors repeat, and the result of the last call is none of this one's.
        """
        lane, running = job.tag, self._running[job.tag]
        if (
            running is not None
            and lane == ROUND_LANE
            and running.operation.descriptor == job.call.descriptor
            and running.out is job.out
        ):
            running.mismatch = False
            return
        self._running[lane] = None
        self._machine.forget_unsettled(lane)

    # ---- one attempt -------------------------------------------------------------------------

    async def _attempt(self, job: Job, *, again: bool) -> Reduced | None:
        lane = job.tag
        await self._wait_turn(lane, job.within)
        settled = self._take_certified(lane)
        if settled is not None:
            return settled
        self._check_root(job.call)
        now = trio.current_time()
        operation = self._machine.begin(job.call.descriptor, now, lane)
        running = _Running(operation, job.out, now, trio.CancelScope())
        self._running[lane] = running
        if job.sole:
            self._machine.wait_for(lane, self._queued(), now)
        self._flush()
        fatal: GossipError | None = None
        try:
            with running.scope:
                links = self._mesh.lane(operation.epoch, lane)
                if links is None:
                    raise CollectiveAborted("the epoch has ended")
                call = _arranged(job.call, operation, careful=again)
                running.outcome = await execute(links, call, job.source, job.out)
                self._machine.result(running.outcome.root, trio.current_time(), lane)
                self._flush()
                await running.done.wait()
        except* (TransportError, GossipError) as group:
            fatal = self._data_plane_failed(running, group)
        except* BaseException:
            # Cancelled by the caller, or a mistake of its own: the others must not wait for it.
            running.waited_for = self._machine.waits_for(lane)
            self._machine.fail("given up by its caller", trio.current_time(), lane=lane)
            self._flush()
            raise
        if fatal is not None:
            raise fatal
        if running.certificate is None and running.mismatch:
            raise DescriptorMismatch(running.reason)
        return self._take_certified(lane)

    def _queued(self) -> dict[int, int]:
        """How many operations of each lane will still begin here by themselves; one that has just ended may be counted, too."""
        begun = {operation.lane for operation in self._machine.operations}
        return {lane: len(queue) - (lane in begun) for lane, queue in enumerate(self._queues)}

    def _check_root(self, call: Call) -> None:
        epoch = self._machine.epoch
        if call.kind is Kind.BROADCAST and epoch is not None and call.root not in epoch.members:
            raise CollectiveAborted("whose values are to be broadcast is not a member of the epoch")

    async def _wait_turn(self, lane: int, within: bytes | None) -> None:
        while True:
            epoch = self._machine.epoch
            other = within is not None and (epoch is None or epoch.id != within)
            if other and self._machine.signed(lane) is None and not self._is_certified(lane):
                raise EpochChanged("the epoch that the operation was for has ended")
            if self._machine.may_begin(lane):
                return
            behind = self._behind() if lane == ROUND_LANE else None
            if behind is not None:
                raise behind
            if self._is_certified(lane):
                return
            running = self._running[lane]
            if running is not None and running.mismatch:
                raise DescriptorMismatch(running.reason)
            await self._changed().wait()

    def _is_certified(self, lane: int) -> bool:
        running = self._running[lane]
        return running is not None and running.certificate is not None

    def _take_certified(self, lane: int) -> Reduced | None:
        """The result of the last data plane run, if a certificate (perhaps a late one) is here."""
        running = self._running[lane]
        if running is None or running.certificate is None or running.outcome is None:
            return None
        self._running[lane] = None
        outcome = running.outcome
        return Reduced(
            running.operation.epoch,
            running.certificate,
            outcome.weight,
            trio.current_time() - running.started,
            outcome.length,
            outcome.algorithm,
        )

    def _data_plane_failed(
        self, running: _Running, group: BaseExceptionGroup[Exception]
    ) -> GossipError | None:
        """Abort the operation; returns the error if trying again cannot help."""
        error = first_error(group)
        running.mismatch = running.mismatch or isinstance(error, DescriptorMismatch)
        if not running.reason:
            running.reason = str(error)
        operation = running.operation
        if isinstance(error, RefusedPayload) and operation.state is OperationState.RUNNING:
            # Once may be chance; who sends such values again is left out for a while.
            self._machine.break_epoch(str(error), trio.current_time(), suspects=(error.sender,))
            self._flush()
        elif operation.state is OperationState.RUNNING:
            self._machine.fail(
                str(error), trio.current_time(), mismatch=running.mismatch, lane=operation.lane
            )
            self._flush()
        return error if isinstance(error, InvalidOperation) else None

    def tell_what_moves(self, now: float, measured_from: float) -> None:
        """Before the machine announces or gives up what takes long: in which lanes values came lately, and when.

        Rounds that began at `measured_from` or later are announced all the same.
        """
        for lane, running in enumerate(self._running):
            if running is None or running.operation.state is not OperationState.RUNNING:
                continue
            links = self._mesh.lane(running.operation.epoch, lane)
            if links is not None and links.received_at > now - MOVING_S:
                measured = lane == ROUND_LANE and running.started >= measured_from
                self._machine.moves(lane, links.received_at, tell=measured)

    # ---- what the machine has decided ----------------------------------------------------------

    def certified(self, operation: Operation, certificate: Certificate) -> float | None:
        """That operation succeeded; returns when it began here, unless that is long ago."""
        running = self._running[operation.lane]
        if running is None or running.operation is not operation:
            return None
        running.certificate = certificate
        running.done.set()
        return running.started

    def aborted(self, operation: Operation, reason: str, *, mismatch: bool) -> None:
        """That operation will not succeed in its epoch."""
        running = self._running[operation.lane]
        if running is not None and running.operation is operation:
            running.reason, running.mismatch = reason, mismatch
            running.scope.cancel()
