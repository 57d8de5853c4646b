"""The tasks on data sets: they learn, split their data, and stay a pure function of the batch's number."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from node.data.errors import DataMissing
from node.run.manifest import RunManifest
from node.simulation.engine import Job, open_engine
from node.task import InvalidTaskSettings, TaskContext, load_task
from node.training.task_loop import TaskLoop
from tests.node.data.data_files import ratings, ratings_text, write_mnist


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def train(task, task_settings, data, steps):
    loop = TaskLoop(
        RunManifest(name="r", task=task, task_settings=task_settings, seed=2), node="n", data=data
    )
    before = loop.task.evaluate(loop.model)
    for step in range(steps):
        loop.backward(step, step)
        loop.optimizer.step()
    return before, loop.task.evaluate(loop.model), loop


def test_digits():
    before, after, loop = train("digits", {"momentum": 0.9, "learning_rate": 0.05}, "", 300)
    assert before.accuracy < 0.3
    assert after.accuracy > 0.9
    assert after.loss < 0.4
    assert after.tokens == 359
    assert "1,438 examples" in loop.task.describe()


@pytest.mark.parametrize("model", ["cnn", "mlp"])
def test_images(tmp_path, model):
    write_mnist(tmp_path, train=200, test=50)
    options = {"model": model, "hidden": 8, "learning_rate": 0.1, "batch": 20}
    before, after, _ = train("images", options, str(tmp_path), 60)
    assert after.loss < before.loss / 2
    assert after.accuracy > 0.6


def test_images_as_perceptrons_in_the_batched_engine(tmp_path):
    write_mnist(tmp_path, train=200, test=50)
    options = {"model": "mlp", "hidden": 8, "batch": 10, "split": "dirichlet"}
    common = {"task": "images", "settings": options, "nodes": ["a", "b"], "data": str(tmp_path)}
    batched, exact = open_engine("batched", **common), open_engine("exact", **common)
    params = batched.initial(1, common=True)
    assert np.array_equal(params, exact.initial(1, common=True))
    works = [engine.train([Job(1, params, 3)])[0] for engine in (batched, exact)]
    np.testing.assert_allclose(works[0].params, works[1].params, atol=1e-5)


def test_ratings(tmp_path):
    (tmp_path / "u.data").write_text(ratings_text(ratings(600), "u.data"))
    before, after, loop = train("ratings", {"factors": 4, "learning_rate": 0.3}, str(tmp_path), 400)
    assert after.loss < before.loss
    assert after.accuracy is None
    assert "ratings of 29 films by 29 people" in loop.task.describe()


def test_parts_are_disjoint_and_alike_on_all_nodes():
    class_ = load_task("digits")
    made = [
        class_(TaskContext(settings={"split": "shards"}, seed=4, node=f"n{part}", part=(part, 6)))
        for part in range(6)
    ]
    together = np.sort(np.concatenate([task._portion.indices for task in made]))
    assert np.array_equal(together, np.arange(1438))
    assert "this node trains on" in made[0].describe()
    for task in made:
        examples, classes = task.batch(3)
        again, _ = task.batch(3)
        assert torch.equal(examples, again)
        assert set(classes.tolist()) <= set(task.data.train_y[task._portion.indices].tolist())
    with pytest.raises(InvalidTaskSettings, match="no part 6 of 6"):
        class_(TaskContext(part=(6, 6)))


def test_fewer_examples_are_the_same_ones_on_all_nodes():
    class_ = load_task("digits")
    few = {"examples": 100, "split": "dirichlet", "alpha": 1.0}
    whole = set(class_(TaskContext(settings=few, seed=1))._portion.indices.tolist())
    parts = [
        set(class_(TaskContext(settings=few, seed=1, part=(at, 4)))._portion.indices.tolist())
        for at in range(4)
    ]
    assert len(whole) == 100
    assert set.union(*parts) == whole
    assert sum(map(len, parts)) == 100
    other = set(class_(TaskContext(settings=few, seed=2))._portion.indices.tolist())
    assert other != whole
    with pytest.raises(InvalidTaskSettings, match="the data set has 1,438"):
        class_(TaskContext(settings={"examples": 2000}))


@pytest.mark.parametrize("task", ["images", "ratings"])
def test_a_task_without_its_data_says_what_to_do(task):
    with pytest.raises(DataMissing, match="no data of its own") as caught:
        load_task(task)(TaskContext())
    assert "[run] data" in caught.value.hint


def test_unknown_settings_are_refused():
    with pytest.raises(InvalidTaskSettings, match="hiden") as caught:
        load_task("digits")(TaskContext(settings={"hiden": 3}))
    assert "hidden" in caught.value.hint
    with pytest.raises(InvalidTaskSettings, match="split"):
        load_task("digits")(TaskContext(settings={"split": "thirds"}))
