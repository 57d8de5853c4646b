"""A node's standing in its swarm: what it reads before it listens, and what a crash may do to the file of revocations."""

import os

import pytest

from node import keys
from node.errors import NodedError, Refused
from node.paths import ensure_private_dir, node_paths
from node.schema import SwarmSection
from node.trust.log import TrustLog
from node.trust.membership import load_standing
from node.wall_clock import wall_ms
from tests.trusted import ROOT, invited_chain, member_chain
from transport.identity import Identity
from transport.swarm import Swarm
from transport.trust.chain import certify_by_root
from transport.trust.refusal import Refusal
from transport.trust.revocation import revoke
from transport.trust.statement import encode_statement

OTHER = Identity.from_seed(b"o" * 32)
PIECES = [b"one", b"two" * 100, b"x" * 3000]


def log_with(path, pieces=PIECES):
    log = TrustLog(path)
    assert log.read() == []
    log.append(pieces, pieces)
    return log


def test_what_was_written_is_read(tmp_path):
    log = log_with(tmp_path / "log", PIECES[:1])
    log.append(PIECES[1:], PIECES)
    again = TrustLog(tmp_path / "log")
    assert again.read() == PIECES
    again.append([b"four"], [*PIECES, b"four"])
    assert TrustLog(tmp_path / "log").read() == [*PIECES, b"four"]
    assert (tmp_path / "log").stat().st_mode & 0o077 == 0


def test_a_write_that_was_cut_short_costs_what_was_being_written_and_nothing_else(tmp_path):
    path = tmp_path / "log"
    log_with(path)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        log = TrustLog(path)
        found = log.read()
        assert found == PIECES[: len(found)]
        if size in {0, 20, 500, len(whole) - 1}:
            log.append([b"new"], [*found, b"new"])
            assert TrustLog(path).read() == [*found, b"new"]


def test_a_changed_piece_is_left_out_and_what_is_behind_it_counts(tmp_path):
    path = tmp_path / "log"
    log_with(path)
    data = bytearray(path.read_bytes())
    data[14 + 6 + 3 + 6 + 10] ^= 1
    path.write_bytes(data)
    assert TrustLog(path).read() == [PIECES[0], *PIECES[2:]]
    path.write_bytes(b"something else entirely")
    assert TrustLog(path).read() == []


def test_a_disk_that_does_not_take_it_is_an_error_and_the_next_try_mends_it(tmp_path):
    log = log_with(tmp_path / "log")
    (tmp_path / "log").unlink()
    with pytest.raises(NodedError, match="cannot write who was revoked"):
        log.append([b"new"], [*PIECES, b"new"])
    log.append([b"new"], [*PIECES, b"new"])
    assert TrustLog(tmp_path / "log").read() == [*PIECES, b"new"]
    (tmp_path / "folder").mkdir()
    with pytest.raises(NodedError, match="cannot read who was revoked"):
        TrustLog(tmp_path / "folder").read()


@pytest.fixture
def place(tmp_path):
    """(paths, identity) of a member of a closed swarm."""
    paths = node_paths(tmp_path / "node", {})
    ensure_private_dir(paths.data_dir)
    identity = keys.create_identity(paths.node_key)
    keys.create_swarm(paths.swarm_key, Swarm(bytes(32), ROOT.public_key))
    keys.certify_directly(paths, ROOT)
    return paths, identity


def test_a_members_standing(place):
    paths, identity = place
    standing = load_standing(paths, identity, SwarmSection())
    assert standing.own_refusal(identity) is None
    assert standing.trust.own == keys.load_chain(paths.certificate)
    assert standing.unwritten() == [encode_statement(standing.trust.own)]
    TrustLog(paths.trust_log).append(standing.unwritten(), standing.unwritten())
    assert load_standing(paths, identity, SwarmSection()).unwritten() == []


def test_revocations_of_former_lives_count_from_the_first_moment(place):
    paths, identity = place
    swarm_id = keys.load_chain(paths.certificate).leaf.swarm_id
    said = [
        encode_statement(revoke(ROOT, swarm_id=swarm_id, subject=who.node_id, at_ms=wall_ms()))
        for who in (OTHER, identity)
    ]
    log = TrustLog(paths.trust_log)
    log.read()
    log.append([*said, b"\x02torn"], [*said, b"\x02torn"])
    standing = load_standing(paths, identity, SwarmSection())
    refused = standing.trust.refusal_of(member_chain(OTHER).raw, OTHER.public_key, wall_ms())
    assert refused is not None
    assert refused.refusal is Refusal.REVOKED
    own = standing.own_refusal(identity)
    assert own is not None
    assert own.refusal is Refusal.REVOKED
    assert not standing.trust.refusals, "asking about ourselves is no refusal"


def test_a_certificate_that_is_over_is_for_the_status_to_say(place):
    paths, identity = place
    keys.store_chain(
        paths.certificate,
        certify_by_root(
            ROOT,
            subject=identity.public_key,
            role="trainer",
            serial=bytes(16),
            now_ms=1000,
            lifetime_ms=1000,
        ),
    )
    own = load_standing(paths, identity, SwarmSection()).own_refusal(identity)
    assert own is not None
    assert own.refusal is Refusal.EXPIRED
    assert "noded join" in own.hint


@pytest.mark.parametrize(
    "chain",
    [
        member_chain(OTHER),  # of another node
        invited_chain(OTHER, member_chain(OTHER, may_invite=True), Identity.from_seed(b"p" * 32)),
    ],
)
def test_a_certificate_that_can_never_be_right_is_refused_at_the_start(place, chain):
    paths, identity = place
    keys.store_chain(paths.certificate, chain)
    with pytest.raises(Refused, match="of no use here"):
        load_standing(paths, identity, SwarmSection())


def test_a_node_that_is_in_no_swarm_is_told_how_to_enter_one(tmp_path):
    with pytest.raises(NodedError, match="is in no swarm") as caught:
        load_standing(node_paths(tmp_path), OTHER, SwarmSection())
    assert "noded join CODE" in caught.value.hint


def test_without_a_certificate_there_is_no_start(place):
    paths, identity = place
    paths.certificate.unlink()
    with pytest.raises(NodedError, match="member of no swarm"):
        load_standing(paths, identity, SwarmSection())


def test_open_is_said_on_purpose_and_needs_no_certificate(tmp_path):
    paths = node_paths(tmp_path / "node", {})
    ensure_private_dir(paths.data_dir)
    identity = keys.create_identity(paths.node_key)
    keys.create_swarm(paths.swarm_key, Swarm.open_to_all(ROOT.public_key))
    with pytest.raises(Refused, match=r"swarm\.open"):
        load_standing(paths, identity, SwarmSection())
    standing = load_standing(paths, identity, SwarmSection(open=True))
    assert standing.own_refusal(identity) is None
    assert standing.trust.own is None
    assert standing.trust.strangers == "observer"
    assert not os.path.lexists(paths.certificate)
    member = standing.trust.check(standing.trust.chain, identity.public_key, wall_ms())
    assert member.is_stranger
