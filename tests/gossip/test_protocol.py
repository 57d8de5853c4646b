"""The plug-in point itself: settings, entry points, digests."""

from __future__ import annotations

import hashlib
from importlib.metadata import EntryPoint

import numpy as np
import pytest

from gossip import protocol as module
from gossip.errors import GossipError, InvalidSettings, UnknownProtocol
from gossip.protocol import installed_protocols, load_plugin, load_protocol
from gossip.protocols.diloco import DiLoCo, OuterNesterov


@pytest.mark.parametrize(
    ("raw", "key"),
    [
        ({"outer_momentum": 1.0}, "outer_momentum"),
        ({"outer_momentum": -0.1}, "outer_momentum"),
        ({"outer_momentum": float("nan")}, "outer_momentum"),
        ({"outer_learning_rate": 0}, "outer_learning_rate"),
        ({"outer_learning_rate": 10.1}, "outer_learning_rate"),
        ({"outer_learning_rate": float("inf")}, "outer_learning_rate"),
        ({"outer_learning_rate": float("nan")}, "outer_learning_rate"),
        ({"outer_learning_rate": "fast"}, "outer_learning_rate"),
        ({"outer_learning_rate": None}, "outer_learning_rate"),
        ({"outer_learning_rte": 0.7}, "outer_learning_rte"),
    ],
)
def test_a_wrong_setting_is_named_with_those_there_are(raw: dict[str, object], key: str) -> None:
    for parse in (DiLoCo.parse_settings, DiLoCo.averager):
        with pytest.raises(InvalidSettings, match=key) as raised:
            parse(raw)
        assert "'diloco'" in str(raised.value)
        assert raised.value.hint in {
            "did you mean outer_learning_rate?",
            "see:  noded config explain diloco",
        }
        assert raised.value.__cause__ is None


def test_numbers_may_come_as_text() -> None:
    """As they do from the environment and from --set."""
    parsed = DiLoCo.parse_settings({"outer_momentum": "0.25"})
    assert parsed == DiLoCo.Settings(outer_momentum=0.25)


def test_defaults() -> None:
    assert DiLoCo.parse_settings({}) == DiLoCo.Settings(0.7, 0.5)


def test_unknown_protocol_lists_what_is_installed() -> None:
    with pytest.raises(UnknownProtocol, match="'dilico'") as raised:
        load_protocol("dilico")
    assert raised.value.hint.startswith("installed: ")
    for name in installed_protocols():
        assert name in raised.value.hint
    assert isinstance(raised.value, GossipError)


@pytest.mark.parametrize("name", sorted(installed_protocols()))
def test_installed_protocols_load_under_their_own_name(name: str) -> None:
    assert load_plugin(name).name == name


@pytest.mark.parametrize(
    "value", ["gossip.protocols.diloco:PIECE", "gossip.protocols.diloco:OuterNesterov"]
)
def test_an_entry_point_that_is_no_protocol_is_refused(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = EntryPoint("odd", value, module.ENTRY_POINT_GROUP)
    monkeypatch.setattr(module, "entry_points", lambda *, group: [point])
    with pytest.raises(UnknownProtocol, match="is no Protocol"):
        load_protocol("odd")


@pytest.mark.parametrize(
    "value", ["gossip.no_such_file:Thing", "gossip.protocols.diloco:NoSuchThing"]
)
def test_an_entry_point_that_cannot_be_loaded_is_a_typed_error(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = EntryPoint("odd", value, module.ENTRY_POINT_GROUP)
    monkeypatch.setattr(module, "entry_points", lambda *, group: [point])
    with pytest.raises(UnknownProtocol, match="odd"):
        load_protocol("odd")


def test_state_digest_is_sha256_of_the_consensus_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    averager = OuterNesterov(0.7, 0.5)
    views = {name: np.arange(100, dtype="<f4") + i for i, name in enumerate(averager.vectors)}
    expected = hashlib.sha256(views["theta"].tobytes() + views["momentum"].tobytes()).digest()
    assert averager.state_digest(views) == expected
    monkeypatch.setattr(module, "DIGEST_CHUNK_BYTES", 7)
    assert averager.state_digest(views) == expected, "pieces do not show"


def test_golden_state_digest() -> None:
    averager = OuterNesterov(0.7, 0.5)
    views = {name: np.zeros(4, np.float32) for name in averager.vectors}
    views["params"][:] = [1.0, -2.0, 0.5, 0.0]
    averager.start(views)
    assert (
        averager.state_digest(views).hex()
        == hashlib.sha256(bytes.fromhex("0000803f000000c00000003f00000000") + bytes(16)).hexdigest()
    )


def test_an_empty_model_has_a_digest_too() -> None:
    averager = OuterNesterov(0.7, 0.5)
    views = {name: np.zeros(0, np.float32) for name in averager.vectors}
    averager.start(views)
    assert averager.state_digest(views) == hashlib.sha256(b"").digest()


def test_a_coordinator_has_nothing_to_say_unasked() -> None:
    coordinator = DiLoCo(DiLoCo.parse_settings({}))
    assert coordinator.next_event() is None
