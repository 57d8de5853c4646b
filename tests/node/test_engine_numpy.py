"""The batched engine: torch's arithmetic, and nobody's result depends on the others in the stack."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gossip.decentralized.protocol import LocalRule
from node.simulation.engine import EngineError, Job, open_engine
from node.simulation.engine_numpy import NumpyEngine
from node.tasks.perceptron import own_seed

NODES = [f"node-{at}" for at in range(40)]
PLAIN = {"hidden": 12, "batch": 8}
FULL = {
    "hidden": 12,
    "depth": 2,
    "batch": 8,
    "learning_rate": 0.05,
    "decay": 0.99,
    "momentum": 0.9,
    "weight_decay": 0.01,
    "l2": 0.02,
    "split": "dirichlet",
    "alpha": 0.3,
}


def make(task_settings, **changes):
    return open_engine(
        "batched",
        **{"task": "digits", "settings": task_settings, "nodes": NODES, "seed": 7, **changes},
    )


def in_torch(engine: NumpyEngine, params):
    """The same network as torch modules that hold the values of `params`."""
    found = {}
    for spec in engine.tensors:
        values = params[spec.offset : spec.offset + spec.numel].reshape(spec.shape)
        found[spec.name] = torch.tensor(values, requires_grad=True)
    return found


def torch_loss(engine, tensors, examples, labels):
    h = torch.from_numpy(examples)
    layers = len(tensors) // 2
    for at in range(layers):
        h = h @ tensors[f"layers.{at}.weight"].T + tensors[f"layers.{at}.bias"]
        if at + 1 < layers:
            h = torch.relu(h)
    loss = torch.nn.functional.cross_entropy(h, torch.from_numpy(labels))
    l2 = engine._settings.l2
    return loss + l2 / 2 * sum(t.square().sum() for t in tensors.values())


def flat(engine, tensors):
    out = np.zeros(engine.numel, np.float32)
    for spec in engine.tensors:
        out[spec.offset : spec.offset + spec.numel] = tensors[spec.name].detach().numpy().ravel()
    return out


@pytest.mark.parametrize("kind", ["task", "sam"])
def test_legs_are_those_of_torch(kind):
    engine = make(FULL)
    rule = LocalRule(kind, 0.05 if kind == "sam" else 0.0)
    start = engine.initial(3, common=True)
    tensors = in_torch(engine, start)
    optimizer = torch.optim.SGD(tensors.values(), lr=0.05, momentum=0.9, weight_decay=0.01)
    params, cursor = start, 0
    for steps in (1, 4, 3):  # momentum goes on over legs
        work = engine.train([Job(3, params, steps, rule, cursor)])[0]
        losses = []
        for step in range(steps):
            job = Job(3, params, steps, rule, cursor)
            examples, labels = engine._batch([job], step, 8)
            optimizer.param_groups[0]["lr"] = 0.05 * 0.99 ** (cursor + step)
            optimizer.zero_grad()
            loss = torch_loss(engine, tensors, examples[0], labels[0])
            loss.backward()
            losses.append(float(loss.detach()))
            if kind == "sam":
                kept = {name: t.detach().clone() for name, t in tensors.items()}
                norm = torch.sqrt(sum(t.grad.square().sum() for t in tensors.values()))
                with torch.no_grad():
                    for t in tensors.values():
                        t += 0.05 * t.grad / (norm + 1e-12)
                optimizer.zero_grad()
                torch_loss(engine, tensors, examples[0], labels[0]).backward()
                with torch.no_grad():
                    for name, t in tensors.items():
                        t.copy_(kept[name])
            optimizer.step()
        params, cursor = work.params, cursor + steps
        np.testing.assert_allclose(params, flat(engine, tensors), atol=1e-5)
        assert work.loss == pytest.approx(np.mean(losses), abs=1e-5)
        assert (work.steps, work.samples) == (steps, steps * 8)


def test_a_gradient_leg_takes_no_step():
    engine = make(FULL)
    params = engine.initial(0, common=True)
    work = engine.train([Job(0, params, 3, LocalRule("gradient"), cursor=5)])[0]
    assert np.array_equal(work.params, params)
    tensors = in_torch(engine, params)
    for step in range(3):
        job = Job(0, params, 3, LocalRule("gradient"), cursor=5)
        examples, labels = engine._batch([job], step, 8)
        (torch_loss(engine, tensors, examples[0], labels[0]) / 3).backward()
    gradients = {name: t.grad for name, t in tensors.items()}
    np.testing.assert_allclose(work.gradient, flat(engine, gradients), atol=1e-5)


def test_a_gradient_over_everything_does_not_depend_on_the_cursor():
    engine = make({**PLAIN, "batch": 0, "depth": 0, "l2": 0.1})
    params = engine.initial(0, common=True)
    first, second = (
        engine.train([Job(0, params, 1, LocalRule("gradient"), cursor)])[0] for cursor in (0, 9)
    )
    assert np.array_equal(first.gradient, second.gradient)
    assert first.samples == len(engine._portions[0])


@settings(max_examples=25, deadline=None)
@given(
    company=st.lists(st.integers(1, 39), unique=True, max_size=39),
    steps=st.integers(0, 4),
    seed=st.integers(0, 3),
    full=st.booleans(),
    everything=st.booleans(),
)
def test_the_others_in_a_call_change_nothing(company, steps, seed, full, everything):
    """Bit for bit, whatever the size of the stack and the lengths of the others' legs."""
    options = {**(FULL if full else PLAIN), **({"batch": 0} if everything else {})}
    rng = np.random.default_rng(seed)
    alone, together = make(options, seed=seed), make(options, seed=seed)
    params = [alone.initial(node, common=False) for node in range(40)]
    for leg in range(2):
        mine = Job(0, params[0], steps, cursor=leg * steps)
        others = [Job(node, params[node], int(rng.integers(0, 5))) for node in company]
        place = int(rng.integers(0, len(others) + 1))
        expected = alone.train([mine])[0]
        found = together.train([*others[:place], mine, *others[place:]])[place]
        assert np.array_equal(found.params, expected.params)
        assert (found.loss, found.samples) == (expected.loss, expected.samples)
        params[0] = found.params


def test_starts():
    engine = make(PLAIN)
    assert np.array_equal(engine.initial(0, common=True), engine.initial(1, common=True))
    own = [engine.initial(node, common=False) for node in (0, 1)]
    assert not np.array_equal(own[0], own[1])
    assert own_seed(7, "node-0") != own_seed(8, "node-0")
    for spec in engine.tensors:
        values = own[0][spec.offset : spec.offset + spec.numel]
        if spec.name.endswith("bias"):
            assert not values.any()
        else:  # Xavier: variance 2 / (in + out)
            assert np.var(values) == pytest.approx(2 / sum(spec.shape), rel=0.15)


def test_a_diverging_leg_is_rolled_back():
    engine = make({**PLAIN, "learning_rate": 100, "momentum": 0.9, "l2": 100})
    params = engine.initial(0, common=True)
    work = engine.train([Job(0, params, 60)])[0]
    assert np.array_equal(work.params, params)
    assert work.loss is None
    fresh = make({**PLAIN, "learning_rate": 100, "momentum": 0.9, "l2": 100})
    assert np.array_equal(  # its momentum starts afresh as well
        engine.train([Job(0, params, 1)])[0].params, fresh.train([Job(0, params, 1)])[0].params
    )


def test_a_node_without_data_gives_back_what_it_was_given():
    engine = make(PLAIN, without_data=[2])
    params = engine.initial(2, common=True)
    work = engine.train([Job(2, params, 5), Job(1, params, 5)])[0]
    assert np.array_equal(work.params, params)
    assert (work.samples, work.loss) == (0.0, None)
    assert work.params is not params


def test_it_learns_and_scores():
    engine = make({**PLAIN, "hidden": 32})
    params = engine.initial(0, common=True)
    before = engine.score([params])[0]
    assert before.loss == pytest.approx(np.log(10), abs=1)
    for _ in range(30):
        works = engine.train([Job(node, params, 5, cursor=0) for node in range(8)])
        params = np.mean([work.params for work in works], axis=0)
    after, broken = engine.score([params, np.full_like(params, np.nan)])
    assert after.accuracy > 0.8
    assert after.loss < 1
    assert broken.loss == np.inf


def test_what_is_refused():
    with pytest.raises(EngineError, match="the task 'byte-gpt' is none") as caught:
        open_engine("batched", task="byte-gpt", settings={}, nodes=NODES)
    assert "exact" in caught.value.hint
    with pytest.raises(EngineError, match="no engine named"):
        open_engine("quantum", task="digits", settings={}, nodes=NODES)
    with pytest.raises(EngineError, match="3 parts of data for 40 nodes"):
        make(PLAIN, parts=[(0, 3), (1, 3), (2, 3)])
