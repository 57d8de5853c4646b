"""Laws of the membership core, with direct calls and generated histories; simulated swarms are next door."""

from __future__ import annotations

import random

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossip.membership.messages import Alive, Doubt, Gossip, Left, Message, Sync
from gossip.membership.settings import LAN
from gossip.membership.swim import Dial, Swim
from gossip.membership.table import MemberState
from tests.gossip.swim_world import World

ALIVE, SUSPECT, LEFT, LOST = MemberState


def pair() -> tuple[World, Swim, Swim]:
    world = World(1, 2)
    return world, world.nodes[0].swim, world.nodes[1].swim


def tell(swim: Swim, sender, news, now: float, body=None) -> None:
    swim.receive(sender, Message(body=body or Gossip(), news=[news]), now)


def sent(swim: Swim) -> list:
    return [item for item in swim.outgoing() if not isinstance(item, Dial)]


# Own word


def test_a_member_becomes_known_by_its_own_signed_word():
    world, a, _ = pair()
    keys = world.keys(77)
    genuine = keys.alive(5, "new")
    tell(a, world.nodes[1].id, attrs.evolve(keys, sign=lambda _: b"x" * 64).alive(5, "new"), 0.1)
    assert a.member(keys.node_id) is None
    assert a.counters["forged-refused"] == 1
    tell(a, world.nodes[1].id, genuine, 0.1)
    view = a.member(keys.node_id)
    assert (view.state, view.name, view.incarnation, view.heard_at) == (ALIVE, "new", 5, None)
    assert a.next_event().before is None


def test_nobody_can_say_goodbye_for_somebody_else():
    world, a, b = pair()
    said = b._state.keys.left(2000, "bye")
    tell(a, world.nodes[1].id, Left(said.public_key, 2001, said.reason, said.signature), 0.1)
    assert a.member(world.nodes[1].id).state is ALIVE
    tell(a, world.nodes[1].id, said, 0.2)
    view = a.member(world.nodes[1].id)
    assert (view.state, view.reason, view.since) == (LEFT, "bye", 0.2)


def test_an_old_goodbye_does_not_send_away_who_came_back():
    world, a, b = pair()
    goodbye, back = b._state.keys.left(1001, "bye"), b._state.keys.alive(1002, "n1")
    for said in (goodbye, back, goodbye):
        tell(a, world.nodes[1].id, said, 0.1)
    assert a.member(world.nodes[1].id).state is ALIVE


def test_a_restarted_member_outbids_its_former_life_even_with_its_clock_set_back():
    _, a, b = pair()
    former = b._state.keys.left(9000, "bye")
    tell(b, a.node_id, former, 0.1)
    assert b.incarnation == 9001
    tell(b, a.node_id, b._state.keys.alive(9000, "n1"), 0.1)
    assert b.incarnation == 9001
    forged = Alive(former.public_key, 10000, "n1", b"x" * 64)
    tell(b, a.node_id, forged, 0.1)
    assert b.incarnation == 9001


# Doubt


def test_who_is_doubted_refutes_with_a_higher_incarnation():
    _, a, b = pair()
    sent(b)
    tell(b, a.node_id, a._state.keys.doubt(b.node_id, b.incarnation, lost=False), 0.1)
    assert b.incarnation == 1001
    assert [item.message.news[0].incarnation for item in sent(b)] == [1001]
    # An older doubt costs an answer, and no incarnation; one about the future is nobody's.
    tell(b, a.node_id, a._state.keys.doubt(b.node_id, 1000, lost=False), 0.2)
    tell(b, a.node_id, a._state.keys.doubt(b.node_id, 5000, lost=False), 0.2)
    assert b.incarnation == 1001


def test_a_doubt_needs_its_authors_signature():
    world = World(1, 4)
    a, subject, liar = (node.swim for node in world.nodes[:3])
    a.disconnected(subject.node_id, "cut", 0.01)
    a.heard(subject.node_id, 0.0, 0.01)
    forged = Doubt(subject.node_id, 1000, world.nodes[3].id, False, b"x" * 64)
    tell(a, liar.node_id, forged, 0.02)
    tell(a, liar.node_id, world.keys(99).doubt(subject.node_id, 1000, lost=True), 0.02)
    assert a.member(subject.node_id).state is ALIVE
    tell(a, liar.node_id, liar._state.keys.doubt(subject.node_id, 1000, lost=True), 0.02)
    assert a.member(subject.node_id).state is SUSPECT


def test_a_doubt_about_a_member_that_is_heard_is_told_to_it_and_goes_no_further():
    world = World(1, 4)
    a, subject, liar = (node.swim for node in world.nodes[:3])
    sent(a)
    claim = liar._state.keys.doubt(subject.node_id, 1000, lost=True)
    for _ in range(3):
        tell(a, liar.node_id, claim, 0.1)
    out = sent(a)
    assert [(item.to, item.message.news) for item in out] == [(subject.node_id, [claim])]
    assert a.member(subject.node_id).state is ALIVE
    assert len(a._state.news) == 0


def test_two_nodes_that_lose_each_other_say_so_with_the_reason():
    world, a, _ = pair()
    world.run(3.0)
    world.kill(world.nodes[1])
    world.run(8.0)
    view = a.member(world.nodes[1].id)
    assert (view.state, view.reason) == (
        LOST,
        "connection reset, no answer and nobody else to ask",
    )


def test_an_idle_connection_that_is_closed_says_nothing_about_the_member():
    _, a, b = pair()
    a.disconnected(b.node_id, "closed here: idle", 0.1, orderly=True)
    assert a.member(b.node_id).state is ALIVE
    assert a.counters["looks"] == 0


def test_a_new_connection_brings_a_lost_member_back_and_it_refutes_for_all():
    world, a, b = pair()
    world.run(3.0)
    world.cut = lambda _one, _other: True
    world.run(15.0)
    assert a.member(b.node_id).state is LOST
    world.cut = lambda _one, _other: False
    world.run(20.0)
    assert a.member(b.node_id).state is ALIVE
    assert b.member(a.node_id).state is ALIVE
    assert a.member(b.node_id).incarnation > 1000


def test_leaving_is_told_to_everybody_and_nothing_is_refuted_after_it():
    world = World(1, 4)
    a, b = world.nodes[0], world.nodes[1].swim
    a.swim.leave("done", 0.0)
    a.swim.leave("again", 0.0)
    assert a.swim.leaving
    world._flush(a)
    world.run(1.0)
    assert [world.state(node, a) for node in world.nodes[1:]] == [LEFT] * 3
    assert b.member(a.id).reason == "done"
    tell(a.swim, b.node_id, b._state.keys.doubt(a.id, a.swim.incarnation, lost=False), 1.0)
    assert a.swim.incarnation == 1001


# Our own stalls


def test_time_in_which_our_own_loop_stood_still_is_nobodys_silence():
    world = World(2, 4)
    world.run(5.0)
    a = world.nodes[0]
    world.stall(a, 60.0)
    world.run(66.0)
    assert a.swim.counters["stalls"] == 1
    assert not [entry for entry in world.suspected if entry[1] == a.name]
    assert a.swim.health.score > 0


def test_a_late_timer_is_noticed_whoever_comes_first():
    _, a, b = pair()
    due = a.next_deadline()
    a.heard(b.node_id, 0.0, due + 3.0)
    a.receive(b.node_id, Message(body=Gossip()), due + 3.0)
    a.tick(due + 3.0)
    assert a.counters["stalls"] == 1
    assert a.health.score == 4
    assert not a._state.doubted


# Bounds


def test_a_flood_of_messages_is_dropped_and_counted():
    _, a, b = pair()
    for _ in range(1000):
        a.receive(b.node_id, Message(body=Gossip()), 0.1)
    assert a.counters["dropped-too-many"] >= 500
    a.receive(World(3, 3).nodes[2].id, Message(body=Gossip()), 0.1)
    assert a.counters["dropped-not-connected"] == 1


def test_a_table_is_told_to_a_peer_only_every_other_second():
    _, a, b = pair()
    sent(a)
    for _ in range(10):
        a.receive(b.node_id, Message(body=Sync(b"d" * 32, True)), 0.1)
    assert sum(len(item.message.news) for item in sent(a)) <= 2


@given(st.integers(0, 2**32), st.integers(2, 400))
@settings(max_examples=15)
def test_more_identities_than_the_table_holds_keep_no_contact_out(seed, strangers):
    world = World(seed, 3, settings=attrs.evolve(LAN, max_members=16))
    a, b = world.nodes[0].swim, world.nodes[1]
    for number in range(strangers):
        tell(a, b.id, world.keys(1000 + number).alive(1, "x"), 0.1 * number)
    assert len(a.members()) <= 16
    assert a.member(b.id).state is ALIVE


# Generated histories


@given(st.integers(0, 2**32), st.data())
@settings(max_examples=25)
def test_incarnations_rise_and_a_liar_with_stalls_beside_it_evicts_nobody(seed, data):
    """Five nodes that stall up to three seconds at will, and a member that says whatever it likes about them."""
    world = World(seed, 6)
    world.run(1.5)
    *honest, liar = world.nodes
    highest = [0] * 6
    for _ in range(data.draw(st.integers(1, 12))):
        subject = data.draw(st.sampled_from(honest))
        witness = data.draw(st.sampled_from(honest))
        inc = data.draw(st.integers(-2, 2)) + subject.swim.incarnation
        claim = liar.keys.doubt(subject.id, inc, lost=data.draw(st.booleans()))
        if data.draw(st.booleans()) and subject.stalled_until < world.now - 1.2:
            world.stall(subject, data.draw(st.floats(0.1, 3.0)))
        if witness is not subject and witness.stalled_until <= world.now:
            tell(witness.swim, liar.id, claim, world.now)
            world._flush(witness)
        world.run(world.now + data.draw(st.floats(0.01, 2.0)))
        for node in world.nodes:
            assert node.swim.incarnation >= highest[node.name]
            highest[node.name] = node.swim.incarnation
    world.run(world.now + 8.0)
    assert world.false_evictions() == []
    assert all(world.state(a, b) is ALIVE for a in honest for b in honest if a is not b)


@given(st.integers(0, 2**32), st.data())
@settings(max_examples=25)
def test_no_history_raises_and_everything_stays_bounded(seed, data):
    """Connections, silences, goodbyes, hostile news and jumps of time, in any order."""
    world = World(seed, 5)
    a = world.nodes[0].swim
    rng = random.Random(seed)
    for _ in range(data.draw(st.integers(1, 40))):
        other = data.draw(st.sampled_from(world.nodes[1:]))
        act = data.draw(st.integers(0, 6))
        world.now += data.draw(st.floats(0, 3))
        if act == 0:
            a.disconnected(other.id, "cut", world.now, orderly=data.draw(st.booleans()))
        elif act == 1:
            a.connected(other.id, world.now)
        elif act == 2:
            a.heard(other.id, world.now - data.draw(st.floats(0, 5)), world.now)
        elif act == 3:
            inc = data.draw(st.integers(999, 1004))
            made = rng.choice([other.keys.alive(inc, "x"), other.keys.left(inc, "y")])
            tell(a, data.draw(st.sampled_from(world.nodes[1:])).id, made, world.now)
        elif act == 4:
            about = data.draw(st.sampled_from(world.nodes)).id
            inc = data.draw(st.integers(999, 1004))
            tell(
                a, other.id, other.keys.doubt(about, inc, lost=data.draw(st.booleans())), world.now
            )
        else:
            a.tick(world.now)
        for item in sent(a):
            assert item.to in a._state.peers
        doubted = {m.node_id for m in a._state.table if m.state is SUSPECT}
        assert doubted == set(a._state.doubted)
        assert len(a._looks._looks) <= 4
        for view in a.members():
            assert (view.state is ALIVE) == (view.reason == "")


def test_after_a_tick_the_next_deadline_lies_ahead():
    world = World(5, 6)
    world.run(3.0)
    world.kill(world.nodes[1], frozen=True)
    a = world.nodes[0]
    while world.now < 12:
        world.run(max(a.swim.next_deadline(), world.now) + 1e-6)
        assert a.swim.next_deadline() > world.now - 1e-6
    assert world.state(a, world.nodes[1]) is LOST


@pytest.mark.parametrize("reason", ["", "x" * 64])
def test_a_goodbye_always_has_a_reason_to_show(reason):
    world, a, b = pair()
    tell(a, world.nodes[1].id, b._state.keys.left(3000, reason), 0.1)
    assert a.member(b.node_id).reason == (reason or "left")
