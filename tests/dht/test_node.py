"""One node by direct calls: what it answers, whom it believes, what it asks for."""

import attrs
import msgspec
import pytest

from dht.contact import Contact
from dht.errors import DhtBusy, InvalidKey, InvalidRecord
from dht.key import distance, record_key
from dht.messages import (
    Answer,
    AnswerBody,
    FindNode,
    FindRecords,
    Hint,
    Nodes,
    Ping,
    Pong,
    Query,
    QueryBody,
    Records,
    Refused,
    Store,
    Stored,
)
from dht.node import MAX_OPERATIONS, MAX_QUEUE
from dht.operation import Call, Found, Published
from dht.record import SignedRecord, make_record
from dht.settings import DhtSettings
from tests.dht.world import WALL, SimNode, World

KEY = record_key(b"x" * 32, "run", "tiny")


def two(**settings: object) -> tuple[World, SimNode, SimNode]:
    world = World(1, settings=DhtSettings(**settings))  # type: ignore[arg-type]
    me, other = world.add(), world.add()
    me.node.table.seen(other.contact, 0.0)
    return world, me, other


def ask(me: SimNode, sender: SimNode, body: QueryBody, *, server: bool = True) -> AnswerBody:
    query = Query(server=server, body=body)
    key = sender.credentials.public_key
    return me.node.answer(query, sender.contact, key, 0.0, WALL).body


def store(me: SimNode, sender: SimNode, record: SignedRecord) -> AnswerBody:
    """Ask for a token, then store."""
    answer = ask(me, sender, FindRecords(record.key))
    assert isinstance(answer, Records)
    return ask(me, sender, Store(record, answer.token))


def reply(
    me: SimNode, call: Call, sender: SimNode, body: AnswerBody, *, server: bool = True
) -> None:
    me.node.receive(call.number, sender.contact, Answer(server=server, body=body), 0.0, WALL)


def record_of(sim: SimNode, value: bytes = b"v", sequence: int = 1, ttl: int = 900) -> SignedRecord:
    return make_record(
        swarm_id=sim.credentials.swarm_id,
        key=KEY,
        value=value,
        public_key=sim.credentials.public_key,
        sequence=sequence,
        expires_at=int(WALL) + ttl,
        sign=sim.credentials.sign,
    )


# answers


def test_answers_each_query_and_learns_who_serves() -> None:
    world, me, other = two()
    third = world.add()
    assert ask(me, other, Ping()) == Pong()
    assert ask(me, third, FindNode(KEY), server=False) == Nodes(
        [Hint(other.contact.node_id, other.contact.addresses)]
    )
    assert third.contact.node_id not in me.node.table
    answer = ask(me, third, FindRecords(KEY))
    assert isinstance(answer, Records)
    assert answer.contacts == [Hint(other.contact.node_id, other.contact.addresses)]
    assert (answer.records, len(answer.token)) == ([], 16)
    assert third.contact.node_id in me.node.table


def test_asker_is_not_told_about_itself() -> None:
    _, me, other = two()
    assert ask(me, other, FindNode(KEY)) == Nodes([])


def test_node_without_address_or_with_our_id_stays_out_of_the_table() -> None:
    world, me, _ = two()
    third = world.add()
    nowhere = attrs.evolve(third, contact=Contact(third.contact.node_id))
    ask(me, nowhere, Ping())
    ask(me, attrs.evolve(third, contact=me.contact), Ping())
    assert len(me.node.table) == 1


def test_only_the_signer_may_store() -> None:
    world, me, other = two()
    third = world.add()
    record = record_of(other)
    assert store(me, third, record) == Refused("not the signer")
    assert store(me, other, record) == Stored()
    assert store(me, other, record_of(other, sequence=0)) == Refused("stale")
    forged = msgspec.structs.replace(record, value=b"w", sequence=2)
    assert store(me, other, forged) == Refused("invalid")
    answer = ask(me, third, FindRecords(KEY))
    assert isinstance(answer, Records)
    assert answer.records == [record]
    assert me.node.stats()["stores_refused"] == 3


def test_own_record_is_served_and_not_after_its_time() -> None:
    _, me, other = two()
    me.node.put(KEY, b"mine", 100.0, 0.0, WALL)
    answer = ask(me, other, FindRecords(KEY))
    assert isinstance(answer, Records)
    assert [r.value for r in answer.records] == [b"mine"]
    assert me.node._responder.local(KEY, WALL + 200) == []


def test_client_answers_pings_only() -> None:
    _, me, other = two(server=False)
    assert ask(me, other, Ping()) == Pong()
    for body in (FindNode(KEY), FindRecords(KEY), Store(record_of(other))):
        assert ask(me, other, body) == Refused("client")


def test_other_version_is_refused() -> None:
    _, me, other = two()
    query = Query(version=2, server=True, body=Ping())
    answer = me.node.answer(query, other.contact, other.credentials.public_key, 0.0, WALL)
    assert answer.body == Refused("version")


# searches


def test_search_without_contacts_ends_at_once() -> None:
    world = World(1)
    me = world.add()
    operation = me.node.get(KEY, 0.0, WALL)
    assert me.node.next_event() == Found(operation, (), ())
    assert me.node.outgoing(9) == []
    operation = me.node.put(KEY, b"v", 900, 0.0, WALL)
    assert me.node.next_event() == Published(operation, 0)


def test_search_takes_verified_records_and_own() -> None:
    _, me, other = two()
    me.node.put(KEY, b"mine", 900, 0.0, WALL)
    while me.node.outgoing(9):
        pass
    operation = me.node.get(KEY, 0.0, WALL)
    (call,) = me.node.outgoing(9)
    assert (call.contact, call.query.body) == (other.contact, FindRecords(KEY))
    reply(me, call, other, Records([], [record_of(other)]))
    event = me.node.next_event()
    assert isinstance(event, Found)
    assert event.operation == operation
    assert {r.value for r in event.records} == {b"mine", b"v"}
    assert event.contacts == (other.contact,)


def forged_answers(me: SimNode, other: SimNode) -> dict[str, SignedRecord]:
    good = record_of(other)
    replace = msgspec.structs.replace
    swarm = attrs.evolve(other, credentials=attrs.evolve(other.credentials, swarm_id=bytes(32)))
    return {
        "value": replace(good, value=b"w"),
        "sequence": replace(good, sequence=7),
        "signer": replace(good, public_key=me.credentials.public_key),
        "key": replace(good, key=bytes(32)),
        "swarm": record_of(swarm),
        "lifetime": record_of(other, ttl=10**6),
        "expiry": replace(good, expires_at=good.expires_at + 1),
    }


@pytest.mark.parametrize(
    "how", ["value", "sequence", "signer", "key", "swarm", "lifetime", "expiry"]
)
def test_one_forged_record_and_nothing_of_the_answer_is_believed(how: str) -> None:
    world, me, other = two()
    third = world.add()
    me.node.get(KEY, 0.0, WALL)
    (call,) = me.node.outgoing(9)
    forged = forged_answers(me, other)[how]
    hint = Hint(third.contact.node_id, third.contact.addresses)
    reply(me, call, other, Records([hint], [record_of(other), forged]))
    event = me.node.next_event()
    assert isinstance(event, Found)
    assert (event.records, event.contacts) == ((), ())
    assert me.node.outgoing(9) == []
    assert me.node.table.failing() == 1
    assert me.node.stats()["forged_records"] == 1


def test_old_and_expired_records_are_passed_over() -> None:
    world, me, other = two()
    third = world.add()
    me.node.table.seen(third.contact, 0.0)
    me.node.get(KEY, 0.0, WALL)
    first, second = me.node.outgoing(9)
    senders = {sim.contact.node_id: sim for sim in (other, third)}
    reply(me, first, senders[first.contact.node_id], Records([], [record_of(other, b"new", 9)]))
    answer = Records([], [record_of(other, b"old", 3), record_of(third, b"gone", ttl=-100)])
    reply(me, second, senders[second.contact.node_id], answer)
    event = me.node.next_event()
    assert isinstance(event, Found)
    assert [r.value for r in event.records] == [b"new"]
    assert len(event.contacts) == 2


def test_hints_are_asked_but_not_believed() -> None:
    world, me, other = two()
    third = world.add()
    me.node.find(KEY, 0.0)
    (call,) = me.node.outgoing(9)
    reply(me, call, other, Nodes([Hint(third.contact.node_id, third.contact.addresses)]))
    assert third.contact.node_id not in me.node.table
    (call,) = me.node.outgoing(9)
    assert call.contact == third.contact
    me.node.fail(call.number, 0.0, WALL)
    assert third.contact.node_id not in me.node.table
    event = me.node.next_event()
    assert isinstance(event, Found)
    assert event.contacts == (other.contact,)


@pytest.mark.parametrize("body", [Pong(), Stored(), Records([], [])])
def test_answer_of_the_wrong_kind_counts_as_none(body: AnswerBody) -> None:
    _, me, other = two()
    me.node.find(KEY, 0.0)
    (call,) = me.node.outgoing(9)
    reply(me, call, other, body)
    assert me.node.table.failing() == 1
    event = me.node.next_event()
    assert isinstance(event, Found)
    assert event.contacts == ()


def test_answer_of_another_node_counts_as_none() -> None:
    world, me, other = two()
    third = world.add()
    me.node.find(KEY, 0.0)
    (call,) = me.node.outgoing(9)
    reply(me, call, third, Nodes([]))
    assert me.node.stats()["wrong_node"] == 1
    assert third.contact.node_id not in me.node.table
    assert other.contact.node_id in me.node.table


def test_client_that_answers_is_used_but_not_kept() -> None:
    world, me, other = two()
    third = world.add()
    me.node.find(KEY, 0.0)
    (call,) = me.node.outgoing(9)
    reply(me, call, other, Nodes([Hint(third.contact.node_id, third.contact.addresses)]))
    (call,) = me.node.outgoing(9)
    reply(me, call, third, Nodes([]), server=False)
    event = me.node.next_event()
    assert isinstance(event, Found)
    assert third.contact in event.contacts
    assert third.contact.node_id not in me.node.table


def test_senseless_hints_cause_no_calls() -> None:
    _, me, other = two()
    me.node.find(KEY, 0.0)
    (call,) = me.node.outgoing(9)
    hints = [
        Hint(
            b"a" * 32,
            (
                "0.0.0.0:7447",
                "name.example:7447",
                "127.0.0.1:7447",
            ),
        ),
        Hint(me.contact.node_id, ("10.0.0.9:7447",)),
        Hint(b"b" * 32, ()),
    ]
    reply(me, call, other, Nodes(hints))
    assert me.node.outgoing(9) == []
    assert isinstance(me.node.next_event(), Found)


def test_refusal_ends_that_branch_without_blame() -> None:
    _, me, other = two()
    me.node.find(KEY, 0.0)
    (call,) = me.node.outgoing(9)
    reply(me, call, other, Refused("client"), server=False)
    assert me.node.table.failing() == 0
    assert isinstance(me.node.next_event(), Found)


def test_unknown_or_repeated_reports_change_nothing() -> None:
    _, me, other = two()
    me.node.find(KEY, 0.0)
    (call,) = me.node.outgoing(9)
    reply(me, call, other, Nodes([]))
    before = me.node.stats()
    reply(me, call, other, Nodes([]))
    me.node.fail(call.number, 0.0, WALL)
    me.node.fail(12345, 0.0, WALL)
    assert me.node.stats() == before


# putting


def test_put_stores_at_the_closest_and_counts_who_took_it() -> None:
    world, me, other = two()
    third = world.add()
    me.node.table.seen(third.contact, 0.0)
    operation = me.node.put(KEY, b"v", 900, 0.0, WALL)
    senders = {sim.contact.node_id: sim for sim in (other, third)}
    for call in me.node.outgoing(9):
        assert call.query.body == FindRecords(KEY)
        reply(me, call, senders[call.contact.node_id], Records([], []))
    stores = me.node.outgoing(9)
    assert [type(call.query.body) for call in stores] == [Store, Store]
    reply(me, stores[0], senders[stores[0].contact.node_id], Stored())
    assert me.node.next_event() is None
    me.node.fail(stores[1].number, 0.0, WALL)
    assert me.node.next_event() == Published(operation, 1)


def test_put_goes_above_its_own_older_life() -> None:
    _, me, other = two()
    earlier = record_of(me, b"from before the clock went back", sequence=2**60)
    me.node.put(KEY, b"v", 900, 0.0, WALL)
    (call,) = me.node.outgoing(9)
    reply(me, call, other, Records([], [earlier]))
    (call,) = me.node.outgoing(9)
    assert isinstance(call.query.body, Store)
    assert call.query.body.record.sequence == 2**60 + 1
    assert call.query.body.record.value == b"v"


def test_newcomer_gets_our_records() -> None:
    world, me, _ = two()
    third = world.add()
    me.node.put(KEY, b"v", 900, 0.0, WALL)
    me.node.outgoing(9)
    ask(me, third, Ping())
    (call,) = me.node.outgoing(9)
    assert (call.contact, call.query.body) == (third.contact, FindRecords(KEY))
    reply(me, call, third, Records([], [], b"token"))
    (call,) = me.node.outgoing(9)
    assert call.contact == third.contact
    assert isinstance(call.query.body, Store)
    assert call.query.body.token == b"token"
    reply(me, call, third, Stored())
    assert me.node.publisher.holders(KEY) == 1


def test_refused_put_publishes_nothing() -> None:
    _, me, _ = two()
    with pytest.raises(InvalidRecord):
        me.node.put(KEY, b"x" * 1001, 900, 0.0, WALL)
    with pytest.raises(InvalidKey):
        me.node.put(b"short", b"", 900, 0.0, WALL)
    assert len(me.node.publisher) == 0
    assert me.node.stats()["operations"] == 0


def test_abandoned_put_goes_on_in_silence() -> None:
    _, me, other = two()
    operation = me.node.put(KEY, b"v", 900, 0.0, WALL)
    me.node.abandon(operation)
    (call,) = me.node.outgoing(9)
    reply(me, call, other, Records([], []))
    (call,) = me.node.outgoing(9)
    reply(me, call, other, Stored())
    assert me.node.next_event() is None
    assert me.node.publisher.holders(KEY) == 1
    assert me.node.stats()["operations"] == 0


def test_abandoned_search_is_forgotten() -> None:
    _, me, other = two()
    me.node.abandon(me.node.find(KEY, 0.0))
    (call,) = me.node.outgoing(9)
    reply(me, call, other, Nodes([]))
    assert me.node.next_event() is None
    assert me.node.stats()["operations"] == me.node.stats()["calls_open"] == 0


# bounds and time


def test_operations_and_queue_are_bounded() -> None:
    _, me, other = two()
    for _ in range(MAX_OPERATIONS):
        me.node.find(KEY, 0.0)
    with pytest.raises(DhtBusy):
        me.node.find(KEY, 0.0)
    with pytest.raises(DhtBusy):
        me.node.put(KEY, b"", 900, 0.0, WALL)
    assert me.node.publisher.get(KEY) is None
    me.node.outgoing(10**6)
    for number in range(MAX_QUEUE + 50):
        me.node.greet(Contact(number.to_bytes(32, "big"), ("10.0.0.1:1",)), 0.0)
    assert len(me.node.outgoing(10**6)) == MAX_QUEUE
    assert me.node.stats()["calls_dropped"] == 50
    assert other.contact.node_id in me.node.table


def test_greeting_asks_once_and_not_those_just_heard() -> None:
    world, me, other = two()
    third = world.add()
    me.node.greet(other.contact, 1.0)
    assert me.node.outgoing(9) == []
    me.node.greet(third.contact, 1.0)
    me.node.greet(third.contact, 1.0)
    me.node.greet(me.contact, 1.0)
    (call,) = me.node.outgoing(9)
    assert call.query.body == Ping()
    me.node.fail(call.number, 2.0, WALL)
    me.node.greet(third.contact, 2.0)
    assert len(me.node.outgoing(9)) == 1


def test_full_bucket_asks_its_oldest() -> None:
    world = World(1)
    me = world.add()
    index_0 = [n.to_bytes(1, "big") for n in range(256) if (n ^ me.contact.node_id[0]) & 0x80]
    for number in range(20):
        me.node.table.seen(Contact(index_0[number] + bytes(31), ("10.0.0.1:1",)), 0.0)
    late = Contact(index_0[50] + bytes(31), ("10.0.0.1:1",))
    query = Query(server=True, body=FindNode(KEY))
    me.node.answer(query, late, bytes(32), 30.0, WALL)
    assert me.node.outgoing(9) == []  # heard from a moment ago
    ping = Query(server=True, body=Ping())
    me.node.answer(ping, late, bytes(32), 901.0, WALL)
    assert me.node.outgoing(9) == []  # a ping must not cause the next
    me.node.answer(query, late, bytes(32), 901.0, WALL)
    (call,) = me.node.outgoing(9)
    assert call.contact.node_id == index_0[0] + bytes(31)


def test_first_contact_starts_a_search_of_our_neighbourhood() -> None:
    world = World(1)
    me, other = world.add(), world.add()
    assert me.node.next_deadline() == 60.0
    ask(me, other, Ping())
    assert me.node.next_deadline() <= 0.0
    me.node.tick(0.0, WALL)
    (call,) = me.node.outgoing(9)
    assert call.query.body == FindNode(me.contact.node_id)


def test_silent_contact_is_asked_again_later() -> None:
    _, me, other = two()
    me.node.find(KEY, 0.0)
    (call,) = me.node.outgoing(9)
    me.node.fail(call.number, 3.0, WALL)
    deadline = me.node.next_deadline()
    assert deadline == 5.0
    me.node.tick(deadline, WALL)
    (call,) = me.node.outgoing(9)
    assert (call.contact, call.query.body) == (other.contact, Ping())


def test_expired_records_leave() -> None:
    _, me, other = two()
    store(me, other, record_of(other, ttl=30))
    assert me.node.stats()["records_held"] == 1
    me.node.tick(120.0, WALL + 120)
    assert me.node.stats()["records_held"] == 0


def test_no_deadline_is_in_the_past_after_a_tick_at_rest() -> None:
    world, me, _ = two()
    me.node.put(KEY, b"v", 900, 0.0, WALL)
    world.flush(me)
    for _ in range(300):
        world.step()
        assert me.node.next_deadline() > world.now - 1e-9 or me.node._upkeep.waiting
    assert distance(KEY, KEY) == 0
