"""`noded init`: a new swarm, a place in one whose root key is at hand, and nothing lost by doing it twice."""

import json

import pytest

from node import keys
from node.initialise import initialise
from node.paths import node_paths
from tests.node.fake_control import run
from tests.trusted import FOREIGN
from transport.trust.chain import root_swarm_id, verify_chain

KEYS = {"node.key", "swarm-root.key", "swarm.key", "certificate"}

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def data(home):
    return home / ".local" / "state" / "noded"


def test_it_makes_a_swarm_whose_first_member_may_invite(capsys, data):
    code, out, err = run(capsys, "init", "--name", "attic", "--run", "demo", "--create")
    assert (code, err) == (0, "")
    assert {path.name for path in data.iterdir()} == {*KEYS, "noded.toml", "swarm.json"}
    assert all(path.stat().st_mode & 0o077 == 0 for path in [data, *data.iterdir()])
    root, chain = keys.load_root(data / "swarm-root.key"), keys.load_chain(data / "certificate")
    verify_chain(chain, root_swarm_id(root.public_key), None)
    assert (chain.leaf.role, chain.leaf.may_invite, chain.can_extend) == ("trainer", True, True)
    node_id = json.loads(run(capsys, "id", "--json")[1])
    assert node_id["id"] == str(chain.node_id) in out
    assert node_id["swarm"] == root_swarm_id(root.public_key).hex()
    for line in ("swarm     attic", "start     noded run", "  noded invite", "keep a copy"):
        assert line in out
    secrets = [keys.load_swarm(data / "swarm.key").key_text, root.seed.hex()]
    assert not any(secret in out for secret in secrets)


def test_its_json_says_the_same(capsys, home):
    config = home / "a" / "noded.toml"
    code, out, _ = run(capsys, "init", "--config", str(config), "--json", "--node-name", "barn")
    made = json.loads(out)
    assert code == 0
    assert made["schema"] == "noded.init/2"
    assert made["swarm_name"] == "barn"
    assert set(made["created"]) == {*KEYS, "noded.toml"}
    assert (made["kept"], made["may_invite"]) == ([], True)
    assert 'name = "barn"' in config.read_text()


def test_twice_changes_nothing(capsys, data):
    assert run(capsys, "init")[0] == 0
    before = {path.name: path.read_bytes() for path in data.iterdir()}
    code, out, err = run(capsys, "init", "--name", "other")
    assert (code, out) == (1, "")
    assert "noded run" in err
    assert run(capsys, "init", "--if-needed")[0] == 0
    assert {path.name: path.read_bytes() for path in data.iterdir()} == before
    assert run(capsys, "init", "--force", "--node-name", "other")[0] == 0
    after = {path.name: path.read_bytes() for path in data.iterdir()}
    assert {name: after[name] for name in KEYS} == {name: before[name] for name in KEYS}
    assert b'name = "other"' in after["noded.toml"]


@pytest.mark.parametrize("lost", [["noded.toml"], ["noded.toml", "swarm.key", "certificate"]])
def test_an_interrupted_one_is_finished_by_the_next(capsys, data, lost):
    assert run(capsys, "init")[0] == 0
    kept = {name: (data / name).read_bytes() for name in KEYS - set(lost)}
    for name in lost:
        (data / name).unlink()
    code, out, _ = run(capsys, "init")
    assert code == 0
    assert "kept node.key, swarm-root.key" in out
    assert {name: (data / name).read_bytes() for name in kept} == kept
    assert keys.load_chain(data / "certificate").can_extend


def test_with_the_root_key_at_hand_no_invite_is_needed(capsys, data, home):
    assert run(capsys, "init", "--name", "attic")[0] == 0
    other = home / "other"
    arguments = ["init", "--config", str(other / "noded.toml"), "--root", str(data)]
    code, out, _ = run(capsys, *arguments, "--bootstrap", "192.0.2.1:7447", "--json")
    assert code == 0
    made = json.loads(out)
    assert made["swarm"] == keys.load_chain(data / "certificate").leaf.swarm_id.hex()
    assert (made["may_invite"], "swarm-root.key" in made["created"]) == (False, False)
    assert keys.load_swarm(other / "swarm.key") == keys.load_swarm(data / "swarm.key")
    # Again, after it was cut short before the configuration: the same member.
    certificate = (other / "certificate").read_bytes()
    (other / "noded.toml").unlink()
    assert run(capsys, *arguments)[0] == 0
    assert (other / "certificate").read_bytes() == certificate


def test_a_node_stays_in_the_swarm_it_is_in(capsys, data, home):
    assert run(capsys, "init")[0] == 0
    config = home / "other" / "noded.toml"
    assert run(capsys, "init", "--config", str(config))[0] == 0
    config.unlink()
    code, _, err = run(capsys, "init", "--config", str(config), "--root", str(data))
    assert code == 8
    assert "another swarm" in err


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["--bootstrap", "nonsense"], 7, "network.bootstrap"),
        (["--bootstrap", "192.0.2.1:7447"], 7, "noded join CODE"),
        (["--set", "run.evrey=3"], 7, "run.every"),
        (["--set", "run.every"], 2, "KEY=VALUE"),
        (["--create"], 2, "--run"),
        (["--run", "../x"], 7, "run.name"),
        (["--preset", "moon"], 2, "preset"),
        (["--name", "a\nb"], 2, "printable"),
        (["--root", "/nowhere"], 1, "/nowhere"),
    ],
)
def test_a_wrong_one_writes_nothing(capsys, home, arguments, code, word):
    result, out, err = run(capsys, "init", *arguments)
    assert (result, out) == (code, "")
    assert word in err
    assert not (home / ".local").exists()


def test_a_member_whose_swarm_key_is_lost_is_told_to_join_again(capsys, data, home, tmp_path):
    assert run(capsys, "init")[0] == 0
    member = node_paths(tmp_path / "member", {})
    initialise(member.config_file, values={}, root_folder=data)
    member.config_file.unlink()
    member.swarm_key.unlink()
    code, _, err = run(capsys, "init", "--config", str(member.config_file))
    assert code == 1
    assert f"noded --config {member.config_file} join CODE" in err
    keys.create_swarm(member.swarm_key, FOREIGN)
    assert run(capsys, "init", "--config", str(member.config_file))[0] == 0


def test_an_open_swarm_is_made_and_entered_by_name(capsys, data, home):
    code, out, _ = run(capsys, "init", "--open", "--name", "park")
    assert code == 0
    swarm = keys.load_swarm(data / "swarm.key")
    assert swarm.is_open
    assert swarm.id == keys.load_chain(data / "certificate").leaf.swarm_id
    assert f"noded init --enter {swarm.key_text} --bootstrap HOST:PORT" in out
    assert "open = true" in (data / "noded.toml").read_text()
    config = ["--config", str(home / "other" / "noded.toml")]
    entered = ["init", "--enter", swarm.key_text, "--bootstrap", "192.0.2.1:7447", *config]
    code, out, _ = run(capsys, *entered, "--json")
    assert code == 0
    made = json.loads(out)
    assert made["swarm"] == swarm.id.hex()
    assert set(made["created"]) == {"node.key", "swarm.key", "noded.toml"}
    assert keys.load_swarm(home / "other" / "swarm.key") == swarm
    closed = home / "closed"
    assert run(capsys, "init", "--config", str(closed / "noded.toml"))[0] == 0
    secret = keys.load_swarm(closed / "swarm.key").key_text
    for wrong, said in (
        ([secret, "--bootstrap", "192.0.2.1:1"], "closed swarm"),
        ([swarm.key_text], "an address to ask first"),
        (["no-x", "--bootstrap", "192.0.2.1:1"], "not a swarm key"),
        ([swarm.key_text, "--root", str(closed)], "--enter"),
    ):
        new = str(home / "new" / "noded.toml")
        code, _, err = run(capsys, "init", "--config", new, "--enter", *wrong)
        assert code in {2, 7}
        assert said in err
        assert not (home / "new").exists()
