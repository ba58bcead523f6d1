"""Intervals, paired tests and fronts, in plain numpy.

Every accuracy in a table carries an interval and every comparison is paired on the same items, because a few hundred
items decide little. Curves of several settings are in fronts.py. Left out: corrections for many comparisons.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

LEVEL = 0.95
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
    values: Sequence[float], level: float = LEVEL, seed: int = 0, resamples: int = RESAMPLES
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


def paired_score_interval(a: Sequence[float], b: Sequence[float], level: float = LEVEL) -> tuple[float, float]:
    """Tango's score interval of mean(a) - mean(b) for paired 0 / 1 values.

    Unlike the bootstrap it has a width where no item tells the two apart: twelve items that agree do not show that
    two methods are equal. Graded values get the bootstrap. Raises ValueError for unpaired values.
    """
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if not (np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all()):
        found = paired_difference(a, b, level)
        return found.low, found.high
    if first.shape != second.shape or first.ndim != 1 or len(first) == 0:
        raise ValueError(f"paired values need equal, non-zero lengths, got {first.shape} and {second.shape}")
    only_a, only_b, items = int((first > second).sum()), int((first < second).sum()), len(first)
    z = NormalDist().inv_cdf(0.5 + level / 2)
    upper = _score_limit(only_a, only_b, items, z)
    return -_score_limit(only_b, only_a, items, z), upper


def _score_limit(only_a: int, only_b: int, items: int, z: float) -> float:
    """Largest difference that the score test with this z does not reject, by bisection."""

    def statistic(gap: float) -> float:
        """(observed - gap) over its deviation under the most likely shares whose difference is `gap`."""
        linear = -only_a - only_b + (2 * items - only_a + only_b) * gap
        share = (math.sqrt(max(linear**2 + 8 * items * only_b * gap * (1 - gap), 0)) - linear) / (4 * items)
        variance = items * (2 * share + gap * (1 - gap))
        return (only_a - only_b - items * gap) / math.sqrt(variance) if variance > 0 else -math.inf

    low, high = (only_a - only_b) / items, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if statistic(middle) > -z else (low, middle)
    return (low + high) / 2


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


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, smallest and largest of a few repeated measurements."""
    array = np.asarray(values, dtype=float)
    return float(np.median(array)), float(array.min()), float(array.max())
