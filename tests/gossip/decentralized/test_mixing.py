"""Mean, median and trimmed mean as functions: order, range, and what a few liars can do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.decentralized import arithmetic
from gossip.decentralized.mixing.rules import MIXINGS, Median, TrimmedMean, WeightedMean, mix_rule
from gossip.decentralized.protocol import TensorSpec
from gossip.errors import InvalidSettings

ONE = (TensorSpec("weight", 0, (6,)),)


def models(count, seed=0, size=6):
    return list(np.random.default_rng(seed).standard_normal((count, size)).astype(np.float32))


def equal(count):
    return [1 / count] * count


@pytest.mark.parametrize("name", MIXINGS)
def test_equal_models_stay_the_same_bit_for_bit(name):
    model = models(1)[0]
    mixed = mix_rule(name).mix(model, [model.copy() for _ in range(3)], equal(4), ONE)
    assert mixed.tobytes() == model.tobytes()
    assert mixed is not model
    assert mix_rule(name).mix(model, [], [1.0], ONE).tobytes() == model.tobytes()


@given(st.integers(2, 9), st.integers(0, 1000))
def test_nodes_that_mix_the_same_get_the_same_bits(count, seed):
    everything = models(count, seed)
    for name in ("mean", "median", "trimmed-mean"):
        results = set()
        for at, own in enumerate(everything):
            others = everything[:at] + everything[at + 1 :]
            mixed = mix_rule(name).mix(own, others, equal(count), ONE, place=at)
            results.add(mixed.tobytes())
        if name == "trimmed-mean" and count < 3:
            assert len(results) == count, "too few to trim: each keeps its own"
        else:
            assert len(results) == 1


def test_weights_follow_their_models():
    a, b, c = models(3)
    weights = [0.5, 0.3, 0.2]
    for place in range(3):
        mixed = WeightedMean().mix(a, [b, c], weights, ONE, place=place)
        wide = [m.astype(np.float64) for m in (a, b, c)]
        np.testing.assert_allclose(
            mixed, sum(w * m for w, m in zip(weights, wide, strict=True)), rtol=1e-6
        )


@given(st.integers(1, 8), st.integers(0, 1000))
def test_median_and_trimmed_mean_by_definition(count, seed):
    own, *received = everything = models(count + 1, seed)
    stack = np.array(everything, np.float64)
    median = Median().mix(own, received, equal(count + 1), ONE)
    np.testing.assert_array_equal(median, np.median(stack, axis=0).astype(np.float32))
    for trim in range(1, 4):
        mixed = TrimmedMean(trim).mix(own, received, equal(count + 1), ONE)
        if count + 1 > 2 * trim:
            kept = np.sort(stack, axis=0)[trim : count + 1 - trim]
            np.testing.assert_array_equal(mixed, kept.mean(axis=0).astype(np.float32))
        else:
            np.testing.assert_array_equal(mixed, own)


@given(st.integers(1, 3), st.integers(0, 1000), st.floats(-3e37, 3e37))
def test_liars_leave_robust_rules_inside_the_honest_range(liars, seed, value):
    honest = models(2 * liars + 1, seed)
    false = [np.full(6, value, np.float32) for _ in range(liars)]
    received = [*honest[1:], *false]
    weights = equal(len(honest) + liars)
    low, high = np.min(honest, axis=0), np.max(honest, axis=0)
    for rule in (Median(), TrimmedMean(liars)):
        mixed = rule.mix(honest[0], received, weights, ONE)
        assert (mixed >= low).all()
        assert (mixed <= high).all()
    moved = WeightedMean().mix(honest[0], received, weights, ONE)
    if abs(value) > 1e3:
        assert (np.abs(moved) > 1e2).all(), "and one liar moves the mean"


@given(st.floats(-100, 100), st.integers(0, 100))
def test_robust_rules_move_with_their_models(shift, seed):
    own, *received = models(5, seed)
    moved = [(m.astype(np.float64) + shift).astype(np.float32) for m in (own, *received)]
    for rule in (Median(), TrimmedMean(1)):
        before = rule.mix(own, received, equal(5), ONE).astype(np.float64)
        after = rule.mix(moved[0], moved[1:], equal(5), ONE)
        np.testing.assert_allclose(after, before + shift, atol=2e-5)


@pytest.mark.parametrize("name", MIXINGS)
def test_statistics_of_a_normalisation_layer_stay_the_nodes_own(name):
    tensors = (
        TensorSpec("conv.weight", 0, (2,)),
        TensorSpec("norm.running_mean", 2, (2,)),
        TensorSpec("norm.running_var", 4, (2,)),
    )
    own, *received = models(4)
    mixed = mix_rule(name).mix(own, received, equal(4), tensors)
    assert mixed[2:].tobytes() == own[2:].tobytes()
    assert mixed[:2].tobytes() != own[:2].tobytes()


def test_pieces_do_not_show(monkeypatch):
    own, *received = models(5, size=1000)
    tensors = (TensorSpec("a", 0, (1000,)),)
    whole = {n: mix_rule(n).mix(own, received, equal(5), tensors).tobytes() for n in MIXINGS[2:]}
    monkeypatch.setattr("gossip.decentralized.mixing.rules.PIECE", 7)
    for name, expected in whole.items():
        assert mix_rule(name).mix(own, received, equal(5), tensors).tobytes() == expected


def test_an_unknown_rule_is_refused_with_those_there_are():
    with pytest.raises(InvalidSettings, match="'krum'") as raised:
        mix_rule("krum")
    assert raised.value.hint == "there are: mean, variance-corrected, median, trimmed-mean"


def test_the_mean_of_arithmetic_is_this_one():
    own, *received = models(4)
    mixed = WeightedMean().mix(own, received, equal(4), ONE)
    assert mixed.tobytes() == arithmetic.mean([own, *received]).tobytes()
