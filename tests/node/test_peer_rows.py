"""The rows of `noded peers`: who is connected, who has left, and who is lost, each once."""

from types import SimpleNamespace

from gossip.membership.table import MemberState, MemberView
from node.status import peer_rows, refused_by_all
from transport.address import Address
from transport.identity import Identity

BARN, LOFT, SHED = (Identity.from_seed(bytes([n]) * 32).node_id for n in (1, 2, 3))


def peer(node, name: str) -> SimpleNamespace:
    return SimpleNamespace(
        node_id=node,
        name=name,
        path="direct",
        relay=None,
        bulk_way="",
        address=Address.parse("127.0.0.1:7447"),
        rtt_s=0.01,
        bytes_sent=1,
        bytes_received=1,
        last_seen=0.0,
    )


def member(node, state: MemberState) -> MemberView:
    return MemberView(node, "m", state, 0.0, f"it is {state}", 1, True, 0.0)


def parts(peers, members, lost=(), revoked=()) -> SimpleNamespace:
    views = {view.node_id: view for view in members}
    return SimpleNamespace(
        endpoint=SimpleNamespace(peers=peers, lost=dict(lost)),
        run=None,
        standing=SimpleNamespace(trust=SimpleNamespace(revoked=dict(revoked))),
        membership=SimpleNamespace(members=lambda: members, member=views.get),
    )


async def test_a_member_that_was_given_up_is_lost_while_its_connection_still_waits():
    peers = {node: peer(node, "m") for node in (BARN, LOFT, SHED)}
    views = [
        member(BARN, MemberState.ALIVE),
        member(LOFT, MemberState.LOST),
        member(SHED, MemberState.SUSPECT),
    ]
    gone_before = SimpleNamespace(name="loft", reason="reset", address="x", at=0.0)
    for lost in ((), [(LOFT, gone_before)]):  # also if it was lost once before
        rows = {row["id"]: row for row in peer_rows(parts(peers, views, lost))}
        assert len(rows) == 3
        assert [rows[str(node)]["state"] for node in (BARN, SHED)] == ["connected", "connected"]
        assert rows[str(LOFT)]["state"] == "lost"
        assert rows[str(LOFT)]["reason"] == "it is lost"
        assert rows[str(LOFT)]["path"] is None


async def test_who_left_the_swarm_has_left_and_who_was_revoked_is_lost_for_that_reason():
    gone = SimpleNamespace(name="m", reason="closed here", address="x", at=0.0, goodbye=None)
    said = [
        (BARN, (SimpleNamespace(by_subject=True, reason=""),)),
        (LOFT, (SimpleNamespace(by_subject=False, reason="stolen"),)),
        (SHED, (SimpleNamespace(by_subject=False, reason=""),)),
    ]
    lost = [(node, gone) for node in (BARN, LOFT, SHED)]
    rows = {row["id"]: row for row in peer_rows(parts({}, [], lost, said))}
    shown = [(rows[str(node)]["state"], rows[str(node)]["reason"]) for node, _ in lost]
    assert shown == [
        ("left", "it left the swarm"),
        ("lost", "revoked: stolen"),
        ("lost", "revoked"),
    ]


def test_a_node_that_everybody_refuses_knows_it_from_their_words_and_one_with_a_peer_does_not():
    reason = "closed by the peer: your certificate is refused: the node was revoked"
    lost = {BARN: SimpleNamespace(reason="reset"), LOFT: SimpleNamespace(reason=reason)}
    assert refused_by_all(SimpleNamespace(peers={}, lost=lost)) == "the node was revoked"
    assert refused_by_all(SimpleNamespace(peers={SHED: peer(SHED, "m")}, lost=lost)) == ""
    del lost[LOFT]
    assert refused_by_all(SimpleNamespace(peers={}, lost=lost)) == ""
