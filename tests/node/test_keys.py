"""Key files: written whole, never overwritten, read only when nobody else could."""

import os
import stat

import pytest

from node.errors import NodedError, Refused
from node.keys import (
    KeyExists,
    certify_directly,
    create_identity,
    create_root,
    create_secret,
    create_swarm,
    load_chain,
    load_identity,
    load_or_create_identity,
    load_root,
    load_swarm,
    read_secret,
    store_chain,
)
from node.paths import node_paths
from transport.identity import Identity
from transport.swarm import Swarm
from transport.trust.chain import root_swarm_id, verify_chain


def test_an_identity_survives_the_disk(tmp_path):
    path = tmp_path / "node.key"
    made = create_identity(path)
    assert load_identity(path).node_id == made.node_id
    assert load_or_create_identity(path).node_id == made.node_id
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["node.key"]


def test_a_swarm_key_survives_the_disk(tmp_path):
    swarm = Swarm.generate(os.urandom, Identity.generate(os.urandom).public_key)
    create_swarm(tmp_path / "swarm.key", swarm)
    assert load_swarm(tmp_path / "swarm.key") == swarm


def test_a_root_key_is_no_node_key(tmp_path):
    root = create_root(tmp_path / "swarm-root.key")
    assert load_root(tmp_path / "swarm-root.key").public_key == root.public_key
    with pytest.raises(NodedError, match="does not hold a node key"):
        load_identity(tmp_path / "swarm-root.key")
    with pytest.raises(KeyExists):
        create_root(tmp_path / "swarm-root.key")
    create_identity(tmp_path / "node.key")
    with pytest.raises(NodedError, match="does not hold a swarm's root key"):
        load_root(tmp_path / "node.key")


def test_a_member_made_directly_stays_the_one_it_is(tmp_path):
    root, other = create_root(tmp_path / "root"), create_root(tmp_path / "other")
    paths = node_paths(tmp_path / "node", {})
    paths.data_dir.mkdir()
    chain = certify_directly(paths, root, may_invite=True, now_ms=10**12)
    verify_chain(chain, root_swarm_id(root.public_key), 10**12)
    assert chain.node_id == load_identity(paths.node_key).node_id
    assert load_chain(paths.certificate) == chain == certify_directly(paths, root)
    with pytest.raises(Refused, match="another swarm"):
        certify_directly(paths, other)
    store_chain(paths.certificate, chain)
    assert stat.S_IMODE(paths.certificate.stat().st_mode) == 0o600


def test_a_certificate_that_is_missing_or_damaged_says_what_to_do(tmp_path):
    path = tmp_path / "certificate"
    with pytest.raises(NodedError, match="member of no swarm") as caught:
        load_chain(path)
    assert "noded join" in caught.value.hint
    for text in ("", "noded-certificate-1 !!", "noded-certificate-1 AAAA", "x QQ=="):
        path.unlink(missing_ok=True)
        create_secret(path, text.encode())
        with pytest.raises(NodedError, match="does not hold a certificate"):
            load_chain(path)


@pytest.mark.parametrize("umask", [0, 0o777])
def test_the_mode_does_not_depend_on_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        create_secret(tmp_path / "k", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "k").stat().st_mode) == 0o600


@pytest.mark.parametrize("kind", ["file", "link", "broken link"])
def test_nothing_is_overwritten(tmp_path, kind):
    path, target = tmp_path / "k", tmp_path / "target"
    if kind == "file":
        path.write_bytes(b"old")
    else:
        path.symlink_to(target)
        if kind == "link":
            target.write_bytes(b"old")
    with pytest.raises(KeyExists) as caught:
        create_secret(path, b"new")
    assert "mv" in caught.value.hint
    assert not target.exists() or target.read_bytes() == b"old"
    assert not list(tmp_path.glob(".k.*"))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o601])
def test_a_key_that_others_can_touch_is_refused(tmp_path, mode):
    path = tmp_path / "node.key"
    create_identity(path)
    path.chmod(mode)
    with pytest.raises(Refused, match="others") as caught:
        load_identity(path)
    assert f"chmod 600 {path}" in caught.value.hint


def test_links_fifos_and_directories_are_refused(tmp_path):
    create_secret(tmp_path / "real", b"x")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    os.mkfifo(tmp_path / "fifo", 0o600)
    (tmp_path / "dir").mkdir(mode=0o700)
    for name in ("link", "fifo", "dir"):
        with pytest.raises(Refused):
            read_secret(tmp_path / name)


def test_another_users_key_is_refused(tmp_path, monkeypatch):
    create_secret(tmp_path / "k", b"x")
    owner = (tmp_path / "k").stat().st_uid
    if owner == 0:
        os.chown(tmp_path / "k", 4243, -1)
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    with pytest.raises(Refused, match="belongs to user"):
        read_secret(tmp_path / "k")


def test_a_missing_key_says_how_to_make_one(tmp_path):
    with pytest.raises(NodedError) as caught:
        load_identity(tmp_path / "node.key")
    assert "noded init" in caught.value.hint


@pytest.mark.parametrize("damage", ["", "garbage", "flip", "cut", "long", "latin"])
def test_a_damaged_key_is_told_apart_from_another_identity(tmp_path, damage):
    path = tmp_path / "node.key"
    seed = create_identity(path).seed
    text = path.read_text()
    damaged = {
        "": b"",
        "garbage": b"\x00\xff" * 20,
        "flip": text.replace(text[20], "0" if text[20] != "0" else "1", 1).encode(),
        "cut": text[:-6].encode(),
        "long": (text * 100).encode(),
        "latin": "noded-node-key-1 ä b".encode("latin-1"),
    }[damage]
    path.write_bytes(damaged)
    with pytest.raises(NodedError, match="damaged") as caught:
        load_identity(path)
    assert seed.hex() not in str(caught.value) + caught.value.hint


def test_a_damaged_swarm_key_does_not_leak(tmp_path):
    path = tmp_path / "swarm.key"
    text = Swarm.generate(os.urandom, Identity.generate(os.urandom).public_key).key_text
    create_secret(path, text[:-3].encode())
    with pytest.raises(NodedError, match="damaged") as caught:
        load_swarm(path)
    assert text[10:30] not in str(caught.value) + caught.value.hint


def test_an_unwritable_place_is_one_clear_error(tmp_path):
    with pytest.raises(NodedError, match="cannot write"):
        create_secret(tmp_path / "missing" / "k", b"x")
