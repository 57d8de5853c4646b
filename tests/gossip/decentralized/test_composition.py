"""What does not go together is refused when settings are read, and the refusal says why."""

from __future__ import annotations

import msgspec
import pytest

from gossip.decentralized.mixing import composition
from gossip.decentralized.mixing.rules import MIXINGS, Mixing
from gossip.decentralized.protocol import DecentralizedProtocol
from gossip.errors import InvalidSettings
from gossip.protocol import Plugin, installed_protocols, load_plugin
from gossip.protocols.dfedsam import DFedSAM
from gossip.protocols.dpsgd import DPSGD
from gossip.protocols.epidemic import EpidemicLearning

INSTALLED = sorted(
    name for name in installed_protocols() if issubclass(load_plugin(name), DecentralizedProtocol)
)
FORBIDDEN = [
    (name, mixing)
    for name, row in composition.TABLE.items()
    for mixing in MIXINGS
    if (mixing == "variance-corrected" and row.corrected)
    or (mixing in composition.ROBUST and row.robust)
]


@pytest.mark.parametrize(("name", "mixing"), FORBIDDEN)
def test_a_forbidden_combination_is_refused_with_its_reason(name, mixing):
    row = composition.TABLE[name]
    with pytest.raises(InvalidSettings, match=f"{name!r} does not combine with") as raised:
        composition.check(name, {"mixing": mixing}, ())
    reason = row.corrected if mixing == "variance-corrected" else row.robust
    assert reason is not None
    assert reason in str(raised.value)
    assert raised.value.hint


def test_the_table_forbids_what_the_definitions_forbid():
    assert {"push-sum", "dadao", "a2cid2"} <= {name for name, _ in FORBIDDEN}
    for mixing in MIXINGS[1:]:
        assert ("push-sum", mixing) in FORBIDDEN
        assert ("dadao", mixing) in FORBIDDEN
        assert ("a2cid2", mixing) in FORBIDDEN
        assert ("token-walk", mixing) in FORBIDDEN
        assert ("dpsgd", mixing) not in FORBIDDEN
        assert ("epidemic", mixing) not in FORBIDDEN
        assert ("dfedsam", mixing) not in FORBIDDEN
    assert ("ad-psgd", "variance-corrected") not in FORBIDDEN
    assert ("ad-psgd", "median") in FORBIDDEN, "of two models the median is the mean"
    assert ("modest", "variance-corrected") in FORBIDDEN
    assert ("modest", "median") not in FORBIDDEN


@pytest.mark.parametrize("name", INSTALLED)
def test_every_installed_protocol_has_a_row_and_keeps_it(name):
    assert name in composition.TABLE
    protocol: type[Plugin] = load_plugin(name)
    fields = protocol.Settings.__struct_fields__
    for mixing in MIXINGS[1:]:
        if (name, mixing) in FORBIDDEN:
            with pytest.raises(InvalidSettings, match="does not combine with"):
                protocol.parse_settings({"mixing": mixing})
        elif "mixing" in fields:
            assert protocol.parse_settings({"mixing": mixing}).mixing == mixing
        else:
            with pytest.raises(InvalidSettings, match="mixing"):
                protocol.parse_settings({"mixing": mixing})


def test_an_option_of_another_rule_is_refused():
    fields = ("mixing", "variance_target", "trim")
    for raw, seen in (
        ({"variance_target": "self"}, "variance_target says nothing with mixing = 'mean'"),
        ({"mixing": "median", "trim": 2}, "trim says nothing with mixing = 'median'"),
    ):
        with pytest.raises(InvalidSettings, match=seen):
            composition.check("dpsgd", raw, fields)
    composition.check("dpsgd", {"mixing": "trimmed-mean", "trim": 2}, fields)
    composition.check("dpsgd", {"mixing": "mean", "trim": None}, fields)


@pytest.mark.parametrize(
    ("protocol", "raw", "fits"),
    [
        (DPSGD, {"graph": "ring"}, True),
        (DPSGD, {"graph": "ring", "trim": 2}, False),
        (DPSGD, {"graph": "one-peer-exponential"}, False),
        (DPSGD, {"graph": "random-regular", "degree": 4, "trim": 2}, True),
        (DPSGD, {"graph": "random-regular", "degree": 3, "trim": 2}, False),
        (DPSGD, {"graph": "full", "trim": 100}, True),
        (DFedSAM, {"graph": "barabasi-albert", "degree": 1}, False),
        (EpidemicLearning, {"fanout": 3, "trim": 2}, False),
        (EpidemicLearning, {"fanout": 4, "trim": 2}, True),
        (EpidemicLearning, {"trim": 2}, True),
        (EpidemicLearning, {"fanout": 1, "sampling": "local"}, True),
    ],
)
def test_a_trim_that_leaves_nothing_is_refused(protocol, raw, fits):
    settings = {"mixing": "trimmed-mean", **raw}
    if fits:
        assert protocol.parse_settings(settings).mixing == "trimmed-mean"
    else:
        with pytest.raises(InvalidSettings, match=r"nothing is ever mixed") as raised:
            protocol.parse_settings(settings)
        assert raised.value.hint


class Stranger(DecentralizedProtocol):
    name = "stranger"
    depends_on_mean = True

    class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        mixing: Mixing = "mean"


def test_one_from_elsewhere_that_needs_the_mean_gets_no_other_rule():
    assert Stranger.parse_settings({}).mixing == "mean"
    with pytest.raises(InvalidSettings, match="a sum over all nodes") as raised:
        Stranger.parse_settings({"mixing": "median"})
    assert raised.value.hint == "choose another rule: mean"
    with pytest.raises(InvalidSettings, match=r"mixing"):
        Stranger.parse_settings({"mixing": "nonsense"})
    with pytest.raises(InvalidSettings, match=r"mixing"):
        Stranger.parse_settings({"mixing": ["mean"]})
