"""The small parts of membership: time to refute, self-doubt, news that stops by itself, probes passed on, the wire."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.errors import InvalidSettings
from gossip.membership.dissemination import BUDGET_BYTES, Dissemination, times
from gossip.membership.local_health import LATE_S, MOST, LocalHealth
from gossip.membership.messages import (
    MAX_HOPS,
    MAX_INCARNATION,
    MAX_MESSAGE_BYTES,
    MAX_NEWS,
    Ack,
    Alive,
    Doubt,
    Gossip,
    Left,
    Message,
    Nack,
    Probe,
    Sync,
    decode,
    digest_of,
    encode,
    size_of,
)
from gossip.membership.relay import ProbeRelay
from gossip.membership.settings import LAN, WAN, SwimSettings
from gossip.membership.suspicion import Suspicion, wait_s
from gossip.membership.table import Member, MemberState, Table
from transport.codec import pack
from transport.errors import MalformedMessage
from transport.identity import NodeId


def node(number: int) -> NodeId:
    return NodeId(bytes([number]) * 32)


def alive(number: int, incarnation: int = 1, name: str = "n") -> Alive:
    return Alive(bytes([number]) * 32, incarnation, name, b"s" * 64)


def doubt(member: int, author: int, incarnation: int = 1) -> Doubt:
    return Doubt(node(member), incarnation, node(author), False, b"s" * 64)


# Time to refute


@pytest.mark.parametrize(
    ("confirmations", "seconds"), [(0, 30.0), (1, 14.0), (2, 4.64), (3, 2.0), (4, 2.0)]
)
def test_confirmations_shorten_the_wait_on_a_logarithmic_scale(confirmations, seconds):
    # The numbers are those of the paper's formula with k = 3, worked out by hand: 30 - 28 log(c+1)/log 4.
    expected = {1: 30 - 28 * 0.5, 2: 30 - 28 * 0.792481}.get(confirmations, seconds)
    assert wait_s(confirmations, 3, 2.0, 30.0) == pytest.approx(expected, abs=1e-4)


def test_nobody_to_confirm_means_the_short_wait():
    assert wait_s(0, 0, 2.0, 30.0) == 2.0


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), max_size=30))
def test_an_author_counts_once_and_only_shortens(claims):
    doubted = Suspicion(10.0, 3, 2.5, 5.0, "why", own=True)
    deadline = doubted.deadline
    for author, lost in claims:
        needed = doubted.needs(bytes([author]), lost=lost)
        assert doubted.confirm(bytes([author]), lost=lost) == needed
        assert doubted.deadline <= deadline
        deadline = doubted.deadline
        assert len(doubted.authors) <= 4
        assert len(doubted.lost_by) <= 4
    authors = {author for author, _ in claims}
    if len({author for author, lost in claims if lost}) < 3:
        assert deadline == 10.0 + wait_s(min(len(authors), 4), 3, 2.5, 5.0)


def test_in_a_small_swarm_no_word_of_others_cuts_the_wait_below_the_shortest():
    doubted = Suspicion(10.0, 2, 2.5, 5.0, "why")
    for author in (b"a", b"b", b"c"):
        doubted.confirm(author, lost=True)
    assert doubted.deadline == 12.5


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(InvalidSettings):
        SwimSettings(quiet_s=1, probe_s=1, doubt_s=3, doubt_alone_s=2, gossip_s=1)
    with pytest.raises(InvalidSettings):
        SwimSettings(quiet_s=0, probe_s=1, doubt_s=3, doubt_alone_s=4, gossip_s=1)


def test_the_presets_keep_their_promises_on_paper():
    for preset, most_s, stall_s in ((LAN, 5.0, 3.0), (WAN, 15.0, 7.0)):
        detection_s = preset.quiet_s + preset.probe_s + preset.doubt_s
        assert detection_s + preset.gossip_s <= most_s
        assert detection_s > stall_s + 1.0  # a stall and a heartbeat


# Self-doubt


@given(st.lists(st.floats(0, 5), max_size=40))
def test_the_score_stays_in_its_bounds_and_falls_with_calm(lates):
    now = 0.0
    health = LocalHealth(now)
    for late in lates:
        now += 1.0 + late
        assert health.late(late, now) == (late >= LATE_S)
        assert 0 <= health.score <= MOST
        assert health.multiplier == health.score + 1
    health.calm(now + MOST * 1.0 + 0.01)
    assert health.score == 0


def test_answers_and_missing_ones_move_the_score():
    health = LocalHealth(0.0)
    health.worse(0.0, 2)
    health.worse(0.0, 0)
    assert health.score == 2
    health.better()
    assert health.score == 1


# News


def test_each_piece_is_told_lambda_log_n_times_and_then_never_again():
    news = Dissemination(3.0, 100)
    news.add(alive(1))
    for _ in range(times(3.0, 8)):
        assert news.take(8) == [alive(1)]
    assert news.take(8) == []
    assert times(3.0, 8) == 7
    assert times(3.0, 500) == 19


def test_new_news_goes_first():
    news = Dissemination(3.0, 100)
    news.add(alive(1))
    news.take(8)
    news.add(alive(2))
    assert news.take(8, most=1) == [alive(2)]


def test_a_members_own_word_replaces_the_doubts_about_it():
    news = Dissemination(3.0, 100)
    subject = alive(1).member
    for author in (2, 3):
        news.add(Doubt(subject, 1, node(author), False, b"s" * 64))
    news.add(doubt(4, 3))
    news.add(alive(1, 2))
    assert set(news.take(8)) == {alive(1, 2), doubt(4, 3)}


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30), st.text(max_size=64)), max_size=200)
)
def test_news_is_bounded_in_number_and_bytes(pieces):
    news = Dissemination(1.0, 40)
    for member, author, name in pieces:
        news.add(doubt(member, author) if author % 2 else alive(member, 1, name))
        assert len(news) <= 40
    while taken := news.take(4):
        assert len(taken) <= MAX_NEWS
        assert sum(map(size_of, taken)) <= BUDGET_BYTES
        assert len(encode(Message(body=Gossip(), news=taken))) <= MAX_MESSAGE_BYTES


# Probes of others


def test_a_probe_goes_straight_to_a_connected_target_and_its_answer_back():
    relay = ProbeRelay(10, 0.5, random.Random(1))
    probe = Probe(node(1), node(9), b"12345678", MAX_HOPS)
    hop, passed = relay.pass_on(node(2), probe, [node(3), node(9)], 0.0)
    assert hop == node(9)
    assert passed.hops == MAX_HOPS - 1
    assert relay.pass_on(node(4), probe, [node(9)], 0.0) is None  # the second copy waits with it
    ack = Ack(node(1), node(9), b"12345678", b"s" * 64)
    assert relay.answered(Ack(node(1), node(8), b"12345678", b"s" * 64)) == []
    assert relay.answered(ack) == [(node(2), ack), (node(4), ack)]
    assert relay.answered(ack) == []


def test_who_hears_nothing_says_so_in_time():
    relay = ProbeRelay(10, 0.5, random.Random(1))
    relay.pass_on(node(2), Probe(node(1), node(9), b"12345678", MAX_HOPS), [node(9)], 0.0)
    assert relay.expire(0.1) == []
    assert relay.next_deadline() < 0.5
    assert relay.expire(0.5) == [(node(2), Nack(node(1), node(9), b"12345678", True))]
    assert len(relay) == 0


def test_hops_and_room_are_limited():
    relay = ProbeRelay(1, 0.5, random.Random(1))
    nack = Nack(node(1), node(9), b"12345678", False)
    last_hop = Probe(node(1), node(9), b"12345678", 1)
    assert relay.pass_on(node(2), last_hop, [node(3)], 0.0) == (node(2), nack)
    relay.pass_on(node(2), Probe(node(1), node(9), b"other---", 3), [node(3)], 0.0)
    full = relay.pass_on(node(2), Probe(node(1), node(9), b"12345678", 3), [node(3)], 0.0)
    assert full == (node(2), nack)


# The table


def member(number: int, state: MemberState = MemberState.ALIVE, **more) -> Member:
    return Member(node(number), alive(number), state, float(number), **more)


def test_a_full_table_gives_up_who_is_gone_then_hearsay_never_a_contact():
    table = Table(3)
    assert table.add(member(1, evidence_at=1.0))
    assert table.add(member(2, MemberState.LOST, evidence_at=1.0))
    assert table.add(member(3))
    assert table.add(member(4))
    assert table.get(node(2)) is None
    assert not table.add(member(5))  # hearsay does not push out hearsay
    assert table.add(member(5, connected=True))
    assert table.get(node(3)) is None
    assert table.add(member(6, connected=True))
    assert not table.add(member(7, connected=True))
    assert [m.node_id for m in table] == [node(1), node(5), node(6)]


def test_who_has_been_gone_for_long_is_forgotten():
    table = Table(10)
    table.add(member(1, MemberState.LEFT))
    table.add(member(5, MemberState.LOST))
    table.add(member(3))
    table.forget_gone(4.0)
    assert [m.node_id for m in table] == [node(5), node(3)]


# The wire

KEY = bytes(range(32))
BODIES = [
    Gossip(),
    Probe(node(1), node(2), b"12345678", 3),
    Ack(node(1), node(2), b"12345678", b"s" * 64),
    Nack(node(1), node(2), b"12345678", True),
    Sync(b"d" * 32, True),
]


@pytest.mark.parametrize("body", BODIES)
def test_messages_survive_the_wire(body):
    news = [
        Alive(KEY, 7, "node", b"s" * 64),
        Left(KEY, 8, "why", b"s" * 64),
        Doubt(node(1), 9, node(2), True, b"s" * 64),
    ]
    message = Message(body=body, news=news)
    assert decode(encode(message)) == message


def test_the_largest_message_fits():
    news = [Alive(KEY, MAX_INCARNATION, "\U0001f600" * 64, b"s" * 64)] * MAX_NEWS
    assert all(size_of(item) == 224 + 256 for item in news)
    assert len(encode(Message(body=BODIES[2], news=news))) <= MAX_MESSAGE_BYTES


@pytest.mark.parametrize(
    "change",
    [
        {"news": [{"type": "alive"}]},
        {"news": [None] * (MAX_NEWS + 1)},
        {"body": {"type": "probe", "asker": b"", "target": b"", "nonce": b"", "hops": 3}},
        {"body": {"type": "sync", "digest": b"d" * 31, "answer": True}},
        {"body": {"type": "elect", "leader": b"me"}},
        {
            "news": [
                {
                    "type": "alive",
                    "public_key": b"\x01" + bytes(31),  # small order: anybody could sign for it
                    "incarnation": 1,
                    "name": "",
                    "signature": b"s" * 64,
                }
            ]
        },
    ],
)
def test_what_is_malformed_is_refused(change):
    whole = {"version": 1, "body": {"type": "gossip"}, "news": []}
    assert decode(pack(whole)) == Message(body=Gossip())
    with pytest.raises(MalformedMessage):
        decode(pack({**whole, **change}))


@given(st.binary(max_size=300))
def test_random_bytes_are_malformed_or_a_message(data):
    try:
        assert isinstance(decode(data), Message)
    except MalformedMessage:
        pass


def test_a_digest_is_of_the_set_not_of_the_order():
    held = [(bytes(node(1)), 1), (bytes(node(2)), 2)]
    assert digest_of(held) == digest_of(held[::-1]) != digest_of(held[:1])
