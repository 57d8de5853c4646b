"""Who is meant by what somebody typed after `noded ping`, and what is said when nobody can be."""

from types import SimpleNamespace

import pytest
import trio

from node.errors import NodedError, PeerNotReachable, TimedOut, UsageError
from node.pinging import LOOKUP_S, PING_S, REACH_S, measure, whom
from transport.address import Address
from transport.errors import PeerLost, PeerUnreachable
from transport.identity import Identity
from transport.watch import LostPeer

ME, BARN, LOFT, SHED = (Identity.from_seed(bytes([n]) * 32).node_id for n in range(1, 5))
AT = Address.parse("192.0.2.1:7447")


def peer(node_id, name):
    return SimpleNamespace(
        node_id=node_id,
        name=name,
        path="direct",
        relay=None,
        bulk_way="",
        address=AT,
        rtt_s=0.02,
        bytes_sent=0,
        bytes_received=0,
        last_seen=trio.current_time(),
    )


class Endpoint:
    """One peer is connected, another was lost; whom it dials is told."""

    def __init__(self) -> None:
        self.node_id = ME
        self.peers = {BARN: peer(BARN, "barn")}
        lost = LostPeer("connection reset", trio.current_time() - 41, "shed", AT)
        self.lost = {SHED: lost}
        self.dialed: list[object] = []
        self.error: Exception | None = None

    async def connect(self, addresses, expected):
        self.dialed.append((addresses, expected))
        if self.error is not None:
            raise self.error
        return peer(expected, "found")


@pytest.fixture
async def parts():
    membership = SimpleNamespace(member=lambda _node: None, members=tuple)
    config = SimpleNamespace(node=SimpleNamespace(name="attic"))
    return SimpleNamespace(
        endpoint=Endpoint(),
        membership=membership,
        run=None,
        config=config,
        standing=SimpleNamespace(trust=SimpleNamespace(revoked={})),
    )


async def nowhere(_node):
    return []


async def known(_node):
    return [AT]


@pytest.mark.parametrize("wanted", ["barn", str(BARN), str(BARN).upper(), BARN.short, " barn "])
async def test_a_connected_peer_is_found_by_name_id_and_prefix(parts, wanted):
    assert await whom(parts, wanted, nowhere) is parts.endpoint.peers[BARN]


@pytest.mark.parametrize("wanted", ["attic", str(ME), ME.short])
async def test_this_node_itself_is_said(parts, wanted):
    with pytest.raises(UsageError, match="this node itself"):
        await whom(parts, wanted, known)


async def test_what_can_mean_several_is_not_guessed(parts):
    parts.endpoint.peers[LOFT] = peer(LOFT, "barn")
    with pytest.raises(UsageError, match="can mean 2 peers") as caught:
        await whom(parts, "barn", known)
    assert BARN.short in str(caught.value)
    assert (await whom(parts, LOFT.short, nowhere)).node_id == LOFT


async def test_a_connected_namesake_wins_over_one_that_is_gone(parts):
    parts.endpoint.peers[BARN].name = "shed"
    assert (await whom(parts, "shed", nowhere)).node_id == BARN


@pytest.mark.parametrize(
    ("wanted", "word"),
    [
        (str(LOFT)[:-1], "characters after the prefix"),
        (str(LOFT)[:-1] + ("a" if str(LOFT)[-1] != "a" else "b"), "check character"),
        ("nd-" + "!" * 53 + "-" * 9, "base32"),
    ],
)
async def test_a_mistyped_id_is_a_usage_error_with_the_reason(parts, wanted, word):
    with pytest.raises(UsageError, match=word) as caught:
        await whom(parts, wanted, known)
    assert caught.value.hint
    assert not parts.endpoint.dialed


@pytest.mark.parametrize("wanted", ["nobody", "nd-zzzz-zzzz", "", " "])
async def test_nobody_of_that_name(parts, wanted):
    with pytest.raises(PeerNotReachable, match="nobody known here is named") as caught:
        await whom(parts, wanted, known)
    assert "noded peers" in caught.value.hint


async def test_a_whole_id_is_looked_up_and_connected_to(parts):
    found = await whom(parts, str(LOFT), known)
    assert found.node_id == LOFT
    assert parts.endpoint.dialed == [([AT], LOFT)]
    with pytest.raises(PeerNotReachable, match=f"{LOFT.short}: nobody in the swarm says"):
        await whom(parts, str(LOFT), nowhere)


async def test_of_one_that_is_gone_since_when_and_why_is_said(parts):
    with pytest.raises(PeerNotReachable) as caught:
        await whom(parts, "shed", nowhere)
    start = f"shed ({SHED.short}) was lost 41 s ago (connection reset); "
    assert str(caught.value).startswith(start)
    parts.endpoint.error = PeerUnreachable("no address answers", hint="try")
    with pytest.raises(PeerNotReachable) as caught:
        await whom(parts, str(SHED), known)
    assert str(caught.value) == f"{start}no address answers"
    assert caught.value.hint == "try"


@pytest.mark.parametrize(
    "reason",
    [
        "closed by the peer: your certificate is refused: the node was revoked",
        "",
    ],
)
async def test_nobody_is_told_to_start_a_revoked_node_again(parts, reason):
    parts.endpoint.lost[SHED] = LostPeer(reason, trio.current_time() - 41, "shed", AT)
    if not reason:
        parts.standing.trust.revoked[SHED] = (SimpleNamespace(by_subject=False, reason="stolen"),)
    with pytest.raises(PeerNotReachable) as caught:
        await whom(parts, "shed", nowhere)
    assert "noded members --history" in caught.value.hint


async def test_a_search_and_a_dial_that_do_not_end_are_ended(parts, autojump_clock):
    async def never(*_arguments, **_more):
        await trio.sleep_forever()

    started = trio.current_time()
    with pytest.raises(PeerNotReachable):
        await whom(parts, str(LOFT), never)
    assert trio.current_time() - started == pytest.approx(LOOKUP_S)
    parts.endpoint.connect = never
    with pytest.raises(TimedOut, match=f"within {REACH_S:.0f} s"):
        await whom(parts, str(LOFT), known)


async def test_replies_and_their_absence(autojump_clock):
    target = peer(BARN, "barn")

    async def reply():
        return 0.02

    target.ping = reply
    assert await measure(target, 2) == [(0.02, "direct", None)] * 2

    async def lost():
        raise PeerLost("silent for 4 s")

    target.ping = lost
    with pytest.raises(PeerNotReachable, match="barn was lost meanwhile: silent for 4 s"):
        await measure(target, 1)
    target.ping = trio.sleep_forever
    with pytest.raises(TimedOut, match=f"no reply from barn within {PING_S:.0f} s") as caught:
        await measure(target, 1)
    assert isinstance(caught.value, NodedError)
