"""Looking after members: probes through helpers, the last look, and the verdict (the rules are in `swim`).

A look asks `helpers` members at once and waits `probe_s`, longer while we doubt ourselves. One that fails makes a member suspect;
the last one, begun so that it ends with the member's time to refute, is what the verdict waits for. A look for which nobody knew a
way to the member is repeated with a dial of our own before anything is concluded.

Invariants: at most one look at a member at a time, at most `max_looks` at once; no verdict without a failed last look of our own;
none about a member with fresh signs of life.
"""

from __future__ import annotations

from typing import Final

import attrs

from gossip.membership.messages import MAX_HOPS, NONCE_BYTES, Ack, Gossip, Nack, Probe
from gossip.membership.relay import ProbeRelay
from gossip.membership.state import Dial, SwimState
from gossip.membership.table import PRESENT, Member, MemberState
from transport.identity import NodeId

PIGGYBACK: Final = 8
"""News on a probe and its answer."""
RETRY_LOST_S: Final = 30.0
"""Lost members are probed this often at most: a healed partition has to be noticed from one side."""


@attrs.define
class _Look:
    member: NodeId
    deadline: float
    helpers: int
    nacks: int = 0
    tried: bool = False
    direct: bool = False
    """Whether we tried to reach it ourselves as well."""
    final: bool = False
    """Whether the verdict waits for it."""


class Looks:
    """The looks of one node, and those of others that go through it."""

    def __init__(self, state: SwimState) -> None:
        self._state = state
        self._looks: dict[bytes, _Look] = {}
        self._turns: list[NodeId] = []  # who is probed next
        settings = self._state.settings
        self._relay = ProbeRelay(settings.max_relayed, settings.probe_s, self._state.rng)

    def next_deadline(self) -> float:
        """When `tick` is due."""
        due = self._relay.next_deadline()
        for look in self._looks.values():
            due = min(due, look.deadline)
        for member in self._state.doubted.values():
            due = min(due, self._check_at(member))
        return due

    def tick(self, now: float) -> None:
        """End the looks whose time is over, and judge those who had theirs."""
        for to, nack in self._relay.expire(now):
            self._state.send(to, nack)
        for nonce in [nonce for nonce, look in self._looks.items() if now >= look.deadline]:
            self._look_failed(self._looks.pop(nonce), now)
        for member in list(self._state.doubted.values()):
            self._judge(member, now)

    def shift(self, late_s: float) -> None:
        """Give all answers that much longer."""
        for look in self._looks.values():
            look.deadline += late_s

    # Looks of ours

    def begin(
        self, member: Member, now: float, *, direct: bool = False, final: bool = False
    ) -> bool:
        """Ask helpers about a member; without any, it has failed already.

        Returns:
            Whether it began: not if there are too many.
        """
        if len(self._looks) >= self._state.settings.max_looks:
            self._state.counters["looks-put-off"] += 1
            return False
        helpers = self._state.some(
            self._state.settings.helpers,
            lambda other: other is not member and other.state is MemberState.ALIVE,
        )
        via = self._state.table.get(member.via) if member.via else None
        if helpers and via is not None and via.connected and via not in helpers:
            helpers[0] = via
        nonce = self._state.rng.randbytes(NONCE_BYTES)
        wait_s = self._patience_s(member) if helpers or direct else 0.0
        self._looks[nonce] = _Look(
            member.node_id, now + wait_s, len(helpers), direct=direct, final=final
        )
        member.look = nonce
        member.looked_at = now
        self._state.counters["looks"] += 1
        probe = Probe(self._state.keys.node_id, member.node_id, nonce, MAX_HOPS)
        for helper in helpers:
            self._state.send(helper.node_id, probe, self._state.pick(PIGGYBACK))
        if direct:
            if member.connected:
                self._state.send(member.node_id, probe)
            else:
                self._state.put(Dial(member.node_id))
        return True

    def hurry(self, member: Member, now: float) -> None:
        """Begin the last look at a member that others have given up, in place of one that we were patient with."""
        under_way = self._looks.get(member.look) if member.look else None
        if under_way is None:
            return  # then `tick` begins it
        if under_way.final:
            under_way.deadline = min(under_way.deadline, now + self._patience_s(member))
            return
        assert member.look is not None
        del self._looks[member.look]
        member.look = None
        self.begin(member, now, direct=True, final=True)

    def _patience_s(self, member: Member) -> float:
        """How long a look at a member may take: longer while we doubt ourselves, unless others have given it up."""
        given_up = member.suspicion is not None and member.suspicion.given_up
        return self._state.settings.probe_s * (1 if given_up else self._state.health.multiplier)

    def _look_failed(self, look: _Look, now: float) -> None:
        member = self._state.table.get(look.member)
        self._state.health.worse(now, max(0, look.helpers - look.nacks))
        if member is None:
            return
        member.look = None
        if self._state.is_fresh(member, now):
            return
        if member.state is MemberState.ALIVE:
            if not (look.tried or look.direct or member.connected):
                self.begin(member, now, direct=True)  # nobody knew a way: that says nothing of it
                return
            self._state.suspect(member, self._why(member, look, now), now)
        doubted = member.suspicion
        if doubted is None:
            return  # lost, and still no answer
        if look.final:
            doubted.verdict_after = now
        if doubted.own:
            return
        doubted.own = True
        doubted.why = self._why(member, look, now)
        if now < doubted.deadline and len(doubted.authors) <= doubted.wanted:
            doubt = self._state.keys.doubt(member.node_id, member.incarnation, lost=False)
            self._state.news.add(doubt)
            self._state.send(member.node_id, Gossip(), [doubt])

    def _why(self, member: Member, look: _Look, now: float) -> str:
        if member.connected:
            why = f"silent for {now - (member.evidence_at or now):.1f} s"
        else:
            why = member.gap or "not connected"
        through = f"through {look.helpers} others" if look.helpers else "and nobody else to ask"
        return f"{why}, no answer {through}"

    def probed(self, sender: NodeId, probe: Probe, now: float) -> None:
        """Answer a probe that is for us, pass on any other."""
        if probe.target == self._state.keys.node_id:
            if not self._state.leaving:
                self._state.send(
                    sender,
                    self._state.keys.ack(probe.asker, probe.nonce),
                    self._state.pick(PIGGYBACK),
                )
            return
        target = self._state.table.get(probe.target)
        peers = [
            node
            for node in self._state.peers
            if node != sender
            and (member := self._state.table.get(node))
            and member.state in PRESENT
        ]
        passed = self._relay.pass_on(sender, probe, peers, now, target.via if target else None)
        if passed is not None:
            self._state.counters["probes_passed_on"] += 1
            self._state.send(*passed, self._state.pick(PIGGYBACK))

    def acked(self, sender: NodeId, ack: Ack, now: float) -> None:
        """Take the answer of a member, or pass it back."""
        look = self._looks.get(ack.nonce)
        target = self._state.table.get(ack.target)
        if target is not None and sender != ack.target:
            target.via = sender
        if look is None or ack.asker != self._state.keys.node_id:
            for to, answer in self._relay.answered(ack):
                self._state.send(to, answer)
            return
        member = self._state.table.get(look.member)
        if member is None or ack.target != look.member:
            return
        if not self._state.keys.answers(ack, member.statement.public_key):
            self._state.counters["forged-refused"] += 1
            return
        del self._looks[ack.nonce]
        member.look = None
        self._state.health.better()
        self._state.evidence(member, now, now)

    def nacked(self, nack: Nack) -> None:
        """Note that a helper is well, or pass that back."""
        look = self._looks.get(nack.nonce)
        if look is None:
            for to, answer in self._relay.answered(nack):
                self._state.send(to, answer)
        elif nack.asker == self._state.keys.node_id:
            look.nacks = min(look.helpers, look.nacks + 1)
            look.tried = look.tried or nack.tried

    # Verdict

    def _check_at(self, member: Member) -> float:
        """When the next step of a doubt is due: the last look, then the verdict."""
        doubted = member.suspicion
        if doubted is None or member.look is not None:
            return float("inf")  # the end of the look is a deadline of its own
        if doubted.verdict_after:
            return doubted.deadline
        return doubted.deadline - self._patience_s(member)

    def _judge(self, member: Member, now: float) -> None:
        doubted = member.suspicion
        if doubted is None or now < self._check_at(member):
            return
        if not doubted.verdict_after:
            if not self.begin(member, now, direct=True, final=True):
                doubted.started = now  # too many at once: it gets another turn
            return
        if self._state.is_fresh(member, now):
            self._state.turn(member, MemberState.ALIVE, "", now)
            return
        others = len(doubted.authors)
        agreed = f"; {others} other{'s' * (others != 1)} say so too" if others else ""
        self._state.counters["evicted"] += 1
        self._state.turn(member, MemberState.LOST, doubted.why + agreed, now)
        if len(doubted.lost_by) <= doubted.wanted:  # else everybody has heard it from enough others
            doubt = self._state.keys.doubt(member.node_id, member.incarnation, lost=True)
            self._state.news.add(doubt)

    # Members in turn

    def probe_next(self, now: float) -> None:
        """Look after one of those we are not connected to, in an order drawn anew each round (SWIM, section 4.3)."""
        for _ in range(len(self._turns) + 1):
            if not self._turns:
                self._turns = [
                    m.node_id
                    for m in self._state.table
                    if not m.connected and m.state is not MemberState.LEFT
                ]
                self._state.rng.shuffle(self._turns)
                if not self._turns:
                    return
            member = self._state.table.get(self._turns.pop())
            if member is None or member.connected or member.look is not None:
                continue
            if member.state in (MemberState.LEFT, MemberState.SUSPECT):
                continue  # a suspect gets its last look in time
            if member.state is MemberState.LOST and now - member.looked_at < RETRY_LOST_S:
                continue
            self.begin(member, now)
            return
