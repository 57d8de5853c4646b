"""DiLoCo's numerics, against references that share no code with it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossip.protocol import Averager
from gossip.protocols import diloco
from gossip.protocols.diloco import DiLoCo, OuterNesterov

F32 = np.float32


def views_of(averager: Averager, params: np.ndarray) -> dict[str, np.ndarray]:
    views = {name: np.zeros(params.size, F32) for name in averager.vectors}
    views["params"][:] = params
    averager.start(views)
    return views


def outer_step(averager: Averager, views: dict[str, np.ndarray], mean: np.ndarray) -> None:
    views["reduced"][:] = mean
    averager.apply(views, members=2, weight=2.0, alone=False)


@pytest.mark.parametrize(("lr", "mu"), [(0.7, 0.5), (0.7, 0.9), (1.0, 0.0), (0.3, 0.99)])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_outer_step_is_torchs_nesterov(lr: float, mu: float, precision: str) -> None:
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    rng = np.random.default_rng(1)
    initial = rng.standard_normal(257).astype(F32)
    dtype = getattr(torch, precision)
    reference = torch.nn.Parameter(torch.tensor(initial, dtype=dtype))
    optimizer = torch.optim.SGD([reference], lr=lr, momentum=mu, nesterov=mu > 0)
    averager = OuterNesterov(lr, mu)
    views = views_of(averager, initial)
    for _ in range(20):
        mean = (rng.standard_normal(257) * 0.1).astype(F32)
        outer_step(averager, views, mean)
        reference.grad = torch.tensor(mean, dtype=dtype)
        optimizer.step()
    np.testing.assert_allclose(views["theta"], reference.detach().numpy(), rtol=1e-6, atol=4e-6)
    assert np.array_equal(views["params"], views["theta"])


@pytest.mark.parametrize("settings", [{}, {"outer_learning_rate": 0.9, "outer_momentum": 0.8}])
def test_settings_reach_the_arithmetic(settings: dict[str, float]) -> None:
    lr = settings.get("outer_learning_rate", 0.7)
    mu = settings.get("outer_momentum", 0.5)
    averager = DiLoCo.averager(settings)
    views = views_of(averager, np.zeros(3))
    outer_step(averager, views, np.ones(3))
    np.testing.assert_allclose(views["theta"], -lr * (1 + mu), rtol=1e-6)
    np.testing.assert_allclose(views["momentum"], 1.0)


def test_one_sgd_step_per_round_is_data_parallel_sgd() -> None:
    """H = 1, SGD inside, outer rate 1, no momentum: the mean gradient's step."""
    rng = np.random.default_rng(2)
    workers, numel, lr = 4, 64, 0.05
    features = rng.standard_normal((workers, 16, numel))
    targets = rng.standard_normal((workers, 16))
    initial = rng.standard_normal(numel).astype(F32)

    def gradient(x: np.ndarray, worker: int) -> np.ndarray:
        error = features[worker] @ x - targets[worker]
        return 2 * features[worker].T @ error / len(error)

    expected = initial.astype(np.float64)
    averager = OuterNesterov(1.0, 0.0)
    nodes = [views_of(averager, initial) for _ in range(workers)]
    for _ in range(5):
        everything = features.reshape(-1, numel)
        error = everything @ expected - targets.reshape(-1)
        expected = expected - lr * 2 * everything.T @ error / len(error)
        for worker, views in enumerate(nodes):
            step = lr * gradient(views["params"].astype(np.float64), worker)
            views["params"][:] -= step.astype(F32)
            averager.contribute(views)
        mean = np.mean([views["delta"] for views in nodes], axis=0, dtype=F32)
        for views in nodes:
            outer_step(averager, views, mean)
    for views in nodes:
        np.testing.assert_allclose(views["theta"], expected, rtol=1e-6, atol=1e-6)


def test_momentum_has_its_closed_form_under_a_constant_delta() -> None:
    mu, lr, delta = 0.9, 0.5, 2.0
    averager = OuterNesterov(lr, mu)
    views = views_of(averager, np.zeros(1))
    position = 0.0
    for k in range(1, 201):
        before = views["theta"].copy()
        outer_step(averager, views, np.full(1, delta))
        momentum = delta * (1 - mu**k) / (1 - mu)
        np.testing.assert_allclose(views["momentum"], momentum, rtol=2e-6)
        position -= lr * (delta + mu * momentum)
        np.testing.assert_allclose(views["theta"], position, rtol=1e-5)
    np.testing.assert_allclose(views["momentum"], delta / (1 - mu), rtol=1e-5)
    np.testing.assert_allclose(before - views["theta"], lr * delta / (1 - mu), rtol=1e-4)


def test_with_a_zero_delta_only_momentum_moves_theta() -> None:
    averager = OuterNesterov(0.5, 0.8)
    views = views_of(averager, np.zeros(2))
    outer_step(averager, views, np.array([1.0, -4.0]))
    theta, momentum = views["theta"].astype(np.float64), views["momentum"].astype(np.float64)
    outer_step(averager, views, np.zeros(2))
    np.testing.assert_allclose(views["momentum"], 0.8 * momentum, rtol=1e-6)
    np.testing.assert_allclose(views["theta"], theta - 0.5 * 0.8 * 0.8 * momentum, rtol=1e-6)


def test_four_workers_of_different_weight_follow_a_float64_reference() -> None:
    """Each worker descends its own quadratic; the reference is the paper's algorithm 1 in float64."""
    rng = np.random.default_rng(3)
    lr, mu, inner, local_steps, rounds, numel = 0.7, 0.5, 0.1, 6, 8, 101
    optima = rng.standard_normal((4, numel))
    weights = np.array([1.0, 2.0, 0.0, 5.0])
    initial = rng.standard_normal(numel).astype(F32)

    theta, momentum = initial.astype(np.float64), np.zeros(numel)
    for _ in range(rounds):
        deltas = []
        for optimum in optima:
            x = theta.copy()
            for _ in range(local_steps):
                x -= inner * (x - optimum)
            deltas.append(theta - x)
        mean = np.average(deltas, axis=0, weights=weights)
        momentum = mu * momentum + mean
        theta = theta - lr * (mean + mu * momentum)

    averager = OuterNesterov(lr, mu)
    nodes = [views_of(averager, initial) for _ in optima]
    for _ in range(rounds):
        for views, optimum in zip(nodes, optima.astype(F32), strict=True):
            for _ in range(local_steps):
                views["params"] -= F32(inner) * (views["params"] - optimum)
            averager.contribute(views)
        total = sum(
            views["delta"] * F32(weight) for views, weight in zip(nodes, weights, strict=True)
        )
        for views in nodes:
            outer_step(averager, views, total / F32(weights.sum()))
    for views in nodes:
        np.testing.assert_allclose(views["theta"], theta, rtol=1e-5, atol=2e-6)
        np.testing.assert_allclose(views["momentum"], momentum, rtol=1e-5, atol=2e-6)
        assert averager.state_digest(views) == averager.state_digest(nodes[0])


def test_alone_is_uninterrupted_training_and_momentum_is_forgotten() -> None:
    averager = OuterNesterov(0.7, 0.9)
    views = views_of(averager, np.zeros(5))
    outer_step(averager, views, np.ones(5))
    views["params"][:] = np.array([1e-30, -0.0, 3.3333333, np.pi, 1e30], F32)
    trained = views["params"].tobytes()
    averager.contribute(views)
    averager.apply(views, members=1, weight=1.0, alone=True)
    assert views["params"].tobytes() == views["theta"].tobytes() == trained
    assert not views["momentum"].any()


@given(
    numel=st.integers(0, 40),
    piece=st.integers(1, 17),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60)
def test_pieces_do_not_show(numel: int, piece: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    averager = OuterNesterov(0.7, 0.9)
    initial, mean = rng.standard_normal((2, numel)).astype(F32)
    whole, cut = views_of(averager, initial), views_of(averager, initial)
    usual = diloco.PIECE
    for _ in range(2):
        outer_step(averager, whole, mean)
        try:
            diloco.PIECE = piece
            outer_step(averager, cut, mean)
        finally:
            diloco.PIECE = usual
    assert averager.state_digest(whole) == averager.state_digest(cut)


def test_a_vector_longer_than_one_piece() -> None:
    numel = diloco.PIECE + 3
    averager = OuterNesterov(0.5, 0.5)
    views = views_of(averager, np.zeros(numel))
    outer_step(averager, views, np.ones(numel))
    assert np.array_equal(views["theta"], np.full(numel, -0.75, F32))


def test_contribution_is_a_gradients_sign() -> None:
    averager = OuterNesterov(1.0, 0.0)
    views = views_of(averager, np.zeros(2))
    views["params"][:] = [1.0, -2.0]
    averager.contribute(views)
    assert views["delta"].tolist() == [-1.0, 2.0]
    outer_step(averager, views, views["delta"])
    assert views["theta"].tolist() == [1.0, -2.0], "alone in the mean, one goes where one went"
