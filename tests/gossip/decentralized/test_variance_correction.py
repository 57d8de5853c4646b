"""Variance-corrected averaging keeps what its definition says, and undoes the collapse that it is for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossip.decentralized.kit.rehearsal import node_id
from gossip.decentralized.mixing import variance_correction
from gossip.decentralized.mixing.rules import WeightedMean
from gossip.decentralized.mixing.variance_correction import VarianceCorrected, moments
from gossip.decentralized.protocol import TensorSpec
from gossip.decentralized.topology import graph
from tests.gossip.decentralized.spectra import mixing_matrix

TARGETS = ("others", "self", "blend", "median")
TENSORS = (
    TensorSpec("deep.weight", 0, (20, 30)),
    TensorSpec("deep.bias", 600, (30,)),
    TensorSpec("scale", 640, (1,)),  # ten values of padding before it
)
SIZE = 648


def model(seed, scale=1.0, shift=0.0):
    rng = np.random.default_rng(seed)
    out = np.zeros(SIZE, np.float32)
    for tensor in TENSORS:
        values = rng.standard_normal(tensor.numel) * scale + shift
        out[tensor.offset : tensor.offset + tensor.numel] = values
    return out


def parts(vector):
    return {t.name: vector[t.offset : t.offset + t.numel].astype(np.float64) for t in TENSORS}


def lazy(received, own_share=0.5):
    return [own_share, *([(1 - own_share) / received] * received)]


def target_variance(target, share, own, received):
    """T, from the definition."""
    others = [np.var(values, ddof=1) for values in received]
    return {
        "others": np.mean(others),
        "self": np.var(own, ddof=1),
        "blend": share * np.var(own, ddof=1) + (1 - share) * np.mean(others),
        "median": np.median(others),
    }[target]


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=40)
@given(
    st.integers(1, 8), st.integers(0, 1000), st.floats(0, 0.9), st.floats(0.01, 100.0),
    st.floats(-0.1, 0.1),
)  # fmt: skip
def test_mean_kept_and_variance_as_aimed(target, count, seed, share, scale, shift):
    own = model(seed, scale, shift)
    received = [model(seed + 1 + j, scale * (1 + j), shift) for j in range(count)]
    weights = lazy(count, share)
    plain = WeightedMean().mix(own, received, weights, TENSORS)
    mixed = VarianceCorrected(target).mix(own, received, weights, TENSORS)
    for name, out in parts(mixed).items():
        a = parts(plain)[name]
        if a.size == 1:
            assert out == a, "a single value has no spread"
            continue
        aimed = target_variance(target, share, parts(own)[name], [parts(r)[name] for r in received])
        assert abs(out.mean() - a.mean()) <= 1e-6 * (np.sqrt(aimed) + abs(a.mean()))
        assert abs(np.var(out, ddof=1) - aimed) <= 1e-6 * aimed
    assert not mixed[630:640].any(), "padding stays zero"


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 8])
def test_equal_models_come_out_as_they_are(target, count):
    own = model(5)
    mixed = VarianceCorrected(target).mix(
        own, [own.copy() for _ in range(count)], lazy(count), TENSORS
    )
    np.testing.assert_allclose(mixed, own, rtol=1e-6)
    if count in (1, 2, 4, 8):
        assert mixed.tobytes() == own.tobytes()


def test_one_received_and_nothing_kept_is_that_one():
    own, other = model(1), model(2, scale=3)
    mixed = VarianceCorrected("others").mix(own, [other], [0.0, 1.0], TENSORS)
    assert mixed.tobytes() == other.tobytes()


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=20)
@given(st.sampled_from([0.125, 0.5, 2.0, 64.0]), st.integers(0, 100))
def test_scaling_all_models_scales_the_result(target, factor, seed):
    own, *received = (model(seed + j, 1 + j) for j in range(4))
    rule, weights = VarianceCorrected(target), lazy(3)
    mixed = rule.mix(own, received, weights, TENSORS)
    scaled = rule.mix(
        own * np.float32(factor), [r * np.float32(factor) for r in received], weights, TENSORS
    )
    np.testing.assert_array_equal(scaled, mixed * np.float32(factor))


def test_tensors_without_spread_stay_as_they_are():
    """Biases of zeros and scales of ones, as most nets begin."""
    for constant in (0.0, 1.0, -7.25, 1e-20, 0.1):
        flat = np.full(SIZE, constant, np.float32)
        mixed = VarianceCorrected("others").mix(flat, [flat.copy()] * 3, lazy(3, 0.1), TENSORS)
        assert mixed.tobytes() == flat.tobytes()
    # Where others have spread and the mean has none, there is no direction to stretch.
    up = model(1)
    mixed = VarianceCorrected("others").mix(up, [-up], lazy(1), TENSORS)
    assert not mixed.any()


def test_the_target_is_that_of_the_models_as_they_came():
    """Blend reads the own model's variance, not that of what it was overwritten with."""
    own, other = model(1, scale=10), model(2)
    mixed = parts(VarianceCorrected("blend").mix(own, [other], lazy(1), TENSORS))["deep.weight"]
    aimed = (
        np.var(parts(own)["deep.weight"], ddof=1) + np.var(parts(other)["deep.weight"], ddof=1)
    ) / 2
    assert np.var(mixed, ddof=1) == pytest.approx(aimed, rel=1e-6)


def test_one_liar_sets_the_mean_target_and_not_the_median():
    own, *received = (model(j) for j in range(6))
    received[0] = received[0] * np.float32(1000)
    ratio = {
        target: np.var(
            parts(VarianceCorrected(target).mix(own, received, lazy(5), TENSORS))["deep.weight"],
            ddof=1,
        )
        for target in ("others", "median")
    }
    assert ratio["others"] > 1e5
    assert ratio["median"] == pytest.approx(1, rel=0.2)


def test_moments_are_those_of_numpy_in_any_pieces(monkeypatch):
    values = model(3, 2.0, 5.0)[:600]
    wide = values.astype(np.float64)
    for piece in (1 << 16, 7):
        monkeypatch.setattr(variance_correction, "PIECE", piece)
        mean, variance = moments(values)
        assert mean == pytest.approx(wide.mean(), rel=1e-13)
        assert variance == pytest.approx(wide.var(ddof=1), rel=1e-12)


# ---- what it is for ------------------------------------------------------------------------------


def gossip(rule, start, matrix, rounds):
    """Rounds of mixing on a graph, with no training."""
    current = start
    for _ in range(rounds):
        following = []
        for i, own in enumerate(current):
            near = [j for j in range(len(current)) if matrix[i, j] and j != i]
            weights = [matrix[i, i], *(matrix[i, j] for j in near)]
            following.append(rule.mix(own, [current[j] for j in near], weights, TENSORS))
        current = following
    return current


def test_variance_collapses_to_one_nth_and_is_kept_by_the_correction():
    count = 32
    nodes = [node_id(i) for i in range(count)]
    matrix = mixing_matrix(graph("random-regular", nodes, bytes(32), degree=8))
    start = [model(seed) for seed in range(count)]
    before = np.mean([np.var(parts(m)["deep.weight"], ddof=1) for m in start])

    plain = gossip(WeightedMean(), start, matrix, 20)
    after = np.mean([np.var(parts(m)["deep.weight"], ddof=1) for m in plain])
    whole = np.mean([m.astype(np.float64) for m in start], axis=0)
    limit = np.var(parts(whole)["deep.weight"], ddof=1)
    assert after == pytest.approx(limit, rel=1e-3)
    assert after / before == pytest.approx(1 / count, rel=0.2)  # 600 weights: 6 % sampling error
    np.testing.assert_allclose(np.mean(plain, axis=0, dtype=np.float64), whole, atol=1e-6)

    corrected = gossip(VarianceCorrected("others"), start, matrix, 20)
    after = np.mean([np.var(parts(m)["deep.weight"], ddof=1) for m in corrected])
    assert after / before == pytest.approx(1, rel=0.02)
    distance = np.abs(np.mean(corrected, axis=0, dtype=np.float64) - whole).max()
    assert distance > 0.1, "the price: the network's mean is not conserved"


def test_with_a_common_start_it_changes_nothing():
    count = 8
    matrix = mixing_matrix(graph("ring", [node_id(i) for i in range(count)], bytes(32)))
    base = model(0)
    start = [base + np.float32(0.01) * model(1 + i) for i in range(count)]
    plain = gossip(WeightedMean(), start, matrix, 30)
    corrected = gossip(VarianceCorrected("others"), start, matrix, 30)
    difference = np.linalg.norm(np.subtract(plain[0], corrected[0]))
    assert difference < 1e-3 * np.linalg.norm(base)
