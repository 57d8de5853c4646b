from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from node.errors import ExitCode
from node.run.checkpoint import publish
from node.run.launch import WorkerOptions, worker_command, worker_environment
from node.run.manifest import RunManifest
from node.trainer_messages import (
    Applied,
    Attach,
    Contribute,
    Evaluated,
    Finished,
    Ready,
    Sample,
    Saved,
    SaveNow,
    Stop,
)
from node.training.worker import main
from tests.node.fake_daemon import FakeDaemon
from transport.identity import Identity

PATIENCE_S = 60
SETTINGS = {"layers": 1, "width": 16, "heads": 2, "context": 16, "batch": 2,
            "evaluation_windows": 2, "sample_bytes": 8}  # fmt: skip
MANIFEST = RunManifest(
    name="demo", task="byte-gpt", task_settings=SETTINGS, every=4, steps=10, seed=3
)
ALICE = Identity.from_seed(b"a" * 32)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"the quick brown fox jumps over the lazy dog. " * 1000)
    return str(path)


def start(tmp_path, text, manifest=MANIFEST, **changes):
    path = tmp_path / "manifest.json"
    path.write_bytes(manifest.canonical())
    options = WorkerOptions(
        socket=tmp_path / "trainer.sock",
        manifest=path,
        data=text,
        **{"checkpoint_every": 2, **changes},
    )
    return subprocess.Popen(
        worker_command(options),
        env=worker_environment(os.environ, options),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=tmp_path,
        start_new_session=True,
    )


@pytest.fixture
def run_here(tmp_path, text, capsys):
    """The worker's `main` in this process: starting an interpreter with torch takes seconds."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    threads = torch.get_num_threads()

    def run(manifest=MANIFEST, **changes):
        path = tmp_path / "manifest.json"
        if not path.exists():
            path.write_bytes(manifest.canonical())
        options = WorkerOptions(
            socket=tmp_path / "trainer.sock",
            manifest=path,
            **{"data": text, "checkpoint_every": 2, **changes},
        )
        command = worker_command(options)
        return main(command[4:-2]), capsys.readouterr().err

    yield run
    torch.set_num_threads(threads)
    for number, handler in before.items():
        signal.signal(number, handler)


def finish(process):
    try:
        output, _ = process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        pytest.fail(f"the worker did not end: {output}")
    return process.returncode, output


@pytest.mark.real
def test_a_worker_trains_a_run_to_its_end_and_resumes_it(tmp_path, text, run_here):
    # What lies in the working directory must not be imported instead of ours.
    (tmp_path / "node.py").write_text("raise SystemExit('a user file hides ours')")
    with FakeDaemon(tmp_path / "trainer.sock", MANIFEST) as daemon:
        process = start(tmp_path, text)
        finished = daemon.wait_for(Finished)
        assert finished == [Finished(3, 10)]
        code, output = finish(process)
    assert code == 0, output
    assert output.startswith("noded trainer: ")
    attach = daemon.of(Attach)[0]
    assert (attach.run, attach.supervised, attach.pid) == ("demo", True, process.pid)
    assert [message.steps for message in daemon.of(Contribute)] == [4, 4, 2]
    assert [message.weight for message in daemon.of(Contribute)] == [128.0, 128.0, 64.0]
    assert [message.round for message in daemon.of(Evaluated)] == [0, 3]
    assert daemon.of(Sample)[0].text.startswith("def ")
    assert [message.step for message in daemon.of(Saved)] == [8, 10]
    first, last = daemon.of(Saved)

    # A restart from the checkpoint of round 2 ends with the same bits.
    made = publish(
        daemon.data_dir, Path(first.file), run_id=MANIFEST.hash, round=2, step=8,
        state_sha256=first.state_sha256, sha256=first.sha256,
        sign=ALICE.sign, public_key=ALICE.public_key,
    )  # fmt: skip
    (tmp_path / "trainer.sock").unlink()
    with FakeDaemon(tmp_path / "trainer.sock", MANIFEST, checkpoint=str(made.path)) as again:
        assert run_here()[0] == 0
    assert (again.of(Ready)[0].round, again.of(Ready)[0].step) == (2, 8)
    assert again.of(Applied)[-1].state_sha256 == daemon.of(Applied)[-1].state_sha256
    assert again.of(Saved)[-1].sha256 == last.sha256


@pytest.mark.parametrize("way", ["stop", "sigterm", "sigint"])
def test_a_worker_told_to_stop_in_the_wait_saves_and_ends_well(tmp_path, run_here, way):
    def on_contribute(daemon, contribute):
        if contribute.round == 0:
            daemon.alone(contribute)
        elif way == "stop":
            daemon.post(SaveNow())
            daemon.post(Stop("the daemon stops"))
        else:
            os.kill(os.getpid(), signal.SIGTERM if way == "sigterm" else signal.SIGINT)

    endless = RunManifest(name="demo", task="byte-gpt", task_settings=SETTINGS, every=4)
    with FakeDaemon(tmp_path / "trainer.sock", endless, on_contribute=on_contribute) as daemon:
        code, output = run_here(endless, checkpoint_every=0)
        daemon.wait_end()
    assert code == 0, output
    assert [message.step for message in daemon.of(Saved)] == [4]
    assert not daemon.of(Finished)


def test_a_worker_ends_when_its_daemon_goes(tmp_path, run_here):
    with FakeDaemon(
        tmp_path / "trainer.sock", MANIFEST, on_contribute=lambda daemon, _: daemon.hang_up()
    ):
        code, output = run_here()
    assert code == ExitCode.NOT_RUNNING
    assert "the daemon is gone" in output
    code, output = run_here()
    assert code == ExitCode.NOT_RUNNING
    assert "noded run" in output


def test_a_worker_that_is_refused_may_be_started_again(tmp_path, run_here):
    with FakeDaemon(tmp_path / "trainer.sock", MANIFEST, on_attach=lambda _: Stop("busy")):
        code, output = run_here()
    assert code == ExitCode.REFUSED
    assert "busy" in output


WATCHED = """
import subprocess, sys
process = subprocess.Popen(sys.argv[1:] + ["--parent", str(__import__("os").getpid())])
print(process.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.real
def test_a_worker_does_not_outlive_its_parent(tmp_path, text):
    """The parent is killed; the socket stays open, as if training hung in a C call."""
    waits = []
    path = tmp_path / "manifest.json"
    path.write_bytes(MANIFEST.canonical())
    options = WorkerOptions(socket=tmp_path / "trainer.sock", manifest=path, data=text)
    command = worker_command(options)[:-2]
    with FakeDaemon(
        tmp_path / "trainer.sock", MANIFEST, on_contribute=lambda _, message: waits.append(message)
    ) as daemon:
        parent = subprocess.Popen(
            [sys.executable, "-c", WATCHED, *command],
            env=worker_environment(os.environ, options),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        worker = os.pidfd_open(int(parent.stdout.readline()))
        daemon.wait_for(Contribute)
        parent.kill()
        parent.communicate()
        daemon.wait_end()  # its socket closes when it ends
        os.close(worker)
    assert waits


@pytest.mark.parametrize("what", ["setting", "task", "corpus", "manifest", "no manifest"])
def test_what_a_restart_cannot_mend_has_its_own_exit_code(tmp_path, run_here, what):
    manifest = {
        "setting": RunManifest(name="demo", task="byte-gpt", task_settings={"widht": 8}),
        "task": RunManifest(name="demo", task="evil:Task"),
    }.get(what, MANIFEST)
    changes = {"data": str(tmp_path / "none")} if what == "corpus" else {}
    if what == "manifest":
        (tmp_path / "manifest.json").write_text("{}")
    elif what == "no manifest":
        (tmp_path / "manifest.json").mkdir()
    code, output = run_here(manifest, **changes)
    assert code == ExitCode.BAD_CONFIG, output
    assert len(output.splitlines()) >= 1


TORCH_FREE = (
    "node", "node.run.checkpoint", "node.training.corpus", "node.training.daemon_link", "node.run.launch", "node.run.layout",
    "node.run.manifest", "node.shared_buffer", "node.task", "node.run.tensor_file", "node.trainer_messages",
)  # fmt: skip


@pytest.mark.real
def test_the_daemons_side_does_not_import_torch():
    program = f"import sys, {', '.join(TORCH_FREE)}; print([m for m in ('torch', 'safetensors') if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_the_command_keeps_the_working_directory_off_the_path(tmp_path):
    options = WorkerOptions(socket=tmp_path / "s", manifest=tmp_path / "m", threads=2, data="/d")
    command = worker_command(options, python="py")
    assert command[:4] == ["py", "-P", "-m", "node.training.worker"]
    assert command[command.index("--data") + 1] == "/d"
    assert "--task" not in command
    environment = worker_environment({"HOME": "/h"}, options)
    assert environment["OMP_NUM_THREADS"] == "2"
    assert environment["HOME"] == "/h"
