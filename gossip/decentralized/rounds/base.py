"""The base of protocols with rounds: train, exchange models with this round's neighbours, mix, train again.

Problem: neighbours should mix the models of the same round, but they are not equally fast, they come and go, and
nobody may wait for ever. Theory of operation:

* **Stamps.** A round has `exchanges` exchanges (one, unless the protocol says otherwise); exchange q of round r has the stamp
  `r * exchanges + q`. A node is at one stamp at a time: it trains first (at q = 0), sends its model to the targets of the
  stamp's plan, and waits for the models of the plan's sources.
* **Barrier with a deadline.** The exchange closes when the model of every source is there or given up; at the latest
  `patience` seconds after this node's own model was sent. Models that come in any order until then count. Who was waited for in
  vain is left out of further exchanges, and told so when they open, until it is heard: a silent neighbour costs `patience` once.
* **Chains of waits.** Who waits for one neighbour makes the others wait. Half-way to its deadline it tells them (`Waiting`), and they
  give it as much time again, once: otherwise one silent node would have everybody give up on somebody.
* **Both ends.** Who closes without a source's model tells it so (`Skip`, "from here to there I have closed without you"). The
  other end, if it has not closed yet, then leaves this node out as well, although its model is there: the weight of the edge goes
  back to both, and the sum of all models stays what it was. Who opens an exchange so late that a neighbour may be giving it up just
  then asks that neighbour to confirm (`Taken`) before it mixes. So an edge counts at both ends or at neither while messages take
  less than a quarter of `patience`. Beyond that, when a message is lost or a node crashes, it is not known, and cannot be (two
  generals). An edge that one end does not have in its plan is answered with a `Skip` at once.
* **Catching up.** A node that comes out of its training when most of its targets have closed the stamp without it renumbers
  itself: to the stamp *after* the one that most of those it hears have reached, so that its model is there before they open that
  exchange, and both ends mix. It tells the ones it leaves behind. A model that comes too late is answered with a `Skip`, so that its
  sender knows. One that has just begun (again), far behind the others, has nothing to offer: it says so to its neighbours
  (`Skip`), and takes the mean of their models as its own.
* **Bounds.** Of each peer at most two models are kept (`gossip.decentralized.rounds.inbox`), and of at most `capacity` peers beside the
  known neighbours. Who claims a stamp far ahead moves nobody alone: it takes most of the last few heard.

Losses that the driver reports are repaired by sending again, a few times; other losses cost the deadline.

A subclass says what a plan is, what is sent, and how it is mixed. Time is the driver's monotonic seconds.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import attrs
import msgspec
import numpy as np

from gossip.decentralized import arithmetic
from gossip.decentralized.protocol import (
    ALONE_AFTER,
    TASK_RULE,
    AnyVector,
    Cancel,
    Completed,
    Context,
    DecentralizedProtocol,
    Finished,
    LocalRule,
    LocalWork,
    Send,
    Train,
    Vector,
    frozen,
)
from gossip.decentralized.rounds.inbox import Inbox, Received
from gossip.decentralized.rounds.messages import (
    MAX_STAMP,
    Model,
    Skip,
    Taken,
    Waiting,
    parse_untrusted,
)
from transport.codec import pack
from transport.errors import MalformedMessage
from transport.identity import NodeId

SPARE_PEERS: Final = 16
"""Peers beyond the known neighbours whose models are kept: graphs differ for a while when members come and go."""
MAX_RESENDS: Final = 3
"""To one peer in one exchange after losses that were reported; what breaks three connections in a row is not repaired by a fourth."""
MAX_JUMPS: Final = 3
"""With the work of one leg: the others may go on while word of where they are is under way."""
HEARD: Final = 3
"""At least so many of the peers heard last decide how far the others are."""
WAITED_ALONE: Final = 5
"""Rounds in a row whose models were all waited for in vain, until it is worth a word to people."""
FAR_ROUNDS: Final = 2
"""Of a lead that no node gets over neighbours that wait for each other."""


@attrs.frozen
class Plan:
    """Who exchanges with whom at one stamp, as this node sees it."""

    targets: tuple[NodeId, ...]
    """Whom this node sends its model to."""
    sources: tuple[NodeId, ...] | None
    """Whose models it waits for; None: whoever sends, until the deadline."""


class RoundProtocol(DecentralizedProtocol):
    """A core with rounds; see the module's words. `model` is the node's model after its last exchange or leg."""

    exchanges: int = 1
    """Exchanges in each round."""

    def __init__(self, settings: msgspec.Struct, context: Context) -> None:
        super().__init__(settings, context)
        self.others: tuple[NodeId, ...] = ()
        self.missing = 0
        """Models of sources that an exchange was closed without."""
        self.unusable = 0
        """Legs and mixes whose result was not finite, so that the model stayed what it was."""
        self.jumps = 0
        """Times this node renumbered itself to catch up."""
        self._x: Vector = np.zeros(0, np.float32)
        self._inbox = Inbox()
        self._members: frozenset[NodeId] = frozenset()
        self._plan: Plan | None = None  # while an exchange is open
        self._planned: tuple[int, tuple[NodeId, ...], Plan] | None = None
        self._sent: dict[int, tuple[Model, tuple[AnyVector, ...]]] = {}  # of the last two stamps
        self._opened = 0.0
        self._deadline: float | None = None
        self._remind_at: float | None = None
        self._training = False
        self._leg_began = 0.0
        self._leg_s = 0.0
        self._jumps_left = 0
        self._waits = True  # as the plan of the last exchange had it: for certain nodes' models,
        self._expects = False  # and for anybody's at all
        self._fresh = False  # has not mixed with anybody since it began
        self._listening = False
        self._finished = False

    # ---- what a subclass says ----------------------------------------------------------------

    @property
    @abstractmethod
    def patience(self) -> float:
        """Seconds from sending one's own model to closing the exchange without what is missing."""

    @abstractmethod
    def plan(self, stamp: int) -> Plan:
        """Who exchanges with whom at this stamp, among `others` and this node."""

    @abstractmethod
    def mix(self, own: Vector, degree: int, received: Sequence[Received]) -> Vector:
        """The node's new model from its own and those of the sources that are there (ascending by node id).

        `degree` is the number of this node's own targets.
        """

    def adopt(self, received: Sequence[Received]) -> Vector:
        """The model of a node that came late, from its neighbours' (one at least)."""
        return arithmetic.mean([one.vectors[0] for one in received])

    def payload(self, model: Vector) -> tuple[AnyVector, ...]:
        """What is sent for an exchange; read-only."""
        return (model,)

    def check_payload(self, vectors: Sequence[AnyVector]) -> None:
        """Raises MalformedMessage unless these are what `payload` gives."""
        if len(vectors) != 1 or not self.is_model(vectors[0]):
            raise MalformedMessage("a model message carries one vector, the model")

    def after_leg(self, work: LocalWork) -> Vector:
        """The model to exchange after a leg; what is given is lent."""
        return frozen(work.params)

    def rule(self) -> LocalRule:
        """How the legs are trained."""
        return TASK_RULE

    def neighbours(self) -> Collection[NodeId]:
        """Those that are sources whatever the stamp, as far as is known; there is always room for their models."""
        return ()

    def capacity(self) -> int:
        """Peers beside `neighbours` whose models are kept."""
        return SPARE_PEERS

    def far_rounds(self) -> int:
        """A node that has just begun and is so many rounds behind listens before it speaks."""
        return FAR_ROUNDS

    # ---- inputs ------------------------------------------------------------------------------

    def start(self, params: Vector, now: float, *, round_: int = 0) -> None:
        """Begin, or go on after `round_` rounds."""
        self._x = frozen(params)
        self._fresh = True
        self._finished = False
        self._enter(round_ * self.exchanges, now)

    def members(self, others: Sequence[NodeId], now: float) -> None:
        """Those that are gone are waited for no longer; newcomers take part from the next exchange on."""
        self.others = tuple(others)
        self._members = frozenset(others)
        self._inbox.set_members(self._members)
        self._close_if_complete(now)

    def trained(self, work: LocalWork, now: float) -> None:
        """Offer the leg's result to this stamp's targets, or to that of the others if they are ahead."""
        if not self._training:
            return
        self._training = False
        after = self.after_leg(work)
        if arithmetic.is_finite(after):
            self._x = after
        else:
            self.unusable += 1
        self._leg_s = now - self._leg_began
        self._jumps_left = MAX_JUMPS
        if not self._catch_up(now):
            self._open(now)

    def receive(
        self, sender: NodeId, message: bytes, vectors: Sequence[AnyVector], now: float
    ) -> None:
        """A model of some stamp, or word that one was closed without this node."""
        decoded = parse_untrusted(message, carries_vectors=bool(vectors))
        if isinstance(decoded, Model):
            self.check_payload(vectors)
            self._keep(sender, decoded, vectors, now)
        elif isinstance(decoded, Skip):
            self._inbox.skip(sender, decoded.stamp, decoded.since)
        elif (peer := self._inbox.peer(sender)) is not None:
            self._inbox.hear(sender, decoded.stamp)
            if isinstance(decoded, Taken):
                peer.taken = max(peer.taken, decoded.stamp)
            else:
                self._be_patient(sender, now)
        if self._fresh and self._should_listen():
            self._listen(now)
        else:
            self._close_if_complete(now)

    def undelivered(self, to: NodeId, key: int, now: float) -> None:  # noqa: ARG002 - the contract's
        """Send a model again, a few times, if it is of this exchange or the one before: the receiver may still wait."""
        sent = self._sent.get(key)
        peer = self._inbox.peer(to) if to in self._members else None
        if sent is not None and peer is not None and peer.resends < MAX_RESENDS:
            peer.resends += 1
            self._emit(Send(to, pack(sent[0]), sent[1], key))

    def tick(self, now: float) -> None:
        """Close an exchange whose time is over, or tell those that wait for this node that it waits, too."""
        if self._remind_at is not None and now >= self._remind_at:
            self._remind_at = None
            self._remind()
        if self._deadline is not None and now >= self._deadline:
            self._close(now)

    def leave(self, now: float) -> None:  # noqa: ARG002 - the contract's
        """Tell this stamp's neighbours not to wait for what will not come."""
        if self._training:
            for target in self._plan_now().targets:
                self._skip(target, self.stamp)

    # ---- outputs -----------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """When the open exchange closes at the latest, or half-way there."""
        return self._deadline if self._remind_at is None else self._remind_at

    @property
    def model(self) -> Vector:
        """After the last exchange or leg."""
        return self._x

    @property
    def stamp(self) -> int:
        """The exchange that this node is at, or trains for."""
        return self._inbox.stamp

    @property
    def late(self) -> int:
        """Models that came too late to be mixed."""
        return self._inbox.late

    @property
    def round(self) -> int:
        """Rounds completed."""
        return self.stamp // self.exchanges

    def describe(self) -> Mapping[str, Any]:
        """The round, this exchange's sources and what was missed."""
        sources = self._plan.sources if self._plan is not None else None
        return {
            "round": self.round,
            "phase": "training" if self._training else "finished" if self._finished else "waiting",
            "neighbours": len(sources) if sources is not None else None,
            "missing": self.missing,
            "late": self.late,
            "caught_up": self.jumps,
        }

    @property
    def alone_after(self) -> int:
        """Who waits for certain nodes' models and mixes none is alone for a reason."""
        return WAITED_ALONE if self._waits else ALONE_AFTER

    def expects_others(self) -> bool:
        """Somebody's model should have been in this exchange."""
        return self._expects

    def why_alone(self) -> tuple[str, str]:
        """Models that come too late tell of a patience that is too short."""
        if not self.late:
            return "", ""
        return (
            f"{self.late} models came too late: this node waits {self.patience:g} s for them",
            "give models time to arrive: a longer patience (or window) in run.protocol_settings, on all nodes",
        )

    # ---- the round ---------------------------------------------------------------------------

    def _enter(self, stamp: int, now: float) -> None:
        """Be at a stamp: train first if a round begins there, and exchange."""
        self._inbox.advance(stamp)
        if stamp % self.exchanges:
            self._open(now)
            return
        if self.context.rounds and self.round >= self.context.rounds:
            self._finished = True
            self._emit(Finished())
            return
        self._training = True
        self._leg_began = now
        self._emit(Train(self._x, self.context.every, self.rule()))

    def _open(self, now: float, *, extra_s: float = 0.0) -> None:
        """Send the model to this stamp's targets and wait for those of its sources."""
        plan = self._plan_now()
        self._waits = plan.sources is not None
        self._expects = bool(plan.targets if plan.sources is None else plan.sources)
        if self._listening:
            for target in plan.targets:
                self._skip(target, self.stamp)
        else:
            silent = self._silent(plan.sources or ())
            for source in silent:
                self._skip(source, self.stamp)
            self.missing += len(silent)
            self._send_models([target for target in plan.targets if target not in silent], now)
            if plan.sources is not None:
                heard = tuple(source for source in plan.sources if source not in silent)
                plan = Plan(plan.targets, heard)
        self._plan = plan
        if plan.sources is not None:
            for id_ in sorted(self._inbox.peers):
                # It came over an edge that this node's graph lacks: its sender need not wait.
                if id_ not in plan.sources and self._inbox.take(id_) is not None:
                    self._skip(id_, self.stamp)
        self._opened = now
        self._deadline = now + self.patience + extra_s
        self._remind_at = now + self.patience / 2 if plan.sources else None
        self._close_if_complete(now)

    def _silent(self, sources: Sequence[NodeId]) -> list[NodeId]:
        """Those that are not to be waited for; decided once, when the exchange opens, so that both ends know."""
        return [
            source
            for source in sources
            if self._inbox.is_silent(source) and self._inbox.current(source) is None
        ]

    def _remind(self) -> None:
        """Those whose models are here wait for this node's next one, or will."""
        assert self._plan is not None, "an exchange is open"
        for target in self._plan.targets:
            if self._inbox.current(target) is not None:
                self._emit(Send(target, pack(Waiting(self.stamp))))

    def _be_patient(self, sender: NodeId, now: float) -> None:
        """A source of the open exchange is alive but waits itself: give it time, twice the patience in all."""
        if self._deadline is None or self._plan is None or self._is_settled(sender):
            return
        if sender in (self._plan.sources or ()):
            latest = self._opened + 2 * self.patience
            self._deadline = max(self._deadline, min(now + self.patience, latest))

    def _close_if_complete(self, now: float) -> None:
        plan = self._plan
        if plan is None or plan.sources is None:
            return
        if all(self._is_settled(source) for source in plan.sources):
            self._close(now)

    def _is_settled(self, source: NodeId) -> bool:
        """Nothing more of this stamp is to be expected from it, or all that is wanted is here."""
        if source not in self._members:
            return True
        if self._listening:
            return self._inbox.newest(source) is not None
        return self._inbox.will_mix(source) or self._inbox.has_skipped(source)

    def _close(self, now: float) -> None:
        """Mix what is there, tell those that are missing, and go on."""
        plan, listening = self._plan, self._listening
        assert plan is not None, "no exchange is open"
        sources = sorted(self._inbox.peers) if plan.sources is None else plan.sources
        self._plan, self._deadline, self._remind_at, self._listening = None, None, None, False
        if listening:
            heard = [self._inbox.newest(source) for source in sources]
            received = [model for model in heard if model is not None]
            mixed = self.adopt(received) if received else self._x
        else:
            received = self._take(sources, missed=plan.sources is not None)
            if not received and self._catch_up(now):
                return
            mixed = self.mix(self._x, len(plan.targets), received)
        if arithmetic.is_finite(mixed):
            self._x = mixed
            mixed.flags.writeable = False
        else:
            self.unusable += 1
        self._fresh = self._fresh and not received
        following = self.stamp + 1
        if following % self.exchanges == 0:
            self._emit(Completed(following // self.exchanges, self._x, 1 + len(received)))
        self._enter(following, now)

    def _take(self, sources: Sequence[NodeId], *, missed: bool) -> list[Received]:
        """The models to mix; a source without one is told, if it was `missed` and not just not there."""
        received = []
        for source in sources:
            given_up, agreed = self._inbox.has_skipped(source), self._inbox.will_mix(source)
            model = self._inbox.take(source)
            if model is not None and agreed:
                received.append(model)
                self._inbox.peers[source].mixed = self.stamp
            elif missed:
                self.missing += 1
                peer = self._inbox.peer(source) if source in self._members else None
                if peer is not None:
                    peer.silent = not given_up
                    self._skip(source, self.stamp)
        return received

    def _plan_now(self) -> Plan:
        """This stamp's plan among today's members; made once, because making it may draw."""
        if self._planned is None or self._planned[:2] != (self.stamp, self.others):
            self._planned = (self.stamp, self.others, self.plan(self.stamp))
        return self._planned[2]

    # ---- being behind ------------------------------------------------------------------------

    def _others_stamp(self) -> int:
        """The stamp of most of the others, as far as they were heard; -1 if none was."""
        reached = self._inbox.reached(max(HEARD, len(self.neighbours())))
        return min(reached, self._last())

    def _last(self) -> int:
        """The last exchange of the run."""
        return self.context.rounds * self.exchanges - 1 if self.context.rounds else MAX_STAMP

    def _is_given_up(self) -> bool:
        """Most of those that would mix this stamp's model have closed it already."""
        plan = self._plan_now()
        if plan.sources is None:
            return True  # they wait for nobody
        closed = sum(self._inbox.has_skipped(target) for target in plan.targets)
        return 2 * closed > len(plan.targets)

    def _catch_up(self, now: float) -> bool:
        """Offer what was learnt where the others will be next, if they have given this node up."""
        target = self._others_stamp()
        if self._plan_now().sources is not None:
            target = min(target + 1, self._last()) if self._is_given_up() else -1
        if target <= self.stamp or not self._jumps_left:
            return False
        self._jumps_left -= 1
        self._jump(target)
        self._open(now, extra_s=self._leg_s)  # they may only just have begun to train for it
        return True

    def _should_listen(self) -> bool:
        ahead = self._others_stamp() - self.stamp
        return ahead >= (1 if self._listening else self.far_rounds() * self.exchanges)

    def _listen(self, now: float) -> None:
        """Give up a leg or an exchange whose result nobody would want, and hear what the others have."""
        if self._training:
            self._emit(Cancel())
            self._training = False
        self._plan = None
        self._jump(self._others_stamp())
        self._listening = True
        self._open(now)

    def _jump(self, stamp: int) -> None:
        """Go to a later stamp; who waits for a model of an earlier one need not."""
        self.jumps += 1
        for id_, peer in sorted(self._inbox.peers.items()):
            if self.stamp <= peer.stamp < stamp:
                self._skip(id_, stamp - 1)
        self._inbox.advance(stamp)

    # ---- messages ----------------------------------------------------------------------------

    def _keep(
        self, sender: NodeId, message: Model, vectors: Sequence[AnyVector], now: float
    ) -> None:
        """Keep a model if it is of use now or later; tell its sender if it never will be."""
        peer = self._inbox.peer(sender)
        if peer is None:
            return
        stamp = message.stamp
        peer.stamp = max(peer.stamp, stamp)
        self._inbox.hear(sender, stamp)
        if stamp < self.stamp:
            self._inbox.late += 1
            self._skip(sender, self.stamp - 1)
            return
        sources = self._plan.sources if self._plan is not None else None
        if stamp == self.stamp and sources is not None and sender not in sources:
            self._skip(sender, stamp)
            return
        if self._inbox.wants(sender, stamp) and (peer.holds or self._has_room(sender)):
            copies = tuple(frozen(vector) for vector in vectors)
            self._inbox.keep(Received(sender, stamp, message.degree, copies, now))
        if message.confirm and self._plan is not None and self._inbox.current(sender) is not None:
            self._emit(Send(sender, pack(Taken(self.stamp))))

    def _has_room(self, sender: NodeId) -> bool:
        near = self.neighbours()
        if sender in near or (self._plan is not None and sender in (self._plan.sources or ())):
            return True
        guests = sum(peer.holds and id_ not in near for id_, peer in self._inbox.peers.items())
        return guests < self.capacity()

    def _send_models(self, targets: Sequence[NodeId], now: float) -> None:
        """This stamp's; the key 0 is for what is not sent again."""
        key = self.stamp + 1
        message = Model(self.stamp, len(self._plan_now().targets))
        vectors = self.payload(self._x)
        self._sent = {old: sent for old, sent in self._sent.items() if old == key - 1}
        self._sent[key] = (message, vectors)
        plain, asking = pack(message), pack(msgspec.structs.replace(message, confirm=True))
        for target in targets:
            theirs = self._inbox.current(target)
            # With messages that take d: it gives up no earlier than patience - d after theirs came here, and has this one by
            # d from now. For d up to patience / 4 that is in time, if theirs came no longer than patience / 2 ago.
            doubtful = theirs is not None and now - theirs.at > self.patience / 2
            if doubtful:
                self._inbox.peers[target].asked = self.stamp
            self._emit(Send(target, asking if doubtful else plain, vectors, key))

    def _skip(self, to: NodeId, stamp: int) -> None:
        peer = self._inbox.peers.get(to)
        since = peer.mixed if peer is not None else -1
        if since <= stamp:  # else there is nothing to tell: its model of this stamp was mixed
            self._emit(Send(to, pack(Skip(stamp, since))))
