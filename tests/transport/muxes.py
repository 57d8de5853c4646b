"""Two multiplexers back to back, and frames by hand."""

from transport.limits import Limits
from transport.streams.frames import Open, Priority, decode, encode, stream_id
from transport.streams.mux import Mux

NORMAL, URGENT = Priority.NORMAL, Priority.URGENT
NOW = 5.0


def pair(**changes):
    limits = Limits(**changes)
    return Mux(role="initiator", limits=limits), Mux(role="responder", limits=limits)


def events(mux):
    found = []
    while (event := mux.next_event()) is not None:
        found.append(event)
    return found


def move(sender, receiver):
    """Deliver everything one side has to send."""
    while sender.wants_write:
        data = sender.outgoing()
        assert data
        receiver.receive(data, NOW)


def sent(mux):
    """The frames one side has to send, decoded."""
    found = []
    while mux.wants_write:
        found += list(decode(mux.outgoing()))
    return found


def receive(mux, *frames):
    mux.receive(b"".join(map(encode, frames)), NOW)


def remote_id(number, priority=NORMAL):
    """A stream id of the responder's series."""
    return stream_id(number, priority, opened_by_responder=True)


OPEN = Open(remote_id(1), "x")
