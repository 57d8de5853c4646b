"""MoDeST: rounds of federated averaging with no server; a hash says who trains and who averages.

M. de Vos et al., "Decentralized Learning Made Easy with MoDeST" (2023). There is one line of models. Round k is trained by
the sample S_k, the first `sample_size` live nodes in the order that `View.order(k)` gives, and averaged by A_k, the first
`aggregators` of the same order::

    trainer of k         on AGGREGATED(k): train; find A_(k+1) with pings; send it TRAINED(k+1)
    aggregator of k + 1  on enough TRAINED(k+1): average; find S_(k+1) with pings; send it AGGREGATED(k+1)

Nodes with equal views that reach the same nodes find equal samples; bounded differences move only the tails. All models
carry the sender's view (`membership`). The first round starts from the run's seeded model at the first of its order.

What differs from the paper's code, and why:

* nobody counts itself in: a node is a candidate when its view says so, as for everybody else;
* a sample is taken in hash order, not in order of answers (`sampling`); views are joined, never overwritten (`view`);
* an undrawn node says again that it is there before the window forgets it. To know how far the run is, it has to hear of
  it: each trainer tells `sample_size` random peers when it has handed its model on;
* three aggregators or more are not trusted one by one (`votes`);
* a round that comes to nothing is tried again. Trainers and aggregators keep their last model until the run has gone
  past it. When no news come for `stall_timeout`, they look for live receivers once more; later any other node offers the
  newest model that it has, unless those that it pings hold a later one. Who is past a round takes no part in it. That is also how a run goes on that was
  stopped as a whole;
* the last round's model goes to everybody, and whoever is late gets it in answer to its ping.

Rounds, views and standings are believed, but for those far ahead (`gossip.decentralized.hearsay`): a member that lies about
them can make others lose track, and not for good. A message of round k is never acted on twice, nor after a later round.

Invariants: k_train never falls, but for a run that stood still and is taken up again by several (`votes`); a leg for a
later round replaces one for an earlier; at most one model of each sender counts in a round; models held are at most 2 s at an
aggregator, 2 a votes, and three of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

import msgspec
import numpy as np

from gossip.decentralized.hearsay import Hearsay
from gossip.decentralized.protocol import (
    AnyVector,
    Cancel,
    Completed,
    Context,
    DecentralizedProtocol,
    Finished,
    LocalWork,
    Send,
    Train,
    Vector,
    frozen,
)
from gossip.protocols.modest import messages, votes
from gossip.protocols.modest.aggregator import Aggregator
from gossip.protocols.modest.errand import Errand, Errands
from gossip.protocols.modest.inbox import Held, OpenRound
from gossip.protocols.modest.membership import Standing
from gossip.protocols.modest.settings import MoDeSTSettings
from gossip.protocols.modest.stall import Stall
from gossip.protocols.modest.view import MAX_ROUND
from transport.codec import pack
from transport.errors import MalformedMessage
from transport.identity import NodeId

FAR_ROUNDS: Final = 1 << 24  # two have to say so
CAUTIOUS_RETRIES: Final = 3
"""So often a node leaves a stalled round to those who hold a later model, or the same one and come first in its order."""


class MoDeST(DecentralizedProtocol):
    """Sampling by hash, liveness by pings, averaging by the sampled."""

    name: ClassVar[str] = "modest"
    Settings = MoDeSTSettings
    settings: MoDeSTSettings
    needs_common_start: ClassVar[bool] = True

    def __init__(self, settings: msgspec.Struct, context: Context) -> None:
        super().__init__(settings, context)
        self._me, self._rng = context.me, context.rng
        self._standing = Standing(context.me)
        self._reachable: tuple[NodeId, ...] = ()
        self._started = self._left = self._finished = False
        self._model: Vector = np.zeros(context.numel, np.float32)
        self._model_round = 0
        """The round that starts from `_model`."""
        self._model_members = 1
        self._completed = 0
        self._heard = 0
        """The newest round that is spoken of."""
        self._named = Hearsay(FAR_ROUNDS)
        # the trainer
        self._k_train = 0
        self._training = False
        self._sample = 1
        """Trainers of round `_k_train`, as its aggregator said."""
        self._diverged = 0
        """The round whose training ended here with values that are not finite."""
        self._poll = votes.Poll(2 * self.settings.aggregators, self.settings.vote_timeout)
        # the aggregator
        self._aggregator = Aggregator(self.settings)
        # looking after a run that stands still
        self._errands = Errands(
            context.me,
            self._rng.getrandbits(16),
            timeout_s=self.settings.ping_timeout,
            resend_s=self.settings.ping_resend,
        )
        self._stall = Stall(self.settings.stall_timeout, self._rng.random())
        self._told: dict[NodeId, float] = {}
        self._counts = {"draws": 0, "aggregated": 0, "pings": 0, "used": 0, "late": 0, "retries": 0}

    # ---- inputs ------------------------------------------------------------------------------

    def start(self, params: Vector, now: float, *, round_: int = 0) -> None:
        """Say that this node is there; the first of round 1's order begin to train."""
        self._started = True
        self._hold(frozen(params), round_ + 1, 1)
        self._completed = round_
        self._heard = max(self._heard, round_)
        self._standing.begin(self._reachable, round_)
        self._stall.news(now)
        self._advertise(self._random_peers())
        if self.context.rounds and round_ >= self.context.rounds:
            self._finish()
        elif round_ == 0:
            order = self._standing.view.order(1, self.settings.inactivity_window)
            first = order[: self.settings.sample_size]
            if self._me in first:
                self._adopt(votes.Decision(1, self._model, 1, len(first)), now)
        else:  # perhaps all were stopped: ask soon whether anybody is further
            self._stall.begin_within(self.settings.ping_timeout, now)
        self._work(now)

    def members(self, others: Sequence[NodeId], now: float) -> None:
        """Those who are new, and not known from others, are told that this node is there."""
        new = sorted(set(others).difference(self._reachable))
        self._reachable = tuple(others)
        self._standing.view.near = frozenset((*others, self._me))
        strangers = [node for node in new if node not in self._standing.view]
        if self._started and not self._left and strangers:
            count = min(len(strangers), self.settings.sample_size)
            self._advertise(self._rng.sample(strangers, count))
        for node in [node for node in self._told if node not in set(others)]:
            del self._told[node]
        del now

    def trained(self, work: LocalWork, now: float) -> None:
        """Hand the model to the next round's aggregators.

        One that is not finite goes nowhere. Others do without it, or ask for another trainer of this round: to
        that, this node does not answer.
        """
        self._training = False
        self._stall.news(now)
        if np.isfinite(work.params).all():
            model = frozen(work.params)
            self._errands.handing = Errand(self._k_train + 1, model, self._sample)
            self._seek(self._errands.handing, self.settings.aggregators, now)
        else:
            self._diverged = self._k_train
        self._work(now)

    def receive(
        self, sender: NodeId, message: bytes, vectors: Sequence[AnyVector], now: float
    ) -> None:
        """One of `modest.messages`."""
        said = messages.decode(message)
        carries = isinstance(said, messages.Trained | messages.Aggregated)
        models = [vector for vector in vectors if self.is_model(vector)]
        if not len(vectors) == len(models) == carries:
            raise MalformedMessage(f"{type(said).__name__} with {len(vectors)} vectors")
        if self._left or not self._named.believes(sender, said.round, self._heard):
            return
        if self._started:
            self._hear(said.round, now)
        match said:
            case messages.Membership():
                self._on_membership(sender, said)
            case messages.Behind():
                if self._started and self._standing.raise_above(said.counter):
                    self._advertise([sender])
            case messages.Ping():
                self._on_ping(sender, said, now)
            case messages.Pong():
                self._on_pong(sender, said, now)
            case messages.Trained():
                self._on_trained(sender, said, models[0], now)
            case messages.Aggregated():
                self._on_aggregated(sender, said, models[0], now)
            case messages.Ack():
                self._counts["used" if said.ok else "late"] += 1
                if said.ok:
                    self._stall.news(now)
        self._work(now)

    def undelivered(self, to: NodeId, key: int, now: float) -> None:
        """A ping that did not get there need not be waited for."""
        self._errands.unreachable(to, key, now)
        self._work(now)

    def tick(self, now: float) -> None:
        """Pings to repeat, rounds to close, rounds to look after."""
        self._errands.tick(now)
        for k, each in self._aggregator.overdue(now):
            if len(each.held) >= self._floor(k):
                self._aggregate(k, each, now)
        if self._stall_at() <= now:
            self._retry(now)
        self._count_votes(now)
        self._work(now)

    def leave(self, now: float) -> None:
        """Say so to random peers; others would find out by pinging."""
        if self._left:
            return
        self._left = True
        if self._started:
            if self._training:
                self._emit(Cancel())
            self._standing.leave(self._heard)
            self._advertise(self._random_peers())
        self._training = False
        self._errands.drop()
        self._aggregator.inbox.clear()
        self._poll.clear()
        del now

    # ---- outputs -----------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """The earliest of all."""
        if not self._started or self._left:
            return None
        times = [self._stall_at(), self._poll.due(self._aggregators)]
        if (answers := self._errands.next_deadline()) is not None:
            times.append(answers)
        first = min(*times, self._aggregator.next_deadline())
        return None if math.isinf(first) else first

    @property
    def model(self) -> Vector:
        """The newest average that this node has had."""
        return self._model

    def expects_others(self) -> bool:
        """A sample of one is alone by intention."""
        return self.settings.sample_size > 1 and bool(self._reachable)

    def describe(self) -> Mapping[str, Any]:
        """Round, candidates, what this node does, and counts since the start."""
        view = self._standing.view
        return {
            "round": self._completed,
            "newest_round": self._heard,
            "candidates": len(view.candidates(self._heard, self.settings.inactivity_window)),
            "known": len(view),
            "training": self._training,
            "aggregating": {
                str(k): len(v.held) for k, v in sorted(self._aggregator.inbox.rounds.items())
            },
            **self._counts,
        }

    # ---- membership --------------------------------------------------------------------------

    def _on_membership(self, sender: NodeId, said: messages.Membership) -> None:
        if said.left:
            self._standing.says_gone(sender, said.round, said.counter)
        elif (newer := self._standing.overtaken(sender, said.counter)) is not None:
            self._send(sender, messages.Behind(self._heard, newer))
        else:
            self._standing.says_here(sender, max(said.round, self._heard), said.counter)

    def _advertise(self, peers: Sequence[NodeId]) -> None:
        said = messages.Membership(self._heard, self._standing.counter, self._left)
        for peer in peers:
            self._send(peer, said)

    def _hear(self, round_: int, now: float) -> None:
        """Somebody speaks of a round; a node that no round has drawn for long says that it is there."""
        if round_ > self._heard:
            self._heard = round_
            self._stall.news(now)
        late = self._heard - self._standing.last_round > self.settings.inactivity_window / 2
        if late and self.settings.readvertise and not self._finished:
            self._standing.raise_above(self._standing.counter)
            self._standing.here(self._heard)
            self._advertise(self._random_peers())

    def _merge(self, view_untrusted: bytes) -> None:
        if self._standing.merge(view_untrusted):
            self._advertise(self._random_peers())

    def _random_peers(self) -> list[NodeId]:
        count = min(self.settings.sample_size, len(self._reachable))
        return self._rng.sample(self._reachable, count)

    # ---- pings -------------------------------------------------------------------------------

    def _on_ping(self, sender: NodeId, said: messages.Ping, now: float) -> None:
        if not self._started:
            return
        if self._finished and said.round <= self._model_round:
            if self._told.get(sender, -math.inf) + self.settings.ping_timeout <= now:
                self._told[sender] = now
                self._send_model([sender], self._model_round, self._model, self._model_members, 1)
            return
        self._standing.seen(sender, said.round, said.counter)
        if said.round == self._diverged:
            return
        counter, holds = self._standing.counter, self._model_round
        if self._stands_still():  # willing to go back to where others are
            holds = min(holds, said.round)
        self._send(sender, messages.Pong(self._heard, counter, said.nonce, holds))

    def _on_pong(self, sender: NodeId, said: messages.Pong, now: float) -> None:
        self._standing.seen(sender, said.round, said.counter)
        self._errands.answered(sender, said.nonce, said.holds, now)

    def _seek(self, errand: Errand, count: int, now: float) -> None:
        """Find the live receivers of an errand."""
        order = self._standing.view.order(errand.round, self.settings.inactivity_window)
        self._errands.seek(errand, order, count, now)

    def _work(self, now: float) -> None:
        """Send the pings that are due, and do the errands whose receivers are known."""
        busy = True
        while busy and not self._left:
            busy = False
            for errand in self._errands:
                for node in self._errands.due_pings(errand):
                    self._counts["pings"] += 1
                    ping = messages.Ping(errand.round, self._standing.counter, errand.nonce)
                    self._send(node, ping, key=errand.nonce)
                if (receivers := self._errands.ready(errand)) is not None:
                    busy = True
                    if errand is self._errands.handing:
                        self._hand_over(errand, receivers, now)
                    else:
                        self._give_out(errand, receivers, now)

    # ---- the trainer -------------------------------------------------------------------------

    def _on_aggregated(
        self, sender: NodeId, said: messages.Aggregated, model: Vector, now: float
    ) -> None:
        if not self._started:
            return
        self._merge(said.view)
        self._standing.seen(sender, said.round)
        self._vote(sender, said, model, now)

    def _vote(self, sender: NodeId, said: messages.Aggregated, model: Vector, now: float) -> None:
        """An aggregator says what a round starts from."""
        over = said.round <= self._k_train and not self._stands_still()
        if self._finished or over or said.round >= MAX_ROUND:  # none could follow on that
            return
        held = Held.copy_of(model, said.sample, said.members)
        self._poll.add(said.round, sender, held, now)
        self._count_votes(now)

    def _stands_still(self) -> bool:
        """Nothing has helped, and nobody is believed alone."""
        doubtful = votes.tolerated(self._aggregators) > 0
        return doubtful and self._stall.attempts > CAUTIOUS_RETRIES and not self._training

    @property
    def _aggregators(self) -> int:
        """As set, or all nodes that there are: of fewer than three none can be doubted."""
        return min(self.settings.aggregators, 1 + len(self._reachable))

    def _count_votes(self, now: float) -> None:
        decision = self._poll.decided(self._aggregators, self._model, now)
        if decision is None and self._stands_still():
            decision = self._poll.settled(
                self._aggregators, self._me, self._model_round, self._model
            )
        if decision is not None:
            self._adopt(decision, now)

    def _adopt(self, decision: votes.Decision, now: float) -> None:
        """A round starts here. For an earlier one than before only if the run stood still."""
        k, model, members = decision.round, decision.model, decision.members
        if self._training:
            self._training = False
            self._emit(Cancel())
        if k < self._model_round:
            self._model_round = 0
            self._errands.drop()
            self._aggregator.round = min(self._aggregator.round, k)
            self._aggregator.inbox.clear()
        self._k_train = k
        self._sample = min(decision.sample, self.settings.sample_size)
        self._poll.close_through(max(k, self._model_round))
        self._aggregator.inbox.close_through(k - 1)
        if self._errands.offer is not None and self._errands.offer.round < k:
            self._errands.offer = None
        if self._errands.handing is not None and self._errands.handing.round <= k:
            self._errands.handing = None
        if k >= self._model_round:
            self._hold(model, k, members)
        self._heard = max(self._heard, k)
        self._standing.here(k)
        self._stall.news(now)
        self._complete(k - 1, model, members)
        if self._is_last(k):
            self._finish()
            return
        self._training = True
        self._counts["draws"] += 1
        self._emit(Train(model, self.context.every))

    def _hand_over(self, errand: Errand, aggregators: Sequence[NodeId], now: float) -> None:
        """TRAINED to the aggregators, in any order; then a word to random peers about how far the run is."""
        said = messages.Trained(errand.round, self._standing.view.wire(), errand.members)
        message = pack(said)
        receivers = [node for node in aggregators if errand.again or node not in errand.sent]
        self._rng.shuffle(receivers)
        for node in receivers:
            errand.sent.add(node)
            if node != self._me:
                self._emit(Send(node, message, (errand.model,)))
        if receivers:
            self._standing.flush()
        if self._me in receivers:
            self._collect(self._me, errand.round, errand.model, errand.members, now)
        if self.settings.readvertise:
            self._advertise(self._random_peers())

    # ---- the aggregator ----------------------------------------------------------------------

    def _on_trained(
        self, sender: NodeId, said: messages.Trained, model: Vector, now: float
    ) -> None:
        if not self._started:
            return
        self._merge(said.view)
        self._standing.seen(sender, said.round)
        self._collect(sender, said.round, model, said.sample, now)

    def _collect(self, sender: NodeId, k: int, model: Vector, sample: int, now: float) -> None:
        """A trainer's model for round `k`."""
        last = max(self._aggregator.round, self._k_train - 1, 1)
        if self._finished or not last < k < MAX_ROUND:
            if sender != self._me:
                self._send(sender, messages.Ack(k, ok=False))
            return
        if not self._aggregator.inbox.has(k, sender):  # what is sent again is no news
            self._stall.news(now)
        each = self._aggregator.inbox.add(k, sender, Held.copy_of(model, sample), now)
        if each is not None and len(each.held) >= self._aggregator.wanted(each, self._floor(k)):
            self._aggregate(k, each, now)

    def _floor(self, k: int) -> int:
        own = max(self._k_train, self._aggregator.round, self._model_round)
        return self._aggregator.floor(k, own, self._standing.view, 1 + len(self._reachable))

    def _aggregate(self, k: int, each: OpenRound, now: float) -> None:
        """Average round `k` and look for its trainers."""
        average = self._aggregator.close(k, each, self._aggregators)
        if average is None:
            return
        model, contributors = average.model, average.contributors
        self._counts["aggregated"] += 1
        self._heard = max(self._heard, k)
        self._standing.here(k)
        self._stall.news(now)
        if k > self._model_round:
            self._hold(model, k, len(contributors))
            self._complete(k - 1, model, len(contributors))
        if average.is_superseded:
            return
        self._errands.offer = Errand(k, model, len(contributors), contributors)
        if self._is_last(k):
            everybody = [node for node in self._standing.view if not self._standing.view[node].left]
            self._give_out(
                self._errands.offer, sorted({*everybody, *self._reachable, self._me}), now
            )
        else:
            self._seek(self._errands.offer, self.settings.sample_size, now)

    def _give_out(self, errand: Errand, trainers: Sequence[NodeId], now: float) -> None:
        """AGGREGATED to the trainers."""
        if errand.cautious and errand.ahead >= self._aggregators:
            return
        receivers = [node for node in trainers if errand.again or node not in errand.sent]
        if receivers:
            errand.sent.update(receivers)
            said = self._send_model(
                receivers, errand.round, errand.model, errand.members, len(trainers)
            )
            self._standing.flush()
        for node in errand.contributors:
            if node != self._me:
                self._send(node, messages.Ack(errand.round, ok=True))
        errand.contributors = ()
        if self._me in receivers:
            self._vote(self._me, said, errand.model, now)

    # ---- the end, and what stands still ------------------------------------------------------

    def _is_last(self, k: int) -> bool:
        """Whether the model that round `k` starts from is the run's last one."""
        return bool(self.context.rounds) and k > self.context.rounds

    def _finish(self) -> None:
        self._finished = True
        self._aggregator.inbox.clear()
        self._poll.clear()
        self._errands.handing = None
        self._emit(Finished())

    def _stall_at(self) -> float:
        if self._training or self._left or self._finished or not self._started:
            return math.inf
        return self._stall.due(involved=bool(self._errands))

    def _retry(self, now: float) -> None:
        """Nothing was heard for long: look once more for those who should go on."""
        attempt = self._stall.attempt(now)
        again = attempt > 1
        self._counts["retries"] += 1
        if self._errands.handing is not None:
            self._errands.handing.again = again
            self._seek(self._errands.handing, self.settings.aggregators, now)
        if self._errands.handing is None or self._errands.offer is not None or again:
            if self._errands.offer is None or self._errands.offer.round < self._model_round:
                self._errands.offer = Errand(self._model_round, self._model, self._model_members)
            self._errands.offer.cautious, self._errands.offer.again = (
                attempt <= CAUTIOUS_RETRIES,
                again,
            )
            self._seek(self._errands.offer, self.settings.sample_size, now)

    # ---- small things ------------------------------------------------------------------------

    def _hold(self, model: Vector, k: int, members: int) -> None:
        self._model, self._model_round, self._model_members = model, k, members

    def _complete(self, round_: int, model: Vector, members: int) -> None:
        if round_ > self._completed:
            self._completed = round_
            self._emit(Completed(round_, model, members))

    def _send(self, to: NodeId, said: messages.Message, *, key: int = 0) -> None:
        self._emit(Send(to, pack(said), key=key))

    def _send_model(
        self, receivers: Sequence[NodeId], k: int, model: Vector, members: int, sample: int
    ) -> messages.Aggregated:
        """AGGREGATED to these, and as it was said."""
        view = b"" if self._is_last(k) else self._standing.view.wire()  # nobody is asked any more
        said = messages.Aggregated(k, view, sample, members)
        message = pack(said)
        for node in receivers:
            if node != self._me:
                self._emit(Send(node, message, (model,)))
        return said
