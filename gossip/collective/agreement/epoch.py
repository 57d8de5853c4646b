"""Agreement on epochs and on the outcome of operations, with no master (sans-IO).

Problem: the members of a run come and go, and an exact collective needs everybody to mean the same
member set, start from the same state, and learn the same outcome. Nobody may be special.

Idea: single-decree agreement under rotating ballots (Lamport's Synod shape, with unanimous
acceptance by the members that take part instead of a majority), plus certificates:

1. Whoever is due by rule for (number, attempt) sends `Prepare`. A node that promises leaves its old
   epoch for good, so its position is final when it reports it.
2. From the promises the proposer makes an epoch: the responders as members, the highest position
   among them as the start, the holders of that position, and the certificate that led there.
3. Each member checks the proposal against what it knows itself, signs it, and sends the signature
   to all. A member enters when it holds everybody's signature.
4. In the epoch, operations run, one at a time in each lane (`gossip.collective.agreement.lanes`). Each ends with a
   full set of equal signatures (`gossip.collective.agreement.operation`) or is aborted, which breaks the epoch, aborts
   what runs in the other lanes, and starts the next formation.

Any node may be lost at any moment: attempts rotate the proposer, and time-outs grow.

Invariants:

* a node votes in an epoch only between entering it and its next promise;
* one signature per (epoch, lane, operation), and `memory` names the epoch before it is sent;
* only operations of lane 0 move the run's position, by one round each; what is certified in another lane
  makes the epoch count (it had a result), and nothing more;
* who waits for an epoch to end waits for what runs, not for what could be started beside it;
* ``quorum = "majority"``: the members of an epoch include more than half of the epoch before it
  (or exactly half with its first member), not counting those that left in good order or do not
  remember, so that two parts of a partition cannot both go on; every member checks that of its
  own last epoch, unless it is shown that others went on from there; ``"any"`` drops this rule;
* the start position is proven by the signatures of those who led there, or held by a majority;
* a node whose position is not the start position enters only to be brought up to date
  (`EpochEntered.behind`), and begins no operation before it is.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Mapping

from gossip.collective.agreement.certificate import GENESIS, Certificate, Epoch
from gossip.collective.agreement.epoch_events import (
    EpochEntered,
    EpochLeft,
    EpochSettings,
    Event,
    OperationCertified,
)
from gossip.collective.agreement.formation import Accepted
from gossip.collective.agreement.former import MAX_LEAP, Former
from gossip.collective.agreement.lanes import ROUND_LANE, Lanes
from gossip.collective.agreement.layout import PLAIN, Layout
from gossip.collective.agreement.lineage import Link, Memory
from gossip.collective.agreement.messages import (
    Abort,
    Accept,
    Answer,
    AnyMessage,
    Ask,
    Begin,
    Certified,
    Message,
    Nack,
    Prepare,
    Promise,
    Propose,
    Status,
    Vote,
    Wait,
)
from gossip.collective.agreement.operation import Operation, OperationState
from gossip.collective.agreement.settlement import Settlement
from gossip.collective.agreement.standing import NO_MODEL, Candidate, Standing
from gossip.errors import CollectiveAborted
from transport.identity import Identity, NodeId

DEFAULTS = EpochSettings()

KEPT_VETERANS = 4
"""Epochs of which it is kept who was in the one before: longer than an operation can hear of its end."""

LINK_FAILURES = 2
"""Epochs in a row that a member's links may spoil."""


class EpochMachine:
    """One node's part in the epochs and operations of one run."""

    def __init__(
        self,
        run: bytes,
        identity: Identity,
        *,
        model: bytes = NO_MODEL,
        rng: random.Random,
        settings: EpochSettings = DEFAULTS,
        memory: Memory | None = None,
    ) -> None:
        self.settings = settings
        self.epoch: Epoch | None = None
        self.arrange: Callable[[tuple[NodeId, ...]], Layout] = lambda _members: PLAIN
        """How this node arranges the members of an epoch that it proposes."""
        self._standing = Standing(run, identity, model)
        self._events = self._standing.events
        self._me = identity.node_id
        self._former = Former(
            self._standing,
            settings,
            rng,
            busy=lambda: self.busy,
            present=lambda: self.epoch,
            arrange=lambda members: self.arrange(members),  # noqa: PLW0108 - as it is then
            on_leave=self._leave_epoch,
            on_enter=self._enter,
        )
        self._lanes = Lanes(
            self._standing,
            settings,
            present=lambda: self.epoch,
            on_failure=self._break,
            on_certified=self._certified,
        )
        self._settlement = Settlement(self._standing)
        if memory is not None:
            last = self._former.recall(memory.links, memory.certificate)
            self._standing.recall(memory, last)
        self._settling = False  # certified, but the new position is not known yet
        self._in_step = False  # it has stood at the present epoch's start, or entered it there
        self._links: tuple[Link, ...] = ()
        self._claimants: tuple[NodeId, ...] = ()
        self._veterans: dict[bytes, frozenset[NodeId]] = {}
        self._settled_at: bytes | None = None
        self._give_way_due: float | None = None

    # ---- what can be seen --------------------------------------------------------------------

    @property
    def model(self) -> bytes:
        """Hash of the model that candidates must share; set it before `set_ready`."""
        return self._standing.model

    @model.setter
    def model(self, model: bytes) -> None:
        self._standing.model = model

    @property
    def last_certificate(self) -> Certificate | None:
        """Of the operation that succeeded last."""
        return self._standing.last_certificate

    @property
    def memory(self) -> Memory | None:
        """What a node has to find again after a restart; None: it is in no epoch's debt.

        It changes with the first vote in an epoch, and has to be stored before that vote is sent.
        """
        return self._standing.memory()

    @property
    def lasting(self) -> tuple[object, ...]:
        """Differs when `memory` has to be stored again."""
        return self._standing.lasting

    @property
    def busy(self) -> bool:
        """True from the first member's start of an operation until the new position is known."""
        return self._settling or self._lanes.pending

    @property
    def quorum_missing(self) -> bool:
        """True while too few of the last epoch's members are here to go on."""
        return self._former.quorum_missing

    def candidates(self) -> tuple[NodeId, ...]:
        """Ready nodes of the same model, this one included when it is ready; ascending."""
        return self._standing.candidates()

    @property
    def in_step(self) -> bool:
        """True when this node is in an epoch and has stood at its start."""
        return self._in_step

    @property
    def operation(self) -> Operation | None:
        """What runs in lane 0."""
        return self._lanes.operation(ROUND_LANE)

    @property
    def operations(self) -> list[Operation]:
        """Everything that runs, by lane."""
        return self._lanes.operations

    @property
    def can_begin(self) -> bool:
        """True when `begin` would be accepted in lane 0."""
        return self.may_begin(ROUND_LANE)

    def may_begin(self, lane: int) -> bool:
        """True when `begin` would be accepted in that lane.

        Not beside what runs in other lanes while somebody waits for the epoch to end, or the gap would never
        come; unless others have begun it already, and wait for this node.
        """
        lanes = self._lanes
        if not self._in_step or lanes.operation(lane) is not None:
            return False
        if self._settlement.blocked(lane) or (lane == ROUND_LANE and self._settling):
            return False
        return not (self._former.asked and lanes.operations) or lanes.awaited(lane)

    def veterans(self, epoch: bytes) -> frozenset[NodeId] | None:
        """Members of one of the last epochs that were in the one it followed on, as all its members have signed.

        None when it is too long ago.
        """
        return self._veterans.get(epoch)

    def waits_for(self, lane: int) -> str:
        """Who keeps what runs in that lane from ending, in words; empty if nobody does."""
        return self._lanes.waits_for(lane)

    def certificate(self, epoch: bytes, lane: int, sequence: int) -> Certificate | None:
        """That of an operation, if it was the last of its lane in one of the last two epochs with a result."""
        return self._settlement.certificate(epoch, lane, sequence)

    def signed(self, lane: int) -> Operation | None:
        """An operation of that lane whose result this node has signed, and whose outcome it does not know."""
        running = self._lanes.operation(lane)
        if running is not None and running.root is not None:
            return running
        return self._standing.unsettled if lane == ROUND_LANE else self._settlement.open(lane)

    # ---- what the driver tells -------------------------------------------------------------

    def set_ready(self, round_: int, state: bytes, now: float) -> None:
        """This node stands at `state` after `round_` rounds and wants to take part."""
        standing = self._standing
        if standing.leaving:
            return
        was_ready, standing.ready = standing.ready, True
        standing.round, standing.state = round_, state
        self._settling = False
        if not was_ready:
            standing.broadcast_status()
        epoch = self.epoch
        if epoch is not None and standing.holds(epoch.round, epoch.state):
            self._in_step = True
        settled, self._settled_at = self._settled_at, None
        if epoch is not None and round_ == epoch.round and state != epoch.state:
            if settled == epoch.id:
                # This node computed the state itself from a certified result: the holders lied.
                for holder in self._claimants:
                    standing.accuse(holder, "claimed a state that its operation does not give", now)
            self._break("the state here is not the one the epoch starts from", now)
            return
        self._former.answer_deferred(now)
        self._former.reconsider(now)

    def set_not_ready(self, reason: str, now: float) -> None:
        """This node cannot take part for the time being (its trainer is gone, say)."""
        if not self._standing.ready:
            return
        self._standing.ready = False
        self._settling = False
        self._former.withdraw()
        self._break(reason, now)
        self._standing.broadcast_status()

    def leave(self, now: float) -> None:
        """Leave the run in good order: the others need not count this node any more."""
        self._standing.leaving = True
        self._standing.ready = False
        self._former.withdraw()
        self._break("leaving", now)
        self._standing.broadcast_status()

    def peer_up(self, node: NodeId, public_key: bytes, now: float) -> None:
        """A connection to `node` is there; it learns where this node stands."""
        candidate = self._standing.peers[node] = Candidate(public_key, since=now)
        record = self._standing.offences.get(node)
        if record is not None and now < record.until:
            candidate.benched, candidate.bench_ends = True, record.until
        self._standing.send(node, self._standing.status())

    def peer_down(self, node: NodeId, reason: str, now: float) -> None:
        """The connection to `node` is gone: if it was a member, the epoch is broken."""
        self._standing.peers.pop(node, None)
        self._lanes.forget(node)
        self._former.on_peer_down(node, now)
        if self.epoch is not None and node in self.epoch.members:
            self._break(f"lost {node.short}: {reason}", now)
        self._former.reconsider(now)

    def begin(self, descriptor: bytes, now: float, lane: int = ROUND_LANE) -> Operation:
        """Start the lane's next operation; what others have said of it may have ended it already.

        Raises:
            CollectiveAborted: `may_begin` says no.
        """
        if self.epoch is None or not self.may_begin(lane):
            raise CollectiveAborted("no epoch to run an operation in")
        return self._lanes.begin(self.epoch, lane, descriptor, now)

    def result(self, root: bytes, now: float, lane: int = ROUND_LANE) -> None:
        """The data plane holds the result of the operation that runs there."""
        self._lanes.result(lane, root, now)

    def wait_for(self, lane: int, queued: Mapping[int, int], now: float) -> None:
        """In lanes other than 0 nothing more is called here before what runs in this one has ended; `queued` was before, by lane."""
        self._lanes.wait_for(lane, queued, now)

    def moves(self, lane: int, at: float, *, tell: bool = False) -> None:
        """Values of the operation in that lane came at that time; to be told before a `tick`, which announces or gives up what does not move.

        With `tell` it is announced though it moves: the others measure who began when.
        """
        self._lanes.moves(lane, at, tell=tell)

    def fail(
        self, reason: str, now: float, *, mismatch: bool = False, lane: int = ROUND_LANE
    ) -> None:
        """The data plane could not complete the operation that runs there.

        `mismatch` says that a member called a different one, so that no retry can help anybody.
        """
        if self._lanes.operation(lane) is not None:
            self._break(reason, now, mismatched=(lane,) if mismatch else ())

    def forget_unsettled(self, lane: int = ROUND_LANE) -> None:
        """The caller does not want the outcome of what it gave up any more."""
        if lane == ROUND_LANE:
            self._standing.unsettled = None
        else:
            self._settlement.forget(lane)

    def break_epoch(self, reason: str, now: float, *, suspects: Iterable[NodeId] = ()) -> None:
        """The epoch's connections do not work: form the next one.

        `suspects` are those at the other ends. Once may be chance; who fails in epoch after epoch, without
        an operation that succeeds between, is left out for a while.
        """
        if self.epoch is None:
            return
        for node in suspects:
            record = self._standing.offences_of(node)
            record.links_failed += 1
            if record.links_failed >= LINK_FAILURES:
                self._standing.accuse(node, f"its link failed again: {reason}"[:200], now)
        self._break(reason, now)

    # ---- messages --------------------------------------------------------------------------

    def receive(self, sender: NodeId, message: AnyMessage, now: float) -> None:
        """Take one message of a connected peer; anything out of date is ignored."""
        if sender not in self._standing.peers:
            return
        former = self._former
        match message:
            case Status():
                self._on_status(sender, message, now)
            case Prepare():
                self._on_prepare(sender, message, now)
            case Wait():
                former.on_wait(sender, message, now)
            case Promise():
                former.on_promise(sender, message, now)
            case Nack():
                former.on_nack(sender, message, now)
            case Propose():
                former.on_propose(sender, message, now)
            case Accept():
                former.on_accept(sender, message, now)
            case Begin():
                self._on_begin(sender, message, now)
            case Vote():
                self._on_vote(sender, message, now)
            case Certified(certificate):
                if self._is_of_present(sender, certificate.epoch):
                    self._lanes.on_certified(sender, certificate, now)
            case Abort():
                self._lanes.on_abort(sender, message, now)
            case Ask():
                self._settlement.on_ask(sender, message)
            case Answer():
                self._settlement.on_answer(sender, message, now)

    def _on_status(self, sender: NodeId, status: Status, now: float) -> None:
        standing = self._standing
        peer = standing.peers[sender]
        if status.ready and not peer.ready:
            peer.since = now
            peer.benched = peer.bench_ends is not None
        peer.status = status
        if status.number <= standing.number + MAX_LEAP:
            standing.number = max(standing.number, status.number)
        if status.leaving:
            standing.hear_farewell(sender, status, now)
        elif status.ready:
            standing.left.pop(sender, None)
        if not status.ready and self.epoch is not None and sender in self.epoch.members:
            self._break(f"{sender.short} {'left' if status.leaving else 'is not ready'}", now)
        self._former.reconsider(now)

    def _on_prepare(self, sender: NodeId, prepare: Prepare, now: float) -> None:
        if self._former.on_prepare(sender, prepare, now):
            return
        # A member that asks for a new epoch has given up on what it has not voted for.
        if not self._is_member(sender):
            return
        if not self._lanes.operations:
            if not self._settling:
                self._break(f"{sender.short} has moved on to the next epoch", now)
        elif self._lanes.lacks_vote(sender):
            self._give_way(now)
        else:
            self._give_way_due = now + self.settings.vote_grace_s

    def _is_of_present(self, sender: NodeId, epoch: bytes) -> bool:
        """Word of the present epoch, from a member of it."""
        return self.epoch is not None and epoch == self.epoch.id and self._is_member(sender)

    def _is_member(self, node: NodeId) -> bool:
        return self.epoch is not None and node in self.epoch.members

    def _on_begin(self, sender: NodeId, begin: Begin, now: float) -> None:
        if self._former.on_early(sender, begin):
            return  # the sender holds the last signature, which has not reached this node yet
        if self.epoch is None or begin.epoch != self.epoch.id:
            gone = Abort(begin.epoch, begin.sequence, "not in that epoch any more", lane=begin.lane)
            self._standing.send(sender, gone)
        elif sender in self.epoch.members:
            self._lanes.on_begin(sender, begin, now)

    def _on_vote(self, sender: NodeId, vote: Vote, now: float) -> None:
        if self._former.on_early(sender, vote):
            return
        if self._is_of_present(sender, vote.epoch):
            self._lanes.on_vote(sender, vote, now)

    def _certified(self, operation: Operation, now: float) -> None:
        """Everybody has signed the same result."""
        standing, certificate = self._standing, operation.certificate
        assert certificate is not None
        if operation.lane == ROUND_LANE:
            self._settling = True
            standing.last_certificate = certificate
        else:
            self._settlement.keep(certificate)
        if not self._lanes.operations:
            self._give_way_due = None
        for member in operation.epoch.members:
            if member in standing.offences:
                standing.offences[member].links_failed = 0
        standing.establish(operation.epoch, self._links)
        self._events.append(OperationCertified(operation, certificate))
        if not self._settling:
            self._former.answer_deferred(now)
            self._former.reconsider(now)

    # ---- time, and what comes out ----------------------------------------------------------------

    def next_deadline(self) -> float:
        """When `tick` wants to be called next; infinity while nothing is due."""
        due = min(
            self._lanes.next_deadline(),
            self._standing.next_pardon(),
            self._former.next_deadline(),
        )
        return due if self._give_way_due is None else min(due, self._give_way_due)

    def tick(self, now: float) -> None:
        """Let time-outs happen."""
        self._lanes.tick(now)
        if self._give_way_due is not None and now >= self._give_way_due:
            self._give_way(now)
        if now >= self._standing.next_pardon():
            self._standing.pardon(now)
            self._former.reconsider(now)
        self._former.tick(now)

    def outgoing(self) -> list[tuple[NodeId, Message]]:
        """Messages to send since the last call, in order."""
        messages, self._standing.outbox = self._standing.outbox, []
        return messages

    def next_event(self) -> Event | None:
        """The next thing that happened, or None."""
        return self._events.popleft() if self._events else None

    # ---- epochs come and go ------------------------------------------------------------------------

    def _enter(self, accepted: Accepted, now: float) -> None:
        standing, epoch = self._standing, accepted.epoch
        behind = not standing.holds(epoch.round, epoch.state)
        self._claimants = tuple(holder for holder in accepted.holders if holder != self._me)
        self.epoch, self._links = epoch, accepted.links
        if (
            epoch.previous == GENESIS
        ):  # founded by these: from now on it is their majority that counts
            standing.establish(epoch, accepted.links)
        standing.number = epoch.number
        self._note_veterans(epoch)
        self._lanes.clear()
        unsettled, standing.unsettled = standing.unsettled, None
        if unsettled is not None and accepted.proof is not None:
            # Somebody holds the certificate of what this node signed: its own copy counts.
            self._settling = True
            self._settled_at = epoch.id
            standing.last_certificate = accepted.proof
            self._events.append(OperationCertified(unsettled, accepted.proof))
            behind = False
        self._in_step = not behind
        self._events.append(EpochEntered(epoch, behind, accepted.holders))
        standing.broadcast_status()
        self._settlement.entered(epoch)
        for (sender, _, _), word in accepted.early.items():
            if isinstance(word, Begin):
                self._on_begin(sender, word, now)
            else:
                self._on_vote(sender, word, now)
        self._former.reconsider(now)

    def _note_veterans(self, epoch: Epoch) -> None:
        if len(self._veterans) >= KEPT_VETERANS:
            del self._veterans[next(iter(self._veterans))]
        keys = self._links[-2].keys if len(self._links) > 1 else ()
        before = {NodeId.of_public_key(key) for key in keys}
        self._veterans[epoch.id] = frozenset(before) & frozenset(epoch.members)

    def _break(
        self,
        reason: str,
        now: float,
        *,
        tell: bool = True,
        mismatched: Collection[int] = (),
    ) -> None:
        """The epoch cannot go on: abort what runs, leave, and form the next one."""
        for operation in self._lanes.abort(reason, tell=tell, mismatched=mismatched):
            if operation.state is OperationState.VOTED:
                if operation.lane == ROUND_LANE:
                    self._standing.unsettled = operation
                else:
                    self._settlement.doubt(operation)
            operation.abort()
        self._give_way_due = None
        self._leave_epoch(reason)
        self._former.answer_deferred(now)
        self._former.reconsider(now)

    def _leave_epoch(self, reason: str) -> None:
        if self.epoch is None:
            return
        self.epoch = None
        self._in_step = False
        self._lanes.clear()
        self._settlement.left()
        self._events.append(EpochLeft(reason))

    def _give_way(self, now: float) -> None:
        """A member asked for a new epoch, and the operation did not end in the grace time."""
        self._give_way_due = None
        if self._lanes.operations:
            self._break("a member has moved on to the next epoch", now)
