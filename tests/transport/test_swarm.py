"""The swarm key: printable, checked, secret; id and tag derived from it."""

import hashlib
import random

import attrs
import pytest

from transport.errors import InvalidSwarmKey
from transport.identity import Identity, NodeId
from transport.swarm import Gate, Swarm

KEY = bytes(range(32))
ROOT = Identity.from_seed(bytes([3]) * 32).public_key


def test_golden_id_and_tag():
    swarm = Swarm(KEY, ROOT)
    assert swarm.id == hashlib.sha256(b"noded swarm id v2\x00" + ROOT).digest()
    assert swarm.tag == hashlib.sha256(b"noded swarm tag v2\x00" + swarm.id).digest()[:8]
    knocking = Gate.joining(swarm.id)
    assert knocking.key == hashlib.sha256(b"noded join gate v1\x00" + swarm.id).digest()
    assert (knocking.id, knocking.tag) == (swarm.id, swarm.tag)


def test_an_open_swarm_needs_no_secret():
    swarm = Swarm.open_to_all(ROOT)
    assert swarm.id == hashlib.sha256(b"noded open swarm id v2\x00" + ROOT).digest()
    assert swarm.key == hashlib.sha256(b"noded open swarm gate v1\x00" + ROOT).digest()
    assert swarm.key_text.startswith("no-")
    assert Swarm.parse(f" {swarm.key_text.upper()}\n") == swarm
    assert swarm.id != Swarm(KEY, ROOT).id


def test_key_text_round_trip_and_its_own_prefix():
    swarm = Swarm.generate(random.Random(3).randbytes, ROOT)
    assert Swarm.parse(swarm.key_text) == swarm
    secret, root = swarm.key_text.split()
    for wrong in (
        secret,
        root,
        f"{root} {secret}",
        f"{NodeId(swarm.key)} {root}",
        f"{secret} {root} x",
        "",
    ):
        with pytest.raises(InvalidSwarmKey):
            Swarm.parse(wrong)


def test_a_mistyped_key_is_refused_and_not_quoted():
    text = Swarm(KEY, ROOT).key_text
    wrong = text[:-1] + ("a" if text[-1] != "a" else "b")
    with pytest.raises(InvalidSwarmKey) as caught:
        Swarm.parse(wrong)
    assert wrong[5:20] not in str(caught.value) + caught.value.hint


@pytest.mark.parametrize("key", [b"", bytes(31), bytes(33), bytearray(32), "x" * 32])
def test_only_32_bytes_are_a_key(key):
    with pytest.raises(InvalidSwarmKey):
        Swarm(key, ROOT)


@pytest.mark.parametrize("root", [b"", bytes(32), bytes(31), b"\xff" * 32, "x" * 32])
def test_only_a_public_key_is_a_root(root):
    with pytest.raises(InvalidSwarmKey):
        Swarm(KEY, root)


def test_the_key_is_not_in_repr_and_the_value_is_frozen():
    swarm = Swarm(KEY, ROOT)
    assert "\\x01\\x02" not in repr(swarm) + repr(swarm.gate)
    assert swarm.key_text.split()[0] not in repr(swarm)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        swarm.key = bytes(32)


def test_a_proof_depends_on_key_domain_and_data():
    proofs = {
        Swarm(KEY, ROOT).proof(b"a", b"data"),
        Swarm(bytes(32), ROOT).proof(b"a", b"data"),
        Swarm(KEY, ROOT).proof(b"b", b"data"),
        Swarm(KEY, ROOT).proof(b"a", b"datb"),
    }
    assert len(proofs) == 4
