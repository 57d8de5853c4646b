# ruff: noqa: SIM117 (which of the two ends first is what many of these tests are about)
"""A loop in a run of a decentralized protocol, against a daemon's end that a test plays."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from node.run.checkpoint import publish
from node.run.manifest import RunManifest
from node.trainer_messages import (
    TENSORS_PER_LAYOUT,
    CancelLeg,
    Conclude,
    Evaluated,
    Failed,
    Finished,
    Layout,
    Leg,
    LegDone,
    Look,
    Looked,
    Ready,
    Sample,
    Saved,
    Stop,
)
from node.training.session import JoinRefused, join
from tests.node.fake_daemon import FakeDaemon
from tests.node.small_training import assert_equal, build, state_of, train
from transport.identity import Identity

MANIFEST = RunManifest(name="demo", task="byte-gpt", protocol="dpsgd", every=4)
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


def first_leg(steps, **more):
    return lambda daemon, ready: daemon.post(Leg(1, ready.round, steps, **more))


def on_done(daemon, *answers):
    """Have each `LegDone` answered with the next of `answers`, called with the daemon."""
    left = list(answers)
    react = daemon._react

    def reacting(connection, message):
        react(connection, message)
        if isinstance(message, LegDone) and left:
            left.pop(0)(daemon)

    daemon._react = reacting
    return daemon


def test_a_script_trains_in_legs_from_where_the_daemon_says(socket_path):
    plain, optimizer = build()
    torch.manual_seed(5)
    train(plain, optimizer, 3)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.mul_(0.5)
    train(plain, optimizer, 2, first=3)

    def halve_and_go_on(daemon):
        daemon.buffer.view("params")[:] *= np.float32(0.5)
        daemon.post(Leg(2, 1, 2))

    model, optimizer = build()
    torch.manual_seed(5)
    daemon = FakeDaemon(socket_path, MANIFEST, on_ready=first_leg(3))
    with on_done(daemon, halve_and_go_on, lambda daemon: daemon.post(Conclude(2))):
        with join("demo", model, optimizer, socket=socket_path) as run:
            train(model, optimizer, 5, run=run)
            assert run.finished
            assert (run.round, run.global_step) == (2, 5)
    assert_equal(state_of(model), state_of(plain))
    first, second = daemon.of(LegDone)
    assert (first.number, first.steps, first.samples, first.step) == (1, 3, 24.0, 3)
    assert (second.number, second.steps, second.samples, second.step) == (2, 2, 16.0, 5)
    assert first.finite
    assert 0 < first.loss < 10
    assert daemon.of(Finished)


def test_the_layout_is_told_before_ready(socket_path):
    model = nn.ModuleList(nn.Linear(2, 3, bias=False) for _ in range(TENSORS_PER_LAYOUT + 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with FakeDaemon(socket_path, MANIFEST, on_ready=first_leg(1)) as daemon:
        with join("demo", model, optimizer, socket=socket_path):
            expected = torch.cat([p.detach().reshape(-1)[:1] for p in model.parameters()])
            params = daemon.buffer.view("params").copy()
    kinds = [type(message) for message in daemon.messages]
    assert kinds.index(Ready) == max(i for i, kind in enumerate(kinds) if kind is Layout) + 1
    places = [place for message in daemon.of(Layout) for place in message.tensors]
    assert len(places) == TENSORS_PER_LAYOUT + 3
    assert all(place.shape == (3, 2) for place in places)
    by_name = {place.name: place.offset for place in places}
    firsts = [params[by_name[name]] for name, _ in model.named_parameters()]
    assert np.array_equal(firsts, expected.numpy())
    assert daemon.of(Ready)[0].state_sha256 == hashlib.sha256(params.tobytes()).digest()


def test_a_leg_that_ends_in_nan_is_said_to(socket_path):
    def poison(step):
        if step == 1:
            with torch.no_grad():
                model[0].weight[0, 0] = float("nan")

    def go_on_from_zero(daemon):
        daemon.buffer.view("params")[:] = 0
        daemon.post(Leg(2, 0, 1))

    model, optimizer = build()
    daemon = FakeDaemon(socket_path, MANIFEST, on_ready=first_leg(3))
    with on_done(daemon, go_on_from_zero, lambda daemon: daemon.post(Conclude(1))):
        with join("demo", model, optimizer, socket=socket_path) as run:
            train(model, optimizer, 4, run=run, each=poison)
    bad, good = daemon.of(LegDone)
    assert not bad.finite
    assert good.finite


def test_a_cancelled_leg_ends_at_the_next_step(socket_path):
    def cancel(step):
        if step == 1:
            daemon.post(CancelLeg(7))  # of another leg: not meant for us
            daemon.post(CancelLeg(1))

    model, optimizer = build()
    daemon = FakeDaemon(socket_path, MANIFEST, on_ready=first_leg(100))
    with on_done(daemon, lambda daemon: daemon.post(Conclude(0))):
        with join("demo", model, optimizer, socket=socket_path) as run:
            for step in range(50):
                train(model, optimizer, 1, first=step, run=run, each=cancel)
                if run.finished:
                    break
    (done,) = daemon.of(LegDone)
    assert 2 <= done.steps < 50


@pytest.mark.parametrize("kind", ["gradient", "sam"])
def test_a_script_says_what_it_cannot_do(socket_path, kind):
    model, optimizer = build()
    with FakeDaemon(socket_path, MANIFEST, on_ready=first_leg(3, kind=kind)) as daemon:
        with pytest.raises(JoinRefused, match="script"):
            with join("demo", model, optimizer, socket=socket_path) as run:
                train(model, optimizer, 1, run=run)
        assert daemon.wait_for(Failed)


def test_the_model_is_saved_at_a_step_boundary_and_loaded_again(socket_path, tmp_path):
    """What is saved is the daemon's "model", with this process's optimizer; training is not disturbed."""

    def look(step):
        if step == 1:
            daemon.buffer.view("model")[:] = daemon.buffer.view("params") * np.float32(2)
            daemon.post(Look(1, 3, save=True, evaluate=True, sample=True))

    plain, optimizer = build()
    torch.manual_seed(5)
    train(plain, optimizer, 4)
    model, optimizer = build()
    torch.manual_seed(5)
    daemon = FakeDaemon(socket_path, MANIFEST, on_ready=first_leg(4))
    with on_done(daemon, lambda daemon: daemon.post(Stop("enough"))):
        with join("demo", model, optimizer, socket=socket_path) as run:
            train(model, optimizer, 4, run=run, each=look)
            assert not run.attached
        assert_equal(state_of(model), state_of(plain))
        (saved,) = daemon.wait_for(Saved)
        assert daemon.wait_for(Looked)[0].number == 1
        assert not daemon.of(Evaluated)
        assert not daemon.of(Sample)
        kept = daemon.buffer.view("model").copy()
    assert (saved.round, saved.step) == (3, 12)
    assert saved.state_sha256 == hashlib.sha256(kept.tobytes()).digest()
    made = publish(
        daemon.data_dir,
        Path(saved.file),
        run_id=MANIFEST.hash,
        round=saved.round,
        step=saved.step,
        state_sha256=saved.state_sha256,
        sha256=saved.sha256,
        sign=ALICE.sign,
        public_key=ALICE.public_key,
    )
    socket_path.unlink()
    model, optimizer = build(seed=9)
    with FakeDaemon(
        socket_path, MANIFEST, checkpoint=str(made.path), on_ready=first_leg(4)
    ) as daemon:
        with join("demo", model, optimizer, socket=socket_path) as run:
            assert run.global_step in {2, 3}  # the boundary at which the message was read
            assert optimizer.state
            assert np.array_equal(daemon.buffer.view("params"), kept)
            first = next(iter(dict(run._attachment.binding.layout.split(kept)).items()))
            assert np.array_equal(dict(model.named_parameters())[first[0]].detach(), first[1])
    (ready,) = daemon.of(Ready)
    assert (ready.round, ready.state_sha256) == (3, saved.state_sha256)


def test_without_the_daemon_the_loop_goes_on(socket_path):
    model, optimizer = build()
    daemon = FakeDaemon(socket_path, MANIFEST, on_ready=first_leg(2))
    with on_done(daemon, lambda daemon: daemon.hang_up()):
        with join("demo", model, optimizer, socket=socket_path) as run:
            train(model, optimizer, 5, run=run)
            assert not run.attached
            assert run.global_step == 5
