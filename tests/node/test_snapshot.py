# ruff: noqa: SIM117 (which of the two ends first is what many of these tests are about)
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from node.run.checkpoint import CheckpointCorrupt, publish
from node.run.manifest import RunManifest
from node.trainer_messages import Applied, Failed, Outcome, Ready, Saved, SaveFailed, SaveNow
from node.training.session import join
from tests.node.fake_daemon import FakeDaemon
from tests.node.small_training import MANIFEST, assert_equal, build, state_of, train
from transport.identity import Identity

ALICE = Identity.from_seed(b"a" * 32)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def socket_path(tmp_path):
    return tmp_path / "trainer.sock"


def publish_saved(daemon, saved: Saved):
    return publish(
        daemon.data_dir,
        Path(saved.file),
        run_id=daemon.manifest.hash,
        round=saved.round,
        step=saved.step,
        state_sha256=saved.state_sha256,
        sha256=saved.sha256,
        sign=ALICE.sign,
        public_key=ALICE.public_key,
    )


def half(daemon, contribute):
    """A member whose peer always contributes nothing: a mean that depends on the round alone."""
    views = daemon.buffer.views
    np.multiply(views["delta"], np.float32(0.5), out=views["reduced"])
    daemon.post(Outcome(contribute.round, 2, 2 * contribute.weight, alone=False))


def save_after(tmp_path, steps, *, total):
    """Train `total` steps, saving after `steps`: (checkpoint, final state, final digest)."""
    path = tmp_path / "first.sock"
    model, optimizer = build()
    torch.manual_seed(5)
    with FakeDaemon(path, MANIFEST, on_contribute=half) as daemon:
        with join("demo", model, optimizer, socket=path) as run:
            train(model, optimizer, steps, run=run)
            run.cursor["batch"] = 77
            assert run.save()
            assert run.saved
            made = publish_saved(daemon, daemon.wait_for(Saved)[0])
            train(model, optimizer, total - steps, first=steps, run=run)
            tokens = run.tokens
    return made, model, daemon.of(Applied)[-1].state_sha256, tokens


def test_a_resumed_run_goes_on_bit_for_bit(tmp_path, socket_path):
    made, reference, digest, tokens = save_after(tmp_path, 8, total=20)
    model, optimizer = build(seed=99)
    with FakeDaemon(
        socket_path, MANIFEST, checkpoint=str(made.path), on_contribute=half
    ) as daemon, join("demo", model, optimizer, socket=socket_path) as run:  # fmt: skip
        assert (run.round, run.global_step, run.cursor) == (2, 8, {"batch": 77})
        train(model, optimizer, 12, first=8, run=run)
        assert run.tokens == tokens
    assert daemon.of(Ready)[0] == Ready(2, 8, bytes.fromhex(made.manifest.state_sha256))
    assert_equal(state_of(model), state_of(reference))
    assert daemon.of(Applied)[-1].state_sha256 == digest


def test_the_file_holds_the_consensus_under_plain_names(tmp_path):
    """Saved in the middle of a round, the file has the last round's state, not the local steps."""
    made, *_ = save_after(tmp_path, 10, total=10)
    assert made.manifest.step == 8
    found = safetensors.torch.load_file(made.tensors_path)
    model, optimizer = build()
    torch.manual_seed(5)
    path = tmp_path / "again.sock"
    with (
        FakeDaemon(path, MANIFEST, on_contribute=half),
        join("demo", model, optimizer, socket=path) as run,
    ):
        train(model, optimizer, 8, run=run)
    for name, parameter in model.named_parameters():
        assert torch.equal(found[name], parameter.detach()), name
    fresh, _ = build(seed=3)
    fresh.load_state_dict({k: v for k, v in found.items() if not k.startswith("noded.")})


def test_save_now_saves(socket_path):
    model, optimizer = build()
    with FakeDaemon(socket_path, MANIFEST) as daemon:
        with join("demo", model, optimizer, socket=socket_path) as run:
            train(model, optimizer, 4, run=run)
            daemon.post(SaveNow())
            train(model, optimizer, 1, run=run)
            saved = daemon.wait_for(Saved)[0]
            assert (saved.round, saved.step) == (1, 4)
            assert saved.state_sha256 == daemon.of(Applied)[-1].state_sha256
            assert Path(saved.file).parent == daemon.data_dir


def test_a_full_disk_is_told_and_training_goes_on(socket_path, monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    model, optimizer = build()
    with FakeDaemon(socket_path, MANIFEST) as daemon:
        with join("demo", model, optimizer, socket=socket_path) as run:
            train(model, optimizer, 4, run=run)
            with monkeypatch.context() as patch:
                patch.setattr("os.fsync", refuse)
                assert not run.save()
            assert "No space" in daemon.wait_for(SaveFailed)[0].error
            assert list(daemon.data_dir.iterdir()) == []
            train(model, optimizer, 4, first=4, run=run)
            assert run.round == 2


@pytest.mark.parametrize("what", ["corrupt", "other model", "other run"])
def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path, socket_path, what):
    made, *_ = save_after(tmp_path, 4, total=4)
    manifest, (model, optimizer) = MANIFEST, build()
    if what == "corrupt":
        made.tensors_path.write_bytes(made.tensors_path.read_bytes()[:-1] + b"\x99")
    elif what == "other model":
        model = nn.Linear(13, 7)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    else:
        manifest = RunManifest(name="demo", task="byte-gpt", every=4, seed=1)
    with FakeDaemon(socket_path, manifest, checkpoint=str(made.tensors_path)) as daemon:
        with (
            pytest.raises(CheckpointCorrupt),
            join("demo", model, optimizer, socket=socket_path),
        ):
            raise AssertionError
        assert daemon.wait_for(Failed)
