"""Self-repellent random-walk token SGD (SA-SRRW): one token with the only model, and gradient steps where it comes by.

J. Hu, V. Doshi, D. Y. Eun, "Accelerating Distributed Stochastic Optimization via Self-Repellent Random Walks" (ICLR 2024). The
token carries the model theta and its step n. A hop::

    at i:  ask the neighbours for their visits (VisitQ, VisitA), draw j by `kernel.weights`, hand the token to j
    at j:  n <- n + 1;  x <- x + gamma_n (delta_j - x);  theta <- theta - beta_n grad f_j(theta),  beta_n = c (n + 1)^-b

One model travels for each hop, whatever the number of nodes. Staying is a hop without a message.

A token is handed over with a receipt and watched with a lease; one that is lost is found missing by its last holder, or
by the silence, and its newest state goes on in a new term (`lease`, `search`). What the lost holder did with it is lost:
its last step. A node's model, between visits, is that of its last one: its checkpoint.

The state of this node::

    away  --Token-->  training  --trained-->  looking  --VisitA...-->  sending  --Receipt-->  away
                          ^------- the draw says stay ------'             '-- no receipt: search, and perhaps a new term

With `local = "task"` a visit is a leg of the task's own optimizer instead, and theta goes the share min(1, beta_n) of the way
to where that leg ends. Nothing is proved about it; it is for models that plain SGD does not train.

What is believed: each step is trusted, since there is nothing to compare it with, and so are terms and visits, but for
those far ahead (`gossip.decentralized.hearsay`): who lies can end a term, and not all that there could be. A
gradient that is not finite is left out, and the token goes on.

Invariants: at most one accepted step for each (term, n); the token goes along edges of the graph or stays, but for a holder
that leaves and has no neighbour; one uniform number of `Context.rng` is drawn for each hop.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

import msgspec
import numpy as np

from gossip.decentralized.protocol import (
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
from gossip.decentralized.topology import DIRECTED, check_lasting, graph
from gossip.errors import InvalidSettings
from gossip.protocols.token_walk import messages
from gossip.protocols.token_walk.kernel import Place, Visits, draw, weights
from gossip.protocols.token_walk.lease import NO_TERM, Admission, Fence, Lease, Term, mark
from gossip.protocols.token_walk.phases import Looking, Sending
from gossip.protocols.token_walk.search import Search, State, precedence
from gossip.protocols.token_walk.settings import TokenWalkSettings
from gossip.protocols.token_walk.silence import Silence
from gossip.protocols.token_walk.step import stepped
from transport.codec import pack
from transport.errors import MalformedMessage
from transport.identity import NodeId

TRIES: Final = 3
"""So often the token is sent before its sender asks where it is."""
ANSWER_LAST: Final = 3
"""So many nodes send the last model to one that asks everybody where the token is."""

RULES: Final = {"gradient": LocalRule("gradient"), "task": LocalRule("task")}


class TokenWalk(DecentralizedProtocol):
    """One token carries the only model along a graph and shuns the nodes it has visited much."""

    name: ClassVar[str] = "token-walk"
    Settings = TokenWalkSettings
    settings: TokenWalkSettings
    needs_common_start: ClassVar[bool] = True

    @classmethod
    def parse_settings(cls, raw: Mapping[str, Any]) -> msgspec.Struct:
        """As `DecentralizedProtocol`; a graph with directions or that falls apart and a > b are refused, too."""
        settings = super().parse_settings(raw)
        assert isinstance(settings, TokenWalkSettings)
        if settings.graph in DIRECTED:
            raise InvalidSettings(
                f"protocol {cls.name!r}: graph = {settings.graph!r} has directions",
                hint="the walk needs edges that lead both ways: choose another graph",
            )
        check_lasting(cls.name, settings.graph, settings.degree)
        if settings.visit_exponent > settings.step_exponent:
            raise InvalidSettings(
                f"protocol {cls.name!r}: visit_exponent is more than step_exponent",
                hint="visits have to be learnt at least as fast as the model: choose a <= b",
            )
        return settings

    def __init__(self, settings: msgspec.Struct, context: Context) -> None:
        super().__init__(settings, context)
        self._me, self._rng = context.me, context.rng
        self._reachable: tuple[NodeId, ...] = ()
        self._near: tuple[NodeId, ...] | None = None
        """Neighbours in the graph over `_reachable` and this node; None: not looked up yet."""
        self._started = self._left = self._finished = False
        self._theta: Vector = np.zeros(context.numel, np.float32)
        self._state = (NO_TERM, 0)
        """Term and step of `_theta`: this node's checkpoint."""
        self._completed = 0
        self._fence = Fence()
        self._life = 1 + self._rng.getrandbits(32)
        self._visits = Visits(1.0, self.settings.visit_exponent)
        # while the token is here
        self._phase: str | Looking | Sending = "away"
        self._guard: NodeId | None = None
        self._hold_at = math.inf
        # while it is not
        self._lease = Lease(self.settings.lease)
        self._search: Search | None = None
        self._silence = Silence(self.settings.silence, self._rng.random())
        self._counts = {"visits": 0, "hops": 0, "stays": 0, "terms": 0, "searches": 0, "refused": 0}

    # ---- inputs ------------------------------------------------------------------------------

    def start(self, params: Vector, now: float, *, round_: int = 0) -> None:
        """The first by hash asks whether there is a token, and begins one if not; the others wait for it.

        After a restart it waits for a lease's time before.
        """
        self._started = True
        self._theta = frozen(params)
        self._state, self._completed = (NO_TERM, round_), round_
        self._visits = Visits(1.0 / (1 + len(self._reachable)), self.settings.visit_exponent)
        self._silence.begin(now)
        if self.context.rounds and round_ >= self.context.rounds:
            self._finish()
        elif round_:  # others may be coming back, too, and have a newer state
            self._silence.shorten(self.settings.lease)
        elif self._silence.preceding == 0:
            self._ask(now)

    def members(self, others: Sequence[NodeId], now: float) -> None:
        """The graph follows the list; a neighbour that is gone is not waited for."""
        before, after = set(self._reachable), set(others)
        mine = precedence(self.context.run, self._me)
        for group, sign in ((before - after, -1), (after - before, 1)):
            self._silence.preceding += sign * sum(
                precedence(self.context.run, n) < mine for n in group
            )
        self._reachable, self._near = tuple(others), None
        for node in sorted(before - after):
            self._absent(node, now)

    def trained(self, work: LocalWork, now: float) -> None:
        """Make the step, and look where to go."""
        n = self._state[1] + 1
        theta = stepped(self._theta, work, n, self.settings)
        self._visits.visit(n)
        self._counts["visits"] += 1
        self._keep(theta, n, now)
        if self.context.rounds and n >= self.context.rounds:
            self._tell_last(self._reachable)
            self._finish()
        else:
            self._look(now)

    def receive(
        self, sender: NodeId, message: bytes, vectors: Sequence[AnyVector], now: float
    ) -> None:
        """One of `token_walk.messages`."""
        said = messages.decode(message)
        carries = isinstance(said, messages.Token | messages.Last)
        models = [vector for vector in vectors if self.is_model(vector)]
        if not len(vectors) == len(models) == carries:
            raise MalformedMessage(f"{type(said).__name__} with {len(vectors)} vectors")
        if isinstance(said, messages.VisitA) and not math.isfinite(said.visits):
            raise MalformedMessage("visits that are no number")
        if self._left or not self._started:
            return
        if self._finished:
            asks = isinstance(said, messages.Ask) and self._silence.preceding < ANSWER_LAST
            if asks or isinstance(said, messages.Token | messages.VisitQ):
                self._tell_last([sender])
            return
        step = getattr(said, "n", 0)
        if not self._silence.believes(sender, said.number, step, self._fence.term.number):
            return
        self._heard(said.term, now)
        match said:
            case messages.Token():
                self._on_token(sender, said, models[0], now)
            case messages.Receipt():
                self._on_receipt(sender, said, now)
            case messages.Hold():
                self._lease.renew(sender, said.term, now)
                self._silence.news(said.term, said.n, now)
            case messages.Release():
                self._lease.release(sender, said.term)
                self._silence.news(said.term, said.n, now)
            case messages.VisitQ():
                self._on_visit_q(sender, said, now)
            case messages.VisitA():
                self._on_visit_a(sender, said, now)
            case messages.Ask():
                self._on_ask(sender, said, now)
            case messages.Answer():
                self._on_answer(sender, said, now)
            case messages.Begin():
                state = (Term(said.state_number, said.state_starter), said.n)
                if self._phase == "away" and state == self._state:
                    self._begin(now)
            case messages.Last():
                self._take(models[0], said.n)
                self._finish()
            case messages.Fenced():
                pass  # its term was heard above

    def undelivered(self, to: NodeId, key: int, now: float) -> None:
        """Somebody cannot be reached; whether the token has arrived, the others may know."""
        del key
        self._absent(to, now)

    def tick(self, now: float) -> None:
        """Answers that did not come, and signs of life."""
        if isinstance(self._phase, Looking) and self._phase.until <= now:
            self._go(self._phase, now)
        if isinstance(self._phase, Sending) and self._phase.until <= now and not self._search:
            self._repeat(self._phase, now)
        if self._hold_at <= now:
            self._hold_at = now + self._lease.renew_every_s
            if self._guard is not None:
                self._say(self._guard, messages.Hold, n=self._state[1])
        if self._search is not None and self._search.over(now):
            self._conclude(self._search, now)
        lease = self._lease.next_deadline()
        if lease is not None and lease <= now:
            self._lease.drop()
            self._ask(now)
        if self._silent_at() <= now:
            self._silence.begin(now)
            self._ask(now)

    def leave(self, now: float) -> None:
        """A token that is here goes to a neighbour as it is; its guard stays the same."""
        del now
        if self._left:
            return
        neighbours = self._neighbours() or self._reachable
        if self._phase != "away" and not isinstance(self._phase, Sending) and neighbours:
            to = self._rng.choice(neighbours)
            guard = self._guard if self._guard not in (None, to) else self._me
            self._send_token(to, guard or self._me, messages.ANY_LIFE)
        self._stop()
        self._left = True

    # ---- outputs -----------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """The earliest of all."""
        if not self._started or self._left or self._finished:
            return None
        times = [self._silent_at(), self._hold_at]
        if isinstance(self._phase, Looking):
            times.append(self._phase.until)
        if self._search is not None:
            times.append(self._search.until)
        elif isinstance(self._phase, Sending):
            times.append(self._phase.until)
        if (lease := self._lease.next_deadline()) is not None:
            times.append(lease)
        first = min(times)
        return None if math.isinf(first) else first

    @property
    def model(self) -> Vector:
        """The token's model as of its last visit here."""
        return self._theta

    @property
    def step(self) -> tuple[Term, int]:
        """Term and step that `model` is of."""
        return self._state

    @property
    def alone_after(self) -> int:
        """There is one model, and nobody learns beside it."""
        return 0

    def describe(self) -> Mapping[str, Any]:
        """Step, term, what this node does with the token, and counts since the start."""
        phase = self._phase if isinstance(self._phase, str) else type(self._phase).__name__.lower()
        return {
            "round": self._completed,
            "term": self._fence.term.number,
            "token": phase,
            "newest_step": self._silence.newest[1],
            "neighbours": len(self._neighbours()) if self._started else 0,
            **self._counts,
        }

    # ---- the token is here -------------------------------------------------------------------

    def _on_token(self, sender: NodeId, said: messages.Token, model: Vector, now: float) -> None:
        admission = Admission.REFUSE
        if said.life in (self._life, messages.ANY_LIFE):
            admission = self._fence.admit(said.term, said.n)
        taken = admission is not Admission.REFUSE
        self._say(sender, messages.Receipt, n=said.n, taken=taken)
        if admission is not Admission.TAKE:
            self._counts["refused"] += not taken
            return
        self._stop()
        self._lease.drop()
        self._silence.news(said.term, said.n, now)
        self._theta = frozen(model)
        self._state = (said.term, said.n)
        self._guard = NodeId(said.guard)
        self._train(now)

    def _train(self, now: float) -> None:
        self._phase = "training"
        self._hold_at = min(self._hold_at, now + self._lease.renew_every_s)
        self._emit(Train(self._theta, self.context.every, RULES[self.settings.local]))

    def _look(self, now: float) -> None:
        """Ask the neighbours how much visited they are."""
        neighbours = self._neighbours()
        self._hold_at = min(self._hold_at, now + self._lease.renew_every_s)
        self._phase = Looking(now + self.settings.visit_timeout, set(neighbours))
        for node in neighbours:
            self._say(node, messages.VisitQ, n=self._state[1])
        if not neighbours:
            self._go(self._phase, now)

    def _on_visit_q(self, sender: NodeId, said: messages.VisitQ, now: float) -> None:
        if said.term < self._fence.term:
            self._say(sender, messages.Fenced)
            return
        self._silence.news(said.term, said.n, now)
        visits, degree = self._visits.at(said.n), len(self._neighbours())
        self._say(sender, messages.VisitA, n=said.n, visits=visits, degree=degree, life=self._life)

    def _on_visit_a(self, sender: NodeId, said: messages.VisitA, now: float) -> None:
        looking = self._phase
        if isinstance(looking, Looking) and sender in looking.missing and said.n == self._state[1]:
            looking.missing.discard(sender)
            looking.places[sender] = Place(sender, said.visits, said.degree)
            looking.lives[sender] = said.life
            if not looking.missing:
                self._go(looking, now)

    def _go(self, looking: Looking, now: float) -> None:
        """Draw where the token goes next."""
        n = self._state[1]
        here = Place(self._me, self._visits.at(n), len(self._neighbours()))
        weighted = weights(
            here,
            [looking.places[node] for node in sorted(looking.places)],
            mu=1.0 / (1 + len(self._reachable)),
            alpha=self.settings.alpha,
            clip=self.settings.clip,
        )
        to = draw(weighted, self._rng.random())
        if to == self._me:
            self._counts["stays"] += 1
            self._fence.stayed(n + 1)
            self._train(now)
            return
        self._phase = Sending(to, looking.lives[to], now + self.settings.ack_timeout)
        self._send_token(to, self._me, looking.lives[to])

    def _send_token(self, to: NodeId, guard: NodeId, life: int) -> None:
        term, n = self._fence.term, self._state[1]
        token = messages.Token(term.number, term.starter, n, bytes(guard), life)
        self._emit(Send(to, pack(token), (self._theta,)))

    def _repeat(self, sending: Sending, now: float) -> None:
        if sending.tries >= TRIES:
            self._ask(now)
            return
        sending.tries += 1
        sending.until = now + self.settings.ack_timeout
        self._send_token(sending.to, self._me, sending.life)

    def _on_receipt(self, sender: NodeId, said: messages.Receipt, now: float) -> None:
        sending = self._phase
        if isinstance(sending, Sending) and sending.to == sender and said.n == self._state[1]:
            if said.taken:
                self._handed_over(sending, now)
            else:  # it is past this step without us: whoever is further will be found
                self._ask(now)

    def _handed_over(self, sending: Sending, now: float) -> None:
        if self._guard is not None and self._guard != sending.to:
            self._say(self._guard, messages.Release, n=self._state[1])
        self._counts["hops"] += 1
        self._stop()
        self._lease.watch(sending.to, self._fence.term, now)
        self._silence.begin(now)

    # ---- the token is elsewhere, or lost -----------------------------------------------------

    def _heard(self, term: Term, now: float) -> None:
        """A higher term ends everything that belongs to the one before."""
        if self._fence.heard(term):
            self._stop()
            self._lease.drop()
            self._silence.begin(now)

    def _silent_at(self) -> float:
        if self._phase != "away" or self._search is not None or self._finished:
            return math.inf
        return self._silence.due()

    def _ask(self, now: float) -> None:
        """Where is the token?"""
        if self._search is not None or self._finished:
            return
        self._counts["searches"] += 1
        nonce = self._rng.getrandbits(32)
        self._search = Search(
            self.context.run,
            State(self._me, *self._state, self._fence.term, holding=False),
            self._reachable,
            now,
            nonce=nonce,
            timeout_s=self.settings.ask_timeout,
        )
        for node in self._reachable:
            self._say(node, messages.Ask, n=self._silence.newest[1], nonce=nonce)
        if self._search.over(now):
            self._conclude(self._search, now)

    def _on_ask(self, sender: NodeId, said: messages.Ask, now: float) -> None:
        self._silence.begin(now)  # somebody looks after it
        term, n = self._state
        self._say(
            sender,
            messages.Answer,
            nonce=said.nonce,
            state_number=term.number,
            state_starter=term.starter,
            n=n,
            taken=self._fence.step,
            holding=self._phase != "away",
        )

    def _on_answer(self, sender: NodeId, said: messages.Answer, now: float) -> None:
        search, sending = self._search, self._phase
        if search is None or search.nonce != said.nonce:
            return
        if (
            isinstance(sending, Sending)
            and sender == sending.to
            and said.term == self._fence.term
            and said.taken > self._state[1]
        ):
            self._search = None
            self._handed_over(sending, now)  # the receipt was lost, the token was not
            return
        state = Term(said.state_number, said.state_starter)
        search.answered(State(sender, state, said.n, said.term, said.holding))
        if search.over(now):
            self._conclude(search, now)

    def _conclude(self, search: Search, now: float) -> None:
        self._search = None
        self._silence.begin(now)
        if self._phase != "away" and not isinstance(self._phase, Sending):
            return  # it came here meanwhile
        if search.held:
            self._stop()
            return
        newest = search.newest
        if newest.node == self._me:
            self._begin(now)
        else:
            self._stop()
            self._say(
                newest.node,
                messages.Begin,
                state_number=newest.term.number,
                state_starter=newest.term.starter,
                n=newest.step,
            )

    def _begin(self, now: float) -> None:
        """A new term, from this node's state."""
        self._stop()
        self._lease.drop()
        self._fence.heard(self._fence.term.next(mark(self._me, self._life)))
        self._fence.stayed(self._state[1])
        self._state = (self._fence.term, self._state[1])
        self._silence.news(*self._state, now)
        self._counts["terms"] += 1
        self._look(now)

    def _absent(self, node: NodeId, now: float) -> None:
        """Nothing is to be expected of a node."""
        if isinstance(self._phase, Looking) and node in self._phase.missing:
            self._phase.missing.discard(node)
            if not self._phase.missing:
                self._go(self._phase, now)
        if self._search is not None:
            self._search.unreachable(node)
            if self._search.over(now):
                self._conclude(self._search, now)
        elif isinstance(self._phase, Sending) and self._phase.to == node:
            self._ask(now)

    # ---- small things ------------------------------------------------------------------------

    def _neighbours(self) -> tuple[NodeId, ...]:
        if self._near is None:
            everybody = [*self._reachable, self._me]
            kind, degree = self.settings.graph, self.settings.degree
            self._near = graph(kind, everybody, self.context.run, degree=degree)[self._me]
        return self._near

    def _stop(self) -> None:
        """The token is not here any more."""
        if self._phase == "training":
            self._emit(Cancel())
        self._phase, self._guard, self._hold_at = "away", None, math.inf

    def _keep(self, theta: Vector, n: int, now: float) -> None:
        self._theta, self._state = theta, (self._fence.term, n)
        self._phase = "away"
        self._silence.news(*self._state, now)
        if n > self._completed:
            self._completed = n
            self._emit(Completed(n, theta, self._contributors(n)))

    def _contributors(self, n: int) -> int:
        """At most so many nodes have worked on a token of n steps."""
        return max(1, min(n, 1 + len(self._reachable)))

    def _take(self, model: Vector, n: int) -> None:
        """The run's last model."""
        if n > self._completed:
            self._stop()
            self._theta, self._completed = frozen(model), n
            self._emit(Completed(n, self._theta, self._contributors(n)))

    def _finish(self) -> None:
        self._stop()
        self._lease.drop()
        self._search = None
        self._finished = True
        self._emit(Finished())

    def _tell_last(self, receivers: Sequence[NodeId]) -> None:
        term = self._fence.term
        message = pack(messages.Last(term.number, term.starter, self._completed))
        for node in receivers:
            self._emit(Send(node, message, (self._theta,)))

    def _say(self, to: NodeId, kind: type[messages.Message], **fields: Any) -> None:
        term = self._fence.term
        if to != self._me:
            self._emit(Send(to, pack(kind(term.number, term.starter, **fields))))
