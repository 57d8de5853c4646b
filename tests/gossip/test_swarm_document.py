"""The swarm's document: what it takes, what it knows, and renewals; the cores, then pairs of endpoints."""

import random
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio

from crdt.errors import CrdtError
from gossip.swarm import renewal
from gossip.swarm.document import SwarmDocument
from gossip.swarm.service import SWEEP_S, open_swarm_document
from tests.transport.nodes import address, identity, node
from tests.trusted import FOREIGN_ROOT, ROOT, SWARM, invited_chain, member_chain, trust_of
from transport.errors import PeerUnreachable, RemoteCallFailed, UsageError
from transport.simulated.memory import MemoryNetwork
from transport.trust.chain import Chain, certify, certify_by_root
from transport.trust.refusal import CertificateRefused, Refusal
from transport.trust.revocation import revoke
from transport.trust.statement import encode_statement
from transport.trust.trust import Trust

ALICE, BOB, CAROL = (identity(number) for number in (1, 2, 3))
NOW_MS = 1_700_000_000_000
DAY_MS = 24 * 3600 * 1000
FOUNDER = member_chain(ALICE, may_invite=True)
INVITED = invited_chain(ALICE, FOUNDER, BOB, may_invite=True)
GUEST = invited_chain(BOB, INVITED, CAROL)


def document(chain=FOUNDER):
    return SwarmDocument(Trust(SWARM.id, chain.raw))


def test_it_begins_with_our_own_certificate_and_keeps_history():
    held = document()
    assert list(held.certified()) == [FOUNDER]
    kept = []
    held.on_taken = kept.append
    gone = []
    held.on_revoked = gone.append
    assert held.say(GUEST)
    assert not held.say(GUEST)
    revocation = revoke(ROOT, swarm_id=SWARM.id, subject=CAROL.node_id, at_ms=NOW_MS, reason="why")
    assert held.say(revocation)
    assert held.trust.revoked == {CAROL.node_id: (revocation,)}
    assert gone == [CAROL.node_id]
    assert [type(entry.statement).__name__ for entry in held.history()][-1] == "Revocation"
    assert held.history()[-1].at_ms == NOW_MS
    assert kept == [
        encode_statement(each) for each in (INVITED, GUEST, revocation)
    ]  # what it rests on, too
    assert set(held.chains()) == {ALICE.node_id, BOB.node_id, CAROL.node_id}
    # What was kept makes the next process know the same.
    again = document()
    assert again.load([*kept, b"torn", encode_statement(member_chain(BOB, root=FOREIGN_ROOT))]) == 2
    assert again.statements.digest() == held.statements.digest()
    with pytest.raises(CertificateRefused):
        again.trust.check(GUEST.raw, CAROL.public_key, NOW_MS)


def test_nothing_gets_in_that_proves_nothing():
    held = document()
    for raw in (b"", b"\x03x", b"\x01", encode_statement(member_chain(BOB, root=FOREIGN_ROOT))):
        with pytest.raises(CrdtError):
            held.statements.merge({"v": 2, "entries": [raw], "evidence": []})


def test_a_revocation_keeps_what_is_known_of_the_revoked_issuers_certificates():
    held = document()
    held.say(INVITED)
    held.say(GUEST)
    held.say(held.revocation(ALICE, BOB.node_id, at_ms=NOW_MS, reason="lost"))
    trust = held.trust
    assert trust.check(GUEST.raw, CAROL.public_key, NOW_MS).node_id == CAROL.node_id
    late = invited_chain(BOB, INVITED, identity(9))
    with pytest.raises(CertificateRefused) as caught:
        trust.check(late.raw, identity(9).public_key, NOW_MS)
    assert caught.value.refusal is Refusal.ISSUER_REVOKED


def test_leaving_costs_nobody_else_their_place():
    held = document()
    held.say(INVITED)
    said = held.revocation(BOB, BOB.node_id, at_ms=NOW_MS, leaving=True)
    assert said.keeps_all
    held.say(said)
    assert held.trust.check(GUEST.raw, CAROL.public_key, NOW_MS)
    with pytest.raises(UsageError, match="may not revoke"):
        held.revocation(CAROL, BOB.node_id, at_ms=NOW_MS)


def timed(issuer, chain, subject, *, days, start=0, **more):
    return certify(
        issuer,
        chain,
        subject=subject.public_key,
        role="trainer",
        serial=bytes([start % 256]) * 16,
        now_ms=NOW_MS + start * DAY_MS,
        lifetime_ms=days * DAY_MS,
        **more,
    )


def founder(days=1000):
    return certify_by_root(
        ROOT,
        subject=ALICE.public_key,
        role="trainer",
        serial=bytes(16),
        now_ms=NOW_MS,
        lifetime_ms=days * DAY_MS,
        may_invite=True,
    )


def test_renewal_is_due_in_the_last_third():
    chain = timed(ALICE, founder(), BOB, days=90)
    assert not renewal.is_due(chain, NOW_MS + 59 * DAY_MS)
    assert renewal.is_due(chain, NOW_MS + 60 * DAY_MS)
    assert renewal.whom_to_ask(chain) == [ALICE.node_id]
    assert renewal.whom_to_ask(founder()) == []
    assert renewal.whom_to_ask(GUEST) == [BOB.node_id, ALICE.node_id]


def give(issuer, own, chain, at_days=60):
    now_ms = NOW_MS + at_days * DAY_MS
    member = Trust(SWARM.id).check(chain.raw, chain.leaf.subject, now_ms)
    return renewal.renewed(
        issuer,
        own,
        member,
        now_ms=now_ms,
        lifetime_ms=90 * DAY_MS,
        random_bytes=random.Random(1).randbytes,
    )


def test_a_renewed_certificate_is_the_same_once_more():
    above = founder()
    old = timed(ALICE, above, BOB, days=90, may_invite=True, invite=b"i" * 16)
    new = give(ALICE, above, old)
    assert (new.leaf.role, new.leaf.may_invite, new.leaf.invite, new.leaf.inviter) == (
        old.leaf.role,
        old.leaf.may_invite,
        old.leaf.invite,
        old.leaf.inviter,
    )
    assert new.leaf.serial != old.leaf.serial
    assert new.leaf.expires_at_ms == NOW_MS + 150 * DAY_MS
    trust = Trust(SWARM.id, old.raw)
    now_ms = NOW_MS + 60 * DAY_MS
    assert renewal.accepted(trust, new.raw, BOB.public_key, now_ms) == new
    assert renewal.accepted(trust, old.raw, BOB.public_key, now_ms) is None
    with pytest.raises(CertificateRefused):
        renewal.accepted(trust, new.raw, CAROL.public_key, now_ms)


def test_one_further_above_renews_and_the_chain_gets_shorter():
    above = founder()
    middle = timed(ALICE, above, BOB, days=500, may_invite=True)
    old = timed(BOB, middle, CAROL, days=90)
    new = give(ALICE, above, old)
    assert len(new.certificates) == 2
    assert new.leaf.inviter == BOB.node_id


def test_whom_nobody_above_asks_gets_nothing():
    above = founder()
    old = timed(ALICE, above, BOB, days=90)
    for issuer, own in ((CAROL, GUEST), (ALICE, None)):
        with pytest.raises(RemoteCallFailed, match="does not stand above"):
            give(issuer, own, old)
    short = founder(days=95)
    with pytest.raises(RemoteCallFailed, match="not renewed"):
        give(ALICE, short, timed(ALICE, short, BOB, days=95), at_days=95)


def test_a_wider_role_by_renewal_is_not_accepted():
    trust = Trust(SWARM.id, member_chain(BOB, "relay").raw)
    assert renewal.accepted(trust, member_chain(BOB).raw, BOB.public_key, NOW_MS) is None


# Pairs of endpoints


@asynccontextmanager
async def member(world, number, chain: Chain | None = None, clock=lambda: 0):
    """A node with its document, in the same world."""
    own = identity(number)
    trust = trust_of(own) if chain is None else Trust(SWARM.id, chain.raw)
    async with (
        node(world.host(f"10.0.0.{number}"), number, trust=trust, clock=clock) as endpoint,
        open_swarm_document(
            endpoint,
            SwarmDocument(trust),
            rng=random.Random(number),
            wall_ms=lambda: int(clock() * 1000),
            lifetime_ms=90 * DAY_MS,
        ) as service,
    ):
        yield endpoint, service


async def until(look, patience_s=30.0):
    with trio.fail_after(patience_s):
        while not look():
            await trio.sleep(0.05)


async def test_a_revocation_goes_through_the_swarm_and_ends_connections(
    autojump_clock: object,
) -> None:
    world = MemoryNetwork(1)
    async with AsyncExitStack() as stack:
        members = [await stack.enter_async_context(member(world, number)) for number in (1, 2, 3)]
        (a, first), (b, second), (c, _) = members
        await b.connect([address(1)])
        await c.connect([address(2)])
        await until(lambda: len({s.document.statements.digest() for _, s in members}) == 1)
        assert len(first.document.chains()) == 3
        assert first.partners == [b.node_id]
        gone: list[object] = []
        second.on_expelled = gone.append
        begun = trio.current_time()
        assert first.say(first.document.revocation(ROOT, c.node_id, at_ms=1, reason="stolen"))
        await until(lambda: c.node_id not in b.peers)
        assert trio.current_time() - begun < 1
        assert gone == [c.node_id]
        assert second.counters["expelled"] == 1
        await until(lambda: b.node_id in c.lost)
        assert "not a member any more" in c.lost[b.node_id].reason
        assert "stolen" in c.lost[b.node_id].reason
        for other in (1, 2):
            with pytest.raises(PeerUnreachable, match="peer unreachable"):
                await a.connect([address(3)])
            peer = await c.connect([address(other)])  # its side of the handshake is done first
            await peer.closed.wait()
        assert not first.say(first.document.history()[-1].statement)
        await first.flush()


async def test_certificates_that_run_out_end_connections(autojump_clock: object) -> None:
    world = MemoryNetwork(1)
    begun = trio.current_time()

    def clock() -> float:
        return NOW_MS / 1000 + trio.current_time() - begun

    brief = certify_by_root(
        ROOT,
        subject=BOB.public_key,
        role="trainer",
        serial=bytes(16),
        now_ms=NOW_MS,
        lifetime_ms=30_000,
    )
    async with (
        member(world, 1, clock=clock) as (a, service),
        member(world, 2, brief, clock=clock) as (b, _),
    ):
        peer = await b.connect([address(1)])
        await peer.ping()
        await trio.sleep(60)
        assert a.peers
        await trio.sleep(30 + SWEEP_S + 2)
        assert not a.peers
        assert service.counters["expelled"] == 1
        assert a.counters["expelled-expired"] == 1


async def test_a_member_renews_by_itself(autojump_clock: object) -> None:
    world = MemoryNetwork(1)
    begun = trio.current_time()

    def clock() -> float:
        return (NOW_MS + 61 * DAY_MS) / 1000 + trio.current_time() - begun

    above = founder()
    old = timed(ALICE, above, BOB, days=90)
    async with member(world, 1, above, clock=clock) as (_, issuer):
        told: list[Chain] = []
        async with member(world, 2, old, clock=clock) as (b, service):
            service.on_renewed = told.append
            await trio.sleep(10)
            assert service.counters["renewals-failed"] == 1  # nobody is connected yet
            await b.connect([address(1)])
            await trio.sleep(renewal.ASK_EVERY_S + 5)
            assert service.counters["renewed"] == 1
            assert issuer.counters["renewals-given"] == 1
            assert b.trust.own == told[0]
            assert told[0].leaf.expires_at_ms > old.leaf.expires_at_ms
            assert issuer.document.chains()[b.node_id] == told[0]
            # The new one is what it shows from now on.
            await (await b.connect([address(1)])).ping()
            for peer in list(b.peers.values()):
                peer.close("again")
            await trio.sleep(1)
            await (await b.connect([address(1)])).ping()


async def test_who_is_not_above_refuses_to_renew(autojump_clock: object) -> None:
    world = MemoryNetwork(1)
    async with member(world, 1) as (_, service), member(world, 2) as (b, _):
        peer = await b.connect([address(1)])
        with pytest.raises(RemoteCallFailed, match="does not stand above"):
            await peer.call(renewal.PROTOCOL, b"")
        assert service.counters["renewals-refused"] == 1


async def test_an_error_in_the_block_comes_out_as_it_is(autojump_clock: object) -> None:
    with pytest.raises(ZeroDivisionError):
        async with member(MemoryNetwork(1), 1):
            raise ZeroDivisionError
