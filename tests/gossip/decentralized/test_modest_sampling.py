"""Who of an order is alive, and what several aggregators are believed."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from gossip.protocols.modest.inbox import Held, RoundInbox
from gossip.protocols.modest.sampling import LivenessProbe
from gossip.protocols.modest.stall import Stall
from gossip.protocols.modest.votes import Poll, decide, majority, median, tolerated
from transport.identity import NodeId

IDS = [NodeId(hashlib.sha256(b"node-%d" % i).digest()) for i in range(40)]
ME = IDS[39]


def probe(count, candidates=10, me=ME, now=0.0):
    return LivenessProbe(IDS[:candidates], count, me, now, timeout_s=5.0, resend_s=1.0)


def pings(core):
    found = []
    while (node := core.next_ping()) is not None:
        found.append(IDS.index(node))
    return found


def test_the_first_of_the_order_are_pinged_at_once_and_taken():
    core = probe(3)
    assert pings(core) == [0, 1, 2]
    for index in (2, 0):
        core.answered(IDS[index], 0.1)
    assert core.sample is None
    core.answered(IDS[1], 0.2)
    assert core.sample == (IDS[0], IDS[1], IDS[2]), "hash order, not order of arrival"
    assert pings(core) == []
    assert core.next_deadline() is None


def test_a_missing_answer_is_asked_for_again_and_then_replaced():
    core = probe(2)
    assert pings(core) == [0, 1]
    core.answered(IDS[1], 0.1)
    assert core.next_deadline() == 1.0
    core.tick(1.0)
    assert pings(core) == [0]
    assert core.next_deadline() == 5.0
    core.tick(5.0)
    assert pings(core) == [2]
    core.answered(IDS[2], 5.1)
    assert core.sample == (IDS[1], IDS[2])


def test_a_late_answer_still_counts_at_its_place():
    core = probe(2)
    core.answered(IDS[1], 0.1)
    core.tick(5.0)
    core.answered(IDS[0], 5.1)
    assert core.sample == (IDS[0], IDS[1])


def test_what_cannot_be_sent_is_replaced_at_once():
    core = probe(2)
    pings(core)
    core.unreachable(IDS[0], 0.0)
    assert pings(core) == [2]


def test_the_end_of_the_list_ends_the_probe():
    core = probe(5, candidates=3)
    core.answered(IDS[1], 0.1)
    core.tick(5.0)
    assert core.sample == (IDS[1],)
    assert probe(5, candidates=0).sample == ()


def test_one_in_the_order_counts_itself_without_a_ping():
    core = probe(2, me=IDS[1])
    assert pings(core) == [0]
    core.answered(IDS[0], 0.1)
    assert core.sample == (IDS[0], IDS[1])
    assert pings(core) == [], "no other was asked"


def test_answers_of_strangers_and_of_those_not_asked_count_nothing():
    core = probe(2)
    core.answered(IDS[30], 0.1)
    core.answered(IDS[7], 0.1)
    core.answered(IDS[0], 0.1)
    core.answered(IDS[0], 0.2)
    assert core.sample is None


@given(st.sets(st.integers(0, 19)), st.integers(1, 8), st.integers(0, 24))
def test_the_sample_is_the_first_of_the_order_that_live(dead, count, me):
    """Prompt answers of the living: the sample depends on nothing but who lives."""
    core, now = probe(count, candidates=20, me=IDS[me]), 0.0
    while core.sample is None:
        for index in pings(core):
            if index not in dead:
                core.answered(IDS[index], now)
        if core.sample is None and (deadline := core.next_deadline()) is not None:
            now = deadline
            core.tick(now)
    living = [i for i in range(20) if i not in dead or i == me]
    assert core.sample == tuple(IDS[i] for i in living[:count])


# ---- models that wait ----------------------------------------------------------------------------


def model(value):
    return np.full(3, value, np.float32)


def put(inbox, round_, sender, value=0.0):
    return inbox.add(round_, IDS[sender], Held.copy_of(model(value), 4), 1.0)


def test_each_sender_counts_once_with_its_last_model():
    inbox = RoundInbox(8)
    put(inbox, 5, 1, 1.0)
    each = put(inbox, 5, 1, 2.0)
    assert [m[0] for m in each.ascending()] == [2.0]
    put(inbox, 6, 1)
    assert set(inbox.rounds) == {6}


def test_models_are_copied_and_come_in_the_order_of_ids():
    inbox, lent = RoundInbox(8), model(1.0)
    each = inbox.add(5, IDS[2], Held.copy_of(lent, 4), 0.0)
    lent.fill(np.nan)
    put(inbox, 5, 1, 2.0)
    expected = [value for _, value in sorted([(IDS[2], 1.0), (IDS[1], 2.0)])]
    assert [m[0] for m in each.ascending()] == expected
    assert not each.ascending()[0].flags.writeable


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 20)), max_size=60))
def test_an_inbox_is_bounded(steps):
    inbox = RoundInbox(6)
    for round_, sender in steps:
        put(inbox, round_, sender)
        held = [node for each in inbox.rounds.values() for node in each.held]
        assert len(held) <= 6
        assert len(set(held)) == len(held)
        assert all(each.held for each in inbox.rounds.values())


def test_rounds_that_one_names_do_not_crowd_out_what_many_name():
    inbox = RoundInbox(4)
    for sender in range(3):
        put(inbox, 7, sender)
    for far in range(100, 200):
        put(inbox, far, 9)
    put(inbox, 300, 10)
    assert len(inbox.rounds[7].held) == 3
    assert inbox.newer(7, 2) is False


def test_closed_rounds_are_forgotten():
    inbox = RoundInbox(4)
    put(inbox, 7, 0)
    put(inbox, 8, 1)
    put(inbox, 8, 2)
    assert inbox.newer(7, 2)
    inbox.close_through(7)
    assert set(inbox.rounds) == {8}


# ---- votes ---------------------------------------------------------------------------------------

OWN = model(0.0)


def test_one_or_two_aggregators_are_believed_at_once():
    assert tolerated(1) == tolerated(2) == 0
    assert majority(1) == majority(2) == 1
    assert decide([model(3.0)], 2, OWN, late=False)[0] == 3.0


def test_a_majority_of_equal_models_is_believed_at_once():
    assert decide([model(1.0)], 3, OWN, late=True) is None
    assert decide([model(9.0), model(1.0)], 3, OWN, late=False) is None
    assert decide([model(1.0), model(1.0)], 3, OWN, late=False)[0] == 1.0
    assert decide([model(1.0), model(9.0), model(1.0)], 3, OWN, late=False)[0] == 1.0


def test_all_votes_give_their_median_and_missing_ones_are_cast_for_the_own_model():
    assert decide([model(1.0), model(-9.0), model(2.0)], 3, OWN, late=False)[0] == 1.0
    assert decide([model(1.0), model(9.0)], 3, OWN, late=True)[0] == 1.0
    assert decide([model(1.0), model(-9.0)], 3, OWN, late=True)[0] == 0.0


honest = st.floats(-1, 1, width=32)
lies = st.floats(-(2.0**99), 2.0**99, width=32)


@given(st.sampled_from([3, 4, 5, 7]), st.data())
def test_liars_move_no_coordinate_out_of_the_honest_range(aggregators, data):
    vector = lambda values: arrays.arrays(np.float32, 4, elements=values)  # noqa: E731
    answered = data.draw(st.integers(majority(aggregators), aggregators))
    liars = data.draw(st.integers(0, min(tolerated(aggregators), answered)))
    truths = [data.draw(vector(honest)) for _ in range(answered - liars)]
    votes = data.draw(st.permutations([*truths, *(data.draw(vector(lies)) for _ in range(liars))]))
    own = data.draw(vector(honest))
    result = decide(votes, aggregators, own, late=True)
    bounds = [*truths, own] if answered < aggregators else truths
    assert (result >= np.min(bounds, axis=0)).all()
    assert (result <= np.max(bounds, axis=0)).all()


def poll_of(*offers):
    """(round, sender, value) of each."""
    poll = Poll(6, timeout_s=5.0)
    for round_, sender, value in offers:
        poll.add(round_, IDS[sender], Held.copy_of(model(value), 4), 0.0)
    return poll


def test_a_poll_decides_the_latest_round_on_which_enough_agree():
    poll = poll_of((7, 1, 1.0), (7, 2, 1.0), (9, 3, 5.0))
    assert poll.due(3) == 5.0
    decision = poll.decided(3, OWN, 0.0)
    assert (decision.round, decision.model[0], decision.sample) == (7, 1.0, 4)
    assert poll_of((9, 3, 5.0)).decided(3, OWN, 100.0) is None
    poll.close_through(7)
    assert poll.due(3) == np.inf


def test_a_run_that_stands_still_goes_on_between_what_is_offered():
    poll = poll_of((20, 1, 5.0), (4, 2, 1.0))
    decision = poll.settled(3, ME, 10, OWN)
    assert (decision.round, decision.model[0]) == (10, 1.0)
    assert poll_of((20, 1, 5.0)).settled(3, ME, 10, OWN) is None, "nobody is believed alone"
    assert poll_of((20, 1, 5.0), (20, 39, 0.0)).settled(3, ME, 10, OWN) is None, (
        "oneself counts once"
    )
    liar = poll_of((2**32 - 1, 1, 1e30), (11, 2, 2.0)).settled(3, ME, 10, OWN)
    assert (liar.round, liar.model[0]) == (11, 2.0)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_the_median_of_equal_models_is_that_model_bit_for_bit(count):
    same = np.random.default_rng(1).standard_normal(100_000).astype(np.float32)
    assert median([same] * count).tobytes() == same.tobytes()


# ---- a run that stands still ---------------------------------------------------------------------


def test_attempts_come_later_and_later_until_there_are_news():
    stall = Stall(10.0, 0.5)
    stall.news(100.0)
    assert stall.due(involved=True) == 110.0
    assert stall.due(involved=False) == 135.0
    assert stall.attempt(110.0) == 1
    assert stall.due(involved=True) == 130.0
    assert [stall.attempt(0.0) for _ in range(20)][-1] == 21
    assert stall.due(involved=True) == 640.0
    stall.news(1000.0)
    assert stall.due(involved=True) == 1010.0
    stall.begin_within(2.0, 2000.0)
    assert stall.due(involved=False) == 2003.0
    stall.attempt(2003.0)
    assert stall.due(involved=True) == 2023.0
