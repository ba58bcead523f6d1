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


def test_a_mean_of_graded_values_is_tested_by_signs():
    assert stats.mean_test([0.5, -0.5, 0.5, 0.5]) == pytest.approx(10 / 16, abs=0.02), "of 16 signs ten are as far off"
    assert stats.mean_test([0.0, 0.0]) == stats.mean_test([0.5]) == 1 and stats.mean_test([]) == 1
    assert stats.mean_test([0.5, 0.5]) == pytest.approx(0.5, abs=0.02), "two items show nothing, however alike"
    many = np.random.default_rng(2).normal(0.2, 1, 200)
    assert stats.mean_test(many) == pytest.approx(scipy_stats.ttest_1samp(many, 0).pvalue, abs=0.01)
    assert stats.mean_test(many + 1) < 0.001


@pytest.mark.parametrize("items", [4, 10, 20, 100])
def test_where_nothing_differs_a_mean_is_seldom_called_another(items):
    rng = np.random.default_rng(items)
    gaps = [rng.binomial(1, 0.9, items) - (0.5 * rng.binomial(1, 0.9, (2, items))).sum(0) for _ in range(400)]
    assert sum(stats.mean_test(gap, resamples=1000) <= 0.05 for gap in gaps) / 400 <= 0.08


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


# --- families of comparisons ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pairs, low, high",
    [
        ((1, 7, 21), -0.5172, -0.0260),  # airway responsiveness in Fagerland, Lydersen, Laake 2014: -0.517 to -0.026
        ((40, 20, 160), 0.0309, 0.2181),  # this and what follows: scipy, likelihood and limits found numerically
        ((6, 16, 161), -0.1240, -0.0054),
        ((0, 1, 44), -0.1181, 0.0594),
    ],
)
def test_tango_gives_published_intervals(pairs, low, high):
    assert stats.tango(stats.Pairs(*pairs)) == pytest.approx((low, high), abs=6e-5)


def test_equivalence_gives_the_published_test_of_lens_disinfection():
    # Tango 1998, section 5: 43 of 44 agree, one success less, margin 0.1: Z = 1.709, one-sided p = 0.044
    assert stats.equivalence(stats.Pairs(0, 1, 44), 0.1) == pytest.approx(0.0438, abs=5e-5)


@pytest.mark.parametrize("pairs", [(3, 5, 300), (0, 0, 80), (20, 21, 500), (9, 0, 100)])
@pytest.mark.parametrize("margin", [0.02, 0.05])
def test_equivalence_says_what_the_interval_says(pairs, margin):
    low, high = stats.tango(stats.Pairs(*pairs), 0.9)
    assert (stats.equivalence(stats.Pairs(*pairs), margin) <= 0.05) == (-margin <= low and high <= margin)


def test_equivalence_needs_a_margin():
    for margin in (0, 1.0, 2):
        with pytest.raises(ValueError, match="margin is"):
            stats.equivalence(stats.Pairs(1, 1, 50), margin)


def test_two_equal_methods_on_few_items_are_not_called_equal():
    assert stats.equivalence(stats.Pairs(0, 0, 50), 0.02) > 0.05
    assert stats.equivalence(stats.Pairs(0, 0, 500), 0.02) < 0.05


@pytest.mark.parametrize("only_a, only_b, expected", [(1, 7, 0.0703125), (12, 2, 0.012939453125), (0, 1, 1.0)])
def test_mcnemar_gives_values_of_statsmodels(only_a, only_b, expected):
    assert stats.mcnemar(only_a, only_b) == pytest.approx(expected, abs=1e-12)


def test_holm_gives_values_of_statsmodels():
    p_values = [0.01, 0.04, 0.03, 0.005, 0.2, 0.9, 0.04]  # statsmodels 0.15, multipletests(..., method="holm")
    assert stats.holm(p_values) == pytest.approx([0.06, 0.16, 0.15, 0.035, 0.4, 0.9, 0.16])
    assert stats.holm([]) == [] and stats.holm([0.7]) == [0.7]


def test_among_28_equal_decoders_a_win_is_found_in_one_table_of_twenty_at_most():
    rng, items, decoders, tables = np.random.default_rng(9), 200, 28, 1000
    alarms = uncorrected = 0
    for _ in range(tables):
        chance = rng.beta(4, 1, items).astype(np.float32)  # items are easy or hard for all of them
        right = rng.random((decoders + 1, items), dtype=np.float32) < chance
        only = (right[1:] & ~right[0]).sum(1), (right[0] & ~right[1:]).sum(1)
        p_values = [stats.mcnemar(int(a), int(b)) for a, b in zip(*only)]
        alarms += min(stats.holm(p_values)) <= stats.ALPHA
        uncorrected += min(p_values) <= stats.ALPHA
    assert alarms / tables <= stats.ALPHA < uncorrected / tables


@pytest.mark.parametrize("share, flipped", [(0.99, 0.01), (0.9, 0.05), (0.6, 0.3)])
def test_tango_covers_near_the_ceiling_and_far_from_it(share, flipped):
    rng, inside = np.random.default_rng(10), []
    for _ in range(400):
        a = rng.random(300) < share
        b = a ^ (rng.random(300) < flipped)
        low, high = stats.tango(stats.Pairs.of(a, b))
        truth = share - (share * (1 - flipped) + (1 - share) * flipped)
        inside.append(low <= truth <= high)
    assert 0.92 <= np.mean(inside) <= 0.995


def test_methods_are_equal_in_less_than_one_table_of_twenty_when_they_differ_by_the_margin():
    rng, equal = np.random.default_rng(11), []
    for _ in range(1000):
        only_a, only_b, _ = rng.multinomial(800, [0.035, 0.015, 0.95])  # a true difference of 0.02
        equal.append(stats.equivalence(stats.Pairs(only_a, only_b, 800), 0.02) <= 0.05)
    assert np.mean(equal) <= 0.065


def test_a_table_is_judged_as_a_family():
    reference = np.ones(600, dtype=int)
    same, worse, noisy = reference.copy(), reference.copy(), reference.copy()
    worse[:30], noisy[:8] = 0, 0
    found = stats.compare({"same": same, "worse": worse, "noisy": noisy}, reference, margin=0.02)
    assert {name: one.verdict() for name, one in found.items()} == {
        "same": "equal", "worse": "worse", "noisy": "worse",
    }  # fmt: skip
    assert found["noisy"].p_holm == pytest.approx(2 * found["noisy"].p_value)
    assert found["same"].low < 0 < found["same"].high  # no interval collapses
    crowd = stats.compare({f"same {i}": same for i in range(30)} | {"noisy": noisy}, reference, margin=0.02)
    assert crowd["noisy"].verdict() == "too close to tell"
    with pytest.raises(ValueError, match="0 or 1"):
        stats.compare({"graded": np.full(600, 0.5)}, reference, margin=0.02)


@pytest.mark.parametrize("items, discordance", [(120, 0.15), (500, 0.05)])
def test_the_least_difference_is_shown_four_times_of_five(items, discordance):
    gap = stats.least_difference(items, discordance)
    rng = np.random.default_rng(12)
    drawn = rng.multinomial(items, [(discordance + gap) / 2, (discordance - gap) / 2, 1 - discordance], size=2000)
    shown = np.mean([stats.mcnemar(int(a), int(b)) <= 0.05 for a, b, _ in drawn])
    assert shown == pytest.approx(0.8, abs=0.03)


def test_the_least_difference_shrinks_with_items_and_grows_with_comparisons():
    by_items = [stats.least_difference(items, 0.1) for items in (50, 200, 1319)]
    assert by_items == sorted(by_items, reverse=True)
    # Connor 1987 (normal approximation) has 0.0395 for 500 items, the exact test needs a little more
    assert 0.0395 < stats.least_difference(500, 0.1) < 0.042
    assert stats.least_difference(500, 0.1, alpha=0.05 / 28) > stats.least_difference(500, 0.1)
    assert stats.least_difference(500, 0.0) == pytest.approx(0.0158, abs=2e-4)  # one-sided changes: six or more
    assert stats.least_difference(5, 0.1) is None  # five items cannot reach p = 0.05 at all


def test_points_have_no_sign_where_they_round_to_nothing():
    assert stats.points(-0.0004, signed=True) == stats.points(0.0004, signed=True) == stats.points(-0.0) == "0.0"
    assert stats.points(0.0123, signed=True) == "+1.2" and stats.points(0.922) == "92.2"
    assert stats.bracket(-0.0241, 0.0004, signed=True) == "[-2.4, 0.0]" and stats.bracket(0.8, 1) == "[80.0, 100.0]"


def test_a_median_has_the_interval_of_its_order_statistics():
    """Of 20 values P(at most 5 below the median) = 0.0207, so ranks 6 and 15; five values hold it in 94 % at best."""
    assert stats.median_interval(range(1, 21)) == (6, 15)
    assert stats.median_interval([5, 1, 4, 2, 3]) == (1, 5) and stats.median_interval([3.0]) == (3.0, 3.0)
    rng = np.random.default_rng(0)
    ends = [stats.median_interval(one) for one in rng.lognormal(size=(2000, 20))]
    assert 0.95 <= np.mean([low <= 1 <= high for low, high in ends]) <= 0.97
