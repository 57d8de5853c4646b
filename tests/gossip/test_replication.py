"""The replication driver against a small fake of the endpoint, in virtual time."""

import random
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress

import pytest
import trio
import trio.testing

from crdt.record import CheckpointInfo, MemberInfo, Progress
from gossip import replication as driver
from gossip.errors import GossipError
from gossip.replication import ReplicationClosed, open_replication
from tests.crdt import authors
from tests.crdt.authors import HASH, NOW_MS
from transport.codec import MAX_MESSAGE_BYTES, pack
from transport.errors import EndOfStream, PeerLost, StreamReset
from transport.identity import NodeId


def node(index):
    return NodeId(authors.author(index).writer)


class FakeStream:
    """One end of a message stream; the queue holds few messages, as a real window does."""

    def __init__(self, peer, protocol):
        self.peer, self.protocol = peer, protocol
        self.inbox_in, self.inbox = trio.open_memory_channel(4)
        self.other = None
        self.failure = None
        self.over = trio.Event()

    async def send_message(self, message):
        assert len(message) <= MAX_MESSAGE_BYTES
        await trio.lowlevel.checkpoint()
        if self.failure:
            raise self.failure
        try:
            await self.other.inbox_in.send(message)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise (self.failure or StreamReset("reset")) from None

    async def receive_message(self):
        try:
            return await self.inbox.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError):
            raise (self.failure or EndOfStream("end")) from None

    def fail(self, error):
        for end in (self, self.other):
            end.failure = end.failure or error
            end.inbox_in.close()
            end.inbox.close()

    async def aclose(self):
        self.other.inbox_in.close()
        self.inbox.close()
        await trio.lowlevel.checkpoint()


class FakePeer:
    def __init__(self, here, there):
        self.here, self.there = here, there
        self.node_id = there.node_id
        self.streams = []
        self.refused = 0

    async def open_stream(self, protocol):
        await trio.lowlevel.checkpoint()
        if self.here.peers.get(self.node_id) is not self:
            raise PeerLost("gone")
        mine = FakeStream(self, protocol)
        theirs = FakeStream(self.there.peers[self.here.node_id], protocol)
        mine.other, theirs.other = theirs, mine
        self.streams.append(mine)
        handler = self.there.handlers.get(protocol)
        if handler is None:
            self.refused += 1
            mine.fail(StreamReset("no such protocol"))
        else:
            self.there.nursery.start_soon(self._serve, handler, theirs)
        return mine

    async def _serve(self, handler, stream):
        try:
            await handler(stream)
        except (PeerLost, StreamReset):
            stream.fail(StreamReset("handler lost its peer"))
        else:
            await stream.aclose()


class FakeEndpoint:
    def __init__(self, index, nursery):
        self.node_id, self.nursery = node(index), nursery
        self.peers, self.handlers, self.watchers = {}, {}, []

    def serve(self, protocol, handler):
        assert protocol not in self.handlers
        self.handlers[protocol] = handler

    def unserve(self, protocol):
        self.handlers.pop(protocol, None)

    @contextmanager
    def watch(self):
        sender, receiver = trio.open_memory_channel(1)
        self.watchers.append(sender)
        try:
            yield receiver
        finally:
            self.watchers.remove(sender)

    def tell(self):
        for watcher in self.watchers:
            with suppress(trio.WouldBlock):  # the watcher looks at `peers` anyway
                watcher.send_nowait("something happened")

    def connect(self, other):
        for here, there in ((self, other), (other, self)):
            here.peers[there.node_id] = FakePeer(here, there)
        self.tell()
        other.tell()

    def disconnect(self, other):
        for here, there in ((self, other), (other, self)):
            peer = here.peers.pop(there.node_id)
            for stream in peer.streams:
                stream.fail(PeerLost("cut"))
        self.tell()
        other.tell()


class Swarm:
    """Endpoints with a state each; replications are opened as the test needs them."""

    def __init__(self, nursery, stack, count):
        self.stack = stack
        self.endpoints = [FakeEndpoint(index, nursery) for index in range(count)]
        self.states = [new_state(index) for index in range(count)]
        self.replications = [None] * count

    def mesh(self):
        for index, endpoint in enumerate(self.endpoints):
            for other in self.endpoints[:index]:
                endpoint.connect(other)

    async def open(self, index, name="aa"):
        self.replications[index] = await self.stack.enter_async_context(
            open_replication(
                self.endpoints[index], self.states[index], name, rng=random.Random(index)
            )
        )
        return self.replications[index]

    def say(self, index, step=None):
        if step is None:
            self.states[index].set_member(MemberInfo(f"n{index}", ()))
        else:
            self.states[index].set_progress(Progress(1, step, 1.0, 1, 1.0))
        if self.replications[index]:
            self.replications[index].notify()

    async def until(self, index, condition):
        version = -1
        while not condition(self.states[index]):
            version = await self.replications[index].wait_change(version)

    async def until_equal(self):
        while len({state.digest() for state in self.states}) > 1:
            await trio.sleep(0.01)


def new_state(index):
    start = trio.current_time()
    wall_ms = lambda: NOW_MS + int((trio.current_time() - start) * 1000)  # noqa: E731
    return authors.new_state(index, wall_ms)


@asynccontextmanager
async def open_swarm(count):
    async with trio.open_nursery() as nursery:
        async with AsyncExitStack() as stack:
            yield Swarm(nursery, stack, count)
        nursery.cancel_scope.cancel()


async def test_edits_reach_all_peers_at_once(autojump_clock):
    async with open_swarm(4) as swarm:
        swarm.mesh()
        for index in range(4):
            await swarm.open(index)
            swarm.say(index)
        with trio.fail_after(1):
            for index in range(4):
                await swarm.until(index, lambda state: len(state.members()) == 4)
        await trio.sleep(5.3)
        began = trio.current_time()
        swarm.say(2, step=7)
        swarm.states[2].set_checkpoint(CheckpointInfo(7, 1, HASH, node(2)))
        for index in range(4):
            await swarm.until(index, lambda state: node(2) in state.progress())
        assert trio.current_time() - began < 0.1
        await swarm.until_equal()
        assert swarm.replications[0].partners == sorted([node(1), node(2), node(3)])


async def test_missed_notifications_are_made_good_by_the_interval(autojump_clock):
    async with open_swarm(2) as swarm:
        swarm.mesh()
        for index in range(2):
            await swarm.open(index)
        await trio.sleep(1)
        swarm.states[0].set_member(MemberInfo("forgot to notify", ()))
        with trio.fail_after(3):
            await swarm.until(1, lambda state: len(state.members()) == 1)


async def test_a_peer_that_serves_later_is_found_when_it_does(autojump_clock):
    async with open_swarm(2) as swarm:
        swarm.mesh()
        await swarm.open(0)
        swarm.say(0)
        await trio.sleep(600)
        peer = swarm.endpoints[0].peers[node(1)]
        assert 20 <= peer.refused <= 40  # tried again, ever more rarely
        assert swarm.replications[0].partners == []
        assert swarm.replications[0].counters["unserved"] >= peer.refused - 1
        began = trio.current_time()
        await swarm.open(1)
        swarm.say(1)
        with trio.fail_after(1):
            await swarm.until_equal()
            while not swarm.replications[0].partners:
                await trio.sleep(0.01)
        assert trio.current_time() - began < 1
        assert len(swarm.states[1].members()) == 2


async def test_other_runs_are_left_alone(autojump_clock):
    async with open_swarm(2) as swarm:
        swarm.mesh()
        await swarm.open(0, "aa")
        await swarm.open(1, "bb")
        swarm.say(0)
        swarm.say(1)
        await trio.sleep(30)
        assert [len(state.members()) for state in swarm.states] == [1, 1]


async def test_peers_that_come_go_and_come_back(autojump_clock):
    async with open_swarm(3) as swarm:
        a, b, c = swarm.endpoints
        for index in range(3):
            await swarm.open(index)
            swarm.say(index)
        a.connect(b)
        await swarm.until(0, lambda state: len(state.members()) == 2)
        b.connect(c)  # a hears of c through b
        with trio.fail_after(10):
            await swarm.until_equal()
        assert len(swarm.states[0].members()) == 3
        a.disconnect(b)
        await trio.sleep(1)
        assert swarm.replications[0].partners == []
        swarm.say(0, step=3)
        swarm.say(2, step=4)
        await trio.sleep(10)
        assert node(2) not in swarm.states[0].progress()
        a.connect(b)
        with trio.fail_after(10):
            await swarm.until_equal()
        assert swarm.states[0].progress()[node(2)].step == 4
        # Reconnected between two looks of the watcher: the peer object is another one.
        a.disconnect(b)
        a.connect(b)
        swarm.say(0, step=5)
        with trio.fail_after(1):
            await swarm.until(1, lambda state: state.progress()[node(0)].step == 5)


async def test_a_restarted_node_is_active_again(autojump_clock):
    async with open_swarm(2) as swarm:
        swarm.mesh()
        await swarm.open(0)
        swarm.say(0)
        async with open_replication(
            swarm.endpoints[1], swarm.states[1], "aa", rng=random.Random(9)
        ) as replication:
            swarm.say(1)
            replication.notify()
            await swarm.until(0, lambda state: node(1) in state.members())
            swarm.states[1].leave("stopped")
            with trio.fail_after(1):
                await replication.flush()
        await swarm.until(0, lambda state: state.members()[node(1)].status == "left")
        swarm.states[1] = new_state(1)
        await swarm.open(1)
        swarm.say(1)
        with trio.fail_after(5):
            await swarm.until(0, lambda state: state.members()[node(1)].status == "active")


async def test_meeting_its_former_self_is_pushed_to_others(autojump_clock):
    async with open_swarm(3) as swarm:
        a, b, c = swarm.endpoints
        ahead = authors.new_state(1, lambda: NOW_MS + 20_000)
        ahead.set_member(MemberInfo("former", ()))
        swarm.states[0].merge(ahead.to_wire())
        b.connect(c)
        for index in range(3):
            await swarm.open(index)
        swarm.say(1)
        await trio.sleep(10)
        b.connect(a)
        with trio.fail_after(0.3):  # long before the next comparison with c
            await swarm.until(0, lambda state: state.members()[node(1)].name == "n1")
            await swarm.until_equal()


async def test_a_large_document_travels_in_bounded_messages(autojump_clock):
    async with open_swarm(2) as swarm:
        swarm.mesh()
        for index in range(100, 400):
            state = new_state(index)
            state.set_member(MemberInfo("x" * 64, tuple(f"{n:0>60}:1" for n in range(16))))
            swarm.states[0].merge(state.to_wire())
        for index in range(2):
            await swarm.open(index)
        with trio.fail_after(0.5):  # answers do not wait for the next comparison
            await swarm.until_equal()
        assert len(swarm.states[1].members()) == 300


async def test_a_peer_that_does_not_read_delays_nobody_and_costs_little(autojump_clock):
    async with open_swarm(3) as swarm:
        swarm.mesh()

        async def deaf(stream):
            await trio.sleep_forever()

        swarm.endpoints[2].serve("state/aa", deaf)
        for index in range(2):
            await swarm.open(index)
        for step in range(200):
            swarm.say(0, step)
            await trio.sleep(0.1)
        with trio.fail_after(1):
            await swarm.until(1, lambda state: state.progress()[node(0)].step == 199)
        link = swarm.replications[0]._links[node(2)]
        assert link.core.counters["sent delta"] <= 6  # what the window took
        assert not link.settled
        with trio.move_on_after(5) as scope:
            await swarm.replications[0].flush()
        assert scope.cancelled_caught  # which is why `flush` wants a deadline


async def test_malformed_updates_end_their_stream_only(autojump_clock):
    async with open_swarm(2) as swarm:
        swarm.mesh()
        for index in range(2):
            await swarm.open(index)
            swarm.say(index)
        await swarm.until_equal()
        hostile = swarm.endpoints[1].peers[node(0)]
        bad = [b"", b"\xc1", pack([1]), pack({"t": "delta", "v": 1}), pack({"t": "what"})]
        for data in bad:
            stream = await hostile.open_stream("state/aa")
            await stream.send_message(data)
            with pytest.raises(EndOfStream):
                await stream.receive_message()
        assert swarm.replications[0].counters["refused"] == len(bad)
        # The honest conversation was replaced by the hostile streams; it comes back by itself.
        swarm.say(1, step=5)
        with trio.fail_after(10):
            await swarm.until(0, lambda state: node(1) in state.progress())


async def test_of_two_streams_from_one_peer_the_older_ends(autojump_clock):
    async with open_swarm(2) as swarm:
        swarm.mesh()
        await swarm.open(0)
        peer = swarm.endpoints[1].peers[node(0)]
        older = await peer.open_stream("state/aa")
        await trio.sleep(0.1)
        newer = await peer.open_stream("state/aa")
        with trio.fail_after(1), pytest.raises(EndOfStream):
            await older.receive_message()
        with trio.move_on_after(60) as scope:
            await newer.receive_message()
        assert scope.cancelled_caught


async def test_opening_streams_again_and_again_does_not_hurry_us(autojump_clock):
    async with open_swarm(2) as swarm:
        swarm.mesh()
        await swarm.open(0)
        peer = swarm.endpoints[0].peers[node(1)]
        for _ in range(1000):
            stream = await swarm.endpoints[1].peers[node(0)].open_stream("state/aa")
            await trio.sleep(0.01)
            await stream.aclose()
        assert peer.refused <= 10 / driver.RETRY_LEAST_S + 2


async def test_a_clock_ahead_does_not_end_the_conversation(autojump_clock):
    async with open_swarm(2) as swarm:
        swarm.mesh()
        swarm.states[1] = authors.new_state(1, lambda: NOW_MS + 3_600_000)
        for index in range(2):
            await swarm.open(index)
            swarm.say(index)
        await trio.sleep(10)
        assert list(swarm.states[0].members()) == [node(0)]
        assert list(swarm.states[0].ahead) == [node(1)]
        assert swarm.replications[0].counters["refused"] == 0
        assert len(swarm.states[1].members()) == 2


async def test_closing_wakes_those_who_wait_and_stops_serving(autojump_clock):
    async with open_swarm(2) as swarm, trio.open_nursery() as nursery:
        swarm.mesh()
        woken = []

        async def wait(replication):
            try:
                await replication.wait_change(replication.version)
            except ReplicationClosed:
                woken.append("closed")

        async with open_replication(
            swarm.endpoints[0], swarm.states[0], "aa", rng=random.Random(0)
        ) as replication:
            for _ in range(3):
                nursery.start_soon(wait, replication)
            await trio.sleep(1)
            changed = replication.changed
        assert changed.is_set()
        await trio.testing.wait_all_tasks_blocked()
        assert woken == ["closed"] * 3
        assert swarm.endpoints[0].handlers == {}
        # A stream that was accepted just before gets an end, not a conversation.
        await replication._listen(FakeStream(swarm.endpoints[0].peers[node(1)], "state/aa"))


async def test_a_stream_from_a_peer_that_is_gone_is_dropped(autojump_clock):
    async with open_swarm(2) as swarm:
        await swarm.open(0)
        stranger = FakePeer(swarm.endpoints[0], swarm.endpoints[1])
        await swarm.replications[0]._listen(FakeStream(stranger, "state/aa"))
        assert swarm.replications[0].partners == []


async def test_the_bodys_own_error_comes_out_alone(autojump_clock):
    async with open_swarm(1) as swarm:
        with pytest.raises(ZeroDivisionError):
            async with open_replication(
                swarm.endpoints[0], swarm.states[0], "aa", rng=random.Random(0)
            ):
                raise ZeroDivisionError
        for interval_s in (0.0, -1.0, float("inf"), float("nan")):
            with pytest.raises(GossipError):
                async with open_replication(
                    swarm.endpoints[0],
                    swarm.states[0],
                    "aa",
                    interval_s=interval_s,
                    rng=random.Random(0),
                ):
                    pass


async def test_cancellation_ends_it(autojump_clock):
    async with open_swarm(2) as swarm:
        swarm.mesh()
        await swarm.open(1)
        with trio.move_on_after(3) as scope:
            async with open_replication(
                swarm.endpoints[0], swarm.states[0], "aa", rng=random.Random(0)
            ):
                await trio.sleep_forever()
        assert scope.cancelled_caught
        assert swarm.endpoints[0].handlers == {}
        assert swarm.endpoints[0].watchers == []


async def test_a_stream_that_ends_after_long_is_replaced_soon(autojump_clock):
    async with open_swarm(2) as swarm:
        swarm.mesh()
        for index in range(2):
            await swarm.open(index)
        for _ in range(3):
            await trio.sleep(40)
            for stream in swarm.endpoints[0].peers[node(1)].streams:
                stream.fail(StreamReset("the middle of the network forgot it"))
            began = trio.current_time()
            while not swarm.replications[0].partners:
                await trio.sleep(0.01)
            assert trio.current_time() - began < 1
