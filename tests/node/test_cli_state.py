"""`noded state`: the document of a real replica, as JSON and as text, and what may be wrong with it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdt import rules
from crdt.entry import MAX_ENTRY_BYTES
from crdt.record import CheckpointInfo, MemberInfo, Metrics, Progress
from node.cli.render_state import state_text
from node.cli.state import KEYS as OPTIONS
from node.run import sequence
from node.run.manifest import RunManifest
from node.run.state import open_state, run_info, state_document
from tests.node.fake_control import FakeDaemon, run
from transport.identity import Identity

ALICE, BOB = (Identity.from_seed(bytes([n]) * 32) for n in (1, 2))
MANIFEST = RunManifest(
    name="demo", task="byte-gpt", task_settings={"width": 64}, created_by=str(ALICE.node_id)
)
HASH = bytes(range(32))


pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def documents(tmp_path):
    """The replicas of the run's creator and of another member, after they met."""
    states = []
    for identity, name in ((ALICE, "attic"), (BOB, "barn\x1b[2J"[:4])):
        folder = tmp_path / name
        folder.mkdir()
        state = open_state(identity, MANIFEST, folder)
        state.set_member(MemberInfo(name, ("192.0.2.1:7447",)))
        state.set_progress(Progress(4, 40, 1.5, 4000, 50.0, HASH))
        states.append(state)
    alice, bob = states
    alice.set_metrics(Metrics([("val_loss", 1.25)]))
    bob.set_checkpoint(CheckpointInfo(40, 4, HASH, bob.node))
    alice.revoke(HASH, "stolen")
    alice.merge(bob.to_wire())
    bob.merge(alice.to_wire())
    return alice, bob


@pytest.fixture
def daemon(home, documents):
    fake = FakeDaemon(home / ".local" / "state" / "noded" / "control.sock")
    fake.answers["GET", "/v1/state"] = state_document(documents[1], MANIFEST)
    with fake.serve():
        yield fake


def test_the_json_has_values_authors_clocks_and_leases(capsys, daemon):
    code, out, _ = run(capsys, "state", "--json")
    assert code == 0
    answer = json.loads(out)
    assert answer["schema"] == "noded.state/1"
    assert answer["registered"]
    assert answer["document"] == MANIFEST.hash.hex()
    assert answer["checkpoint"]["holder"] == str(BOB.node_id)
    rows = {(row["key"], row["author"]): row for row in answer["entries"]}
    progress = rows["progress", str(ALICE.node_id)]
    assert progress["value"]["step"] == 40
    assert progress["previous"] == rows["member", str(ALICE.node_id)]["id"]
    assert 0 < progress["lease_left_s"] <= 24 * 3600
    registered = rows["run", str(ALICE.node_id)]
    assert registered["lease_left_s"] is None
    assert registered["value"]["manifest_sha256"] == MANIFEST.hash.hex()
    assert registered["value"]["settings"]["task.width"] == 64
    assert answer["revoked"][0]["reason"] == "stolen"


def test_the_text_is_one_line_for_each_entry(capsys, daemon):
    code, out, _ = run(capsys, "state")
    assert code == 0
    assert out.startswith("demo  document ")
    assert f"{ALICE.node_id.short} (attic)" in out
    assert "byte-gpt by diloco, manifest " in out
    assert "attic trainer active 192.0.2.1:7447" in out
    assert "newest checkpoint  step 40" in out
    assert "stolen" in out
    assert all(len(line) < 300 for line in out.splitlines())


def test_one_key_alone(capsys, daemon):
    _, out, _ = run(capsys, "state", "--key", "metrics", "--json")
    (row,) = json.loads(out)["entries"]
    assert row["value"] == {"val_loss": 1.25}
    code, _, err = run(capsys, "state", "--key", "nothing")
    assert code == 2
    assert (
        "'member', 'progress', 'metrics', 'links', 'site', 'checkpoints', 'run', 'revoked'" in err
    )
    daemon.answers["GET", "/v1/state"]["entries"] = []
    code, out, err = run(capsys, "state", "--key", "metrics", "--json")
    assert (code, json.loads(out)["entries"]) == (0, [])
    assert "nobody has said anything under metrics yet" in err


def test_the_keys_are_those_of_the_document():
    named = {rules.MEMBER, rules.PROGRESS, rules.METRICS, rules.LINKS, rules.SITE}
    assert set(OPTIONS) == named | {rules.CHECKPOINTS, rules.RUN, rules.REVOKED}


def test_who_is_not_heard_is_said(documents):
    document = state_document(documents[0], MANIFEST)
    document["convicted"] = [{"node": str(BOB.node_id), "reason": "two entries with sequence 5"}]
    document["ahead"] = [{"node": str(BOB.node_id), "ms": 90_000}]
    text = state_text(document)
    assert "signed two stories: two entries with sequence 5" in text
    assert "1m 30s ahead" in text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
KEYS = ["key", "author", "time_ms", "counter", "lease_left_s", "value", "node", "ms", "reason"]


@given(
    st.dictionaries(
        st.sampled_from(["run", "names", "entries", "checkpoint", "revoked", "convicted", "ahead"]),
        JSON | st.lists(st.dictionaries(st.sampled_from(KEYS), JSON), max_size=2),
    )
)
def test_whatever_the_daemon_answers_is_printable(document):
    text = state_text(document)
    assert all(character.isprintable() for character in text.replace("\n", ""))


def test_a_run_with_many_long_settings_is_registered_all_the_same(tmp_path):
    manifest = RunManifest(
        name="big",
        task="t",
        task_settings={f"s{n}": "é" * 200 for n in range(20)},
        created_by=str(ALICE.node_id),
    )
    assert run_info(manifest).settings
    state = open_state(ALICE, manifest, tmp_path)
    assert state.run().manifest == manifest.hash
    assert state.ledger.size_bytes <= MAX_ENTRY_BYTES


def test_a_run_whose_creator_has_no_readable_id_has_no_registry(tmp_path):
    manifest = RunManifest(name="old", task="t", created_by="somebody")
    assert open_state(ALICE, manifest, tmp_path).run() is None


def test_numbers_go_up_over_restarts_whatever_the_clock_does(tmp_path, monkeypatch, caplog):
    first = open_state(ALICE, MANIFEST, tmp_path)
    used = first.sequence
    assert sequence.next_start(tmp_path / "sequence") > used
    monkeypatch.setattr("node.run.state.wall_ms", lambda: 1000)
    assert open_state(ALICE, MANIFEST, tmp_path).sequence > used
    (tmp_path / "sequence").write_text("nonsense")
    assert sequence.next_start(tmp_path / "sequence") == 0
    sequence.reserve(tmp_path / "missing" / "sequence", 5)
    assert "cannot be written" in caplog.text
