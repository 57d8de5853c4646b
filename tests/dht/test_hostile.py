"""Attacks on one node, and on what it stores: each costs the attacker his answer, and nobody else anything."""

import attrs
import msgspec
import pytest

from dht.contact import Contact
from dht.diversity import groups_of
from dht.key import record_key
from dht.messages import (
    MAX_RECORDS,
    Answer,
    AnswerBody,
    FindNode,
    FindRecords,
    Hint,
    Nodes,
    Ping,
    Query,
    QueryBody,
    Records,
    Refused,
    Store,
    Stored,
)
from dht.operation import Found
from dht.record import SignedRecord, make_record
from dht.settings import DhtSettings
from dht.store import Kept
from tests.dht.test_store import WALL as STORE_WALL
from tests.dht.test_store import open_store, record
from tests.dht.world import WALL, SimNode, World

KEY = record_key(b"x" * 32, "run", "tiny")


def ask(
    me: SimNode, sender: SimNode, body: QueryBody, *, now: float = 0.0, server: bool = True
) -> AnswerBody:
    query = Query(server=server, body=body)
    return me.node.answer(
        query, sender.contact, sender.credentials.public_key, now, WALL + now
    ).body


def token(me: SimNode, sender: SimNode, key: bytes = KEY, now: float = 0.0) -> bytes:
    answer = ask(me, sender, FindRecords(key), now=now)
    assert isinstance(answer, Records)
    return answer.token


def signed(sim: SimNode, key: bytes = KEY, sequence: int = 1, ttl: int = 900) -> SignedRecord:
    return make_record(
        swarm_id=sim.credentials.swarm_id,
        key=key,
        value=b"v",
        public_key=sim.credentials.public_key,
        sequence=sequence,
        expires_at=int(WALL) + ttl,
        sign=sim.credentials.sign,
    )


def pair() -> tuple[World, SimNode, SimNode]:
    world = World(1)
    return world, world.add(), world.add()


# stores


def test_write_without_token_is_refused_before_anything_is_computed() -> None:
    world, me, other = pair()
    good = token(me, other)
    third = world.add()
    checks = world.counters["verified"]
    for bad in (b"", bytes(16), token(me, other, bytes(32)), token(me, third)):
        assert ask(me, other, Store(signed(other), bad)) == Refused("token")
    assert world.counters["verified"] == checks
    assert ask(me, other, Store(signed(other), good), now=700.0) == Refused("token")
    assert ask(me, other, Store(signed(other), good), now=299.0) == Stored()


def test_replayed_expired_forged_and_too_long_lived_stores_are_refused() -> None:
    _, me, other = pair()
    good = token(me, other)
    assert ask(me, other, Store(signed(other, sequence=5), good)) == Stored()
    assert ask(me, other, Store(signed(other, sequence=4), good)) == Refused("stale")
    assert ask(me, other, Store(signed(other, sequence=6, ttl=-100), good)) == Refused("expired")
    assert ask(me, other, Store(signed(other, sequence=6, ttl=10**6), good)) == Refused("invalid")
    forged = msgspec.structs.replace(signed(other, sequence=6), value=b"w")
    assert ask(me, other, Store(forged, good)) == Refused("invalid")
    big = msgspec.structs.replace(signed(other, sequence=6), value=bytes(1001))
    assert ask(me, other, Store(big, good)) == Refused("invalid")
    assert [each.sequence for each in me.node.store.get(KEY, WALL)] == [5]


def test_records_are_not_carried_for_others() -> None:
    world, me, other = pair()
    carrier = world.add()
    assert ask(me, carrier, Store(signed(other), token(me, carrier))) == Refused("not the signer")


def test_flood_of_stores_by_one_identity_takes_its_places_and_no_more() -> None:
    world, me, other = pair()
    refused = 0
    for number in range(500):
        key = number.to_bytes(32, "big")
        now = number / 1000
        answer = ask(me, other, Store(signed(other, key), token(me, other, key, now)), now=now)
        refused += answer != Stored()
    assert len(me.node.store) == 64
    assert refused == 500 - 64
    third = world.add()
    assert ask(me, third, Store(signed(third), token(me, third))) == Stored()


def test_flood_of_new_versions_stops_at_the_allowance() -> None:
    """A record that replaces itself takes no place, but each costs a signature check."""
    world, me, other = pair()
    good = token(me, other)
    checks = world.counters["verified"]
    answers = [
        ask(me, other, Store(signed(other, sequence=n), good), now=n / 1000) for n in range(1000)
    ]
    assert answers.count(Stored()) == 128
    assert answers[-1] == Refused("too many stores")
    assert world.counters["verified"] - checks == 128
    assert ask(me, other, Store(signed(other, sequence=2000), good), now=10.0) == Stored()


def groups(host: str) -> tuple[tuple[int, int, int], ...]:
    return groups_of(Contact(bytes(32), (), host))


def test_flood_of_identities_from_one_network_does_not_push_out_a_run_s_members() -> None:
    store = open_store(per_key=32)
    for signer in range(20):
        assert (
            store.offer(record(signer, 7), STORE_WALL, groups(f"{20 + signer}.1.1.1"))
            is Kept.STORED
        )
    for signer in range(100, 600):
        assert store.offer(record(signer, 7), STORE_WALL, groups("8.8.8.8")) is Kept.STORED
    held = {each.public_key for each in store.get((7).to_bytes(32, "big"), STORE_WALL)}
    assert len(held) == 32
    assert all(signer.to_bytes(32, "big") in held for signer in range(20))


def test_one_network_gets_an_eighth_of_a_store_that_fills_up() -> None:
    store = open_store(total=64)
    kept = [
        store.offer(record(signer, 1000 + signer), STORE_WALL, groups("8.8.8.8"))
        for signer in range(100)
    ]
    assert kept.count(Kept.STORED) == 32  # as long as half of it is free
    assert kept[-1] is Kept.GROUP_FULL
    for signer in range(200, 232):
        host = f"{20 + signer % 60}.{signer}.1.1"
        assert store.offer(record(signer, 2000 + signer), STORE_WALL, groups(host)) is Kept.STORED
    assert len(store) == 64


# searches and the table


@pytest.mark.parametrize("swap", [False, True])
def test_liar_cannot_lead_a_search_to_other_identities(swap: bool) -> None:
    """Hints with a victim's id and the liar's address: the handshake shows another id, and nothing is learnt."""
    world, me, liar = pair()
    victim = world.add()
    me.node.table.seen(liar.contact, 0.0)
    me.node.find(victim.contact.node_id, 0.0)
    (call,) = me.node.outgoing(9)
    false = Hint(victim.contact.node_id, liar.contact.addresses)
    answer = Answer(server=True, body=Nodes([false] * (3 if swap else 1)))
    me.node.receive(call.number, liar.contact, answer, 0.0, WALL)
    (call,) = me.node.outgoing(9)
    assert call.contact.addresses == liar.contact.addresses
    me.node.receive(call.number, liar.contact, Answer(server=True, body=Nodes([])), 0.0, WALL)
    assert me.node.counters["wrong_node"] == 1
    assert victim.contact.node_id not in me.node.table
    event = me.node.next_event()
    assert isinstance(event, Found)
    assert [contact.node_id for contact in event.contacts] == [liar.contact.node_id]


def test_answer_with_too_much_is_malformed() -> None:
    many = Answer(server=True, body=Records([], [record(n, 7) for n in range(MAX_RECORDS + 1)]))
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(many), type=Answer)
    long = Answer(server=True, body=Records([], [], bytes(33)))
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(long), type=Answer)


def test_flood_of_identities_from_one_network_stays_out_of_the_table() -> None:
    world, me, _ = pair()
    for number in range(60):
        honest = world.add(host=f"{20 + number}.{number}.1.1")
        ask(me, honest, Ping())
    before = {contact.node_id for contact in me.node.table.contacts()}
    for number in range(500):
        one = attrs.evolve(
            world.add(host="8.8.8.8"),
            contact=Contact(world.rng.randbytes(32), (f"8.8.8.8:{number + 1}",), "8.8.8.8"),
        )
        ask(me, one, FindNode(KEY))
    after = me.node.table.contacts()
    assert before <= {contact.node_id for contact in after}
    assert sum(contact.host == "8.8.8.8" for contact in after) <= 10
    assert me.node.stats()["contacts_refused"] >= 450


def test_eclipse_of_a_victim_fails() -> None:
    """300 colluders with ids next to a victim's, from one network, talk to it for an hour; it still finds and is found."""
    world = World(3, settings=DhtSettings(refresh_s=600.0))
    honest = [world.add(host=f"{20 + n % 80}.{n // 80}.7.1") for n in range(150)]
    world.prefill()
    victim = honest[0]
    from tests.dht.world import Collusion

    ground = [
        world.add(
            node_id=victim.contact.node_id[:6] + world.rng.randbytes(26), host=f"8.8.8.{n % 200}"
        )
        for n in range(300)
    ]
    Collusion(world, ground)
    for sim in ground:
        for body in (Ping(), FindNode(victim.contact.node_id)):
            ask(victim, sim, body, now=world.now)
    world.flush(victim)
    world.run_for(60.0)
    key = record_key(world.swarm_id, "run", "tiny")
    world.put(honest[77], key, b"true")
    assert [each.value for each in world.get(victim, key)] == [b"true"]
    mine = record_key(world.swarm_id, "run", "mine")
    world.put(victim, mine, b"mine")
    assert [each.value for each in world.get(honest[50], mine)] == [b"mine"]
    held = [contact.host for contact in victim.node.table.contacts()]
    assert sum(host.startswith("8.8.8.") for host in held) <= 10


# clients


def test_client_leaves_the_tables_it_was_in() -> None:
    world, me, other = pair()
    ask(me, other, Ping())
    assert other.contact.node_id in me.node.table
    ask(me, other, Ping(), server=False)
    assert other.contact.node_id not in me.node.table
    third = world.add()
    me.node.table.seen(third.contact, 0.0)
    me.node.find(KEY, 0.0)
    (call,) = me.node.outgoing(9)
    refusal = Answer(server=False, body=Refused("client"))
    me.node.receive(call.number, third.contact, refusal, 0.0, WALL)
    assert third.contact.node_id not in me.node.table


def test_becoming_a_client_is_told_to_the_neighbours() -> None:
    world = World(1)
    nodes = [world.add() for _ in range(6)]
    for sim in nodes[1:]:
        world.join(sim, nodes[0])
        world.run_for(3.0)
    me = nodes[3]
    me.node.serve(serving=False, now=world.now)
    world.flush(me)
    world.run_for(5.0)
    assert all(me.contact.node_id not in sim.node.table for sim in nodes)
    assert ask(me, nodes[0], FindNode(KEY), now=world.now) == Refused("client")
    me.node.serve(serving=True, now=world.now)
    world.flush(me)
    world.run_for(5.0)
    assert all(me.contact.node_id in sim.node.table for sim in nodes if sim is not me)
