"""The exact engine takes the steps of a real trainer, and the batched engine those of the exact one but for rounding."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gossip.decentralized.protocol import LocalRule
from node.run.manifest import RunManifest
from node.simulation.engine import Job, open_engine
from node.simulation.run import Simulation
from node.simulation.scenario import parse_scenario
from node.training.binding import Binding
from node.training.task_loop import TaskLoop

SETTINGS = {
    "hidden": 16,
    "depth": 2,
    "batch": 8,
    "learning_rate": 0.05,
    "decay": 0.99,
    "momentum": 0.9,
    "weight_decay": 0.01,
    "l2": 0.01,
    "split": "dirichlet",
}
NODES = ["first", "second", "third"]


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def make(kind, task_settings=None, **changes):
    return open_engine(
        kind,
        **{
            "task": "digits",
            "settings": task_settings or SETTINGS,
            "nodes": NODES,
            "seed": 5,
            **changes,
        },
    )


def test_it_is_bit_equal_to_a_trainer():
    """A loop as the supervised trainer has it: parameters of torch's own, one step after the other."""
    engine = make("exact")
    loop = TaskLoop(
        RunManifest(name="real", task="digits", task_settings=SETTINGS, seed=5),
        node="second",
        part=(1, 3),
    )
    layout = Binding(loop.model).layout

    def flat():
        out = np.zeros(layout.numel, np.float32)
        layout.join({n: p.detach().numpy() for n, p in loop.model.named_parameters()}, out)
        return out

    params = engine.initial(1, common=True)
    assert np.array_equal(params, flat())
    cursor = 0
    for steps in (2, 3):
        losses = []
        for step in range(cursor, cursor + steps):
            loss, _ = loop.backward(step, step)
            loop.optimizer.step()
            losses.append(float(loss))
        others = [Job(0, params, 1, cursor=cursor), Job(2, params, 2, cursor=cursor)]
        work = engine.train([others[0], Job(1, params, steps, cursor=cursor), others[1]])[1]
        assert np.array_equal(work.params, flat())
        assert (work.loss, work.samples) == (pytest.approx(np.mean(losses)), 8 * steps)
        params, cursor = work.params, cursor + steps
    score = engine.score([params])[0]
    evaluation = loop.task.evaluate(loop.model)
    assert (score.loss, score.accuracy) == (evaluation.loss, evaluation.accuracy)


@pytest.mark.parametrize("rule", [LocalRule(), LocalRule("sam", 0.1), LocalRule("gradient")])
def test_both_engines_agree_to_rounding(rule):
    exact, batched = make("exact"), make("batched")
    assert exact.tensors == batched.tensors
    assert exact.numel == batched.numel
    assert exact.describe().startswith(batched.describe())
    for node in range(3):
        params = exact.initial(node, common=node == 0)
        assert np.array_equal(params, batched.initial(node, common=node == 0))
        for leg in range(2):
            job = Job(node, params, 4, rule, cursor=4 * leg)
            one, other = exact.train([job])[0], batched.train([job])[0]
            np.testing.assert_allclose(one.params, other.params, atol=1e-5)
            assert one.loss == pytest.approx(other.loss, abs=1e-5)
            assert one.samples == other.samples
            if rule.kind == "gradient":
                np.testing.assert_allclose(one.gradient, other.gradient, atol=1e-5)
                assert np.array_equal(one.params, params)
            params = one.params
        first, second = exact.score([params])[0], batched.score([params])[0]
        assert first.loss == pytest.approx(second.loss, abs=1e-5)
        assert first.accuracy == pytest.approx(second.accuracy, abs=1e-6)


def test_sharpness_awareness_without_a_radius_is_plain_training():
    plain, sam = make("exact"), make("exact")
    params = plain.initial(0, common=True)
    one = plain.train([Job(0, params, 3)])[0]
    other = sam.train([Job(0, params, 3, LocalRule("sam", 0.0))])[0]
    assert np.array_equal(one.params, other.params)


def test_a_broken_leg_and_a_node_without_data():
    engine = make("exact", {**SETTINGS, "learning_rate": 100, "l2": 100}, without_data=[2])
    params = engine.initial(0, common=True)
    work = engine.train([Job(0, params, 60)])[0]
    assert work.loss is None
    assert np.array_equal(work.params, params)
    idle = engine.train([Job(2, params, 4)])[0]
    assert idle.samples == 0
    assert np.array_equal(idle.params, params)


def test_any_task_will_do(tmp_path):
    text = tmp_path / "text.txt"
    text.write_bytes(b"the quick brown fox jumps over the lazy dog. " * 2000)
    tiny = {
        "layers": 1,
        "width": 16,
        "heads": 2,
        "context": 16,
        "batch": 4,
        "evaluation_windows": 8,
    }
    engine = open_engine(
        "exact", task="byte-gpt", settings=tiny, nodes=NODES, data=str(text), seed=1, steps=60
    )
    params = engine.initial(0, common=True)
    before = engine.score([params])[0]
    assert before.accuracy is None
    for leg in range(10):
        params = engine.train([Job(0, params, 4, cursor=4 * leg)])[0].params
    assert engine.score([params])[0].loss < before.loss - 0.2
    assert not np.array_equal(engine.initial(0, common=False), engine.initial(1, common=False))


def test_a_simulation_is_the_same_with_either_engine():
    """Six nodes of D-PSGD for five rounds: equal models but for rounding, and everything else equal."""
    models, counts = {}, {}
    for kind in ("exact", "batched"):
        simulation = Simulation(
            parse_scenario(
                {
                    "protocol": "dpsgd",
                    "protocol_settings": {"graph": "ring"},
                    "nodes": 6,
                    "rounds": 5,
                    "every": 3,
                    "engine": kind,
                    "task_settings": SETTINGS,
                    "common_start": False,
                }
            )
        )
        end = simulation.run()
        counts[kind] = (end.reason, end.round, end.steps, end.bytes, end.messages, end.time_s)
        models[kind] = [node.model for node in simulation.world.alive()]
    assert counts["exact"] == counts["batched"]
    for one, other in zip(models["exact"], models["batched"], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
