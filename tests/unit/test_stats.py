"""Intervals and tests against scipy, coverage by simulation. Run: pytest tests/unit/test_stats.py"""

import math

import numpy as np
import pytest

from dlmbench import stats

scipy_stats = pytest.importorskip("scipy.stats")


@pytest.mark.parametrize("successes, total", [(0, 10), (10, 10), (3, 10), (217, 250), (1, 1)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_wilson_equals_scipy(successes, total, level):
    expected = scipy_stats.binomtest(successes, total).proportion_ci(level, method="wilson")
    assert stats.wilson(successes, total, level) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_knows_nothing_without_items():
    assert stats.wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_wilson_covers(share):
    drawn = np.random.default_rng(1).binomial(250, share, size=2000)
    inside = [low <= share <= high for low, high in (stats.wilson(k, 250) for k in drawn)]
    assert 0.93 <= np.mean(inside) <= 0.97


def test_paired_bootstrap_is_close_to_scipy():
    rng = np.random.default_rng(2)
    a, b = rng.random(200) < 0.8, rng.random(200) < 0.7
    found = stats.paired_difference(a, b)
    expected = scipy_stats.bootstrap((a.astype(float) - b,), np.mean, method="percentile", rng=3).confidence_interval
    assert found.mean == pytest.approx(a.mean() - b.mean())
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.011)


def test_paired_bootstrap_covers():
    rng = np.random.default_rng(4)
    inside = []
    for seed in range(300):
        both = rng.random((150, 2))
        a, b = both[:, 0] < 0.8, np.where(rng.random(150) < 0.6, both[:, 0] < 0.8, both[:, 1] < 0.7)
        found = stats.paired_difference(a, b, seed=seed, resamples=1000)
        inside.append(found.low <= 0.4 * 0.1 <= found.high)
    assert 0.90 <= np.mean(inside) <= 0.985


def test_pairing_makes_a_small_difference_visible():
    a = np.array([1] * 180 + [0] * 20)
    b = a.copy()
    b[:10] = 0
    assert stats.paired_difference(a, b).verdict == "better"
    assert stats.paired_difference(b, a).verdict == "worse"
    assert stats.paired_difference(a, a).verdict == "equal on every item"
    b[-8:] = 1
    assert stats.paired_difference(a, b).verdict == "too close to tell"


@pytest.mark.parametrize("a, b", [([], []), ([1, 0], [1])])
def test_unpaired_values_are_refused(a, b):
    with pytest.raises(ValueError):
        stats.paired_difference(a, b)


@pytest.mark.parametrize("only_a, only_b", [(0, 0), (5, 5), (10, 2), (0, 7), (40, 21)])
def test_mcnemar_equals_the_binomial_test(only_a, only_b):
    total = only_a + only_b
    expected = scipy_stats.binomtest(only_a, total).pvalue if total else 1.0
    assert stats.mcnemar(only_a, only_b) == pytest.approx(expected)


def test_bootstrap_of_graded_scores():
    values = np.random.default_rng(5).random(300)
    low, high = stats.mean_interval(values)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(300), rel=0.1)
    assert stats.mean_interval([0, 1, 1]) == stats.wilson(2, 3)


def test_front_keeps_what_nothing_beats():
    cost, gain = [1, 2, 3, 4, 2, 5], [10, 30, 20, 40, 30, math.nan]
    assert stats.pareto_front(cost, gain).tolist() == [True, True, False, True, True, False]
    assert stats.pareto_front(cost, gain, larger_x=True).tolist() == [False, False, False, True, False, False]


def test_front_equals_its_definition_on_random_points():
    rng = np.random.default_rng(6)
    x, y = rng.integers(0, 12, 60), rng.integers(0, 12, 60)
    slow = [
        not any((x[j] <= x[i] and y[j] >= y[i]) and (x[j] < x[i] or y[j] > y[i]) for j in range(60)) for i in range(60)
    ]
    assert stats.pareto_front(x, y).tolist() == slow


def test_spread_of_repeats():
    assert stats.spread([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)


def test_score_interval_equals_a_maximised_likelihood():
    optimize = pytest.importorskip("scipy.optimize")
    a, b = np.zeros(60), np.zeros(60)
    a[:9] = b[6:13] = 1  # only a: 6 items, only b: 4
    z = 1.959963984540054
    for limit, sign in zip(stats.paired_score_interval(a, b), (1, -1)):

        def loss(share, limit=limit):  # -log likelihood of (only a, only b, both or neither) at a fixed difference
            rest = 1 - 2 * share - limit
            return -(6 * math.log(share + limit) + 4 * math.log(share) + 50 * math.log(rest))

        low = max(0, -limit) + 1e-9
        share = optimize.minimize_scalar(loss, bounds=(low, (1 - limit) / 2 - 1e-9), method="bounded").x
        deviation = math.sqrt(60 * (2 * share + limit - limit**2))
        assert (2 - 60 * limit) / deviation == pytest.approx(sign * z, abs=1e-3)


@pytest.mark.parametrize("items, first, second, shared", [(60, 0.95, 0.85, 0.5), (250, 0.94, 0.92, 0.8)])
def test_score_interval_covers(items, first, second, shared):
    rng, inside = np.random.default_rng(8), []
    for _ in range(500):
        luck, other = rng.random((2, items))
        a, b = luck < first, np.where(rng.random(items) < shared, luck, other) < second
        low, high = stats.paired_score_interval(a, b)
        inside.append(low <= first - second <= high)
    assert 0.92 <= np.mean(inside) <= 0.985


def test_agreement_on_a_few_items_shows_little():
    low, high = stats.paired_score_interval([1] * 12, [1] * 12)
    assert high == -low == pytest.approx(1.96**2 / (12 + 1.96**2), abs=1e-4)
    assert stats.within(low, high, 0.01) == stats.TOO_FEW
    assert stats.within(*stats.paired_score_interval([1] * 900, [1] * 900), 0.01) == "yes"
    assert stats.within(-0.09, -0.03, 0.01) == "no" and stats.within(math.nan, math.nan, 1) == stats.TOO_FEW
    with pytest.raises(ValueError):
        stats.paired_score_interval([1, 0], [1])
    graded = stats.paired_score_interval([0.5, 0.7, 0.9], [0.4, 0.6, 0.8])
    assert graded == pytest.approx((0.1, 0.1))


def test_items_needed_shrink_the_interval_to_the_distance():
    assert stats.items_needed(100, 0.0, -0.04, 0.04, limit=-0.01) == 1600
    assert stats.items_needed(100, -0.03, -0.07, 0.01, limit=-0.01) == 400
    assert stats.items_needed(100, -0.01, -0.05, 0.03, limit=-0.01) is None
