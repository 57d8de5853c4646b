"""Real nodes in the lab: the decisive pairs of the matrix, and how the matrix tells of them."""

import attrs
import pytest

from tests.lab.matrix import APART, TOGETHER, Cell, Pair, main, pairs_of, run_pairs, summary, table
from tests.lab.nat_types import NatType, direct_possible
from tests.lab.nodes import open_world
from tests.lab.switch import LinkProfile
from tests.lab.topology import Lab

RTT_40 = LinkProfile(delay_ms=20)


@pytest.mark.real
async def test_decisive_pairs():
    pairs = [
        Pair(NatType.SYMMETRIC, NatType.PORT),
        Pair(NatType.PORT, NatType.PORT),
        Pair(NatType.FULL, NatType.SYMMETRIC),
        Pair(NatType.SYMMETRIC, TOGETHER),
    ]
    with Lab(RTT_40) as lab:
        async with open_world(lab) as world:
            cells = await run_pairs(world, pairs, jobs=2, patience_s=60, hopeless_s=3)
            # What is lost delays nodes and keeps none of them apart.
            assert lab.forwarder is not None
            lab.forwarder.change(attrs.evolve(RTT_40, loss=0.05))
            lossy = [Pair(NatType.DOUBLE, NatType.PORT)]
            cells += await run_pairs(world, lossy, patience_s=60)
    assert all(cell.ok for cell in cells), summary(cells)
    assert [cell.path for cell in cells[:2]] == ["relayed", "punched"]
    assert [cell.path for cell in cells[3:]] == ["direct", "punched"]
    assert cells[0].direct_s is None
    for cell in cells[1:]:
        assert cell.first_byte_s is not None
        assert cell.direct_s is not None
        assert cell.first_path != "relayed" or cell.direct_s > cell.first_byte_s


def test_who_can_meet_does_not_depend_on_who_begins():
    for a in NatType:
        for b in NatType:
            assert direct_possible(a, b) == direct_possible(b, a)
    assert not direct_possible(NatType.PORT, NatType.SYMMETRIC)
    assert not direct_possible(NatType.SYMMETRIC, NatType.IPV6)
    assert direct_possible(NatType.IPV6, NatType.IPV6)
    assert not Pair(NatType.PORT, APART).direct
    assert Pair(NatType.HAIRPIN, APART).direct


def test_pairs_are_every_kind_against_every_kind():
    pairs = pairs_of([], extra=False)
    kinds = {pair.a for pair in pairs}
    assert len(pairs) == len(set(pairs)) == len(kinds) ** 2
    assert kinds >= set(NatType) - {NatType.HAIRPIN, NatType.UPNP}
    some = pairs_of([NatType.PORT])
    assert all(NatType.PORT in (pair.a, pair.b) for pair in some)
    assert {Pair(NatType.PORT, TOGETHER), Pair(NatType.PORT, APART)} <= set(some)


CELLS = [
    Cell("open", "open", "direct", "direct", "direct", 0.1, 0.2, 0.1),
    Cell("open", "symmetric", "direct", "reversed", "relayed", 0.1, 0.2, 0.5),
    Cell("symmetric", "open", "direct", "relayed", "relayed", 0.1, 0.25),
    Cell("symmetric", "symmetric", "relayed", error="no way"),
]


def test_the_table_and_the_summary():
    here = Cell("symmetric", TOGETHER, "direct", "direct", "direct", 0.1, 0.2, 0.1)
    lines = table([*CELLS, here]).splitlines()
    assert all(len(line) < 120 for line in lines)
    assert lines[0].startswith("Rows connect")
    assert lines[4:] == [
        "              1        2",
        " 1 open       D 0.10   R 0.50",
        " 2 symmetric  !V 0.25  ---",
        "",
        "symmetric, one home: D 0.10",
    ]
    assert summary(CELLS).splitlines() == [
        "direct: 1, to direct 0.10 s median, 0.10 s max",
        "reversed: 1, to direct 0.50 s median, 0.50 s max",
        "relayed: 1, to first byte 0.25 s median, 0.25 s max",
        "FAILED: symmetric -> open: relayed, expected direct",
        "FAILED: symmetric -> symmetric: no way",
    ]


def test_an_unknown_kind_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--only", "conical"])
    assert ended.value.code == 2
    assert "port-restricted" in capsys.readouterr().err
