"""Messages to a member of the run: at once where that is possible, in order always."""

import pytest
import trio
import trio.testing

from gossip.collective.outgoing import QUEUE_MESSAGES, Outgoing


class Wire:
    """The part of a stream that is used; `busy` while a message would have to wait."""

    def __init__(self):
        self.busy = False
        self.sent = []
        self.free = trio.Event()

    def try_send_message(self, message):
        if not self.busy:
            self.sent.append(message)
        return not self.busy

    async def send_message(self, message):
        await trio.lowlevel.checkpoint()
        if self.busy:
            await self.free.wait()
        self.sent.append(message)


async def test_a_message_leaves_without_the_task_where_nothing_waits():
    wire = Wire()
    outgoing = Outgoing(wire)
    outgoing.send(b"a")
    outgoing.send(b"b")
    assert wire.sent == [b"a", b"b"]


async def test_nothing_goes_past_a_message_that_waits():
    wire = Wire()
    outgoing = Outgoing(wire)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outgoing.run)
        await trio.testing.wait_all_tasks_blocked()
        wire.busy = True
        outgoing.send(b"a")
        wire.busy = False  # the task has been given it, and has not run yet
        outgoing.send(b"b")
        assert wire.sent == []
        await trio.testing.wait_all_tasks_blocked()
        assert wire.sent == [b"a", b"b"]
        outgoing.send(b"c")
        assert wire.sent == [b"a", b"b", b"c"]
        outgoing.close()


async def test_what_waits_is_bounded_and_still_leaves_after_close():
    wire = Wire()
    wire.busy = True
    outgoing = Outgoing(wire)
    for number in range(QUEUE_MESSAGES):
        outgoing.send(b"%d" % number)
    with pytest.raises(trio.WouldBlock):
        outgoing.send(b"too many")
    outgoing.close()
    with pytest.raises(trio.ClosedResourceError):
        outgoing.send(b"late")
    wire.busy = False
    await outgoing.run()
    assert wire.sent == [b"%d" % number for number in range(QUEUE_MESSAGES)]


async def test_when_the_task_has_ended_what_must_wait_is_refused():
    wire = Wire()
    outgoing = Outgoing(wire)
    with trio.CancelScope() as scope:
        scope.cancel()
        await outgoing.run()
    wire.busy = True
    with pytest.raises(trio.BrokenResourceError):
        outgoing.send(b"x")
