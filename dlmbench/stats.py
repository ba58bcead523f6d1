"""Intervals, paired tests and fronts, in plain numpy.

Every accuracy in a table carries an interval and every comparison is paired on the same items, because a few hundred
items decide little. Two methods on items that are right or wrong are a `Pairs`: what only the first solved, what only
the second, of how many. Its interval is Tango's, its test McNemar's exact one, corrected by Holm over the decoders of a
table (`compare`); "equal" is said only by a test of its own, within a margin. Curves of several settings are in
fronts.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

LEVEL = 0.95
ALPHA = 0.05  # the share of false alarms that a test allows, over all comparisons of a table together
POWER = 0.8
MARGIN = 0.02  # of accuracy: a difference within it is called equal, a loss within it is allowed
RESAMPLES = 10_000


def wilson(successes: float, total: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson score interval of a share, as shares in [0, 1]; (0, 1) when there is no item.

    It stays inside [0, 1] and does not collapse at 0 or all, where the normal interval does.
    """
    if total == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share = successes / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap_mean(
    values: Sequence[float] | np.ndarray, level: float = LEVEL, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean; (nan, nan) when there is no value."""
    if len(values) == 0:
        return math.nan, math.nan
    means = _resampled_means(np.asarray(values, dtype=float), seed, resamples)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _resampled_means(values: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    """Means of `resamples` draws with replacement. Drawing how often each distinct value occurs is the same draw."""
    distinct, counts = np.unique(values, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(values), counts / len(values), size=resamples)
    return drawn @ distinct / len(values)


def normal_half(values: Sequence[float], level: float = LEVEL) -> float:
    """Half the width of the normal interval of a mean; 0 of a single value."""
    if len(values) < 2:
        return 0.0
    return NormalDist().inv_cdf(0.5 + level / 2) * float(np.std(values, ddof=1)) / math.sqrt(len(values))


def mean_test(values: Sequence[float] | np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> float:
    """p-value of a mean that is not 0, two-sided: how often it is as far from 0 with signs drawn at random.

    What a few items cannot show it does not claim: with n of them that are not 0 it is about 2 / 2**n or more. Signs of
    equal values are drawn together, which is the same draw.
    """
    array = np.abs(np.asarray(values, dtype=float))
    sizes, counts = np.unique(array[array > 0], return_counts=True)
    positive = np.random.default_rng(seed).binomial(counts, 0.5, size=(resamples, len(counts)))
    sums = np.abs((2 * positive - counts) @ sizes)
    return float((1 + (sums >= abs(float(np.sum(values))) - 1e-9).sum()) / (1 + resamples))


def mean_interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float]:
    """Wilson for values that are all 0 or 1, bootstrap for graded ones."""
    array = np.asarray(values, dtype=float)
    if np.isin(array, (0.0, 1.0)).all():
        return wilson(float(array.sum()), len(array), level)
    return bootstrap_mean(array, level)


@dataclass(frozen=True)
class Difference:
    """A paired difference a - b of means over the same items, in the unit of the values."""

    mean: float
    low: float
    high: float
    p_value: float  # McNemar, exact; nan when the values are not 0 / 1
    items: int

    @property
    def verdict(self) -> str:
        """Words for the interval."""
        return verdict(self.low, self.high)


def verdict(low: float, high: float) -> str:
    """What the interval of a difference says. It has no width only when no item tells the two apart."""
    if low == high == 0:
        return "equal on every item"
    if low > 0:
        return "better"
    return "worse" if high < 0 else "too close to tell"


def paired_difference(
    a: Sequence[float], b: Sequence[float], level: float = LEVEL, seed: int = 0, resamples: int = RESAMPLES
) -> Difference:
    """Paired bootstrap of mean(a) - mean(b); a[i] and b[i] belong to the same item. Raises ValueError otherwise."""
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if first.shape != second.shape or first.ndim != 1 or len(first) == 0:
        raise ValueError(f"paired values need equal, non-zero lengths, got {first.shape} and {second.shape}")
    gap = first - second
    means = _resampled_means(gap, seed, resamples)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    binary = np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all()
    p_value = mcnemar(int((gap > 0).sum()), int((gap < 0).sum())) if binary else math.nan
    return Difference(float(gap.mean()), float(low), float(high), p_value, len(gap))


TOO_FEW = "too few items to tell"


class Pairs(NamedTuple):
    """Two methods on items that are right or wrong: how many only the first solved, only the second, and all."""

    only_a: int
    only_b: int
    items: int

    @classmethod
    def of(cls, a: Sequence[float], b: Sequence[float]) -> Pairs:
        """a[i] and b[i] are 0 or 1 and belong to the same item. Raises ValueError for anything else."""
        first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
        if first.shape != second.shape or first.ndim != 1 or len(first) == 0:
            raise ValueError(f"paired values need equal, non-zero lengths, got {first.shape} and {second.shape}")
        if not (_binary(first) and _binary(second)):
            raise ValueError("paired values must be 0 or 1; graded ones have paired_difference")
        return cls(int((first > second).sum()), int((first < second).sum()), len(first))

    @property
    def difference(self) -> float:
        """Share of right items of the first minus that of the second."""
        return (self.only_a - self.only_b) / self.items

    @property
    def discordance(self) -> float:
        """Share of items that tell the two apart."""
        return (self.only_a + self.only_b) / self.items


def tango(pairs: Pairs, level: float = LEVEL) -> tuple[float, float]:
    """Score interval of a paired difference (Tango 1998, Statistics in Medicine 17, 891-908).

    Unlike the bootstrap it has a width where no item tells the two apart: twelve items that agree do not show that two
    methods are equal.
    """
    z = NormalDist().inv_cdf(0.5 + level / 2)
    mirrored = Pairs(pairs.only_b, pairs.only_a, pairs.items)
    return -_score_limit(mirrored, z), _score_limit(pairs, z)


def paired_score_interval(a: Sequence[float], b: Sequence[float], level: float = LEVEL) -> tuple[float, float]:
    """`tango` of values that are all 0 or 1, the paired bootstrap of graded ones. Raises ValueError if unpaired."""
    if _binary(np.asarray(a, dtype=float)) and _binary(np.asarray(b, dtype=float)):
        return tango(Pairs.of(a, b), level)
    found = paired_difference(a, b, level)
    return found.low, found.high


def _binary(values: np.ndarray) -> bool:
    return bool(np.isin(values, (0.0, 1.0)).all())


def _score(pairs: Pairs, gap: float) -> float:
    """(observed difference - gap) over its deviation under the most likely shares whose difference is `gap`.

    Tango's statistic; approximately normal where the true difference is `gap`.
    """
    only_a, only_b, items = pairs
    linear = -only_a - only_b + (2 * items - only_a + only_b) * gap
    share = (math.sqrt(max(linear**2 + 8 * items * only_b * gap * (1 - gap), 0)) - linear) / (4 * items)
    variance = items * (2 * share + gap * (1 - gap))
    distance = only_a - only_b - items * gap
    if variance <= 0:  # the shares are certain: any distance at all contradicts them
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance / math.sqrt(variance)


def _score_limit(pairs: Pairs, z: float) -> float:
    """Largest difference that the score test with this z does not reject, by bisection."""
    low, high = pairs.difference, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _score(pairs, middle) > -z else (low, middle)
    return (low + high) / 2


def equivalence(pairs: Pairs, margin: float) -> float:
    """p-value of "the difference is at least `margin`, one way or the other"; a small one shows that it is less.

    Two one-sided score tests, the larger p of the two: at most alpha exactly where the interval `tango` at level
    1 - 2 alpha lies within the margin. Raises ValueError for a margin that is not between 0 and 1.
    """
    if not 0 < margin < 1:
        raise ValueError(f"margin is {margin}; it is a share between 0 and 1, such as 0.02 for two points")
    normal, mirrored = NormalDist(), Pairs(pairs.only_b, pairs.only_a, pairs.items)
    return max(normal.cdf(_score(pairs, margin)), normal.cdf(_score(mirrored, margin)))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for being a family (Holm 1979), in the order given.

    Calling those at most alpha significant keeps the chance of any false alarm at most alpha, however they depend.
    """
    adjusted, least = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        least = adjusted[i] = min(1.0, max(least, (len(p_values) - rank) * p_values[i]))
    return adjusted


@dataclass(frozen=True)
class Comparison:
    """A method against the reference of its table, on the same items; shares, not points."""

    pairs: Pairs
    low: float  # Tango's interval of the difference; of this comparison alone
    high: float
    p_value: float  # McNemar, exact
    p_holm: float  # the same, corrected over all comparisons of the table
    p_equal: float  # of a difference as large as the margin

    @property
    def difference(self) -> float:
        return self.pairs.difference

    def verdict(self, alpha: float = ALPHA) -> str:
        """better or worse by the corrected test, equal by that of the margin, else too close to tell."""
        if self.p_holm <= alpha:
            return "better" if self.difference > 0 else "worse"
        return "equal" if self.p_equal <= alpha else "too close to tell"


def compare(
    methods: Mapping[str, Sequence[float]], reference: Sequence[float], margin: float, level: float = LEVEL
) -> dict[str, Comparison]:
    """Every method of a table against one reference; values are 0 or 1 and in the order of the same items.

    Raises ValueError for unpaired or graded values.
    """
    pairs = {name: Pairs.of(values, reference) for name, values in methods.items()}
    p_values = [mcnemar(found.only_a, found.only_b) for found in pairs.values()]
    return {
        name: Comparison(found, *tango(found, level), p, adjusted, equivalence(found, margin))
        for (name, found), p, adjusted in zip(pairs.items(), p_values, holm(p_values))
    }


def least_difference(items: int, discordance: float, power: float = POWER, alpha: float = ALPHA) -> float | None:
    """The least true difference that `items` show with this power, by McNemar's exact two-sided test.

    `discordance` is the share of items that only one of the two solves (where the difference itself is larger, that).
    With Holm over m comparisons, the first of them to be shown has alpha / m. None: no difference whatever shows.
    """

    def shown(difference: float) -> float:
        return _mcnemar_power(items, max(discordance, difference), difference, alpha)

    low, high = 0.0, 1.0
    if shown(high) < power:
        return None
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (low, middle) if shown(middle) >= power else (middle, high)
    return high


def _mcnemar_power(items: int, discordance: float, difference: float, alpha: float) -> float:
    """Chance that the exact test rejects: a sum over how many items tell the two apart, and how these fall.

    Numbers of such items beyond six deviations are left out.
    """
    centre = items * discordance
    spread = 6 * math.sqrt(centre * (1 - discordance)) + 6
    discordant = np.arange(max(0, math.floor(centre - spread)), min(items, math.ceil(centre + spread)) + 1)
    chance = _binomial(np.array([items]), discordance)[0, discordant]
    fallen = _binomial(discordant, (1 + difference / discordance) / 2)
    rarer = np.minimum(np.arange(fallen.shape[1]), np.abs(discordant[:, None] - np.arange(fallen.shape[1])))
    p_values = 2 * np.take_along_axis(_binomial(discordant, 0.5).cumsum(1), rarer, 1)
    return float(chance @ (fallen * (p_values <= alpha)).sum(1))


def _binomial(n: np.ndarray, share: float) -> np.ndarray:
    """Probabilities of 0, 1, ... successes in n tries. n [N] -> [N, largest n + 1], 0 beyond each n."""
    k = np.arange(n.max() + 1)
    logs = np.concatenate([[0.0], np.log(np.arange(1, n.max() + 1)).cumsum()])  # of factorials
    failures = n[:, None] - k
    with np.errstate(divide="ignore", invalid="ignore"):
        odds = np.where(k > 0, k * np.log(share), 0.0) + np.where(failures > 0, failures * np.log1p(-share), 0.0)
    chances = np.exp(logs[n][:, None] - logs[k] - logs[np.maximum(failures, 0)] + odds)
    return np.where(failures >= 0, chances, 0.0)


def points(share: float, signed: bool = False) -> str:
    """A share in points with one decimal; what rounds to nothing has no sign: "0.0", never "-0.0" or "+0.0"."""
    text = f"{100 * share:{'+' if signed else ''}.1f}"
    return "0.0" if text in ("-0.0", "+0.0") else text


def bracket(low: float, high: float, signed: bool = False) -> str:
    """An interval of shares in points: "[81.6, 90.1]"."""
    return f"[{points(low, signed)}, {points(high, signed)}]"


def within(low: float, high: float, drop: float) -> str:
    """Is a difference no worse than -drop? "yes", "no", or `TOO_FEW` where its interval holds both answers."""
    if math.isnan(low) or math.isnan(high):
        return TOO_FEW
    if low >= -drop:
        return "yes"
    return "no" if high < -drop else TOO_FEW


def items_needed(items: int, value: float, low: float, high: float, limit: float) -> int | None:
    """About how many items would tell `value` from `limit`, if it stayed where it is; None when it is the limit."""
    side = value - low if value > limit else high - value
    return math.ceil(round(items * (side / (value - limit)) ** 2, 6)) if value != limit else None


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided McNemar p-value from the items that only one of the two solved."""
    discordant = only_a + only_b
    if discordant == 0:
        return 1.0
    tail = sum(math.comb(discordant, i) for i in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / 2**discordant)


def pareto_front(x: Sequence[float], y: Sequence[float], larger_x: bool = False) -> np.ndarray:
    """Which points no other point beats: larger y, and smaller x (larger with `larger_x`). Boolean array [points].

    A point is dominated by one that is at least as good in both and better in one; equal points stand together.
    Points with a nan are never on the front.
    """
    cost = np.asarray(x, dtype=float) * (-1 if larger_x else 1)
    gain = np.asarray(y, dtype=float)
    known = ~(np.isnan(cost) | np.isnan(gain))
    front = known.copy()
    for i in np.flatnonzero(known):
        as_good = known & (cost <= cost[i]) & (gain >= gain[i])
        front[i] = not (as_good & ((cost < cost[i]) | (gain > gain[i]))).any()
    return front


def median_interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float]:
    """Interval of a median by its order statistics, whatever the distribution; smallest and largest of fewer than six
    values, which hold it less often. Of 20 values the 6th and the 15th."""
    ordered, tail, rank = sorted(values), 0.0, 0
    while rank < (len(ordered) - 1) // 2:
        tail += math.comb(len(ordered), rank) / 2 ** len(ordered)
        if tail > (1 - level) / 2:
            break
        rank += 1
    least = max(rank - 1, 0)
    return ordered[least], ordered[-1 - least]


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, smallest and largest of a few repeated measurements."""
    array = np.asarray(values, dtype=float)
    return float(np.median(array)), float(array.min()), float(array.max())
