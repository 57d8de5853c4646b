"""The swarm key: printable, checked, secret; id and tag derived from it."""

import hashlib
import random

import attrs
import pytest

from transport.errors import InvalidSwarmKey
from transport.identity import NodeId
from transport.swarm import Swarm

KEY = bytes(range(32))


def test_golden_id_and_tag():
    swarm = Swarm(KEY)
    assert swarm.id == hashlib.sha256(b"noded swarm id v1\x00" + KEY).digest()
    assert swarm.tag == hashlib.sha256(b"noded swarm tag v1\x00" + swarm.id).digest()[:8]


def test_key_text_round_trip_and_its_own_prefix():
    swarm = Swarm.generate(random.Random(3).randbytes)
    assert Swarm.parse(swarm.key_text) == swarm
    with pytest.raises(InvalidSwarmKey):
        Swarm.parse(str(NodeId(swarm.key)))


def test_a_mistyped_key_is_refused_and_not_quoted():
    text = Swarm(KEY).key_text
    wrong = text[:-1] + ("a" if text[-1] != "a" else "b")
    with pytest.raises(InvalidSwarmKey) as caught:
        Swarm.parse(wrong)
    assert wrong[5:20] not in str(caught.value) + caught.value.hint


@pytest.mark.parametrize("key", [b"", bytes(31), bytes(33), bytearray(32), "x" * 32])
def test_only_32_bytes_are_a_key(key):
    with pytest.raises(InvalidSwarmKey):
        Swarm(key)


def test_the_key_is_not_in_repr_and_the_value_is_frozen():
    swarm = Swarm(KEY)
    assert "\\x01" not in repr(swarm)
    assert swarm.key_text not in repr(swarm)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        swarm.key = bytes(32)


def test_a_proof_depends_on_key_domain_and_data():
    proofs = {
        Swarm(KEY).proof(b"a", b"data"),
        Swarm(bytes(32)).proof(b"a", b"data"),
        Swarm(KEY).proof(b"b", b"data"),
        Swarm(KEY).proof(b"a", b"datb"),
    }
    assert len(proofs) == 4
