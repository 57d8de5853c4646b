"""Members that lie, stall or flood: the honest ones go on, on their own state, and say who it was."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable

import msgspec
import pytest

from gossip.collective.agreement.certificate import Ballot, Certificate, Epoch, accept_statement
from gossip.collective.agreement.epoch_events import EpochSettings
from gossip.collective.agreement.former import MAX_ATTEMPT
from gossip.collective.agreement.lineage import Link
from gossip.collective.agreement.messages import (
    Accept,
    Message,
    Prepare,
    Promise,
    Propose,
    Vote,
    Wait,
)
from tests.simulation.epoch_node import fast_signatures  # noqa: F401
from tests.simulation.epoch_swarm import Swarm
from transport.identity import NodeId

RUN = b"r" * 32
LIE = hashlib.sha256(b"a state of the liar's choice").digest()

Tamper = Callable[[Swarm, Message], list[Message]]


def liar_of(swarm: Swarm) -> NodeId:
    return swarm.order[1]


def hostile(count: int, tamper: Tamper, seed: str, **settings: object) -> Swarm:
    """A swarm in which one member's messages are what `tamper` makes of them."""
    swarm = Swarm(count, seed, settings=EpochSettings(min_members=count, **settings))
    swarm.accusations = Counter()
    liar = liar_of(swarm)
    swarm.tamper = lambda source, _target, message: (
        tamper(swarm, message) if source == liar else [message]
    )
    return swarm


def honest(swarm: Swarm) -> list[NodeId]:
    return [node for node in swarm.order if node != liar_of(swarm)]


def assert_honest_go_on(swarm: Swarm, within_s: float, more: int = 8) -> None:
    """The honest members reach so many more rounds, on one state that nobody made up."""
    nodes = [swarm.nodes[node] for node in honest(swarm) if swarm.nodes[node].alive]
    target = max(node.round for node in nodes) + more
    swarm.run(swarm.now + within_s, lambda: min(node.round for node in nodes) >= target)
    assert min(node.round for node in nodes) >= target, [node.round for node in nodes]
    assert max(node.round for node in nodes) < target + 1000, "nobody believed a made-up position"
    assert all(node.state != LIE for node in nodes)


def crash_one(swarm: Swarm) -> None:
    """So that an epoch has to be formed with the liar awake."""
    victim = honest(swarm)[-1]
    swarm.crash(victim)
    swarm.after(2.0, lambda: swarm.restart(victim))


def claims_progress(swarm: Swarm, message: Message) -> list[Message]:
    if isinstance(message, Promise):
        return [msgspec.structs.replace(message, round=10**6, state=LIE)]
    return [message]


def founds_its_own(swarm: Swarm, message: Message) -> list[Message]:
    """A made-up epoch of which it is the only member: all of its signatures are good."""
    if not isinstance(message, Promise):
        return [message]
    identity = swarm.nodes[liar_of(swarm)].identity
    epoch = Epoch(RUN, Ballot(900, 0, identity.node_id), (identity.node_id,), bytes(32), 10**6, LIE)
    signature = identity.sign(accept_statement(epoch.id))
    link = Link(
        epoch.ballot, bytes(32), 10**6, LIE, epoch.salt, (identity.public_key,), (signature,)
    )
    return [
        msgspec.structs.replace(message, round=10**6, state=LIE, links=(link,), certificate=None)
    ]


def forges_links(swarm: Swarm, message: Message) -> list[Message]:
    """The true last epoch, but starting where the liar wants: nobody signed that."""
    if not isinstance(message, Promise) or not message.links:
        return [message]
    link = message.links[-1]
    forged = msgspec.structs.replace(link, round=10**6, state=LIE)
    return [msgspec.structs.replace(message, round=10**6, state=LIE, links=(forged,))]


def forges_certificate(swarm: Swarm, message: Message) -> list[Message]:
    if not isinstance(message, Promise) or message.certificate is None:
        return [message]
    real = message.certificate
    forged = Certificate(real.epoch, 10**6, real.descriptor, LIE, real.signatures)
    return [msgspec.structs.replace(message, round=10**6, state=LIE, certificate=forged)]


def proposes_its_own(swarm: Swarm, message: Message) -> list[Message]:
    """As a proposer: a start that nobody proved and only it holds."""
    if not isinstance(message, Propose):
        return [message]
    index = message.members.index(liar_of(swarm))
    alone = (1 << index).to_bytes(len(message.holders), "little")
    return [msgspec.structs.replace(message, round=10**6, state=LIE, holders=alone)]


def signs_nonsense(swarm: Swarm, message: Message) -> list[Message]:
    if isinstance(message, Accept):
        return [msgspec.structs.replace(message, signature=b"\x01" * 64)]
    return [message]


def votes_nonsense(swarm: Swarm, message: Message) -> list[Message]:
    if isinstance(message, Vote):
        return [msgspec.structs.replace(message, signature=b"\x01" * 64)]
    return [message]


@pytest.mark.parametrize("count", [3, 5])
@pytest.mark.parametrize(
    ("tamper", "caught"),
    [
        (claims_progress, False),  # nothing to show for it: it is not counted, and that is all
        (founds_its_own, False),
        (forges_links, True),
        (forges_certificate, True),
        (proposes_its_own, False),
        (signs_nonsense, True),
        (votes_nonsense, True),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_liar_moves_nobody(count: int, tamper: Tamper, *, caught: bool) -> None:
    swarm = hostile(count, tamper, f"liar/{count}/{tamper.__name__}")
    active = [tamper in {signs_nonsense, votes_nonsense}]
    inner = swarm.tamper
    swarm.tamper = lambda s, t, m: inner(s, t, m) if active[0] else [m]
    if not active[0]:
        swarm.start()
        swarm.run(20, lambda: swarm.all_reach(3))
        active[0] = True
    else:
        active[0] = False
        swarm.start()
        swarm.run(20, lambda: swarm.all_reach(3))
        active[0] = True
    for _ in range(2):
        crash_one(swarm)
        swarm.run(swarm.now + 6.0)
    assert_honest_go_on(swarm, 90)
    assert swarm.accusations is not None
    assert set(swarm.accusations) <= {liar_of(swarm)}, "nobody honest is accused"
    if caught:
        assert swarm.accusations[liar_of(swarm)] >= 1
    starts = [epoch.round for epoch in swarm.checker.epochs.values()]
    assert max(starts) < 10**6


def test_a_newcomer_that_lies_moves_nobody() -> None:
    """It was in no epoch, and shows one of its own with a million rounds in it."""
    swarm = hostile(
        4,
        founds_its_own,
        "newcomer",
    )
    swarm.settings = EpochSettings(min_members=3)
    liar = swarm.nodes[liar_of(swarm)]
    for node in swarm.nodes.values():
        node.machine = node._new_machine()
    liar.alive = False
    swarm.start()
    swarm.run(20, lambda: min(swarm.rounds()) >= 3)
    swarm.restart(liar.id)
    assert_honest_go_on(swarm, 60)
    assert max(epoch.round for epoch in swarm.checker.epochs.values()) < 10**6


def test_one_that_always_asks_to_wait_delays_survivors_for_less_than_a_second() -> None:
    def waits(_swarm: Swarm, message: Message) -> list[Message]:
        return [Wait(message.ballot)] if isinstance(message, Promise) else [message]

    swarm = hostile(5, waits, "waits")
    swarm.start()
    swarm.run(20, lambda: swarm.all_reach(3))
    swarm.crash(honest(swarm)[-1])
    began = swarm.now
    left = [node for node in honest(swarm) if swarm.nodes[node].alive]
    rounds = max(swarm.nodes[node].round for node in left)
    swarm.run(began + 30, lambda: min(swarm.nodes[node].round for node in left) > rounds + 1)
    assert swarm.now - began < 8.0


@pytest.mark.parametrize("leap", [1, 7, MAX_ATTEMPT])
def test_one_that_asks_for_ever_higher_ballots_stops_nobody(leap: int) -> None:
    swarm = hostile(4, lambda _swarm, message: [message], f"ballots/{leap}")
    swarm.start()
    swarm.run(20, lambda: swarm.all_reach(3))
    liar = swarm.nodes[liar_of(swarm)]
    asked = Counter[str]()

    def flood() -> None:
        number = max(node.machine._standing.number for node in swarm.nodes.values()) + 1
        attempt = min(asked["n"] * leap, MAX_ATTEMPT)
        asked["n"] += 1
        for other in honest(swarm):
            swarm.post(liar.id, other, Prepare(Ballot(number, attempt, liar.id)))
        if asked["n"] < 2000:
            swarm.after(0.05, flood)

    flood()
    crash_one(swarm)
    assert_honest_go_on(swarm, 100)


def test_one_whose_links_fail_again_and_again_is_left_out() -> None:
    """It signs every epoch and opens no link: its neighbours in the ring cannot begin."""
    swarm = hostile(4, lambda _swarm, message: [message], "links")
    liar = liar_of(swarm)
    data_plane = swarm.data_plane

    def connects(operation: object) -> None:
        members = operation.epoch.members
        if liar not in members:
            data_plane(operation)
            return
        at = members.index(liar)
        for neighbour in {members[at - 1], members[(at + 1) % len(members)]} - {liar}:
            node = swarm.nodes[neighbour]

            def fails(node: object = node, epoch: object = operation.epoch) -> None:
                if node.machine.epoch is epoch:
                    node.machine.break_epoch("no ring connection", swarm.now, suspects=[liar])
                    swarm.pump(node)

            swarm.later(node, 0.3, fails)

    swarm.data_plane = connects
    swarm.start()
    assert_honest_go_on(swarm, 60, more=20)
    assert swarm.accusations is not None
    assert set(swarm.accusations) == {liar}
    assert swarm.nodes[liar].round == 0


def test_two_that_never_reach_each_other_cost_the_others_little() -> None:
    """A pair without a path: one of the two is left out, and asked again less and less often."""
    swarm = Swarm(4, "pair")
    a, b = swarm.order[0], swarm.order[2]
    swarm.start()
    swarm.run(20, lambda: swarm.all_reach(3))
    swarm.cut([(a, b)], 1e6)
    swarm.run(swarm.now + 20)
    epochs, operations = len(swarm.checker.epochs), swarm.markers["certified"]
    swarm.run(swarm.now + 40)
    made, done = len(swarm.checker.epochs) - epochs, swarm.markers["certified"] - operations
    assert made <= 10, "it must not form epochs again and again"
    assert done >= 3 * 120, "three of them go on at nearly full speed"


def test_one_that_steps_back_and_forth_is_a_newcomer_each_time_and_no_more() -> None:
    swarm = hostile(4, lambda _swarm, message: [message], "toggles")
    swarm.start()
    swarm.run(20, lambda: swarm.all_reach(3))
    liar = swarm.nodes[liar_of(swarm)]

    def toggle() -> None:
        liar.machine.set_not_ready("so", swarm.now)
        swarm.pump(liar)
        swarm.after(0.5, lambda: (swarm.ready(liar), swarm.after(1.0, toggle)))

    toggle()
    assert_honest_go_on(swarm, 60, more=30)


def test_a_member_that_forgot_does_not_make_a_majority() -> None:
    """Two of five with one that lost its disk: the other three may be going on without them."""
    swarm = Swarm(5, "forgot")
    swarm.start()
    swarm.run(20, lambda: swarm.all_reach(3))
    a, b, c, d, e = swarm.order
    swarm.cut([(x, y) for x in (a, b, c) for y in (d, e)], 1e6)
    swarm.run(swarm.now + 10)
    ahead = swarm.nodes[a].round
    assert ahead > swarm.nodes[d].round
    swarm.crash(c)
    node = swarm.nodes[c]
    node.disk = type(node.disk)()
    for x in (a, b):
        swarm.cut([(x, c)], 1e6)
        swarm.sessions.pop(frozenset((x, c)), None)
    for x in (d, e):
        swarm.heal(x, c)
    swarm.restart(c)
    swarm.run(swarm.now + 30)
    assert swarm.nodes[a].round > ahead, "those that remember are a majority of the last epoch"
    assert swarm.nodes[d].round < ahead
    assert not swarm.nodes[d].machine.can_begin
