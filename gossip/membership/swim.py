"""Who takes part and who is gone: SWIM with Lifeguard's self-doubt, as one node lives it (sans-IO).

Sources: Das, Gupta, Motivala, "SWIM", DSN 2002; Dadgar, Phillips, Currey, "Lifeguard", 2018, arXiv 1707.00788.

What differs from the papers, because members talk over authenticated connections with heartbeats of their own:

* A connected member is not pinged. Every byte from it is a sign of life (`heard`); silence beyond `quiet_s` takes the place of
  the unanswered direct ping. So a swarm at rest in which everybody is connected to everybody sends no message at all.
* Members we are not connected to are probed in turn through helpers, and their acks are signed by them over our nonce.
* The doubt's time does not grow with the swarm, since nobody is evicted on hearsay (below).

Why one liar evicts nobody who can be reached:

1. What a member says of itself is signed by it, with an incarnation that only rises: nobody else can make it leave or come back.
2. A doubt is signed by its author and counts once for each author. It makes us look and starts the member's time to refute;
   more authors only shorten that time, to `doubt_s` at the least unless three others have given the member up.
3. The verdict is each node's own. It needs our own failed looks: silence on our connection if there is one, no ack through any
   of `helpers` members, and none to a last look, for which the driver also tries to connect. Whoever has fresh signs of life does
   not believe a doubt, does not pass it on, and tells the member of it, which refutes.
   Many liars can do no more than that, except to be all of a node's helpers: a node that has no honest neighbour and cannot
   dial the member itself believes what they say.

Time in which our own loop stood still is nobody's silence: a late timer of ours moves all clocks of others by as much, and
raises the score of `local_health`, which makes us more patient for a while.

Invariants: our incarnation only rises; a member of which we heard within `quiet_s`, on a
connection that lives or by an ack, is never made suspect or lost; all containers
are bounded (members, looks, probes passed on, news, messages and events that wait); no input raises.
"""

from __future__ import annotations

import random
from typing import Final

from gossip.membership.looks import Looks
from gossip.membership.messages import (
    MAX_INCARNATION,
    MAX_NEWS,
    Ack,
    Alive,
    Body,
    Doubt,
    Gossip,
    Left,
    Message,
    Nack,
    News,
    Probe,
    Statement,
    Sync,
)
from gossip.membership.settings import SwimSettings
from gossip.membership.state import Dial, MemberEvent, Send, SwimState
from gossip.membership.table import PRESENT, Member, MemberState, MemberView, SwimKeys
from transport.budget.rates import TokenBucket
from transport.identity import NodeId

MAX_OFFERED: Final = 8
TABLE_EVERY_S: Final = 2.0
"""A peer gets our whole table this often at most."""
SYNC_EVERY_S: Final = 2.0
"""Newly connected peers are asked to compare tables this often at most."""

ALIVE, SUSPECT, LEFT, LOST = (
    MemberState.ALIVE,
    MemberState.SUSPECT,
    MemberState.LEFT,
    MemberState.LOST,
)


class Swim:
    """One node's part in the membership of its swarm.

    Args:
        keys: who we are.
        name: what we call ourselves; at most 64 characters.
        incarnation: where ours begins: the wall clock in milliseconds.
        settings: `LAN`, `WAN` or others.
        rng: chance; seeded in simulations.
        now: monotonic seconds, as in all calls.

    Attributes:
        counters: what happened, by name.
        health: our own.
    """

    def __init__(
        self,
        keys: SwimKeys,
        *,
        name: str,
        incarnation: int,
        settings: SwimSettings,
        rng: random.Random,
        now: float,
    ) -> None:
        self._state = SwimState(
            keys, name=name, incarnation=incarnation, settings=settings, rng=rng, now=now
        )
        self._looks = Looks(self._state)
        self.settings = settings
        self.counters = self._state.counters
        self.health = self._state.health
        self._doubters: dict[NodeId, float] = {}  # of us, lately; at most 16
        self._tables_sent: dict[NodeId, float] = {}  # at most the connected
        self._pulse_at = now + settings.gossip_s
        self._probe_at = now + settings.probe_every_s * rng.random()
        self._sync_at = now + settings.sync_s * rng.random()
        self._synced_at = -SYNC_EVERY_S

    # What others ask

    @property
    def node_id(self) -> NodeId:
        """Who we are."""
        return self._state.keys.node_id

    @property
    def incarnation(self) -> int:
        """Ours."""
        return self._state.own.incarnation

    @property
    def leaving(self) -> bool:
        """Whether we said goodbye."""
        return self._state.leaving

    def members(self) -> list[MemberView]:
        """Return all others that are known, gone ones included, by id."""
        return sorted(
            (member.view() for member in self._state.table), key=lambda view: view.node_id
        )

    def member(self, node_id: bytes) -> MemberView | None:
        """Return what is known of one."""
        member = self._state.table.get(node_id)
        return None if member is None else member.view()

    def next_deadline(self) -> float:
        """When `tick` is due."""
        return min(self._pulse_at, self._looks.next_deadline())

    def outgoing(self) -> list[Send | Dial]:
        """Return what is to be done now, each thing once."""
        out = list(self._state.out)
        self._state.out.clear()
        return out

    def next_event(self) -> MemberEvent | None:
        """Return what happened next, or None."""
        return self._state.events.popleft() if self._state.events else None

    # What the connections tell

    def connected(self, node_id: NodeId, now: float) -> None:
        """A connection to a node is up: a sign of life, and somebody to talk to."""
        self._observe(now)
        if node_id == self.node_id or node_id in self._state.peers:
            return
        rate = self.settings.messages_per_s
        self._state.peers[node_id] = TokenBucket(rate, 8 * rate, now)
        self._tables_sent.pop(node_id, None)
        member = self._state.table.get(node_id)
        if member is not None:
            member.connected = True
            self._state.evidence(member, now, now)
        body: Body = Gossip()
        if self.node_id < node_id and now - self._synced_at >= SYNC_EVERY_S:
            self._synced_at = now  # not with each of many that come at once: gossip brings the rest
            body = Sync(self._state.digest(), True)
        self._state.send(node_id, body, [self._state.own])

    def disconnected(
        self, node_id: NodeId, reason: str, now: float, *, orderly: bool = False
    ) -> None:
        """The connection is gone: look at once whether others still reach the node.

        Args:
            node_id: the node.
            reason: why, for people.
            now: monotonic seconds.
            orderly: closed because nobody used it, which says nothing about the node.
        """
        self._observe(now)
        self._state.peers.pop(node_id, None)
        self._tables_sent.pop(node_id, None)
        member = self._state.table.get(node_id)
        if member is None or not member.connected:
            return
        member.connected = False
        member.gap = reason
        if orderly:
            return
        member.quiet_since = min(
            member.quiet_since, now - 2 * self.settings.quiet_s
        )  # past signs of life tell nothing now
        if member.state is ALIVE and member.look is None:
            self._looks.begin(member, now)

    def heard(self, node_id: NodeId, at: float, now: float) -> None:
        """The last byte on the connection came at `at`; to be called before each tick."""
        member = self._state.table.get(node_id)
        if member is not None and member.connected:
            self._state.evidence(member, at, now)

    # Messages

    def receive(self, sender: NodeId, message: Message, now: float) -> None:
        """Take a message from a connected peer."""
        self._observe(now)
        bucket = self._state.peers.get(sender)
        if bucket is None or not bucket.take(1, now):
            self.counters["dropped-too-many" if bucket else "dropped-not-connected"] += 1
            return
        self.counters["messages_in"] += 1
        for news in message.news:
            self._hear(sender, news, now)
        body = message.body
        if isinstance(body, Probe):
            self._looks.probed(sender, body, now)
        elif isinstance(body, Ack):
            self._looks.acked(sender, body, now)
        elif isinstance(body, Nack):
            self._looks.nacked(body)
        elif isinstance(body, Sync) and body.digest != self._state.digest():
            self._send_table(sender, now)
            if body.answer:
                self._state.send(sender, Sync(self._state.digest(), False))

    def _hear(self, sender: NodeId, news: News, now: float) -> None:
        if isinstance(news, Doubt):
            if news.member == self.node_id:
                self._doubted(sender, news, now)
            else:
                self._hear_doubt(news, sender, now)
        elif news.member == self.node_id:
            self._hear_former_self(news)
        else:
            self._hear_statement(sender, news, now)

    # News

    def _hear_former_self(self, said: Statement) -> None:
        """Outbid what we said before a restart, if our clock was ahead then."""
        ahead = said.incarnation > self._state.own.incarnation or (
            isinstance(said, Left) and said.incarnation == self._state.own.incarnation
        )
        if ahead and not self.leaving and self._state.keys.is_genuine(said):
            self._state.rise(said.incarnation)

    def _hear_statement(self, sender: NodeId, said: Statement, now: float) -> None:
        member = self._state.table.get(said.member)
        if member is None:
            if isinstance(said, Alive) and self._state.is_genuine(said):
                self._meet(said, now)
            return
        newer = said.incarnation > member.incarnation
        if not newer:
            same = said.incarnation == member.incarnation
            if not same or (member.state is LEFT and isinstance(said, Alive)):
                self._state.send(sender, Gossip(), [member.statement])  # it is behind
            elif member.state is LOST and isinstance(said, Alive) and sender != said.member:
                # It believes in one that we lost. If that one lives, it hears of our doubt this way, and refutes.
                self._state.news.add(
                    self._state.keys.doubt(member.node_id, member.incarnation, lost=True)
                )
            return
        if not self._state.is_genuine(said):
            return
        member.statement = said
        member.offered.clear()
        self._state.table.version += 1
        self._state.news.add(said)
        if isinstance(said, Left):
            self._state.turn(member, LEFT, said.reason or "left", now)
        else:
            member.name = said.name
            if member.state is not ALIVE:
                self._state.turn(member, ALIVE, "", now)

    def _meet(self, said: Alive, now: float) -> None:
        connected = said.member in self._state.peers
        member = Member(
            said.member, said, ALIVE, now, said.name, connected=connected, quiet_since=now
        )
        if connected:
            member.evidence_at = now
        if not self._state.table.add(member):
            self.counters["refused-table-full"] += 1
            return
        self._state.news.add(said)
        self._state.tell(MemberEvent(member.view(), None))

    def _doubted(self, sender: NodeId, doubt: Doubt, now: float) -> None:
        """Somebody doubts us: say that we live, with a higher incarnation."""
        if self.leaving or doubt.incarnation > self._state.own.incarnation:
            return
        if doubt.incarnation == self._state.own.incarnation:
            if not self._state.is_of_author(doubt):
                return
            self._state.rise(self._state.own.incarnation)
            self.counters["refuted"] += 1
        self._doubters[doubt.author] = now
        self._doubters = {
            node: at for node, at in self._doubters.items() if now - at <= self.settings.doubt_s
        }
        while len(self._doubters) > 16:
            del self._doubters[next(iter(self._doubters))]
        if len(self._doubters) == 2:  # one alone may be wrong, or lie to make us slow to judge
            self.health.worse(now)
        self._state.send(sender, Gossip(), [self._state.own])

    def _hear_doubt(self, doubt: Doubt, sender: NodeId, now: float) -> None:
        member = self._state.table.get(doubt.member)
        if member is None or member.state not in PRESENT or doubt.author == self.node_id:
            return
        if doubt.incarnation != member.incarnation:
            if doubt.incarnation < member.incarnation and sender == doubt.author:
                self._state.send(sender, Gossip(), [member.statement])
            return
        if self._state.is_fresh(member, now):
            # It lives. Only it can say so in a way that counts for everybody.
            if (
                doubt.author not in member.offered
                and len(member.offered) < MAX_OFFERED
                and self._state.is_of_author(doubt)
            ):
                member.offered.add(doubt.author)
                self._state.send(member.node_id, Gossip(), [doubt])
            return
        doubted = member.suspicion
        if doubted is not None and not doubted.needs(doubt.author, lost=doubt.lost):
            return
        if not self._state.is_of_author(doubt):
            return
        if doubted is None:
            doubted = self._state.suspect(member, f"{doubt.author.short} does not reach it", now)
        doubted.confirm(doubt.author, lost=doubt.lost)
        self._state.news.add(doubt)
        if doubted.given_up:
            self._looks.hurry(member, now)

    # Time

    def tick(self, now: float) -> None:
        """Do what is due. Late calls are noticed, and are nobody else's fault."""
        self._observe(now)
        if now >= self._pulse_at:
            self._pulse_at = now + self.settings.gossip_s
            self._pulse(now)
        self._looks.tick(now)

    def _observe(self, now: float) -> None:
        """Notice that our loop stood still, before anything is concluded from what did not come meanwhile."""
        late_s = now - self._pulse_at
        if not self.health.late(late_s, now):
            return
        self._pulse_at = now
        self.counters["stalls"] += 1
        self._looks.shift(late_s)
        for member in self._state.table:
            member.quiet_since = min(now, member.quiet_since + late_s)
            if member.suspicion is not None:
                member.suspicion.started += late_s

    def _pulse(self, now: float) -> None:
        settings = self.settings
        self.health.calm(now)
        patience_s = settings.quiet_s * self.health.multiplier
        for node_id in list(self._state.peers):
            member = self._state.table.get(node_id)
            if (
                member is not None
                and member.state is ALIVE
                and member.look is None
                and now - member.quiet_since > patience_s
            ):
                self._looks.begin(member, now)
        if now >= self._probe_at:
            self._probe_at = now + settings.probe_every_s * self.health.multiplier
            self._looks.probe_next(now)
        if now >= self._sync_at:
            self._sync_at = now + settings.sync_s * self._state.rng.uniform(0.8, 1.2)
            self._state.table.forget_gone(now - settings.remember_s)
            for partner in self._state.some(1, lambda member: member.state is ALIVE):
                self._state.send(partner.node_id, Sync(self._state.digest(), True))
        if len(self._state.news):
            for member in self._state.some(settings.fanout, lambda member: member.state in PRESENT):
                if news := self._state.pick(MAX_NEWS):
                    self._state.send(member.node_id, Gossip(), news)

    # Leaving

    def leave(self, reason: str, now: float) -> None:
        """Say goodbye to everybody we are connected to; from then on nothing is refuted."""
        self._observe(now)
        if self.leaving:
            return
        self._state.own = self._state.keys.left(
            min(MAX_INCARNATION, self._state.own.incarnation + 1), reason
        )
        for node_id in self._state.peers:
            self._state.send(node_id, Gossip(), [self._state.own])

    # Inside

    def _send_table(self, to: NodeId, now: float) -> None:
        last = self._tables_sent.get(to)
        if last is not None and now - last < TABLE_EVERY_S:
            return
        self._tables_sent[to] = now
        held: list[News] = [self._state.own]
        held += [m.statement for m in self._state.table if m.state in PRESENT and m.node_id != to]
        for start in range(0, len(held), MAX_NEWS):
            self._state.send(to, Gossip(), held[start : start + MAX_NEWS])


__all__ = ["Dial", "MemberEvent", "Send", "Swim"]
