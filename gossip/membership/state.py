"""What all parts of one node's membership share: the table, the peers, the news, and what waits to be sent.

Problem: the rules about news, the looks and the verdicts all read and change the same few things, and one file of all of it is
too long to be read. Idea: those things and the steps that keep them consistent stand here; `swim` and `swim_looks` hold the rules.

Invariants: who is doubted is in `doubted` and has a `suspicion`, nobody else has; whoever becomes alive has no doubt about it
passed on by us any more; messages go to connected peers only.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable
from typing import Final

import attrs

from gossip.membership.dissemination import Dissemination
from gossip.membership.local_health import LocalHealth
from gossip.membership.messages import (
    MAX_INCARNATION,
    Body,
    Doubt,
    Gossip,
    Left,
    Message,
    News,
    Statement,
    digest_of,
)
from gossip.membership.settings import SwimSettings
from gossip.membership.suspicion import Suspicion
from gossip.membership.table import PRESENT, Member, MemberState, MemberView, SwimKeys, Table
from transport.budget.rates import TokenBucket
from transport.identity import NodeId

MAX_WAITING: Final = 4096
"""Messages and events that the driver has not taken yet; the oldest are dropped and counted."""


@attrs.frozen
class Send:
    """A message to a connected peer; it may get lost."""

    to: NodeId
    message: Message


@attrs.frozen
class Dial:
    """Please try to connect to a member before it is given up; failing needs no report."""

    to: NodeId


@attrs.frozen
class MemberEvent:
    """A member came, went, or is thought of differently."""

    member: MemberView
    before: MemberState | None
    """None for a member not known before."""


class SwimState:
    """The shared part of one node's membership.

    Attributes:
        settings: the numbers.
        counters: what happened, by name.
        health: our own.
        keys: who we are.
        name: what we call ourselves.
        own: our newest statement.
        table: the others.
        doubted: those that are suspect.
        peers: who is connected, and what it may still send.
        news: what we pass on.
        out: what waits for the driver.
        events: what happened and waits for the driver.
        rng: chance.
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
        self.settings = settings
        self.counters: Counter[str] = Counter()
        self.health = LocalHealth(now)
        self.keys = keys
        self.name = name
        self.own: Statement = keys.alive(min(incarnation, MAX_INCARNATION - 1), name)
        self.table = Table(settings.max_members)
        self.doubted: dict[NodeId, Member] = {}
        self.peers: dict[NodeId, TokenBucket] = {}  # bounded by the transport
        self.news = Dissemination(settings.spread, capacity=2 * settings.max_members)
        self.out: deque[Send | Dial] = deque()
        self.events: deque[MemberEvent] = deque()
        self.rng = rng
        self._digest: tuple[int, int, bytes] = (-1, -1, b"")

    @property
    def leaving(self) -> bool:
        """Whether we said goodbye."""
        return isinstance(self.own, Left)

    # What is thought of members

    def is_fresh(self, member: Member, now: float) -> bool:
        """Whether there is a sign of life of it that we have ourselves and that is young enough."""
        return member.evidence_at is not None and now - member.quiet_since <= self.settings.quiet_s

    def evidence(self, member: Member, at: float, now: float) -> None:
        """Note a sign of life; it ends every doubt here at once."""
        if member.evidence_at is not None and at <= member.evidence_at:
            return
        member.evidence_at = at
        member.quiet_since = max(member.quiet_since, at)
        if member.state in (MemberState.SUSPECT, MemberState.LOST) and self.is_fresh(member, now):
            if member.connected:
                # Others doubt it still, perhaps by our word: it has to refute.
                lost = member.state is MemberState.LOST
                doubt = self.keys.doubt(member.node_id, member.incarnation, lost=lost)
                self.send(member.node_id, Gossip(), [doubt])
            self.turn(member, MemberState.ALIVE, "", now)

    def suspect(self, member: Member, why: str, now: float) -> Suspicion:
        """Begin to doubt a member; it has time to refute from now on."""
        settings = self.settings
        wanted = max(0, min(settings.confirmations, self.table.present - 1))
        doubted = Suspicion(now, wanted, settings.doubt_s, settings.doubt_alone_s, why=why)
        self.turn(member, MemberState.SUSPECT, why, now)
        member.suspicion = doubted
        self.doubted[member.node_id] = member
        return doubted

    def turn(self, member: Member, state: MemberState, reason: str, now: float) -> None:
        """Change what we think of a member."""
        before = member.state
        member.state, member.reason = state, reason
        member.suspicion = None
        self.doubted.pop(member.node_id, None)
        if state is MemberState.ALIVE:
            # Also on hearsay: its own word is new, and it has time again.
            member.quiet_since = max(member.quiet_since, now)
            self.news.forget(member.node_id)
        if before is not state:
            member.since = now
            if (before in PRESENT) != (state in PRESENT):
                self.table.version += 1
            self.tell(MemberEvent(member.view(), before))

    # Who says what

    def rise(self, above: int) -> None:
        """Say again that we live, at a higher incarnation than that."""
        incarnation = min(MAX_INCARNATION, max(self.own.incarnation, above) + 1)
        self.own = self.keys.alive(incarnation, self.name)
        self.news.add(self.own)

    def is_genuine(self, said: Statement) -> bool:
        """Whether the member that a statement is about made it."""
        genuine = self.keys.is_genuine(said)
        self.counters["forged-refused"] += not genuine
        return genuine

    def is_of_author(self, doubt: Doubt) -> bool:
        """Whether a claim was made by its author, whom we have to know."""
        author = self.table.get(doubt.author)
        if author is None:
            self.counters["doubts-of-strangers"] += 1
            return False
        genuine = self.keys.is_of_author(doubt, author.statement.public_key)
        self.counters["forged-refused"] += not genuine
        return genuine

    def digest(self) -> bytes:
        """Digest of who is present, ourselves included."""
        at = (self.table.version, self.own.incarnation)
        if self._digest[:2] != at:
            held = [(m.node_id, m.incarnation) for m in self.table if m.state in PRESENT]
            if not self.leaving:
                held.append((self.keys.node_id, self.own.incarnation))
            self._digest = (*at, digest_of(held))
        return self._digest[2]

    # What goes out

    def some(self, count: int, wanted: Callable[[Member], bool]) -> list[Member]:
        """Draw up to `count` of the connected members."""
        members = (self.table.get(node_id) for node_id in self.peers)
        fit = [member for member in members if member is not None and wanted(member)]
        return self.rng.sample(fit, min(count, len(fit)))

    def pick(self, most: int) -> list[News]:
        """Take the news for one message."""
        return self.news.take(self.table.present + 1, most=most)

    def send(self, to: NodeId, body: Body, news: list[News] | None = None) -> None:
        """Send to a connected peer; nothing happens if it is not."""
        if to in self.peers:
            self.counters["messages_out"] += 1
            self.put(Send(to, Message(body=body, news=news or [])))

    def put(self, item: Send | Dial) -> None:
        """Leave something for the driver to do."""
        if len(self.out) >= MAX_WAITING:
            self.out.popleft()
            self.counters["dropped-out"] += 1
        self.out.append(item)

    def tell(self, event: MemberEvent) -> None:
        """Leave an event for the driver."""
        if len(self.events) >= MAX_WAITING:
            self.events.popleft()
            self.counters["dropped-events"] += 1
        self.events.append(event)
