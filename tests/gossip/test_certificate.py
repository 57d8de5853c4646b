"""Epoch ids and certificates: what they bind, and every way a set of signatures can be wrong."""

from __future__ import annotations

import hashlib
import itertools
import struct

import attrs
import msgspec
import pytest

from gossip.collective.agreement.certificate import (
    GENESIS,
    Ballot,
    Certificate,
    Epoch,
    SignedBy,
    accept_statement,
    result_root,
    vote_statement,
)
from gossip.collective.agreement.layout import Layout
from tests.gossip.epoch_world import make_identities
from transport.identity import Identity, NodeId

IDENTITIES = sorted(make_identities(5), key=lambda identity: identity.node_id)
MEMBERS = tuple(identity.node_id for identity in IDENTITIES[:4])
STRANGER = IDENTITIES[4]
EPOCH, DESCRIPTOR, ROOT = b"e" * 32, b"d" * 32, b"r" * 32


def signed(identity: Identity, statement: bytes | None = None) -> SignedBy:
    statement = statement or vote_statement(EPOCH, 5, DESCRIPTOR, ROOT)
    return SignedBy(identity.public_key, identity.sign(statement))


def certificate(*signatures: SignedBy, **changes: object) -> Certificate:
    made = Certificate(EPOCH, 5, DESCRIPTOR, ROOT, signatures)
    return msgspec.structs.replace(made, **changes)


WHOLE = tuple(signed(identity) for identity in IDENTITIES[:4])


def test_the_full_set_of_members_is_a_certificate() -> None:
    assert certificate(*WHOLE).verify(MEMBERS)
    assert certificate(WHOLE[0]).verify(MEMBERS[:1])


@pytest.mark.parametrize("missing", range(4))
def test_a_missing_signer(missing: int) -> None:
    assert not certificate(*WHOLE[:missing], *WHOLE[missing + 1 :]).verify(MEMBERS)


def test_no_signatures() -> None:
    assert not certificate().verify(MEMBERS)


@pytest.mark.parametrize("twice", range(4))
def test_a_duplicate_signer_neither_adds_nor_replaces(twice: int) -> None:
    assert not certificate(*WHOLE, WHOLE[twice]).verify(MEMBERS)
    replaced = [*WHOLE]
    replaced[(twice + 1) % 4] = WHOLE[twice]
    assert not certificate(*replaced).verify(MEMBERS)


def test_a_foreign_signer_neither_adds_nor_replaces() -> None:
    assert not certificate(*WHOLE, signed(STRANGER)).verify(MEMBERS)
    assert not certificate(*WHOLE[:3], signed(STRANGER)).verify(MEMBERS)
    assert not certificate(*WHOLE).verify(MEMBERS[:3])
    assert not certificate(*WHOLE).verify((*MEMBERS, STRANGER.node_id))


@pytest.mark.parametrize("at", range(4))
def test_a_forged_signature(at: int) -> None:
    public_key = IDENTITIES[at].public_key
    flipped = bytearray(WHOLE[at].signature)
    flipped[at * 9] ^= 1
    for forged in (
        SignedBy(public_key, STRANGER.sign(vote_statement(EPOCH, 5, DESCRIPTOR, ROOT))),
        SignedBy(public_key, bytes(flipped)),
        SignedBy(public_key, bytes(64)),
        SignedBy(bytes(32), WHOLE[at].signature),
        SignedBy(b"\x01" + bytes(31), b"\x01" + bytes(63)),  # small-order key: signs anything
    ):
        signatures = (*WHOLE[:at], forged, *WHOLE[at + 1 :])
        assert not certificate(*signatures).verify(MEMBERS)


@pytest.mark.parametrize(
    "changes",
    [
        {"epoch": b"f" * 32},
        {"sequence": 6},
        {"descriptor": b"x" * 32},
        {"root": b"x" * 32},
    ],
)
def test_signatures_bind_every_field(changes: dict[str, object]) -> None:
    assert not certificate(*WHOLE, **changes).verify(MEMBERS)


def test_a_signature_for_entering_is_none_for_a_result() -> None:
    """Domains differ, so one kind of statement can never pass for the other."""
    entered = tuple(signed(identity, accept_statement(EPOCH)) for identity in IDENTITIES[:4])
    assert not certificate(*entered).verify(MEMBERS)
    assert accept_statement(EPOCH) != vote_statement(EPOCH, 5, DESCRIPTOR, ROOT)


def test_one_certificate_has_one_encoding() -> None:
    for order in itertools.permutations(WHOLE):
        if order != WHOLE:
            assert not certificate(*order).verify(MEMBERS)


# ---- epochs ------------------------------------------------------------------------------------

BASE = Epoch(b"R" * 32, Ballot(7, 2, MEMBERS[1]), MEMBERS[:3], GENESIS, 41, b"s" * 32)
OTHERS = {
    "run": attrs.evolve(BASE, run=b"S" * 32),
    "number": attrs.evolve(BASE, ballot=Ballot(8, 2, MEMBERS[1])),
    "attempt": attrs.evolve(BASE, ballot=Ballot(7, 3, MEMBERS[1])),
    "proposer": attrs.evolve(BASE, ballot=Ballot(7, 2, MEMBERS[0])),
    "a member less": attrs.evolve(BASE, members=MEMBERS[:2]),
    "a member more": attrs.evolve(BASE, members=MEMBERS),
    "another member": attrs.evolve(BASE, members=(*MEMBERS[:2], MEMBERS[3])),
    "order of members": attrs.evolve(BASE, members=(MEMBERS[1], MEMBERS[0], MEMBERS[2])),
    "previous": attrs.evolve(BASE, previous=b"p" * 32),
    "round": attrs.evolve(BASE, round=42),
    "state": attrs.evolve(BASE, state=b"t" * 32),
    "salt": attrs.evolve(BASE, salt=b"t" * 16),
    "order": attrs.evolve(BASE, layout=Layout(order=b"\0\2\1")),
    "sites": attrs.evolve(BASE, layout=Layout(sites=b"\0\2\1")),
    "round trip": attrs.evolve(BASE, layout=Layout(rtt_us=1)),
    "rate": attrs.evolve(BASE, layout=Layout(kib_per_s=1)),
    "probe": attrs.evolve(BASE, layout=Layout(probe=True)),
}


def test_the_id_changes_with_every_field() -> None:
    ids = {name: epoch.id for name, epoch in OTHERS.items()} | {"base": BASE.id}
    assert len(set(ids.values())) == len(ids), ids
    assert {field.name for field in attrs.fields(Epoch)} == {
        *("run", "ballot", "members", "previous", "round", "state", "salt", "layout")
    }, "a new field has to be bound by the id, and tested here"


def test_the_id_is_what_the_page_says() -> None:
    """Written out once more, from the layout alone."""
    expected = hashlib.sha256(
        b"noded epoch v2\0"
        + b"R" * 32
        + (7).to_bytes(8, "big")
        + (2).to_bytes(4, "big")
        + MEMBERS[1]
        + bytes(32)
        + (41).to_bytes(8, "big")
        + b"s" * 32
        + bytes(16)
        + (3).to_bytes(4, "big")
        + b"".join(MEMBERS[:3])
    ).digest()
    assert BASE.id == expected
    assert BASE.number == 7


def test_statements_and_roots_are_what_the_page_says() -> None:
    assert accept_statement(EPOCH) == b"noded accept v1\0" + EPOCH
    assert vote_statement(EPOCH, 5, DESCRIPTOR, ROOT) == (
        b"noded vote v1\0" + EPOCH + struct.pack(">Q", 5) + DESCRIPTOR + ROOT
    )
    parts = [b"a" * 32, b"b" * 32]
    assert result_root(parts) == hashlib.sha256(b"noded result v1\0" + b"".join(parts)).digest()
    assert result_root(parts) != result_root(parts[::-1])
    assert result_root(parts) != result_root(parts[:1])


def test_ballots_order_by_number_then_attempt_then_proposer() -> None:
    low, high = sorted(MEMBERS[:2])
    ballots = [Ballot(1, 9, high), Ballot(2, 0, low), Ballot(2, 0, high), Ballot(2, 1, low)]
    shuffled = [ballots[2], ballots[0], ballots[3], ballots[1]]
    assert sorted(shuffled) == ballots


def test_ids_are_of_keys() -> None:
    assert all(NodeId.of_public_key(i.public_key) == i.node_id for i in IDENTITIES)
