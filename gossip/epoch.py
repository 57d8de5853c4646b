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
4. In the epoch, operations run one at a time. Each ends with a full set of equal signatures
   (`gossip.operation`) or is aborted, which breaks the epoch and starts the next formation.

Any node may be lost at any moment: attempts rotate the proposer, and time-outs grow.

Invariants:

* a node votes in an epoch only between entering it and its next promise;
* one signature per (epoch, operation);
* ``quorum = "majority"``: the members of an epoch include more than half of the epoch that the
  start position comes from (or exactly half with its first member), not counting those that left
  in good order, so that two parts of a partition cannot both go on; ``"any"`` drops this rule;
* a node whose position is not the start position enters only to be brought up to date
  (`EpochEntered.behind`), and begins no operation before it is.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable

import attrs

from gossip.certificate import (
    GENESIS,
    Ballot,
    Certificate,
    Epoch,
    accept_statement,
)
from gossip.errors import CollectiveAborted
from gossip.formation import (
    Accepted,
    Collecting,
    Promised,
    choose_start,
    connected_members,
    has_quorum,
    proposer_of,
)
from gossip.messages import (
    MAX_MEMBERS,
    Abort,
    Accept,
    AnyMessage,
    Begin,
    Message,
    Nack,
    Prepare,
    Promise,
    Propose,
    Status,
    Vote,
    Wait,
)
from gossip.operation import Operation, OperationState
from transport.identity import Identity, NodeId, verify

NO_MODEL = bytes(32)
MAX_EARLY_ACCEPTS = 512  # accepts may overtake their proposal; two epochs' worth is plenty


@attrs.frozen
class EpochSettings:
    """Time-outs and rules of formation; all times in seconds."""

    quorum: str = "majority"
    """"majority" pauses a minority partition; "any" lets it go on."""
    min_members: int = 1
    """Members that the very first epoch waits for."""
    attempt_s: float = 0.6
    """Wait for a due proposer; grows by half of itself with each attempt, up to `attempt_max_s`."""
    attempt_max_s: float = 4.0
    """Upper bound of the above."""
    collect_s: float = 0.4
    """Wait for promises before proposing without the silent ones."""
    settle_s: float = 0.15
    """Pause after a newcomer is seen, so that several join in one epoch."""
    vote_grace_s: float = 0.25
    """How long a running operation may still end after one of its members asked for a new epoch."""


@attrs.frozen
class EpochEntered:
    """Event: this node is a member of `epoch` now."""

    epoch: Epoch
    behind: bool
    """True when this node's state is not the epoch's start state and must be fetched."""
    holders: tuple[NodeId, ...]
    """Members that hold the start state."""


@attrs.frozen
class EpochLeft:
    """Event: operations are impossible until the next `EpochEntered`."""

    reason: str


@attrs.frozen
class OperationCertified:
    """Event: the running operation succeeded everywhere it succeeded at all."""

    operation: Operation
    certificate: Certificate


@attrs.frozen
class OperationAborted:
    """Event: the running operation will not complete in this epoch."""

    operation: Operation
    reason: str
    mismatch: bool
    """True when members called different operations: trying again cannot help."""


@attrs.frozen
class MembersWaiting:
    """Event: so many other members have begun the operation that this node has not."""

    count: int
    of: int


Event = EpochEntered | EpochLeft | OperationCertified | OperationAborted | MembersWaiting


@attrs.define
class _Candidate:
    """What is known of a connected peer."""

    public_key: bytes
    status: Status | None = None
    since: float = 0.0


class EpochMachine:
    """One node's part in the epochs of one run."""

    def __init__(
        self,
        run: bytes,
        identity: Identity,
        *,
        model: bytes = NO_MODEL,
        rng: random.Random,
        settings: EpochSettings = EpochSettings(),
    ) -> None:
        self.run = run
        self.model = model
        self.settings = settings
        self.epoch: Epoch | None = None
        self.operation: Operation | None = None
        self.last_certificate: Certificate | None = None
        self.quorum_missing = False
        """True while too few of the last epoch's members are here to go on."""
        self._identity = identity
        self._me = identity.node_id
        self._rng = rng
        self._peers: dict[NodeId, _Candidate] = {}
        self._left: set[NodeId] = set()
        self._ready = False
        self._leaving = False
        self._round = 0
        self._state = bytes(32)
        self._settling = False  # certified, but the new position is not known yet
        self._number = 0
        self._sequence = 0
        self._previous_epoch: Epoch | None = None
        self._unsettled: Operation | None = None
        self._promised = Ballot(0, 0, bytes(32))
        self._attempt = 0
        self._attempt_due: float | None = None
        self._forming: Collecting | Promised | Accepted | None = None
        self._deferred: tuple[NodeId, Prepare] | None = None
        self._deferred_until: float | None = None
        self._early_accepts: dict[bytes, dict[NodeId, bytes]] = {}
        self._begins: dict[NodeId, Begin] = {}
        self._outgoing: list[tuple[NodeId, Message]] = []
        self._events: deque[Event] = deque()

    # ---- what the driver tells -------------------------------------------------------------

    def set_ready(self, round_: int, state: bytes, now: float) -> None:
        """This node stands at `state` after `round_` rounds and wants to take part."""
        if self._leaving:
            return
        self._ready, self._round, self._state = True, round_, state
        self._settling = False
        self._broadcast_status()
        epoch = self.epoch
        if epoch is not None and round_ == epoch.round and state != epoch.state:
            self._break("the state here is not the one the epoch starts from", now)
            return
        self._answer_deferred(now)
        self._reconsider(now)

    def set_not_ready(self, reason: str, now: float) -> None:
        """This node cannot take part for the time being (its trainer is gone, say)."""
        if not self._ready:
            return
        self._ready = False
        self._settling = False
        self._break(reason, now)
        self._broadcast_status()

    def leave(self, now: float) -> None:
        """Leave the run in good order: the others need not count this node any more."""
        self._leaving = True
        self._ready = False
        self._break("leaving", now)
        self._broadcast_status()

    def peer_up(self, node: NodeId, public_key: bytes, now: float) -> None:
        """A connection to `node` is there; it learns where this node stands."""
        self._peers[node] = _Candidate(public_key, since=now)
        self._send(node, self._status())

    def peer_down(self, node: NodeId, reason: str, now: float) -> None:
        """The connection to `node` is gone: if it was a member, the epoch is broken."""
        self._peers.pop(node, None)
        self._begins.pop(node, None)
        if isinstance(self._forming, Collecting):
            self._forming.drop(node)
            self._maybe_propose(now)
        elif (isinstance(self._forming, Accepted) and node in self._forming.epoch.members) or (
            isinstance(self._forming, Promised) and node == self._forming.ballot.proposer
        ):
            self._next_attempt(now, soon=True)
        if self.epoch is not None and node in self.epoch.members:
            self._break(f"lost {node.short}: {reason}", now)
        self._reconsider(now)

    def begin(self, descriptor: bytes, now: float) -> Operation:
        """Start the epoch's next operation.

        Raises:
            CollectiveAborted: not in an epoch, behind its state, or another operation runs.
        """
        if self.epoch is None or not self.can_begin:
            raise CollectiveAborted("no epoch to run an operation in")
        operation = Operation(self.epoch, self._sequence, descriptor, self._identity)
        self._sequence += 1
        self.operation = operation
        self._to_members(Begin(operation.epoch_id, operation.sequence, descriptor))
        for member, begin in sorted(self._begins.items()):
            self._check_begin(member, begin, now)  # after a mismatch it does nothing more
        return operation

    @property
    def can_begin(self) -> bool:
        """True when `begin` would be accepted."""
        return (
            self.epoch is not None
            and self.operation is None
            and not self._settling
            and (
                self._round > self.epoch.round
                or (self._round, self._state) == (self.epoch.round, self.epoch.state)
            )
        )

    @property
    def _operation_pending(self) -> bool:
        """True from the first member's `Begin` until this node knows the new position."""
        return (
            self.operation is not None
            or self._settling
            or any(begin.sequence == self._sequence for begin in self._begins.values())
        )

    def result(self, root: bytes, now: float) -> None:
        """The data plane holds the running operation's result."""
        operation = self.operation
        if operation is None or operation.state is not OperationState.RUNNING:
            return
        self._to_members(operation.vote(root))
        self._certify(now)

    def fail(self, reason: str, now: float) -> None:
        """The data plane could not complete the running operation."""
        if self.operation is not None:
            self._break(reason, now)

    def break_epoch(self, reason: str, now: float) -> None:
        """The epoch's connections do not work: form the next one."""
        if self.epoch is not None:
            self._break(reason, now)

    # ---- messages --------------------------------------------------------------------------

    def receive(self, sender: NodeId, message: AnyMessage, now: float) -> None:
        """Take one message of a connected peer; anything out of date is ignored."""
        if sender not in self._peers:
            return
        match message:
            case Status():
                self._on_status(sender, message, now)
            case Prepare():
                self._on_prepare(sender, message, now)
            case Wait():
                if isinstance(self._forming, Collecting):
                    self._forming.wait(sender, message, now)
            case Promise():
                if isinstance(self._forming, Collecting) and self._forming.promise(sender, message):
                    self._number = max(self._number, message.ballot.number - 1)
                    self._maybe_propose(now)
            case Nack():
                self._on_nack(sender, message, now)
            case Propose():
                self._on_propose(sender, message, now)
            case Accept():
                self._on_accept(sender, message, now)
            case Begin():
                self._on_begin(sender, message, now)
            case Vote():
                self._on_vote(sender, message, now)
            case Abort():
                self._on_abort(sender, message, now)

    def _on_status(self, sender: NodeId, status: Status, now: float) -> None:
        peer = self._peers[sender]
        was_ready = peer.status is not None and peer.status.ready
        peer.status = status
        self._number = max(self._number, status.number)
        if status.leaving:
            self._left.add(sender)
        elif status.ready:
            self._left.discard(sender)
        if status.ready and not was_ready:
            peer.since = now
        if not status.ready and self.epoch is not None and sender in self.epoch.members:
            self._break(f"{sender.short} {'left' if status.leaving else 'is not ready'}", now)
        self._reconsider(now)

    def _on_prepare(self, sender: NodeId, prepare: Prepare, now: float) -> None:
        if prepare.ballot.proposer != sender:
            return
        if not self._ready:
            self._send(sender, Nack(prepare.ballot, self._promised, "not ready"))
            return
        if prepare.ballot <= self._promised:
            self._send(sender, Nack(prepare.ballot, self._promised, "promised a higher ballot"))
            return
        if self._operation_pending:
            from_member = self.epoch is not None and sender in self.epoch.members
            self._deferred = (sender, prepare)
            if from_member and self.operation is not None:
                grace = self.settings.vote_grace_s if self.operation.voted(sender) else 0.0
                self._deferred_until = now + grace
            self._send(sender, Wait(prepare.ballot))
            if self._deferred_until is not None and self._deferred_until <= now:
                self._give_way(now)
            return
        self._promise(sender, prepare, now)

    def _promise(self, sender: NodeId, prepare: Prepare, now: float) -> None:
        self._promised = prepare.ballot
        self._leave_epoch("forming the next epoch")
        self._forming = Promised(prepare.ballot, now + self._patience())
        self._attempt_due = None
        if sender != self._me:
            self._send(sender, self._own_promise(prepare.ballot))

    def _own_promise(self, ballot: Ballot) -> Promise:
        previous = self._previous_epoch
        members: Iterable[NodeId] = () if previous is None else previous.members
        return Promise(
            ballot,
            self._round,
            self._state,
            GENESIS if previous is None else previous.id,
            tuple(member for member in members if member not in self._left),
            tuple(sorted(self._peers)[:MAX_MEMBERS]),
            self.last_certificate,
        )

    def _on_nack(self, sender: NodeId, nack: Nack, now: float) -> None:
        self._number = max(self._number, nack.highest.number - 1)
        forming = self._forming
        if not isinstance(forming, Collecting) or nack.ballot != forming.ballot:
            return
        if nack.highest > forming.ballot:
            self._attempt = max(self._attempt, nack.highest.attempt + 1)
            self._next_attempt(now)
            return
        forming.drop(sender)
        self._maybe_propose(now)

    def _on_propose(self, sender: NodeId, propose: Propose, now: float) -> None:
        forming = self._forming
        if (
            not isinstance(forming, Promised)
            or propose.ballot != forming.ballot
            or propose.ballot.proposer != sender
        ):
            return
        self._accept(propose, now)

    def _accept(self, propose: Propose, now: float) -> None:
        members = tuple(NodeId(member) for member in propose.members)
        holders = tuple(NodeId(holder) for holder in propose.holders)
        holds = (propose.round, propose.state) == (self._round, self._state)
        settled = (
            self._unsettled is not None
            and propose.certificate is not None
            and propose.round == self._round + 1
            and self._unsettled.settled_by(propose.certificate)
        )
        if (
            self._me not in members
            or len(members) > MAX_MEMBERS
            or tuple(sorted(set(members))) != members
            or not set(holders) <= set(members)
            or not holders
            or propose.round < self._round
            or (holds and self._me not in holders)
            or any(member != self._me and member not in self._peers for member in members)
            or (holds and not self._quorum(members))
        ):
            self._next_attempt(now)
            return
        epoch = Epoch(
            self.run, propose.ballot, members, propose.previous, propose.round, propose.state
        )
        signature = self._identity.sign(accept_statement(epoch.id))
        self._forming = accepted = Accepted(
            epoch,
            holders,
            propose.certificate if settled else None,
            due=now + self._patience(),
        )
        accepted.signed.add(self._me)
        for member in members:
            if member != self._me:
                self._send(member, Accept(epoch.id, signature))
        for member, early in sorted(self._early_accepts.pop(epoch.id, {}).items()):
            self._take_accept(accepted, member, early)
        self._maybe_enter(now)

    def _on_accept(self, sender: NodeId, accept: Accept, now: float) -> None:
        forming = self._forming
        if isinstance(forming, Accepted) and accept.epoch == forming.epoch.id:
            self._take_accept(forming, sender, accept.signature)
            self._maybe_enter(now)
            return
        if self.epoch is not None and accept.epoch == self.epoch.id:
            return
        if sum(map(len, self._early_accepts.values())) >= MAX_EARLY_ACCEPTS:
            self._early_accepts.clear()
        self._early_accepts.setdefault(accept.epoch, {})[sender] = accept.signature

    def _take_accept(self, forming: Accepted, sender: NodeId, signature: bytes) -> None:
        peer = self._peers.get(sender)
        if (
            peer is not None
            and sender in forming.epoch.members
            and verify(peer.public_key, signature, accept_statement(forming.epoch.id))
        ):
            forming.signed.add(sender)

    def _maybe_enter(self, now: float) -> None:
        forming = self._forming
        if not isinstance(forming, Accepted) or forming.signed != set(forming.epoch.members):
            return
        epoch = forming.epoch
        behind = (self._round, self._state) != (epoch.round, epoch.state)
        self._forming = None
        self.epoch = self._previous_epoch = epoch
        self._number = epoch.number
        self._sequence = 0
        self._attempt = 0
        self._attempt_due = None
        self._early_accepts.clear()
        self._begins.clear()
        self.quorum_missing = False
        unsettled, self._unsettled = self._unsettled, None
        if unsettled is not None and forming.proof is not None:
            # Somebody holds the certificate of what this node signed: its own copy counts.
            self._settling = True
            self.last_certificate = forming.proof
            self._events.append(OperationCertified(unsettled, forming.proof))
            behind = False
        self._events.append(EpochEntered(epoch, behind, forming.holders))
        self._broadcast_status()
        for sender, begin in forming.begins.items():
            self._on_begin(sender, begin, now)
        self._reconsider(now)

    def _on_begin(self, sender: NodeId, begin: Begin, now: float) -> None:
        if isinstance(self._forming, Accepted) and begin.epoch == self._forming.epoch.id:
            # The sender holds the last signature, which has not reached this node yet.
            self._forming.begins[sender] = begin
            return
        if self.epoch is None or begin.epoch != self.epoch.id:
            self._send(sender, Abort(begin.epoch, begin.sequence, "not in that epoch any more"))
            return
        if sender not in self.epoch.members:
            return
        self._begins[sender] = begin
        if self.operation is not None:
            self._check_begin(sender, begin, now)
        elif begin.sequence == self._sequence:
            waiting = sum(1 for other in self._begins.values() if other.sequence == self._sequence)
            self._events.append(MembersWaiting(waiting, len(self.epoch.members)))

    def _check_begin(self, sender: NodeId, begin: Begin, now: float) -> None:
        operation = self.operation
        if (
            operation is not None
            and begin.sequence == operation.sequence
            and begin.descriptor != operation.descriptor
        ):
            self._break(
                f"{sender.short} called another operation than this node", now, mismatch=True
            )

    def _on_vote(self, sender: NodeId, vote: Vote, now: float) -> None:
        operation = self.operation
        if (
            operation is None
            or vote.epoch != operation.epoch_id
            or vote.sequence != operation.sequence
            or sender not in operation.epoch.members
        ):
            return
        reason = operation.add_vote(sender, self._peers[sender].public_key, vote)
        if reason is not None:
            self._break(reason, now)
            return
        self._certify(now)

    def _certify(self, now: float) -> None:
        operation = self.operation
        assert operation is not None
        keys = {node: peer.public_key for node, peer in self._peers.items()}
        keys[self._me] = self._identity.public_key
        if not set(operation.epoch.members) <= set(keys):
            return
        reason = operation.certify(keys)
        if reason is not None:
            self._break(reason, now)
            return
        if operation.certificate is None:
            return
        self.operation = None
        self._settling = True
        self.last_certificate = operation.certificate
        self._deferred_until = None
        self._events.append(OperationCertified(operation, operation.certificate))

    def _on_abort(self, sender: NodeId, abort: Abort, now: float) -> None:
        if (
            self.epoch is not None
            and abort.epoch == self.epoch.id
            and sender in self.epoch.members
            and (self.operation is None or abort.sequence == self.operation.sequence)
        ):
            self._break(f"{sender.short}: {abort.reason}", now, tell=False, mismatch=abort.mismatch)

    # ---- time --------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """When `tick` wants to be called next."""
        times = [self._attempt_due, self._deferred_until]
        if self._forming is not None:
            times.append(self._forming.due)
        return min((time for time in times if time is not None), default=None)

    def tick(self, now: float) -> None:
        """Let time-outs happen."""
        if self._deferred_until is not None and now >= self._deferred_until:
            self._give_way(now)
        forming = self._forming
        if forming is not None and now >= forming.due:
            if isinstance(forming, Collecting):
                forming.give_up_on_silent(now)
                self._maybe_propose(now)
            else:
                self._next_attempt(now)
        if self._attempt_due is not None and now >= self._attempt_due:
            self._attempt_due = None
            self._start_attempt(now)

    def outgoing(self) -> list[tuple[NodeId, Message]]:
        """Messages to send since the last call, in order."""
        messages, self._outgoing = self._outgoing, []
        return messages

    def next_event(self) -> Event | None:
        """The next thing that happened, or None."""
        return self._events.popleft() if self._events else None

    # ---- formation -----------------------------------------------------------------------------

    def candidates(self) -> tuple[NodeId, ...]:
        """Ready nodes of the same model, this one included when it is ready; ascending."""
        found = [
            node
            for node, peer in self._peers.items()
            if peer.status is not None and peer.status.ready and peer.status.model == self.model
        ]
        if self._ready:
            found.append(self._me)
        return tuple(sorted(found)[:MAX_MEMBERS])

    def _reconsider(self, now: float) -> None:
        """Start forming an epoch when one is needed and nothing else is under way."""
        if not self._ready or self._operation_pending:
            return
        if self._forming is not None or self._attempt_due is not None:
            return
        candidates = self.candidates()
        if self.epoch is not None and candidates == self.epoch.members:
            return
        self.quorum_missing = not self._quorum(candidates)
        if self.quorum_missing:
            return
        newest = max(
            (self._peers[node].since for node in candidates if node != self._me), default=now
        )
        settle = 0.0 if self.epoch is None and self._previous_epoch else self.settings.settle_s
        self._attempt_due = max(now, newest + settle)

    def _quorum(self, members: Iterable[NodeId]) -> bool:
        return has_quorum(
            members,
            None if self._previous_epoch is None else self._previous_epoch.members,
            self._left,
            rule=self.settings.quorum,
            min_members=self.settings.min_members,
        )

    def _start_attempt(self, now: float) -> None:
        """Prepare when this node is due, else wait for whoever is."""
        candidates = self.candidates()
        if not self._ready or self._operation_pending:
            return
        if self.epoch is not None and candidates == self.epoch.members:
            return
        if not self._quorum(candidates):
            self.quorum_missing = True
            return
        number = max(self._number + 1, self._promised.number)
        if number == self._promised.number:
            self._attempt = max(self._attempt, self._promised.attempt + 1)
        if proposer_of(candidates, number, self._attempt) != self._me:
            self._attempt_due = now + self._patience()
            self._attempt += 1
            return
        ballot = Ballot(number, self._attempt, self._me)
        self._promised = ballot
        self._leave_epoch("forming the next epoch")
        others = [node for node in candidates if node != self._me]
        self._forming = Collecting(ballot, others, now, self.settings.collect_s)
        self._forming.promises[self._me] = self._own_promise(ballot)
        for node in others:
            self._send(node, Prepare(ballot))
        self._maybe_propose(now)

    def _maybe_propose(self, now: float) -> None:
        forming = self._forming
        if not isinstance(forming, Collecting) or not forming.complete:
            return
        members = connected_members(forming.promises)
        start = choose_start({member: forming.promises[member] for member in members})
        if not has_quorum(
            members,
            start.previous_members,
            self._left,
            rule=self.settings.quorum,
            min_members=self.settings.min_members,
        ):
            self._next_attempt(now)
            return
        propose = Propose(
            forming.ballot,
            members,
            start.previous,
            start.round,
            start.state,
            start.holders,
            start.certificate,
        )
        for member in members:
            if member != self._me:
                self._send(member, propose)
        self._accept(propose, now)

    def _next_attempt(self, now: float, *, soon: bool = False) -> None:
        self._forming = None
        self._attempt += 1
        wait = 0.0 if soon else self._rng.uniform(0.0, 0.3) * self.settings.attempt_s
        self._attempt_due = now + wait

    def _patience(self) -> float:
        grown = self.settings.attempt_s * (1 + 0.5 * self._attempt)
        return min(grown, self.settings.attempt_max_s) * self._rng.uniform(0.9, 1.2)

    # ---- ends ------------------------------------------------------------------------------------

    def _break(self, reason: str, now: float, *, tell: bool = True, mismatch: bool = False) -> None:
        """The epoch cannot go on: abort what runs, leave, and form the next one."""
        operation = self.operation
        if operation is not None:
            if tell:
                self._to_members(
                    Abort(operation.epoch_id, operation.sequence, reason[:200], mismatch)
                )
            if operation.state is OperationState.VOTED:
                self._unsettled = operation
            operation.abort()
            self.operation = None
            self._events.append(OperationAborted(operation, reason, mismatch))
        if self.epoch is not None:
            self._leave_epoch(reason)
        self._answer_deferred(now)
        self._reconsider(now)

    def _leave_epoch(self, reason: str) -> None:
        if self.epoch is None:
            return
        self.epoch = None
        self._begins.clear()
        self._events.append(EpochLeft(reason))

    def _give_way(self, now: float) -> None:
        """A member asked for a new epoch and the operation did not end in the grace time."""
        self._deferred_until = None
        if self.operation is not None:
            self._break("a member has moved on to the next epoch", now)
        else:
            self._answer_deferred(now)

    def _answer_deferred(self, now: float) -> None:
        if self._deferred is None or self._operation_pending:
            return
        (sender, prepare), self._deferred = self._deferred, None
        self._deferred_until = None
        if sender in self._peers:
            self._on_prepare(sender, prepare, now)

    # ---- sending -----------------------------------------------------------------------------------

    def _status(self) -> Status:
        return Status(
            self._ready, self._leaving, self.model, self._number, self._round, self._state
        )

    def _broadcast_status(self) -> None:
        for node in sorted(self._peers):
            self._send(node, self._status())

    def _to_members(self, message: Message) -> None:
        epoch = self.operation.epoch if self.operation is not None else self.epoch
        if epoch is not None:
            for member in epoch.members:
                if member != self._me:
                    self._send(member, message)

    def _send(self, node: NodeId, message: Message) -> None:
        if node in self._peers:
            self._outgoing.append((node, message))
