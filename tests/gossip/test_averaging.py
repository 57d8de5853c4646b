"""Parameter averaging is the mean of parameters, and DiLoCo with rate 1 and no momentum."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossip.collective.links.carriage import carried, wire_bytes
from gossip.errors import InvalidSettings
from gossip.protocol import Averager, CollectiveOutcome, Contribution, ReduceMean
from gossip.protocols.averaging import MeanOfParameters, ParameterAveraging
from gossip.protocols.diloco import OuterNesterov, Wire

F32 = np.float32


def start(averager: Averager, initial: np.ndarray) -> dict[str, np.ndarray]:
    views = {name: np.zeros(initial.size, F32) for name in averager.vectors}
    views["params"][:] = initial
    averager.start(views)
    return views


def run(averager: Averager, workers: int, rounds: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Theta of the first worker, and the float64 mean of parameters in its place."""
    rng = np.random.default_rng(seed)
    initial = rng.standard_normal(33).astype(F32)
    nodes = [start(averager, initial) for _ in range(workers)]
    expected = initial.astype(np.float64)
    for _ in range(rounds):
        moves = (rng.standard_normal((workers, 33)) * 0.1).astype(F32)
        weights = rng.integers(1, 9, workers)
        for views, move in zip(nodes, moves, strict=True):
            views["params"] += move
            averager.contribute(views)
        deltas = [views["delta"].astype(np.float64) for views in nodes]
        mean = np.average(deltas, axis=0, weights=weights)
        expected = np.average(expected + moves.astype(np.float64), axis=0, weights=weights)
        for views in nodes:
            views["reduced"][:] = mean
            averager.apply(views, members=workers, weight=float(weights.sum()), alone=False)
            assert np.array_equal(views["params"], views["theta"])
    assert len({averager.state_digest(views) for views in nodes}) == 1
    return nodes[0]["theta"], expected


@given(workers=st.integers(2, 8), rounds=st.integers(1, 5), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_equals_numpys_weighted_mean_of_parameters(workers: int, rounds: int, seed: int) -> None:
    theta, expected = run(MeanOfParameters(), workers, rounds, seed)
    np.testing.assert_allclose(theta, expected, rtol=1e-5, atol=2e-6)


@given(workers=st.integers(2, 4), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_is_diloco_with_rate_one_and_no_momentum_bit_for_bit(workers: int, seed: int) -> None:
    averaged, _ = run(MeanOfParameters(), workers, 4, seed)
    outer, _ = run(OuterNesterov(1.0, 0.0), workers, 4, seed)
    assert averaged.tobytes() == outer.tobytes()


def test_equal_members_stay_where_they_are() -> None:
    averager = MeanOfParameters()
    views = start(averager, np.array([1.0, -2.5, 1e-20], F32))
    averager.contribute(views)
    assert not views["delta"].any()
    before = views["theta"].tobytes()
    views["reduced"][:] = 0
    averager.apply(views, members=2, weight=2.0, alone=False)
    assert views["theta"].tobytes() == before


def test_has_one_setting() -> None:
    assert isinstance(ParameterAveraging.averager({}), MeanOfParameters)
    assert isinstance(ParameterAveraging.averager({"wire": "bf16"}), MeanOfParameters)
    with pytest.raises(InvalidSettings, match="outer_momentum") as raised:
        ParameterAveraging.averager({"outer_momentum": 0.5})
    assert raised.value.hint == "its settings are: wire"
    with pytest.raises(InvalidSettings, match="int9"):
        ParameterAveraging.averager({"wire": "int9"})


BYTES = {"exact": 4096, "bf16": 2048, "fp16": 2048, "int8": 1040, "int4": 528, "e3m0": 528}
"""Of 1024 values."""


@pytest.mark.parametrize("wire", get_args(Wire))
def test_every_format_that_can_be_set_exists_and_is_asked_for(wire: str) -> None:
    coordinator = ParameterAveraging(ParameterAveraging.parse_settings({"wire": wire}))
    coordinator.contributed(Contribution(4, 20, 128.0), 0.0)
    assert coordinator.next_event() == ReduceMean(4, "delta", "reduced", 128.0, wire)
    values = np.linspace(-1, 1, 1000, dtype=F32)
    assert np.abs(carried(values, wire) - values).max() <= 1 / 3
    assert wire_bytes(1024, wire) == BYTES[wire]


def test_asks_for_the_mean_of_the_change() -> None:
    coordinator = ParameterAveraging(ParameterAveraging.parse_settings({}))
    coordinator.contributed(Contribution(4, 20, 128.0), 0.0)
    assert coordinator.next_event() == ReduceMean(4, "delta", "reduced", 128.0)
    coordinator.collective_done(CollectiveOutcome(3, 2, 1.0), 0.0)
    assert coordinator.next_event() is None
