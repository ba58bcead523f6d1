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
