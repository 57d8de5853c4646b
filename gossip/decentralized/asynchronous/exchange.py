"""Pairwise exchanges that happen on both sides or on neither: two nodes swap vectors, each exactly once.

Problem: AD-PSGD, DADAO and A2CiD2 let two nodes move towards each other by the same amount, m = mine - theirs.
Sums over the network stay what they are only if both apply it, once, from the same two vectors, although
messages are lost, doubled and overtaken and nodes wait for nobody for long. Idea: whoever offers numbers its offers
to a peer; whoever answers remembers the last number and, until it hears that the answer has arrived, the
answer itself::

    initiator                     answerer
    OFFER{seq, mine}  ---------->  busy? REFUSE{seq} and this seq stays refused for good
                      <----------  ACCEPT{seq, its own vector}; applies m at once and keeps the answer
    applies m; DONE{seq} ------->  forgets the answer

    no answer in time: QUERY{seq}  answered as before; a seq it never saw becomes a refused one
    no DONE in time:               CHECK{seq} is answered by DONE, or by QUERY if it is still awaited

Both sides compute m from the same bits, so what one adds the other subtracts. While its own offer is out a node
refuses others (`locked`), for one timeout at most; nobody ever waits for somebody who waits, so there is no cycle of waits. An
offer that is not answered in time goes on being asked about in the background, the model stays usable.

What cannot be settled. A node that dies between ACCEPT and DONE leaves the other with one half. An offer that
stays without an answer for `forget_s` is given up, and so is the memory of a peer that was not seen for that
long. Each peer then has a *generation* that is raised and carried in every message: whoever sees a higher one is told
`Void`, which says that everything ever exchanged with this peer counts for nothing on the other side. A protocol that
keeps accounts by peer (DADAO) takes it back and is exact again; one that does not (AD-PSGD, A2CiD2) has lost one
half exchange, which `unsettled` counts. A restart is noticed by the *session*, drawn anew at each start, and voids likewise; so
does a node that leaves in good order, which says BYE.

Invariants: a seq of a session is applied at most once on either side; vectors held are at most `MAX_OUT` offers and
`MAX_KEPT` answers; every message of a peer that an honest one may send is accepted in every state.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Sequence
from typing import Annotated, Final, Literal

import attrs
import msgspec
import numpy as np

from gossip.decentralized.asynchronous.session import RETIRED_SESSIONS, Count, Session, draw_session
from gossip.decentralized.protocol import AnyVector, Send, Vector
from transport.codec import decode_untrusted, pack
from transport.errors import MalformedMessage
from transport.identity import NodeId

MAX_OUT: Final = 4
"""Own offers without an answer, each with a copy of the vector."""
MAX_KEPT: Final = 8
"""Answers kept until the other side has them; when there are as many, further offers are refused."""
MAX_PEERS: Final = 4096
"""Peers whose numbers are remembered; beyond, the one longest unheard of is forgotten."""
ROUND_TRIPS: Final = 4.0
"""An answer is overdue after this many times the usual round trip."""
LONGEST_WAIT_S: Final = 60.0
"""Between two questions about the same offer."""
SHORTEST_WAIT_S: Final = 0.02
MOST_GAIN: Final = 1e9
"""More than any graph and any curvature ask for."""


class Word(msgspec.Struct, frozen=True, omit_defaults=True):
    """One message of an exchange; OFFER and ACCEPT have one vector beside them, the others none."""

    op: Literal["offer", "accept", "refuse", "query", "done", "check", "bye"]
    me: Session
    """The sender's session."""
    seq: Count
    """Number of the offer, counted by the initiator for this peer."""
    generation: Count = 0
    """What the sender believes the generation of this pair to be."""
    you: Session = 0
    """accept, refuse, check: the session of the initiator that counted `seq`."""
    gain: Annotated[float, msgspec.Meta(ge=0, le=MOST_GAIN)] = 0.0
    """offer: a coefficient of the protocol's that both sides have to use alike."""


@attrs.frozen(eq=False)
class Asked:
    """Outcome: a peer offers an exchange; `accept` or `refuse` it before anything else."""

    peer: NodeId
    seq: int
    session: int
    gain: float
    theirs: Vector
    """Lent for the call."""


@attrs.frozen(eq=False)
class Settled:
    """Outcome: an own offer was accepted; apply it now."""

    peer: NodeId
    gain: float
    mine: Vector
    theirs: Vector
    """Lent for the call."""


@attrs.frozen
class Refused:
    """Outcome: an own offer was refused; nothing has changed on either side."""

    peer: NodeId


@attrs.frozen
class Void:
    """Outcome: everything ever exchanged with this peer is gone on the other side."""

    peer: NodeId


Outcome = Asked | Settled | Refused | Void


@attrs.define
class Counts:
    """What became of exchanges, since the start."""

    settled: int = 0
    """Own offers that were accepted."""
    answered: int = 0
    """Offers of others that were accepted here."""
    refused: int = 0
    """Own offers that were refused."""
    busy: int = 0
    """Offers of others that were refused here."""
    queries: int = 0
    """Answers that were overdue."""
    unsettled: int = 0
    """Given up without knowing whether the other side has applied its half."""


@attrs.define
class _Offer:
    seq: int
    mine: Vector
    gain: float
    sent_at: float
    due_at: float
    overdue: int = 0


@attrs.define
class _Peer:
    session: int = 0
    retired: deque[int] = attrs.field(factory=lambda: deque(maxlen=RETIRED_SESSIONS))
    generation: int = 0
    offers: int = 0
    """Own offers to it, ever."""
    seen: int = 0
    """The highest number of its offers in this session that was answered."""
    accepted: bool = False
    """How that one was answered."""
    reply: Vector | None = None
    """The answer to it, while the other side may not have it."""
    replied_at: float = 0.0
    check_at: float = math.inf
    checks: int = 0
    shared: bool = False
    """Something was exchanged since the generation was raised last."""
    refused: int = 0
    """The last own offer that it refused, until a second refusal of the same was seen."""
    refused_sent_at: float = 0.0
    heard_at: float = 0.0


class Exchanges:
    """One node's side of all its exchanges.

    Args:
        numel: values of every vector.
        patience_s: how long the first answer is waited for, until there are round trips to go by.
        forget_s: after this time without an answer, or without the peer, an exchange is given up.
        rng: for the session.
    """

    def __init__(
        self, numel: int, rng: random.Random, *, patience_s: float, forget_s: float
    ) -> None:
        self.counts = Counts()
        self._numel = numel
        self._rng = rng
        self._patience_s = patience_s
        self._forget_s = forget_s
        self._round_trip_s: float | None = None
        self._session = 0
        self._peers: dict[NodeId, _Peer] = {}
        self._out: dict[NodeId, _Offer] = {}
        self._near: frozenset[NodeId] = frozenset()
        self._watched: set[NodeId] = set()
        """Peers with an answer that is kept, or that are gone: the only ones that time has to do with."""
        self._outgoing: list[Send] = []

    # ---- what the protocol does --------------------------------------------------------------

    def start(self, now: float) -> None:
        """Begin a session that none before it can be mistaken for, even with the same seed."""
        self._session = draw_session(self._rng, now)

    def members(self, others: Sequence[NodeId], now: float) -> None:
        """The peers that can be reached now; others are not asked, and forgotten after `forget_s`."""
        for gone in sorted((self._near - set(others)) & set(self._peers)):
            self._peers[gone].heard_at = max(self._peers[gone].heard_at, now)
        self._near = frozenset(others)
        self._watched |= {one for one, known in self._peers.items() if known.shared} - self._near
        for near in sorted(self._near & set(self._out)):
            self._out[near].due_at = min(self._out[near].due_at, now + self._wait_s)

    @property
    def locked(self) -> bool:
        """An own offer is out and not overdue: offers of others are to be refused, and none made."""
        return any(not offer.overdue for offer in self._out.values())

    def free(self, peer: NodeId) -> bool:
        """Whether an offer can be made to this peer now."""
        return peer in self._near and peer not in self._out and len(self._out) < MAX_OUT

    @property
    def wait_s(self) -> float:
        """How long an answer may take at present."""
        return self._wait_s

    def offer(self, peer: NodeId, mine: Vector, now: float, *, gain: float = 0.0) -> None:
        """Offer an exchange; `mine` is kept and sent, nobody may write to it any more."""
        assert self._session, "not started"
        assert self.free(peer), "an offer to this peer is out already, or too many are"
        known = self._peer(peer)
        known.offers += 1
        self._out[peer] = _Offer(known.offers, mine, gain, now, now + self._wait_s)
        self._say(peer, "offer", known.offers, vector=mine, gain=gain)

    def accept(self, asked: Asked, mine: Vector, now: float) -> None:
        """Answer with the own vector, which is kept until it has arrived; then apply the exchange."""
        peer = self._peer(asked.peer)
        peer.seen, peer.accepted, peer.shared = asked.seq, True, True
        peer.reply, peer.replied_at, peer.checks = mine, now, 0
        peer.check_at = now + 2 * self._wait_s
        self._watched.add(asked.peer)
        self.counts.answered += 1
        self._say(asked.peer, "accept", asked.seq, vector=mine, you=asked.session)

    def refuse(self, asked: Asked) -> None:
        """Answer that this exchange does not take place, now or later."""
        peer = self._peer(asked.peer)
        peer.seen, peer.accepted, peer.reply, peer.check_at = asked.seq, False, None, math.inf
        self.counts.busy += 1
        self._say(asked.peer, "refuse", asked.seq, you=asked.session)

    def leave(self) -> None:
        """Say BYE to all that something was exchanged with."""
        for peer, known in sorted(self._peers.items()):
            if peer in self._near and (known.shared or peer in self._out):
                self._say(peer, "bye", 0)

    def outgoing(self) -> list[Send]:
        """What is to be sent since the last call."""
        sends, self._outgoing = self._outgoing, []
        return sends

    # ---- what the world does -----------------------------------------------------------------

    def receive(
        self, sender: NodeId, message: bytes, vectors: Sequence[AnyVector], now: float
    ) -> list[Outcome]:
        """A peer's message.

        Raises:
            MalformedMessage: no honest peer with the same model sends it.
        """
        word = decode_untrusted(message, Word)
        if len(vectors) != (word.op in {"offer", "accept"}) or not math.isfinite(word.gain):
            raise MalformedMessage("an exchange has one vector in its offer and in its answer")
        if any(vector.size != self._numel or vector.dtype != np.float32 for vector in vectors):
            raise MalformedMessage("a vector of an exchange is as long as the model, in float32")
        assert self._session, "not started"
        peer = self._peer(sender)
        if word.me in peer.retired:
            return []
        outcomes = self._recognise(sender, peer, word, now)
        if word.op in {"accept", "refuse", "check"} and word.you != self._session:
            return outcomes
        if word.op == "offer":
            theirs = vectors[0].astype(np.float32, copy=False)
            outcomes += self._on_offer(sender, peer, word, theirs)
        elif word.op == "query":
            self._on_query(sender, peer, word)
        elif word.op == "done":
            if peer.seen == word.seq:
                peer.reply, peer.check_at = None, math.inf
        elif word.op == "bye":
            peer.retired.append(word.me)
            outcomes += self._give_up(sender, known_to_both=sender not in self._out)
        elif word.op == "check":
            offer = self._out.get(sender)
            awaited = offer is not None and offer.seq == word.seq
            self._say(sender, "query" if awaited else "done", word.seq)
        else:
            answer = vectors[0].astype(np.float32, copy=False) if vectors else None
            outcomes += self._on_answer(sender, peer, word, answer, now)
        return outcomes

    def undelivered(self, to: NodeId, key: int, now: float) -> None:
        """A message may not have arrived: if it was an offer, ask about it soon."""
        offer = self._out.get(to)
        if offer is not None and offer.seq == key:
            offer.due_at = min(offer.due_at, now + SHORTEST_WAIT_S)

    def tick(self, now: float) -> list[Outcome]:
        """Ask about what is overdue, give up what is hopeless."""
        outcomes: list[Outcome] = []
        for peer, offer in sorted(self._out.items()):
            if now >= offer.sent_at + self._forget_s:
                outcomes += self._give_up(peer)
            elif now >= offer.due_at:
                offer.overdue += 1
                offer.due_at = now + min(LONGEST_WAIT_S, self._wait_s * 2**offer.overdue)
                if peer in self._near:
                    self.counts.queries += 1
                    self._say(peer, "query", offer.seq)
        for peer in sorted(self._watched):
            known = self._peers[peer]
            if known.reply is not None and now >= known.replied_at + self._forget_s:
                outcomes += self._give_up(peer)
            elif now >= known.check_at:
                known.checks += 1
                known.check_at = now + min(LONGEST_WAIT_S, self._wait_s * 2 ** (known.checks + 1))
                if peer in self._near:
                    self._say(peer, "check", known.seen, you=known.session)
            if self._forgotten_at(peer, known) <= now:
                outcomes += self._raise_generation(peer, known, known.generation + 1)
            if known.reply is None and not (known.shared and peer not in self._near):
                self._watched.discard(peer)
        return outcomes

    def next_deadline(self) -> float | None:
        """When `tick` has something to do."""
        moments = [min(o.due_at, o.sent_at + self._forget_s) for o in self._out.values()]
        for peer in self._watched:
            known = self._peers[peer]
            moments += [known.check_at, self._forgotten_at(peer, known)]
            if known.reply is not None:
                moments.append(known.replied_at + self._forget_s)
        soonest = min(moments, default=math.inf)
        return None if soonest == math.inf else soonest

    # ---- inside ------------------------------------------------------------------------------

    @property
    def _wait_s(self) -> float:
        if self._round_trip_s is None:
            return self._patience_s
        return min(self._forget_s / 4, max(SHORTEST_WAIT_S, ROUND_TRIPS * self._round_trip_s))

    def _forgotten_at(self, peer: NodeId, known: _Peer) -> float:
        away = known.shared and peer not in self._near
        return known.heard_at + self._forget_s if away else math.inf

    def _peer(self, peer: NodeId) -> _Peer:
        known = self._peers.get(peer)
        if known is None:
            if len(self._peers) >= MAX_PEERS:
                unused = [
                    one for one in self._peers if one not in self._out and one not in self._watched
                ]
                del self._peers[min(unused, key=lambda one: (self._peers[one].heard_at, one))]
            known = self._peers[peer] = _Peer()
        return known

    def _recognise(self, sender: NodeId, peer: _Peer, word: Word, now: float) -> list[Outcome]:
        """Take note of the sender's session and generation, and of what they make void."""
        outcomes: list[Outcome] = []
        peer.heard_at = now
        if word.me != peer.session:
            if peer.session:
                peer.retired.append(peer.session)
                outcomes += self._raise_generation(sender, peer, peer.generation)
            peer.session, peer.seen, peer.accepted = word.me, 0, False
            peer.reply, peer.check_at = None, math.inf
        if word.generation > peer.generation:
            outcomes += self._raise_generation(sender, peer, word.generation)
        return outcomes

    def _raise_generation(self, peer: NodeId, known: _Peer, generation: int) -> list[Outcome]:
        known.generation = generation
        had, known.shared = known.shared, False
        if known.reply is not None:
            # This half is taken back: whoever still asks has nothing to apply.
            known.accepted, known.reply, known.check_at = False, None, math.inf
        return [Void(peer)] if had else []

    def _give_up(self, peer: NodeId, *, known_to_both: bool = False) -> list[Outcome]:
        """Nothing more is to come; unless all was settled, neither side may ever know whether the other has its half."""
        self.counts.unsettled += not known_to_both
        known = self._peer(peer)
        if self._out.pop(peer, None) is not None:
            known.shared = True
        return self._raise_generation(peer, known, known.generation + 1)

    def _on_offer(self, sender: NodeId, peer: _Peer, word: Word, theirs: Vector) -> list[Outcome]:
        if word.seq <= peer.seen:
            self._on_query(sender, peer, word)
            return []
        asked = Asked(sender, word.seq, word.me, word.gain, theirs)
        # A later number says that the one before is settled, so its own answer takes no further place.
        kept = sum(self._peers[one].reply is not None for one in self._watched if one != sender)
        if self.locked or word.generation < peer.generation or kept >= MAX_KEPT:
            self.refuse(asked)
            return []
        return [asked]

    def _on_query(self, sender: NodeId, peer: _Peer, word: Word) -> None:
        """Say again how this offer was answered; one that never came is refused from now on."""
        if word.seq > peer.seen:
            peer.seen, peer.accepted, peer.reply, peer.check_at = word.seq, False, None, math.inf
            self.counts.busy += 1
        if word.seq == peer.seen and peer.accepted:
            if peer.reply is not None:
                self._say(sender, "accept", word.seq, vector=peer.reply, you=word.me)
        elif word.seq == peer.seen:
            self._say(sender, "refuse", word.seq, you=word.me)

    def _on_answer(
        self, sender: NodeId, peer: _Peer, word: Word, theirs: Vector | None, now: float
    ) -> list[Outcome]:
        offer = self._out.get(sender)
        if offer is None or offer.seq != word.seq:
            if theirs is not None:  # said again: the DONE was lost
                self._say(sender, "done", word.seq)
            elif word.seq == peer.refused:
                # Refused once more: the question had overtaken the offer, the link is slower than believed.
                self._learn(now - peer.refused_sent_at)
                peer.refused = 0
            return []
        del self._out[sender]
        elapsed = now - offer.sent_at
        if theirs is None or word.generation < peer.generation:
            peer.refused, peer.refused_sent_at = offer.seq, offer.sent_at
            self.counts.refused += 1
            return [Refused(sender)]
        if not offer.overdue:
            self._learn(elapsed)
        self.counts.settled += 1
        peer.shared = True
        if sender not in self._near:
            self._watched.add(sender)
        self._say(sender, "done", word.seq)
        return [Settled(sender, offer.gain, offer.mine, theirs)]

    def _learn(self, round_trip_s: float) -> None:
        old = self._round_trip_s
        self._round_trip_s = round_trip_s if old is None else old + 0.25 * (round_trip_s - old)

    def _say(
        self,
        to: NodeId,
        op: Literal["offer", "accept", "refuse", "query", "done", "check", "bye"],
        seq: int,
        *,
        vector: Vector | None = None,
        you: int = 0,
        gain: float = 0.0,
    ) -> None:
        word = Word(op, self._session, seq, self._peer(to).generation, you, gain)
        vectors = () if vector is None else (vector,)
        self._outgoing.append(Send(to, pack(word), vectors, seq if op == "offer" else 0))
