"""What the swarm keeps together: messages and records of the DHT, and the run's shared state."""

import hashlib

from crdt.clock import HybridClock
from crdt.entry import Author
from crdt.errors import CrdtError
from crdt.state import RunState
from dht.contact import sane_address
from dht.errors import InvalidRecord
from dht.messages import Answer, Query, from_hints
from dht.record import SignedRecord, check, make_record
from tests.fuzz.targets.kit import ALICE, KEY, NOW, edited, target
from tests.trusted import SWARM
from transport.codec import decode_untrusted, pack, unpack_untrusted
from transport.errors import MalformedMessage
from transport.identity import verify


@target
def dht_message(data: bytes) -> None:
    """Queries and answers; the hints that are used are sane."""
    for type_ in (Query, Answer):
        try:
            message = decode_untrusted(data, type_)
        except MalformedMessage:
            continue
        assert decode_untrusted(pack(message), type_) == message
        for contact in from_hints(
            getattr(message.body, "contacts", []), own_id=KEY, loopback=False
        ):
            assert all(sane_address(text, loopback=False) for text in contact.addresses)


RECORD = make_record(
    swarm_id=SWARM.id,
    key=KEY,
    value=b"value",
    public_key=ALICE.public_key,
    sequence=3,
    expires_at=int(NOW) + 60,
    sign=ALICE.sign,
)


@target
def dht_record(data: bytes) -> None:
    """Only the record that was signed verifies."""
    source = data[1:] if data[:1] < b"\x20" else edited(pack(RECORD), data[1:])
    try:
        value = decode_untrusted(source, SignedRecord)
        check(value, swarm_id=SWARM.id, key=KEY, wall=NOW, verify=verify)
    except (MalformedMessage, InvalidRecord):
        return
    assert value == RECORD


@target
def crdt(data: bytes) -> None:
    """Any decoded value as a delta, a context, a want or a whole state; what merged can be told on."""
    try:
        value = unpack_untrusted(data)
    except MalformedMessage:
        return

    state = run_state(b"me")
    for use in (state.merge, state.they_lack, state.we_lack):
        before = state.digest()
        try:
            use(value)
        except CrdtError:
            assert state.digest() == before
    copy = run_state(b"other")
    copy.merge(state.to_wire())
    assert copy.digest() == state.digest()
    unpack_untrusted(pack(state.to_wire()))


def run_state(seed: bytes) -> RunState:
    """A replica whose author signs with a hash, so that mutated entries get past the signature."""
    public_key = hashlib.sha256(seed).digest()
    return RunState(
        Author(public_key, lambda _data: bytes(64)),
        HybridClock(hashlib.sha256(public_key).digest(), lambda: int(NOW * 1000)),
        KEY,
        lambda _key, _signature, _data: True,
    )
