from __future__ import annotations

import math
import sys
from importlib.metadata import entry_points

import pytest
import torch

from node.errors import ExitCode
from node.run.manifest import RunManifest
from node.task import (
    SETTINGS_GROUP,
    InvalidTaskSettings,
    Task,
    TaskContext,
    UnknownTask,
    installed_tasks,
    load_task,
)
from node.tasks.byte_gpt import ByteGPT, _printable
from node.training.solo import train_alone

TINY = {"layers": 1, "width": 16, "heads": 2, "context": 16, "batch": 4,
        "evaluation_windows": 8, "sample_bytes": 20}  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(b"the quick brown fox jumps over the lazy dog. " * 1000)
    return str(path)


def make(text, **changes):
    return ByteGPT(
        TaskContext(**{"settings": TINY, "data": text, "seed": 3, "steps": 100, **changes})
    )


def test_the_registry_finds_what_is_installed():
    assert installed_tasks()["byte-gpt"] == "node.tasks.byte_gpt:ByteGPT"
    assert load_task("byte-gpt") is ByteGPT
    with pytest.raises(UnknownTask) as caught:
        load_task("no-such")
    assert "byte-gpt" in caught.value.hint
    assert caught.value.exit_code == ExitCode.BAD_CONFIG


OWN = """
from node.task import Task
class Mine(Task):
    name = "mine"
class NoTask: ...
"""


def test_a_manifest_cannot_bring_code(tmp_path, monkeypatch):
    """`module:Class` runs only if the operator's own configuration says the same."""
    (tmp_path / "own_task_module.py").write_text(OWN)
    (tmp_path / "node.py").write_text("raise SystemExit('a user file hides ours')")
    monkeypatch.setattr(sys, "path", list(sys.path))
    for allowed in ("", "byte-gpt", "own_task_module:Other"):
        with pytest.raises(UnknownTask) as caught:
            load_task("own_task_module:Mine", allowed=allowed, user_path=str(tmp_path))
        assert "trust" in caught.value.hint
    assert "own_task_module" not in sys.modules
    name = "own_task_module:Mine"
    found = load_task(name, allowed=name, user_path=str(tmp_path))
    assert issubclass(found, Task)
    assert sys.path[-1] == str(tmp_path)
    for name in (
        "own_task_module:NoTask",
        "own_task_module:Nothing",
        "no_such_module:X",
        "os:system",
    ):
        with pytest.raises(UnknownTask):
            load_task(name, allowed=name, user_path=str(tmp_path))


@pytest.mark.parametrize(
    "settings",
    [{"widht": 64}, {"width": "64"}, {"width": 0}, {"heads": 3, "width": 64}, {"clip": 0}],
)
def test_wrong_settings_are_one_clear_error(settings, text):
    with pytest.raises(InvalidTaskSettings) as caught:
        ByteGPT(TaskContext(settings=settings, data=text))
    assert next(iter(settings)) in str(caught.value)
    assert caught.value.hint


def test_every_task_that_comes_along_registers_its_settings():
    """So that a daemon can check them; the group and the classes must not part ways."""
    registered = {
        point.name: point.load()
        for point in entry_points(group=SETTINGS_GROUP)
        if point.value.startswith("node.")
    }
    ours = {name for name, value in installed_tasks().items() if value.startswith("node.")}
    assert registered == {name: load_task(name).Settings for name in ours}


def test_batches_depend_on_seed_node_and_index_alone(text):
    one, again = make(text, node="a"), make(text, node="a")
    assert torch.equal(one.batch(7)[0], again.batch(7)[0])
    inputs, targets = one.batch(7)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert inputs.shape == (4, 16)
    for other in (
        one.batch(8),
        make(text, node="b").batch(7),
        make(text, node="a", seed=4).batch(7),
    ):
        assert not torch.equal(inputs, other[0])


def test_the_model_cannot_see_the_future(text):
    model = make(text).build_model().eval()
    tokens = torch.randint(0, 256, (2, 16))
    changed = tokens.clone()
    changed[:, 10:] = (changed[:, 10:] + 1) % 256
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :10], after[:, :10])
    assert not torch.equal(before[:, 10:], after[:, 10:])


def test_the_untrained_model_guesses_evenly(text):
    task = make(text)
    torch.manual_seed(0)
    assert abs(task.evaluate(task.build_model()).loss - math.log(256)) < 0.2


def test_evaluation_is_fixed_and_leaves_no_trace(text):
    task = make(text)
    model = task.build_model()
    state = torch.get_rng_state()
    first = task.evaluate(model)
    assert task.evaluate(model) == first == make(text, node="b", seed=9).evaluate(model)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_the_learning_rate_warms_up_and_comes_down(text):
    task = make(text, settings={**TINY, "warmup": 10, "learning_rate": 0.01})
    rates = [task.learning_rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.001)
    assert rates[9] == pytest.approx(0.01)
    assert rates[-1] == pytest.approx(0.001, rel=0.02)
    assert max(rates) == pytest.approx(0.01)
    assert make(text, steps=0).learning_rate(10**6) == pytest.approx(3e-3)


def test_a_sample_is_safe_on_a_terminal(text):
    task = make(text)
    found = task.sample(task.build_model())
    assert found.startswith("def ")
    assert all(c in "\n\t" or c.isprintable() for c in found)
    assert _printable(b"a\x1b[2Jb\n\x07\xff\xc2\x9b") == "a\N{REPLACEMENT CHARACTER}[2Jb\n" + (
        "\N{REPLACEMENT CHARACTER}" * 3
    )


def test_training_alone_learns(text):
    manifest = RunManifest(
        name="t", task="byte-gpt", task_settings={**TINY, "learning_rate": 0.01}, steps=40, seed=1
    )
    lines = list(train_alone(manifest, data=text, nodes=2, evaluate_every=40))
    assert [line["step"] for line in lines] == [0, 40, 80]
    assert lines[-1]["tokens"] == 80 * 64
    assert lines[0]["val_loss"] > 5
    assert lines[-1]["val_loss"] < 3.2
    again = list(train_alone(manifest, data=text, nodes=2, evaluate_every=40))
    assert [line["val_loss"] for line in again] == [line["val_loss"] for line in lines]
