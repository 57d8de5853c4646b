"""Push-sum (stochastic gradient push): models flow along directed links, and nobody waits for an answer.

M. Assran et al., "Stochastic Gradient Push for Distributed Deep Learning" (2019, arXiv 1811.10792), over D. Kempe et al.,
"Gossip-based computation of aggregate information" (2003). A node holds mass: a numerator x and a weight w, at first (x, 1). Its model
is z = x / w. After each leg of training, which begins at z, it adds what the leg changed to x, and gives equal shares of (x, w) to its
out-peers and itself. Whatever the graph, sums over all nodes are conserved, so every z tends to sum(x) / sum(w).

Mass that is lost is lost for all. So links carry *running sums* (rather than shares): S, all that was ever sent over
this link. A receiver adds S - R, where R is the S that it saw last: a lost message is made good by the next one, a
doubled or overtaken one adds nothing. Answers are not needed for that; they tell a sender up to where a link is
settled, so that it sends the rest again after `patience` (else a loss on the last visit would be for ever) and can take it
back when the link closes for good.

A link is one life of the sender (`session`), one of the receiver and a `generation`. It closes when the peer is gone for `forget` seconds or
comes back as another life; then the sender takes back what was not acknowledged, the receiver forgets R, and
the generation is raised. What arrived but was not acknowledged by then counts twice, `unsettled` says how much. A node that crashes takes its
mass along: the others still agree, on a slightly shifted average; a restart brings a new mass of 1. A node that leaves in good
order gives all it has to one peer. `describe` has this node's weight: the sum over all nodes, with what is in flight, divided by their number is
1 while nothing was lost or doubled.

S and R are float64, on the wire too: their difference has to be exact after thousands of messages. Per out-link 1 to 3 vectors are
kept, per in-link one.

Nodes of unequal speed. Published is `x += change`, in rounds that all nodes make together, where weights are about 1. Here nobody waits: one that
trains twice as fast gives twice as often and holds half the weight, and one that starts first has given most of its mass before the others
answer; each of its legs would move its own z by change / w, many times too far (three peers on one machine: one of them diverged). So the default is
`x += w change`: z moves by the change itself, and fast nodes count no more than slow ones; `scaling = "plain"` is the published rule. For
the same reason a peer gets no more while it has not acknowledged as much as this node still holds.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal

import attrs
import msgspec
import numpy as np

from gossip.decentralized.arithmetic import is_finite
from gossip.decentralized.asynchronous.free_running import FreeRunning
from gossip.decentralized.asynchronous.session import RETIRED_SESSIONS, Count, Session, draw_session
from gossip.decentralized.protocol import (
    AnyVector,
    Context,
    LocalWork,
    Send,
    Vector,
    Wide,
    frozen,
)
from gossip.decentralized.topology import check_lasting
from transport.codec import decode_untrusted, pack
from transport.errors import MalformedMessage
from transport.identity import NodeId

LEAST_WEIGHT: Final = 1e-6
"""A node with less keeps it until something arrives: shares of shares would otherwise vanish where nothing comes back."""
MOST_HELD: Final = 1e9
"""A node takes no more: no swarm has so many nodes, so somebody has made it up."""
MOST_WEIGHT: Final = 1e30
"""Of one link's running sum: out of reach of whoever never held more than that."""
MAX_IN: Final = 1024
"""Peers whose running sums are kept; pushes of further ones wait at their sender."""
MAX_KNOWN: Final = 4096
"""Peers whose sessions and generations are remembered after their links were closed."""
LONGEST_WAIT_S: Final = 300.0


class PushSumSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of push-sum."""

    graph: Literal[
        "one-peer-exponential",
        "ring",
        "random-regular",
        "exponential",
        "barabasi-albert",
        "small-world",
        "full",
    ] = "one-peer-exponential"
    """Where shares go. "one-peer-exponential": the t-th time to the one 2**t places on, in the order of ids; others: to random neighbours in that graph."""
    degree: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 4
    """Neighbours of each node ("random-regular", there at least 2; "small-world"), or links that a new node brings ("barabasi-albert"). Others have no choice."""
    out: Annotated[int, msgspec.Meta(ge=1, le=100)] = 1
    """Neighbours that get a share after a leg; "one-peer-exponential" has one."""
    scaling: Literal["weight", "plain"] = "weight"
    """What a leg's change is multiplied with: "weight", the node's own weight; "plain", nothing, as published, for nodes of equal speed that start together."""
    clip: Annotated[float, msgspec.Meta(ge=0, le=1e12)] = 0.0
    """Euclidean length that the change of one leg may have at most; 0: any."""
    patience: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 5.0
    """Seconds until a running sum that was not acknowledged is sent again; doubled each time."""
    forget: Annotated[float, msgspec.Meta(gt=0, le=86400)] = 300.0
    """Seconds after which a link to or from a peer that is gone is closed for good."""


class Word(msgspec.Struct, frozen=True, omit_defaults=True):
    """One message; a push has the running sum beside it, the others nothing."""

    type: Literal["push", "ack", "reset"]
    me: Session
    """The sender's session."""
    generation: Count
    """Of the link that the pushes go over. reset: nothing of this generation is known here."""
    you: Session = 0
    """The receiver's session, as far as it is known."""
    weight: Annotated[float, msgspec.Meta(ge=0, le=MOST_WEIGHT)] = 0.0
    """push: the running sum of weights. ack: the one seen last."""
    done: bool = False
    """push: the sender trains no more."""


@attrs.define
class _Out:
    """The sender's end of a link. Vectors are those that were sent: replaced, never written to."""

    peer: int = 0
    """The receiver's session; 0: not known yet."""
    generation: int = 0
    sum: Wide | None = None
    weight: float = 0.0
    acked: Wide | None = None
    acked_weight: float = 0.0
    probe: Wide | None = None
    """An earlier running sum whose acknowledgement would move `acked` there."""
    probe_weight: float = 0.0
    resend_at: float = math.inf
    resends: int = 0


@attrs.define
class _In:
    """The receiver's end of a link."""

    session: int
    generation: int
    sum: Wide | None = None
    weight: float = 0.0
    closed: bool = False
    retired: deque[int] = attrs.field(factory=lambda: deque(maxlen=RETIRED_SESSIONS))


class PushSum(FreeRunning):
    """Stochastic gradient push with running sums."""

    name = "push-sum"
    Settings = PushSumSettings
    settings: PushSumSettings
    conserves_mean = True
    depends_on_mean = True

    @classmethod
    def parse_settings(cls, raw: Mapping[str, Any]) -> msgspec.Struct:
        """As all protocols; also a graph that falls apart is refused."""
        parsed = super().parse_settings(raw)
        assert isinstance(parsed, PushSumSettings), "the class says so"
        check_lasting(cls.name, parsed.graph, parsed.degree)
        return parsed

    def __init__(self, settings: PushSumSettings, context: Context) -> None:
        super().__init__(settings, context)
        self.weight = 0.0
        """Mass held; 1 at first."""
        self.unsettled = 0.0
        """Weight taken back from links that closed before all of it was acknowledged; some of it may count twice."""
        self._x: Wide = np.zeros(0)
        self._z: Vector = np.zeros(0, np.float32)
        self._session = 0
        self._turn = 0
        self._out: dict[NodeId, _Out] = {}
        self._in: dict[NodeId, _In] = {}
        self._away: dict[NodeId, float] = {}
        self._open: set[NodeId] = set()
        """Links on which something is to be acknowledged."""

    # ---- training ----------------------------------------------------------------------------

    def prepare(self, params: Vector, now: float) -> None:
        """A mass of one."""
        self._session = draw_session(self.context.rng, now)
        self.weight = 1.0
        self._x = params.astype(np.float64)
        self._z = frozen(params)

    @property
    def model(self) -> Vector:
        """The estimate z = x / w."""
        return self._z

    @property
    def mass(self) -> tuple[Wide, float]:
        """Numerator (a copy) and weight."""
        return self._x.copy(), self.weight

    @property
    def in_flight(self) -> float:
        """Weight that was sent and not acknowledged; it may have arrived."""
        open_links = [self._out[peer] for peer in sorted(self._open)]
        return sum(link.weight - link.acked_weight for link in open_links)

    def add(self, change: Vector, work: LocalWork, now: float) -> bool:
        """Onto the numerator."""
        del work, now
        scale = self.weight if self.settings.scaling == "weight" else 1.0
        if self.settings.clip:
            length = float(np.linalg.norm(change.astype(np.float64)))
            scale *= min(1.0, self.settings.clip / length) if length else 1.0
        return self._hold(self._x + scale * change, self.weight)

    def after_leg(self, now: float) -> None:
        """Give away, then go on from what is left."""
        self._give(self._targets(), now)
        self.next_leg(now)

    def trained(self, work: LocalWork, now: float) -> None:
        """A node that has finished gives its last leg's share, too."""
        was_training = self.training
        super().trained(work, now)
        if was_training and self.finished:
            self._give(self._targets(), now)

    # ---- giving ------------------------------------------------------------------------------

    def _targets(self) -> list[NodeId]:
        """Who gets a share now: those whose turn it is, and who take what they are given."""
        if not self.others or self.weight < LEAST_WEIGHT:
            return []
        self._turn += 1
        if self.settings.graph == "one-peer-exponential":
            drawn = [exponential_peer(self.others, self.context.me, self._turn - 1)]
        else:
            near = self.graph(self.settings.graph, self.settings.degree)[self.context.me]
            drawn = sorted(self.context.rng.sample(near, min(self.settings.out, len(near))))
        return [peer for peer in drawn if self._unacknowledged(peer) <= self.weight]

    def _unacknowledged(self, peer: NodeId) -> float:
        """Weight on its way to this peer: one that does not answer, or is not ready yet, would otherwise take all there is."""
        link = self._out.get(peer)
        return link.weight - link.acked_weight if link is not None else 0.0

    def _give(self, targets: Sequence[NodeId], now: float, *, all_of_it: bool = False) -> None:
        """Equal shares to these and to oneself; or everything to the only one."""
        if not targets:
            return
        parts = len(targets) + (not all_of_it)
        share, share_weight = self._x / parts, self.weight / parts
        for peer in targets:
            link = self._out.setdefault(peer, _Out())
            link.sum = share.copy() if link.sum is None else link.sum + share
            link.sum.flags.writeable = False
            link.weight += share_weight
            if link.probe is None:
                link.probe, link.probe_weight = link.sum, link.weight
            link.resends = 0
            self._push(peer, link, now)
        if all_of_it:
            self._x, self.weight = np.zeros_like(self._x), 0.0
        else:
            self._hold(self._x - len(targets) * share, self.weight - len(targets) * share_weight)

    def _push(self, peer: NodeId, link: _Out, now: float) -> None:
        assert link.sum is not None, "nothing was given over this link"
        word = Word("push", self._session, link.generation, link.peer, link.weight, self.finished)
        self._emit(Send(peer, pack(word), (link.sum,), 1))
        link.resend_at = now + min(LONGEST_WAIT_S, self.settings.patience * 2**link.resends)
        self._open.add(peer)

    def _close(self, peer: NodeId, generation: int) -> None:
        """Take back what was not acknowledged; the link begins anew with this generation."""
        link = self._out[peer]
        if link.sum is not None and link.weight > link.acked_weight:
            rest = link.sum if link.acked is None else link.sum - link.acked
            if self._hold(self._x + rest, self.weight + link.weight - link.acked_weight):
                self.unsettled += link.weight - link.acked_weight
        self._out[peer] = _Out(generation=generation)
        self._open.discard(peer)

    # ---- receiving ---------------------------------------------------------------------------

    def receive(
        self, sender: NodeId, message: bytes, vectors: Sequence[AnyVector], now: float
    ) -> None:
        """A running sum, or what became of one's own."""
        word = decode_untrusted(message, Word)
        if len(vectors) != (word.type == "push") or not math.isfinite(word.weight):
            raise MalformedMessage("a push has one vector, an answer has none")
        if any(v.size != self.context.numel or v.dtype != np.float64 for v in vectors):
            raise MalformedMessage("a running sum is as long as the model, in float64")
        if not self.started:
            return
        if word.type == "push":
            self._on_push(sender, word, vectors[0].astype(np.float64, copy=False), now)
        elif word.you == self._session and sender in self._out:
            self._on_answer(sender, self._out[sender], word)

    def _on_push(self, sender: NodeId, word: Word, running: Wide, now: float) -> None:
        link = self._in_link(sender, word)
        if link is None:
            return
        known_elsewhere = word.you not in {0, self._session}
        if known_elsewhere or (link.closed and word.generation == link.generation):
            link.sum, link.weight, link.closed = None, 0.0, True
            self._answer(sender, "reset", word.me, word.generation, 0.0)
            return
        if word.weight > link.weight:
            more = running if link.sum is None else running - link.sum
            if not self._hold(self._x + more, self.weight + word.weight - link.weight):
                self.unusable += 1
                return
            link.sum, link.weight = running.copy(), word.weight
            self.met(sender)
        self._answer(sender, "ack", word.me, word.generation, link.weight)
        if self.finished and not word.done:
            # Who has finished passes on what comes, else the weight of those that train would drain away to it.
            self._give(self._targets(), now)

    def _in_link(self, sender: NodeId, word: Word) -> _In | None:
        """The link that a push came over, begun anew if it says so; None for what is too late, or too much."""
        link = self._in.get(sender)
        if link is None:
            if sum(not one.closed for one in self._in.values()) >= MAX_IN:
                return None
            if len(self._in) >= MAX_KNOWN:
                del self._in[next(one for one, its in self._in.items() if its.closed)]
            link = self._in[sender] = _In(word.me, word.generation)
        elif word.me in link.retired:
            return None
        elif word.me != link.session:
            link.retired.append(link.session)
            link.session, link.generation, link.sum = word.me, word.generation, None
            link.weight, link.closed = 0.0, False
        elif word.generation < link.generation:
            return None
        elif word.generation > link.generation:
            link.generation, link.sum, link.weight, link.closed = word.generation, None, 0.0, False
        return link

    def _answer(
        self, to: NodeId, kind: Literal["ack", "reset"], you: int, generation: int, weight: float
    ) -> None:
        self._emit(Send(to, pack(Word(kind, self._session, generation, you, weight))))

    def _on_answer(self, sender: NodeId, link: _Out, word: Word) -> None:
        if word.generation != link.generation:
            return
        if word.type == "reset" or (link.peer and link.peer != word.me):
            self._close(sender, link.generation + 1)
            self._out[sender].peer = word.me
            return
        link.peer = word.me
        if word.weight == link.weight:
            link.acked, link.acked_weight = link.sum, link.weight
            link.probe, link.resend_at, link.resends = None, math.inf, 0
            self._open.discard(sender)
        elif link.probe is not None and word.weight >= link.probe_weight:
            link.acked, link.acked_weight = link.probe, link.probe_weight
            link.probe, link.probe_weight = link.sum, link.weight

    # ---- time --------------------------------------------------------------------------------

    def changed(self, now: float) -> None:
        """Note who is gone."""
        gone = {*self._out, *(p for p, link in self._in.items() if not link.closed)}
        gone -= set(self.others)
        for back in sorted((set(self._away) & set(self._out)) - gone):
            link = self._out[back]
            if link.weight > link.acked_weight:
                link.resend_at, link.resends = now + self.settings.patience, 0
        self._away = {peer: self._away.get(peer, now) for peer in sorted(gone)}

    def tick(self, now: float) -> None:
        """Send again what was not acknowledged; close links to those that are gone for good."""
        for peer in sorted(self._open):
            link = self._out[peer]
            if now >= link.resend_at:
                link.resends += 1
                if peer in self._away:
                    link.resend_at = now + LONGEST_WAIT_S
                else:
                    self._push(peer, link, now)
        for peer, since in sorted(self._away.items()):
            if now >= since + self.settings.forget:
                if peer in self._out:
                    self._close(peer, self._out[peer].generation + 1)
                if peer in self._in:
                    link_in = self._in[peer]
                    link_in.sum, link_in.weight, link_in.closed = None, 0.0, True
                del self._away[peer]

    def next_deadline(self) -> float | None:
        """The next message to repeat, or the next link to close."""
        moments = [self._out[peer].resend_at for peer in self._open]
        moments += [since + self.settings.forget for since in self._away.values()]
        soonest = min(moments, default=math.inf)
        return None if soonest == math.inf else soonest

    def leave(self, now: float) -> None:
        """Say again what was not acknowledged, and give all that is left to one peer."""
        if not self.started or not self.others or not self.weight:
            return
        heirs = self._targets()[:1] or [self.others[0]]
        for peer, link in sorted(self._out.items()):
            if link.weight > link.acked_weight and peer in self.others and peer not in heirs:
                self._push(peer, link, now)
        self._give(heirs, now, all_of_it=True)

    def describe(self) -> Mapping[str, Any]:
        """Also this node's share of the mass."""
        return {
            **super().describe(),
            "weight": round(self.weight, 6),
            "in_flight": round(self.in_flight, 6),
            "unsettled": round(self.unsettled, 6),
        }

    # ---- inside ------------------------------------------------------------------------------

    def _hold(self, x: Wide, weight: float) -> bool:
        """Hold this mass from now on; False, and nothing changed, if it makes no finite model."""
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            z = (x / weight).astype(np.float32)
        if not (0 < weight <= MOST_HELD and is_finite(x) and is_finite(z)):
            return False
        z.flags.writeable = False
        self._x, self.weight, self._z = x, weight, z
        return True


def exponential_peer(others: Sequence[NodeId], me: NodeId, turn: int) -> NodeId:
    """The node 2**(turn mod ceil(log2 n)) places after `me` on the circle of all n nodes in ascending order."""
    place, nodes = bisect_left(others, me), len(others) + 1
    ahead = place + (1 << turn % max(1, (nodes - 1).bit_length()))
    ahead %= nodes
    return others[ahead - (ahead > place)]
