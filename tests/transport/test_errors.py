"""Errors: one root, a hint on each, and the facts a caller decides by."""

import pytest

from transport import errors
from transport.errors import (
    HandshakeFailed,
    InvalidAddress,
    PeerLost,
    PeerUnreachable,
    StreamReset,
    TransportError,
    UsageError,
)

TYPES = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, TransportError)
]


@pytest.mark.parametrize("type_", TYPES)
def test_every_error_speaks_for_itself(type_):
    error = type_()
    assert isinstance(error, TransportError)
    assert isinstance(error.hint, str)
    assert len(str(error)) > 10
    assert "\n" not in str(error)
    assert type_("words", hint="do this").hint == "do this"
    assert str(type_("words")) == "words"


def test_a_type_has_its_usual_hint_and_an_empty_one_wins():
    assert InvalidAddress("x").hint
    assert InvalidAddress("x", hint="").hint == ""
    assert UsageError("x").hint == ""


def test_handshake_failures_have_distinct_codes():
    types = [type_ for type_ in TYPES if issubclass(type_, HandshakeFailed)]
    assert len({type_.code for type_ in types}) == len(types) >= 7
    assert HandshakeFailed("why").reason == "why"


def test_an_unreachable_peer_carries_every_attempt():
    error = PeerUnreachable(attempts=[("h:1", "refused"), ("h:2", "timed out")])
    assert error.attempts == (("h:1", "refused"), ("h:2", "timed out"))
    assert "h:1: refused; h:2: timed out" in str(error)
    assert "no address" in str(PeerUnreachable())


def test_reasons_and_codes():
    assert PeerLost("silent for 4 s").reason == "silent for 4 s"
    assert StreamReset(reset_code=3).reset_code == 3
    assert "3" in str(StreamReset(reset_code=3))
