"""Forming the next epoch: promises, proposals, acceptances (sans-IO).

One `Former` per run. It decides when an epoch is needed, who is due to propose it, and when this
node may enter it; the rules themselves are in `gossip.collective.formation`. Its owner is told of two things:
that the present epoch must be left (`on_leave`), and that a new one holds everybody's signature
(`on_enter`).

Invariants: promises only rise; an acceptance is signed only for the ballot promised last; while
the owner is busy with an operation nothing is promised, and what asked for it is answered later.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

from gossip.collective.certificate import GENESIS, Ballot, Epoch, accept_statement
from gossip.collective.epoch_events import EpochSettings
from gossip.collective.formation import (
    Accepted,
    Collecting,
    Promised,
    choose_start,
    connected_members,
    has_quorum,
    proposer_of,
)
from gossip.collective.messages import (
    MAX_MEMBERS,
    Accept,
    Begin,
    Nack,
    Prepare,
    Promise,
    Propose,
    Wait,
)
from gossip.collective.standing import Standing
from transport.identity import NodeId, verify

MAX_EARLY_ACCEPTS = 512  # accepts may overtake their proposal; two epochs' worth is plenty

MAX_LEAP = 1 << 20
MAX_ATTEMPT = 1 << 16
"""Bounds on what one message may raise: numbers grow by one with each epoch, attempts are reset."""


class Former:
    """This node's part in forming epochs.

    Args:
        standing: shared with the owner.
        busy: True from the first member's start of an operation until the new position is known.
        present: the epoch this node is in, or None.
        on_leave: the present epoch is left, with the reason.
        on_enter: everybody has signed; called with the acceptance.
    """

    def __init__(
        self,
        standing: Standing,
        settings: EpochSettings,
        rng: random.Random,
        *,
        busy: Callable[[], bool],
        present: Callable[[], Epoch | None],
        on_leave: Callable[[str], None],
        on_enter: Callable[[Accepted, float], None],
    ) -> None:
        self.quorum_missing = False
        self._standing = standing
        self._settings = settings
        self._rng = rng
        self._busy = busy
        self._present = present
        self._on_leave = on_leave
        self._on_enter = on_enter
        self._promised = Ballot(0, 0, bytes(32))
        self._attempt = 0
        self._attempt_due: float | None = None
        self._step: Collecting | Promised | Accepted | None = None
        self._deferred: tuple[NodeId, Prepare] | None = None
        self._early_accepts: dict[bytes, dict[NodeId, bytes]] = {}

    # ---- messages --------------------------------------------------------------------------

    def on_prepare(self, sender: NodeId, prepare: Prepare, now: float) -> bool:
        """Answer a proposer; False when the answer has to wait for the operation under way."""
        if prepare.ballot.proposer != sender:
            return True
        refusal = ""
        peer = self._standing.peers.get(sender)
        if not self._standing.ready:
            refusal = "not ready"
        elif peer is None or not peer.ready or peer.benched:
            refusal = "only a ready candidate may propose"
        elif not self._plausible(prepare.ballot):
            refusal = "that ballot is far beyond anything known here"
        elif prepare.ballot <= self._promised:
            refusal = "promised a higher ballot"
        if refusal:
            self._standing.send(sender, Nack(prepare.ballot, self._promised, refusal))
            return True
        if self._busy():
            self._deferred = (sender, prepare)
            self._standing.send(sender, Wait(prepare.ballot))
            return False
        self._promised = prepare.ballot
        self._on_leave("forming the next epoch")
        self._step = Promised(prepare.ballot, now + self._patience())
        self._attempt_due = None
        self._standing.send(sender, self._own_promise(prepare.ballot))
        return True

    def _plausible(self, ballot: Ballot) -> bool:
        """False for a leap that would use up the numbers for everybody."""
        return ballot.number <= self._standing.number + MAX_LEAP and ballot.attempt <= MAX_ATTEMPT

    def answer_deferred(self, now: float) -> None:
        """The operation has ended: answer the proposer that was told to wait."""
        if self._deferred is None or self._busy():
            return
        (sender, prepare), self._deferred = self._deferred, None
        if sender in self._standing.peers:
            self.on_prepare(sender, prepare, now)

    def on_wait(self, sender: NodeId, wait: Wait, now: float) -> None:
        """A candidate answers later."""
        if isinstance(self._step, Collecting):
            self._step.wait(sender, wait, now)

    def on_promise(self, sender: NodeId, promise: Promise, now: float) -> None:
        """A candidate follows this node's ballot."""
        if isinstance(self._step, Collecting) and self._step.promise(sender, promise):
            self._maybe_propose(now)

    def on_nack(self, sender: NodeId, nack: Nack, now: float) -> None:
        """A candidate does not follow this node's ballot."""
        standing, step = self._standing, self._step
        if not self._plausible(nack.highest):
            return
        standing.number = max(standing.number, nack.highest.number - 1)
        if not isinstance(step, Collecting) or nack.ballot != step.ballot:
            return
        if nack.highest > step.ballot:
            self._attempt = max(self._attempt, nack.highest.attempt + 1)
            self._next_attempt(now)
            return
        step.drop(sender)
        self._maybe_propose(now)

    def on_propose(self, sender: NodeId, propose: Propose, now: float) -> None:
        """The proposer this node follows has made an epoch."""
        step = self._step
        if (
            isinstance(step, Promised)
            and propose.ballot == step.ballot
            and propose.ballot.proposer == sender
        ):
            self._accept(propose, now)

    def on_accept(self, sender: NodeId, accept: Accept, now: float) -> None:
        """A member has signed an epoch."""
        step = self._step
        if isinstance(step, Accepted) and accept.epoch == step.epoch.id:
            self._take_accept(step, sender, accept.signature)
            self._maybe_enter(now)
            return
        present = self._present()
        if present is not None and accept.epoch == present.id:
            return
        if sum(map(len, self._early_accepts.values())) >= MAX_EARLY_ACCEPTS:
            self._early_accepts.clear()
        self._early_accepts.setdefault(accept.epoch, {})[sender] = accept.signature

    def on_early_begin(self, sender: NodeId, begin: Begin) -> bool:
        """Keep a start in the epoch that lacks only signatures here; False if it is not that one."""
        if isinstance(self._step, Accepted) and begin.epoch == self._step.epoch.id:
            self._step.begins[sender] = begin
            return True
        return False

    def on_peer_down(self, node: NodeId, now: float) -> None:
        """Go on without a peer that is gone."""
        step = self._step
        if isinstance(step, Collecting):
            step.drop(node)
            self._maybe_propose(now)
        elif (isinstance(step, Accepted) and node in step.epoch.members) or (
            isinstance(step, Promised) and node == step.ballot.proposer
        ):
            self._next_attempt(now, soon=True)

    def withdraw(self) -> None:
        """This node cannot take part any more: forget what it was about to enter."""
        self._step = None
        self._attempt_due = None

    # ---- when, and who ---------------------------------------------------------------------

    def reconsider(self, now: float) -> None:
        """Start forming an epoch when one is needed and nothing else is under way."""
        if self._step is not None or self._attempt_due is not None or not self._needed():
            return
        standing = self._standing
        others = [node for node in standing.candidates() if node != standing.me]
        newest = max((standing.peers[node].since for node in others), default=now)
        # Survivors of a broken epoch hurry; newcomers are worth a pause, so that several fit in.
        hurry = self._present() is None and standing.previous is not None
        self._attempt_due = max(now, newest + (0.0 if hurry else self._settings.settle_s))

    def _needed(self) -> bool:
        """True when the candidates should be in another epoch than the present one."""
        standing, present = self._standing, self._present()
        if not standing.ready or self._busy():
            return False
        candidates = standing.candidates()
        if present is not None and candidates == present.members:
            return False
        self.quorum_missing = not self._quorum(candidates)
        return not self.quorum_missing

    def _quorum(self, members: Iterable[NodeId]) -> bool:
        previous = self._standing.previous
        return has_quorum(
            members,
            None if previous is None else previous.members,
            self._standing.left,
            rule=self._settings.quorum,
            min_members=self._settings.min_members,
        )

    def _start_attempt(self, now: float) -> None:
        """Prepare when this node is due, else wait for whoever is."""
        if not self._needed():
            return
        standing = self._standing
        candidates = standing.candidates()
        number = max(standing.number + 1, self._promised.number)
        if number == self._promised.number:
            self._attempt = max(self._attempt, self._promised.attempt + 1)
        if proposer_of(candidates, number, self._attempt) != standing.me:
            self._attempt_due = now + self._patience()
            self._attempt += 1
            return
        ballot = self._promised = Ballot(number, self._attempt, standing.me)
        self._on_leave("forming the next epoch")
        others = [node for node in candidates if node != standing.me]
        self._step = Collecting(ballot, others, now, self._settings.collect_s)
        self._step.promises[standing.me] = self._own_promise(ballot)
        standing.send_all(others, Prepare(ballot))
        self._maybe_propose(now)

    def _next_attempt(self, now: float, *, soon: bool = False) -> None:
        self._step = None
        self._attempt += 1
        wait = 0.0 if soon else self._rng.uniform(0.0, 0.3) * self._settings.attempt_s
        self._attempt_due = now + wait

    def _patience(self) -> float:
        grown = self._settings.attempt_s * (1 + 0.5 * self._attempt)
        return min(grown, self._settings.attempt_max_s) * self._rng.uniform(0.9, 1.2)

    def next_deadline(self) -> float | None:
        """When `tick` wants to be called next."""
        due = None if self._step is None else self._step.due
        return min((time for time in (due, self._attempt_due) if time is not None), default=None)

    def tick(self, now: float) -> None:
        """Let time-outs happen."""
        step = self._step
        if step is not None and now >= step.due:
            if isinstance(step, Collecting):
                step.give_up_on_silent(now)
                self._maybe_propose(now)
            else:
                self._next_attempt(now)
        if self._attempt_due is not None and now >= self._attempt_due:
            self._attempt_due = None
            self._start_attempt(now)

    # ---- from promises to entry --------------------------------------------------------------

    def _own_promise(self, ballot: Ballot) -> Promise:
        standing = self._standing
        previous = standing.previous
        members: Iterable[NodeId] = () if previous is None else previous.members
        return Promise(
            ballot,
            standing.round,
            standing.state,
            GENESIS if previous is None else previous.id,
            tuple(member for member in members if member not in standing.left),
            tuple(sorted(standing.peers)[:MAX_MEMBERS]),
            standing.last_certificate,
        )

    def _maybe_propose(self, now: float) -> None:
        step, standing = self._step, self._standing
        if not isinstance(step, Collecting) or not step.complete:
            return
        members = connected_members(step.promises)
        start = choose_start({member: step.promises[member] for member in members})
        if not has_quorum(
            members,
            start.previous_members,
            standing.left,
            rule=self._settings.quorum,
            min_members=self._settings.min_members,
        ):
            self._next_attempt(now)
            return
        propose = Propose(
            step.ballot,
            members,
            start.previous,
            start.round,
            start.state,
            start.holders,
            start.certificate,
        )
        standing.send_all(members, propose)
        self._accept(propose, now)

    def _accept(self, propose: Propose, now: float) -> None:
        """Sign the proposed epoch if everything in it agrees with what this node knows itself."""
        standing = self._standing
        members = tuple(NodeId(member) for member in propose.members)
        holders = tuple(NodeId(holder) for holder in propose.holders)
        if not self._acceptable(propose, members, holders):
            self._next_attempt(now)
            return
        epoch = Epoch(
            standing.run, propose.ballot, members, propose.previous, propose.round, propose.state
        )
        unsettled = standing.unsettled
        settled = (
            unsettled is not None
            and propose.certificate is not None
            and propose.round == standing.round + 1
            and unsettled.settled_by(propose.certificate)
        )
        step = self._step = Accepted(
            epoch,
            holders,
            propose.certificate if settled else None,
            due=now + self._patience(),
        )
        step.signed.add(standing.me)
        signature = standing.identity.sign(accept_statement(epoch.id))
        standing.send_all(members, Accept(epoch.id, signature))
        for member, early in sorted(self._early_accepts.pop(epoch.id, {}).items()):
            self._take_accept(step, member, early)
        self._maybe_enter(now)

    def _acceptable(
        self, propose: Propose, members: tuple[NodeId, ...], holders: tuple[NodeId, ...]
    ) -> bool:
        standing = self._standing
        holds = standing.holds(propose.round, propose.state)
        return (
            standing.ready
            and standing.me in members
            and tuple(sorted(set(members))) == members
            and bool(holders)
            and set(holders) <= set(members)
            and propose.round >= standing.round
            and (not holds or standing.me in holders)
            and all(member == standing.me or member in standing.peers for member in members)
            and (not holds or self._quorum(members))
        )

    def _take_accept(self, step: Accepted, sender: NodeId, signature: bytes) -> None:
        peer = self._standing.peers.get(sender)
        if (
            peer is not None
            and sender in step.epoch.members
            and verify(peer.public_key, signature, accept_statement(step.epoch.id))
        ):
            step.signed.add(sender)

    def _maybe_enter(self, now: float) -> None:
        step = self._step
        if not isinstance(step, Accepted) or step.signed != set(step.epoch.members):
            return
        self._step = None
        self._attempt = 0
        self._attempt_due = None
        self._early_accepts.clear()
        self.quorum_missing = False
        self._on_enter(step, now)
