"""`noded join` up to the network and after it: what is written when, what is kept, and a second attempt."""

import io
import json
import random
import sys

import pytest

from node import keys
from node.errors import PeerNotReachable, Refused, TimedOut
from node.initialise import initialise
from node.joining.answer import seal_grant
from node.joining.code import InvalidCode
from node.joining.enter import enter
from node.joining.facts import load_facts
from node.joining.reasons import JoinRefused, Reason
from node.joining.request import parse_request
from node.paths import node_paths
from tests.node.fake_control import run
from tests.node.joining.people import (
    ALICE,
    ROOT,
    SWARM_ID,
    SWARM_SECRET,
    alice_with,
    decided,
    grant,
    invited,
)
from transport.errors import ConnectFailed


class Member:
    """Somebody to ask, who notes who asked."""

    def __init__(self, **more) -> None:
        self.issuer = alice_with()
        self.code = invited(self.issuer, **more)
        self.asked = []
        self.fails = 0

    async def ask(self, _address, data: bytes) -> bytes:
        request = parse_request(data)
        self.asked.append(request.subject)
        decision = decided(self.issuer, request)
        if self.fails:
            self.fails -= 1
            raise ConnectFailed("the line was cut")
        if hasattr(decision, "answer"):
            return decision.answer
        chain = grant(decision.use.chain)
        return seal_grant(request, decision.invite.key, chain, random.Random(1).randbytes)


@pytest.fixture(autouse=True)
def then(monkeypatch):
    """The certificates of these tests are of their own time."""
    import node.joining.redeemer

    monkeypatch.setattr(node.joining.redeemer, "verify_chain", lambda *_: None)


def test_everything_is_there_afterwards(tmp_path):
    member, config = Member(), tmp_path / "node" / "noded.toml"
    values = {"node.name": "barn", "network.listen": ["127.0.0.1:0"]}
    entered = enter(config, member.code.text, values=values, ask=member.ask)
    paths = node_paths(config.parent, {})
    chain = keys.load_chain(paths.certificate)
    assert entered.node_id == str(chain.node_id) == str(keys.load_identity(paths.node_key).node_id)
    assert (entered.role, entered.inviter) == ("trainer", str(ALICE.node_id))
    assert (entered.swarm_id, entered.swarm_name) == (SWARM_ID.hex(), "attic")
    assert keys.load_swarm(paths.swarm_key).key == SWARM_SECRET
    assert load_facts(paths.swarm_facts).bootstrap == ("192.0.2.1:7447",)
    assert 'name = "barn"' in config.read_text()
    assert all(path.stat().st_mode & 0o077 == 0 for path in config.parent.iterdir())
    assert not paths.swarm_root.exists()


def test_an_answer_that_was_lost_is_given_again_to_the_same_node(tmp_path):
    member, config = Member(), tmp_path / "noded.toml"
    member.fails = 1
    with pytest.raises(PeerNotReachable, match="the line was cut"):
        enter(config, member.code.text, values={}, ask=member.ask)
    assert not config.exists()
    assert enter(config, member.code.text, values={}, ask=member.ask)
    assert len(set(member.asked)) == 1
    assert member.issuer.counters == {"granted": 1, "repeated": 1}


def test_a_second_machine_is_refused_and_keeps_no_membership(tmp_path):
    member = Member()
    enter(tmp_path / "a" / "noded.toml", member.code.text, values={}, ask=member.ask)
    with pytest.raises(JoinRefused) as caught:
        enter(tmp_path / "b" / "noded.toml", member.code.text, values={}, ask=member.ask)
    assert caught.value.reason is Reason.USED_UP
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["node.key"]


def test_a_configuration_that_is_there_stays(tmp_path):
    config = tmp_path / "noded.toml"
    config.write_text('[node]\nname = "mine"\n')
    member = Member()
    assert enter(config, member.code.text, values={"node.name": "x"}, ask=member.ask).config_kept
    assert config.read_text() == '[node]\nname = "mine"\n'


def test_a_node_is_in_one_swarm(tmp_path):
    config = tmp_path / "noded.toml"
    initialise(config, values={})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    member = Member()
    with pytest.raises(Refused, match="another swarm"):
        enter(config, member.code.text, values={}, ask=member.ask)
    (tmp_path / "certificate").unlink()
    with pytest.raises(Refused, match="root key of another swarm"):
        enter(config, member.code.text, values={}, ask=member.ask)
    assert not member.asked
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert after == {name: data for name, data in before.items() if name != "certificate"}


def test_a_member_may_take_a_new_certificate_of_its_own_swarm(tmp_path):
    config = tmp_path / "noded.toml"
    first = Member()
    enter(config, first.code.text, values={}, ask=first.ask)
    second = Member(seed=2, role="observer")
    assert enter(config, second.code.text, values={}, ask=second.ask).role == "observer"
    assert keys.load_chain(tmp_path / "certificate").issuers[0] == ROOT.public_key


def test_what_is_no_code_touches_nothing(tmp_path):
    with pytest.raises(InvalidCode):
        enter(tmp_path / "x" / "noded.toml", "ni-nonsense", values={})
    assert not (tmp_path / "x").exists()


def test_silence_ends_in_time(tmp_path):
    import trio

    async def never(_address, _data):
        await trio.sleep_forever()

    with pytest.raises(TimedOut, match="no answer within"):
        enter(tmp_path / "n.toml", Member().code.text, values={}, ask=never, patience_s=0.05)


def test_the_command_reads_the_code_from_wherever_it_is(tmp_path, capsys, monkeypatch):
    import node.joining.enter as module

    member = Member(uses=3)
    monkeypatch.setattr(module, "over_tcp", lambda *_: member.ask)
    text = member.code.text
    (tmp_path / "code").write_text(text[:50] + "\n" + text[50:] + "\n")
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    ways = {
        "stdin": ["-"],
        "file": ["--file", str(tmp_path / "code")],
        "words": [text[:50], text[50:]],
    }
    for name, way in ways.items():
        config = str(tmp_path / name / "noded.toml")
        code, out, err = run(capsys, "join", *way, "--config", config, "--name", name, "--json")
        assert (code, err) == (0, "")
        assert json.loads(out)["schema"] == "noded.join/1"
    code, out, err = run(capsys, "join", text, "--config", str(tmp_path / "4" / "noded.toml"))
    assert (code, out) == (8, "")
    assert "used up" in err
    assert text not in err
    assert run(capsys, "join")[0] == 2
    assert run(capsys, "join", text, "--file", str(tmp_path / "code"))[0] == 2


def test_the_command_tells_a_person_what_came_of_it(tmp_path, capsys, monkeypatch):
    import node.joining.enter as module

    member = Member()
    monkeypatch.setattr(module, "over_tcp", lambda *_: member.ask)
    config = str(tmp_path / "noded.toml")
    code, out, _ = run(capsys, "join", member.code.text, "--config", config)
    assert code == 0
    assert "joined    attic, as trainer, invited by" in out
    assert f"start     noded --config {config} run" in out
