import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.decentralized.network.room import Room, RoomLimits
from transport.identity import NodeId

NODES = [NodeId(bytes([number]) * 32) for number in range(4)]
LIMITS = RoomLimits(per_node_bytes=100, bytes=250, per_node_messages=3)


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 300), st.booleans(), st.integers(0, 1000)),
        max_size=60,
    )
)
def test_what_is_held_is_within_the_limits_or_one_message(steps):
    room, held = Room(LIMITS), []
    for index, size, give_back, which in steps:
        node = NODES[index]
        if give_back and held:
            room.release(*held.pop(which % len(held)))
        elif room.reserve(node, size):
            held.append((node, size))
        assert room.bytes == sum(size for _, size in held)
        assert room.bytes <= LIMITS.bytes or len([size for _, size in held if size]) == 1
        for each in NODES:
            own = [size for node, size in held if node == each]
            assert len(own) <= LIMITS.per_node_messages
            assert sum(own) <= LIMITS.per_node_bytes or len([size for size in own if size]) == 1
    for node, size in held:
        room.release(node, size)
    assert room.bytes == 0
    assert all(room.reserve(node, 60) for node in NODES)


def test_one_node_leaves_room_for_the_others():
    room = Room(LIMITS)
    assert room.reserve(NODES[0], 90)
    assert not room.reserve(NODES[0], 20)
    assert room.reserve(NODES[1], 90)


@pytest.mark.parametrize(("numel", "per_node"), [(10, 4 << 20), (10**8, 16 * 10**8)])
def test_limits_follow_the_model(numel, per_node):
    limits = RoomLimits.of(numel)
    assert limits.per_node_bytes == per_node
    assert limits.bytes >= 2 * per_node
