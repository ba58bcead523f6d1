"""Fronts, matched points and areas: known answers, coverage by simulation. Run: pytest tests/unit/test_fronts.py"""

import math
from statistics import NormalDist

import numpy as np
import pytest

from dlmbench.analysis import fronts
from dlmbench.analysis.fronts import Curve


def curve(rng, shares, costs, items, spread=2.0):
    """Settings whose items are solved with these shares, at costs around these means."""
    luck = rng.random(items)
    accuracy = np.stack([luck < share for share in shares]).astype(float)
    return Curve(accuracy, rng.normal(np.array(costs)[:, None], spread, (len(costs), items)))


def test_matched_points_lie_on_the_front():
    cost, accuracy = np.array([10.0, 20.0, 30.0, 40.0]), np.array([0.5, 0.9, 0.7, 0.95])
    assert fronts.accuracy_at(cost, accuracy, 20) == pytest.approx(0.9)
    assert fronts.accuracy_at(cost, accuracy, 30) == pytest.approx(0.925), "the beaten setting is no corner"
    assert fronts.accuracy_at(cost, accuracy, 99) == pytest.approx(0.95)
    assert math.isnan(fronts.accuracy_at(cost, accuracy, 9.9))
    assert fronts.cost_at(cost, accuracy, 0.7) == pytest.approx(15)
    assert fronts.cost_at(cost, accuracy, 0.1) == pytest.approx(10)
    assert math.isnan(fronts.cost_at(cost, accuracy, 0.96))


def test_interval_of_matched_accuracy_equals_scipy():
    scipy_stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(1)
    ours, theirs = curve(rng, [0.6, 0.8], [10, 20], 200), curve(rng, [0.5, 0.75], [10, 20], 200)

    def statistic(index):
        index = index.astype(int)
        means = [(c.cost[:, index].mean(1), c.accuracy[:, index].mean(1)) for c in (ours, theirs)]
        return fronts.accuracy_at(*means[0], 15) - fronts.accuracy_at(*means[1], 15)

    expected = scipy_stats.bootstrap(
        (np.arange(200),), statistic, vectorized=False, method="percentile", n_resamples=2000, rng=2
    ).confidence_interval
    found = fronts.accuracy_at_cost(ours, theirs, 15)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.012)
    assert found.value == pytest.approx(statistic(np.arange(200)))


def test_interval_of_matched_accuracy_covers():
    rng, inside = np.random.default_rng(3), []
    for seed in range(150):
        ours, theirs = curve(rng, [0.6, 0.8], [10, 20], 150), curve(rng, [0.5, 0.74], [10, 20], 150)
        found = fronts.accuracy_at_cost(ours, theirs, 15, resamples=300, seed=seed)
        inside.append(found.low <= 0.70 - 0.62 <= found.high)
    assert 0.89 <= np.mean(inside) <= 0.99


def test_interval_of_a_cost_ratio_covers():
    rng, inside = np.random.default_rng(4), []
    for seed in range(150):
        ours, theirs = curve(rng, [0.5, 0.95], [10, 20], 200), curve(rng, [0.3, 0.7], [20, 30], 200)
        found = fronts.cost_at_accuracy(ours, theirs, resamples=300, seed=seed)
        inside.append(found.low <= (10 + 10 * 0.2 / 0.45) / 30 <= found.high)
    assert 0.89 <= np.mean(inside) <= 0.99


def test_what_is_not_reached_has_no_interval():
    rng = np.random.default_rng(5)
    ours, theirs = curve(rng, [0.3, 0.5], [10, 20], 100), curve(rng, [0.5, 0.9], [10, 20], 100)
    found = fronts.cost_at_accuracy(ours, theirs)
    assert math.isnan(found.value) and found.missing == 1 and not found.sure
    near = fronts.cost_at_accuracy(theirs, theirs)
    assert (near.value, near.low, near.high) == (1, 1, 1) and near.sure


def test_curves_on_other_items_are_refused():
    a, b = (Curve(np.ones((1, n)), np.ones((1, n))) for n in (3, 4))
    with pytest.raises(ValueError, match="same"):
        fronts.accuracy_at_cost(a, b, 1)
    with pytest.raises(ValueError):
        fronts.accuracy_at_cost(Curve(np.ones((1, 0)), np.ones((1, 0))), Curve(np.ones((1, 0)), np.ones((1, 0))), 1)


def test_front_shares_know_how_sure_a_front_is():
    accuracy = np.zeros((4, 100))
    accuracy[0, :50] = accuracy[1, :90] = 1  # 0.5 for 10 and 0.9 for 20: both stand whatever is drawn
    accuracy[2, 10:100] = 1  # 0.9 for 20 too, on other items: often beaten by the second, as often beats it
    accuracy[3, :40] = 1  # never better than the first, and dearer
    cost = np.repeat([[10.0], [20.0], [20.0], [11.0]], 100, axis=1)
    shares = fronts.front_shares(Curve(accuracy, cost))
    assert shares[0] == 1 and shares[3] == 0
    # the second is on the front unless fewer of its ten own items were drawn than of the third's: ties happen
    assert shares[1] == pytest.approx(0.5, abs=0.1) and shares[2] == pytest.approx(0.5, abs=0.1)
    assert shares[1] + shares[2] > 1
    same = fronts.front_shares(Curve(accuracy[[0, 0]], cost[[0, 0]]))
    assert same.tolist() == [1, 1]


def test_front_shares_are_the_chance_of_winning():
    rng = np.random.default_rng(6)
    a, b = rng.random(400) < 0.8, rng.random(400) < 0.8
    shares = fronts.front_shares(Curve(np.stack([a, b]).astype(float), np.repeat([[1.0], [2.0]], 400, axis=1)))
    gap = b.astype(float) - a
    wins = NormalDist(gap.mean(), gap.std() / 20)  # the dearer one stands where it is strictly better
    assert shares[0] == 1 and shares[1] == pytest.approx(1 - wins.cdf(1 / 800), abs=0.03)


def test_hypervolume_equals_a_count_of_points():
    rng = np.random.default_rng(7)
    cost, accuracy = rng.random(6) * 40, rng.random(6)
    points = rng.random((40_000, 2)) * [30, 1]
    inside = ((cost[:, None] <= points[:, 0]) & (accuracy[:, None] >= points[:, 1])).any(0)
    assert fronts.hypervolume(cost, accuracy, 30) == pytest.approx(inside.mean(), abs=0.01)
    assert fronts.hypervolume([40.0], [1.0], 30) == 0
