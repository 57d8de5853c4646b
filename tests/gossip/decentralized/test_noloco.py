"""NoLoCo: its outer step by definition, pairs that all agree on, and the region in which the nodes stay together."""

from __future__ import annotations

import numpy as np
import pytest

from gossip.decentralized.kit.rehearsal import Quadratic, World, idle
from gossip.errors import InvalidSettings
from gossip.protocols.noloco import NoLoCo, gamma_limit


def start_of(index):
    return np.random.default_rng(index).standard_normal(8).astype(np.float32)


def world(count=8, trainer=idle, **options):
    options.setdefault("initial", start_of)
    made = World(NoLoCo, count, trainer, **options)
    made.start()
    return made


def pairs_of(made, round_):
    partners = {node.id: node.core.partner(round_) for node in made.nodes}
    for node, other in partners.items():
        assert other != node
        assert other is None or partners[other] == node
    return partners


@pytest.mark.parametrize("count", [1, 2, 3, 8, 9])
def test_pairs_are_mutual_and_change(count):
    made = world(count, rounds=1)
    seen = [pairs_of(made, round_) for round_ in range(20)]
    assert all(sum(other is None for other in pairs.values()) == count % 2 for pairs in seen)
    if count > 3:
        met = {pairs[made.nodes[0].id] for pairs in seen}
        assert len(met - {None}) >= 5


def test_another_member_moves_only_some_pairs():
    few, more = world(40, rounds=1), world(41, rounds=1)
    kept = moved = 0
    for round_ in range(30):
        before, after = pairs_of(few, round_), pairs_of(more, round_)
        same = sum(after[node] == other for node, other in before.items())
        kept, moved = kept + same, moved + 40 - same
    assert 0.3 < kept / (kept + moved) < 0.7


def test_plain_pairwise_averaging_is_the_special_case():
    """alpha = 0, beta = gamma = 1, two nodes: both become the mean of what they learnt."""
    centres = np.array([[4.0] * 8, [-2.0] * 8])
    made = world(
        2,
        Quadratic(centres, 0.25),
        rounds=1,
        every=3,
        settings={"alpha": 0.0, "beta": 1.0, "gamma": 1.0},
    )
    made.run_rounds(1)
    share = 1 - 0.75**3
    learnt = [start_of(i).astype(np.float64) * (1 - share) + centres[i] * share for i in range(2)]
    for model in made.models():
        np.testing.assert_allclose(model, np.mean(learnt, axis=0), rtol=1e-6, atol=1e-6)


def test_mean_of_slow_weights_moves_as_if_all_had_met():
    """The term that pulls a pair together sums to zero: mean φ and m follow the recursion of all-reduce."""
    count, rounds = 10, 12
    centres = np.random.default_rng(1).standard_normal((count, 8))
    made = world(count, Quadratic(centres, 0.2), rounds=rounds, every=2)
    made.run_rounds(rounds)
    mean = np.mean([start_of(i) for i in range(count)], axis=0, dtype=np.float64)
    momentum = np.zeros(8)
    for _ in range(rounds):
        change = (1 - 0.8**2) * (centres.mean(axis=0) - mean)  # linear, so the mean's is the mean
        momentum = 0.5 * momentum + 0.7 * change
        mean = mean + momentum
    np.testing.assert_allclose(np.mean(made.models(), axis=0, dtype=np.float64), mean, atol=2e-6)


def test_one_without_a_partner_takes_its_own_step():
    made = world(1, Quadratic(np.full((1, 8), 5.0), 0.5), rounds=2)
    made.run_rounds(2)
    slow, momentum = start_of(0).astype(np.float64), np.zeros(8)
    for _ in range(2):
        momentum = 0.5 * momentum + 0.7 * 0.5 * (5.0 - slow)
        slow = slow + momentum
    np.testing.assert_allclose(made.models()[0], slow, rtol=1e-6)


def test_a_partner_that_is_silent_is_a_round_alone_at_both_ends():
    made = world(2, Quadratic(np.zeros((2, 8)), 0.1), rounds=4, settings={"patience": 0.5})
    made.part([0], [1])
    made.notice_s = 1e9  # nobody is told
    made.run_rounds(4)
    assert all(members == 1 for node in made.nodes for _, _, members in node.completed)


# ---- the stable region ---------------------------------------------------------------------------


def spread_growth(alpha, gamma):
    """Largest factor by which E[φ²], E[φm], E[m²] about their means grow in one round with a random partner."""
    step = np.array([[gamma**2 / 2, -alpha * gamma, alpha**2]])  # of E[m²]
    cross = np.array([[-gamma / 2, alpha, 0.0]])  # of E[φ m']
    recursion = np.concatenate([np.array([[1.0, 0.0, 0.0]]) + 2 * cross + step, cross + step, step])
    return float(np.abs(np.linalg.eigvals(recursion)).max())


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_the_limit_is_where_the_spread_begins_to_grow(alpha):
    limit = gamma_limit(alpha)
    assert spread_growth(alpha, limit) == pytest.approx(1, abs=1e-9)
    for part in (0.05, 0.5, 0.99):
        assert spread_growth(alpha, part * limit) < 1
    assert spread_growth(alpha, 1.01 * limit) > 1


def test_published_limits_and_decays():
    limits = [gamma_limit(alpha) for alpha in (0, 0.3, 0.5, 0.7, 0.9)]
    assert limits == pytest.approx([2.0, 1.82, 1.50, 1.02, 0.38], abs=1e-9)
    decays = [spread_growth(0.5, gamma) for gamma in (0.3, 0.7, 1.0)]
    assert decays == pytest.approx([0.625, 0.70, 0.79], abs=0.005), "of the mean square"


@pytest.mark.parametrize(("alpha", "gamma"), [(0.9, 0.7), (0.5, 1.5), (0.7, 1.021), (0.99, 0.1)])
def test_settings_that_drift_apart_are_refused_with_the_limit(alpha, gamma):
    with pytest.raises(InvalidSettings, match="drift apart") as raised:
        NoLoCo.parse_settings({"alpha": alpha, "gamma": gamma})
    assert f"below {gamma_limit(alpha):.3g}" in raised.value.hint


def test_safe_settings_are_taken():
    for alpha, gamma in ((0.0, 1.0), (0.5, 0.7), (0.9, 0.37)):
        assert NoLoCo.parse_settings({"alpha": alpha, "gamma": gamma}).gamma == gamma


def test_the_spread_shrinks_inside():
    def spread(models):
        wide = np.array(models, np.float64)
        return float(np.sqrt(np.square(wide - wide.mean(axis=0)).sum()))

    before = spread([start_of(i) for i in range(24)])
    for alpha, gamma in ((0.0, 1.0), (0.5, 0.7), (0.7, 0.5)):
        made = world(24, rounds=20, settings={"alpha": alpha, "gamma": gamma})
        made.run_rounds(20)
        assert spread(made.models()) < 3 * spread_growth(alpha, gamma) ** 10 * before


def test_a_latecomer_takes_a_partners_slow_weights_without_momentum():
    made = World(NoLoCo, 6, Quadratic(np.zeros((6, 8)), 0.3), rounds=40, initial=start_of)
    made.start(range(5))
    made.at(1.5, lambda: made.join(5))
    made.run_rounds(40)
    joined = made.nodes[5]
    rounds = [round_ for _, round_, _ in joined.completed]
    assert max(np.diff(rounds)) > 3, "it goes on where the others are"
    assert np.abs(made.models()).max() < 0.01
