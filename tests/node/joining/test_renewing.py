"""`noded renew`: a certificate by the root key goes on with the root key, and with no other."""

import json
import os

import pytest

from node import keys
from node.errors import ExitCode, Refused
from node.joining.renewing import renew_by_root
from node.paths import node_paths
from tests.node.fake_control import run
from transport.identity import Identity
from transport.trust.chain import YEAR_MS, certify, root_swarm_id, verify_chain

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def paths(capsys, home):
    assert run(capsys, "init", "--name", "attic")[0] == 0
    return node_paths(home / ".local" / "state" / "noded")


def test_only_the_time_and_the_serial_are_new(paths):
    old = keys.load_chain(paths.certificate).leaf
    root = keys.load_root(paths.swarm_root)
    later = old.issued_at_ms + YEAR_MS // 2
    renewed = renew_by_root(paths, now_ms=later)
    assert keys.load_chain(paths.certificate) == renewed
    verify_chain(renewed, root_swarm_id(root.public_key), old.expires_at_ms + YEAR_MS // 4)
    new = renewed.leaf
    assert (new.issued_at_ms, new.expires_at_ms) == (later, later + YEAR_MS)
    assert (new.subject, new.role, new.may_invite) == (old.subject, old.role, old.may_invite)
    assert (new.inviter, new.invite) == (old.inviter, old.invite)
    assert new.serial != old.serial


def test_another_swarms_root_is_refused_and_nothing_changes(paths, tmp_path):
    before = paths.certificate.read_bytes()
    other = tmp_path / "other.key"
    keys.create_root(other)
    with pytest.raises(Refused, match="another swarm"):
        renew_by_root(paths, other)
    assert paths.certificate.read_bytes() == before


def test_an_invited_member_is_sent_to_who_invited_it(paths):
    founder = keys.load_identity(paths.node_key)
    chain = keys.load_chain(paths.certificate)
    member = Identity.generate(os.urandom)
    invited = certify(
        founder,
        chain,
        subject=member.public_key,
        role="trainer",
        serial=os.urandom(16),
        now_ms=chain.leaf.issued_at_ms,
    )
    keys.store_chain(paths.certificate, invited)
    with pytest.raises(Refused, match="given by a member") as caught:
        renew_by_root(paths)
    assert "noded join" in caught.value.hint


def test_the_verb(paths, capsys):
    old = keys.load_chain(paths.certificate).leaf
    code, out, err = run(capsys, "renew")
    assert code == 0
    assert out.startswith("renewed   until ")
    assert "next start" in err
    answer = json.loads(run(capsys, "renew", "--json")[1])
    assert answer["schema"] == "noded.renew/1"
    assert answer["expires_at_ms"] >= old.expires_at_ms
    paths.swarm_root.unlink()
    code, _, err = run(capsys, "renew")
    assert code == ExitCode.FAILED
    assert "swarm-root.key" in err
