"""The handshake of two nodes that dial each other at the same moment: roles by tie-break, and every attack once more."""

import contextlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.transport.handshakes import (
    ALICE,
    BOB,
    CAROL,
    FIRST,
    SECOND,
    SWARM,
    WIRE,
    feed,
    flights,
    make,
    same_tag,
    scripted,
)
from tests.trusted import FOREIGN, shaking
from transport.errors import HandshakeFailed, SelfDialed, WrongPeer, WrongSwarm
from transport.secure.handshake import HELLO_BYTES, MAGIC, Handshake, Intro

LOW, HIGH = 1, 2**63 + 5
EVERYBODY = (ALICE.node_id, BOB.node_id, CAROL.node_id)


def punching(
    identity, tie_break, *, role="punch", swarm=SWARM, expected=None, seed=None, agreed=EVERYBODY
):
    random_bytes = random.Random(seed if seed is not None else tie_break).randbytes
    return Handshake(
        role=role,
        **shaking(identity, swarm),
        intro=Intro(name="high" if tie_break == HIGH else "low"),
        random_bytes=lambda size: tie_break.to_bytes(8, "big") if size == 8 else random_bytes(size),
        expected=expected,
        punching=agreed if role == "responder" else (),
    )


def exchange(high, low, change=lambda number, data: data):
    """Run until both are silent; `change` may edit the flights, numbered in order of sending."""
    sent, number, silent = [], 0, 0
    while silent < 2:
        for source, sink in ((high, low), (low, high)):
            data = source.outgoing()
            silent = 0 if data else silent + 1
            if data:
                sent.append(data)
                data, number = change(number, data), number + 1
                if sink.result is None:
                    sink.receive(data)
    return sent


@pytest.mark.parametrize(
    "roles", [("punch", "punch"), ("responder", "punch"), ("punch", "responder")]
)
def test_the_higher_tie_break_is_the_initiator(roles):
    """Whether a side saw its own dial succeed or its listener: the bytes and the result are the same."""
    high = punching(ALICE, HIGH, role=roles[0], expected=BOB.node_id)
    low = punching(BOB, LOW, role=roles[1], expected=ALICE.node_id)
    sent = exchange(high, low)
    assert b"".join(sent).count(MAGIC) == 2
    for mine, theirs, role, who in (
        (high.result, low.result, "initiator", BOB),
        (low.result, high.result, "responder", ALICE),
    ):
        assert (mine.role, mine.node_id, mine.punched) == (role, who.node_id, True)
        assert mine.session_id == theirs.session_id
        assert (mine.tie_break, mine.remote_tie_break) == (
            theirs.remote_tie_break,
            theirs.tie_break,
        )
        record = bytearray(26)
        mine.sealer.seal_into(0, b"hello", memoryview(record))
        theirs.opener.open_into(record[:5], memoryview(record)[5:], memoryview(record)[5:])
        assert record[5:10] == b"hello"


def test_golden_punch():
    """The same nodes as in `test_golden_flights`, the tie-breaks exchanged so that the initiator is the same."""
    initiator = scripted("initiator", tie_break_of="responder", punch=True)
    responder = scripted("responder", tie_break_of="initiator", punch=True)
    sent = exchange(initiator, responder)
    assert sent[0].hex() == WIRE["punch_initiator_hello"]
    assert sent[1].hex() == WIRE["punch_responder_hello"]
    assert sent[2].hex() == WIRE["punch_first_message"]
    assert initiator.result.session_id.hex() == WIRE["punch_session_id"]
    assert responder.result.session_id.hex() == WIRE["punch_session_id"]


def test_a_punching_side_sends_its_bare_hello_and_waits():
    for tie_break in (LOW, HIGH):
        side = punching(ALICE, tie_break)
        hello = side.outgoing()
        assert len(hello) == HELLO_BYTES
        assert hello[9] == 3
        assert side.outgoing() == b""
        with pytest.raises(HandshakeFailed):
            side.receive_eof()


@settings(max_examples=40)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.binary(max_size=50))
def test_any_split_of_a_punched_handshake_gives_the_same_result(sizes, extra):
    high, low = punching(ALICE, HIGH), punching(BOB, LOW)
    feed(low, high.outgoing(), sizes)
    feed(high, low.outgoing(), sizes)
    feed(low, high.outgoing(), sizes)
    rest = feed(high, low.outgoing() + extra, sizes)
    assert high.result.leftover + rest == extra
    rest = feed(low, high.outgoing() + extra, sizes)
    assert low.result.leftover + rest == extra
    assert high.result.session_id == low.result.session_id


def test_every_bit_of_a_punched_handshake_counts():
    flights_sent = exchange(punching(ALICE, HIGH), punching(BOB, LOW))
    assert len(flights_sent) == 5  # two hellos, and the three messages of XX
    for flight, original in enumerate(flights_sent):
        for place in range(len(original)):
            for bit in range(8):

                def flip(number, data, *, flight=flight, place=place, bit=bit):
                    if number != flight:
                        return data
                    wrong = bytearray(data)
                    wrong[place] ^= 1 << bit
                    return bytes(wrong)

                high, low = punching(ALICE, HIGH), punching(BOB, LOW)
                with contextlib.suppress(HandshakeFailed):
                    exchange(high, low, flip)
                # Who read the wrong bytes has no result; message 3 is read by one side only.
                assert low.result is None, (flight, place, bit)
                if flight < 4:
                    assert high.result is None, (flight, place, bit)


@pytest.mark.parametrize("role", ["punch", "responder"])
def test_our_own_punching_hello_reflected_is_refused(role):
    side = punching(ALICE, HIGH, role=role)
    hello = side.outgoing() or punching(ALICE, HIGH).outgoing()
    with pytest.raises(HandshakeFailed, match="reflected"):
        side.receive(hello)
    assert len(side.outgoing()) <= HELLO_BYTES
    assert side.result is None


def test_equal_tie_breaks_fail_on_both_sides():
    one, other = punching(ALICE, HIGH, seed=1), punching(BOB, HIGH, seed=2)
    hellos = one.outgoing(), other.outgoing()
    for side, hello in ((one, hellos[1]), (other, hellos[0])):
        with pytest.raises(HandshakeFailed, match="tie-break"):
            side.receive(hello)
        assert side.outgoing() == b""


def test_everything_reflected_leads_nowhere():
    """A peer that changes our tie-break and then echoes: the transcripts differ."""
    for tie_break in (LOW, HIGH):
        side = punching(ALICE, tie_break)
        hello = bytearray(side.outgoing())
        hello[12] ^= (
            0x40 if tie_break == LOW else 0x80
        )  # so that it is the responder, the initiator
        side.receive(bytes(hello))
        echo = side.outgoing()
        assert len(echo) == (0 if tie_break == LOW else 48)
        with pytest.raises(HandshakeFailed):
            side.receive(echo + bytes(100))
        assert side.result is None


def test_an_ordinary_side_takes_no_part_in_a_punch():
    hello = punching(BOB, LOW).outgoing()
    for role in ("initiator", "responder"):
        side = make(role)
        side.outgoing()
        with pytest.raises(HandshakeFailed, match="no punch"):
            side.receive(hello)
        assert side.outgoing() == b""


@pytest.mark.parametrize("flight", [FIRST, SECOND])
def test_a_punching_side_takes_no_ordinary_hello(flight):
    side = punching(ALICE, HIGH)
    side.outgoing()
    with pytest.raises(HandshakeFailed, match="does not take part"):
        side.receive(flight)
    assert side.outgoing() == b""


def test_a_responder_that_may_punch_still_takes_an_ordinary_dial():
    initiator, responder = make("initiator"), punching(BOB, LOW, role="responder")
    flights(initiator, responder)
    assert initiator.result.session_id == responder.result.session_id
    assert not responder.result.punched
    assert initiator.result.role == "initiator"


@pytest.mark.parametrize("role", ["punch", "responder"])
def test_another_swarm_is_named_on_both_sides_of_a_punch(role):
    one, other = punching(ALICE, HIGH), punching(BOB, LOW, role=role, swarm=FOREIGN)
    with pytest.raises(WrongSwarm):
        other.receive(one.outgoing())
    with pytest.raises(WrongSwarm):
        one.receive(other.outgoing())
    assert one.outgoing() == other.outgoing() == b""


def test_the_wrong_peer_is_refused_on_both_sides_of_a_punch():
    with pytest.raises(WrongPeer):
        exchange(punching(ALICE, HIGH, expected=CAROL.node_id), punching(BOB, LOW))
    with pytest.raises(WrongPeer):
        exchange(punching(ALICE, HIGH), punching(BOB, LOW, expected=CAROL.node_id))
    with pytest.raises(SelfDialed):
        exchange(punching(ALICE, HIGH), punching(ALICE, LOW))


@pytest.mark.parametrize("tie_breaks", [(HIGH, LOW), (LOW, HIGH)])
def test_a_listener_punches_only_with_those_it_agreed_with(tie_breaks):
    """Whichever side turns out to be the initiator."""
    for agreed, works in (((CAROL.node_id,), False), ((CAROL.node_id, ALICE.node_id), True)):
        dialer = punching(ALICE, tie_breaks[0])
        listener = punching(BOB, tie_breaks[1], role="responder", agreed=agreed)
        if works:
            exchange(dialer, listener)
            assert listener.result.node_id == ALICE.node_id
            continue
        with pytest.raises(WrongPeer, match="no punch with"):
            exchange(dialer, listener)
        assert listener.result is None


def test_who_agreed_with_somebody_takes_ordinary_connections_of_all():
    initiator, listener = (
        make("initiator"),
        punching(BOB, LOW, role="responder", agreed=(CAROL.node_id,)),
    )
    flights(initiator, listener)
    assert listener.result.node_id == ALICE.node_id


def test_a_punching_stranger_learns_nothing_but_the_hello():
    stranger = same_tag()
    high, low = punching(ALICE, HIGH, swarm=stranger), punching(BOB, LOW)
    low.receive(high.outgoing())
    hello = low.outgoing()
    assert len(hello) == HELLO_BYTES
    high.receive(hello)
    with pytest.raises(WrongSwarm, match="does not hold its key"):
        low.receive(high.outgoing())
    assert low.outgoing() == b""


@settings(max_examples=200)
@given(st.binary(max_size=400), st.integers(0, 400), st.sampled_from([LOW, HIGH]))
def test_random_bytes_to_a_punching_side_raise_only_handshake_failed(noise, prefix, tie_break):
    sent = exchange(punching(ALICE, HIGH), punching(BOB, LOW))
    good = b"".join(sent[0::2]) if tie_break == LOW else b"".join(sent[1::2])
    side = punching(BOB if tie_break == LOW else ALICE, tie_break)
    side.outgoing()
    with contextlib.suppress(HandshakeFailed):
        side.receive(good[:prefix] + noise)
    assert side.result is None or prefix + len(noise) >= len(good) or good[:prefix] + noise == good
