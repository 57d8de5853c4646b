"""What no link may do, whatever it is asked to carry."""

import math

from hypothesis import given
from hypothesis import strategies as st

from node.simulation.links import Network
from node.simulation.scenario import LinkClass, Links

SENDS = st.lists(
    st.tuples(
        st.floats(0, 5),  # after the one before
        st.integers(0, 2),
        st.integers(0, 2),
        st.integers(1, 5000),
    ),
    max_size=30,
)
LINKS = st.builds(
    Links,
    latency_s=st.floats(0, 2),
    up=st.sampled_from([0.0, 100.0, 1000.0]),
    down=st.sampled_from([0.0, 100.0, 1000.0]),
    jitter_s=st.sampled_from([0.0, 0.3]),
    bandwidth_sigma=st.sampled_from([0.0, 0.5]),
)


def carry(network: Network, sends) -> list[tuple]:
    """(sender, receiver, size, sent, arrived, flight) of each, first bytes in the order in which they come."""
    now, flights = 0.0, []
    for after, sender, receiver, size in sends:
        now += after
        flights.append((network.send(sender, size, now), sender, receiver, size, now))
    flights.sort(key=lambda entry: entry[0].first_s)
    return [
        (
            sender,
            receiver,
            size,
            sent,
            network.arrive(receiver, size, flight, flight.first_s),
            flight,
        )
        for flight, sender, receiver, size, sent in flights
    ]


@given(links=LINKS, sends=SENDS)
def test_nothing_is_faster_than_its_links(links, sends):
    network = Network(links, 3, seed=7)
    for sender, receiver, size, sent, arrived, _ in carry(network, sends):
        slowest = min(network.access[sender].up, network.access[receiver].down)
        least = network.one_way_s(sender, receiver) + size / slowest
        assert arrived >= sent + least - 1e-6


def at_most(rate: float, entries: list[tuple[float, float, int]]) -> None:
    """What enters a link at or after any moment and has left it by another fits in between."""
    for begin, _, _ in entries:
        for _, end, _ in entries:
            size = sum(one[2] for one in entries if one[0] >= begin and one[1] <= end)
            assert end <= begin or size <= rate * (end - begin) + 1e-3


@given(links=LINKS, sends=SENDS)
def test_no_link_carries_more_than_its_bandwidth(links, sends):
    network = Network(links, 3, seed=7)
    carried = carry(network, sends)
    for node, one in enumerate(network.access):
        inward = [
            (flight.first_s, arrived - one.latency_s, size)
            for _, receiver, size, _, arrived, flight in carried
            if receiver == node
        ]
        at_most(one.down, inward)
        if not links.jitter_s:
            outward = [
                (sent, flight.last_s - one.latency_s, size)
                for sender, _, size, sent, _, flight in carried
                if sender == node
            ]
            at_most(one.up, outward)


def test_a_sender_sends_one_after_the_other():
    network = Network(Links(latency_s=1.0, up=100.0), 3, seed=0)
    arrived = [entry[4] for entry in carry(network, [(0, 0, 1, 200), (0, 0, 2, 300)])]
    assert arrived == [2.0 + 2.0, 5.0 + 2.0]


def test_two_equal_links_cost_the_length_of_a_message_once():
    network = Network(Links(latency_s=0.5, up=100.0, down=100.0), 2, seed=0)
    assert [entry[4] for entry in carry(network, [(0, 0, 1, 1000)])] == [11.0]


def test_a_slow_receiver_takes_in_two_streams_one_after_the_other():
    network = Network(Links(latency_s=0.0, up=1000.0, down=100.0), 3, seed=0)
    arrived = [entry[4] for entry in carry(network, [(0, 0, 2, 100), (0, 1, 2, 100)])]
    assert arrived == [1.0, 2.0]


def test_losses_are_as_frequent_as_asked_and_some_are_noticed():
    network = Network(Links(loss=0.25, loss_noticed=0.5), 2, seed=3)
    flights = [network.send(0, 10, float(at)) for at in range(4000)]
    lost = sum(flight.lost for flight in flights)
    noticed = sum(flight.noticed for flight in flights)
    assert 900 < lost < 1100
    assert 400 < noticed < 600
    assert not any(flight.noticed and not flight.lost for flight in flights)


def test_one_fault_more_moves_no_other_draw():
    calm = Network(Links(up=1000.0, bandwidth_sigma=1.0), 50, seed=9)
    lossy = Network(Links(up=1000.0, bandwidth_sigma=1.0, loss=0.5), 50, seed=9)
    assert calm.access == lossy.access
    assert calm.access != Network(Links(up=1000.0, bandwidth_sigma=1.0), 50, seed=10).access


def test_classes_are_drawn_by_their_shares():
    classes = (LinkClass(share=3.0, up=1e6), LinkClass(share=1.0, latency_s=0.3))
    network = Network(Links(classes=classes), 2000, seed=1)
    slow = sum(one.latency_s == 0.3 for one in network.access)
    assert 400 < slow < 600
    assert all(math.isinf(one.down) for one in network.access)


def test_the_queue_of_a_dead_node_is_gone():
    network = Network(Links(latency_s=0.0, up=1.0), 2, seed=0)
    network.send(0, 1000, 0.0)
    network.reset(0)
    assert network.send(0, 5, 1.0).last_s == 6.0
