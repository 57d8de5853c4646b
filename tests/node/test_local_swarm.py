"""`noded local` as a person runs it: real processes, stand-ins for the daemons, and nothing left behind."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from node.errors import NodedError, UsageError
from node.local import LocalOptions
from node.local.fleet import daemon_command
from node.local.layout import choose_out, clean_environ, peer_files, tail, write_config
from node.local.parent import children

ROOT = Path(__file__).parents[2]
FAKE = Path(__file__).parent / "fake_local.py"

pytestmark = pytest.mark.real


class Launched:
    """A `noded local` with fake daemons, in a process of its own."""

    def __init__(self, out: Path, peers: int, *, mode: str = "ok", seconds: float = 0.2) -> None:
        self.out = out
        environ = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "FAKE_MODE": mode,
            "FAKE_SECONDS": str(seconds),
        }
        self.process = subprocess.Popen(
            [sys.executable, str(FAKE), "local", str(out), str(peers), "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environ,
            text=True,
        )

    def events(self):
        """Its JSON lines as they come."""
        for line in self.process.stdout:
            yield json.loads(line)

    def wait_training(self) -> dict:
        """The first progress object in which every peer trains."""
        for event in self.events():
            peers = event.get("peers", [])
            if len(peers) > 1 and all(peer["state"] == "training" for peer in peers):
                return event
        raise AssertionError(self.process.stderr.read())

    def descendants(self) -> set[int]:
        found, pending = set(), [self.process.pid]
        while pending:
            below = children(pending.pop())
            found.update(below)
            pending += below
        return found

    def finish(self) -> tuple[int, list[dict], str]:
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, [json.loads(line) for line in out.splitlines()], err


@pytest.fixture
def launch(tmp_path):
    with contextlib.ExitStack() as stack:

        def start(peers: int, **options) -> Launched:
            launched = Launched(tmp_path / "out", peers, **options)
            stack.callback(launched.process.stdout.close)
            stack.callback(launched.process.stderr.close)
            stack.callback(launched.process.wait)
            stack.callback(launched.process.kill)
            return launched

        yield start


def assert_gone(pids: set[int], within_s: float = 5.0) -> None:
    deadline = time.monotonic() + within_s
    while alive := {pid for pid in pids if is_alive(pid)}:
        assert time.monotonic() < deadline, f"still there: {alive}"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in {"Z", "X"}  # dead; whether it was reaped is its parent's affair


def test_a_whole_run_ends_with_a_summary(launch, tmp_path):
    launched = launch(3)
    code, events, err = launched.finish()
    assert code == 0, err
    assert {event["schema"] for event in events} == {"noded.local/1"}
    summary = events[-1]
    assert (summary["event"], summary["ok"], summary["agree"]) == ("summary", True, True)
    assert summary["validation_loss"] == {"before": 5.5, "after": 2.5}
    assert summary["validation_perplexity"]["after"] == pytest.approx(12.18, abs=0.01)
    assert [peer["name"] for peer in summary["peers"]] == ["peer-1", "peer-2", "peer-3"]
    assert {peer["step"] for peer in summary["peers"]} == {40}
    assert summary["sample"].startswith("def f()")
    assert summary["checkpoint"].endswith("peer-1/runs/local/checkpoints/step-00000040")
    assert Path(summary["chart"]).read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary
    # Each peer is a node of its own, and all are in one swarm.
    first, second = (tmp_path / "out" / f"peer-{number}" for number in (1, 2))
    assert first.stat().st_mode & 0o077 == 0
    assert (first / "node.key").read_text() != (second / "node.key").read_text()
    assert (first / "swarm.key").read_text() == (second / "swarm.key").read_text()
    assert "create = true" in (first / "noded.toml").read_text().splitlines()
    assert "create = true" not in (second / "noded.toml").read_text().splitlines()


def test_different_parameters_are_a_failure(launch):
    code, events, _ = launch(2, mode="disagree").finish()
    assert code == 1
    assert events[-1]["agree"] is False
    assert "different parameters" in events[-1]["reason"]


def test_a_daemon_that_cannot_start_ends_it_with_its_code_and_its_last_words(launch):
    launched = launch(2, mode="cannot-start")
    code, _, err = launched.finish()
    assert code == 7
    assert "peer-2 could not start (exit code 7)" in err
    assert "run.task: there is no task named 'nope'" in err


def test_a_killed_daemon_comes_back(launch):
    launched = launch(2, seconds=2.0)
    victim = launched.wait_training()["peers"][1]["pid"]
    os.kill(victim, signal.SIGKILL)
    code, events, err = launched.finish()
    assert code == 0, err
    kinds = [event["event"] for event in events if event["event"].startswith("peer-")]
    assert kinds == ["peer-lost", "peer-back"]
    lost = next(event for event in events if event["event"] == "peer-lost")
    assert "peer-2 was killed by SIGKILL" in lost["text"]
    summary = events[-1]
    assert [peer["lives"] for peer in summary["peers"]] == [1, 2]
    # Traffic counts over both lives: each fake life ends above 1000 bytes.
    assert summary["peers"][1]["bytes_sent"] > 2000


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_ctrl_c_ends_everything_also_trainers_in_sessions_of_their_own(launch, number):
    launched = launch(2, mode="orphan", seconds=600)
    launched.wait_training()
    below = launched.descendants()
    assert len(below) >= 4
    launched.process.send_signal(number)
    code, events, _ = launched.finish()
    assert code == 130
    assert events[-1]["reason"] == "interrupted"
    assert_gone(below)


def test_a_second_ctrl_c_does_not_wait_for_a_daemon_that_ignores_the_first(launch):
    launched = launch(2, mode="ignore-term", seconds=600)
    launched.wait_training()
    below = launched.descendants()
    launched.process.send_signal(signal.SIGINT)
    launched.process.send_signal(signal.SIGTERM)
    code, events, _ = launched.finish()
    assert code == 130
    assert {event["event"] for event in events} >= {"killed", "summary"}
    assert_gone(below)


def test_sigkill_of_noded_local_leaves_nothing(launch):
    launched = launch(2, mode="ignore-term", seconds=600)
    launched.wait_training()
    below = launched.descendants()
    launched.process.kill()
    assert_gone(below)


def test_the_folder_is_new_or_empty(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert choose_out(None).name == "noded-demo"
    assert choose_out(None).name == "noded-demo-2"
    assert choose_out(tmp_path / "a" / "b").is_dir()
    (tmp_path / "a" / "b" / "x").touch()
    with pytest.raises(UsageError, match="holds something") as caught:
        choose_out(tmp_path / "a" / "b")
    assert "--out" in caught.value.hint
    with pytest.raises(UsageError, match="cannot make"):
        choose_out(tmp_path / "a" / "b" / "x" / "y")


def test_the_daemons_inherit_nothing_that_was_meant_for_their_launcher():
    environ = {
        "HOME": "/h",
        "PYTHONPATH": "/x",
        "NODED_CONFIG": "/c",
        "NODED_RUN_EVERY": "3",
        "NOTIFY_SOCKET": "/n",
        "STATE_DIRECTORY": "/s",
        "RUNTIME_DIRECTORY": "/r",
        "WATCHDOG_USEC": "1",
    }
    assert clean_environ(environ) == {"HOME": "/h", "PYTHONPATH": f"{ROOT}:/x"}


def test_what_starts_a_daemon(tmp_path):
    (peer,) = peer_files(tmp_path, 1, {})
    command = daemon_command(peer)
    assert command[:5] == [sys.executable, "-P", "-m", "node", "run"]
    assert command[5:] == [
        *("--config", str(tmp_path / "peer-1" / "noded.toml")),
        *("--parent-pid", str(os.getpid())),
    ]


def test_a_configuration_that_cannot_be_written_names_the_key(tmp_path):
    (peer,) = peer_files(tmp_path, 1, {})
    peer.paths.data_dir.mkdir()
    with pytest.raises(NodedError, match=r"run\.every"):
        write_config(peer, LocalOptions(overrides={"run.every": "0"}))
    assert list(peer.paths.data_dir.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["--data", "/nowhere/at/all"], 2, "nothing to train on at /nowhere/at/all"),
        (["--set", "run.evrey=3"], 7, "did you mean run.every?"),
        (["--set", "trainer.threads=x"], 7, "trainer.threads"),
        (["--set", "run.task_settings.widht=8"], 7, "did you mean width?"),
        (
            ["--task", "digits", "--set", "run.task_settings.hiden=8"],
            7,
            "run.task_settings: task 'digits': there is no setting 'hiden'",
        ),
        (["--task", "digits", "--set", "run.task_settings.hidden=0"], 7, "hidden: expected"),
        (["--task", "ratings", "--set", "run.task_settings.split=usr"], 7, "did you mean user?"),
    ],
)
def test_bad_options_are_found_before_anything_is_made(
    tmp_path, monkeypatch, capsys, arguments, code, word
):
    from node.cli.main import main

    monkeypatch.chdir(tmp_path)
    assert main(["local", *arguments]) == code
    assert word in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_tail_of_a_log(tmp_path):
    path = tmp_path / "log"
    assert tail(path) == ""
    path.write_text("".join(f"line {number}\n" for number in range(5000)))
    assert tail(path, 2) == "line 4998\nline 4999"
