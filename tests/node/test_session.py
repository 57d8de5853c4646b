# ruff: noqa: SIM117 (which of the two ends first is what many of these tests are about)
from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from torch import nn

from gossip.protocol import load_protocol
from node.errors import DaemonNotRunning
from node.run.manifest import RunManifest
from node.trainer_messages import (
    Applied,
    Attach,
    Contribute,
    Failed,
    Finished,
    Hurry,
    Outcome,
    Ready,
    Report,
    Resync,
    Start,
    Stop,
)
from node.training.daemon_link import DaemonLink, DaemonLost
from node.training.session import JoinRefused, Session, join
from tests.node.fake_daemon import FakeDaemon
from tests.node.small_training import MANIFEST, assert_equal, build, flat_of, state_of, train


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def socket_path(tmp_path):
    return tmp_path / "trainer.sock"


@pytest.mark.parametrize("optimizer_name", ["adamw", "sgd"])
def test_alone_it_trains_exactly_like_plain_torch(socket_path, optimizer_name):
    plain, optimizer = build(optimizer=optimizer_name)
    torch.manual_seed(5)
    train(plain, optimizer, 30)
    model, optimizer = build(optimizer=optimizer_name)
    torch.manual_seed(5)
    with (
        FakeDaemon(socket_path, MANIFEST) as daemon,
        join("demo", model, optimizer, every=4, socket=socket_path) as run,
    ):
        train(model, optimizer, 30, run=run)
        assert run.round == 7
        assert run.global_step == 30
        assert run.peers == 0
    assert_equal(state_of(model), state_of(plain))
    assert len(daemon.of(Contribute)) == 7
    assert [message.round for message in daemon.of(Applied)] == list(range(1, 8))
    assert [message.step for message in daemon.of(Applied)] == [4 * r for r in range(1, 8)]


def test_afterwards_the_model_owns_its_memory(socket_path):
    model, optimizer = build()
    names = list(model.state_dict())
    parameters = list(model.parameters())
    with FakeDaemon(socket_path, MANIFEST) as daemon:
        with join("demo", model, optimizer, socket=socket_path) as run:
            theirs = daemon.buffer.view("params")
            assert parameters[0].data_ptr() % 64 == 0
            train(model, optimizer, 2, run=run)
            shared = dict(run._attachment.binding.layout.split(theirs))
            assert np.array_equal(shared["0.weight"], parameters[0].detach().numpy())
        assert list(model.parameters()) == parameters
        theirs[:] = 0
    assert parameters[0].detach().any()
    assert list(model.state_dict()) == names
    before = state_of(model)
    train(model, optimizer, 3)
    assert not torch.equal(before["0.weight"], model.state_dict()["0.weight"])
    assert len(optimizer._optimizer_step_post_hooks) == 0


def test_what_attach_and_contribute_say(socket_path):
    model, optimizer = build()
    with FakeDaemon(socket_path, MANIFEST) as daemon:
        with join("demo", model, optimizer, every=4, socket=socket_path) as run:
            train(model, optimizer, 4, run=run)
    attach, ready, contribute = (daemon.of(kind)[0] for kind in (Attach, Ready, Contribute))
    assert attach.run == "demo"
    assert attach.supervised is False
    assert attach.numel >= sum(p.numel() for p in model.parameters())
    assert (ready.round, ready.step) == (0, 0)
    assert (contribute.round, contribute.steps, contribute.weight) == (0, 4, 32.0)
    assert contribute.state_sha256 == ready.state_sha256
    assert daemon.of(Applied)[0].state_sha256 != ready.state_sha256
    assert 0 < contribute.loss < 10
    assert daemon.of(Report)[0].loss > 0
    assert not daemon.of(Finished)


def test_a_round_with_others_applies_the_mean(socket_path):
    """Two members, one of which is the test: the outer step of DiLoCo on the mean of both."""
    manifest = RunManifest(
        name="demo", task="byte-gpt", every=4,
        protocol_settings={"outer_learning_rate": 1.0, "outer_momentum": 0.0},
    )  # fmt: skip

    def mean_with_zero(daemon, contribute):
        views = daemon.buffer.views
        np.multiply(views["delta"], np.float32(0.5), out=views["reduced"])
        daemon.post(Outcome(contribute.round, 2, 2 * contribute.weight, alone=False))

    plain, optimizer = build()
    start = flat_of(plain)
    torch.manual_seed(5)
    train(plain, optimizer, 4)
    model, optimizer = build()
    torch.manual_seed(5)
    with (
        FakeDaemon(socket_path, manifest, on_contribute=mean_with_zero),
        join("demo", model, optimizer, socket=socket_path) as run,
    ):
        train(model, optimizer, 4, run=run)
        assert run.peers == 1
        expected = start - np.float32(0.5) * (start - flat_of(plain))
        assert np.allclose(flat_of(model), expected, atol=1e-6)


def test_a_hurried_round_is_shorter(socket_path):
    manifest = RunManifest(name="demo", task="byte-gpt", every=1000)
    model, optimizer = build()
    with FakeDaemon(socket_path, manifest) as daemon:
        with join("demo", model, optimizer, socket=socket_path) as run:
            train(model, optimizer, 3, run=run)
            daemon.post(Hurry(7))  # of another round: not meant for us
            train(model, optimizer, 3, run=run)
            daemon.post(Hurry(0))
            train(model, optimizer, 2, run=run)
            assert run.round == 1
            assert run.global_step == 1001
    assert [message.steps for message in daemon.of(Contribute)] == [7]


@pytest.mark.parametrize("moment", ["start", "waiting", "between"])
def test_a_peers_state_replaces_ours(socket_path, moment):
    def overwrite(daemon, number):
        daemon.buffer.view("theta").fill(0.25)
        daemon.buffer.view("momentum").fill(0)
        return number

    def on_ready(daemon, ready):
        if moment == "start":
            daemon.post(Start(overwrite(daemon, 5), 20, "synced"))
        else:
            daemon.post(Start(0, 0, "own"))

    def on_contribute(daemon, contribute):
        if moment == "waiting" and contribute.round == 0:
            daemon.post(Resync(overwrite(daemon, 5), 20))
        else:
            daemon.alone(contribute)

    model, optimizer = build()
    seen = []

    def look(_step):
        seen.append(float(model[0].weight.detach().abs().max()))

    with FakeDaemon(
        socket_path, MANIFEST, on_ready=on_ready, on_contribute=on_contribute
    ) as daemon:
        with join("demo", model, optimizer, socket=socket_path) as run:
            look(0)
            train(model, optimizer, 3, run=run)
            if moment == "between":
                daemon.post(Resync(overwrite(daemon, 5), 20))
            train(model, optimizer, 1, first=3, run=run, each=look)
            assert run.round == {"start": 6, "waiting": 5, "between": 5}[moment]
            if moment == "start":
                assert seen[0] == 0.25
                assert run.global_step == 24
            else:
                assert seen[-1] == 0.25
                assert run.global_step == 20
                assert daemon.wait_for(Applied)[0].round == 5
            train(model, optimizer, 4, first=4, run=run)
            assert run.round == {"start": 7, "waiting": 6, "between": 6}[moment]


def test_a_lost_daemon_costs_the_swarm_not_the_loop(socket_path, caplog):
    plain, optimizer = build()
    torch.manual_seed(5)
    train(plain, optimizer, 20)
    model, optimizer = build()
    torch.manual_seed(5)
    caplog.set_level(logging.WARNING)
    with FakeDaemon(socket_path, MANIFEST) as daemon:
        with join("demo", model, optimizer, socket=socket_path) as run:
            train(model, optimizer, 6, run=run)
            daemon.hang_up()
            daemon.wait_end()
            train(model, optimizer, 14, first=6, run=run)
            assert not run.attached
            assert run.round == 1
    assert_equal(state_of(model), state_of(plain))
    said = [record for record in caplog.records if "training goes on locally" in record.message]
    assert len(said) == 1


def test_a_daemon_lost_in_the_wait_ends_the_wait(socket_path):
    model, optimizer = build()
    with FakeDaemon(
        socket_path, MANIFEST, on_contribute=lambda daemon, _: daemon.hang_up()
    ), join("demo", model, optimizer, socket=socket_path) as run:  # fmt: skip
        train(model, optimizer, 10, run=run)
        assert not run.attached


def test_strict_raises_instead(socket_path):
    model, optimizer = build()
    with (
        FakeDaemon(socket_path, MANIFEST, on_contribute=lambda daemon, _: daemon.hang_up()),
        pytest.raises(DaemonLost),
        join("demo", model, optimizer, socket=socket_path, strict=True) as run,
    ):
        train(model, optimizer, 10, run=run)
    train(model, optimizer, 3)


def test_numbers_that_are_not_finite_never_leave(socket_path):
    manifest = RunManifest(name="demo", task="byte-gpt", every=2)
    model, optimizer = build()
    start = flat_of(model)
    deltas = []

    def on_contribute(daemon, contribute):
        deltas.append(daemon.buffer.view("delta").copy())
        daemon.alone(contribute)

    with FakeDaemon(socket_path, manifest, on_contribute=on_contribute) as daemon:
        with join("demo", model, optimizer, socket=socket_path) as run:
            train(model, optimizer, 1, run=run)
            with torch.no_grad():
                model[0].weight[3, 3] = float("nan")
            train(model, optimizer, 1, first=1, run=run)
            assert np.array_equal(flat_of(model), start)
            assert not optimizer.state
            train(model, optimizer, 2, first=2, run=run)
            assert not np.array_equal(flat_of(model), start)
            assert np.isfinite(flat_of(model)).all()
    assert [message.weight for message in daemon.of(Contribute)] == [0.0, 16.0]
    assert not deltas[0].any()
    assert deltas[1].any()


def test_no_daemon_is_one_clear_error(socket_path):
    model, optimizer = build()
    with (
        pytest.raises(DaemonNotRunning) as caught,
        join("demo", model, optimizer, socket=socket_path),
    ):
        raise AssertionError
    assert "noded run" in caught.value.hint
    assert caught.value.__notes__ == [caught.value.hint]


def test_the_socket_may_come_from_the_environment(socket_path, monkeypatch):
    monkeypatch.setenv("NODED_TRAINER_SOCKET", str(socket_path))
    model, optimizer = build()
    with FakeDaemon(socket_path, MANIFEST), join("demo", model, optimizer) as run:
        assert run.node == "nd-test"


def test_a_refusal_carries_its_reason(socket_path):
    model, optimizer = build()
    before = state_of(model)
    with (
        FakeDaemon(socket_path, MANIFEST, on_attach=lambda _: Stop("another trainer is attached")),
        pytest.raises(JoinRefused, match="another trainer is attached"),
        join("demo", model, optimizer, socket=socket_path),
    ):
        raise AssertionError
    assert_equal(state_of(model), before)
    train(model, optimizer, 1)


def test_settings_that_the_protocol_does_not_know_are_refused(socket_path):
    manifest = RunManifest(name="demo", task="byte-gpt", protocol_settings={"no_such": 1})
    model, optimizer = build()
    right = RunManifest(name="demo", task="byte-gpt")

    class Newer(FakeDaemon):
        def vectors(self):
            return load_protocol("diloco").averager(right.protocol_settings).vectors

    with (
        Newer(socket_path, manifest) as daemon,
        pytest.raises(JoinRefused, match="no_such"),
        join("demo", model, optimizer, socket=socket_path),
    ):
        raise AssertionError
    assert daemon.of(Failed)


def test_a_worker_refuses_a_daemon_of_another_run(socket_path):
    model, optimizer = build()
    other = RunManifest(name="demo", task="byte-gpt", every=4, seed=1)
    with FakeDaemon(socket_path, MANIFEST), DaemonLink.connect(socket_path) as link:
        with pytest.raises(JoinRefused, match="another run"):
            Session("demo", model, optimizer, link=link, supervised=True, expected=other)


def test_reports_are_rare(socket_path):
    now = [0.0]
    model, optimizer = build()
    with FakeDaemon(socket_path, MANIFEST) as daemon:
        link = DaemonLink.connect(socket_path)
        session = Session("demo", model, optimizer, link=link, clock=lambda: now[0])
        with session as run:
            assert run.wait_synced(60)

            def tick(_step):
                now[0] += 0.125

            train(model, optimizer, 40, run=run, each=tick)
    reports = daemon.of(Report)
    assert len(reports) == 10
    assert reports[-1].tokens_per_s == pytest.approx(64, rel=0.2)
    assert [report.step for report in reports] == list(range(1, 41, 4))


def test_stop_ends_a_users_session_and_training_goes_on(socket_path):
    model, optimizer = build()
    with FakeDaemon(socket_path, MANIFEST) as daemon:
        with join("demo", model, optimizer, socket=socket_path) as run:
            daemon.post(Stop("the daemon stops"))
            train(model, optimizer, 9, run=run)
            assert run.stop_reason == "the daemon stops"
            assert not run.attached
    assert not daemon.of(Contribute)


def test_the_run_ends_by_itself(socket_path):
    manifest = RunManifest(name="demo", task="byte-gpt", every=4, steps=10)
    model, optimizer = build()
    with FakeDaemon(socket_path, manifest) as daemon:
        with join("demo", model, optimizer, socket=socket_path) as run:
            train(model, optimizer, 10, run=run)
            assert run.finished
            train(model, optimizer, 5, run=run)  # local steps beyond the end harm nobody
        assert daemon.wait_for(Finished)[0] == Finished(3, 10)
    assert [message.steps for message in daemon.of(Contribute)] == [4, 4, 2]


def test_an_error_of_the_loop_is_told(socket_path):
    model, optimizer = build()
    with FakeDaemon(socket_path, MANIFEST) as daemon:
        with (
            pytest.raises(ZeroDivisionError),
            join("demo", model, optimizer, socket=socket_path),
        ):
            1 / 0  # noqa: B018
        assert "ZeroDivisionError" in daemon.wait_for(Failed)[0].error


def test_waiting_for_the_state_has_a_deadline(socket_path):
    """A daemon that has not found the run yet: the loop starts and adopts the state later."""
    model, optimizer = build()
    with FakeDaemon(socket_path, MANIFEST, on_ready=lambda *_: None) as daemon:
        with join("demo", model, optimizer, socket=socket_path, timeout_s=0.01) as run:
            assert not run.wait_synced(0.01)
            train(model, optimizer, 9, run=run)
            assert run.round == 0
            daemon.buffer.view("theta").fill(0.25)
            daemon.post(Start(3, 12, "synced"))
            train(model, optimizer, 1, run=run)
            assert run.wait_synced(0)
            assert run.global_step == 12
            assert float(model[0].weight.detach().max()) == 0.25


def test_an_interrupt_breaks_the_wait(socket_path):
    model, optimizer = build()
    box = []
    with FakeDaemon(socket_path, MANIFEST, on_contribute=lambda *_: box[0].interrupt()) as daemon:
        with join("demo", model, optimizer, socket=socket_path) as run:
            box.append(run)
            train(model, optimizer, 6, run=run)
            assert run.round == 0
            assert run.stop_reason == "interrupted"
    assert len(daemon.of(Contribute)) == 1


# ---- parameters that cannot be views ----


def test_other_types_are_copied(socket_path):
    def build_half():
        torch.manual_seed(0)
        model = nn.Linear(8, 8).bfloat16()
        return model, torch.optim.SGD(model.parameters(), lr=0.1)

    def steps(model, optimizer, count):
        for index in range(count):
            x = torch.randn(4, 8, generator=torch.Generator().manual_seed(index)).bfloat16()
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()

    plain, optimizer = build_half()
    steps(plain, optimizer, 10)
    model, optimizer = build_half()
    with (
        FakeDaemon(socket_path, MANIFEST) as daemon,
        join("demo", model, optimizer, socket=socket_path) as run,
    ):
        steps(model, optimizer, 10)
        assert run.round == 2
        assert daemon.of(Contribute)[0].weight == 4.0  # no tokens logged: steps count
    assert_equal(state_of(model), state_of(plain))


def test_frozen_parameters_stay_out(socket_path):
    model, _ = build()
    model[0].weight.requires_grad_(False)
    before = model[0].weight.clone()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)

    def zero(daemon, contribute):
        daemon.buffer.view("theta").fill(0)
        daemon.post(Resync(contribute.round + 1, 4))

    with (
        FakeDaemon(socket_path, MANIFEST, on_contribute=zero) as daemon,
        join("demo", model, optimizer, socket=socket_path) as run,
    ):
        train(model, optimizer, 4, run=run)
        assert daemon.of(Attach)[0].numel < 37 * 13 + 1000
        assert torch.equal(model[0].weight, before)
        assert not model[3].weight.any()
