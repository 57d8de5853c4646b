"""Forming the next epoch: promises, proposals, acceptances (sans-IO).

One `Former` per run. It decides when an epoch is needed, who is due to propose it, and when this
node may enter it; the rules themselves are in `gossip.collective.agreement.formation`. Its owner is told of two things:
that the present epoch must be left (`on_leave`), and that a new one holds everybody's signature
(`on_enter`).

Invariants: promises only rise; an acceptance is signed only for the ballot promised last; while
the owner is busy with an operation nothing is promised, and what asked for it is answered later.

Nothing that a proposer or a member claims is taken on trust. Positions come with the signatures that
led there (`gossip.collective.agreement.lineage`); a member enters an epoch only if that holds a quorum of its own
last one, or is proven to follow on one that did. Whoever shows a signature that does not hold is accused.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Sequence

from gossip.collective.agreement.certificate import (
    GENESIS,
    Ballot,
    Certificate,
    Epoch,
    SignedBy,
    accept_statement,
)
from gossip.collective.agreement.epoch_events import EpochSettings
from gossip.collective.agreement.formation import (
    Accepted,
    Collecting,
    Promised,
    Start,
    choose_start,
    connected_members,
    has_quorum,
    proposer_of,
)
from gossip.collective.agreement.layout import Layout
from gossip.collective.agreement.lineage import (
    MAX_FAREWELLS,
    History,
    Link,
    Verifier,
    farewells,
    trimmed,
)
from gossip.collective.agreement.messages import (
    MAX_MEMBERS,
    Accept,
    Begin,
    Nack,
    Prepare,
    Promise,
    Propose,
    Vote,
    Wait,
    from_bits,
    to_bits,
)
from gossip.collective.agreement.scrutiny import Scrutiny
from gossip.collective.agreement.standing import Standing
from transport.identity import NodeId, verify

MAX_EARLY_ACCEPTS = 512  # accepts may overtake their proposal; two epochs' worth is plenty

MAX_LEAP = 1 << 20
MAX_ATTEMPT = 1 << 16
"""Bounds on what one message may raise: numbers grow by one with each epoch, attempts are reset."""

PREPARES = 6
PREPARE_EVERY_S = 15.0
"""A node may ask for so many epochs at once, and for one more each time so many seconds have passed.
Who is due by rule needs one or two. One that asks without end keeps the others waiting for as long as they
are patient (`attempt_max_s`), so the pause between is several times that."""

REFUSED_S = 2.0
"""Who could not sign what it was proposed is not asked for so long."""

PASS_OVER_S = 1.0
PASS_OVER_MAX_S = 60.0
"""A ready node that could not be in an epoch (it does not reach all of its members) is no reason to leave
that epoch for so long; twice as long each time. Its connection to another member may make it one."""


class Former:
    """This node's part in forming epochs.

    Args:
        standing: shared with the owner.
        busy: True from the first member's start of an operation until the new position is known.
        present: the epoch this node is in, or None.
        arrange: how to arrange these members, when this node proposes.
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
        arrange: Callable[[tuple[NodeId, ...]], Layout],
        on_leave: Callable[[str], None],
        on_enter: Callable[[Accepted, float], None],
    ) -> None:
        self.quorum_missing = False
        self._standing = standing
        self._settings = settings
        self._rng = rng
        self._busy = busy
        self._present = present
        self._arrange = arrange
        self._on_leave = on_leave
        self._on_enter = on_enter
        self._promised = Ballot(0, 0, bytes(32))
        self._attempt = 0
        self._attempt_due: float | None = None
        self._awaited: tuple[NodeId, float] | None = None  # who is due, and until when it has time
        self._step: Collecting | Promised | Accepted | None = None
        self._deferred: tuple[NodeId, Prepare] | None = None
        self._early_accepts: dict[bytes, dict[NodeId, bytes]] = {}
        self._verifier = Verifier(standing.run, self._follows)
        self._scrutiny = Scrutiny(standing, settings, self._follows)
        self._histories: dict[NodeId, History] = {}
        self._allowance: dict[NodeId, tuple[float, float]] = {}
        self._passed_over: dict[NodeId, float] = {}
        self._refused: dict[NodeId, float] = {}
        self._times_passed: dict[NodeId, int] = {}

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
        elif self._present() is not None and sender in self._passed_over:
            refusal = "left out of this epoch for a while: it does not reach all of the members"
        elif not self._allows(sender, now):
            refusal = "asks for epochs too often"
        if refusal:
            self._standing.send(sender, Nack(prepare.ballot, self._promised, refusal))
            return True
        if self._busy():
            self._deferred = (sender, prepare)
            self._standing.send(sender, Wait(prepare.ballot))
            return False
        self._promised = prepare.ballot
        self._on_leave("forming the next epoch")
        self._step = Promised(prepare.ballot, now + self._patience(), now)
        self._attempt_due = None
        self._standing.send(sender, self._own_promise(prepare.ballot))
        return True

    def _plausible(self, ballot: Ballot) -> bool:
        """False for a leap that would use up the numbers for everybody."""
        return ballot.number <= self._standing.number + MAX_LEAP and ballot.attempt <= MAX_ATTEMPT

    def _allows(self, sender: NodeId, now: float) -> bool:
        """Take one of the sender's turns; False when it has none left."""
        tokens, at = self._allowance.get(sender, (float(PREPARES), now))
        tokens = min(tokens + (now - at) / PREPARE_EVERY_S, float(PREPARES))
        if len(self._allowance) >= MAX_MEMBERS and sender not in self._allowance:
            self._allowance.clear()
        self._allowance[sender] = (max(tokens - 1.0, 0.0), now)
        return tokens >= 1.0

    def _pass_over(self, step: Accepted, now: float) -> None:
        """Those that were ready before this epoch was asked for, and are not in it."""
        standing = self._standing
        self._passed_over.clear()
        self._times_passed = {
            node: times
            for node, times in self._times_passed.items()
            if node in standing.peers and node not in step.epoch.members
        }
        for node in standing.candidates():
            if node not in step.epoch.members and standing.peers[node].since < step.since:
                times = self._times_passed.get(node, 0)
                self._times_passed[node] = min(times + 1, 10)
                self._passed_over[node] = now + min(PASS_OVER_S * 2**times, PASS_OVER_MAX_S)

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
        step = self._step
        if not isinstance(step, Collecting) or promise.ballot != step.ballot:
            return
        history = self._verifier.history(promise.links, promise.certificate)
        if history is None:
            step.drop(sender)
            self._standing.accuse(sender, "showed epochs that their members did not sign", now)
        elif step.promise(sender, promise):
            self._histories[sender] = history
        self._maybe_propose(now)

    def on_nack(self, sender: NodeId, nack: Nack, now: float) -> None:
        """A candidate does not follow this node's ballot."""
        standing, step = self._standing, self._step
        if not self._plausible(nack.highest):
            return
        standing.number = max(standing.number, nack.highest.number - 1)
        if isinstance(step, Accepted) and nack.ballot == step.epoch.ballot:
            self._refused[sender] = now + REFUSED_S  # the others may do without it
            self._next_attempt(now)
            return
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
            self._accept(propose, now, since=step.since)

    def on_accept(self, sender: NodeId, accept: Accept, now: float) -> None:
        """A member has signed an epoch."""
        step = self._step
        if isinstance(step, Accepted) and accept.epoch == step.epoch.id:
            self._take_accept(step, sender, accept.signature, now)
            self._maybe_enter(now)
            return
        present = self._present()
        if present is not None and accept.epoch == present.id:
            return
        if sum(map(len, self._early_accepts.values())) >= MAX_EARLY_ACCEPTS:
            self._early_accepts.clear()
        self._early_accepts.setdefault(accept.epoch, {})[sender] = accept.signature

    def on_early(self, sender: NodeId, word: Begin | Vote) -> bool:
        """Keep word of an operation in the epoch that lacks only signatures here; False if it is not that one."""
        if isinstance(self._step, Accepted) and word.epoch == self._step.epoch.id:
            self._step.early[sender, word.lane, type(word)] = word
            return True
        return False

    @property
    def asked(self) -> bool:
        """True while somebody waits for this node's promise until its operations have ended."""
        return self._deferred is not None

    def on_peer_down(self, node: NodeId, now: float) -> None:
        """Go on without a peer that is gone."""
        step = self._step
        if self._deferred is not None and self._deferred[0] == node:
            self._deferred = None
        if isinstance(step, Collecting):
            step.drop(node)
            self._maybe_propose(now)
        elif (isinstance(step, Accepted) and node in step.epoch.members) or (
            isinstance(step, Promised) and node == step.ballot.proposer
        ):
            self._next_attempt(now, soon=True)
        elif step is None and self._awaited == (node, self._attempt_due):
            # Another member's word that the epoch is broken came first: the same attempt, without the lost one.
            self._attempt -= 1
            self._attempt_due = now

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
        if present is not None and set(candidates) <= {*present.members, *self._passed_over}:
            return False
        self.quorum_missing = not self._quorum(candidates)
        return not self.quorum_missing

    def _quorum(self, members: Collection[NodeId]) -> bool:
        """Enough to try; who is fresh, and who else has left, shows in the promises."""
        previous = self._standing.previous
        left = self._standing.left_from(previous)
        return self._scrutiny.quorum(members, previous, left=left)

    def _start_attempt(self, now: float) -> None:
        """Prepare when this node is due, else wait for whoever is."""
        if not self._needed():
            return
        standing = self._standing
        candidates = standing.candidates()
        number = max(standing.number + 1, self._promised.number)
        if number == self._promised.number:
            self._attempt = max(self._attempt, self._promised.attempt + 1)
        if self._attempt > MAX_ATTEMPT:
            number, self._attempt = number + 1, 0
        due = proposer_of(candidates, number, self._attempt)
        if due != standing.me:
            self._attempt_due = now + self._patience()
            self._awaited = due, self._attempt_due
            self._attempt += 1
            return
        ballot = self._promised = Ballot(number, self._attempt, standing.me)
        self._on_leave("forming the next epoch")
        self._refused = {node: until for node, until in self._refused.items() if until > now}
        others = [node for node in candidates if node not in {standing.me, *self._refused}]
        self._step = Collecting(ballot, others, now, self._settings.collect_s)
        self._histories = {standing.me: self._own_history()}
        self._step.promises[standing.me] = self._own_promise(ballot)
        standing.send_all(others, Prepare(ballot))
        self._maybe_propose(now)

    def _next_attempt(self, now: float, *, soon: bool = False) -> None:
        self._step = None
        self._attempt += 1
        wait = 0.0 if soon else self._rng.uniform(0.0, 0.3) * self._grown_s()
        self._attempt_due = now + wait

    def _grown_s(self) -> float:
        grown = self._settings.attempt_s * (1 + 0.5 * self._attempt)
        return min(grown, self._settings.attempt_max_s)

    def _patience(self) -> float:
        return self._grown_s() * self._rng.uniform(0.9, 1.2)

    def next_deadline(self) -> float:
        """When `tick` wants to be called next."""
        due = math.inf if self._step is None else self._step.due
        if self._attempt_due is not None:
            due = min(due, self._attempt_due)
        return min(due, *self._passed_over.values()) if self._passed_over else due

    def tick(self, now: float) -> None:
        """Let time-outs happen."""
        step = self._step
        if step is not None and now >= step.due:
            if isinstance(step, Collecting):
                enough = self._standing.previous is not None and self._quorum(step.promises)
                step.give_up_on_silent(now, enough=enough)
                self._maybe_propose(now)
            else:
                self._next_attempt(now)
        if self._attempt_due is not None and now >= self._attempt_due:
            self._attempt_due = None
            self._start_attempt(now)
        over = [node for node, until in self._passed_over.items() if until <= now]
        for node in over:
            del self._passed_over[node]
        if over:
            self.reconsider(now)

    # ---- from promises to entry --------------------------------------------------------------

    def _follows(self, later: Epoch, earlier: Epoch, left: frozenset[NodeId]) -> bool:
        """True when the members of the one may have gone on after the other."""
        if self._settings.quorum == "any":
            return not set(later.members).isdisjoint(earlier.members)
        return has_quorum(later.members, earlier.members, left, rule="majority", min_members=1)

    def _learn(self, step: Accepted) -> None:
        """What the entered epoch follows on is proven: this node need not reckon with less any more."""
        standing = self._standing
        history = self._verifier.history(step.links, None)
        if history is None or history.last is None:
            return
        standing.doubts = tuple(
            doubt for doubt in standing.doubts if not history.settles(doubt, self._follows)
        )
        mine = standing.previous
        if mine is None or (
            history.last != mine
            and history.supersedes(mine, self._follows, standing.departed(mine))
        ):
            standing.establish(history.last, step.links)
            standing.last_certificate = step.certificate

    def recall(self, links: Sequence[Link], certificate: Certificate | None) -> Epoch | None:
        """The last epoch of a stored history; None when it does not verify."""
        history = self._verifier.history(links, certificate)
        return None if history is None else history.last

    def _own_history(self) -> History:
        standing = self._standing
        history = self._verifier.history(standing.links, standing.last_certificate)
        assert history is not None, "this node keeps only what it has verified"
        return history

    def _own_promise(self, ballot: Ballot) -> Promise:
        standing = self._standing
        return Promise(
            ballot,
            standing.round,
            standing.state,
            standing.links,
            standing.last_certificate if standing.links else None,
            standing.farewells_to(standing.previous),
            tuple(node for node in sorted(standing.peers) if not standing.peers[node].benched)[
                :MAX_MEMBERS
            ],
        )

    def _maybe_propose(self, now: float) -> None:
        step, standing = self._step, self._standing
        if not isinstance(step, Collecting) or not step.complete:
            return
        histories = {node: self._histories[node] for node in step.promises}
        proven = [
            node
            for node, promise in step.promises.items()
            if histories[node].proves(promise.round, promise.state)
        ]
        members = connected_members(step.promises, proven)
        start = choose_start(
            {member: step.promises[member] for member in members},
            {member: histories[member] for member in members},
            self._follows,
            by_progress=self._settings.quorum == "any",
        )
        left = self._farewells(members, start, step)
        gone = {NodeId.of_public_key(one.public_key) for one in left}
        if not self._scrutiny.quorum(members, start.head, fresh=start.fresh, left=gone):
            self._next_attempt(now)
            return
        propose = Propose(
            step.ballot,
            members,
            start.round,
            start.state,
            self._rng.randbytes(16),
            start.links,
            start.certificate,
            to_bits(members, start.holders),
            to_bits(members, start.fresh),
            left,
            self._arrange(members),
        )
        standing.send_all(members, propose)
        self._accept(propose, now, since=now)

    def _farewells(
        self, members: tuple[NodeId, ...], start: Start, step: Collecting
    ) -> tuple[SignedBy, ...]:
        """To the epoch before, as this node and the members that come from it heard them."""
        if start.head is None:
            return ()
        heard = {one.public_key: one for one in self._standing.farewells_to(start.head)}
        for node in members:
            if self._histories[node].last == start.head:
                for one in step.promises[node].left:
                    if farewells((one,), start.head.id) is not None:
                        heard.setdefault(one.public_key, one)
        return tuple(heard[key] for key in sorted(heard))[:MAX_FAREWELLS]

    def _accept(self, propose: Propose, now: float, *, since: float) -> None:
        """Sign the proposed epoch if everything in it agrees with what this node knows itself."""
        standing = self._standing
        members = tuple(NodeId(member) for member in propose.members)
        history = self._verifier.history(propose.links, propose.certificate)
        previous = GENESIS if history is None or history.last is None else history.last.id
        if history is None or farewells(propose.left, previous) is None:
            proposer = NodeId(propose.ballot.proposer)
            standing.accuse(proposer, "proposed an epoch on forged signatures", now)
            self._next_attempt(now)
            return
        refusal = self._scrutiny.refusal(propose, members, history, self._own_history())
        if refusal:
            proposer = NodeId(propose.ballot.proposer)
            standing.send(proposer, Nack(propose.ballot, self._promised, refusal))
            self._next_attempt(now)
            return
        epoch = Epoch(
            standing.run,
            propose.ballot,
            members,
            previous,
            propose.round,
            propose.state,
            propose.salt,
            propose.layout,
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
            from_bits(members, propose.holders),
            propose.links,
            propose.left,
            propose.certificate,
            propose.certificate if settled else None,
            due=now + self._patience(),
            since=since,
        )
        signature = standing.identity.sign(accept_statement(epoch.id))
        step.signed[standing.me] = SignedBy(standing.identity.public_key, signature)
        standing.send_all(members, Accept(epoch.id, signature))
        for member, early in sorted(self._early_accepts.pop(epoch.id, {}).items()):
            self._take_accept(step, member, early, now)
        self._maybe_enter(now)

    def _take_accept(self, step: Accepted, sender: NodeId, signature: bytes, now: float) -> None:
        peer = self._standing.peers.get(sender)
        if peer is None or sender not in step.epoch.members:
            return
        if not verify(peer.public_key, signature, accept_statement(step.epoch.id)):
            self._standing.accuse(sender, "signed an epoch with a wrong signature", now)
            self._next_attempt(now)
            return
        step.signed[sender] = SignedBy(peer.public_key, signature)

    def _maybe_enter(self, now: float) -> None:
        step = self._step
        if not isinstance(step, Accepted) or set(step.signed) != set(step.epoch.members):
            return
        self._step = None
        self._attempt = 0
        self._attempt_due = None
        self._early_accepts.clear()
        self._histories = {}
        self._allowance.pop(NodeId(step.epoch.ballot.proposer), None)  # that turn was well used
        self.quorum_missing = False
        epoch = step.epoch
        signed = [step.signed[member] for member in epoch.members]
        link = Link(
            epoch.ballot,
            epoch.previous,
            epoch.round,
            epoch.state,
            epoch.salt,
            tuple(one.public_key for one in signed),
            tuple(one.signature for one in signed),
            step.left,
            epoch.layout,
        )
        self._verifier.add_own(link, epoch)
        self._learn(step)
        step.links = trimmed((*step.links, link))
        self._pass_over(step, now)
        self._on_enter(step, now)
