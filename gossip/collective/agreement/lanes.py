"""The operations of one epoch, one at a time in each lane (sans-IO).

A **lane** is a line of operations with a sequence of its own: what one member runs as number 3 of a lane is number 3 of that
lane for all, whatever happens in the others. So members may call the operations of different lanes in any order, and
have to agree on the order within one. Lane 0 is that of the rounds: only what is certified there moves the run's position.

Word of an operation may come before this node has begun it: that somebody has (`Begin`), and even a result (`Vote`, of
those whose result does not depend on this node, as in a broadcast). Both are kept until then, the last of each lane and member.

With a handful of members or more, each sends its vote to one of them, another one for each operation, who sends all the
certificate: 2 (N-1) messages where all to all were N (N-1). That one is trusted with nothing, since a certificate proves itself, and waited for only a
moment: a vote that has not brought one by then goes to everybody, and so everybody can make it.

A caller may say that nothing more is called at this node before its operation has ended (`wait_for`). Members that wait so for each other, in
different lanes, would wait for ever: `deadlock` has the rule, and why it finds nobody who is right.

What fails in one lane ends the epoch, and so the operations of all lanes: the owner is told (`on_failure`) and calls `abort`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Final, Protocol

import attrs

from gossip.collective.agreement.certificate import LANES, Certificate, Epoch
from gossip.collective.agreement.deadlock import Wait, circle_through, dead_operations, in_words
from gossip.collective.agreement.epoch_events import EpochSettings, MembersWaiting, OperationAborted
from gossip.collective.agreement.messages import Abort, Begin, Certified, Vote
from gossip.collective.agreement.operation import Operation, OperationState
from gossip.collective.agreement.standing import Standing
from transport.identity import NodeId

MOVING_S: Final = 30.0
"""Between two looks at whether values still come; the data plane itself gives up after 20 s without any."""
ROUND_LANE: Final = 0
"""Of the operations that move the run's position."""


class Failed(Protocol):
    """Told that the epoch cannot go on."""

    def __call__(
        self,
        reason: str,
        now: float,
        /,
        *,
        tell: bool = True,
        mismatched: Collection[int] = (),
    ) -> None:
        """End the epoch; `tell` the others, `mismatched` are lanes whose operation has a mismatch as in `OperationAborted`."""


@attrs.define
class _Running:
    operation: Operation
    began: float
    announce_due: float
    """Infinity once it is announced, or need not be."""
    announce_by: float
    """The latest, however much moves."""
    straggler_due: float
    unspread: Vote | None = None
    """The own vote, as long as only the collector has it."""
    spread_due: float = math.inf
    wait: Wait | None = None
    """What is announced with it, if its caller calls nothing more before it has ended."""


@attrs.define
class _Lane:
    sequence: int = 0
    """Of the operation that begins next."""
    running: _Running | None = None
    begins: dict[NodeId, Begin] = attrs.field(factory=dict)
    votes: dict[NodeId, Vote] = attrs.field(factory=dict)
    last: Vote | None = None
    """This member's own on the operation before, if not everybody was sent it."""

    def begun(self, sequence: int) -> set[NodeId]:
        """Members that have said, in one way or another, that they began that operation."""
        begun = {node for node, begin in self.begins.items() if begin.sequence == sequence}
        return begun | {node for node, vote in self.votes.items() if vote.sequence == sequence}


class Lanes:
    """What runs in the present epoch, and what is heard of it."""

    def __init__(
        self,
        standing: Standing,
        settings: EpochSettings,
        *,
        present: Callable[[], Epoch | None],
        on_failure: Failed,
        on_certified: Callable[[Operation, float], None],
    ) -> None:
        self._standing = standing
        self._settings = settings
        self._present = present
        self._on_failure = on_failure
        self._on_certified = on_certified
        self._lanes = [_Lane() for _ in range(LANES)]
        self._waits: dict[NodeId, Wait] = {}
        """What members have announced, this one included; one may be over, see `deadlock`."""
        self._aborted: dict[int, Operation] = {}

    # ---- what can be seen --------------------------------------------------------------------

    def operation(self, lane: int) -> Operation | None:
        """What runs in that lane."""
        running = self._lanes[lane].running
        return None if running is None else running.operation

    @property
    def operations(self) -> list[Operation]:
        """What runs, by lane."""
        return [run.operation for run in self._runs()]

    def awaited(self, lane: int) -> bool:
        """True when another member has begun what comes next in that lane, and this node has not."""
        here = self._lanes[lane]
        if here.running is not None or not (here.begins or here.votes):
            return False
        return bool(here.begun(here.sequence))

    @property
    def pending(self) -> bool:
        """True when anything runs, or is awaited."""
        heard_of = (n for n, here in enumerate(self._lanes) if here.begins or here.votes)
        return bool(self._runs()) or any(map(self.awaited, heard_of))

    def waits_for(self, lane: int) -> str:
        """Who keeps what runs there from ending, for people; what else they have begun may be the reason."""
        operation = self.operation(lane)
        if operation is None:
            return ""
        verb = "signed" if operation.state is OperationState.VOTED else "begun"
        words = []
        for member in self._late(operation):
            others = [
                str(number)
                for number, here in enumerate(self._lanes)
                if here.running is None and member in here.begun(here.sequence)
            ]
            instead = f" (but begun tag {', '.join(others)})" if others else ""
            words.append(f"{member.short} has not {verb} it{instead}")
        return "; ".join(words)

    def lacks_vote(self, member: NodeId) -> bool:
        """True when something runs here that cannot be certified without `member`, which has not voted as far as one could know."""
        return any(
            member in run.operation.epoch.members
            and not run.operation.voted(member)
            and (
                run.operation.state is OperationState.RUNNING
                or self._collector(run.operation) is None
            )
            for run in self._runs()
        )

    def _runs(self) -> list[_Running]:
        return [lane.running for lane in self._lanes if lane.running is not None]

    # ---- what the owner tells ----------------------------------------------------------------

    def clear(self) -> None:
        """An epoch begins or ends: every lane is at number 0, and nothing is known."""
        self._lanes = [_Lane() for _ in range(LANES)]
        self._waits = {}

    def forget(self, member: NodeId) -> None:
        """What a lost member has said does not count any more."""
        self._waits.pop(member, None)
        for lane in self._lanes:
            lane.begins.pop(member, None)
            lane.votes.pop(member, None)

    def begin(self, epoch: Epoch, lane: int, descriptor: bytes, now: float) -> Operation:
        """Start the lane's next operation; it may have failed already when this returns."""
        here = self._lanes[lane]
        operation = Operation(epoch, here.sequence, descriptor, self._standing.identity, lane)
        here.sequence += 1
        settings = self._settings
        soon = now + settings.announce_s
        # Whoever waits for this node already would else take it for one that never begins.
        by = soon if here.begun(operation.sequence) else now + settings.announce_moving_s
        here.running = _Running(operation, now, soon, by, now + settings.straggler_s)
        for member, begin in sorted(here.begins.items()):
            self._check_begin(operation, member, begin, now)
        for member, vote in sorted(here.votes.items()):
            if self.operation(lane) is operation and vote.sequence == operation.sequence:
                self._count(operation, member, vote, now)
        return operation

    def wait_for(self, lane: int, queued: Mapping[int, int], now: float) -> None:
        """In lanes other than 0 nothing more is called here before what runs in this one has ended.

        `queued` are operations by lane that were called before, and wait for their turn.
        """
        running = self._lanes[lane].running
        if running is None or lane == ROUND_LANE:
            return
        operation = running.operation
        called = tuple(here.sequence + queued.get(n, 0) for n, here in enumerate(self._lanes))
        running.wait = Wait(lane, operation.sequence, called)
        running.announce_due = max(now, running.began + self._settings.announce_s)

    def result(self, lane: int, root: bytes, now: float) -> None:
        """The data plane holds the result of what runs there."""
        operation = self.operation(lane)
        if operation is None or operation.state is not OperationState.RUNNING:
            return
        vote = operation.vote(root)
        running = self._lanes[lane].running
        assert running is not None, "what has an operation runs"
        running.straggler_due = now + self._settings.straggler_s  # the others may need as long
        if running.wait is None:
            running.announce_due = math.inf  # the vote says so
        self._standing.doubt(operation.epoch)
        collector = self._collector(operation)
        if collector is None:
            self._standing.send_all(operation.epoch.members, vote)
        else:
            running.unspread, running.spread_due = vote, now + self._settings.spread_s
            if collector != self._standing.me:
                self._standing.send(collector, vote)
        self._certify(operation, now)

    def _collector(self, operation: Operation) -> NodeId | None:
        """Who makes the certificate for all; None where everybody does."""
        members = operation.epoch.members
        if len(members) < self._settings.collect_from:
            return None
        return members[operation.sequence % len(members)]

    def _spread(self, run: _Running) -> None:
        vote, operation = run.unspread, run.operation
        run.unspread, run.spread_due = None, math.inf
        if vote is not None:
            collector = self._collector(operation)
            self._standing.send_all((m for m in operation.epoch.members if m != collector), vote)

    def moves(self, lane: int, at: float, *, tell: bool) -> None:
        """Values of what runs there came at that time: it is not given up for a while.

        Nor is it announced, as nobody seems to be missing, unless the others are to be told all the same.
        """
        running = self._lanes[lane].running
        if running is None:
            return
        running.straggler_due = max(running.straggler_due, at + MOVING_S)
        if running.announce_due < math.inf and at > running.began and not tell:
            # Looked at less and less often: the longer it has moved, the longer it may pause.
            pause = max(self._settings.announce_s, (at - running.began) / 2)
            running.announce_due = max(running.announce_due, min(at + pause, running.announce_by))

    def abort(self, reason: str, *, tell: bool, mismatched: Collection[int]) -> list[Operation]:
        """End everything that runs without a result; returns it. `mismatched` as in `Failed`."""
        ended = self.operations
        for operation in ended:
            wrong = operation.lane in mismatched
            if tell:
                self._standing.send_all(
                    operation.epoch.members,
                    Abort(
                        operation.epoch_id,
                        operation.sequence,
                        reason[:200],
                        wrong,
                        (),
                        operation.lane,
                    ),
                )
            self._standing.events.append(OperationAborted(operation, reason, wrong))
        if ended:
            # Of those a mismatch may be heard of later.
            self._aborted = {op.lane: op for op in ended if op.lane not in mismatched}
        self.clear()
        return ended

    # ---- messages ----------------------------------------------------------------------------

    def on_begin(self, sender: NodeId, begin: Begin, now: float) -> None:
        """A member of the present epoch has begun an operation."""
        epoch = self._present()
        assert epoch is not None
        here = self._lanes[begin.lane]
        here.begins[sender] = begin
        operation = self.operation(begin.lane)
        if operation is not None:
            self._check_begin(operation, sender, begin, now)
        elif begin.sequence == here.sequence and begin.lane == ROUND_LANE:
            waiting = len(here.begun(here.sequence))
            self._standing.events.append(MembersWaiting(waiting, len(epoch.members)))
        wait = Wait(begin.lane, begin.sequence, begin.called)
        if begin.called and begin.lane != ROUND_LANE and self._present() is epoch:
            self._note_wait(sender, wait, now)

    def _note_wait(self, member: NodeId, wait: Wait, now: float) -> None:
        """End what can never end, if `member` closes a circle of those that wait for each other."""
        if not wait.counts(wait.lane, wait.sequence):
            return  # nobody waits for what it has not called
        self._waits[member] = wait
        circle = circle_through(member, self._waits)
        if not circle:
            return
        reason, dead = in_words(circle, self._waits), dead_operations(circle, self._waits)
        epoch = self._present()
        assert epoch is not None
        for lane, sequence in sorted(dead):
            # Those that run here are aborted below; but each of the others has to hear of its own.
            operation = self.operation(lane)
            if operation is None or operation.sequence != sequence:
                word = Abort(epoch.id, sequence, reason[:200], mismatch=True, lane=lane)
                self._standing.send_all(epoch.members, word)
        here = [op.lane for op in self.operations if (op.lane, op.sequence) in dead]
        self._on_failure(reason, now, mismatched=here)

    def _check_begin(self, operation: Operation, sender: NodeId, begin: Begin, now: float) -> None:
        if (
            self.operation(operation.lane) is operation
            and begin.sequence == operation.sequence
            and begin.descriptor != operation.descriptor
        ):
            reason = f"{sender.short} called another operation than this node"
            self._on_failure(reason, now, mismatched=(operation.lane,))

    def on_vote(self, sender: NodeId, vote: Vote, now: float) -> None:
        """A member of the present epoch has signed a result."""
        here, operation = self._lanes[vote.lane], self.operation(vote.lane)
        if operation is not None and vote.sequence == operation.sequence:
            self._count(operation, sender, vote, now)
        elif vote.sequence == here.sequence:
            here.votes[sender] = vote
        elif here.last is not None and vote.sequence == here.last.sequence:
            self._standing.send(sender, here.last)  # it has no certificate, and may need this

    def _count(self, operation: Operation, sender: NodeId, vote: Vote, now: float) -> None:
        key = self._standing.peers[sender].public_key
        reason = operation.add_vote(sender, key, vote)
        if reason is None:
            self._certify(operation, now)
            return
        if not operation.is_signed(key, vote):
            self._standing.accuse(sender, "signed a result with a wrong signature", now)
        # Its `Begin` may come later, or never: the vote says as well that it means another operation.
        differs = vote.descriptor != operation.descriptor
        self._on_failure(reason, now, mismatched=(operation.lane,) if differs else ())

    def _certify(self, operation: Operation, now: float) -> None:
        keys = self._keys()
        if not set(operation.epoch.members) <= set(keys):
            return
        reason = operation.certify(keys)
        if reason is not None:
            self._on_failure(reason, now)
        elif operation.certificate is not None:
            if self._collector(operation) == self._standing.me:
                self._standing.send_all(operation.epoch.members, Certified(operation.certificate))
            self._end(operation, now)

    def _keys(self) -> dict[NodeId, bytes]:
        standing = self._standing
        keys = {node: peer.public_key for node, peer in standing.peers.items()}
        keys[standing.me] = standing.identity.public_key
        return keys

    def _end(self, operation: Operation, now: float) -> None:
        here = self._lanes[operation.lane]
        run, here.running = here.running, None
        here.last = None if run is None else run.unspread
        if here.last is not None and self._collector(operation) != self._standing.me:
            # Who has spread its vote may wait for this one, should the collector tell some and not others.
            collector = self._collector(operation)
            members = operation.epoch.members
            self._standing.send_all(
                (m for m in members if m != collector and operation.voted(m)), here.last
            )
        self._on_certified(operation, now)

    def on_certified(self, sender: NodeId, certificate: Certificate, now: float) -> None:
        """A member of the present epoch has collected all votes of an operation."""
        operation = self.operation(certificate.lane)
        if operation is None or operation.sequence != certificate.sequence:
            return  # this node had everybody's votes before
        if operation.settle(certificate, self._keys()):
            self._end(operation, now)
            return
        self._standing.accuse(sender, "sent a certificate that proves nothing", now)
        self._on_failure(f"{sender.short} sent a wrong certificate", now)

    def on_abort(self, sender: NodeId, abort: Abort, now: float) -> None:
        """A member gave up on an operation of the present epoch, or of the last one here."""
        epoch, running = self._present(), self._lanes[abort.lane].running
        reason = f"{sender.short}: {abort.reason}"
        if (
            epoch is not None
            and abort.epoch == epoch.id
            and sender in epoch.members
            and (running is None or abort.sequence == running.operation.sequence)
        ):
            if running is not None and now >= running.began + self._settings.straggler_s / 2:
                # Believed only as far as this node has waited in vain for them itself.
                late = self._late(running.operation)
                self._bench([member for member in late if member in abort.late])
            mismatched = (abort.lane,) if abort.mismatch else ()
            self._on_failure(reason, now, tell=False, mismatched=mismatched)
            return
        aborted = self._aborted.get(abort.lane)
        if (
            abort.mismatch
            and aborted is not None
            and sender in aborted.epoch.members
            and (abort.epoch, abort.sequence) == (aborted.epoch_id, aborted.sequence)
        ):
            # A broken link told this node first; the reason says that no retry can help.
            del self._aborted[abort.lane]
            self._standing.events.append(OperationAborted(aborted, reason, mismatch=True))

    # ---- time --------------------------------------------------------------------------------

    def next_deadline(self) -> float:
        """When `tick` wants to be called next."""
        due = math.inf
        for lane in self._lanes:
            run = lane.running
            if run is not None:
                due = min(due, run.announce_due, run.spread_due, run.straggler_due)
        return due

    def tick(self, now: float) -> None:
        """Announce what takes long, and end what somebody never begins."""
        for run in self._runs():
            operation = run.operation
            if self.operation(operation.lane) is not operation:
                continue  # another one's end was that of the epoch
            if now >= run.spread_due:
                self._spread(run)
            if now >= run.straggler_due:
                self._bench_stragglers(run, now)
            elif now >= run.announce_due:
                self._announce(run, now)

    def _announce(self, run: _Running, now: float) -> None:
        """Tell the others that this node has begun it, and if nothing more is called here until it has ended."""
        run.announce_due = math.inf
        operation, wait = run.operation, run.wait
        begin = Begin(
            operation.epoch_id,
            operation.sequence,
            operation.descriptor,
            operation.lane,
            () if wait is None else wait.called,
        )
        self._standing.send_all(operation.epoch.members, begin)
        if wait is not None:
            self._note_wait(self._standing.me, wait, now)

    def _bench_stragglers(self, run: _Running, now: float) -> None:
        """Go on without members that are connected, but have not begun what the others have."""
        operation, wait_s = run.operation, self._settings.straggler_s
        run.straggler_due = now + wait_s
        late = self._late(operation)
        if not late:
            self._on_failure(f"no result in {wait_s:.0f} s", now)
            return
        self._bench(late)
        names = ", ".join(member.short for member in late)
        reason = f"{names} did not begin in {wait_s:.0f} s"
        self._standing.send_all(
            operation.epoch.members,
            Abort(
                operation.epoch_id,
                operation.sequence,
                reason[:200],
                late=tuple(late),
                lane=operation.lane,
            ),
        )
        self._on_failure(reason, now, tell=False)

    def _late(self, operation: Operation) -> list[NodeId]:
        """Members that have not said that they began `operation`, or have not voted when this one has."""
        if operation.state is OperationState.VOTED:
            return [member for member in operation.epoch.members if not operation.voted(member)]
        begun = self._lanes[operation.lane].begun(operation.sequence)
        return [m for m in operation.epoch.members if m not in {*begun, self._standing.me}]

    def _bench(self, members: list[NodeId]) -> None:
        for member in members:
            peer = self._standing.peers.get(member)
            if peer is not None:
                peer.benched = True
