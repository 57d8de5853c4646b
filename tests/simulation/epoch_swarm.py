"""Members that form epochs and reduce in them, over a network that shows them every fault.

Beside messages, delays and faults (`epoch_network`) the **data plane** is modelled: a result arrives some time after everybody has
begun; when a member leaves the epoch, the links of the others break.

A `Call` is what a caller of `Group.all_reduce` sees: one deadline, one outcome. With `tags`, every node also calls operations of
that many other lanes, each again and again at moments of its own; in the even ones the result needs the first member alone, as in a
broadcast, so that votes come before others have begun. With `sole` there is one caller for all of them: it calls every lane once, in an order of
its own, waits for each (and says so), and does it again. The rules checked at every step are in `epoch_checker.Checker`.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict

from gossip.collective.agreement.certificate import LANES, Certificate, Epoch
from gossip.collective.agreement.epoch_events import (
    EpochEntered,
    EpochLeft,
    EpochSettings,
    MemberAccused,
    MembersWaiting,
    OperationAborted,
    OperationCertified,
)
from gossip.collective.agreement.operation import Operation, OperationState
from tests.simulation.epoch_checker import Checker
from tests.simulation.epoch_network import EpochNetwork
from tests.simulation.epoch_node import Call, Node, identities
from transport.identity import NodeId

CALL_S = 30.0
GRACE_S = 2.0
"""Every call ends by its deadline and so much more."""


class Swarm(EpochNetwork):
    def __init__(
        self,
        count: int,
        seed: object,
        *,
        settings: EpochSettings | None = None,
        train: tuple[float, float] = (0.02, 0.15),
        wanted_rounds: int = 1 << 30,
        tags: int = 0,
        sole: bool = False,
    ) -> None:
        self.settings = settings or EpochSettings(min_members=count)
        super().__init__(
            {each.node_id: Node(seed, self.settings, each) for each in identities(count)}, seed
        )
        self.train = train
        self.wanted_rounds = wanted_rounds
        self.tags = tags
        self.sole = sole
        self.tag_pause = (0.0, 0.2)
        self.calm_s = 1.0
        """Mean time between two faults of a random run."""
        self.quiet = False
        """No more faults."""
        self.broadcast: set[tuple[bytes, int, int]] = set()
        """Operations of even lanes whose values have left the first member."""
        self.checker = Checker(quorum=self.settings.quorum)
        self.accusations: Counter[NodeId] | None = None
        """By accused; None in a world without liars, where any accusation is wrong."""

    # ---- the driver --------------------------------------------------------------------------

    def ready(self, node: Node) -> None:
        node.machine.set_ready(node.round, node.state, self.now)
        if not node.tagged:
            self.calls_tags(node)
        self.pump(node)

    def pump(self, node: Node) -> None:
        machine = node.machine
        while (event := machine.next_event()) is not None:
            self.note(node, event)
        node.remember()
        for target, message in machine.outgoing():
            self.post(node.id, target, message)
        deadline = machine.next_deadline()
        if deadline < math.inf:
            self.later(node, max(0.0, deadline - self.now), lambda: self.tick(node))
        self.try_begin(node)

    def tick(self, node: Node) -> None:
        if node.machine.next_deadline() <= self.now:
            node.machine.tick(self.now)
            self.pump(node)

    def note(self, node: Node, event: object) -> None:
        match event:
            case EpochEntered(epoch, behind, holders):
                self.checker.entered(node.id, epoch)
                node.epoch = epoch
                self.markers["entered"] += 1
                if behind:
                    self.markers["behind"] += 1
                    self.later(node, 0.02, lambda: self.fetch(node, epoch, holders))
                elif node.call is None:
                    self.train_then_call(node)
            case EpochLeft():
                if node.epoch is not None:
                    self.break_data_plane(node, node.epoch)
                node.epoch = None
            case OperationCertified(operation, certificate) if operation.lane:
                self.checker.certified(operation, certificate)
                self.tag_certified(node, operation)
            case OperationCertified(operation, certificate):
                self.checker.certified(operation, certificate)
                self.markers["certified"] += 1
                if operation.state is OperationState.ABORTED:
                    self.markers["certified late"] += 1
                self._call_ends(node, "certified")
                node.applying = True
                self.later(node, 0.004, lambda: self.applied(node, certificate))
            case OperationAborted(operation, _, mismatch):
                self.markers["aborted"] += 1
                if mismatch:
                    self.markers["mismatch"] += 1
                    self.checker.mismatch(operation)
                    self.tag_mismatch(node, operation)
            case MembersWaiting():
                self.markers["waiting"] += 1
            case MemberAccused(accused, reason):
                self.accused(node, accused, reason)

    def accused(self, node: Node, accused: NodeId, reason: str) -> None:
        if self.accusations is not None:
            self.accusations[accused] += 1
            return
        raise AssertionError(f"{node.id.short} accuses {accused.short}: {reason}")

    def applied(self, node: Node, certificate: Certificate) -> None:
        node.round += 1
        node.state = hashlib.sha256(node.state + certificate.root).digest()
        node.save()
        node.applying = False
        self.train_then_call(node)
        self.ready(node)

    def fetch(self, node: Node, epoch: Epoch, holders: tuple[NodeId, ...]) -> None:
        """From a holder that still stands there; else once more a little later."""
        if node.machine.epoch is not epoch:
            return
        if (node.round, node.state) == (epoch.round, epoch.state):
            return
        for holder in holders:
            there = self.nodes[holder]
            session = self.sessions.get(frozenset((node.id, holder)))
            if (
                holder != node.id
                and there.alive
                and session is not None
                and not session.broken
                and frozenset((node.id, holder)) not in self.cuts
                and there.paused_until <= self.now
                and (there.round, there.state) == (epoch.round, epoch.state)
            ):
                self._call_ends(node, "overtaken")
                node.round, node.state = epoch.round, epoch.state
                node.save()
                self.markers["synced"] += 1
                self.train_then_call(node)
                self.ready(node)
                return
        self.markers["holder gone"] += 1
        self.later(node, 0.2, lambda: self.fetch(node, epoch, holders))

    # ---- operations --------------------------------------------------------------------------

    def train_then_call(self, node: Node) -> None:
        if node.round < self.wanted_rounds:
            round_ = node.round
            self.later(node, self.rng.uniform(*self.train), lambda: self.calls(node, round_))

    def calls_lost(self, node: Node) -> None:
        self._call_ends(node, "crashed")
        for call in node.tagged.values():
            call.outcome = "crashed"

    def calls(self, node: Node, round_: int) -> None:
        if node.call is not None or node.round != round_ or node.applying:
            return
        call = node.call = Call(round_, self.now + CALL_S)
        self.later(node, CALL_S, lambda: self.expired(node, call))
        life = node.life

        def audit() -> None:
            if node.paused_until > call.deadline and node.paused_until + GRACE_S > self.now:
                self.at(node.paused_until + GRACE_S, audit)  # frozen then: counted from waking
                return
            assert node.life != life or call.outcome, "a call outlived its deadline"

        self.after(CALL_S + GRACE_S, audit)
        self.try_begin(node)

    def expired(self, node: Node, call: Call) -> None:
        if node.call is not call:
            return
        operation = node.machine.operation
        signed = (operation is not None and operation.root is not None) or (
            node.machine._standing.unsettled is not None
        )
        node.machine.fail("given up by its caller", self.now)
        self._call_ends(node, "indeterminate" if signed else "no certificate in time")
        self.pump(node)
        self.train_then_call(node)

    def _call_ends(self, node: Node, outcome: str) -> None:
        call, node.call = node.call, None
        if call is not None:
            assert not call.outcome, "one call, two outcomes"
            call.outcome = outcome
            self.markers[f"call {outcome}"] += 1

    # ---- operations of other lanes -------------------------------------------------------------

    def calls_tags(self, node: Node) -> None:
        """All lanes, in an order of this node's own; a sole caller then waits for them, again in its own order."""
        lanes = list(range(1, self.tags + 1))
        if self.sole:
            self.rng.shuffle(lanes)
            node.order = self.rng.sample(lanes, len(lanes))
            node.tagged = {}
        for lane in lanes:
            self.calls_tag(node, lane)

    def waits_on(self, node: Node) -> None:
        """A sole caller says what it waits for, as soon as that has begun."""
        while node.order and node.tagged[node.order[0]].outcome:
            del node.order[0]
        lane = node.order[0] if node.order else 0
        operation = node.machine._lanes.operation(lane) if lane else None
        if operation is None:
            return
        begun = {running.lane for running in node.machine.operations}
        queued = {
            number: 1
            for number, call in node.tagged.items()
            if not call.outcome and number not in begun
        }
        node.machine.wait_for(lane, queued, self.now)
        lanes = node.machine._lanes._lanes
        called = tuple(lanes[n].sequence + queued.get(n, 0) for n in range(LANES))
        self.checker.waiting(operation, node.id, called)

    def tag_mismatch(self, node: Node, operation: Operation) -> None:
        call = node.tagged[operation.lane]
        if not call.outcome and node.machine._lanes.operation(operation.lane) is None:
            node.machine.forget_unsettled(operation.lane)
            self._tag_ends(node, call, "mismatch")

    def calls_tag(self, node: Node, lane: int) -> None:
        call = node.tagged[lane] = Call(0, self.now + CALL_S, lane=lane)
        self.later(node, CALL_S, lambda: self.tag_expired(node, call))
        life = node.life

        def audit() -> None:
            if node.paused_until > call.deadline and node.paused_until + GRACE_S > self.now:
                self.at(node.paused_until + GRACE_S, audit)
                return
            assert node.life != life or call.outcome, "a call of a tag outlived its deadline"

        self.after(CALL_S + GRACE_S, audit)

    def tag_expired(self, node: Node, call: Call) -> None:
        if call.outcome:
            return
        node.machine.fail("given up by its caller", self.now, lane=call.lane)
        node.machine.forget_unsettled(call.lane)
        self._tag_ends(node, call, "no certificate in time")
        self.pump(node)

    def tag_certified(self, node: Node, operation: Operation) -> None:
        call = node.tagged[operation.lane]
        self.markers["tag certified"] += 1
        if operation.state is OperationState.ABORTED:
            self.markers["tag settled"] += 1
            assert operation in call.signed, "settled for another call"
        self.checker.goes_on(operation, node.id)
        self._tag_ends(node, call, "certified")

    def _tag_ends(self, node: Node, call: Call, outcome: str) -> None:
        assert not call.outcome, "one call of a tag, two outcomes"
        call.outcome = outcome
        self.markers[f"tag call {outcome}"] += 1

        def again() -> None:
            if node.tagged.get(call.lane) is not call:
                return
            if self.sole:
                self.calls_tags(node)
            else:
                self.calls_tag(node, call.lane)
            self.try_begin(node)

        if self.sole:
            if node.order[0] == call.lane:
                self.waits_on(node)
            if node.order:
                return  # it waits for another one, and calls nothing more
        self.later(node, self.rng.uniform(*self.tag_pause), again)

    def begin_tags(self, node: Node) -> bool:
        began = False
        for lane, call in node.tagged.items():
            if call.outcome or not node.machine.may_begin(lane):
                continue
            if call.signed:
                self._not_redone_for_nothing(node, call)
            operation = node.machine.begin(b"%032d" % lane, self.now, lane)
            self.data_plane(operation)
            if node.order and lane == node.order[0]:
                self.waits_on(node)
            began = True
        return began

    def _not_redone_for_nothing(self, node: Node, call: Call) -> None:
        """Nobody in the present epoch holds the certificate of what this node had signed last.

        Of attempts before that it holds no result any more: the later one has overwritten it.
        """
        self.markers["tag redone"] += 1
        present = node.machine.epoch
        for signed in call.signed[-1:] if self.accusations is None else ():
            for member in {*present.members} & {*signed.epoch.members} - {node.id}:
                there = self.nodes[member].machine
                held = there.certificate(signed.epoch_id, signed.lane, signed.sequence)
                assert held is None, "done again what a member of the epoch holds a certificate for"

    # ---- operations --------------------------------------------------------------------------

    def try_begin(self, node: Node) -> None:
        if not node.alive or node.paused_until > self.now:
            return
        if node.tagged and self.begin_tags(node):
            self.pump(node)
        if node.call is None or node.applying or not node.machine.can_begin:
            return
        descriptor = hashlib.sha256(b"op%d" % node.round + node.state).digest()
        operation = node.machine.begin(descriptor, self.now)
        self.checker.begins(operation.epoch, operation.sequence, node.round, node.state)
        self.pump(node)
        self.data_plane(operation)

    def running(self, member: NodeId, like: Operation) -> Operation | None:
        """That member's side of an operation, if it runs there."""
        there = self.nodes[member]
        if there.alive:
            for theirs in there.machine.operations:
                if (theirs.epoch_id, theirs.lane, theirs.sequence) == (
                    like.epoch_id,
                    like.lane,
                    like.sequence,
                ):
                    return theirs
        return None

    def data_plane(self, operation: Operation) -> None:
        """Once every member that counts has begun it, each that has gets the result after a delay of its own."""
        members = operation.epoch.members
        needed = members[:1] if operation.lane and operation.lane % 2 == 0 else members
        if (
            any(self.running(member, operation) is None for member in needed)
            and (
                operation.epoch_id,
                operation.lane,
                operation.sequence,
            )
            not in self.broadcast
        ):
            return
        if needed != members:
            self.broadcast.add((operation.epoch_id, operation.lane, operation.sequence))
        digest = hashlib.sha256(
            operation.epoch_id + b"%d/%d" % (operation.lane, operation.sequence)
        )
        for member in members:
            digest.update(member)
        root = digest.digest()
        for member in members:
            theirs = self.running(member, operation)
            if theirs is not None and theirs.state is OperationState.RUNNING:
                self.later(
                    self.nodes[member],
                    self.rng.uniform(0.001, 0.04),
                    lambda there=self.nodes[member], theirs=theirs: self.got(there, theirs, root),
                )

    def got(self, node: Node, operation: Operation, root: bytes) -> None:
        if (
            node.machine._lanes.operation(operation.lane) is operation
            and operation.state is OperationState.RUNNING
        ):
            key = (operation.epoch_id, operation.lane, operation.sequence)
            self.checker.voted.setdefault(key, self.now)
            if operation.lane:
                node.tagged[operation.lane].signed.append(operation)
            node.machine.result(root, self.now, operation.lane)
            self.pump(node)

    def break_data_plane(self, node: Node, previous: Epoch) -> None:
        """This node closes its links: its neighbours notice, if they still need them."""
        for member in previous.members:
            there = self.nodes[member]
            for theirs in there.machine.operations if member != node.id else ():
                if theirs.epoch_id == previous.id:
                    self.later(
                        there,
                        self.rng.uniform(0.001, 0.03),
                        lambda t=there, o=theirs: self.link_lost(t, o),
                    )

    def link_lost(self, node: Node, operation: Operation) -> None:
        if (
            node.machine._lanes.operation(operation.lane) is operation
            and operation.state is OperationState.RUNNING
        ):
            self.markers["link lost"] += 1
            node.machine.fail("the ring's link was closed", self.now, lane=operation.lane)
            self.pump(node)

    # ---- what tests ask ----------------------------------------------------------------------

    def rounds(self) -> list[int]:
        return [self.nodes[id_].round for id_ in self.order if self.nodes[id_].alive]

    def all_reach(self, rounds: int) -> bool:
        alive = self.rounds()
        return bool(alive) and min(alive) >= rounds

    def recovers(self, more: int = 3, within_s: float = 60.0) -> None:
        """End all faults; everybody must make progress again, on one state."""
        self.quiet = True
        self.run(max([self.now, *(node.paused_until for node in self.nodes.values())]))
        self.heal_all()
        target = max(self.rounds()) + more
        self.run(self.now + within_s, lambda: self.all_reach(target))
        assert self.all_reach(target), (self.seed, self.rounds(), self.markers)
        by_round = defaultdict(set)
        for node in self.nodes.values():
            by_round[node.round].add(node.state)
        assert all(len(states) == 1 for states in by_round.values()), "members diverged"
