"""A proposer arranges members by what was measured: the ring's slowest link is as fast as can be, and a new epoch has to be worth it."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.collective.agreement.certificate import GENESIS, Ballot, Epoch
from gossip.collective.agreement.layout import ASSUMED_BYTES_PER_S, PLAIN, Layout
from gossip.collective.agreement.messages import Propose, decode_message_untrusted, encode
from gossip.collective.call import Path
from gossip.collective.placing.arranging import MAX_PROBED, PROBE_S, REARRANGE_S, Arranger
from gossip.collective.placing.ring_order import slowest_link
from transport.codec import pack
from transport.errors import MalformedMessage
from transport.identity import NodeId

MEMBERS = tuple(NodeId(bytes([number]) * 32) for number in range(1, 6))


def all_links(rate: float = 1e6) -> dict:
    return dict.fromkeys(itertools.permutations(MEMBERS, 2), rate)


def epoch(layout: Layout = PLAIN, members=MEMBERS) -> Epoch:
    ballot = Ballot(1, 0, members[0])
    return Epoch(bytes(32), ballot, members, GENESIS, 0, bytes(32), bytes(16), layout)


def test_where_nothing_is_known_links_are_measured_once_in_a_while():
    arranger = Arranger(dict)
    first = arranger.layout(MEMBERS, 0.0)
    assert (first.probe, first.order, first.path) == (True, b"", None)
    assert not arranger.layout(MEMBERS, PROBE_S - 1).probe
    assert arranger.layout(MEMBERS, PROBE_S).probe
    assert not Arranger(dict, probing=False).layout(MEMBERS, 0.0).probe
    assert not Arranger(all_links).layout(MEMBERS, 0.0).probe
    many = tuple(NodeId(bytes([1, number] * 16)) for number in range(MAX_PROBED + 1))
    assert not Arranger(dict).layout(many, 0.0).probe


def test_a_proposer_that_has_links_measured_all_the_time_is_not_followed():
    arranger = Arranger(dict)
    many = tuple(NodeId(bytes([1, number] * 16)) for number in range(MAX_PROBED + 1))
    assert not arranger.follows_probe(many, 0.0)
    asked = range(0, 3 * int(PROBE_S), 10)
    followed = [now for now in asked if arranger.follows_probe(MEMBERS, float(now))]
    # Each of the members may ask for it once in PROBE_S.
    assert len(followed) == 3 * len(MEMBERS)


def test_on_one_machine_there_is_nothing_to_arrange():
    assert Arranger(dict, near=lambda _member: True).layout(MEMBERS, 0.0) == PLAIN
    assert Arranger(dict).layout(MEMBERS[:2], 0.0).order == b""


def test_a_slow_link_is_left_out_of_the_ring():
    rates = all_links()
    rates[MEMBERS[1], MEMBERS[2]] = 5e4
    layout = Arranger(lambda: rates, rtt_s=lambda _member: 0.05).layout(MEMBERS, 0.0)
    order = [MEMBERS[rank] for rank in layout.order]
    assert slowest_link(order, lambda a, b: rates[a, b]) == 1e6
    assert layout.path.rtt_s == pytest.approx(0.05)


def test_a_path_that_has_not_been_measured_is_still_no_machine_of_its_own():
    layout = Arranger(dict, rtt_s=lambda _member: 0.05).layout(MEMBERS, 0.0)
    assert layout.kib_per_s == 0
    assert layout.path == Path(0.05, ASSUMED_BYTES_PER_S)


def test_a_gain_that_is_noise_is_no_gain():
    rates = all_links()
    rates[MEMBERS[1], MEMBERS[2]] = 9e5
    arranger = Arranger(lambda: rates)
    assert arranger.layout(MEMBERS, 0.0).order == b""
    assert not arranger.improves(epoch(), 0.0)


def test_a_new_epoch_is_worth_it_when_the_slowest_link_is_much_faster_then():
    rates = all_links()
    arranger = Arranger(lambda: rates)
    assert not arranger.improves(epoch(), 0.0)
    rates[MEMBERS[1], MEMBERS[2]] = 5e4
    assert arranger.improves(epoch(), 1.0)
    assert not arranger.improves(epoch(), REARRANGE_S)
    better = epoch(arranger.layout(MEMBERS, 1.0))
    assert not arranger.improves(better, 1.0 + REARRANGE_S)
    assert arranger.improves(epoch(), 1.0 + REARRANGE_S)


def test_before_all_links_are_known_nothing_is_formed_anew():
    rates = all_links()
    rates[MEMBERS[1], MEMBERS[2]] = 5e4
    del rates[MEMBERS[3], MEMBERS[0]]
    assert not Arranger(lambda: rates).improves(epoch(), 0.0)
    assert Arranger(lambda: rates, probing=False).improves(epoch(), 0.0)


def test_links_of_who_is_no_member_do_not_count():
    rates = all_links()
    rates[MEMBERS[0], MEMBERS[4]] = rates[MEMBERS[4], MEMBERS[0]] = 1e3
    assert not Arranger(lambda: rates).improves(epoch(members=MEMBERS[:4]), 0.0)


def test_sites_are_told_where_there_are_several_with_more_than_one_member():
    names = dict(zip(MEMBERS, ("b", "a", "b", "a", "c"), strict=True))
    assert list(Arranger(dict, site=names.get).layout(MEMBERS, 0.0).sites) == [1, 0, 1, 0, 2]
    for given_ in ("", "one"):
        assert (
            Arranger(dict, site=lambda _m, given_=given_: given_).layout(MEMBERS, 0.0).sites == b""
        )
    alone = {member: str(index) for index, member in enumerate(MEMBERS)}
    assert Arranger(dict, site=alone.get).layout(MEMBERS, 0.0).sites == b""


@given(
    known=st.dictionaries(
        st.sampled_from(list(itertools.permutations(MEMBERS, 2))), st.floats(1, 1e9), max_size=20
    )
)
def test_every_layout_fits_its_members_and_is_no_slower_than_the_plain_one(known):
    layout = Arranger(lambda: known).layout(MEMBERS, 0.0)
    assert layout.fits(len(MEMBERS))
    ring = [MEMBERS[rank] for rank in layout.order] or MEMBERS

    def rate(a, b):
        return known.get((a, b), float("inf"))

    if len(known) == 20:
        assert slowest_link(ring, rate) >= slowest_link(MEMBERS, rate)


@pytest.mark.parametrize(
    "layout",
    [
        Layout(order=b"\0\1"),
        Layout(order=b"\0\1\1"),
        Layout(order=b"\0\1\3"),
        Layout(sites=b"\0\1"),
        Layout(order=b"\0\1\2\3"),
    ],
)
def test_what_does_not_fit_is_seen(layout):
    assert not layout.fits(3)


def test_layouts_travel_with_the_proposal_and_out_of_range_ones_do_not():
    ballot = Ballot(1, 0, MEMBERS[0])
    given_ = (ballot, MEMBERS, 0, bytes(32), bytes(16), (), None, b"", b"", ())
    propose = Propose(*given_, Layout(b"\0\1\2\3\4", b"", 50_000, 1000, True))
    assert decode_message_untrusted(encode(propose)) == propose
    for bad in (Layout(rtt_us=-1), Layout(order=bytes(257))):
        with pytest.raises(MalformedMessage):
            decode_message_untrusted(pack(Propose(*given_, bad)))
