"""What members measured travels through the document, and each node takes a measurement once."""

import pytest

from crdt.record import MAX_LINKS, LinkTime
from gossip.collective.placing.rhythm import LEAST_HISTORY, Ailment, Finding, Measure, Rhythm
from node.run.measured import TELL_S, Measured, rhythm_report, sentence
from tests.crdt.authors import new_state
from transport.identity import NodeId

MIB = 1 << 20


class Member:
    """A member with its replica of the run's document."""

    def __init__(self, index: int) -> None:
        self.state = new_state(index)
        self.node = NodeId(self.state.node)
        self.rhythm = Rhythm(self.node)
        self.notified = 0
        self.measured = Measured(self.rhythm, self.state, self._notify)

    def _notify(self) -> None:
        self.notified += 1

    def send(self, destination: "Member", seconds: float) -> None:
        measure = Measure(self.node, destination.node, seconds, MIB)
        self.rhythm.measured(measure)
        self.measured.measured(measure)


def tell(*members: Member, now: float) -> None:
    for member in members:
        member.measured.exchange(now)
    for a in members:
        for b in members:
            if a is not b:
                b.state.merge(a.state.to_wire())
    for member in members:
        member.measured.exchange(now)


def test_everybody_sees_the_whole_matrix_and_counts_a_measurement_once():
    a, b, c = Member(1), Member(2), Member(3)
    for turn in range(LEAST_HISTORY):
        a.send(b, 0.5)
        c.send(a, 0.25)
        for repeat in range(3):
            tell(a, b, c, now=turn * TELL_S + repeat)
    for member in (a, b, c):
        rates = member.rhythm.rates()
        assert rates[a.node, b.node] == pytest.approx(2 * MIB, rel=1e-3)
        assert rates[c.node, a.node] == pytest.approx(4 * MIB, rel=1e-3)
    assert b.notified == 0
    assert a.notified == LEAST_HISTORY


def test_a_link_is_stated_no_more_often_than_it_should_be():
    a, b = Member(1), Member(2)
    for _ in range(50):
        a.send(b, 0.5)
        a.measured.exchange(1.0)
    assert a.notified == 1
    assert a.state.links()[a.state.node][0].transfers == 1


def test_the_report_is_plain_json_and_findings_have_words():
    a, b = Member(1), Member(2)
    a.send(b, 0.5)
    report = rhythm_report(a.rhythm)
    assert report["links"] == [
        {"source": str(a.node), "destination": str(b.node), "bytes_per_s": 2 * MIB}
    ]
    assert (report["members"], report["findings"]) == ([], [])
    names = {a.node: "attic", b.node: "barn"}
    words = {
        ailment: sentence(Finding(ailment, a.node, b.node, 3.0), names.__getitem__)
        for ailment in Ailment
    }
    assert words[Ailment.LINK] == "the link from attic to barn is 3.0 times slower than usual"
    assert all("attic" in each for each in words.values())


def test_a_member_that_states_ever_new_links_takes_no_memory():
    liar, honest = Member(1), Member(2)
    for turn in range(40):
        destinations = [bytes([turn, number]) * 16 for number in range(MAX_LINKS)]
        liar.state.set_links([LinkTime(each, 1000, 1) for each in destinations])
        tell(liar, honest, now=turn * TELL_S)
    assert len(honest.measured._taken) <= MAX_LINKS
