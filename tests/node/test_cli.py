"""The command: codes, streams, JSON, and how little it imports."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import node
from gossip.protocol import installed_protocols, load_plugin
from node.cli.base import Settings
from node.cli.main import cli
from node.errors import NotReady, PeerNotReachable
from node.task import installed_tasks, load_task
from tests.node.fake_control import PEER, STATUS, FakeDaemon, run

ROOT = Path(__file__).parents[2]


pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def daemon(home):
    with FakeDaemon(home / ".local" / "state" / "noded" / "control.sock").serve() as fake:
        yield fake


# ---- talking to the daemon ---------------------------------------------------------------------


def test_status_as_text_and_as_json(capsys, daemon):
    code, out, err = run(capsys, "status")
    assert (code, err) == (0, "")
    assert out.startswith('ok  noded 0.1.0  id nd-7kq2-m4xf ("attic")  training')
    for arguments in (("status", "--json"), ("--json", "status")):
        code, out, err = run(capsys, *arguments)
        assert (code, json.loads(out), err) == (0, STATUS, "")


@pytest.mark.parametrize("verb", ["status", "peers", "stop", "ping"])
def test_a_daemon_that_is_off_is_code_3_and_names_the_start_command(capsys, home, verb):
    arguments = [verb, "barn"] if verb == "ping" else [verb]
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (3, "")
    assert "the daemon is not running (no socket at " in err
    assert "noded run" in err
    code, out, err = run(capsys, *arguments, "--json")
    assert json.loads(out)["schema"] == "noded.error/1"
    assert json.loads(out)["exit_code"] == code == 3


def test_the_command_that_starts_it_is_the_one_for_this_node(capsys, home):
    assert "not set up yet:  noded init      and then:  noded run" in run(capsys, "status")[2]
    other = str(home / "two words" / "noded.toml")
    asked = ("status", "--config", other)
    assert f"noded --config '{other}' init " in run(capsys, *asked)[2]
    run(capsys, "init", "--config", other)
    assert run(capsys, *asked)[2].endswith(f"start it:  noded --config '{other}' run\n")
    assert "--socket or --config" in run(capsys, "status", "--socket", "/nowhere")[2]
    run(capsys, "init")
    assert run(capsys, "status")[2].endswith("start it:  noded run\n")
    units = home / ".config" / "systemd" / "user"
    units.mkdir(parents=True)
    (units / "noded.service").touch()
    assert "systemctl --user start noded " in run(capsys, "status")[2]


def test_hints_name_the_node_that_was_asked(capsys, daemon):
    warning = {"code": "x", "severity": "warning", "text": "t", "hint": "noded peers shows who"}
    daemon.answers["GET", "/v1/status"] = {**STATUS, "health": [warning]}
    assert "t; noded peers shows who" in run(capsys, "status")[1]
    asked = ("--socket", str(daemon.path))
    assert f"t; noded --socket {daemon.path} peers" in run(capsys, "status", *asked)[1]
    daemon.answers["POST", "/v1/ping"] = PeerNotReachable("no", hint="noded peers lists them")
    _, out, err = run(capsys, "ping", "x", *asked, "--json")
    assert json.loads(out)["hint"] == f"noded --socket {daemon.path} peers lists them"
    assert f"  noded --socket {daemon.path} peers lists them\n" in err
    settings = Settings()
    settings.config = Path("a\\1b")
    assert settings.aim("noded run, noded nothing") == "noded --config 'a\\1b' run, noded nothing"


@pytest.mark.parametrize("verb", [["status"], ["peers"], ["stop"], ["id"], ["config", "show"]])
def test_json_is_one_object_on_one_line(capsys, daemon, verb):
    run(capsys, "init")
    code, out, _ = run(capsys, *verb, "--json")
    assert code == 0
    assert out.count("\n") == 1
    assert json.loads(out)["schema"].startswith("noded.")


def test_check_answers_by_its_code_alone(capsys, daemon, home):
    assert run(capsys, "status", "--check") == (0, "", "")
    daemon.answers["GET", "/readyz"] = {"ready": False, "state": "degraded", "verdict": "failing"}
    code, out, err = run(capsys, "status", "--check")
    assert (code, out) == (4, "")
    assert "degraded, failing" in err
    assert run(capsys, "--socket", str(home / "nobody"), "status", "--check")[0] == 3


def test_peers_and_ping(capsys, daemon):
    code, out, _ = run(capsys, "peers")
    assert code == 0
    assert "barn  active  direct" in out
    assert json.loads(run(capsys, "peers", "--json")[1])["peers"] == [PEER]
    code, out, _ = run(capsys, "ping", "barn", "-c", "2", "--interval", "0")
    assert code == 0
    assert out.splitlines() == ["pong from barn (nd-b2cd-91aa) via direct in 21 ms"] * 2
    code, out, _ = run(capsys, "ping", "barn", "-c", "2", "--interval", "0", "--json")
    answer = json.loads(out)
    assert answer["schema"] == "noded.ping/1"
    assert len(answer["replies"]) == 2


def test_nobody_there_is_said(capsys, daemon):
    daemon.answers["GET", "/v1/peers"] = {"schema": "noded.peers/1", "peers": []}
    code, out, err = run(capsys, "peers")
    assert code == 0
    assert out.startswith("ID ")
    assert "no other node is known yet" in err
    daemon.answers["GET", "/v1/peers"]["peers"] = [{**PEER, "state": "left"}]
    code, out, err = run(capsys, "peers")
    assert "barn" not in out
    assert err == "1 left in good order: noded peers --all\n"
    assert "barn" in run(capsys, "peers", "--all")[1]


def test_the_daemons_own_errors_keep_hint_and_code(capsys, daemon):
    daemon.answers["POST", "/v1/ping"] = PeerNotReachable("no such peer", hint="noded peers")
    assert run(capsys, "ping", "x") == (6, "", "noded: no such peer\n  noded peers\n")
    daemon.answers["GET", "/v1/status"] = NotReady("starting")
    assert run(capsys, "status")[0] == 4
    daemon.answers["GET", "/v1/status"] = ZeroDivisionError()
    assert run(capsys, "status")[0] == 1


def test_a_ping_without_any_reply_is_unreachable(capsys, daemon):
    daemon.answers["POST", "/v1/ping"] = {"peer": "nd-x", "replies": []}
    assert run(capsys, "ping", "x", "-c", "1")[0] == 6


def test_stop_waits_until_the_daemon_is_gone(capsys, daemon):
    assert run(capsys, "stop") == (0, "stopped\n", "")
    assert not daemon.path.exists()


def test_a_stop_that_does_not_happen_times_out(capsys, daemon):
    daemon.stops = False
    code, _, err = run(capsys, "stop", "--timeout", "0.2")
    assert code == 5
    assert "still there" in err


def test_watch_prints_until_it_is_interrupted(capsys, daemon, monkeypatch):
    import time

    def interrupt(_seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupt)
    code, out, _ = run(capsys, "status", "--watch", "--json")
    assert code == 130
    assert json.loads(out) == STATUS


# ---- setting up --------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--protocol", "--task"])
def test_a_local_swarm_of_something_unknown_makes_no_folder(capsys, home, option):
    code, _, err = run(capsys, "local", option, "nope", "--out", str(home / "out"))
    assert code == 2
    assert "installed: " in err
    assert not (home / "out").exists()


@pytest.mark.parametrize(
    "option", [("--set", "run.every=0"), ("--steps", "9007199254740993"), ("--protocol", "")]
)
def test_a_local_swarm_of_a_refused_setting_makes_no_folder(capsys, home, option):
    code, _, err = run(capsys, "local", *option, "--out", str(home / "out"))
    assert code in {2, 7}
    assert err
    assert not (home / "out").exists()


def test_id_without_a_key_says_how_to_make_one(capsys, home):
    code, _, err = run(capsys, "id")
    assert code == 1
    assert "noded init" in err


def test_config_check_show_and_explain(capsys, home):
    path = home / "noded.toml"
    path.write_text('[run]\nname = "r"\nevrey = 3\n')
    config = ["--config", str(path)]
    code, out, err = run(capsys, "config", "check", *config)
    assert (code, out) == (7, "")
    assert err == "noded: unknown key run.evrey\n  did you mean run.every?\n"
    path.write_text('[run]\nname = "r"\ndata = "missing"\n')
    code, _, err = run(capsys, "config", "check", *config)
    assert code == 7
    assert f"run.data: there is nothing at {home / 'missing'}" in err
    path.write_text('[run]\nname = "r"\n')
    assert run(capsys, "config", "check", *config)[0] == 0
    out = run(capsys, "config", "show", *config, "--set", "run.every=5")[1]
    assert ["run.every", "5", "--set"] in [line.split() for line in out.splitlines()]
    assert "NODED_RUN_EVERY" in run(capsys, "config", "explain", "run.every")[1]
    explained = json.loads(run(capsys, "config", "explain", "limits", "--json")[1])
    assert {entry["key"].partition(".")[0] for entry in explained["keys"]} == {"limits"}
    assert run(capsys, "config", "explain", "run.evry")[0] == 7


def test_every_setting_of_every_protocol_is_explained(capsys, home):
    said = json.loads(run(capsys, "config", "explain", "--json")[1])
    assert {entry["key"] for entry in said["keys"]} >= {"run.protocol", "limits.max_peers"}
    assert {each["name"] for each in said["protocols"]} == set(installed_protocols())
    for protocol in said["protocols"]:
        assert protocol["kind"] in {"collective", "decentralized"}
        assert protocol["text"]
        plugin = load_plugin(protocol["name"])
        assert len(protocol["settings"]) == len(plugin.Settings.__struct_fields__)
        for setting in protocol["settings"]:
            assert setting["text"], f"{protocol['name']}: {setting['key']} has no text"
            assert setting["type"]
    out = run(capsys, "config", "explain", "dpsgd")[1]
    assert "run.protocol_settings.degree" in out
    assert "whole number, at least 1, at most 1000" in out
    assert 'default   "random-regular"' in out


def test_every_setting_of_every_task_is_explained(capsys, home):
    for task in installed_tasks():
        said = json.loads(run(capsys, "config", "explain", task, "--json")[1])
        [found] = said["tasks"]
        assert (found["name"], found["kind"], said["protocols"]) == (task, "task", [])
        assert found["text"]
        assert len(found["settings"]) == len(load_task(task).Settings.__struct_fields__)
        for setting in found["settings"]:
            assert setting["text"], f"{task}: {setting['key']} has no text"
    out = run(capsys, "config", "explain", "digits")[1]
    assert "run.task_settings.alpha" in out
    assert 'default   "iid"' in out


@pytest.mark.parametrize("key", ["gossip_steps", "run.protocol_settings.gossip_steps"])
def test_a_setting_is_explained_for_the_protocols_that_have_it(capsys, home, key):
    out = run(capsys, "config", "explain", key)[1]
    assert 'run.protocol = "dfedsam"' in out
    assert "run.protocol_settings.gossip_steps" in out
    assert "run.protocol_settings.rho" not in out


def test_a_combination_of_settings_that_cannot_work_is_refused_with_the_reason(capsys, home):
    path = home / "noded.toml"
    path.write_text(
        '[run]\nname = "r"\ncreate = true\ntask = "digits"\nprotocol = "dpsgd"\n'
        'protocol_settings = {variance_target = "self"}\n'
    )
    code, out, err = run(capsys, "config", "check", "--config", str(path))
    assert (code, out) == (7, "")
    assert "run.protocol_settings" in err
    assert "variance_target" in err


# ---- the command itself ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["sttus"], "'status'"),
        (["config", "chek"], "'check'"),
        (["status", "--chek"], "--check"),
        (["ping"], "PEER"),
        (["local", "--peers", "0"], "peers"),
        (["status", "--timeout", "0"], "timeout"),
        (["completion", "tcsh"], "bash"),
    ],
)
def test_usage_errors_are_code_2_and_help(capsys, arguments, word):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert word in err
    answer = json.loads(run(capsys, *arguments, "--json")[1])
    assert (answer["schema"], answer["exit_code"]) == ("noded.error/1", 2)
    assert word in answer["error"]


@pytest.mark.parametrize("path", [[], ["config"], *[[name] for name in sorted(cli.commands)]])
def test_every_verb_has_help(capsys, path):
    code, out, _ = run(capsys, *path, "--help")
    assert code == 0
    assert "--json" in out
    assert "Usage: noded" in out


def test_the_version_is_the_projects(capsys):
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert run(capsys, "--version")[1] == f"noded {project['version']}\n"
    assert node.__version__ == project["version"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(capsys, shell):
    code, out, _ = run(capsys, "completion", shell)
    assert code == 0
    assert "_NODED_COMPLETE" in out


def test_the_documented_verbs_are_the_real_ones():
    text = (ROOT / "docs" / "cli.md").read_text()
    for name in cli.commands:
        assert f"`noded {name}" in text, name


def modules_after(*arguments: str) -> set[str]:
    """What a command has imported when it ends, seen from inside its process."""
    program = (
        "import sys; from node.cli.main import main; code = main(sys.argv[1:]);"
        "print('|'.join(sorted(sys.modules)))"
    )
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=environ,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return set(result.stdout.splitlines()[-1].split("|"))


@pytest.mark.parametrize(
    "arguments",
    [["status"], ["status", "--check"], ["peers"], ["ping", "barn", "-c", "1"], ["stop"]],
    ids=" ".join,
)
def test_asking_the_daemon_imports_click_and_the_standard_library_alone(daemon, arguments):
    found = {name.partition(".")[0] for name in modules_after(*arguments)}
    heavy = {"trio", "torch", "numpy", "msgspec", "msgpack", "attr", "attrs", "cryptography", "h11"}
    assert not found & (heavy | {"rich", "transport", "gossip", "dht", "crdt"})


def test_importing_the_package_imports_nothing():
    program = "import sys, node; print('|'.join(sys.modules))"
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    out = subprocess.run(
        [sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True
    ).stdout
    assert not {"trio", "torch", "click", "msgspec", "node.cli.main", "node.errors"} & set(
        out.strip().split("|")
    )
    assert node.NodedError.__module__ == "node.errors"
    with pytest.raises(AttributeError):
        node.nonsense  # noqa: B018
